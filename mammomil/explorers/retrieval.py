"""Greedy retrieval step by step: the map, the sum under every window, the winner, zeroing, the crops."""

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mammomil.explorer import Control, Explorer, choice, slider
from mammomil.files import InputError
from mammomil.regions import cells_to_pixels, crop_rois, normalise_saliency, retrieve_rois
from mammomil.scenes import GREY, MALIGNANT, SKY, YELLOW, Scene

# Sizes in the scene: three panels side by side, the crops in a row below them.
WIDTH, PANEL, GAP, TOP = 450, 142, 12, 52
PHASES = ("sums", "choose", "zero")
VARIANTS = {"No window twice": True, "To the letter": False}


def retrieval_explorer(
    saliencies: Float[Tensor, "n c h w"],
    images: Float[Tensor, "n 1 H W"],
    names: Sequence[str] | None = None,
    window: int = 4,
    k: int = 6,
) -> Explorer:
    """Step through GMIC's Algorithm 1 (checklist G6, readings G-d and G-e) on one map after another.

    Step 0 is the normalised map; then each window has three: the sums under every window, the choice of the
    largest, and the cells set to zero. Windows come from `retrieve_rois`, patches from `cells_to_pixels` and
    `crop_rois`, at every move.

    Args:
        saliencies: one map per class and image, any finite values; two images or more can be chosen from.
        images: standardised pixels that the maps belong to.
        names: a few words for each image.
        window: side of a window in cells, cut to the map's size.
        k: how many windows. Each adds 6 frames per image.

    Raises:
        InputError: there are more or fewer names than images, or k is less than 1.
    """
    names = [f"image {i + 1}" for i in range(len(images))] if names is None else list(names)
    if len(names) != len(images):
        raise InputError(f"{len(names)} names for {len(images)} images. Give one for each.")
    if k < 1:
        raise InputError(f"k is {k}. Give a number of windows, 1 or more.")
    saliencies, images = saliencies.detach().float().cpu(), images.detach().cpu()
    (height, width), (rows_of_pixels, columns_of_pixels) = saliencies.shape[-2:], images.shape[-2:]
    side = (min(window, height), min(window, width))
    size = max(1, round(window * rows_of_pixels / height))  # of a patch in pixels
    shown = F.avg_pool2d(images, math.ceil(rows_of_pixels / 480))[:, 0].numpy()
    tall = round(PANEL * rows_of_pixels / columns_of_pixels)
    cell = (tall / height, PANEL / width)
    crop_side = (WIDTH - 5 * (k - 1)) / k

    def draw(step: int, distinct: bool, image: int = 0) -> Scene:
        done, phase = divmod(step - 1, 3) if step else (0, -1)  # windows finished before this one
        count = done + (phase >= 1)  # windows chosen, this one included
        corners = retrieve_rois(saliencies[image][None], k, side, distinct)[0, :count]
        left = normalise_saliency(saliencies[image][None])[0]
        begin, total = left.max().item(), left.sum().item()
        for row, column in corners[: done + (phase == 2)].tolist():
            left[row : row + side[0], column : column + side[1]] = 0
        sums = _sums(left, side)
        pixels = cells_to_pixels(corners[None], (height, width), (rows_of_pixels, columns_of_pixels), size)
        crops = crop_rois(images[image][None], pixels, size)[0, :, 0]
        crops = F.avg_pool2d(crops[:, None], math.ceil(size / 64))[:, 0] if count else crops

        barred = corners[:done].tolist() if distinct else []
        scene = Scene(WIDTH, math.ceil(TOP + tall + 14 + crop_side + 20))
        variant = next(text for text, value in VARIANTS.items() if value == distinct).lower()
        who = f"{names[image]}, {variant}"
        scene.words = _words(who, step, phase, corners, pixels[0], left, total, sums, barred, side)
        title = f"window {done + 1}: {PHASES[phase]}" if step else "the map"
        scene.text(0, 18, title, size=16, bold=True)
        scene.text(WIDTH, 18, variant, size=15, anchor="end")
        middle, last = PANEL + GAP, 2 * (PANEL + GAP)
        for x, words in ((0, "mammogram"), (middle, "map"), (last, "sums")):
            scene.text(x, TOP - 7, words, size=15)

        low, high = float(shown[image].min()), float(shown[image].max())
        scene.image(shown[image], 0, TOP, PANEL, tall, low=low, high=high, smooth=True)
        scene.image(left.numpy(), middle, TOP, PANEL, tall, colours="viridis", low=0, high=begin or 1)
        scene.rect(last, TOP, PANEL, tall, GREY, stroke=1, dashed=True)
        across, down = sums.shape[1] * cell[1], sums.shape[0] * cell[0]
        if phase in (0, 1):
            top_sum = _sums(normalise_saliency(saliencies[image][None])[0], side).max().item()
            scene.image(sums.numpy(), last, TOP, across, down, colours="magma", low=0, high=top_sum or 1)
            for row, column in barred:  # no longer to be had
                x, y = last + (column + 0.5) * cell[1], TOP + (row + 0.5) * cell[0]
                scene.line([(x - 4, y - 4), (x + 4, y + 4)], SKY, stroke=2)
                scene.line([(x - 4, y + 4), (x + 4, y - 4)], SKY, stroke=2)
        scale = PANEL / columns_of_pixels
        for i, (row, column) in enumerate(pixels[0].tolist()):
            now = i == done  # the window of this step
            colour, thick = (MALIGNANT, 3) if now else (YELLOW, 1.5)
            scene.rect(scale * column, TOP + scale * row, scale * size, scale * size, colour, stroke=thick)
        for i, crop in enumerate(crops.numpy()):
            x, y = i * (crop_side + 5), TOP + tall + 14
            scene.image(crop, x, y, crop_side, crop_side, low=low, high=high, smooth=True)
            colour = MALIGNANT if i == done else YELLOW
            scene.rect(x, y, crop_side, crop_side, colour, stroke=3 if i == done else 1.5)
            scene.text(x + crop_side / 2, y + crop_side + 17, str(i + 1), size=15, anchor="middle")
        if phase >= 1:
            row, column = corners[done].tolist()
            x, y = middle + column * cell[1], TOP + row * cell[0]
            scene.rect(x, y, side[1] * cell[1], side[0] * cell[0], MALIGNANT, stroke=2)
        if phase == 1:
            scene.circle(last + (column + 0.5) * cell[1], TOP + (row + 0.5) * cell[0], 7, SKY, stroke=2.5)
        return scene

    texts = ["the map"] + [f"window {n + 1}: {phase}" for n in range(k) for phase in PHASES]
    controls: list[Control] = [
        slider("step", "Step", range(3 * k + 1), texts, start=3 * min(k, 2) - 1, play=True),
        choice("distinct", "Variant", VARIANTS, start=True),
    ]
    if len(images) > 1:
        controls.insert(0, choice("image", "Image", {name: i for i, name in enumerate(names)}, start=0))
    note = (
        "Play starts again from the map when it has reached the end. In the sums, a point stands for the "
        "window with its top left corner there; no window fits where the dashed frame is empty. A cross is a "
        "window that must not be taken again, the circle is the largest sum."
    )
    return Explorer("Retrieve regions of interest, one window at a time", controls, draw, note)


def _sums(left: Float[Tensor, "h w"], side: tuple[int, int]) -> Float[Tensor, "i j"]:
    """Sum under every window, as `retrieve_rois` compares them (it takes means)."""
    return side[0] * side[1] * F.avg_pool2d(left[None, None], side, stride=1)[0, 0]


def shared_cells(first: Sequence[int], second: Sequence[int], side: tuple[int, int]) -> int:
    """Count the cells that two windows of size `side` share, from their top left corners."""
    return math.prod(max(0, s - abs(a - b)) for a, b, s in zip(first, second, side, strict=True))


def _overlap(corners: list[list[int]], side: tuple[int, int]) -> str:
    """Say in words what the last window shares with those before it."""
    *before, last = corners
    if last in before:
        return f"It is window {before.index(last) + 1} again"
    shares = {i + 1: shared_cells(corner, last, side) for i, corner in enumerate(before)}
    told = [f"{cells} of {math.prod(side)} cells with window {i}" for i, cells in shares.items() if cells]
    if not told:
        return "It shares no cell with a window before" if before else "It is the first window"
    return f"It shares {', '.join(told)}"


def _words(
    name: str,
    step: int,
    phase: int,
    corners: Tensor,
    pixels: Tensor,
    left: Tensor,
    total: float,
    sums: Tensor,
    barred: list[list[int]],
    side: tuple[int, int],
) -> str:
    """Say what a picture shows."""
    if not step:
        told = "All of it is 0: a constant map holds no place" if total == 0 else f"It sums to {total:.1f}"
        return f"{name}. The map: every class from 0 to 1, then added. {told}."
    number = (step + 2) // 3
    candidates = sums.clone()
    for row, column in barred:
        candidates[row, column] = -np.inf
    best = candidates.max()
    equal = int((candidates == best).sum())
    if phase == 0:
        again = f" {len(barred)} windows are taken." if barred else ""
        return f"{name}. Window {number}: the largest of {sums.numel()} sums is {best:.2f}.{again}"
    row, column = corners[-1].tolist()
    if phase == 1:
        tie = f", the first of {equal} equal sums," if equal > 1 else ""
        at = ", ".join(map(str, pixels[-1].tolist()))
        return (
            f"{name}. Window {number} has sum {best:.2f}{tie} at row {row}, column {column} of the map; its "
            f"patch begins at pixel {at}. {_overlap(corners.tolist(), side)}."
        )
    share = f" ({left.sum() / total:.0%} of the whole)" if total else ""
    return (
        f"{name}. The cells of window {number} are zero now. The map still sums to {left.sum():.1f}{share}."
    )
