"""From a map to a probability: slide from the mean of all cells to the largest one, and see which count."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mammomil.cache import CanvasFindings
from mammomil.explorer import Control, Explorer, choice, slider, toggle
from mammomil.files import InputError
from mammomil.gmic import GMIC
from mammomil.pooling import top_k_mask, top_t_count, top_t_pool
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, PINK, Scene
from mammomil.types import FINDINGS

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)  # of the cells; 0 stands for one cell
# Sizes in the scene: the mammogram, and beside it the chart of all cells by rank.
TALL, WIDTH, LOW, HIGH, BARS = 380, 520, 330, 90, 60
COLOURS = dict(zip(FINDINGS, (BENIGN, MALIGNANT), strict=True))


def saliency_explorer(
    model: GMIC,
    images: Float[Tensor, "b 1 H W"],
    names: Sequence[str] | None = None,
    boxes: Sequence[CanvasFindings] | None = None,
) -> Explorer:
    """Explore f_agg of GMIC (checklist G3, reading G-c): which cells of the map make the probability.

    The model runs once; each picture pools its map with `top_t_pool`. Cells are ranked by their logits, as
    several may share the value 1 after the sigmoid.

    Args:
        model: a GMIC in evaluation mode.
        images: standardised pixels; two or more can be chosen from.
        names: a few words for each image.
        boxes: where the lesions of each image are, `MammogramDataset.findings_on_canvas`; the model is not
            told.

    Raises:
        InputError: other than one name and one set of boxes for each image.
    """
    names = [f"image {i + 1}" for i in range(len(images))] if names is None else list(names)
    for what, given in (("names", names), ("sets of boxes", images if boxes is None else boxes)):
        if len(given) != len(images):
            raise InputError(f"{len(given)} {what} for {len(images)} images. Give one for each.")
    with torch.inference_mode():
        output = model(images)
        logits, saliency = output.saliency_logits.cpu(), output.saliency.cpu()
        shown = F.avg_pool2d(images, math.ceil(images.shape[-2] / 480))[:, 0].cpu().numpy()
    height, width = saliency.shape[-2:]
    wide = TALL * images.shape[-1] / images.shape[-2]
    scale = TALL / images.shape[-2]

    def draw(
        share: float, image: int = 0, finding: int = 1, overlay: bool = True, truth: bool = False
    ) -> Scene:
        count = top_t_count(height, width, share)
        values = saliency[image, finding]
        y_loc = top_t_pool(values[None, None], count / values.numel()).item()
        chosen = top_k_mask(logits[image, finding].flatten(), count).view(height, width)
        found = None if boxes is None else _touching(boxes[image], finding, chosen, images.shape[-2:])
        scene = Scene(WIDTH, TALL)
        scene.words = _words(names[image], finding, share, chosen, values, y_loc, found)
        if not overlay:
            scene.words += " The map is hidden."
        low, high = float(shown[image].min()), float(shown[image].max())
        scene.image(shown[image], 0, 0, wide, TALL, low=low, high=high, smooth=True)
        if overlay:
            cells = values.numpy().astype(float)
            alpha = np.minimum(cells, 0.75)
            scene.image(cells, 0, 0, wide, TALL, colours="viridis", low=0, high=1, alpha=alpha)
        scene.image(_outline(chosen.numpy()), 0, 0, wide, TALL)
        if boxes is not None and truth:
            scene.words += _lesions(boxes[image])
            for box, malignant in zip(boxes[image].boxes.tolist(), boxes[image].malignant, strict=True):
                x0, y0, x1, y1 = (scale * edge for edge in box)
                colour = COLOURS[FINDINGS[int(malignant)]]
                scene.rect(x0 - 3, y0 - 3, x1 - x0 + 6, y1 - y0 + 6, colour, stroke=3, dashed=True)
        _draw_ranks(scene, wide + 56, values.flatten().numpy(), count, y_loc, finding, share)
        return scene

    controls: list[Control] = [slider("share", "Pooled", SHARES, [_say(s) for s in SHARES], start=0.02)]
    if len(images) > 1:
        controls.append(choice("image", "Image", {name: i for i, name in enumerate(names)}, start=0))
    controls.append(choice("finding", "Map of", {name: c for c, name in enumerate(FINDINGS)}, start=1))
    controls.append(toggle("overlay", "Map over the mammogram", start=True))
    if boxes is not None:
        controls.append(toggle("truth", "True lesions"))
    about = "" if boxes is None else " Dashed boxes: malignant lesions orange, benign ones blue."
    note = (
        "Pink lines go round the cells that are pooled. On the right all cells stand in a row, the highest "
        f"first, on a logarithmic axis; the coloured ones are pooled, and the line is their mean.{about}"
    )
    return Explorer("From the mean of all cells to the largest one", controls, draw, note)


def _say(share: float) -> str:
    ends = {1.0: "all cells (GAP)", 0.0: "one cell (GMP)"}
    return ends.get(share, f"{share:.0%} of the cells")


def _touching(
    lesions: CanvasFindings, finding: int, chosen: Bool[Tensor, "h w"], size: tuple[int, ...]
) -> int | None:
    """Count the chosen cells whose centre lies in a lesion of the finding; None where there is none."""
    mine = lesions.boxes[lesions.malignant == bool(finding)]
    if not len(mine):
        return None
    cells = chosen.nonzero().flip(1) + 0.5  # (n, xy)
    centres = cells * torch.tensor([size[1] / chosen.shape[1], size[0] / chosen.shape[0]])
    inside = (centres[:, None] >= mine[:, :2]) & (centres[:, None] < mine[:, 2:])
    return int(inside.all(-1).any(1).sum())


def _lesions(lesions: CanvasFindings) -> str:
    """Say how many lesions the dashed boxes show."""
    malignant = int(lesions.malignant.sum())
    benign = len(lesions.malignant) - malignant
    if not malignant + benign:
        return " There is no lesion to show."
    return f" Dashed boxes show {malignant} malignant and {benign} benign lesion{'s' * (benign != 1)}."


def _outline(chosen: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Return colours (8 h, 8 w, 4), clear but for a line inside the border of the chosen cells."""
    fine = np.pad(chosen.repeat(8, 0).repeat(8, 1), 1)
    inner = fine[:-2, 1:-1] & fine[2:, 1:-1] & fine[1:-1, :-2] & fine[1:-1, 2:]
    line = fine[1:-1, 1:-1] & ~inner
    # A second pixel, so that the line is still seen when the picture shrinks to a phone.
    thick = np.pad(line, 1)
    near = thick[:-2, 1:-1] | thick[2:, 1:-1] | thick[1:-1, :-2] | thick[1:-1, 2:] | line
    colour = tuple(int(PINK[i : i + 2], 16) for i in (1, 3, 5))
    picture = np.zeros((*line.shape, 4), np.uint8)
    picture[near & fine[1:-1, 1:-1]] = (*colour, 255)
    return picture


def _draw_ranks(
    scene: Scene,
    left: float,
    values: Float[np.ndarray, "n"],
    count: int,
    y_loc: float,
    finding: int,
    share: float,
) -> None:
    """Draw the cells by rank, the pooled ones filled, with a line at their mean."""
    colour, right = COLOURS[FINDINGS[finding]], WIDTH - 8
    scene.text(left - 28, 20, f"{count} of {len(values)} cells", size=17, bold=True)
    scene.text(left - 28, 44, _say(share), size=17)
    scene.text(left - 28, 72, f"y_loc = {y_loc:.2f}", size=20, bold=True, colour=colour)
    ranked = np.sort(values)[::-1]
    # Bar i covers the ranks from edges[i] to edges[i + 1], rank 1 being at the left end.
    edges = len(values) ** (np.arange(BARS + 1) / BARS)
    bars = ranked[np.minimum(np.floor(edges[:-1]).astype(int) - 1, len(values) - 1)]
    # The last pooled cell fills its place up to the next rank.
    pooled = edges[:-1] < min(count + 1, len(values))
    levels = (np.arange(120)[::-1, None] + 0.5) / 120
    under = levels < bars
    rgba = np.zeros((*under.shape, 4), np.uint8)
    grey, mine = (tuple(int(name[i : i + 2], 16) for i in (1, 3, 5)) for name in (GREY, colour))
    rgba[[0, 60, 119]] = (*grey, 150)  # lines at 1, one half and 0; as marks they would be in every frame
    rgba[under & ~pooled] = (*grey, 130)
    rgba[under & pooled] = (*mine, 255)
    scene.image(rgba, left, HIGH, right - left, LOW - HIGH)
    for value, words in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        scene.text(left - 5, LOW - value * (LOW - HIGH) + 5, words, size=15, anchor="end")
    for rank in (*(r for r in (1, 10, 100) if r < len(values)), len(values)):
        x = left + (right - left) * math.log(rank) / math.log(len(values))
        scene.text(x, LOW + 21, str(rank), size=15, anchor="end" if rank == len(values) else "middle")
    scene.text((left + right) / 2, LOW + 44, "rank of the cell", size=15, anchor="middle")
    y = LOW - y_loc * (LOW - HIGH)
    scene.line([(left, y), (right, y)], INK, stroke=2.5)


def _words(
    name: str,
    finding: int,
    share: float,
    chosen: Bool[Tensor, "h w"],
    values: Float[Tensor, "h w"],
    y_loc: float,
    found: int | None,
) -> str:
    """Say what a picture shows."""
    count, total = int(chosen.sum()), chosen.numel()
    pooled = values[chosen]
    which = "One cell is" if count == 1 else f"{count} of {total} cells are"
    span = f"{pooled.max():.2f}" if count == 1 else f"from {pooled.max():.2f} down to {pooled.min():.2f}"
    words = f"{name}, map of {FINDINGS[finding]}. {which} pooled, {span}: y_loc is {y_loc:.2f}."
    if found is None:
        return words
    return f"{words} {found} of {count} lie{'s' if found == 1 else ''} in a {FINDINGS[finding]} lesion."
