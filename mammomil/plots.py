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
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from mammomil.files import InputError, atomic_path
from mammomil.types import FINDINGS, Prediction

PixelBox = tuple[int, int, int, int]
COLOURS = {"benign": "#0072B2", "malignant": "#D55E00"}
BOX_COLOUR = "#F0E442"  # yellow: neither finding's colour, and visible on dark and on dense tissue
DPI = 120  # 12.8 inches are 1536 pixels
_CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MOST = 16  # patches shown
_WIDTH, _MARGIN, _GAP = 12.8, 0.3, 0.16  # inches
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
    shown = _reduce(pixels, 1000)
    tissue = shown[shown > shown.min()]
    low = float(shown.min())
    window = {"vmin": low, "vmax": float(np.percentile(tissue, 99.8)) if tissue.size else low + 1}
    order = _by_attention(prediction)[:_MOST]
    seen = _seen(prediction, pixels.shape)
    part = _reduce(pixels[seen[1] : seen[3], seen[0] : seen[2]], 1000)
    maps = [] if prediction.saliency is None else list(zip(FINDINGS, prediction.saliency, strict=True))
    slots, strip = 1 + len(maps), 0.55 if maps else 0.0
    # Positions are computed here, in inches: matplotlib's layout engines would take most of the time.
    slot = (_WIDTH - 2 * _MARGIN - strip - 2 * _GAP) / 3
    width = _WIDTH if maps or len(order) else slot + 2 * _MARGIN
    tall = float(np.clip(slot * pixels.shape[0] / pixels.shape[1], 2.4, 5.8))
    columns = min(max(len(order), 1), 8)
    side = min(1.65, (width - 0.7 - _MARGIN) / columns - _GAP)
    row = side + 0.85
    head, rows = 1.35, math.ceil(len(order) / columns)
    height = head + tall + 0.45 + rows * row + (0.05 if rows else 0)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    _write_heading(figure, prediction, width, height)
    for number in range(slots):
        ax = axes(_MARGIN + number * (slot + _GAP), head, slot, tall)
        if number == 0:
            whole = (0, 0, pixels.shape[1], pixels.shape[0])
            _show_part(ax, shown, whole, window)
            _draw_truth(ax, truth or {})
            _draw_boxes(ax, prediction, order)
            if seen != whole:
                _outline(ax, seen, edgecolor="0.7", linewidth=1, linestyle=":")
                ax.set_xlabel("dotted: the part the maps cover", fontsize=9)
            if len(order):
                ax.set_title(f"Image with its {len(order)} patches", fontsize=11)
        else:
            finding, saliency = maps[number - 1]
            _show_part(ax, part, seen, window)
            _overlay(ax, saliency, prediction.map_box, seen, saliency_max)
            words = f"Map of {finding}, highest {saliency.max():.2f}"
            ax.set_title(words, fontsize=11, color=COLOURS[finding])
            _draw_truth(ax, truth or {})
            if any(len(boxes) for boxes in (truth or {}).values()):
                ax.set_xlabel("dashed: known findings, in the colour of their kind", fontsize=9)
    if maps:
        _colour_bar(figure, axes(width - _MARGIN - 0.42, head + 0.15 * tall, 0.14, 0.7 * tall), saliency_max)
    for place, k in enumerate(order):
        down, across = divmod(place, columns)
        left, top = 0.85 + across * (side + _GAP), head + tall + 0.55 + down * row
        _draw_patch(axes(left, top, side, side), pixels, prediction, k, place + 1, window)
        _draw_scores(axes(left, top + side + 0.06, side, 0.34), prediction.scores[k], first=across == 0)
    if len(order):
        words = "Bars: score of the patch for each finding, from 0 to 1"
        words += ", the mean of the finding's map over it." if maps else "."
        figure.text(0.85 / width, 0.12 / height, words, fontsize=8, color="0.35")
    return figure


def save_figure(figure: Figure, path: str | Path) -> tuple[int, int]:
    """Write a figure as PNG, whole or not at all, and return its width and height in pixels."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    with Image.open(path) as saved:
        return saved.size


def alt_text(prediction: Prediction) -> str:
    """Say in one or two plain sentences what a panel shows, for people who do not see it."""
    p, side = prediction, {"L": "left ", "R": "right "}.get(prediction.laterality, "")
    findings = " and ".join(f"{value:.2f} for {name}" for name, value in zip(FINDINGS, p.prob, strict=True))
    kind = f"{side}{p.view} mammogram".replace("  ", " ").strip()
    text = f"{kind[0].upper()}{kind[1:]} {p.image_id}: the model {p.model} gives {findings}."
    order = _by_attention(p)
    if p.attention is not None and len(order):
        x, y = (p.boxes[order[0], :2] + p.boxes[order[0], 2:]) / 2
        text += f" The largest attention, {p.attention[order[0]]:.2f}, is on a patch centred at column "
        text += f"{x:.0f}, row {y:.0f}."
    return text


def learning_curve(metrics_jsonl: str | Path) -> Figure:
    """Draw the loss terms and the validation AUC of each epoch of a training run.

    Args:
        metrics_jsonl: the run's `metrics.jsonl`, one JSON object per epoch with `epoch` (from 0), `train`
            and, where the run was validated, `val`.

    Raises:
        InputError: the file is missing, or a line of it is no epoch.
    """
    epochs = _read_epochs(Path(metrics_jsonl))
    number = [epoch["epoch"] + 1 for epoch in epochs]
    figure = Figure(figsize=(10, 4), dpi=DPI, facecolor="white", layout="constrained")
    loss, auc = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 30 else None
    total = [sum(value or 0 for value in epoch["train"].values()) for epoch in epochs]
    loss.plot(number, total, color="black", marker=marker, ms=3, label="training: sum of terms")
    terms = dict.fromkeys(name for epoch in epochs for name in epoch["train"])
    for term, colour in zip(terms, cycle(_CYCLE), strict=False):
        values = _series(epochs, "train", term)
        loss.plot(number, values, color=colour, lw=1, marker=marker, ms=3, label=f"training: {term}")
    if any("loss" in epoch["val"] for epoch in epochs):
        values = _series(epochs, "val", "loss")
        loss.plot(number, values, color="black", ls="--", label="validation: sum of terms")
    loss.set(title="Loss", xlabel="epoch", ylabel="loss per image")
    styles = {"auc": ("-", 2, ""), "auc_loc": ("--", 1, ", map only"), "auc_mil": (":", 1, ", patches only")}
    lowest = 0.43
    for finding in FINDINGS:
        for name, (style, wide, words) in styles.items():
            values = _series(epochs, "val", f"{name}_{finding}")
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


def _read_epochs(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read this file ({error}). Name a run's metrics.jsonl.") from error
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
            epochs.append({**epoch, "epoch": int(epoch["epoch"]), "train": dict(epoch["train"]),
                           "val": dict(epoch.get("val") or {})})  # fmt: skip
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: no epoch of a training run ({error!r}). Name the metrics.jsonl that "
                "`mammomil train` wrote."
            ) from error
    if not epochs:
        raise InputError(f"{path}: holds no epoch yet. Wait for the first epoch to end.")
    return epochs


def _series(epochs: list[dict[str, Any]], part: str, name: str) -> np.ndarray:
    """Return one figure of all epochs, NaN where an epoch does not have it."""
    return np.array([epoch[part].get(name) for epoch in epochs], dtype=float)  # None becomes NaN


def _by_attention(prediction: Prediction) -> list[int]:
    """Return patch numbers, largest attention first; without attention, largest score first."""
    p = prediction
    weight = p.scores.max(1, initial=-math.inf) if p.attention is None else p.attention
    return [int(k) for k in np.argsort(-weight, kind="stable")]


def _reduce(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Average whole blocks of pixels until no side is much longer than `longest`."""
    step = max(1, round(max(pixels.shape) / longest))
    if step == 1:
        return pixels
    # Pillow averages the cut blocks at the right and bottom border over the pixels they have.
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels, np.float32)).reduce(step))


def _seen(prediction: Prediction, shape: tuple[int, ...]) -> PixelBox:
    """Return the part of the image under the maps, in whole pixels xyxy; all of it where there is no map."""
    if prediction.map_box is None:
        return 0, 0, shape[1], shape[0]
    x0, y0, x1, y1 = np.clip(prediction.map_box, 0, [shape[1], shape[0]] * 2)
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _text(text: str, limit: int = 90) -> str:
    """Return text that matplotlib's own font can draw: control characters and rare scripts become `?`."""
    plain = "".join(c if c.isprintable() and ord(c) < 0x0530 else "?" for c in text)
    return plain if len(plain) <= limit else plain[: limit // 2 - 1] + "…" + plain[-limit // 2 :]


def _write_heading(figure: Figure, p: Prediction, width: float, height: float) -> None:
    def write(left: float, top: float, text: str, **style: Any) -> None:
        # File names may hold dollar signs, which would start a formula.
        figure.text(left / width, 1 - top / height, text, va="baseline", parse_math=False, **style)

    limit = int(width * 9)
    write(_MARGIN, 0.38, _text(p.image_id, limit), fontsize=14, fontweight="bold")
    side = {"L": "left", "R": "right"}.get(p.laterality, "side unknown")
    line = f"{side}, {_text(p.view, 20) or 'view unknown'}. Model {_text(p.model, 60)}."
    write(_MARGIN, 0.64, line, fontsize=10, color="0.3")
    left, size = _MARGIN, 13 if width == _WIDTH else 10
    for c, finding in enumerate(FINDINGS):
        write(
            left, 0.96, f"{finding} {p.prob[c]:.2f}", fontsize=size, fontweight="bold", color=COLOURS[finding]
        )
        names = {"loc": "map", "mil": "patches", "fusion": "both"}
        parts = [f"{names.get(name, name)} {values[c]:.2f}" for name, values in p.parts.items()]
        if width == _WIDTH and parts:
            write(left + (1.5, 1.85)[c], 0.96, f"({', '.join(parts)})", fontsize=10, color="0.3")
        left += 4.2 if width == _WIDTH else 1.35
    write(left, 0.96, f"normal {p.p_normal:.2f}", fontsize=size, fontweight="bold", color="0.25")


def _show_part(ax: Axes, shown: np.ndarray, part: PixelBox, window: dict[str, float]) -> None:
    """Draw a part of the image; coordinates are pixel edges of the file, as in boxes."""
    x0, y0, x1, y1 = part
    ax.imshow(shown, cmap="gray", extent=(x0, x1, y1, y0), **window)
    ax.set(xticks=[], yticks=[], facecolor="black")


def _outline(ax: Axes, box: Any, **style: Any) -> None:
    x0, y0, x1, y1 = box
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))


def _draw_boxes(ax: Axes, prediction: Prediction, order: list[int]) -> None:
    for place, k in reversed(list(enumerate(order, 1))):  # the most important one last, on top
        box = prediction.boxes[k]
        _outline(ax, box, edgecolor=BOX_COLOUR, linewidth=1.4, path_effects=_HALO)
        ax.annotate(
            str(place), box[:2], (3, -3), textcoords="offset points", va="top", fontsize=9, color=BOX_COLOUR,
            fontweight="bold", path_effects=_HALO, annotation_clip=False,
        )  # fmt: skip


def _draw_truth(ax: Axes, truth: Mapping[str, np.ndarray]) -> None:
    for finding, boxes in truth.items():
        for box in boxes:
            _outline(ax, box, edgecolor="white", linewidth=3)
            _outline(ax, box, edgecolor=COLOURS[finding], linewidth=2, linestyle="--")


def _score_colours() -> ListedColormap:
    """Return viridis that fades out towards low scores, so that the image shows through."""
    colours = colormaps["viridis"](np.linspace(0, 1, 256))
    colours[:, 3] = 0.8 * np.linspace(0, 1, 256) ** 0.8
    return ListedColormap(colours)


def _overlay(ax: Axes, saliency: np.ndarray, box: np.ndarray | None, seen: PixelBox, top: float) -> None:
    x0, y0, x1, y1 = seen if box is None else box
    look = {"cmap": _score_colours(), "vmin": 0, "vmax": top, "interpolation": "nearest"}
    ax.imshow(saliency, extent=(x0, x1, y1, y0), **look)
    ax.set(xlim=(seen[0], seen[2]), ylim=(seen[3], seen[1]))  # imshow has moved them to the whole map


def _colour_bar(figure: Figure, ax: Axes, top: float) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), _score_colours()), cax=ax)
    ax.set_facecolor("black")
    ax.set_title("saliency", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _draw_patch(
    ax: Axes, pixels: np.ndarray, p: Prediction, k: int, place: int, window: dict[str, float]
) -> None:
    x0, y0, x1, y1 = p.boxes[k]
    rows, columns = (slice(math.floor(a), math.ceil(b)) for a, b in ((y0, y1), (x0, x1)))
    patch = pixels[rows, columns]
    if patch.size:
        patch = _reduce(patch, 300)
        extent = (columns.start, columns.stop, rows.stop, rows.start)
        ax.imshow(patch, cmap="gray", extent=extent, **window)
    else:
        ax.text(0.5, 0.5, "outside\nthe image", transform=ax.transAxes, ha="center", va="center", fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.set_anchor("S")
    attention = "" if p.attention is None else f": attention {p.attention[k]:.2f}"
    ax.set_title(f"{place}{attention}", fontsize=10, pad=4)


def _draw_scores(ax: Axes, scores: np.ndarray, first: bool) -> None:
    """Draw one bar per finding, on a scale from 0 to 1 with room for the number."""
    colours = [COLOURS[finding] for finding in FINDINGS]
    rows = np.arange(len(FINDINGS))
    ax.barh(rows, np.ones(len(FINDINGS)), color="0.9", height=0.7)
    ax.barh(rows, scores, color=colours, height=0.7)
    for row, score in zip(rows, scores, strict=True):
        ax.text(1.04, row, f"{score:.2f}", va="center", fontsize=8)
    ax.set(xlim=(0, 1.35), ylim=(len(FINDINGS) - 0.5, -0.5), xticks=[])
    ax.set_yticks(rows if first else [], FINDINGS if first else [], fontsize=8)
    ax.tick_params(length=0)
    for label, colour in zip(ax.get_yticklabels(), colours, strict=False):
        label.set_color(colour)
    ax.spines[:].set_visible(False)
