"""Figures of merit of places: FROC curves of regions, precision and recall of maps, hits of lesions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float


def _check_shapes(image: Mapping[str, Any]) -> None:
    """Say in a sentence which arrays of one image of `froc_curve` do not fit."""
    scores, iom = image["region_score"].shape, image["iom"].shape
    if len(iom) != 2 or scores != iom[:1]:
        raise ValueError(f"region_score (m,) and iom (m, n) do not fit: {scores} and {iom}.")
    if not image["label"] and iom[1]:
        raise ValueError(f"an image with label 0 has {iom[1]} lesions; pass those of the class only.")


def _joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """One flat array of all."""
    return np.concatenate(arrays, axis=None) if (arrays := list(arrays)) else np.zeros(0)


def gate_threshold(positive_score: Float[np.ndarray, "n"], sensitivity: float) -> float:
    """Return the largest threshold that calls at least this share of the positive images (reading A26).

    Args:
        positive_score: scores of the positive images, one or more.
        sensitivity: in (0, 1]; reaching it exactly is enough.
    """
    falling = np.sort(positive_score)[::-1]
    reached = np.arange(1, len(falling) + 1) / len(falling)
    return falling[np.argmax(reached >= sensitivity)]


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

    Raises:
        ValueError: a setting is out of range, a label is none, arrays do not fit, or a score is NaN.
    """
    for name, value in (("alpha", alpha), ("operating_sensitivity", operating_sensitivity)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is in (0, 1], not {value}.")
    labels = np.array([image["label"] for image in images], float)
    if (odd := ~np.isnan(labels) & (labels != 0) & (labels != 1)).any():
        raise ValueError(f"label is 0, 1 or NaN, not {labels[odd][0]:g}.")
    images = [image for image, known in zip(images, ~np.isnan(labels), strict=True) if known]
    for image in images:
        _check_shapes(image)
    labels = labels[~np.isnan(labels)]
    image_score = np.array([image["score"] for image in images], float)
    n_regions, n_lesions = np.array([image["iom"].shape for image in images], int).reshape(-1, 2).T
    scores = _joined(image["region_score"] for image in images)
    if np.isnan(image_score).any() or not (scores < np.inf).all():
        raise ValueError(
            "score is NaN, or region_score NaN or inf; a region that is no detection has score 0."
        )
    if not (labels == 1).any():
        return None
    tau = gate_threshold(image_score[labels == 1], operating_sensitivity) if gate else -np.inf
    placed = (labels == 0) | (n_lesions > 0)
    classified = placed & (image_score >= tau)
    if not (true_set := classified & (labels == 1)).any():
        return None

    # Every pair of a region and a lesion in the true-positive set, image by image, row by row.
    hits = np.flatnonzero(_joined(images[i]["iom"] >= alpha for i in np.flatnonzero(true_set)))
    m, n = n_regions[true_set], n_lesions[true_set]
    pair_end, lesion_end, region_end = np.cumsum(m * n), np.cumsum(n), np.cumsum(n_regions)
    image = np.searchsorted(pair_end, hits, side="right")  # among the true-positive set
    row, column = np.divmod(hits - (pair_end - m * n)[image], n[image])
    region = (region_end - n_regions)[true_set][image] + row
    found = {"image": image, "lesion": (lesion_end - n)[image] + column}[per]
    best = np.zeros({"image": len(n), "lesion": n.sum()}[per])  # the last score that still hits; 0: none
    np.maximum.at(best, found, scores[region])

    # Sorting all detections takes most of the time, so it is done once: the false ones are all but the hits.
    detections = np.sort(scores[np.repeat(classified, n_regions) & (scores > 0)])
    first = np.flatnonzero(np.diff(detections, prepend=-np.inf))[::-1]  # of equal ones
    thresholds = np.concatenate([[np.inf], detections[first]])
    n_detections = np.concatenate([[0], len(detections) - first])
    n_hit, n_hitting = (
        len(a) - np.searchsorted(np.sort(a), thresholds) for a in (best, scores[np.unique(region)])
    )
    n_false = n_detections - n_hitting
    n_images = {"classified": classified, "all": placed}[fppi_over].sum()
    return n_hit / len(best), n_false / n_images, thresholds


def sensitivity_at_fppi(
    sensitivity: Float[np.ndarray, "t"], fppi: Float[np.ndarray, "t"], at: float
) -> float:
    """Best sensitivity of a FROC curve among its points with FPPI <= `at`, 0 without one (reading A30)."""
    return float(sensitivity[fppi <= at].max(initial=0))


def continuous_prf(
    saliency: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "H W"]
) -> tuple[float, float, float] | None:
    """Continuous precision, recall and F1 of one image (GMIC, sections 3.1 and 3.3, checklist G13).

    The map A is brought to the size of the mask M by the nearest cell, row i taking cell row floor(i h / H),
    and then P = sum of A in M / sum of A, R = sum of A in M / |M|. F1 = 2 P R / (P + R) is of the image, to
    be averaged afterwards (reading G-g). As a cell's pixels share its value, counting them is exact, and the
    large map is never made.

    Args:
        saliency: a finding's map, in [0, 1]. It covers the same rectangle as the mask.
        mask: True on the lesions of this finding, of any size, a multiple of the map's or not.

    Returns:
        (precision, recall, F1), each in [0, 1]; all 0 where the map is 0 in the mask, or all over (G-h). None
        where the mask is empty: the image is skipped (G-h).

    Raises:
        ValueError: the map has no cell, or a value that is NaN or outside [0, 1].
    """
    if not saliency.size or not ((saliency >= 0) & (saliency <= 1)).all():
        raise ValueError("saliency has no cell, or a value that is NaN or outside [0, 1].")
    (h, w), (height, width) = saliency.shape, mask.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    i, j = np.nonzero(mask)
    if not len(i):
        return None
    marked = np.bincount(rows[i] * w + columns[j], minlength=h * w)  # mask pixels of each cell
    pixels = np.outer(np.bincount(rows, minlength=h), np.bincount(columns, minlength=w)).ravel()
    cells = saliency.astype(float).ravel()
    inside, whole = (marked * cells).sum(), (pixels * cells).sum()  # summed alike, so inside <= whole
    precision, recall = float(inside / whole) if whole else 0.0, float(inside / len(i))
    return precision, recall, 2 * precision * (recall / (precision + recall)) if precision + recall else 0.0


def mean_prf(
    rows: Iterable[tuple[float, float, float] | None],
) -> tuple[float, float, float, int] | None:
    """Average `continuous_prf` over the images that have a mask (GMIC section 3.1; reading G-g).

    Args:
        rows: one of each image, None where it has no mask.

    Returns:
        (mean precision, mean recall, mean F1, how many images); None where no image has a mask. The mean F1
        is not the F1 of the two other means.
    """
    kept = [row for row in rows if row is not None]
    return (*map(float, np.mean(kept, axis=0)), len(kept)) if kept else None


def top_region_iom(scores: Float[np.ndarray, "k"], iom: Float[np.ndarray, "k n"]) -> float | None:
    """Overlap of the region a model trusts most with the lesion it overlaps most.

    Args:
        scores: evidence of each region; of equal ones the first counts.
        iom: IoM of each region with each lesion, see `regions.iom`.

    Returns:
        The IoM in [0, 1]; None without regions or without lesions.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("the score of a region is NaN.")
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

    Raises:
        ValueError: the map has no cell, or one that is NaN.
    """
    if not saliency.size or np.isnan(saliency).any():
        raise ValueError("saliency has no cell, or one that is NaN.")
    rows, columns = np.nonzero(saliency == saliency.max())
    cells = np.array([columns.mean() + 0.5, rows.mean() + 0.5])  # in cells
    return map_box[:2] + cells * (map_box[2:] - map_box[:2]) / saliency.shape[::-1], len(rows)


def inside_any(point: Float[np.ndarray, "2"], boxes: Float[np.ndarray, "n 4"]) -> bool:
    """Say whether a point lies in one of some xyxy boxes, left and top edges included (the pointing game)."""
    return bool(((point >= boxes[:, :2]) & (point < boxes[:, 2:])).all(1).any())
