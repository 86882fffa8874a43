"""Two softmaxes: move the logits of one region and watch classes, rankings, products and the image."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from mammomil.dual_branch import (
    db_baseline_log_cls,
    image_log_prob,
    log_p_cls,
    log_p_det,
    region_scores,
)
from mammomil.explorer import Explorer, choice, slider, toggle
from mammomil.files import InputError
from mammomil.marks import coloured
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, YELLOW, Length, Scene
from mammomil.types import FINDINGS, REGION_CLASSES

# Sizes in the scene; `static/explorers/ranking.js` has the same.
WIDTH, PICTURE = 450, 250  # of all; height of the mammogram, at most
TABLE, ROW = 312, 34  # where the rows of regions begin, and their step
CLASSES, SHARE = 30, 110  # the bar of classes: its left edge and length
COLUMN, STEP, BAR = 154, 75, 66  # the four columns after it: left edge, step, length of a bar
AXIS, END = 122, 402  # of the logits
STEPS = tuple(i / 2 for i in range(-8, 9))
COLOURS = dict(zip(REGION_CLASSES, (GREY, BENIGN, MALIGNANT), strict=True))
LOGITS = (*REGION_CLASSES, *(f"rank_{name}" for name in FINDINGS))  # names of the controls too


class _Answer(NamedTuple):
    """What the library says of some logits; lists of the regions, but for the image's `y`."""

    cls: list[list[float]]
    det: list[list[float]]
    scores: list[list[float]]
    y: list[float]


def ranking_explorer(
    image: Num[np.ndarray, "H W"],
    boxes: Num[Tensor, "m 4"],
    cls_logits: Float[Tensor, "m r"],
    det_logits: Float[Tensor, "m c"],
    names: Sequence[str] | None = None,
) -> Explorer:
    """Explore both branches of the dual-branch network on a few regions of an image.

    The logits of the chosen region move by -4 to 4. Shown are its softmax over classes (Eq. 1), the rankings
    over regions (Eq. 2), their products (Eq. 13) and the image's probabilities, which are sums of the
    products (Eq. 3; checklist D4-D6, D17). Without the normal class it is DB-Baseline's softmax over two
    (reading A21). The image consists of these regions: the softmax over regions knows no others.

    Args:
        image: grey values.
        boxes: two to eight regions, xyxy in pixels of the image. They should not overlap, to be clicked.
        cls_logits: of `REGION_CLASSES`; rounded to one decimal, so that a reader can follow by hand.
        det_logits: of the findings; rounded likewise.
        names: a few words for each region.

    Raises:
        InputError: there are too many or too few regions, or more or fewer names than regions.
    """
    count = len(boxes)
    names = [f"Region {i + 1}" for i in range(count)] if names is None else list(names)
    if not 2 <= count <= 8:
        raise InputError(f"{count} regions, and a page has room for two to eight. Give as many.")
    if len(names) != count:
        raise InputError(f"{len(names)} names for {count} regions. Give one for each.")
    logits = torch.cat([cls_logits, det_logits], 1).detach().double().cpu().mul(10).round().div(10) + 0.0
    own = logits.tolist()
    model = _answer(logits, True)
    reach = math.ceil(logits.abs().max().item()) + 4
    shown, corner = _breast(np.asarray(image))
    scale = min(PICTURE / shown.shape[0], 220 / shown.shape[1])
    tall, wide = (side * scale for side in shown.shape)
    places = ((boxes.double().cpu() - torch.tensor(corner * 2)) * scale).tolist()
    mammogram = coloured(shown)

    def draw(region: int, has_normal: bool, **by: float) -> Scene:
        moved = logits.clone()
        moved[region] += torch.tensor([by[name] for name in LOGITS], dtype=torch.float64)
        answer, mine = _answer(moved, has_normal), moved[region].tolist()
        scene = Scene(WIDTH, _height(count), _words(region, count, mine, answer, has_normal))
        scene.image(mammogram, 0, 0, wide, tall, smooth=True)
        for i, (x0, y0, x1, y1) in enumerate(places):
            half = (x1 - x0) / 2
            for c, colour in enumerate((BENIGN, MALIGNANT)):
                lit = round(0.9 * answer.scores[i][c], 2)
                scene.rect(x0 + c * half, y0, half, y1 - y0, fill=colour, stroke=0, opacity=lit)
            chosen = i == region
            scene.rect(x0, y0, x1 - x0, y1 - y0, YELLOW if chosen else "#fff", stroke=3 if chosen else 1)
            scene.text(
                x0 + half, (y0 + y1) / 2 + 5, str(i + 1), size=15, anchor="middle", bold=True, halo=True
            )
            scene.hot(x0 + half, (y0 + y1) / 2, 13, f"choose region {i + 1}", region=i)
        _draw_image(scene, wide + 18, answer.y, model.y)
        _draw_table(scene, region, answer)
        _draw_logits(scene, region, mine, own[region], reach, has_normal)
        return scene

    labels = ("Normal", "Benign", "Malignant", "Rank B", "Rank M")
    texts = [f"{value:+g}" for value in STEPS]
    controls = [
        choice("region", "Region", {name: i for i, name in enumerate(names)}),
        *(slider(name, label, STEPS, texts, start=0.0) for name, label in zip(LOGITS, labels, strict=True)),
        toggle("has_normal", "Normal class", start=True),
    ]
    note = (
        f"The image here consists of these {count} regions. Click one on the mammogram or choose it from the "
        "list; the sliders add to its logits, and on a page without a kernel the yellow handles do the same. "
        "Classes share 1 within a row, regions share 1 within a column, and the products of a column add up "
        "to the image's probability. On the mammogram the left half of a region is lit by its product for "
        "benign, the right half for malignant. Thin lines are the model's own values."
    )
    data = {"places": places, "tall": tall, "wide": wide, "logits": own, "y": model.y, "reach": reach}
    return Explorer(
        "Classify and rank", controls, draw, note, "ranking", data, pictures={"mammogram": mammogram}
    )


def _breast(image: Num[np.ndarray, "H W"]) -> tuple[Num[np.ndarray, "h w"], tuple[int, int]]:
    """Cut away what is background alone; return the rest and its corner (x, y)."""
    rows, columns = ((image > image.min()).any(1 - axis).nonzero()[0] for axis in (0, 1))
    if not len(rows):
        return image, (0, 0)
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (int(columns[0]), int(rows[0]))


def _answer(logits: Float[Tensor, "m 5"], has_normal: bool) -> _Answer:
    """Ask the library; it takes batches, and this is a batch of one image."""
    cls_logits, det_logits = logits[None].split([len(REGION_CLASSES), len(FINDINGS)], -1)
    log_cls = log_p_cls(cls_logits) if has_normal else db_baseline_log_cls(cls_logits[..., 1:])
    log_det = log_p_det(det_logits)
    scores, y = region_scores(log_cls, log_det), image_log_prob(log_cls, log_det)[..., 1].exp()
    return _Answer(*(part[0].tolist() for part in (log_cls.exp(), log_det.exp(), scores, y)))


def _height(count: int) -> int:
    return TABLE + count * ROW + 218


def _draw_image(scene: Scene, left: float, y: list[float], own: list[float]) -> None:
    """Draw the image's two probabilities beside the mammogram, and which colour is which class."""
    length = WIDTH - left - 10
    scene.text(left, 18, "The image (Eq. 3)", size=16, bold=True)
    for c, name in enumerate(FINDINGS):
        top = 44 + 62 * c
        scene.text(left, top, f"{name} {y[c]:.2f}", size=16)
        scene.rect(left, top + 8, length, 20, stroke=1)
        scene.rect(left, top + 8, length * y[c], 20, fill=COLOURS[name], stroke=0)
        mark = left + length * own[c]
        scene.line([(mark, top + 4), (mark, top + 32)], INK, stroke=2)
    for c, (name, colour) in enumerate(COLOURS.items()):
        scene.rect(left, 178 + 24 * c, 14, 14, fill=colour, stroke=0)
        scene.text(left + 22, 190 + 24 * c, name, size=15)


def _draw_table(scene: Scene, region: int, answer: _Answer) -> None:
    """Draw a row for each region: classes, then rankings, then products; and the sums below."""
    for x, upper, lower in (
        (CLASSES, "classes", "N, B, M"),
        (COLUMN, "ranking", "benign"),
        (COLUMN + STEP, "", "malignant"),
        (COLUMN + 2 * STEP, "product", "benign"),
        (COLUMN + 3 * STEP, "", "malignant"),
    ):
        if upper:
            scene.text(x, TABLE - 28, upper, size=15, bold=True)
        scene.text(x, TABLE - 10, lower, size=13)
    bottom = TABLE + len(answer.cls) * ROW
    for i, classes in enumerate(answer.cls):
        top = TABLE + i * ROW
        if i == region:
            scene.rect(0, top - 2, WIDTH, ROW, fill=YELLOW, stroke=0, opacity=0.25)
        scene.text(8, top + 20, str(i + 1), size=15, bold=True)
        left: Length = CLASSES
        for c, share in enumerate(classes):
            scene.text(CLASSES + 40 * c, top + 13, f"{share:.2f}", size=14)
            scene.rect(left, top + 18, SHARE * share, 10, fill=COLOURS[REGION_CLASSES[c]], stroke=0)
            left += SHARE * share
        for k, value in enumerate(answer.det[i] + answer.scores[i]):
            x = COLUMN + STEP * k
            scene.text(x, top + 13, f"{value:.2f}", size=14)
            scene.rect(x, top + 18, BAR * value, 10, fill=(BENIGN, MALIGNANT)[k % 2], stroke=0)
    scene.line([(0, bottom), (WIDTH, bottom)], GREY, stroke=1)
    scene.text(8, bottom + 18, "sum: rows 1.00", size=14)
    for k, total in enumerate([1.0, 1.0, *answer.y]):
        scene.text(COLUMN + STEP * k, bottom + 18, f"{total:.2f}", size=15, bold=True)


def _draw_logits(
    scene: Scene, region: int, mine: list[float], own: list[float], reach: int, has_normal: bool
) -> None:
    """Draw the chosen region's logits as bars from 0, with handles; a handle's step is half a logit."""
    top, unit = scene.height - 158, (END - AXIS) / (2 * reach)
    zero = AXIS + reach * unit
    scene.text(0, top - 8, f"Logits of region {region + 1}", size=16, bold=True)
    for k, name in enumerate(LOGITS):
        y, strong = top + 16 + 30 * k, 1.0 if has_normal or k else 0.3
        scene.text(0, y + 5, name.replace("_", " "), size=15)
        scene.line([(AXIS, y), (END, y)], GREY, stroke=1)
        start, length = zero + unit * min(mine[k], 0), unit * abs(mine[k])
        colour = COLOURS[name.removeprefix("rank_")]
        scene.rect(start, y - 8, length, 16, fill=colour, stroke=0, opacity=strong)
        mark = zero + unit * own[k]
        scene.line([(mark, y - 11), (mark, y + 11)], INK, stroke=2)
        scene.text(WIDTH, y + 5, f"{mine[k]:+.1f}", size=15, anchor="end")
        scene.handle(zero + unit * mine[k], y, **{name: ("x", zero + unit * (own[k] + STEPS[0]), unit / 2)})
    scene.line([(zero, top), (zero, top + 152)], GREY, stroke=1)


def _words(region: int, count: int, mine: list[float], answer: _Answer, has_normal: bool) -> str:
    """Say what a picture shows."""
    told = ", ".join(f"{name.replace('_', ' ')} {v:+.1f}" for name, v in zip(LOGITS, mine, strict=True))
    classes = ", ".join(f"{name} {p:.2f}" for name, p in zip(REGION_CLASSES, answer.cls[region], strict=True))
    ranks, products, image = (
        ", ".join(f"{name} {p:.2f}" for name, p in zip(FINDINGS, values, strict=True))
        for values in (answer.det[region], answer.scores[region], answer.y)
    )
    without = "" if has_normal else " There is no normal class."
    return (
        f"Region {region + 1} of {count}. Logits: {told}. Classes: {classes}. Its share of the rankings: "
        f"{ranks}. Products: {products}. The image: {image}.{without}"
    )
