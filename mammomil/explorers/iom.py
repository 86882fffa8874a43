"""Overlap and labels: move and resize a region over lesions and see IoU, IoM and the label it gets."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mammomil.explorer import Explorer, choice, slider, toggle
from mammomil.files import InputError
from mammomil.marks import coloured
from mammomil.regions import iom, iom_masks, region_labels
from mammomil.scenes import GREY, INK, MALIGNANT, PINK, SKY, YELLOW, Scene

SIDE = 440  # of the crop in the scene
BADGE, BARS, ROW, LEFT, LENGTH = 450, 524, 58, 92, 284  # where label and bars stand; a bar of IoM 1
STEP, LEAST = 2, 4  # of positions and sizes; smallest size: crop pixels
ALPHAS = tuple(k / 10 for k in range(1, 11))
LABELS = {1: ("malignant", MALIGNANT), -1: ("ignored", YELLOW), 0: ("benign or normal", SKY)}


def iom_explorer(
    crops: Float[Tensor, "b S S"],
    masks: Sequence[Bool[Tensor, "_ S S"]],
    names: Sequence[str] | None = None,
    window: int = 28,
) -> Explorer:
    """Explore how a region is labelled by malignant lesions: the paper's Eq. 6 and 7 (checklist D10, D11).

    Each picture calls `regions.iom` (or `regions.iom_masks`), `torchvision.ops.box_iou` and
    `regions.region_labels`; in a page a script does their arithmetic.

    Args:
        crops: square pieces of mammograms, any grey values.
        masks: of each crop its malignant lesions, one or more; their boxes are tight around them.
        names: a few words for each crop.
        window: side of the region at first, in pixels of a crop; it lies over the first lesion.

    Raises:
        InputError: there are not as many masks or names as crops, or a lesion has no pixel.
    """
    names = [f"crop {i + 1}" for i in range(len(crops))] if names is None else list(names)
    if len(names) != len(crops) or len(masks) != len(crops):
        raise InputError(
            f"{len(crops)} crops, {len(masks)} sets of masks and {len(names)} names. Give one of each for "
            "each crop."
        )
    if any(not len(lesions) or not lesions.flatten(1).any(1).all() for lesions in masks):
        raise InputError("A crop has no lesion, or a lesion without a pixel. Give masks that are not empty.")
    side = crops.shape[-1]
    scale = SIDE / side
    boxes = [torch.stack([_box(mask) for mask in lesions]) for lesions in masks]
    most = max(map(len, boxes))
    pictures = {}
    for i, (crop, lesions) in enumerate(zip(crops.cpu().numpy(), masks, strict=True)):
        pictures[f"crop{i}"] = coloured(crop)
        pictures[f"contour{i}"] = _contours(lesions.numpy())
    centre = boxes[0][0].view(2, 2).mean(0).tolist()
    at = [STEP * max(0, round((c - window / 2) / STEP)) for c in centre]

    def overlaps(image: int, contour: bool, region: Tensor) -> tuple[Tensor, list[float]]:
        if contour:
            lesions = masks[image]
            shares = iom_masks(region, lesions)[0]
            areas = [float((region[0, 2:] - region[0, :2]).prod()), lesions.sum((1, 2)).double()]
            shared = shares * areas[1].clamp(max=areas[0])
            return shares, (shared / (areas[0] + areas[1] - shared)).tolist()
        from torchvision.ops import box_iou

        return iom(region, boxes[image])[0], box_iou(region, boxes[image])[0].tolist()

    def draw(
        image: int = 0, *, contour: bool, left: int, top: int, width: int, height: int, alpha: float
    ) -> Scene:
        x, y, right, bottom = left, top, min(left + width, side), min(top + height, side)
        region = torch.tensor([[x, y, right, bottom]], dtype=torch.float64)
        shares, unions = overlaps(image, contour, region)
        word, colour = LABELS[int(region_labels(shares[None], alpha))]
        lines = [
            f"Lesion {k + 1}: IoM {_cut(share)}, IoU {_cut(union)}"
            for k, (share, union) in enumerate(zip(shares.tolist(), unions, strict=True))
        ]
        kind = "contours" if contour else "boxes"
        scene = Scene(SIDE, BARS + ROW * most + 22)
        scene.words = (
            f"{names[image]}, lesions as {kind}. Region of {right - x} x {bottom - y} pixels at {x}, {y}: "
            f"{word} at alpha {alpha:g}. {'; '.join(lines)}."
        )
        scene.image(pictures[f"crop{image}"], 0, 0, SIDE, SIDE, smooth=True)
        if contour:
            scene.image(pictures[f"contour{image}"], 0, 0, SIDE, SIDE)
        for k, (x0, y0, x1, y1) in enumerate(boxes[image].tolist()):
            if not contour:
                scene.rect(scale * x0, scale * y0, scale * (x1 - x0), scale * (y1 - y0), PINK, stroke=3)
                low, high = (max(x, x0), max(y, y0)), (min(right, x1), min(bottom, y1))
                if low[0] < high[0] and low[1] < high[1]:
                    size = scale * (high[0] - low[0]), scale * (high[1] - low[1])
                    scene.rect(scale * low[0], scale * low[1], *size, fill=colour, stroke=0, opacity=0.35)
            if len(boxes[image]) > 1:
                scene.text(scale * x0 + 6, scale * y1 - 7, str(k + 1), size=20, bold=True, halo=True)
        scene.rect(scale * x, scale * y, scale * (right - x), scale * (bottom - y), colour, stroke=4)
        step = scale * STEP
        scene.handle(scale * x, scale * y, left=("x", 0, step), top=("y", 0, step))
        corner = [("xy"[axis], scale * (start + LEAST), step) for axis, start in enumerate((x, y))]
        scene.handle(scale * right, scale * bottom, width=corner[0], height=corner[1])
        scene.rect(0, BADGE, SIDE, 34, fill=colour, stroke=0)
        scene.text(
            SIDE / 2, BADGE + 23, f"This region: {word}", size=18, anchor="middle", bold=True, colour="#000"
        )
        _draw_bars(scene, shares.tolist(), unions, alpha, most)
        return scene

    largest = side - max(at)  # so that at first each size shows
    places = range(0, side - LEAST + 1, STEP)
    sizes = range(LEAST, largest + 1, STEP)
    controls = [
        toggle("contour", "Contour in place of box"),
        slider("left", "x", places, start=at[0]),
        slider("top", "y", places, start=at[1]),
        slider("width", "Width", sizes, start=window),
        slider("height", "Height", sizes, start=window),
        slider("alpha", "Alpha", ALPHAS, start=0.5),
    ]
    if len(crops) > 1:
        controls.insert(0, choice("image", "Crop", {name: i for i, name in enumerate(names)}, start=0))
    note = (
        "Drag the upper left dot to move the region and the lower right one to resize it; the sliders do the "
        "same. Pink: what a reader has marked as malignant. Bars: IoM in colour, IoU in grey; yellow is the "
        "zone that is ignored, orange is malignant from alpha on, and the blue edge is IoM 0: benign or "
        "normal. The region ends where the crop ends. Digits are cut, not rounded."
    )
    data: dict[str, Any] = {
        "names": names,
        "side": side,
        "most": most,
        "boxes": [lesions.long().tolist() for lesions in boxes],
        "runs": [[_runs(mask.numpy()) for mask in lesions] for lesions in masks],
    }
    return Explorer("From overlap to label", controls, draw, note, "iom", data, pictures)


def _box(mask: Bool[Tensor, "S S"]) -> Float[Tensor, "4"]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.tensor([int(edge) for edge in edges], dtype=torch.float64)


def _contours(masks: Bool[np.ndarray, "n S S"]) -> np.ndarray:
    """Colour the lesions faintly and their edges fully, four picture elements a pixel."""
    fine = np.kron(masks, np.ones((1, 4, 4), bool)).astype(bool)
    framed = np.pad(fine, ((0, 0), (1, 1), (1, 1)))
    inner = framed[:, :-2, 1:-1] & framed[:, 2:, 1:-1] & framed[:, 1:-1, :-2] & framed[:, 1:-1, 2:]
    edge = (fine & ~inner).any(0)
    rgba = np.zeros((*edge.shape, 4), np.uint8)
    rgba[..., :3] = [int(PINK[k : k + 2], 16) for k in (1, 3, 5)]
    rgba[..., 3] = np.where(edge, 255, 70 * fine.any(0))
    return rgba


def _runs(mask: Bool[np.ndarray, "S S"]) -> list[tuple[int, int, int]]:
    """List the pixels of a mask as (row, first column, column after the last)."""
    runs = []
    for row, line in enumerate(mask):
        changes = np.flatnonzero(np.diff(np.pad(line.astype(int), 1))).tolist()
        runs += [(row, a, b) for k, (a, b) in enumerate(pairwise(changes)) if k % 2 == 0]
    return runs


def _cut(value: float) -> str:
    """Write a share with two digits, cut: rounded up, it might seem to reach an alpha it misses."""
    if value == 0:
        return "0"
    cut = math.floor(100 * value + 1e-9) / 100
    return f"{cut:.2f}" if cut else "under 0.01"


def _draw_bars(scene: Scene, shares: list[float], unions: list[float], alpha: float, most: int) -> None:
    """Draw IoM and IoU of each lesion above the zones that Eq. 7 makes of IoM."""
    top, tall, border = BARS - 8, ROW * most - 2, LEFT + LENGTH * alpha
    scene.rect(LEFT, top, LENGTH * alpha, tall, fill=YELLOW, stroke=0, opacity=0.35)
    scene.rect(border, top, LENGTH * (1 - alpha), tall, fill=MALIGNANT, stroke=0, opacity=0.25)
    if alpha >= 0.3:
        scene.text(LEFT + 4, top - 7, "ignored", size=16)
    if alpha <= 0.7:
        scene.text(LEFT + LENGTH, top - 7, "malignant", size=16, anchor="end")
    for k, (share, union) in enumerate(zip(shares, unions, strict=True)):
        y = BARS + ROW * k
        colour = LABELS[1 if share >= alpha else -1][1]
        number = f" {k + 1}" if len(shares) > 1 else ""
        scene.text(LEFT - 8, y + 15, f"IoM{number}", size=17, anchor="end", bold=True)
        scene.text(LEFT - 8, y + 37, f"IoU{number}", size=17, anchor="end")
        scene.rect(LEFT, y, LENGTH * share, 20, fill=colour, stroke=1)
        scene.rect(LEFT, y + 22, LENGTH * union, 20, fill=GREY, stroke=1)
        for value, base in ((share, y + 16), (union, y + 38)):
            scene.text(LEFT + LENGTH + 8, base, _cut(value).replace("under ", "< "), size=17)
    scene.line([(LEFT, top), (LEFT, top + tall)], SKY, stroke=5)
    scene.line([(border, top - 4), (border, top + tall + 4)], INK, stroke=2.5)
    scene.text(border, top + tall + 21, f"α = {alpha:g}", size=17, anchor="middle", bold=True)
