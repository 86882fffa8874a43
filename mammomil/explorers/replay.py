"""Training replayed: what a model said of some images, moment by moment, beside its learning curve."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from mammomil.cache import CanvasFindings
from mammomil.explorer import Control, Explorer, choice, slider
from mammomil.files import InputError
from mammomil.gmic import GMIC
from mammomil.regions import iom
from mammomil.scenes import BENIGN, GREEN, GREY, INK, MALIGNANT, YELLOW, Scene
from mammomil.types import FINDINGS

# Sizes in the scene: narrow, so that the texts can be read on a phone.
TALL, LEFT, RIGHT, BOTTOM = 400, 310, 520, 416  # mammogram; curves from, to; height of the scene
UPPER, LOWER = (58, 178), (254, 374)  # top and bottom of the two curves
COLOURS = dict(zip(FINDINGS, (BENIGN, MALIGNANT), strict=True))
ALPHA = 0.5  # a patch hits a lesion from this IoM on (checklist D11)
STEPS = 24  # levels of the map in the picture; fewer make smaller pages


class Moment(NamedTuple):
    """What a model said of some images at one point of its training; small enough to keep many.

    Attributes:
        epoch: passes over the training images so far; 0 is before training.
        saliency: A, in half precision.
        rois: patches in the order of retrieval, xyxy in pixels of the image.
        y_loc: probabilities from the map.
        y_mil: probabilities from the patches.
        losses: mean terms of the training loss since the moment before, by name; empty at the start.
    """

    epoch: float
    saliency: Float16[np.ndarray, "i c h w"]
    rois: Float[np.ndarray, "i k 4"]
    y_loc: Float[np.ndarray, "i c"]
    y_mil: Float[np.ndarray, "i c"]
    losses: Mapping[str, float] = {}

    def of(self, images: Sequence[int] | Int[np.ndarray, "j"]) -> "Moment":
        """Return the moment for some of its images, by position."""
        parts = (self.saliency, self.rois, self.y_loc, self.y_mil)
        return Moment(self.epoch, *(part[list(images)] for part in parts), self.losses)


@torch.inference_mode()
def record(
    model: GMIC,
    images: Float[Tensor, "i 1 H W"],
    epoch: float = 0.0,
    losses: Mapping[str, float] | None = None,
    batch_size: int = 16,
) -> Moment:
    """Ask a model about some images, in evaluation mode; it leaves in the mode it came in.

    Args:
        model: a GMIC, on the device of the images.
        images: standardised pixels.
        epoch: when this is.
        losses: mean terms of the training loss since the last moment, by name.
        batch_size: images asked about at a time.
    """
    training = model.training
    model.eval()
    try:
        outputs = [model(batch) for batch in images.split(batch_size)]
    finally:
        model.train(training)
    names = ("saliency", "rois", "y_loc", "y_mil")
    saliency, corners, y_loc, y_mil = (torch.cat([getattr(o, name) for o in outputs]).cpu() for name in names)
    corners = corners.flip(-1).float()  # (row, column) to x, y
    rois = torch.cat([corners, corners + model.config.mil.patch_size], -1)
    return Moment(
        epoch, saliency.half().numpy(), rois.numpy(), y_loc.numpy(), y_mil.numpy(), dict(losses or {})
    )


def hits(
    rois: Float[np.ndarray, "k 4"], lesions: CanvasFindings, malignant: bool | None = None
) -> list[bool] | None:
    """Say of each patch whether it hits a lesion: IoM 0.5 or more with its box (checklist D10, D11).

    Args:
        rois: patches, xyxy.
        lesions: of the image, in the same pixels.
        malignant: count lesions of this class only; None counts all.

    Returns:
        None where the image has no such lesion.
    """
    boxes = lesions.boxes if malignant is None else lesions.boxes[lesions.malignant == malignant]
    return (iom(torch.from_numpy(rois), boxes) >= ALPHA).any(1).tolist() if len(boxes) else None


def replay_explorer(
    history: Sequence[Moment],
    images: Float[Tensor, "i 1 H W"],
    names: Sequence[str] | None = None,
    lesions: Sequence[CanvasFindings] | None = None,
) -> Explorer:
    """Explore a training: the map over the mammogram, its six patches, and where on the curves this is.

    Args:
        history: moments of the same images, in order, two or more; see `record`.
        images: standardised pixels, as recorded.
        names: a few words for each image.
        lesions: where the lesions of each image are, `MammogramDataset.findings_on_canvas`. Drawn and
            compared with the patches; the model that was recorded need not have seen them.

    Raises:
        InputError: fewer than two moments, or other than one name, one set of lesions and one answer for
            each image.
    """
    names = [f"image {i + 1}" for i in range(len(images))] if names is None else list(names)
    counts = {len(names), *(len(m.rois) for m in history), len(images if lesions is None else lesions)}
    if len(history) < 2 or counts != {len(images)}:
        raise InputError(
            f"{len(history)} moments of {sorted(counts)} images, names or lesions for {len(images)} images. "
            "Give two moments or more, and one of everything for each image."
        )
    pixels = images[:, 0].cpu().numpy()
    scale = TALL / pixels.shape[1]

    def draw(moment: int = 0, image: int = 0, finding: int = 0) -> Scene:
        now = history[moment]
        found = None if lesions is None else hits(now.rois[image], lesions[image], bool(finding))
        scene = Scene(RIGHT + 8, BOTTOM, _words(now, image, finding, names[image], found))
        wide = scale * pixels.shape[2]
        low, high = pixels[image].min(), pixels[image].max()
        scene.image(pixels[image], 0, 0, wide, TALL, low=low, high=high, smooth=True)
        cells = np.round(now.saliency[image, finding].astype(float) * STEPS) / STEPS
        scene.image(cells, 0, 0, wide, TALL, colours="viridis", low=0, high=1, alpha=np.minimum(cells, 0.7))
        if lesions is not None:
            for box, malignant in zip(lesions[image].boxes.tolist(), lesions[image].malignant, strict=True):
                x0, y0, x1, y1 = (scale * edge for edge in box)
                colour = COLOURS[FINDINGS[int(malignant)]]
                dashed = bool(malignant) != bool(finding)
                scene.rect(x0 - 3, y0 - 3, x1 - x0 + 6, y1 - y0 + 6, colour, stroke=3, dashed=dashed)
        for k in reversed(range(now.rois.shape[1])):
            x0, y0, x1, y1 = scale * now.rois[image, k]
            scene.rect(x0, y0, x1 - x0, y1 - y0, YELLOW, stroke=1.5 if k else 3)
            scene.text(x0 + 3, y0 + 16, str(k + 1), size=17, colour=YELLOW, halo=True)
        _draw_answers(scene, history, moment, image, finding)
        _draw_losses(scene, history, moment)
        return scene

    times = [f"epoch {m.epoch:g}" for m in history]
    controls: list[Control] = [slider("moment", "Training", range(len(history)), times, play=True)]
    if len(images) > 1:
        controls.append(choice("image", "Image", {name: i for i, name in enumerate(names)}, start=0))
    controls.append(choice("finding", "Map of", {name: c for c, name in enumerate(FINDINGS)}, start=1))
    about = (
        "" if lesions is None else "Orange: a malignant lesion; blue: a benign one; dashed: not this map's. "
    )
    note = (
        f"Yellow: the patches in the order they were chosen. {about}Green to yellow cells: where the map is "
        "high. Above, what is said of this image; below, the training loss."
    )
    return Explorer("A training, replayed", controls, draw, note)


def _across(history: Sequence[Moment], epoch: float) -> float:
    first, last = history[0].epoch, history[-1].epoch
    return LEFT + (RIGHT - LEFT) * (epoch - first) / max(last - first, 1e-9)


def _curve(
    scene: Scene, history: Sequence[Moment], values: list[float], top: float, now: int, edges, colour, dashed
) -> None:
    """Draw values over the moments, from `edges[1]` (0) to `edges[0]` (`top`), with a dot at `now`."""
    high, low = edges
    points = [
        (_across(history, m.epoch), low - (low - high) * min(v / top, 1))
        for m, v in zip(history, values, strict=True)
        if not np.isnan(v)
    ]
    scene.line(points, colour, stroke=2.5, dashed=dashed)
    if not np.isnan(values[now]):
        x, y = _across(history, history[now].epoch), low - (low - high) * min(values[now] / top, 1)
        scene.circle(x, y, 5, colour, fill=colour)


def _axes(scene: Scene, edges: tuple[int, int], top: float) -> None:
    high, low = edges
    for y, value in ((high, top), (low, 0)):
        scene.line([(LEFT, y), (RIGHT, y)], GREY, stroke=1)
        scene.text(LEFT - 4, y + 5, f"{value:.2g}", size=16, anchor="end")


def _draw_answers(scene: Scene, history: Sequence[Moment], now: int, image: int, finding: int) -> None:
    """Draw what the map and the patches say of the image, over the training."""
    colour = COLOURS[FINDINGS[finding]]
    scene.text(LEFT, UPPER[0] - 38, f"p({FINDINGS[finding]})", size=18, bold=True)
    scene.text(LEFT, UPPER[0] - 14, "line map, dashes patches", size=16)
    _axes(scene, UPPER, 1.0)
    for name, dashed in (("y_loc", False), ("y_mil", True)):
        values = [float(getattr(m, name)[image, finding]) for m in history]
        _curve(scene, history, values, 1.0, now, UPPER, colour, dashed)


def _draw_losses(scene: Scene, history: Sequence[Moment], now: int) -> None:
    """Draw the terms of the training loss, which belong to all images."""
    terms = sorted({name for m in history for name in m.losses})
    series = {name: [float(m.losses.get(name, np.nan)) for m in history] for name in terms}
    largest = max((v for values in series.values() for v in values if not np.isnan(v)), default=1.0) or 1.0
    scene.text(LEFT, LOWER[0] - 38, "training loss", size=18, bold=True)
    at = LEFT
    _axes(scene, LOWER, largest)
    looks = zip(terms, (INK, GREEN, GREY, YELLOW), (False, True, False, True), strict=False)
    for name, colour, dashed in looks:
        scene.line([(at, LOWER[0] - 19), (at + 18, LOWER[0] - 19)], colour, stroke=2.5, dashed=dashed)
        scene.text(at + 22, LOWER[0] - 14, name, size=16)
        at += 70
        _curve(scene, history, series[name], largest, now, LOWER, colour, dashed)
    x = _across(history, history[now].epoch)
    scene.line([(x, LOWER[0]), (x, LOWER[1])], GREY, stroke=1, dashed=True)
    scene.text((LEFT + RIGHT) / 2, LOWER[1] + 24, f"epoch {history[now].epoch:g}", size=17, anchor="middle")


def _words(now: Moment, image: int, finding: int, name: str, found: list[bool] | None) -> str:
    """Say what a picture shows."""
    values = now.saliency[image, finding].astype(float)
    said = (
        f"Epoch {now.epoch:g}. {name}, map of {FINDINGS[finding]}: highest {values.max():.2f}, mean "
        f"{values.mean():.3f}. y_loc {now.y_loc[image, finding]:.2f}, y_mil {now.y_mil[image, finding]:.2f}."
    )
    if found is None:
        where = ""
    elif not any(found):
        where = f" None of {len(found)} patches hits a {FINDINGS[finding]} lesion."
    else:
        *more, last = (str(k + 1) for k, hit in enumerate(found) if hit)
        who = f"Patches {', '.join(more)} and {last} of {len(found)} hit" if more else f"Patch {last} hits"
        where = f" {who} a {FINDINGS[finding]} lesion."
    terms = ", ".join(f"{term} {value:.3g}" for term, value in sorted(now.losses.items()))
    return said + where + (f" Training loss: {terms}." if terms else "")
