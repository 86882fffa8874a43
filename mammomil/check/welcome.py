"""Checks of chapter 0: a probability, a breast from its views, the most suspicious box of an exam."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mammomil.check.answers import Case, Verdict, judge
from mammomil.preprocess import transform_boxes
from mammomil.types import FINDINGS, Prediction

_BENIGN, _MALIGNANT = (FINDINGS.index(name) for name in ("benign", "malignant"))


def malignant_probability(answer: Callable[[Prediction], float]) -> Verdict:
    """Judge a Prediction -> its probability of a malignant finding, a number."""
    cases = []
    # The benign finding is told first, so that in the second case only the larger one can be meant.
    for prob, note in (((0.1, 0.6), "malignant is likelier"), ((0.7, 0.2), "benign is likelier")):
        p = _prediction(np.array(prob), "L", "CC")
        benign, malignant = prob[_BENIGN], prob[_MALIGNANT]
        mistakes = {
            "Both findings came back. `prob` holds one number for each; choose the malignant one.": prob,
            "This is the probability of any finding, 1 - p_normal. A benign one is a finding too.": (
                1 - p.p_normal
            ),
            "This is 1 - p(benign). An image can hold both findings or none: they need not add up to 1.": (
                1 - benign
            ),
            "The probabilities were made to add up to 1. An image can hold both findings or none.": (
                malignant / sum(prob)
            ),
            "This is the map's own answer, y_loc. The model's answer is in `prob`.": (
                p.parts["loc"][_MALIGNANT]
            ),
            "This is the benign finding. The order is that of FINDINGS: (benign, malignant)."
            if malignant > benign
            else "This is the larger of the two, whichever finding it is of.": benign,
        }
        cases.append(Case((p,), malignant, mistakes, note))
    return judge(answer, cases, "Class order is (benign, malignant) everywhere in the library.")


def breast_probability(answer: Callable[[list[Prediction], str], Any]) -> Verdict:
    """Judge `answer(predictions, side)`: mean of a breast's views for each finding, (2,)."""
    rng, cases = np.random.default_rng(0), []
    whole = ("R-MLO", "L-CC", "L-MLO", "R-CC")
    for views, side, note in (
        (whole, "L", "two views of each breast"),
        (whole, "R", "the other breast"),
        (("L-CC", "R-MLO", "R-CC", "L-XCC", "L-MLO"), "L", "a breast with a third view"),
        (("R-CC", "L-MLO"), "L", "one view only"),
    ):
        exam = [_prediction(rng.random(2), *name.split("-")) for name in views]
        every = np.stack([p.prob for p in exam])
        mine = every[[p.laterality == side for p in exam]]
        mistakes = {
            "This is the mean over the exam. Each breast has an answer of its own: choose the images whose "
            "`laterality` is the side asked for.": every.mean(0),
            "This is the other breast.": every[[p.laterality != side for p in exam]].mean(0),
            "This is the largest of the views, which the dual-branch paper takes (D26). GMIC takes the mean "
            "(G12).": mine.max(0),
            "The views are summed and not divided by their number.": mine.sum(0),
            "The sum is divided by 2, however many views there are. Divide by their number.": mine.sum(0) / 2,
            "This is the mean over findings. Views are averaged, findings are kept apart.": mine.mean(1),
            "This is the malignant finding alone. Return one number for each finding.": mine.mean(0)[
                _MALIGNANT
            ],
            "This is one view of the breast. Average all of them.": mine[0],
        }
        cases.append(Case((exam, side), mine.mean(0), mistakes, note))
    return judge(answer, cases, "A breast is judged by all its views together, and the views count the same.")


def most_suspicious(answer: Callable[[list, int], Any]) -> Verdict:
    """Judge `answer(views, size)`: number of the view and xyxy box in its file of the best patch of an exam.

    A view is (corners (k, 2), scores (k,), affine (2, 3)): corners are (row, column) on the canvas, the
    affine leads from canvas xy to xy in the file, as `Prepared.affine` does.
    """
    cases = []
    for seed, count, mirrored, note in (
        (0, 1, False, "one image"),
        (1, 4, False, "an exam"),
        (2, 4, True, "the best patch is on a mirrored image"),
    ):
        rng, size = np.random.default_rng(seed), 32
        best = count - 1
        views = []
        for n in range(count):
            corners = rng.permutation(200)[:12].reshape(6, 2)  # no two numbers alike
            scores = rng.uniform(0, 0.5, 6)
            if n == best:
                scores[3] = 0.9
            scale = 1.5 + n / 4
            flipped = mirrored and n == best
            across = (-scale, 0, 600) if flipped else (scale, 0, 17 + n)
            views.append((corners, scores, np.array([across, (0, scale, 5 + 2 * n)])))
        corners, scores, affine = views[best]
        least = int(scores.argmin())
        want = _box(corners[3], size, affine)
        canvas, swapped = _box(corners[3], size, np.eye(2, 3)), _box(corners[3][::-1], size, affine)
        low = corners[3][::-1] @ affine[:, :2].T + affine[:, 2]
        mistakes = {
            "The box is still on the canvas. Move both of its corners through the affine to the pixels of "
            "the file.": (best, canvas),
            "Row and column have changed places. Corners are (row, column), boxes are x first: x is the "
            "column.": (best, swapped),
            "This is the patch with the smallest score.": (best, _box(corners[least], size, affine)),
            "The corner was moved to the file but the side was not: it is `size` canvas pixels, which are "
            "more pixels of the file.": (best, np.concatenate([low, low + size])),
            "This is the best patch of the first view. Compare the views.": (
                0,
                _box(views[0][0][views[0][1].argmax()], size, views[0][2]),
            ),
            "This is the first patch of the best view. Patches come in the order they were chosen, not by "
            "score.": (best, _box(corners[0], size, affine)),
            "x0 is larger than x1: the canvas is the mirror image of this file, so the corners change "
            "places. Sort the two x.": (best, want[[2, 1, 0, 3]]),
        }
        if not count - 1:  # of a single image, the first view is the right one
            del mistakes["This is the best patch of the first view. Compare the views."]
        cases.append(Case((views, size), (best, want), mistakes, note))
    return judge(
        answer,
        cases,
        "A place is only worth something in the pixels of the file, where a reader can look it up.",
    )


def _prediction(prob: np.ndarray, side: str, view: str) -> Prediction:
    """Make an answer of a GMIC with these probabilities and other ones from its parts."""
    return Prediction(
        image_id=f"{side}-{view}", path="", model="gmic", laterality=side, view=view, prob=prob,
        p_normal=float(np.prod(1 - prob)), parts={"loc": prob**2, "mil": 2 * prob - prob**2}, saliency=None,
        map_box=None, boxes=np.zeros((0, 4)), scores=np.zeros((0, 2)), attention=None,
    )  # fmt: skip


def _box(corner: Sequence[int] | np.ndarray, size: int, affine: np.ndarray) -> np.ndarray:
    """Move a square with its corner at (row, column) of the canvas to the file, xyxy."""
    row, column = corner
    return transform_boxes(np.array([[column, row, column + size, row + size]]), affine)[0]
