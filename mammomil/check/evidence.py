"""Checks of chapter 7: the pointing game, continuous F1, calibration error, and another prevalence."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mammomil.check.answers import Case, Verdict, judge
from mammomil.metrics import continuous_prf, expected_calibration_error, mean_prf, reliability_curve

CELL = 8  # pixels, side of a cell of the map
Image = tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]  # a map and its mask


def pointing_hits(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(logits, boxes, cell)`: does the highest cell's centre lie in the box, image by image.

    `logits` (b, h, w) is float32, `boxes` (b, 4) is xyxy in pixels, one lesion for each image, left and upper
    edges included, and `cell` is the side of a cell in pixels. What comes back is (b,) of True and False.
    """
    cases = []
    for seed, low, note in (
        (0, -4.0, "ordinary maps"),
        (1, 25.0, "several cells have a sigmoid of 1"),
    ):
        logits, boxes = _maps(seed, low)
        flat = logits.reshape(len(logits), -1)
        row, column = np.divmod(flat.argmax(1), logits.shape[2])
        with np.errstate(over="ignore"):
            tied = np.divmod((1 / (1 + np.exp(-flat))).argmax(1), logits.shape[2])
        mistakes = {
            "You took the highest cell of the sigmoid. In float32 it is exactly 1 from a logit of about 17 "
            "on, and argmax then takes the first of these cells. Rank on logits.": _inside(*tied, boxes),
            "Rows and columns are swapped: a box is xyxy, so x goes with the column.": _inside(
                column, row, boxes
            ),
            "A cell is not a pixel: its centre is at (column + 0.5) * cell.": _inside(row, column, boxes, 1),
            "This is the lowest cell, not the highest.": _inside(
                *np.divmod(flat.argmin(1), logits.shape[2]), boxes
            ),
            "This is the wrong way round: True is a hit.": ~_inside(row, column, boxes),
        }  # fmt: skip
        cases.append(Case((logits, boxes, CELL), _inside(row, column, boxes), mistakes, note))
    return judge(
        answer,
        cases,
        "Order is all that counts for a peak, and only logits keep it where the sigmoid runs out of digits.",
    )


def continuous_means(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(saliency, mask)`: (P, R, F1), means over images that have a mask (G13, G-g, G-h).

    `saliency` (b, h, w) is in [0, 1], `mask` (b, h, w) is True on lesions. An image without a mask is left
    out; one whose map is 0 has P = R = F1 = 0.
    """
    cases = []
    for seed, empty, zero, note in (
        (0, False, False, "all images have a lesion"),
        (1, True, False, "one image has no lesion"),
        (2, False, True, "one map is 0 everywhere"),
    ):
        rng = np.random.default_rng(seed)
        saliency, mask = rng.random((5, 12, 9)) ** 3, np.zeros((5, 12, 9), bool)
        for k in range(5):
            y, x = rng.integers(0, 6), rng.integers(0, 5)
            mask[k, y : y + rng.integers(2, 6), x : x + rng.integers(2, 5)] = True
        mask[3] &= not empty
        saliency[1] *= not zero
        pairs = list(zip(saliency, mask, strict=True))
        cases.append(Case((saliency, mask), _means(pairs), _prf_mistakes(pairs), note))
    return judge(
        answer,
        cases,
        "A map is judged as it is, without a threshold, and the mean F1 is not the F1 of the two means.",
    )


def calibration_error(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(y, p, n_bins)`: the expected calibration error over bins (0, 1/n], (1/n, 2/n], ..."""
    cases = []
    for seed, n, bins, note in ((0, 80, 5, "80 images, 5 bins"), (1, 40, 10, "some bins are empty")):
        rng = np.random.default_rng(seed)
        p = np.round(rng.beta(0.8, 2, n), 3)
        y = (rng.random(n) < p**1.5).astype(float)
        mean, share, count = reliability_curve(y, p, bins)
        gap, weight = np.abs(share - mean), count / n
        middle = (np.ceil(mean * bins) - 0.5) / bins
        mistakes = {
            "All bins count the same here. Weigh each by the number of its images.": gap.mean(),
            "Take the absolute value of each gap, or those above and below the diagonal cancel.": (
                weight * (share - mean)
            ).sum(),
            "Take the absolute value of each gap, or those below and above the diagonal cancel.": (
                weight * (mean - share)
            ).sum(),
            "These are squared gaps. The expected calibration error takes their absolute value.": (
                weight * gap**2
            ).sum(),
            "This is the largest gap, the maximum calibration error. Average them.": gap.max(),
            "Compare with the mean probability of a bin, not with the bin's middle.": (
                weight * np.abs(share - middle)
            ).sum(),
            "This is the Brier score, which also grows where a model cannot tell images apart.": (
                (y - p) ** 2
            ).mean(),
        }  # fmt: skip
        want = expected_calibration_error(y, p, bins)
        cases.append(Case((y, p, bins), want, mistakes, note))
    return judge(
        answer,
        cases,
        "It asks whether a probability can be taken at its word, and not whether it tells images apart.",
    )


def at_prevalence(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(p, trained, here)`: probabilities `p` for a place where another share is positive.

    The model learned from images a share `trained` of which was positive; now the share is `here`.
    """
    cases, p = [], np.array([0.02, 0.2, 0.5, 0.8, 0.97])
    for trained, here, note in (
        (0.5, 0.01, "from one in two to 1 %"),
        (0.4, 0.7, "from 40 % to 70 %"),
    ):
        want = _shift(p, trained, here)
        mistakes = {
            "You multiplied the probability. Odds can be multiplied, probabilities cannot: near 1 they would "
            "leave the scale or stay too low.": p * here / trained,
            "The wrong way round: this takes the model from `here` to `trained`.": _shift(p, here, trained),
            "You multiplied by the new odds and forgot to divide by the old ones.": _shift(p, 0.5, here),
            "These are odds. Turn them into a probability: odds / (1 + odds).": want / (1 - want),
            "The negatives changed their share too: divide by p times the change of positives plus (1 - p) "
            "times the change of negatives.": p * here / trained / (p * here / trained + 1 - p),
        }  # fmt: skip
        if trained == 0.5:  # then the old odds are 1, and to forget them is right
            mistakes.pop("You multiplied by the new odds and forgot to divide by the old ones.")
        cases.append(Case((p, trained, here), want, mistakes, note))
    return judge(
        answer,
        cases,
        "Evidence multiplies odds. Where cancers are rare, the same picture means a far smaller probability.",
        tolerance=1e-7,
    )


def _shift(p: np.ndarray, trained: float, here: float) -> np.ndarray:
    odds = p / (1 - p) * (here / (1 - here)) / (trained / (1 - trained))
    return odds / (1 + odds)


def _maps(seed: int, low: float) -> tuple[np.ndarray, np.ndarray]:
    """Maps of 12 x 9 cells with several high cells each, and a box around the peak or elsewhere."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(low, 1, (32, 12, 9)).astype(np.float32)
    boxes = np.zeros((32, 4))
    for k in range(32):
        places = rng.permutation(12 * 9)[:4]
        np.put(logits[k], places, low + np.array([8, 6, 5, 4], np.float32))
        aim = places[0] if k % 2 else int(rng.integers(12 * 9))
        row, column = divmod(int(aim), 9)
        x0, y0 = CELL * (column - rng.integers(0, 3)), CELL * (row - rng.integers(0, 3))
        boxes[k] = x0, y0, x0 + CELL * rng.integers(3, 5), y0 + CELL * rng.integers(3, 5)
    return logits, boxes


def _inside(row: np.ndarray, column: np.ndarray, boxes: np.ndarray, cell: int = CELL) -> np.ndarray:
    point = np.stack([column + 0.5, row + 0.5], 1) * cell
    return ((point >= boxes[:, :2]) & (point < boxes[:, 2:])).all(1)


def _means(pairs: list[Image]) -> Float[np.ndarray, "3"]:
    found = mean_prf(continuous_prf(*pair) for pair in pairs)
    return np.array([0.0, 0.0, 0.0] if found is None else found[:3])


def _prf_mistakes(pairs: list[Image]) -> dict[str, np.ndarray]:
    p, r, f = _means(pairs)
    some = [continuous_prf(*pair) or (0.0, 0.0, 0.0) for pair in pairs]
    inside = sum(float(a[m].sum()) for a, m in pairs)
    pooled = inside / sum(float(a.sum()) for a, _ in pairs), inside / sum(int(m.sum()) for _, m in pairs)
    mistakes = {
        "Precision and recall are swapped: precision divides by the sum of the map, recall by the lesion's "
        "area.": (r, p, f),
        "The map was made 0 or 1 first. Continuous means that its values count as they are.": _means(
            [((a >= 0.5).astype(float), m) for a, m in pairs]
        ),
        "This is the F1 of the mean precision and the mean recall. Take the F1 of each image, then the mean "
        "(reading G-g).": (p, r, 2 * p * r / (p + r)),
        "Image by image, then the mean. You summed over all images first, so large lesions count more.": (
            *pooled, 2 * pooled[0] * pooled[1] / sum(pooled),
        ),
        "An image without a mask has nothing to be found in it: leave it out, do not count it as 0 "
        "(reading G-h).": np.mean(some, axis=0),
        "A map of 0 gave 0/0. Such an image counts, with P = R = F1 = 0 (reading G-h).": (np.nan, r, np.nan),
    }  # fmt: skip
    return {words: np.array(value) for words, value in mistakes.items()}
