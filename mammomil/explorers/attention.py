"""Attention over patches: take patches out of the bag and watch weights and probability move."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mammomil.explorer import Control, Explorer, choice, toggle
from mammomil.files import InputError
from mammomil.gmic import GMIC, log_bernoulli
from mammomil.regions import crop_rois
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, YELLOW, Scene
from mammomil.types import FINDINGS

# Sizes in the scene. Frames are many, so that whole numbers and few marks keep the page small.
LEFT, STEP, SIDE = 72, 63, 56  # row labels; from patch to patch; a crop or a grid of units. The rest is gap
MAMMOGRAM = 230  # height
CROPS, WEIGHTS, LOGITS, FACTORS, BOTTOM = 250, 368, 424, 470, 590  # where the rows begin, or stand
COLOURS = dict(zip(FINDINGS, (BENIGN, MALIGNANT), strict=True))


def attention_explorer(
    model: GMIC, images: Float[Tensor, "b 1 H W"], names: Sequence[str] | None = None
) -> Explorer:
    """Explore gated attention: which patches are in the bag, their weights and factors, and y_mil.

    Patches are chosen and coded once. Each picture calls the model's own `GatedAttention` on the patches
    that are in, and its classifier on the result: GMIC section 2.3 (checklist G8). The weights serve both
    findings. Below each crop are its weight, its share alpha_k w^T h_k in the logit of either finding (the
    shares add up to the logit), and the two factors of the gate, a unit a cell.

    Args:
        model: a GMIC in evaluation mode with gated attention. Six patches make 64 frames for each image.
        images: standardised pixels; two or more can be chosen from.
        names: a few words for each image.

    Raises:
        InputError: the model has no gated attention, or there are more or fewer names than images.
    """
    if model.config.mil.attention != "gated":
        raise InputError(
            f"this model's attention is {model.config.mil.attention}: there are no weights to look at. Give "
            "a model with gated attention."
        )
    names = [f"image {i + 1}" for i in range(len(images))] if names is None else list(names)
    if len(names) != len(images):
        raise InputError(f"{len(names)} names for {len(images)} images. Give one for each.")
    size = model.config.mil.patch_size
    with torch.inference_mode():
        rois = model(images).rois
        patches = crop_rois(images, rois, size)
        codes = model.projection(model.patch_net(patches.flatten(0, 1))).unflatten(0, rois.shape[:2])
        factors = torch.tanh(model.attention.V(codes)), torch.sigmoid(model.attention.U(codes))  # (b, k, f)
        terms = model.mil_classifier(codes)  # (b, k, c): what each patch would say alone
        shown = F.avg_pool2d(images, math.ceil(images.shape[-2] / 480))[:, 0].cpu().numpy()
        crops = F.avg_pool2d(patches[:, :, 0], math.ceil(size / 64)).cpu().numpy()
    count = rois.shape[1]
    reach = max(terms.abs().max().item(), 1e-6)  # no share is larger: weights are at most 1
    crop_rows = [_row(list(image)) for image in crops]
    grids = [_grids(v, u) for v, u in zip(*(part.cpu().numpy() for part in factors), strict=True)]
    scale = MAMMOGRAM / images.shape[-2]

    @torch.inference_mode()
    def probabilities(i: int, kept: list[int]) -> tuple[list[float], list[float]]:
        weights, bag = model.attention(codes[i : i + 1, kept])
        return weights[0].tolist(), log_bernoulli(model.mil_classifier(bag))[0, :, 1].exp().tolist()

    everything = [probabilities(i, list(range(count)))[1] for i in range(len(images))]

    def draw(image: int = 0, **is_in: bool) -> Scene:
        kept = [k for k in range(count) if is_in[f"patch_{k + 1}"]]
        weights, y = probabilities(image, kept) if kept else ([], [])
        scene = Scene(LEFT + count * STEP, BOTTOM, _words(names[image], kept, weights, y, everything[image]))
        low, high = shown[image].min(), shown[image].max()
        width = MAMMOGRAM * images.shape[-1] / images.shape[-2]
        scene.image(shown[image], 0, 0, width, MAMMOGRAM, low=low, high=high, smooth=True)
        _draw_probabilities(scene, width + 16, len(kept), count, y, everything[image])
        values, solid = crop_rows[image]
        scene.image(values, LEFT, CROPS, count * STEP, SIDE, low=low, high=high, alpha=solid, smooth=True)
        cells, solid = grids[image]
        tall = 2 * SIDE + STEP - SIDE
        scene.image(cells, LEFT, FACTORS, count * STEP, tall, colours="cividis", low=0, high=1, alpha=solid)
        rows = ("weight", WEIGHTS - 15), ("logit", LOGITS + 5), ("tanh(Vh)", FACTORS + 33)
        for words, at in (*rows, ("σ(Uh)", FACTORS + STEP + 33)):
            scene.text(0, at, words, size=15)
        scene.line([(LEFT, LOGITS), (scene.width, LOGITS)], GREY, stroke=1)
        for k in range(count):
            left = LEFT + k * STEP
            if k not in kept:
                scene.rect(left, CROPS, SIDE, SIDE, fill=GREY, stroke=0, opacity=0.75)
                continue
            weight = weights[kept.index(k)]
            row, column = (scale * v for v in rois[image, k].tolist())
            thick, strong = 1 + 4 * weight, round(0.4 + 0.6 * weight, 1)
            scene.rect(column, row, scale * size, scale * size, YELLOW, stroke=thick, opacity=strong)
            scene.rect(left, CROPS, SIDE, SIDE, YELLOW, stroke=thick)
            scene.rect(left, WEIGHTS - 45 * weight, SIDE, 45 * weight, fill=INK, stroke=0)
            scene.text(left + SIDE / 2, WEIGHTS + 16, f"{k + 1}: {weight:.2f}", size=15, anchor="middle")
            for c, colour in enumerate(COLOURS.values()):
                share = 38 * weight * terms[image, k, c].item() / reach
                if abs(share) >= 0.3:  # else it cannot be seen
                    bar = left + 6 + 24 * c
                    scene.rect(bar, LOGITS - max(share, 0), 20, abs(share), fill=colour, stroke=0)
        return scene

    controls: list[Control] = [toggle(f"patch_{k + 1}", f"Patch {k + 1}", start=True) for k in range(count)]
    if len(images) > 1:
        controls.insert(0, choice("image", "Image", {name: i for i, name in enumerate(names)}, start=0))
    note = (
        "Untick a patch: the others share its weight, their factors stay as they are. The bars of the row "
        "logit (blue benign, orange malignant; up is more) add up to the logit of the bag. In the grids a "
        "cell is a unit: tanh(Vh) from -1, dark, to 1; the gate σ(Uh) from 0, dark, to 1. The thin line on "
        f"a probability is its value with all {count} patches."
    )
    return Explorer("Patches in and out of the bag", controls, draw, note)


def _grids(
    tanh: Float[np.ndarray, "k f"], gate: Float[np.ndarray, "k f"]
) -> tuple[Float[np.ndarray, "s w"], Float[np.ndarray, "s w"]]:
    """Fold the units of both factors into squares, tanh (as (1 + tanh) / 2) above the gate; see `_row`."""
    side = math.ceil(math.sqrt(tanh.shape[1]))
    units = np.stack([(1 + tanh) / 2, gate])  # both in [0, 1]
    units = np.pad(units, ((0, 0), (0, 0), (0, side**2 - units.shape[2])), constant_values=np.nan)
    upper, lower = (_row(list(part)) for part in units.reshape(2, -1, side, side))
    # Eight lines a cell and `side` lines of gap, as `_row` has it.
    tall = [[np.repeat(part, 8, axis=0) for part in row] for row in (upper, lower)]
    gap = np.zeros((side, upper[0].shape[1]))
    values, solid = (np.concatenate([above, gap, below]) for above, below in zip(*tall, strict=True))
    return values, solid


def _row(tiles: list[np.ndarray]) -> tuple[Float[np.ndarray, "s w"], Float[np.ndarray, "s w"]]:
    """Put square tiles side by side, each followed by a gap of an eighth; return values and opacity."""
    side = tiles[0].shape[0]
    # Eight columns for each of a tile's, then as many as it has rows: the same gap for tiles of any side.
    wide = [np.pad(np.repeat(tile, 8, axis=1), ((0, 0), (0, side)), constant_values=np.nan) for tile in tiles]
    values = np.concatenate(wide, axis=1)
    return np.nan_to_num(values), np.isfinite(values).astype(float)


def _draw_probabilities(
    scene: Scene, left: float, kept: int, count: int, y: list[float], full: list[float]
) -> None:
    """Draw y_mil of both findings as bars, with a line at its value for the full bag."""
    length = round(scene.width - left - 10)
    scene.text(left, 22, f"{kept} of {count} patches in", size=15, bold=True)
    if not y:
        scene.text(left, 60, "An empty bag has", size=15)
        scene.text(left, 80, "no probability.", size=15)
        return
    for c, (name, colour) in enumerate(COLOURS.items()):
        top = 48 + 72 * c
        scene.text(left, top + 8, f"{name} {y[c]:.2f}", size=15)
        scene.rect(left, top + 16, length, 22, stroke=1)
        scene.rect(left, top + 16, length * y[c], 22, fill=colour, stroke=0)
        mark = left + length * full[c]
        scene.line([(mark, top + 11), (mark, top + 43)], INK, stroke=2)


def _words(name: str, kept: list[int], weights: list[float], y: list[float], full: list[float]) -> str:
    """Say what a picture shows."""
    if not kept:
        return f"{name}: no patch is in, and an empty bag has no probability. Put one in."
    shares = ", ".join(f"patch {k + 1} {weight:.2f}" for k, weight in zip(kept, weights, strict=True))
    said, whole = (
        ", ".join(f"{finding} {p:.2f}" for finding, p in zip(FINDINGS, values, strict=True))
        for values in (y, full)
    )
    return f"{name}. Weights: {shares}. y_mil: {said}; with all patches {whole}."
