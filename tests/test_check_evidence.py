"""Checks of chapter 7: right answers pass, and each common mistake is named."""

import numpy as np
import torch
from answers import common_answers, named_mistakes

from mammomil.check import evidence as check


def hits(logits, boxes, cell):
    found = []
    for a, (x0, y0, x1, y1) in zip(torch.from_numpy(logits), boxes, strict=True):
        place = (a == a.max()).nonzero()[0]
        y, x = ((place + 0.5) * cell).tolist()
        found.append(x0 <= x < x1 and y0 <= y < y1)
    return found


def of_sigmoid(logits, boxes, cell):
    a = torch.from_numpy(logits).sigmoid()
    row, column = np.divmod(a.flatten(1).argmax(1).numpy(), logits.shape[2])
    where = np.zeros_like(logits)
    where[np.arange(len(row)), row, column] = 1
    return hits(where, boxes, cell)


def swapped(logits, boxes, cell):
    return hits(logits, boxes[:, [1, 0, 3, 2]], cell)


def prf(saliency, mask, empty=False, order=(0, 1, 2)):
    rows = []
    for a, m in zip(saliency, mask, strict=True):
        if not m.any() and not empty:
            continue
        inside = sum(float(v) for v in a[m])
        p = inside / float(a.sum()) if a.any() else 0.0
        r = inside / int(m.sum()) if m.any() else 0.0
        rows.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return tuple(np.mean(rows, axis=0)[list(order)])


def f1_of_means(saliency, mask):
    p, r, _ = prf(saliency, mask)
    return p, r, 2 / (1 / p + 1 / r)


def pooled(saliency, mask):
    p = saliency[mask].sum() / saliency.sum()
    r = saliency[mask].sum() / mask.sum()
    return p, r, 2 * p * r / (p + r)


def no_zero_rule(saliency, mask):
    with np.errstate(invalid="ignore"):
        inside = (saliency * mask).sum((1, 2))
        p, r = inside / saliency.sum((1, 2)), inside / mask.sum((1, 2))
        f = 2 * p * r / (p + r)
    kept = mask.any((1, 2))
    return p[kept].mean(), r[kept].mean(), f[kept].mean()


def gaps(y, p, n):
    found = []
    for k in range(n):
        mine = (p > k / n) & (p <= (k + 1) / n) | (k == 0) & (p == 0)
        if mine.any():
            found.append((mine.mean(), y[mine].mean() - p[mine].mean(), y[mine].mean() - (k + 0.5) / n))
    return np.array(found).T


def ece(y, p, n):
    weight, gap, _ = gaps(y, p, n)
    return float((weight * np.abs(gap)).sum())


def middles(y, p, n):
    weight, _, gap = gaps(y, p, n)
    return float((weight * np.abs(gap)).sum())


def moved(p, trained, here):
    positive, negative = p * here / trained, (1 - p) * (1 - here) / (1 - trained)
    return positive / (positive + negative)


RIGHT = (
    (check.pointing_hits, hits),
    (check.continuous_means, prf),
    (check.calibration_error, ece),
    (check.at_prevalence, moved),
)
WRONG = (
    (check.pointing_hits, of_sigmoid, "Rank on logits"),
    (check.pointing_hits, swapped, "swapped"),
    (check.pointing_hits, lambda a, b, _: hits(a, b, 1), "not a pixel"),
    (check.pointing_hits, lambda a, b, c: hits(-a, b, c), "lowest cell"),
    (check.pointing_hits, lambda *a: ~np.array(hits(*a)), "wrong way round"),
    (check.continuous_means, lambda a, m: prf(a, m, order=(1, 0, 2)), "swapped"),
    (check.continuous_means, lambda a, m: prf((a >= 0.5).astype(float), m), "made 0 or 1"),
    (check.continuous_means, f1_of_means, "G-g"),
    (check.continuous_means, pooled, "over all images first"),
    (check.continuous_means, lambda a, m: prf(a, m, empty=True), "leave it out"),
    (check.continuous_means, no_zero_rule, "0/0"),
    (check.calibration_error, lambda *a: np.abs(gaps(*a)[1]).mean(), "count the same"),
    (check.calibration_error, lambda *a: (gaps(*a)[0] * gaps(*a)[1]).sum(), "absolute value of each"),
    (check.calibration_error, lambda *a: -(gaps(*a)[0] * gaps(*a)[1]).sum(), "absolute value of each"),
    (check.calibration_error, lambda *a: (gaps(*a)[0] * gaps(*a)[1] ** 2).sum(), "squared"),
    (check.calibration_error, lambda *a: np.abs(gaps(*a)[1]).max(), "largest gap"),
    (check.calibration_error, middles, "bin's middle"),
    (check.calibration_error, lambda y, p, n: np.square(y - p).mean(), "Brier"),
    (check.at_prevalence, lambda p, a, b: p * b / a, "Odds can be multiplied"),
    (check.at_prevalence, lambda p, a, b: moved(p, b, a), "wrong way round"),
    (check.at_prevalence, lambda p, a, b: moved(p, 0.5, b), "forgot to divide"),
    (check.at_prevalence, lambda *a: moved(*a) / (1 - moved(*a)), "These are odds"),
    (check.at_prevalence, lambda p, a, b: p * b / a / (p * b / a + 1 - p), "negatives changed"),
)


test_a_common_mistake_is_named = named_mistakes(WRONG)


test_common_answers = common_answers(RIGHT)


def test_the_cases_of_the_pointing_game_hold_hits_and_misses_and_ties():
    logits, boxes = check._maps(1, 25.0)
    assert 8 < sum(hits(logits, boxes, check.CELL)) < 24
    assert ((torch.from_numpy(logits).sigmoid() == 1).flatten(1).sum(1) > 1).all()


def test_rare_cancers_are_judged_to_the_digit():
    """Probabilities of 0.0002 are among the cases; the usual 0.00001 would be coarse there."""
    assert not check.at_prevalence(lambda *a: moved(*a) + 2e-6).right
