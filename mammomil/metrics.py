"""Figures of merit that scikit-learn lacks, named and oriented like its own; numpy in, numbers out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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


def _roc(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]] | None:
    """Sensitivity and specificity at every threshold, from "none called" down; None of one class."""
    from sklearn.metrics import roc_curve

    known = ~np.isnan(y)
    if len(np.unique(y[known])) < 2:
        return None
    fpr, tpr, _ = roc_curve(y[known], s[known], drop_intermediate=False)
    return tpr, 1 - fpr


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


def _check_froc_image(image: Mapping[str, Any]) -> None:
    """Say in a sentence what is wrong with one image of `froc_curve`."""
    label, score, region_score, iom = (image[key] for key in ("label", "score", "region_score", "iom"))
    if label not in (0, 1):
        raise ValueError(f"label is 0, 1 or NaN, not {label}.")
    if iom.ndim != 2 or region_score.shape != iom.shape[:1]:
        raise ValueError(
            f"region_score (m,) and iom (m, n) do not fit: {region_score.shape} and {iom.shape}."
        )
    if label == 0 and iom.shape[1]:
        raise ValueError(f"an image with label 0 has {iom.shape[1]} lesions; pass those of the class only.")
    if np.isnan(score) or not (region_score < np.inf).all():
        raise ValueError(
            "score is NaN, or region_score NaN or inf; a region that is no detection has score 0."
        )


def froc_curve(
    images: Sequence[Mapping[str, Any]],
    alpha: float = 0.5,
    operating_sensitivity: float = 0.85,
    gate: bool = True,
    fppi_over: Literal["classified", "all"] = "classified",
    per: Literal["image", "lesion"] = "image",
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"], Float[np.ndarray, "t"]] | None:
    """Free-response ROC curve of the regions in the images called positive (checklist D27).

    The gate (reading A26): tau is the largest image score that, as a threshold, calls at least
    `operating_sensitivity` of the positive images positive; only images with score >= tau are classified as
    positive, and the positive ones among them are the true-positive set. At a threshold t on the regions:

    * sensitivity (A28) is the fraction of the true-positive set with a region of score >= t that has
      IoM >= alpha with any lesion;
    * FPPI (A27) counts every region of score >= t that hits no lesion, in all classified images, positive or
      not, with no suppression of overlaps and no ignored border, and divides by the number of these images.

    A positive image without a placed lesion (n = 0) cannot be judged, as what its regions hit is not known.
    It takes part in finding tau, and in nothing else: neither in the true-positive set nor in FPPI.

    Args:
        images: one mapping each, of `label` (0, 1, or NaN where unknown: left out); `score` of the image,
            larger for 1; `region_score` (m,), larger where a lesion is likelier, where a score <= 0 (-inf
            included) is no detection, as of regions that region selection dropped (reading A4); and `iom`
            (m, n) of each region with each lesion of the class, see `regions.iom`. m and n may be 0, and n is
            0 where the label is.
        alpha: the least IoM of a hit, in (0, 1].
        operating_sensitivity: sensitivity of the gate, in (0, 1]; reaching it exactly is enough.
        gate: False takes every image for classified as positive.
        fppi_over: what FPPI is divided by: "classified" images, or "all" with a known label. The count of
            false positives is the same.
        per: "lesion" makes sensitivity the fraction of the lesions in the true-positive set that are hit.

    Returns:
        (sensitivity in [0, 1], fppi in [0, inf), thresholds), the first two never decreasing and thresholds
        strictly descending. They start at (0, 0, inf), then each distinct score > 0 of a region in the images
        that are scored, the lowest one included, has one point; equal scores are detected together. None
        where the true-positive set is empty, so also without positive images; negatives are not needed.
    """
    for name, value in (("alpha", alpha), ("operating_sensitivity", operating_sensitivity)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is in (0, 1], not {value}.")
    images = [image for image in images if not np.isnan(image["label"])]
    for image in images:
        _check_froc_image(image)
    positives = np.sort([image["score"] for image in images if image["label"] == 1])[::-1]
    if not len(positives):
        return None
    reached = np.arange(1, len(positives) + 1) / len(positives)
    tau = positives[np.argmax(reached >= operating_sensitivity)] if gate else -np.inf

    placed = [image for image in images if image["label"] == 0 or image["iom"].shape[1]]
    classified = [image for image in placed if image["score"] >= tau]
    scores, misses, best = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]  # best: the last score that still hits
    for image in classified:
        score, hit = image["region_score"], image["iom"] >= alpha  # (m,), (m, n)
        scores.append(score)
        misses.append(score[~hit.any(1)])
        if image["label"] == 1:
            lesions = np.where(hit, score[:, None], 0).max(0, initial=0)  # (n,)
            best.append({"image": lesions.max(keepdims=True), "lesion": lesions}[per])
    hits, false = np.sort(np.concatenate(best)), np.sort(np.concatenate(misses))
    if not len(hits):
        return None
    thresholds = np.unique(np.concatenate(scores))[::-1]
    thresholds = np.concatenate([[np.inf], thresholds[thresholds > 0]])
    n_hit, n_false = (len(a) - np.searchsorted(a, thresholds) for a in (hits, false))
    n_images = {"classified": len(classified), "all": len(placed)}[fppi_over]
    return n_hit / len(hits), n_false / n_images, thresholds


def sensitivity_at_fppi(
    sensitivity: Float[np.ndarray, "t"], fppi: Float[np.ndarray, "t"], at: float
) -> float:
    """Best sensitivity of a FROC curve among its points with FPPI <= `at`, 0 without one (reading A30)."""
    return float(sensitivity[fppi <= at].max(initial=0))


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
