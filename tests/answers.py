"""What every answer check of `mammomil.check` has to do, as one line in its file of tests.

    from answers import common_answers

    RIGHT = ((check.top_t, top_t), (check.penalty, penalty))  # each check with a right answer to it
    test_common_answers = common_answers(RIGHT)

The right answer passes. An answer that is not written, that returns nothing, that raises, that has a wrong
shape, that repeats its first result, or that changes its arguments does not pass and is told why in a
sentence. What is left for the file itself are the mistakes of its chapter, each named by its explanation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mammomil.check.answers import Verdict

Answer = Callable[..., Any]
Judge = Callable[[Answer], Verdict]


def common_answers(
    right: Sequence[tuple[Judge, Answer]], shape_words: dict[Judge, str] | None = None
) -> Callable[..., None]:
    """Return a test that pytest collects, one case for each check and each kind of answer.

    Args:
        right: every check of the chapter with an answer that it has to accept.
        shape_words: what a wrong shape is told where the check does not compare arrays; else it is `shape`.
    """
    told = shape_words or {}

    @pytest.mark.parametrize("kind", [*_WRONG, *_OTHERS])
    @pytest.mark.parametrize(("judge", "answer"), right)
    def test(judge: Judge, answer: Answer, kind: str) -> None:
        if kind in _WRONG:
            for wrong, words in _WRONG[kind]:
                words = told.get(judge, words) if kind == "shape" else words
                _refused(judge(wrong), words)
        else:
            _OTHERS[kind](judge, answer)

    return test


def named_mistakes(wrong: Sequence[tuple[Judge, Answer, str]]) -> Callable[..., None]:
    """Return a test that pytest collects: each wrong answer is refused, with these words.

    Args:
        wrong: (check, wrong answer, a part of its explanation).
    """

    @pytest.mark.parametrize(("judge", "answer", "words"), wrong)
    def test(judge: Judge, answer: Answer, words: str) -> None:
        verdict = judge(answer)
        assert not verdict.right
        assert words in verdict.words

    return test


def _refused(verdict: Verdict, words: str) -> None:
    assert not verdict.right
    assert words in verdict.words, verdict
    assert len(verdict.words.split()) >= 4, verdict


def _right(judge: Judge, answer: Answer) -> None:
    verdict = judge(answer)
    assert verdict.right, verdict
    assert len(verdict.words.split()) >= 4, verdict


def _constant(judge: Judge, answer: Answer) -> None:
    """Whatever the first call wants, the same again is wrong later."""
    seen = []

    def constant(*arguments):
        seen.append(answer(*arguments))
        return seen[0]

    _refused(judge(constant), "")
    assert len(seen) > 1, "a check with one case accepts a constant"


def _changes_arguments(judge: Judge, answer: Answer) -> None:
    """The right result, but the first argument is spoilt; a number or a named tuple cannot be."""
    spoilt = []

    def careless(*arguments):
        result = answer(*arguments)
        first = arguments[0]
        if hasattr(first, "zero_"):
            first.zero_()
        elif isinstance(first, np.ndarray):
            first.fill(0)
        elif isinstance(first, list):
            first.clear()
        else:
            return result
        spoilt.append(first)
        return result

    verdict = judge(careless)
    if spoilt:
        _refused(verdict, "careless changes its arguments")
    else:
        assert verdict.right, verdict


def _unwritten(*_: Any) -> None:
    raise NotImplementedError


_WRONG: dict[str, list[tuple[Answer, str]]] = {
    "unwritten": [(_unwritten, "_unwritten is not written yet")],
    "nothing": [(lambda *_: None, "returns nothing yet"), (lambda *_: ..., "returns nothing yet")],
    "exception": [(lambda *_: 1 / 0, "raised ZeroDivisionError")],
    "shape": [(lambda *_, s=s: np.zeros(s), "shape") for s in ((7,), (3, 3), (7, 7))],
}
_OTHERS: dict[str, Callable[[Judge, Answer], None]] = {
    "right": _right,
    "constant": _constant,
    "changes arguments": _changes_arguments,
}
