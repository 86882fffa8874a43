"""Figures of merit that scikit-learn lacks, named and oriented like its own; numpy in, numbers out."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped


def auc_score(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> float | None:
    """Area under the ROC curve (scikit-learn's) over the known labels.

    Args:
        y: 0, 1, or NaN where unknown.
        s: scores, larger for 1.

    Returns:
        The area in [0, 1]; None where the known labels are of one class, which has no ROC curve.
    """
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(y)
    if len(np.unique(y[known])) < 2:
        return None
    return float(roc_auc_score(y[known], s[known]))


def bootstrap_ci(
    metric: Callable[[np.ndarray, np.ndarray], float | None],
    y: Float[np.ndarray, "n"],
    s: Float[np.ndarray, "n"],
    groups: Shaped[np.ndarray, "n"],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a metric, drawing patients with replacement and all their images.

    Drawing images in place of patients would count two views of one breast as two witnesses, and make the
    interval too narrow.

    Args:
        metric: (labels, scores) to a number, or None where it is not defined.
        y: labels.
        s: scores.
        groups: patient of each image.
        confidence: probability the interval is meant to cover.
        n_resamples: how many samples are drawn; those where the metric is not defined are left out.
        seed: seed of the drawing.

    Returns:
        (low, high), or None where the metric is not defined on the data itself.
    """
    if metric(y, s) is None:
        return None
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        drawn = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        if (value := metric(y[drawn], s[drawn])) is not None:
            values.append(value)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
