"""Figures of merit, named and oriented like scikit-learn's; numpy in, numbers out.

What all of them share. Labels are 0, 1, or NaN where unknown: unknown images are left out, and a metric that
the known ones do not define is None. Scores are larger for 1 and finite, and only those of known labels are
looked at; a NaN or an infinite one is a ValueError, as is any other label. Equal scores are called together.
FROC curves and hits of lesions live in `froc`, intervals in `intervals`; all are found here by name.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from mammomil.froc import (
    continuous_prf,
    froc_curve,
    gate_threshold,
    inside_any,
    map_peak,
    mean_prf,
    sensitivity_at_fppi,
    top_region_iom,
)
from mammomil.intervals import (
    DelongTest,
    bootstrap_ci,
    bootstrap_rows,
    check_scores,
    delong,
    delong_ci,
    delong_test,
    known_rows,
)

__all__ = [
    "DelongTest",
    "any_finding",
    "auc_score",
    "average_precision",
    "bootstrap_ci",
    "bootstrap_rows",
    "brier_score",
    "continuous_prf",
    "delong",
    "delong_ci",
    "delong_test",
    "expected_calibration_error",
    "froc_curve",
    "gate_threshold",
    "group_scores",
    "inside_any",
    "map_peak",
    "mean_prf",
    "mean_score",
    "partial_auc_ratio",
    "reliability_curve",
    "sensitivity_at_fppi",
    "specificity_at_sensitivity",
    "top_region_iom",
]


def _both_classes(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]] | None:
    """Labels and scores of the images with a known label; None where they are of one class."""
    known = known_rows(y, s)
    y, s = y[known], s[known]
    return (y, s) if (y == 1).any() and (y == 0).any() else None


def auc_score(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> float | None:
    """Area under the ROC curve over the known labels.

    The share of pairs of a positive and a negative that are in order, from SciPy's ranks: scikit-learn's
    number in a twentieth of its time, most of which is checks. Intervals compute it a thousand times.

    Args:
        y: 0, 1, or NaN where unknown.
        s: scores, larger for 1, finite. Of a tied pair each gets half.

    Returns:
        The area in [0, 1]; None where the known labels are of one class, which has no ROC curve.
    """
    from scipy.stats import rankdata

    if (rows := _both_classes(y, s)) is None:
        return None
    y, s = rows
    positive = int(y.sum())
    pairs = rankdata(s)[y == 1].sum() - positive * (positive + 1) / 2
    return float(pairs / (positive * (len(y) - positive)))


def average_precision(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> float | None:
    """Area under the precision-recall curve, in steps (scikit-learn's average precision).

    Args:
        y: 0, 1, or NaN where unknown.
        s: scores, larger for 1, finite. Equal ones make one step of the curve.

    Returns:
        The sum over thresholds of precision times the gain in recall, in (0, 1]; chance is about the share of
        positives. None where the known labels are of one class.
    """
    from sklearn.metrics import average_precision_score

    rows = _both_classes(y, s)
    return None if rows is None else float(average_precision_score(*rows))


def _roc(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]] | None:
    """Sensitivity and specificity at every threshold, from "none called" down; None of one class.

    The points of scikit-learn's `roc_curve` without its checks, which take ten times as long: intervals ask
    for thousands of curves.
    """
    if (rows := _both_classes(y, s)) is None:
        return None
    order = np.argsort(-rows[1], kind="stable")
    y, s = (column[order] for column in rows)
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True))  # equal scores are called together
    called, hits = np.append(0, last + 1), np.append(0, y.cumsum()[last])
    return hits / hits[-1], 1 - (called - hits) / (len(y) - hits[-1])


def _interpolated_specificity(
    sensitivity: Float[np.ndarray, "t"], specificity: Float[np.ndarray, "t"], at: float
) -> float:
    """Best specificity of the polygon `_roc` gives at one sensitivity."""
    i = int(np.argmax(sensitivity >= at))  # the first, so the most specific
    if i == 0:
        return float(specificity[0])
    weight = (at - sensitivity[i - 1]) / (sensitivity[i] - sensitivity[i - 1])
    return float((1 - weight) * specificity[i - 1] + weight * specificity[i])


def partial_auc_ratio(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], min_sensitivity: float = 0.8
) -> float | None:
    """Mean specificity over the sensitivities a reader can accept (checklist D26, reading A24).

    The area under the ROC curve where sensitivity is in [min_sensitivity, 1], divided by the width of that
    range: the index of Jiang, Metz and Nishikawa. It is not McClish's standardised area, which rescales the
    same area to make chance 0.5; here chance is (1 - min_sensitivity) / 2.

    Args:
        y: 0, 1, or NaN where unknown; unknown labels are left out.
        s: scores, larger for 1, finite. Equal ones become a slanted line of the curve, as in `auc_score`.
        min_sensitivity: lower end of the range, in [0, 1). 0 gives the whole area.

    Returns:
        The ratio in [0, 1]; None where the known labels are of one class.
    """
    if not 0 <= min_sensitivity < 1:
        raise ValueError(f"min_sensitivity is in [0, 1), not {min_sensitivity}.")
    if (curve := _roc(y, s)) is None:
        return None
    kept = curve[0] >= min_sensitivity
    sensitivity = np.concatenate([[min_sensitivity], curve[0][kept]])
    specificity = np.concatenate([[_interpolated_specificity(*curve, min_sensitivity)], curve[1][kept]])
    return float(np.trapezoid(specificity, sensitivity) / (1 - min_sensitivity))


def specificity_at_sensitivity(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], sensitivity: float, interpolate: bool = False
) -> float | None:
    """Best specificity among the thresholds that reach a sensitivity (checklist D26, reading A25).

    Args:
        y: 0, 1, or NaN where unknown; unknown labels are left out.
        s: scores, larger for 1, finite. Equal ones are called together.
        sensitivity: the least one allowed, in [0, 1]; reaching it exactly is enough.
        interpolate: read the ROC curve, with straight lines between its points, at exactly this sensitivity.
            Never smaller than the value without, but no single threshold may give it.

    Returns:
        The specificity in [0, 1]; None where the known labels are of one class.
    """
    if not 0 <= sensitivity <= 1:
        raise ValueError(f"sensitivity is in [0, 1], not {sensitivity}.")
    if (curve := _roc(y, s)) is None:
        return None
    if interpolate:
        return _interpolated_specificity(*curve, sensitivity)
    return float(curve[1][np.argmax(curve[0] >= sensitivity)])


def _known_probabilities(
    y: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Labels and probabilities of the images with a known label."""
    known = known_rows(y, p)
    y, p = y[known], p[known]
    if (odd := (p < 0) | (p > 1)).any():
        raise ValueError(f"probabilities are in [0, 1], not {p[odd][0]:g}.")
    return y, p


def brier_score(y: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"]) -> float | None:
    """Mean squared distance of probabilities from labels (scikit-learn's Brier score), 0 at best.

    Args:
        y: 0, 1, or NaN where unknown. One class is enough.
        p: probability of 1, in [0, 1].

    Returns:
        The mean in [0, 1]; None without a known label.
    """
    from sklearn.metrics import brier_score_loss

    y, p = _known_probabilities(y, p)
    return float(brier_score_loss(y, p, pos_label=1)) if len(y) else None


def reliability_curve(
    y: Float[np.ndarray, "n"],
    p: Float[np.ndarray, "n"],
    n_bins: int = 10,
    strategy: Literal["uniform", "quantile"] = "uniform",
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"], Int[np.ndarray, "b"]]:
    """Probabilities against what is observed, bin by bin: scikit-learn's calibration curve, with counts.

    A bin holds its upper edge and not its lower one, (0.1, 0.2], as in Guo et al. 2017; the first holds its
    lower edge too. Equal probabilities share a bin. So where several quantiles are equal, the bins between
    them hold nothing, and fewer than `n_bins` come back.

    Args:
        y: 0, 1, or NaN where unknown. One class is enough.
        p: probability of 1, in [0, 1].
        n_bins: how many bins, at least 1.
        strategy: "uniform" bins are of one width, from 0 to 1; "quantile" ones hold about as many images
            each, from the least probability to the largest.

    Returns:
        (mean probability, observed share of 1, count) of each bin that is not empty, by rising probability;
        three empty arrays without a known label.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins is at least 1, not {n_bins}.")
    y, p = _known_probabilities(y, p)
    inner = np.linspace(0, 1, n_bins + 1)[1:-1]
    if strategy == "quantile":
        inner = np.percentile(p, 100 * inner) if len(p) else inner  # to the bit what scikit-learn takes
    of_image = np.searchsorted(inner, p)  # "left": an edge belongs to the bin below
    count, total, ones = (np.bincount(of_image, weights, n_bins) for weights in (None, p, y))
    full = count > 0
    return total[full] / count[full], ones[full] / count[full], count[full]


def expected_calibration_error(
    y: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"], n_bins: int = 10
) -> float | None:
    """Mean gap between probability and observed share over bins of one width (Guo et al. 2017, Eq. 3).

    Args:
        y: 0, 1, or NaN where unknown. One class is enough.
        p: probability of 1, in [0, 1].
        n_bins: of `reliability_curve`. More bins find larger gaps, of chance too.

    Returns:
        The gaps weighted by the bins' counts, in [0, 1]; None without a known label.
    """
    mean, share, count = reliability_curve(y, p, n_bins)
    return float(np.average(np.abs(share - mean), weights=count)) if len(count) else None


def any_finding(label: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    """Label of "benign or malignant" against none (MB vs N, checklist D25).

    Args:
        label: benign and malignant, 0, 1, or NaN where unknown.

    Returns:
        1 where a finding is known to be there, 0 where both are known not to be, NaN otherwise.
    """
    known_rows(label.ravel())
    present, absent = (label == 1).any(1), (label == 0).all(1)
    return np.where(present, 1.0, np.where(absent, 0.0, np.nan))


def group_scores(
    y: Float[np.ndarray, "n"],
    s: Float[np.ndarray, "n"],
    groups: Shaped[np.ndarray, "n"],
    how: Literal["mean", "max"] = "mean",
) -> tuple[Float[np.ndarray, "g"], Float[np.ndarray, "g"], Shaped[np.ndarray, "g"]]:
    """Bring images together: views to a breast, or breasts to an exam.

    A group is 1 if any of its images is known to be, 0 if the known ones are 0, and NaN if none is known. Its
    score is that of the images with a known label, since one that is unknown must not be judged as if it
    were 0; of a group that is unknown, the score of all.

    Args:
        y: 0, 1, or NaN where unknown.
        s: scores, larger for 1, finite; those of unknown images too.
        groups: breast or exam of each image.
        how: score of a group, the "mean" of its images (GMIC, checklist G12) or the largest ("max": dual
            branch, D26).

    Returns:
        (label, score, name) of each group, sorted by name; empty where there is no image.
    """
    known = known_rows(y)
    check_scores(s)
    names, group = np.unique(groups, return_inverse=True)
    label = np.full(len(names), np.nan)
    np.fmax.at(label, group, y)  # passes over NaN
    counted = known | np.isnan(label)[group]
    group, s = group[counted], s[counted]
    if how == "mean":
        return label, np.bincount(group, s, len(names)) / np.bincount(group, minlength=len(names)), names
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, group, s)
    return label, largest, names


def mean_score(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> float | None:
    """Mean of `s`, whatever `y` is: the share of hits, in the form `bootstrap_ci` takes. None of nothing."""
    check_scores(s)
    return float(s.mean()) if len(s) else None
