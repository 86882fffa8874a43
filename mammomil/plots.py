"""Pictures of predictions and of training runs.

Only matplotlib's object interface is used: every function returns a `Figure`, draws without a display, and
leaves `pyplot` alone. Colours are those of Okabe and Ito, which colour-blind people can tell apart: benign
is blue, malignant is vermillion; scores are drawn in viridis.
"""

import json
import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mammomil.files import InputError, atomic_path
from mammomil.panels import (
    BOX_COLOUR,
    COLOURS,
    DPI,
    GAP,
    HEAD,
    MARGIN,
    STRIP,
    WIDTH,
    PixelBox,
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
from mammomil.types import FINDINGS, Prediction

CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MOST = 16  # patches shown
_HALO = [withStroke(linewidth=3, foreground="black")]


def prediction_panel(
    pixels: Float[np.ndarray, "h w"],
    prediction: Prediction,
    truth: Mapping[str, Float[np.ndarray, "n 4"]] | None = None,
    saliency_max: float = 1.0,
) -> Figure:
    """Draw what a model says of an image: where it looked, its map for each finding, and its patches.

    Patches are numbered by attention, 1 being the largest, or by score where there is none; at most 16 are
    shown. Parts the model does not have are left out.

    Args:
        pixels: the image as it is stored in its file.
        prediction: what the model says of it, in pixels of the file.
        truth: boxes known from the image's labels, xyxy in pixels of the file, by finding; drawn dashed.
        saliency_max: value at the top of the maps' colour scale. All panels drawn with one value compare.

    Returns:
        A figure 1536 pixels wide at most when saved at `DPI`.
    """
    shown = reduce_pixels(pixels, 1000)
    window = grey_window(shown)
    order = _by_attention(prediction)[:_MOST]
    seen = _seen(prediction, pixels.shape)
    part = reduce_pixels(pixels[seen[1] : seen[3], seen[0] : seen[2]], 1000)
    maps = [] if prediction.saliency is None else list(zip(FINDINGS, prediction.saliency, strict=True))
    slot, tall = slot_size(pixels.shape, STRIP if maps else 0.0)
    width = WIDTH if maps or len(order) else slot + 2 * MARGIN
    columns = min(max(len(order), 1), 8)
    side = min(1.65, (width - 0.7 - MARGIN) / columns - GAP)
    row = side + 0.85
    rows = math.ceil(len(order) / columns)
    height = HEAD + tall + 0.45 + rows * row + (0.05 if rows else 0)
    sheet = Sheet((width, height), DPI, facecolor="white")
    write_heading(sheet, prediction)
    ax, whole = sheet.place(MARGIN, HEAD, slot, tall), (0, 0, pixels.shape[1], pixels.shape[0])
    show_part(ax, shown, whole, window)
    draw_truth(ax, truth or {})
    _draw_boxes(ax, prediction, order)
    if seen != whole:
        outline(ax, seen, edgecolor="0.7", linewidth=1, linestyle=":")
        ax.set_xlabel("dotted: the part the maps cover", fontsize=9)
    if len(order):
        ax.set_title(f"Image with its {len(order)} patches", fontsize=11)
    for number, (finding, saliency) in enumerate(maps, 1):
        ax = sheet.place(MARGIN + number * (slot + GAP), HEAD, slot, tall)
        show_part(ax, part, seen, window)
        _overlay(ax, saliency, prediction.map_box, seen, saliency_max)
        ax.set_title(f"Map of {finding}, highest {saliency.max():.2f}", fontsize=11, color=COLOURS[finding])
        draw_truth(ax, truth or {}, explain=True)
    if maps:
        colour_bar(sheet, tall, "saliency", Normalize(0, saliency_max))
    weight = prediction.attention
    for place, k in enumerate(order):
        down, across = divmod(place, columns)
        left, top = 0.85 + across * (side + GAP), HEAD + tall + 0.55 + down * row
        title = f"{place + 1}" if weight is None else f"{place + 1}: attention {weight[k]:.2f}"
        show_crop(sheet.place(left, top, side, side), pixels, prediction.boxes[k], title, window)
        draw_scores(sheet.place(left, top + side + 0.06, side, 0.34), prediction.scores[k], first=across == 0)
    if len(order):
        words = "Bars: score of the patch for each finding, from 0 to 1"
        words += ", the mean of the finding's map over it." if maps else "."
        sheet.write(0.85, height - 0.12, words, fontsize=8, color="0.35")
    return sheet


def save_figure(figure: Figure, path: str | Path) -> tuple[int, int]:
    """Write a figure as PNG, whole or not at all, and return its width and height in pixels."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    with Image.open(path) as saved:
        return saved.size


def alt_text(prediction: Prediction) -> str:
    """Say in one to three plain sentences what a panel shows, for people who do not see it."""
    p, side = prediction, {"L": "left ", "R": "right "}.get(prediction.laterality, "")
    findings = " and ".join(f"{value:.2f} for {name}" for name, value in zip(FINDINGS, p.prob, strict=True))
    kind = f"{side}{p.view} mammogram".replace("  ", " ").strip()
    text = f"{kind[0].upper()}{kind[1:]} {p.image_id}: the model {p.model} gives {findings}."
    c, regions = int(np.argmax(p.prob)), p.ranks_regions
    weight = p.scores[:, c] if regions else p.attention
    if weight is not None and len(weight):
        k = int(np.argmax(weight))
        x, y = (p.boxes[k, :2] + p.boxes[k, 2:]) / 2
        place = f"centred at column {x:.0f}, row {y:.0f}"
        if not regions:
            text += f" The largest attention, {weight[k]:.2f}, is on a patch {place}."
        elif weight[k] > 0:
            text += f" {ranked_words(p, c)}; the first, {place}, scores {say_score(float(weight[k]))}."
        else:
            text += f" {ranked_words(p, c)}; none scores above 0."
    return text


def ranked_words(prediction: Prediction, c: int) -> str:
    """Say how many of an image's regions are ranked for finding `c`."""
    p, m = prediction, len(prediction.boxes)
    count = "All" if p.selected is None else f"{p.selected[:, c].sum()} of"
    return f"{count} {m} region{'s' * (m != 1)} ranked for {FINDINGS[c]}"


def learning_curve(metrics_jsonl: str | Path) -> Figure:
    """Draw the loss terms and the validation AUC of each epoch of a training run.

    Args:
        metrics_jsonl: the run's `metrics.jsonl`, one JSON object per epoch with `epoch` (from 0), `train`
            and, where the run was validated, `val`.

    Raises:
        InputError: the file is missing, or a line of it is no epoch.
    """
    epochs = read_epochs(Path(metrics_jsonl))
    number = [epoch["epoch"] + 1 for epoch in epochs]
    figure = Figure(figsize=(10, 4), dpi=DPI, facecolor="white", layout="constrained")
    loss, auc = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 30 else None
    total = [sum(value or 0 for value in epoch["train"].values()) for epoch in epochs]
    loss.plot(number, total, color="black", marker=marker, ms=3, label="training: sum of terms")
    terms = dict.fromkeys(name for epoch in epochs for name in epoch["train"])
    for term, colour in zip(terms, cycle(CYCLE), strict=False):
        values = epoch_series(epochs, "train", term)
        loss.plot(number, values, color=colour, lw=1, marker=marker, ms=3, label=f"training: {term}")
    if any("loss" in epoch["val"] for epoch in epochs):
        values = epoch_series(epochs, "val", "loss")
        loss.plot(number, values, color="black", ls="--", label="validation: sum of terms")
    loss.set(title="Loss", xlabel="epoch", ylabel="loss per image")
    styles = {"auc": ("-", 2, ""), "auc_loc": ("--", 1, ", map only"), "auc_mil": (":", 1, ", patches only")}
    lowest = 0.43
    for finding in FINDINGS:
        for name, (style, wide, words) in styles.items():
            values = epoch_series(epochs, "val", f"{name}_{finding}")
            if not np.isnan(values).all():
                look = {"color": COLOURS[finding], "ls": style, "lw": wide, "marker": marker, "ms": 3}
                auc.plot(number, values, label=finding + words, **look)
                lowest = min(lowest, np.nanmin(values))
    auc.axhline(0.5, color="0.6", lw=1, zorder=0)
    words = "chance" if len(auc.lines) > 1 else "chance (this run was not validated)"
    auc.text(0.02, 0.505, words, fontsize=8, color="0.4", transform=auc.get_yaxis_transform())
    auc.set(title="Validation, one score per image", xlabel="epoch", ylabel="area under the ROC curve")
    auc.set_ylim(lowest - 0.03, 1.02)
    best = [n for n, epoch in zip(number, epochs, strict=True) if epoch.get("best")]
    for ax in (loss, auc):
        ax.set_xlim(number[0] - 0.5, number[-1] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
        if best:
            ax.axvline(best[-1], color="0.4", linewidth=1, linestyle="-.", label=f"best epoch: {best[-1]}")
        if len(ax.get_legend_handles_labels()[0]):
            ax.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`: one dict per epoch, with dicts `train`, `val` and `train_figures`.

    Raises:
        InputError: the file is missing or empty, or a line of it is no epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read this file ({error}). Name a run's metrics.jsonl.") from error
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
            needed = {"epoch": int(epoch["epoch"]), "train": dict(epoch["train"])}
            others = {name: dict(epoch.get(name) or {}) for name in ("val", "train_figures")}
            epochs.append({**epoch, **needed, **others})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: no epoch of a training run ({error!r}). Name the metrics.jsonl that "
                "`mammomil train` wrote."
            ) from error
    if not epochs:
        raise InputError(f"{path}: holds no epoch yet. Wait for the first epoch to end.")
    return epochs


def epoch_series(epochs: list[dict[str, Any]], part: str, name: str) -> np.ndarray:
    """Return one figure of all epochs, NaN where an epoch does not have it."""
    return np.array([epoch[part].get(name) for epoch in epochs], dtype=float)  # None becomes NaN


def _by_attention(prediction: Prediction) -> list[int]:
    """Return patch numbers, largest attention first; without attention, largest score first."""
    p = prediction
    weight = p.scores.max(1, initial=-math.inf) if p.attention is None else p.attention
    return [int(k) for k in np.argsort(-weight, kind="stable")]


def _seen(prediction: Prediction, shape: tuple[int, ...]) -> PixelBox:
    """Return the part of the image under the maps, in whole pixels xyxy; all of it where there is no map."""
    if prediction.map_box is None:
        return 0, 0, shape[1], shape[0]
    x0, y0, x1, y1 = np.clip(prediction.map_box, 0, [shape[1], shape[0]] * 2)
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _draw_boxes(ax: Axes, prediction: Prediction, order: list[int]) -> None:
    for place, k in reversed(list(enumerate(order, 1))):  # the most important one last, on top
        box = prediction.boxes[k]
        outline(ax, box, edgecolor=BOX_COLOUR, linewidth=1.4, path_effects=_HALO)
        ax.annotate(
            str(place), box[:2], (3, -3), textcoords="offset points", va="top", fontsize=9, color=BOX_COLOUR,
            fontweight="bold", path_effects=_HALO, annotation_clip=False,
        )  # fmt: skip


def _overlay(ax: Axes, saliency: np.ndarray, box: np.ndarray | None, seen: PixelBox, top: float) -> None:
    x0, y0, x1, y1 = seen if box is None else box
    look = {"cmap": score_colours(), "vmin": 0, "vmax": top, "interpolation": "nearest"}
    ax.imshow(saliency, extent=(x0, x1, y1, y0), **look)
    ax.set(xlim=(seen[0], seen[2]), ylim=(seen[3], seen[1]))  # imshow has moved them to the whole map
