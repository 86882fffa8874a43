"""How far a figure of merit can be trusted: the bootstrap over patients, and DeLong's variance of an AUC."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


def known_rows(y: Float[np.ndarray, "n"], *scores: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Find the images with a known label, after checking what every metric of labels and scores relies on.

    Args:
        y: 0, 1, or NaN where unknown.
        scores: of the same images; what they are where the label is unknown does not matter.

    Returns:
        True where the label is known.

    Raises:
        ValueError: a label is neither 0, 1 nor NaN, or a score of a known label is NaN or infinite.
    """
    known = ~np.isnan(y)
    if (odd := known & (y != 0) & (y != 1)).any():
        raise ValueError(f"labels are 0, 1 or NaN, not {y[odd][0]:g}.")
    for s in scores:
        check_scores(s[known])
    return known


def check_scores(s: Float[np.ndarray, "n"]) -> None:
    """Refuse scores that are NaN or infinite with a ValueError."""
    if bad := int((~np.isfinite(s)).sum()):
        raise ValueError(
            f"{bad} of {len(s)} scores are NaN or infinite; leave those images out, or find out why."
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is in (0, 1), not {confidence}.")


def bootstrap_rows(
    statistic: Callable[[Int[np.ndarray, "r"]], float | None],
    groups: Shaped[np.ndarray, "n"],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of any figure, drawing patients with replacement and all their images.

    Drawing images in place of patients would count two views of one breast as two witnesses, and make the
    interval too narrow. The drawing is SciPy's (`scipy.stats.bootstrap`, of patient numbers). Two methods are
    compared by one call: let `statistic` give the difference of their figures on the same rows.

    Args:
        statistic: row numbers of all images of the drawn patients (as often as drawn) to a number, or None
            where it is not defined. Its warnings are heard on the data itself, and not on resamples.
        groups: patient of each image.
        confidence: probability the interval is meant to cover, in (0, 1).
        n_resamples: how many samples are drawn; those where the statistic is None, NaN or infinite are left
            out, so the interval is of the figure where it exists.
        seed: seed of the drawing.

    Returns:
        (low, high); None where the statistic is not defined on the data itself or on any resample, and with
        fewer than two patients, of whom nothing can be drawn but themselves.
    """
    from scipy.stats import bootstrap

    _check_confidence(confidence)
    names, code = np.unique(groups, return_inverse=True)
    if len(names) < 2 or not _defined(statistic(np.arange(len(code)))):
        return None
    order, sizes = np.argsort(code, kind="stable"), np.bincount(code)
    ends = np.cumsum(sizes)

    def of_patients(drawn: np.ndarray) -> float:
        size = sizes[drawn]
        # Each patient's rows are a run of `order`: shift one long count to the start of every run.
        shift = ends[drawn] - np.cumsum(size)
        value = statistic(order[np.arange(size.sum()) + np.repeat(shift, size)])
        return value if _defined(value) else math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, of NaN among the values, which are left out below
        result = bootstrap(
            (np.arange(len(names)),),
            of_patients,
            n_resamples=n_resamples,
            batch=100,  # bounds memory: SciPy holds the patients of a whole batch
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values = result.bootstrap_distribution
    if not len(values := values[np.isfinite(values)]):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def bootstrap_ci(
    metric: Callable[[np.ndarray, np.ndarray], float | None],
    y: Float[np.ndarray, "n"],
    s: Float[np.ndarray, "n"],
    groups: Shaped[np.ndarray, "n"],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a metric of labels and scores over patients, see `bootstrap_rows`.

    Args:
        metric: (labels, scores) to a number, or None where it is not defined.
        y: labels, in the form the metric takes.
        s: scores.
        groups: patient of each image.
        confidence: probability the interval is meant to cover, in (0, 1).
        n_resamples: how many samples are drawn; those where the metric is not defined are left out.
        seed: seed of the drawing.

    Returns:
        (low, high); None where the metric is not defined on the data itself, and with fewer than two
        patients.
    """
    return bootstrap_rows(lambda rows: metric(y[rows], s[rows]), groups, confidence, n_resamples, seed)


def _wins(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive, how many negatives lie below it; of each negative, how many positives lie above it.

    Ties count half, so these are multiples of 0.5 and exact. The mid-ranks of Sun and Xu 2014 give them
    without a loop over pairs: the rank among all, less the rank in its own class.
    """
    from scipy.stats import rankdata

    positive, ranks = y == 1, rankdata(s)
    below = ranks[positive] - rankdata(s[positive])
    return below, positive.sum() - (ranks[~positive] - rankdata(s[~positive]))


def _mean_and_variance(below: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    """Mean of `_wins` over pairs and DeLong's variance of it; also of the difference of two such counts."""
    m, n = len(below), len(above)
    variance = below.var(ddof=1) / (n * n * m) + above.var(ddof=1) / (m * m * n)
    return float(below.sum() / (m * n)), float(variance)


def delong(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> tuple[float, float] | None:
    """Area under the ROC curve and its variance, after DeLong, DeLong and Clarke-Pearson 1988.

    Computed from mid-ranks (Sun and Xu 2014), in n log n. The variance takes the cases for independent. Two
    views of one patient are not: then use `bootstrap_ci(auc_score, ...)`, which draws patients, or bring
    the views together first (`group_scores`).

    Args:
        y: 0, 1, or NaN where unknown; unknown labels are left out.
        s: scores, larger for 1, finite. Of a tied pair each gets half.

    Returns:
        (AUC in [0, 1], variance >= 0); None where a class has fewer than two known cases, which have no
        variance. The variance is 0 where the classes are told apart without fault: it knows of no doubt then.
    """
    known = known_rows(y, s)
    y, s = y[known], s[known]
    if min((y == 1).sum(), (y == 0).sum()) < 2:
        return None
    return _mean_and_variance(*_wins(y, s))


def delong_ci(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of an AUC from `delong`'s variance and the normal distribution, cut to [0, 1].

    Args:
        y: 0, 1, or NaN where unknown.
        s: scores, larger for 1, finite; cases are independent, see `delong`.
        confidence: probability the interval is meant to cover, in (0, 1).

    Returns:
        (low, high); None where `delong` is.
    """
    from scipy.stats import norm

    _check_confidence(confidence)
    if (found := delong(y, s)) is None:
        return None
    half = norm.ppf((1 + confidence) / 2) * math.sqrt(found[1])
    return max(0.0, float(found[0] - half)), min(1.0, float(found[0] + half))


class DelongTest(NamedTuple):
    """Comparison of two AUCs on the same cases, see `delong_test`.

    Attributes:
        auc_first: AUC of the first scores.
        auc_second: AUC of the second.
        difference: first less second.
        variance: of the difference, so of paired scores.
        z: the difference in standard errors; infinite where the variance is 0 and the difference is not.
        p: probability of a difference at least so large, either way, if the areas were the same.
    """

    auc_first: float
    auc_second: float
    difference: float
    variance: float
    z: float
    p: float


def delong_test(
    y: Float[np.ndarray, "n"], s_first: Float[np.ndarray, "n"], s_second: Float[np.ndarray, "n"]
) -> DelongTest | None:
    """Test whether two scores of the same cases have the same AUC (DeLong et al. 1988, paired, two-sided).

    DeLong takes cases for independent. Two views of a patient are not: then use `bootstrap_rows` on the
    difference, which draws patients.

    Args:
        y: 0, 1, or NaN where unknown; unknown labels are left out.
        s_first: scores, larger for 1, finite. Of a tied pair each gets half.
        s_second: the other scores of the same cases. Only their order matters, as of the first.

    Returns:
        The comparison; scores in the same order have difference 0 and p 1, and a difference without variance
        has p 0. None where a class has fewer than two known cases.
    """
    from scipy.stats import norm

    known = known_rows(y, s_first, s_second)
    y = y[known]
    if min((y == 1).sum(), (y == 0).sum()) < 2:
        return None
    first, second = _wins(y, s_first[known]), _wins(y, s_second[known])
    # The counts are exact, so the same order gives exactly 0 and 0.
    difference, variance = _mean_and_variance(first[0] - second[0], first[1] - second[1])
    if variance > 0:
        z = difference / math.sqrt(variance)
    else:
        z = math.copysign(math.inf, difference) if difference else 0.0
    areas = (_mean_and_variance(*wins)[0] for wins in (first, second))
    return DelongTest(*areas, difference, variance, z, float(2 * norm.sf(abs(z))))
