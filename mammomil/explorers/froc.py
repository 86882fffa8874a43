"""FROC by hand: lower the threshold, and boxes appear on mammograms while the point climbs the curve."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mammomil.explorer import Explorer, choice, slider, toggle
from mammomil.files import InputError
from mammomil.froc import froc_curve, gate_threshold
from mammomil.scenes import GREY, INK, MALIGNANT, SKY, YELLOW, Length, Scene

# Sizes in the scene: mammograms in a row, a legend, the curve. A phone shows 460 units at three quarters.
WIDTH, GAP, TOP, TEXT = 460, 8, 24, 14
LEFT, FIELD = 48, 190  # of the curve: its left axis and its height
STOPS = (0.05, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf)  # FPPI
ALPHAS = (0.25, 0.5, 0.75)
PER = {"classified": "called image", "all": "image"}
Over = Literal["classified", "all"]


class FrocPicture(NamedTuple):
    """A mammogram to be shown.

    Attributes:
        name: a word or two.
        row: its number among the images of the curve.
        pixels: of any scale; all pictures have one size.
        boxes: its regions, xyxy in pixels, in the order of `region_score`.
        lesions: masks of the lesions that count.
    """

    name: str
    row: int
    pixels: Float[np.ndarray, "h w"]
    boxes: Float[np.ndarray, "m 4"]
    lesions: Bool[np.ndarray, "n h w"]


def froc_explorer(
    images: Sequence[Mapping[str, Any]],
    pictures: Sequence[FrocPicture],
    operating_sensitivity: float = 0.85,
) -> Explorer:
    """Explore a FROC curve: threshold, gate, alpha, and what FPPI is divided by (D27; readings A26 to A28).

    Curve and point come from `froc_curve` at every move; the thresholds to choose from are its own, at about
    the FPPI of `STOPS`. A region at or above the threshold is a hit, drawn thick, where its IoM with a lesion
    is alpha or more, and else a false alarm, drawn thin and struck through. Lesions are dashed.

    Args:
        images: what `froc_curve` takes.
        pictures: three or four of these images.
        operating_sensitivity: of the gate.

    Raises:
        InputError: no positive image can be judged, or a picture's boxes do not fit its scores.
    """
    usual = froc_curve(images, operating_sensitivity=operating_sensitivity)
    if usual is None:
        raise InputError("no positive image with a placed lesion: there is no FROC curve.")
    for picture in pictures:
        count = len(images[picture.row]["region_score"])
        if len(picture.boxes) != count:
            raise InputError(
                f"picture {picture.name!r}: {len(picture.boxes)} boxes for {count} scores. Give one for each."
            )
    label, score, lesions = (
        np.array(column, float)
        for column in zip(*((i["label"], i["score"], i["iom"].shape[1]) for i in images), strict=True)
    )
    judged = (label == 0) | ((label == 1) & (lesions > 0))
    tau = gate_threshold(score[label == 1], operating_sensitivity)
    stops = sorted({0, *(int(np.flatnonzero(usual[1] <= stop)[-1]) for stop in STOPS)})
    values = [float(usual[2][stop]) for stop in stops]
    texts = ["above all", *(f"{value:.3g}" for value in values[1:])]
    ends = [
        froc_curve(images, alpha, operating_sensitivity, gate) for alpha in ALPHAS for gate in (True, False)
    ]
    widest = max(1, math.ceil(max(fppi[-1] for _, fppi, _ in ends)))
    columns = min(
        int(max(picture.boxes[:, 2].max() for picture in pictures)) + 6, pictures[0].pixels.shape[1]
    )
    wide = (WIDTH - GAP * (len(pictures) - 1)) / len(pictures)
    scale = wide / columns
    tall = scale * pictures[0].pixels.shape[0]
    outlines = [[scale * line for line in _outlines(picture.lesions)] for picture in pictures]
    field = round(TOP + tall + 100)  # upper edge of the curve's field

    def draw_picture(scene: Scene, number: int, threshold: Length, alpha: Length, is_called: bool) -> str:
        picture, x = pictures[number], number * (wide + GAP)
        image, middle = images[picture.row], x + wide / 2
        scene.text(middle, 16, picture.name, size=TEXT, anchor="middle", bold=True)
        scene.image(picture.pixels[:, :columns], x, TOP, wide, tall, smooth=True)
        if not is_called:
            scene.rect(x, TOP, wide, tall, fill="#000", stroke=0, opacity=0.6)
        for line in outlines[number]:
            scene.line(np.add(line, (x, TOP)), YELLOW, dashed=True)
        found = (image["region_score"] >= threshold) & (image["region_score"] > 0) & is_called
        hit = found & (image["iom"] >= alpha).any(1)
        for k in (*np.flatnonzero(found & ~hit), *np.flatnonzero(hit)):  # hits on top
            _draw_region(scene, scale * picture.boxes[k] + np.array([x, TOP, x, TOP]), bool(hit[k]))
        told = f"{hit.sum()} hit, {(found & ~hit).sum()} false" if is_called else "not called"
        scene.text(middle, TOP + tall + 17, f"p = {image['score']:.2f}", size=TEXT, anchor="middle")
        scene.text(middle, TOP + tall + 35, told, size=TEXT, anchor="middle")
        return f"{picture.name}: {told}"

    def draw(threshold: Length, gate: bool, alpha: Length, over: Over) -> Scene:
        called = judged & (score >= tau) if gate else judged
        sensitivity, fppi, thresholds = froc_curve(images, alpha, operating_sensitivity, gate, over)
        at = int(np.flatnonzero(thresholds >= threshold)[-1])
        scene = Scene(WIDTH, field + FIELD + 70)
        said = [
            draw_picture(scene, number, threshold, alpha, bool(called[picture.row]))
            for number, picture in enumerate(pictures)
        ]
        _draw_legend(scene, TOP + tall + 60)
        _draw_axes(scene, field, widest, f"false alarms per {PER[over]} (FPPI)")
        scene.line(_steps(usual[0], usual[1], field, widest), GREY, dashed=True)
        scene.line(_steps(sensitivity, fppi, field, widest), INK, stroke=2)
        x, y = _place(fppi[at], sensitivity[at], field, widest)
        scene.line([(LEFT, y), (x, y), (x, field + FIELD)], MALIGNANT, stroke=1)
        scene.circle(x, y, 6, INK, fill=MALIGNANT)
        sick = int((called & (label == 1)).sum())
        count = int((called if over == "classified" else judged).sum())
        hit, false = round(sensitivity[at] * sick), round(fppi[at] * count)
        found = f"{hit} of {sick} hit: sensitivity {sensitivity[at]:.2f}"
        alarms = f"{false} false over {count}: FPPI {fppi[at]:.2f}"
        scene.text(0, scene.height - 6, found, size=TEXT)
        scene.text(WIDTH, scene.height - 6, alarms, size=TEXT, anchor="end")
        scene.words = (
            f"Threshold {texts[values.index(threshold)]}, gate {'on' if gate else 'off'}, IoM {alpha:g} or "
            f"more: {called.sum()} of {judged.sum()} images called positive, {sick} of them with a lesion. "
            f"{found}. {alarms}, per {PER[over]}. {'; '.join(said)}."
        )
        return scene

    start = values[int(np.argmin(np.abs(usual[1][stops] - 1)))]
    controls = [
        slider("threshold", "Threshold", values, texts, start=start, play=True),
        toggle("gate", f"Gate at sensitivity {operating_sensitivity:g}", start=True),
        choice("alpha", "A hit has an IoM of", {f"{a:g} or more": a for a in ALPHAS}, start=0.5),
        choice("over", "Divide by", {"images called positive": "classified", "all images": "all"}),
    ]
    note = (
        "Move the threshold to the right, so that it falls, and boxes appear. Every false alarm moves the "
        "point to the right, the first hit of an image moves it up, a second hit in the same image does "
        "neither. Dashed grey: the curve with the gate on, IoM 0.5, divided by the images called positive. p "
        "is the score of the image."
    )
    return Explorer("From boxes to the FROC curve", controls, draw, note)


def _outlines(masks: Bool[np.ndarray, "n h w"]) -> list[Float[np.ndarray, "k 2"]]:
    """Longest outline of every mask as (x, y) in pixels, closed, with few corners."""
    from skimage.measure import approximate_polygon, find_contours

    longest = (
        max(find_contours(np.pad(mask, 1).astype(float), 0.5), key=len) for mask in masks if mask.any()
    )
    return [approximate_polygon(line, 0.7)[:, ::-1] - 0.5 for line in longest]


def _draw_region(scene: Scene, box: Float[np.ndarray, "4"], hit: bool) -> None:
    x0, y0, x1, y1 = box.tolist()
    if hit:
        scene.rect(x0, y0, x1 - x0, y1 - y0, SKY, stroke=3)
    else:
        scene.rect(x0, y0, x1 - x0, y1 - y0, MALIGNANT, stroke=1.5)
        scene.line([(x0, y1), (x1, y0)], MALIGNANT, stroke=1.5)


def _draw_legend(scene: Scene, y: Length) -> None:
    _draw_region(scene, np.array([30.0, y - 12, 46.0, y + 4]), True)
    scene.text(54, y, "hit", size=TEXT)
    _draw_region(scene, np.array([130.0, y - 12, 146.0, y + 4]), False)
    scene.text(154, y, "false alarm", size=TEXT)
    scene.rect(280, y - 14, 34, 20, fill="#333", stroke=0)
    scene.line([(283, y - 4), (311, y - 4)], YELLOW, stroke=2, dashed=True)
    scene.text(322, y, "true lesion", size=TEXT)


def _draw_axes(scene: Scene, top: int, widest: int, below: str) -> None:
    scene.line([(LEFT, top), (LEFT, top + FIELD), (WIDTH, top + FIELD)], INK, stroke=1)
    for share in (0, 0.5, 1):
        y = top + FIELD * (1 - share)
        scene.line([(LEFT - 4, y), (LEFT, y)], INK, stroke=1)
        scene.text(LEFT - 8, y + 5, f"{share:g}", size=TEXT, anchor="end")
    for tick in range(0, widest + 1, max(1, round(widest / 8))):
        x = _place(tick, 0, top, widest)[0]
        scene.line([(x, top + FIELD), (x, top + FIELD + 4)], INK, stroke=1)
        scene.text(x, top + FIELD + 18, f"{tick}", size=TEXT, anchor="middle")
    scene.text((LEFT + WIDTH) / 2, top + FIELD + 36, below, size=TEXT, anchor="middle")
    scene.text(0, top - 12, "share of positive images hit", size=TEXT)


def _place(fppi: Length, sensitivity: Length, top: int, widest: int) -> tuple[float, float]:
    return LEFT + (WIDTH - 14 - LEFT) * float(fppi) / widest, top + FIELD * (1 - float(sensitivity))


def _steps(
    sensitivity: Float[np.ndarray, "t"], fppi: Float[np.ndarray, "t"], top: int, widest: int
) -> list[tuple[float, float]]:
    """The curve as stairs, its corners alone: a thousand thresholds hit fifty images."""
    rises = np.flatnonzero(np.diff(sensitivity) > 0) + 1
    corners = [(fppi[0], sensitivity[0])]
    for i in rises:
        corners += [(fppi[i], sensitivity[i - 1]), (fppi[i], sensitivity[i])]
    return [_place(*corner, top, widest) for corner in (*corners, (fppi[-1], sensitivity[-1]))]
