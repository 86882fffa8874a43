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


def mean_score(y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]) -> float | None:
    """Mean of `s`, whatever `y` is: the share of hits, in the form `bootstrap_ci` takes. None of nothing."""
    return float(s.mean()) if len(s) else None


def top_region_iom(scores: Float[np.ndarray, "k"], iom: Float[np.ndarray, "k n"]) -> float | None:
    """Overlap of the region a model trusts most with the lesion it overlaps most.

    Args:
        scores: evidence of each region; of equal ones the first counts.
        iom: IoM of each region with each lesion, see `regions.iom`.

    Returns:
        The IoM in [0, 1]; None without regions or without lesions.
    """
    return float(iom[np.argmax(scores)].max()) if iom.size else None


def map_peak(
    saliency: Float[np.ndarray, "h w"], map_box: Float[np.ndarray, "4"]
) -> tuple[Float[np.ndarray, "2"], int]:
    """Find the place where a map is highest.

    A saturated sigmoid gives its maximum to several cells. Taking the first of them would favour the top
    left, so the mean of their places is taken; it may lie between them, where the map is lower.

    Args:
        saliency: one finding's map.
        map_box: the rectangle it covers, xyxy.

    Returns:
        The peak, (x, y) of a cell's centre in the pixels of `map_box`; and how many cells share the maximum.
    """
    rows, columns = np.nonzero(saliency == saliency.max())
    cells = np.array([columns.mean() + 0.5, rows.mean() + 0.5])  # in cells
    return map_box[:2] + cells * (map_box[2:] - map_box[:2]) / saliency.shape[::-1], len(rows)


def inside_any(point: Float[np.ndarray, "2"], boxes: Float[np.ndarray, "n 4"]) -> bool:
    """Say whether a point lies in one of some xyxy boxes, left and top edges included (the pointing game)."""
    return bool(((point >= boxes[:, :2]) & (point < boxes[:, 2:])).all(1).any())


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
