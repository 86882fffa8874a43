import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.check.answers import Case, difference, judge, same


def cases():
    x = torch.tensor([1.0, 2.0, 6.0])
    return [
        Case((x,), x.mean(), {"That is the sum, not the mean.": x.sum()}),
        Case((torch.tensor([5.0]),), torch.tensor(5.0), note="a single value"),
    ]


def test_a_right_answer_is_praised():
    verdict = judge(lambda x: x.sum() / len(x), cases(), "A mean divides by the number of values.")
    assert verdict.right
    assert repr(verdict) == "Right. A mean divides by the number of values."


def unwritten(x):
    raise NotImplementedError


def nothing(x):
    x.mean()


def changes(x):
    x += 1
    return x.mean() - 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (unwritten, "Not yet. unwritten is not written yet."),
        (nothing, "nothing returns nothing yet. Does it end in `return`?"),
        (lambda x: ..., "returns nothing yet"),
        (lambda x: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x: x, "The result has shape (3,), expected was ()."),
        (lambda x: x.sum(), "That is the sum, not the mean."),
        (lambda x: x.max(), "It returns 6, expected was 3."),
        (lambda x: x[:3].sum() / 3, "expected was 5. (a single value)"),
        (changes, "changes changes its arguments. Work on a copy"),
        (lambda x: "three", "It returns 'three'"),
        (lambda x: float("nan"), "It returns nan, expected was 3."),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(answer, words):
    verdict = judge(answer, cases(), "")
    assert not verdict.right
    assert words in repr(verdict)


def test_the_place_of_the_first_difference_is_named():
    want = np.array([[1.0, 2.0], [3.0, 4.0]])
    got = want.copy()
    got[1, 0] = 7
    assert difference(got, want) == "At [1, 0] it returns 7, expected was 3."


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5), st.floats(-1, 1))
def test_equality_is_that_of_numpy(values, shift):
    a = np.array(values)
    assert same(torch.tensor(values, dtype=torch.float64), a, 1e-6)
    assert same(a + shift, a, 1e-6) == np.allclose(a + shift, a, rtol=1e-6, atol=1e-6)
    assert same((a, "b"), (a.tolist(), "b"), 1e-6)
    assert not same((a,), (a, a), 1e-6)
    assert not same(np.append(a, 0), a, 1e-6)


def test_unknown_equals_unknown_alone():
    assert same([np.nan, 1.0], np.array([np.nan, 1.0]), 1e-6)
    assert not same([0.0, 1.0], np.array([np.nan, 1.0]), 1e-6)
    assert same({"a"}, {"a"}, 1e-6)
    assert not same(1, "1", 1e-6)


def test_a_hundred_thousandth_is_let_pass_and_no_more():
    assert judge(lambda x: x.mean() * (1 + 1e-6), cases(), "").right
    assert not judge(lambda x: x.mean() * (1 + 1e-4), cases(), "").right
