"""Parts that the pictures of predictions are made of.

All panels are a `Sheet` with one heading and layout, so that panels of one image by several models compare.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mammomil.types import FINDINGS, Prediction

PixelBox = tuple[int, int, int, int]
COLOURS = {"benign": "#0072B2", "malignant": "#D55E00"}
BOX_COLOUR = "#F0E442"  # yellow: neither finding's colour, and visible on dark and on dense tissue
DPI = 120  # 12.8 inches are 1536 pixels
WIDTH, MARGIN, GAP, HEAD, STRIP = 12.8, 0.3, 0.16, 1.35, 0.55  # inches; the strip holds the colour bar


class Sheet(Figure):
    """A figure with parts placed in inches from its top left: layout engines would take most of the time."""

    def place(self, left: float, top: float, wide: float, high: float) -> Axes:
        """Add axes."""
        width, height = self.get_size_inches()
        return self.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write a line of text; file names may hold dollar signs, which would start a formula."""
        width, height = self.get_size_inches()
        self.text(left / width, 1 - top / height, text, va="baseline", parse_math=False, **style)


def slot_size(shape: tuple[int, ...], strip: float = STRIP) -> tuple[float, float]:
    """Return width and height in inches of each of three pictures of an image beside a strip."""
    slot = (WIDTH - 2 * MARGIN - strip - 2 * GAP) / 3
    return slot, float(np.clip(slot * shape[0] / shape[1], 2.4, 5.8))


def reduce_pixels(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Average whole blocks of pixels until no side is much longer than `longest`."""
    step = max(1, round(max(pixels.shape) / longest))
    if step == 1:
        return pixels
    # Pillow averages the cut blocks at the right and bottom border over the pixels they have.
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels, np.float32)).reduce(step))


def write_heading(sheet: Sheet, p: Prediction) -> None:
    """Write the image, the model and its probabilities above all pictures."""
    width = sheet.get_figwidth()
    wide = width == WIDTH
    sheet.write(MARGIN, 0.38, _text(p.image_id, int(width * 7.5)), fontsize=14, fontweight="bold")
    side = {"L": "left", "R": "right"}.get(p.laterality, "side unknown")
    line = f"{side}, {_text(p.view, 20) or 'view unknown'}. Model {_text(p.model, 60)}."
    sheet.write(MARGIN, 0.64, line, fontsize=10, color="0.3")
    left, style = MARGIN, {"fontsize": 13 if wide else 10, "fontweight": "bold"}
    for c, finding in enumerate(FINDINGS):
        sheet.write(left, 0.96, f"{finding} {p.prob[c]:.2f}", color=COLOURS[finding], **style)
        names = {"loc": "map", "mil": "patches", "fusion": "both"}
        parts = [f"{names.get(name, name)} {values[c]:.2f}" for name, values in p.parts.items()]
        if wide and parts:
            sheet.write(left + (1.5, 1.85)[c], 0.96, f"({', '.join(parts)})", fontsize=10, color="0.3")
        left += 4.2 if wide else 1.35
    sheet.write(left, 0.96, f"normal {p.p_normal:.2f}", color="0.25", **style)


def grey_window(shown: np.ndarray) -> dict[str, float]:
    """Return the values drawn black and white; a few bright pixels, such as markers, do not count."""
    tissue = shown[shown > shown.min()]
    low = float(shown.min())
    return {"vmin": low, "vmax": float(np.percentile(tissue, 99.8)) if tissue.size else low + 1}


def show_part(ax: Axes, shown: np.ndarray, part: PixelBox, window: dict[str, float]) -> None:
    """Draw a part of the image; coordinates are pixel edges of the file, as in boxes."""
    x0, y0, x1, y1 = part
    ax.imshow(shown, cmap="gray", extent=(x0, x1, y1, y0), **window)
    ax.set(xticks=[], yticks=[], facecolor="black")


def outline(ax: Axes, box: Any, **style: Any) -> None:
    """Draw the border of a box, xyxy."""
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))


def draw_truth(ax: Axes, truth: Mapping[str, np.ndarray], explain: bool = False) -> None:
    """Draw known findings, dashed in the colour of their kind, and say so under the picture if asked."""
    for finding, boxes in truth.items():
        for box in boxes:
            outline(ax, box, edgecolor="white", linewidth=3)
            outline(ax, box, edgecolor=COLOURS[finding], linewidth=2, linestyle="--")
    if explain and any(len(boxes) for boxes in truth.values()):
        ax.set_xlabel("dashed: known findings, in the colour of their kind", fontsize=9)


def score_colours() -> ListedColormap:
    """Return viridis that fades out towards low scores, so that the image shows through."""
    colours = colormaps["viridis"](np.linspace(0, 1, 256))
    colours[:, 3] = 0.8 * np.linspace(0, 1, 256) ** 0.8
    return ListedColormap(colours)


def colour_bar(sheet: Sheet, tall: float, title: str, norm: Normalize, **ticks: Any) -> None:
    """Explain the colours of pictures `tall` inches high, at the right of the sheet."""
    ax = sheet.place(WIDTH - MARGIN - 0.42, HEAD + 0.15 * tall, 0.14, 0.7 * tall)
    sheet.colorbar(ScalarMappable(norm, score_colours()), cax=ax, **ticks)
    ax.set_facecolor("black")
    ax.set_title(title, fontsize=9, x=0, ha="left")  # centred, it would reach into the picture
    ax.tick_params(labelsize=8)


def show_crop(ax: Axes, pixels: np.ndarray, box: Any, title: str, window: dict[str, float]) -> None:
    """Draw the part of a box that lies in the image."""
    low, high = np.clip([box[:2], box[2:]], 0, pixels.shape[::-1])
    (x0, y0), (x1, y1) = np.floor(low).astype(int), np.ceil(high).astype(int)
    crop = pixels[y0:y1, x0:x1]
    if crop.size:
        ax.imshow(reduce_pixels(crop, 300), cmap="gray", extent=(x0, x1, y1, y0), **window)
    else:
        ax.text(0.5, 0.5, "outside\nthe image", transform=ax.transAxes, ha="center", va="center", fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.set_anchor("S")
    ax.set_title(title, fontsize=10, pad=4)


def draw_scores(ax: Axes, scores: np.ndarray, first: bool) -> None:
    """Draw one bar per finding, on a scale from 0 to 1 with room for the number."""
    colours = [COLOURS[finding] for finding in FINDINGS]
    rows = np.arange(len(FINDINGS))
    ax.barh(rows, np.ones(len(FINDINGS)), color="0.9", height=0.7)
    ax.barh(rows, scores, color=colours, height=0.7)
    for row, score in zip(rows, scores, strict=True):
        ax.text(1.04, row, say_score(float(score)), va="center", fontsize=8)
    ax.set(xlim=(0, 1.35), ylim=(len(FINDINGS) - 0.5, -0.5), xticks=[])
    ax.set_yticks(rows if first else [], FINDINGS if first else [], fontsize=8)
    ax.tick_params(length=0)
    for label, colour in zip(ax.get_yticklabels(), colours, strict=False):
        label.set_color(colour)
    ax.spines[:].set_visible(False)


def say_score(score: float) -> str:
    """Write a score with two decimals, so that a small one is not taken for none."""
    return "0" if score == 0 else "<0.01" if score < 0.005 else f"{score:.2f}"


def _text(text: str, limit: int = 90) -> str:
    """Return text that matplotlib's own font can draw: control characters and rare scripts become `?`."""
    plain = "".join(c if c.isprintable() and ord(c) < 0x0530 else "?" for c in text)
    return plain if len(plain) <= limit else plain[: limit // 2 - 1] + "…" + plain[-limit // 2 :]
