"""Checks of chapter 15: specificity at a sensitivity, a point of a FROC curve, an interval over patients."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mammomil.check.answers import Case, Verdict, judge
from mammomil.metrics import auc_score, froc_curve, specificity_at_sensitivity


def specificity_at(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(y, s, sensitivity)`: best specificity of a threshold that reaches it (D26, A25)."""
    rng = np.random.default_rng(15)
    twenty, twelve = np.repeat([1.0, 0.0], [20, 40]), np.repeat([1.0, 0.0], [12, 30])
    # Three groups of equal scores in a row: the middle point lies on the line between its neighbours.
    tied = [(0.9, 4, 1), (0.7, 4, 2), (0.5, 4, 2), (0.3, 4, 2), (0.1, 2, 9)]
    y = np.concatenate([np.repeat([1.0, 0.0], [hits, false]) for _, hits, false in tied])
    s = np.concatenate([np.full(hits + false, score) for score, hits, false in tied])
    cases = [
        _specificity_case(y, s, 0.6, "many scores are equal"),
        _specificity_case(twenty, rng.normal(size=60) + twenty, 0.85, "0.85 is reached exactly, by 17 of 20"),
        _specificity_case(twelve, rng.normal(size=42) + twelve, 0.87, "no threshold gives 0.87 exactly"),
    ]
    praise = (
        "A threshold is promised to reach its sensitivity, and of those that do the most specific is taken."
    )
    return judge(answer, cases, praise)


def _specificity_case(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], sensitivity: float, note: str
) -> Case:
    from sklearn.metrics import roc_curve

    want = specificity_at_sensitivity(y, s, sensitivity)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    few_fpr, few_tpr, _ = roc_curve(y, s)
    at = int(np.argmax(tpr >= sensitivity))
    mistakes = {
        "This is 1 - specificity, the share of negatives that are called. Take it from 1.": 1 - want,
        "You took the threshold whose sensitivity is nearest, and it lies below the one asked for. A promise "
        "of 0.85 is kept by thresholds that reach 0.85.": 1 - fpr[np.argmin(np.abs(tpr - sensitivity))],
        "The sensitivity is not reached yet: you stopped one threshold too early, or did not call the "
        "negatives that have just the score of the threshold.": 1 - fpr[at - 1],
        "Reaching the sensitivity exactly is enough: >=, not >.": 1 - fpr[np.argmax(tpr > sensitivity)],
        "You read between two thresholds, on the straight line of the curve. No threshold gives that value "
        "(reading A25).": float(specificity_at_sensitivity(y, s, sensitivity, interpolate=True)),
        "This is the lowest specificity among the thresholds that reach the sensitivity: calling everything "
        "reaches it too. Take the best.": float(1 - fpr.max()),
        "This is the best specificity of all thresholds: calling nothing has 1. Only those that reach the "
        "sensitivity count.": 1.0,
        "This is the sensitivity at a specificity. Sensitivity is asked of the positives, and specificity is "
        "returned.": float(tpr[1 - fpr >= sensitivity].max()),
        "roc_curve has left out points that lie on a straight line, and the one you need among them. Call it "
        "with drop_intermediate=False.": 1 - few_fpr[np.argmax(few_tpr >= sensitivity)],
    }
    return Case((y, s, sensitivity), want, mistakes, note)


def froc_point(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(label, score, iom, threshold, alpha)`: (sensitivity, FPPI) at a threshold (A27, A28).

    All images are called positive. `label` is (n,) of 0 and 1, `score` (n, m) of regions, and `iom` (n, m, l)
    of regions with lesions, 0 where an image has fewer lesions than l.
    """
    cases = [_froc_case(n, m, seed) for seed, (n, m) in enumerate(((12, 6), (7, 9)))]
    praise = (
        "An image is hit once however many boxes hit it, and every box beside its lesions is one too many."
    )
    return judge(answer, cases, praise)


def _froc_case(n: int, m: int, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 2).astype(float)
    score = rng.integers(1, 11, (n, m)) / 10  # some are at the threshold
    iom = rng.choice([0.0, 0.0, 0.0, 0.3, 0.5, 0.8], (n, m, 2)) * label[:, None, None]
    iom[: n // 2, :, 1] = 0  # these have one lesion
    threshold, alpha = 0.8, 0.5
    images = [
        {"label": y, "score": 0.5, "region_score": d, "iom": o[:, : 2 * int(y)]}
        for y, d, o in zip(label, score, iom, strict=True)
    ]
    sensitivity, fppi, thresholds = froc_curve(images, alpha, gate=False)
    at = np.flatnonzero(thresholds >= threshold)[-1]
    want = (float(sensitivity[at]), float(fppi[at]))

    def point(marked: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
        found, false = marked & hits.any(2), marked & ~hits.any(2)
        return found.any(1).sum() / label.sum(), false.sum() / n

    marked, hits = score >= threshold, iom >= alpha
    found, false = marked & hits.any(2), marked & ~hits.any(2)
    each = (marked[..., None] & hits).any(1)  # (n, l): which lesions are hit
    some = (marked[..., None] & ~hits).any(2)  # a region that misses one of two lesions is false here
    mistakes = {
        "A lesion that two regions hit counts twice. An image is hit or not (reading A28).": (
            found.sum() / label.sum(), want[1],
        ),
        "You count lesions: an image whose two lesions are both hit counts twice. An image is hit or not.": (
            each.sum() / label.sum(), want[1],
        ),
        "Hits are counted as false positives too. Only a region that hits no lesion is one.": (
            want[0], marked.sum() / n,
        ),
        "False positives are divided by the positive images. All images that are called count, with a lesion "
        "or without.": (want[0], false.sum() / label.sum()),
        "You count false positives in images without a lesion only. A region beside the lesion is one too.": (
            want[0], false[label == 0].sum() / n,
        ),
        "You count at most one false positive per image. Every region counts (reading A27).": (
            want[0], false.any(1).sum() / n,
        ),
        "A region that hits one lesion and misses another is no false positive: any lesion will do.": (
            want[0], some.sum() / n,
        ),
        "You divide hits by all images. Sensitivity is a share of the positive ones.": (
            found.any(1).sum() / n, want[1],
        ),
        "A region at the threshold is detected: >=, not >.": point(score > threshold, hits),
        "An IoM of exactly alpha is a hit: >=, not >.": point(marked, iom > alpha),
        "These two have changed places: sensitivity first.": want[::-1],
    }  # fmt: skip
    return Case((label, score, iom, threshold, alpha), want, mistakes, f"{n} images of {m} regions")


def patient_interval(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(y, s, patient, drawn)`: the 95 % percentile interval of the AUC over patients.

    `patient` (n,) numbers the patients from 0; each row of `drawn` (b, p) holds the patients of one resample,
    with repeats. Resamples without an AUC are left out.
    """
    cases = [
        _interval_case(*size)
        for size in ((40, 120, "40 patients"), (6, 80, "6 patients: not every resample has both classes"))
    ]
    praise = "Women are drawn and all their images come along, as often as the woman was drawn."
    return judge(answer, cases, praise)


def _interval_case(patients: int, resamples: int, note: str) -> Case:
    rng = np.random.default_rng(patients)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    patient = rng.permutation(patient)  # images of a woman need not stand side by side
    sick = np.arange(patients) % 3 == 0
    y = (sick[patient] & (rng.random(len(patient)) < 0.8)).astype(float)
    s = y + rng.normal(size=patients)[patient] + rng.normal(size=len(patient))
    drawn = rng.integers(0, patients, (resamples, patients))

    def of(rows: Callable[[Int[np.ndarray, "p"]], np.ndarray], missing: float | None = None) -> list[float]:
        found = [auc_score(y[chosen], s[chosen]) for chosen in map(rows, drawn)]
        return [missing if a is None else a for a in found if a is not None or missing is not None]

    def everything(draw: Int[np.ndarray, "p"]) -> Int[np.ndarray, "r"]:
        return np.concatenate([np.flatnonzero(patient == k) for k in draw])

    def between(values: list[float], low: float = 0.025, high: float = 0.975) -> np.ndarray:
        return np.quantile(values, [low, high])

    aucs = of(everything)
    first = np.array([np.flatnonzero(patient == k)[0] for k in range(patients)])
    mistakes = {
        "You draw images: the numbers in `drawn` are patients, and all images of a drawn patient belong to "
        "the resample.": between(of(lambda draw: draw)),
        "A patient who was drawn twice is in the resample once. Repeats are the point of the bootstrap: with "
        "`np.isin` they are lost.": between(of(lambda draw: np.isin(patient, draw))),
        "Only the first image of every patient is used. All her images come along.": between(
            of(lambda draw: first[draw])
        ),
        "From 0.05 to 0.95 is an interval of 90 %. For 95 % leave 0.025 out at each end.": between(
            aucs, 0.05, 0.95
        ),
        "These are the least and the greatest AUC. They only move apart with more resamples; take the "
        "quantiles 0.025 and 0.975.": between(aucs, 0.0, 1.0),
        "This is the mean plus and minus 1.96 deviations, which may leave [0, 1]. Take the quantiles of the "
        "AUCs.": np.mean(aucs) + 1.96 * np.std(aucs) * np.array([-1, 1]),
        "A resample with one class has no AUC; you count it as 0. Leave it out.": between(
            of(everything, 0.0)
        ),
        "A resample with one class has no AUC; you count it as 0.5. Leave it out.": between(
            of(everything, 0.5)
        ),
        "High and low have changed places.": between(aucs)[::-1],
    }
    return Case((y, s, patient, drawn), between(aucs), mistakes, note)
