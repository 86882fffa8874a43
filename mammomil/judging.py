"""What one answer is worth: a prediction beside what the index knows of its image. And how it is kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image

from mammomil.files import InputError
from mammomil.index import BOX
from mammomil.metrics import continuous_prf, inside_any, map_peak, top_region_iom
from mammomil.regions import iom, iom_masks
from mammomil.report import Failure
from mammomil.types import FINDINGS, Prediction

Interval = tuple[float, float]
ALPHA = 0.5  # a region hits a lesion from this IoM on (checklist D11, D27)
CONTINUOUS = ("precision", "recall", "f1")


class Places(NamedTuple):
    """What a FROC curve needs of an image: its regions and its placed lesions.

    Attributes:
        scores: evidence of each region for each finding.
        iom: overlap of each region with each lesion.
        finding: number of each lesion's finding in `FINDINGS`.
    """

    scores: Float[np.ndarray, "k c"]
    iom: Float[np.ndarray, "k n"]
    finding: Int[np.ndarray, "n"]


@dataclass(frozen=True)
class FindingFigures:
    """Figures of one finding. Shares and intervals are None where there is nothing to compute them from."""

    known: int
    """Images whose label is known."""
    positive: int
    """Of these, images with the finding."""
    auc: float | None
    """Area under the ROC curve over the images whose label is known."""
    auc_95ci: Interval | None
    """Its 95 % interval over patients, as of all shares here."""
    located: int = 0
    """Images with at least one placed lesion of the finding."""
    region_hit: float | None = None
    """Of these, the share whose top-ranked region hits such a lesion with IoM 0.5 or more."""
    region_hit_95ci: Interval | None = None
    """Interval of `region_hit`."""
    peak_hit: float | None = None
    """Of these, the share where the saliency map peaks in the box of such a lesion."""
    peak_hit_95ci: Interval | None = None
    """Interval of `peak_hit`."""
    tied_peaks: int = 0
    """Of these, images where several cells share the map's maximum; the mean of their places is its peak."""
    unplaced: int = 0
    """Lesions left out of all this because nobody noted their place."""


class ModelEvaluation(NamedTuple):
    """A model's figures on some images.

    Attributes:
        model: name of the model.
        images: images (or fields of view) that were answered.
        patients: their patients.
        findings: figures by finding.
        rows: per image its ids, labels, probabilities and hits; None where there is none.
        failures: images that could not be used.
        places: per image its regions and lesions; none of fields of view.
        ranks_regions: the model ranks regions, see `Prediction.ranks_regions`.
        listed: how many regions per finding were known at most; None is all.
    """

    model: str
    images: int
    patients: int
    findings: dict[str, FindingFigures]
    rows: list[dict[str, Any]]
    failures: list[Failure]
    places: Sequence[Places] = ()
    ranks_regions: bool = False
    listed: int | None = None


def judge_answer(
    p: Prediction, image: Mapping[str, Any], lesions: pd.DataFrame, root: Path, mask_iom: bool = False
) -> tuple[dict[str, Any], Places]:
    """Compare a prediction with the labels and the placed lesions of its image.

    Per finding: does the region with the largest score hit a lesion (IoM 0.5 or more), and does the map peak
    in a lesion's box?

    Args:
        p: the prediction.
        image: the image's row of the index.
        lesions: its findings.
        root: the folder that masks are relative to.
        mask_iom: compare regions with the masks of lesions where there are any, in place of the boxes.

    Returns:
        Ids, labels, probabilities and hits by name, None where unknown or not asked; and regions and lesions.

    Raises:
        InputError: a mask cannot be read, or is not as large as its image.
    """
    row = {name: image[name] for name in ("image_id", "patient_id", "exam_id", "split", "source")}
    row |= {name: image[name] or getattr(p, name) for name in ("laterality", "view")}
    row |= label_columns([image[name] for name in FINDINGS], p.prob)
    placed = lesions[lesions["x0"].notna()]
    boxes, regions = placed[BOX].to_numpy(float), torch.tensor(p.boxes)
    overlap = iom(regions, torch.tensor(boxes)).numpy()  # (k, n)
    for n, name in enumerate(placed["mask"] if mask_iom else ()):
        if name:
            mask = torch.from_numpy(read_mask(root / name, image))[None]
            overlap[:, n] = iom_masks(regions, mask)[:, 0].numpy()
    finding = placed["finding"].map(FINDINGS.index).to_numpy(int)
    for c in range(len(FINDINGS)):
        row |= _places(p, c, boxes[finding == c], overlap[:, finding == c])
    return row, Places(p.scores, overlap, finding)


def judge_map(
    p: Prediction, image: Mapping[str, Any], lesions: pd.DataFrame, root: Path
) -> dict[str, float | None]:
    """Compare maps with masks (continuous precision, recall and F1, checklist G13), as columns.

    A finding is judged where each of its lesions has a mask: a map that points at one without would look
    wrong. Else, and without a map, its columns are None. Arguments and errors are those of `judge_answer`.
    """
    columns = {}
    for c, finding in enumerate(FINDINGS):
        names, values = lesions.loc[lesions["finding"] == finding, "mask"], None
        if p.saliency is not None and p.map_box is not None and len(names) and (names != "").all():
            mask = np.any([read_mask(root / name, image) for name in names], axis=0)
            values = continuous_prf(p.saliency[c], cut_to_box(mask, p.map_box))
        columns |= {f"{name}_{finding}": v for name, v in zip(CONTINUOUS, values or (None,) * 3, strict=True)}
    return columns


def cut_to_box(mask: Bool[np.ndarray, "h w"], box: Float[np.ndarray, "4"]) -> Bool[np.ndarray, "H W"]:
    """Cut a mask to a box of whole pixels, xyxy, rounded; what the box holds beyond the mask is False."""
    x0, y0, x1, y1 = np.rint(box).astype(int)
    cut = np.zeros((y1 - y0, x1 - x0), bool)
    part = mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    top, left = max(-y0, 0), max(-x0, 0)
    cut[top : top + part.shape[0], left : left + part.shape[1]] = part
    return cut


def read_mask(path: Path, image: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Read a mask.

    Raises:
        InputError: it cannot be read, or is not as large as its image.
    """
    try:
        with Image.open(path) as file:
            mask = np.asarray(file) > 0
    except OSError as error:
        raise InputError(f"{path}: cannot read this mask ({error}). Restore the file.") from error
    size = (image["height"], image["width"])
    if mask.ndim != 2 or (mask.shape != size and not any(map(math.isnan, size))):
        raise InputError(f"{path}: the mask is {mask.shape}, its image {size}. Give one of that size.")
    return mask


def label_columns(label: Sequence[float], prob: np.ndarray) -> dict[str, Any]:
    """Labels, None where unknown, and probabilities of an image, as columns."""
    columns = {name: None if math.isnan(y) else int(y) for name, y in zip(FINDINGS, label, strict=True)}
    return columns | {f"p_{name}": float(p) for name, p in zip(FINDINGS, prob, strict=True)}


def _places(prediction: Prediction, c: int, boxes: np.ndarray, overlap: np.ndarray) -> dict[str, Any]:
    """Say how a prediction's places for one finding meet its lesions, as columns; None where not asked."""
    best = top_region_iom(prediction.scores[:, c], overlap)
    peak = tied = None
    if len(boxes) and prediction.saliency is not None and prediction.map_box is not None:
        place, tied = map_peak(prediction.saliency[c], prediction.map_box)
        peak = int(inside_any(place, boxes))
    name = FINDINGS[c]
    return {
        f"lesions_{name}": len(boxes),
        f"iom_{name}": best,
        f"region_hit_{name}": None if best is None else int(best >= ALPHA),
        f"peak_hit_{name}": peak,
        f"tied_{name}": tied,
    }
