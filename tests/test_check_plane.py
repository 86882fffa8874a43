import numpy as np
import pytest
from answers import common_answers
from sklearn.metrics import roc_auc_score

from mammomil.check import plane as check


def kinds(label):
    """Image by image, in plain Python."""
    found = []
    for benign, malignant in label:
        if malignant == 1:
            found.append(2)
        elif np.isnan(benign) or np.isnan(malignant):
            found.append(-1)
        else:
            found.append(int(benign))
    return np.array(found)


def shares(matrix):
    found = []
    for true in (2, 0):
        wrong = {called: matrix[true, called] for called in range(3) if called != true}
        total = sum(wrong.values())
        found.append(wrong[1] / total if total else float("nan"))
    return np.array(found)


def truth(label):
    known = (label == 1).any(1) | ~np.isnan(label).any(1)
    return known, (label == 1).any(1)


def area(prob, label):
    """Pair by pair."""
    known, found = truth(label)
    score = prob.max(1)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[known & found] for b in score[known & ~found]]
    return sum(pairs) / len(pairs)


test_common_answers = common_answers(
    ((check.three_kinds, kinds), (check.neighbours, shares), (check.area_of_any_finding, area))
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda y: np.where(y[:, 0] == 1, 1, 2 * (y[:, 1] == 1)), "Benign goes before malignant"),
        (lambda y: y @ [1, 2], "class of their own"),
        (lambda y: (np.nan_to_num(y) @ [1, 2]).clip(0, 2), "NaN is read as 0"),
        (lambda y: np.where(np.isnan(y).any(1), -1, kinds(y)), "missing benign label"),
        (lambda y: kinds(y[:, ::-1]), "changed places"),
        (lambda y: y.sum(1), "count findings"),
        (lambda y: np.where(y[:, 1] == 1, 2, np.where(np.isnan(y[:, 0]), -1, y[:, 0])), "benign label alone"),
        (lambda y: np.where(kinds(y) < 0, np.nan, kinds(y)), "not NaN"),
    ],
)
def test_mistakes_of_classes_are_named(answer, words):
    assert words in check.three_kinds(answer).words


def divide(a, b):
    return np.array([x / y if y else np.nan for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda m: shares(m.T), "Rows and columns"),
        (lambda m: np.array([m[2, 1] / m[2].sum(), m[0, 1] / m[0].sum()]), "right ones count"),
        (
            lambda m: np.array([m[2, 1], m[0, 1]]) / (m.sum() - m[0, 0] - m[1, 1] - m[2, 2]),
            "all classes together",
        ),
        (lambda m: divide([m[2, 0], m[0, 2]], [m[2, :2].sum(), m[0, 1:].sum()]), "far class"),
        (lambda m: shares(m)[::-1], "The order is"),
        (lambda m: m[[2, 0], 1], "These are counts"),
        (lambda m: 100 * shares(m), "percentages"),
        (lambda m: np.nan_to_num(shares(m)), "NaN, not 0"),
    ],
)
def test_mistakes_of_neighbours_are_named(answer, words):
    assert words in check.neighbours(answer).words


def scored(score, known=None, found=None):
    """AUROC by scikit-learn with something wrong."""

    def answer(prob, label):
        mine, y = truth(label)
        mine = mine if known is None else known(label)
        y = y if found is None else found(label)
        return roc_auc_score(y[mine], score(prob)[mine])

    return answer


def larger(prob):
    return prob.max(1)


def everything(label):
    return np.full(len(label), True)


def pairs(better):
    def answer(prob, label):
        known, found = truth(label)
        score = prob.max(1)
        return np.mean([better(a, b) for a in score[known & found] for b in score[known & ~found]])

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (scored(lambda p: p.sum(1)), "the sum of both"),
        (scored(lambda p: p.mean(1)), "the sum of both"),
        (scored(lambda p: p[:, 0]), "the benign probability alone"),
        (scored(lambda p: p[:, 1]), "the malignant probability alone"),
        (scored(lambda p: p.min(1)), "the smaller"),
        (scored(lambda p: 1 - (1 - p[:, 0]) * (1 - p[:, 1])), "by the product"),
        (scored(larger, found=lambda y: y[:, 1] == 1), "Only malignant images"),
        (scored(larger, found=lambda y: (y == 1).all(1)), "Only images with both"),
        (scored(larger, known=everything), "taken for normal ones"),
        (scored(larger, known=lambda y: ~np.isnan(y).any(1)), "every image with a missing label"),
        (pairs(lambda a, b: a > b), "count as wrong"),
        (pairs(lambda a, b: a >= b), "count as right"),
        (scored(lambda p: -p.max(1)), "upside down"),
    ],
)
def test_mistakes_of_the_area_are_named(answer, words):
    assert words in check.area_of_any_finding(answer).words


def test_scikit_learn_agrees():
    assert check.area_of_any_finding(scored(larger)).right
