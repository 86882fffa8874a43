"""Pictures of models that rank all regions of an image, such as the dual-branch network.

They look like those of `plots.prediction_panel`, so that panels of one image by several models compare.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from mammomil.panels import (
    COLOURS,
    DPI,
    GAP,
    HEAD,
    MARGIN,
    WIDTH,
    Sheet,
    colour_bar,
    draw_scores,
    draw_truth,
    grey_window,
    outline,
    reduce_pixels,
    say_score,
    score_colours,
    show_crop,
    show_part,
    slot_size,
    write_heading,
)
from mammomil.plots import ranked_words
from mammomil.types import FINDINGS, Prediction

_MOST = 3  # regions per finding shown as boxes and crops, as in the paper's Fig. 4
_LINES = {"benign": 1.2, "malignant": 2.6}  # widths: the thin line shows on the thick one
_DIMMED = (0.0, 0.0, 0.0, 0.6)
_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
_ROW, _PLANE = 2.5, 1.65  # inches: the height of a row of patches in `prediction_panel`, and of one patch


def region_panel(
    pixels: Float[np.ndarray, "h w"],
    prediction: Prediction,
    truth: Mapping[str, Float[np.ndarray, "n 4"]] | None = None,
) -> Figure:
    """Draw what a model says of an image and its regions: the best, those it ranked, and the image's point.

    The first picture has the three regions of each finding with the highest scores above 0, marked B1 to B3
    and M1 to M3. The next two leave the regions that were selected for a finding (the dual-branch paper's
    Eq. 4) in the light and colour each place by the highest score of a selected region over it (Eq. 13).
    Below are the best regions enlarged, and the image's point on the plane of its two probabilities (Fig. 6).

    Args:
        pixels: the image as it is stored in its file.
        prediction: what the model says of it, in pixels of the file.
        truth: boxes known from the image's labels, xyxy in pixels of the file, by finding; drawn dashed.

    Returns:
        A figure 1536 pixels wide when saved at `DPI`.
    """
    p, known = prediction, truth or {}
    shown = reduce_pixels(pixels, 1000)
    window, whole = grey_window(shown), (0, 0, pixels.shape[1], pixels.shape[0])
    best = {finding: best_regions(p, c) for c, finding in enumerate(FINDINGS)}
    norm = PowerNorm(0.5, 0, 1)  # the scores of a finding add up to 1 at most, so most of them are small
    slot, tall = slot_size(pixels.shape)
    sheet = Sheet((WIDTH, HEAD + tall + 0.5 + _ROW), DPI, facecolor="white")
    write_heading(sheet, p)
    ax = sheet.place(MARGIN, HEAD, slot, tall)
    show_part(ax, shown, whole, window)
    draw_truth(ax, known, explain=True)
    _draw_best(ax, p, best, whole)
    ax.set_title("Best regions: B benign, M malignant" if any(best.values()) else "Image", fontsize=10)
    for c, finding in enumerate(FINDINGS):
        ax = sheet.place(MARGIN + (c + 1) * (slot + GAP), HEAD, slot, tall)
        show_part(ax, shown, whole, window)
        colours = score_colours().with_extremes(bad=_DIMMED)
        scores = score_map(p, c, shown.shape, pixels.shape)
        ax.imshow(scores, colours, norm, interpolation="nearest", extent=ax.images[0].get_extent())
        words = f"{ranked_words(p, c)}, best {say_score(float(p.scores[:, c].max(initial=0)))}"
        ax.set_title(words, fontsize=10, color=COLOURS[finding])
        ax.set_xlabel("coloured by score" + "; dark: not ranked" * (p.selected is not None), fontsize=9)
        draw_truth(ax, known)
    colour_bar(sheet, tall, "score", norm, ticks=_TICKS)
    _draw_strip(sheet, HEAD + tall + 0.55, pixels, p, best, window)
    _draw_plane(sheet.place(WIDTH - MARGIN - _PLANE, HEAD + tall + 0.55, _PLANE, _PLANE), p)
    return sheet


def best_regions(prediction: Prediction, c: int) -> list[int]:
    """Return the numbers of the regions with the highest scores above 0 for finding `c`, at most three."""
    scores = prediction.scores[:, c]
    return [int(k) for k in np.argsort(-scores, kind="stable")[:_MOST] if scores[k] > 0]


def score_map(
    prediction: Prediction, c: int, shape: tuple[int, ...], size: tuple[int, ...]
) -> Float[np.ndarray, "h w"]:
    """Return for each cell the highest score for finding `c` of the ranked regions over its centre.

    Args:
        prediction: scores, and regions in pixels of the file.
        c: number of the finding.
        shape: rows and columns of cells, which cover the image.
        size: height and width of the image in pixels.

    Returns:
        Scores, NaN where no ranked region is.
    """
    p = prediction
    cells = np.full(shape, np.nan)
    scale = np.tile(np.array(shape[::-1]) / size[::-1], 2)
    edges = np.ceil(p.boxes * scale - 0.5).clip(0).astype(int)  # (m, 4): the first centre not before an edge
    for k in np.argsort(p.scores[:, c]):  # the highest last, on top
        if p.selected is None or p.selected[k, c]:
            x0, y0, x1, y1 = edges[k]
            cells[y0:y1, x0:x1] = p.scores[k, c]
    return cells


def _draw_best(ax: Axes, p: Prediction, best: Mapping[str, list[int]], whole: tuple[int, ...]) -> None:
    """Draw the best regions, thin lines over thick ones; the marks of the findings take opposite corners."""
    boxes = [
        (finding, place, k)
        for finding in reversed(FINDINGS)
        for place, k in reversed(list(enumerate(best[finding], 1)))  # the best one last, on top
    ]
    for finding, _, k in boxes:
        halo = [withStroke(linewidth=_LINES[finding] + 1.2, foreground="white")]
        outline(ax, p.boxes[k], edgecolor=COLOURS[finding], linewidth=_LINES[finding], path_effects=halo)
    for finding, place, k in boxes:
        x0, y0, x1, y1 = np.clip(p.boxes[k], 0, whole[2:] * 2)
        corner, shift, across, up = {
            "benign": ((x0, y0), (3, -3), "left", "top"),
            "malignant": ((x1, y1), (-3, 3), "right", "bottom"),
        }[finding]
        ax.annotate(
            f"{finding[0].upper()}{place}", corner, shift, textcoords="offset points", ha=across, va=up,
            fontsize=8, color=COLOURS[finding], fontweight="bold", annotation_clip=False,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _draw_strip(
    sheet: Sheet,
    top: float,
    pixels: np.ndarray,
    p: Prediction,
    best: Mapping[str, list[int]],
    window: dict[str, float],
) -> None:
    """Draw the best regions enlarged, with a bar per score, left of the plane."""
    left, labelled = 0.85, False
    side = (WIDTH - MARGIN - _PLANE - 0.75 - left) / (2 * _MOST) - GAP
    for c, finding in enumerate(FINDINGS):
        start = left + c * (_MOST * (side + GAP) + GAP)
        for place, k in enumerate(best[finding]):
            across = start + place * (side + GAP)
            ax = sheet.place(across, top + _PLANE - side, side, side)
            show_crop(ax, pixels, p.boxes[k], f"{finding[0].upper()}{place + 1}", window)
            ax.title.set_color(COLOURS[finding])
            ax.spines[:].set(color=COLOURS[finding], linewidth=_LINES[finding])
            draw_scores(sheet.place(across, top + _PLANE + 0.06, side, 0.34), p.scores[k], not labelled)
            labelled = True
        if not best[finding]:
            sheet.write(start, top + 1, f"No region scores above 0\nfor {finding}.", fontsize=9, color="0.35")
    if labelled:
        words = "Bars: score of the region for each finding, from 0 to 1."
        if np.allclose(p.scores.sum(0), p.prob, atol=0.02):  # Eq. 3, but for rounding
            words += " The scores of all regions add up to the image's probability."
        sheet.write(left, sheet.get_figheight() - 0.12, words, fontsize=8, color="0.35")


def _draw_plane(ax: Axes, p: Prediction) -> None:
    """Draw the image's point between the corners of normal, benign, malignant, and both."""
    for x, y, words in ((0.1, 0.1, "N"), (0.1, 0.9, "B"), (0.9, 0.1, "M"), (0.9, 0.9, "MB")):
        ax.text(x, y, words, ha="center", va="center", fontsize=10, color="0.65")
    ax.plot(p.prob[1], p.prob[0], "o", color="black", markersize=7, markeredgecolor="white")
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.12, 1.12), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    ax.tick_params(labelsize=8)
    ax.set_xlabel("p(malignant)", fontsize=8, color=COLOURS["malignant"])
    ax.set_ylabel("p(benign)", fontsize=8, color=COLOURS["benign"])
    ax.set_title("Probability plane", fontsize=10, pad=4)
