"""Answers of chapter 16: three classes from two labels, errors on neighbours, the area of MB vs N."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mammomil.check.answers import Case, Verdict, judge
from mammomil.experiments.probability_plane import PAPER, neighbour_share, three_classes
from mammomil.metrics import any_finding, auc_score

NAN = float("nan")
LABELS = (
    (np.array([[0, 0], [1, 0], [0, 1], [1, 1]], float), "all labels known"),
    (np.array([[NAN, 1], [NAN, 0], [0, NAN], [1, NAN], [0, 0], [1, 1], [1, 0]]), "some labels are NaN"),
)
MATRICES = (
    (PAPER, "Table III of the paper"),
    (np.array([[30, 1, 5], [9, 4, 3], [12, 2, 20]]), "36 normal, 16 benign, 34 malignant images"),
    (np.array([[8, 0, 0], [3, 5, 1], [2, 6, 4]]), "no error on normal images"),
)


def three_kinds(answer: Callable[[np.ndarray], np.ndarray]) -> Verdict:
    """Judge labels (n, 2), of (benign, malignant) -> class (n,): 0 normal, 1 benign, 2 malignant, -1 unknown.

    Malignant goes before benign (checklist D28): a malignant label of 1 decides, whatever the other one is.
    """
    cases = []
    for label, note in LABELS:
        benign, malignant = label.T
        known = ~np.isnan(label).any(1)
        right = three_classes(label)
        zeros = three_classes(np.nan_to_num(label))
        mistakes = {
            "Benign goes before malignant: an image with both findings is malignant (the paper unifies M and "
            "MB).": np.where(known & (benign == 1), 1, right),
            "Images with both findings have a class of their own, 3. Here they are malignant.": np.where(
                (label == 1).all(1), 3, right
            ),
            "NaN is read as 0. Unknown is not absent: such an image may well be malignant.": (zeros),
            "A missing benign label makes the image unknown even where a malignant finding is known. It is "
            "malignant.": np.where(known, right, -1),
            "The columns have changed places: they are (benign, malignant).": three_classes(label[:, ::-1]),
            "You count findings: a malignant image without a benign finding has one, and is class 2.": (
                np.where(known, np.nansum(label, 1), right)
            ),
            "The benign label alone decides between 0 and 1, also where the malignant label is missing. Such "
            "an image may be malignant: -1.": np.where(
                malignant == 1, 2, np.where(np.isnan(benign), -1, benign == 1)
            ),
            "What is unknown has class -1, not NaN.": np.where(right < 0, NAN, right),
        }
        cases.append(Case((label,), right, mistakes, note))
    return judge(
        answer, cases, "Malignant decides first, and what is unknown is left out, not called normal."
    )


def neighbours(answer: Callable[[np.ndarray], Any]) -> Verdict:
    """Judge a confusion matrix (3, 3) [true, called] -> shares (2,): of malignant errors, of normal errors.

    Each is the share of these errors that was called benign, the class between; NaN without an error.
    """
    cases = []
    for matrix, note in MATRICES:
        right = _shares(matrix)
        errors = matrix.sum() - np.trace(matrix)
        mistakes = {
            "Rows and columns have changed places: rows are the truth, columns what was called.": _shares(
                matrix.T
            ),
            "You divide by all images of the class, so that right ones count too. Divide by its errors.": (
                matrix[[2, 0], 1] / matrix[[2, 0]].sum(1)
            ),
            "You divide by the errors of all classes together. Each share is of one class.": (
                matrix[[2, 0], 1] / errors
            ),
            "These are the errors that go to the far class, normal for malignant and the other way round.": (
                1 - right
            ),
            "The order is malignant, then normal.": right[::-1],
            "These are counts. Divide by the errors of the class.": matrix[[2, 0], 1],
            "These are percentages. A share lies between 0 and 1.": 100 * right,
            "Without an error there is no share: NaN, not 0.": np.nan_to_num(right),
        }
        cases.append(Case((matrix.copy(),), right, mistakes, note))
    return judge(answer, cases, "A share of errors says where they go, and nothing about how many there are.")


def area_of_any_finding(answer: Callable[[np.ndarray, np.ndarray], Any]) -> Verdict:
    """Judge points (n, 2) and labels (n, 2), both (benign, malignant) -> AUROC of MB vs N (checklist D25).

    The score is the larger of both probabilities; an image is positive where any label is 1, unknown where
    none is 1 and one is NaN, and left out then. Of a tied pair each gets half.
    """
    cases = []
    for seed, missing, ties, note in (
        (0, False, False, "24 images"),
        (1, False, True, "24 images, some with equal scores"),
        (2, True, True, "24 images, some labels are NaN"),
    ):
        prob, label = _points(seed, missing, ties)
        y, zeros = any_finding(label), np.nan_to_num(label)
        larger = prob.max(1)
        complete = ~np.isnan(label).any(1)
        mistakes = {
            "The score is the sum of both probabilities. The paper takes the larger of both: a line with a "
            "corner, not a diagonal.": auc_score(y, prob.sum(1)),
            "The score is the benign probability alone: purely malignant images count as well.": (
                auc_score(y, prob[:, 0])
            ),
            "The score is the malignant probability alone: that is the other task's.": (
                auc_score(y, prob[:, 1])
            ),
            "The score is the smaller of both: it asks for two findings at once.": auc_score(y, prob.min(1)),
            "The score is 1 - p(normal), by the product. The paper takes the larger of both.": (
                auc_score(y, 1 - (1 - prob).prod(1))
            ),
            "Only malignant images are positive: that is M vs BN. Here benign ones are too.": (
                auc_score(label[:, 1], larger)
            ),
            "Only images with both findings are positive. One finding is enough.": (
                auc_score(np.where(np.isnan(label).any(1), NAN, label.min(1)), larger)
            ),
            "Images with an unknown label are taken for normal ones. Leave them out.": (
                auc_score(zeros.max(1), larger)
            ),
            "You leave out every image with a missing label. One label of 1 is enough to know that there is "
            "a finding.": auc_score(np.where(complete, y, NAN), larger),
            "Pairs with equal scores count as wrong. Each gets half.": _pairs(y, larger, 0.0),
            "Pairs with equal scores count as right. Each gets half.": _pairs(y, larger, 1.0),
            "The area is upside down: positives should have the larger scores.": 1 - auc_score(y, larger),
        }
        cases.append(Case((prob, label), auc_score(y, larger), mistakes, note))
    return judge(
        answer,
        cases,
        "The area is the share of pairs in the right order: as the corner moves along the diagonal, each "
        "image is passed at the larger of its probabilities.",
    )


def _shares(matrix: np.ndarray) -> np.ndarray:
    return np.array([NAN if share is None else share for share in neighbour_share(matrix)])


def _points(seed: int, missing: bool, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = (random.random((24, 2)) < (0.4, 0.35)).astype(float)
    prob = np.clip(0.3 + 0.25 * label + 0.2 * random.normal(size=(24, 2)), 0.02, 0.98)
    if ties:
        prob = np.round(prob, 1)
    if missing:
        label[random.random((24, 2)) < 0.2] = NAN
    return prob, label


def _pairs(y: np.ndarray, score: np.ndarray, tied: float) -> float:
    """Share of pairs in order, where a tie counts `tied`."""
    apart = score[y == 1][:, None] - score[y == 0]
    return float(((apart > 0) + tied * (apart == 0)).mean())
