"""Masked ranking: choose k, and see which regions are ranked, with which weights, and the image's p."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mammomil.dual_branch import DualBranch, image_log_prob, log_p_det, select_regions
from mammomil.explorer import Control, Explorer, choice, slider
from mammomil.files import InputError
from mammomil.marks import coloured
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, YELLOW, Scene
from mammomil.types import FINDINGS

KS = (1, 2, 3, 5, 10, 20, 50)
WIDTH, MAMMOGRAM, RIGHT = 450, 300, 214  # of all; height of the image, at most; where its words begin
BARS, STEP, LEFT = 30, 14, 30  # regions that have a bar, from bar to bar, the first one
CLASS, WEIGHT, TALL, BOTTOM = 420, 540, 76, 580  # where the two rows of bars stand, their height; the end
COLOURS = dict(zip(FINDINGS, (BENIGN, MALIGNANT), strict=True))


class Shown(NamedTuple):
    """An image to explore.

    Attributes:
        name: a few words.
        pixels: grey values.
        boxes: its regions, xyxy in pixels.
        codes: a code for each region.
        hits: which regions hit a lesion of each finding.
        lesions: boxes of the lesions of each finding, xyxy in pixels.
    """

    name: str
    pixels: Float[np.ndarray, "H W"]
    boxes: Float[Tensor, "m 4"]
    codes: Float[Tensor, "m f"]
    hits: Bool[np.ndarray, "m c"]
    lesions: Sequence[Float[Tensor, "n 4"]]


class _Answer(NamedTuple):
    """What the library says for a k and a finding; regions in the order of the image."""

    selected: Bool[np.ndarray, "m"]
    weights: Float[np.ndarray, "m"]
    prob: float


def selection_explorer(heads: Mapping[str, DualBranch], images: Sequence[Shown]) -> Explorer:
    """Explore region selection: the mask h of Eq. 4, the masked ranking, and the image's probability.

    The classes and the rank logits of all regions are computed once for each head and image. Each picture
    calls `select_regions`, `log_p_det` and `image_log_prob` (Eq. 4 and 3; checklist D6, D8, readings A2, A3).

    Args:
        heads: in evaluation mode, by what they are: `untrained`, `after 1 epoch`. In the order of time.
        images: one or more; each with the same number of findings as `FINDINGS`.

    Raises:
        InputError: a head has no ranking or no normal class, or codes, boxes and hits of an image differ in
            number.
    """
    for name, head in heads.items():
        if head.config.method not in ("cls-det", "cls-det-rs"):
            raise InputError(f"head {name!r} is {head.config.method}: give cls-det or cls-det-rs.")
    for image in images:
        if not len(image.boxes) == len(image.codes) == len(image.hits):
            raise InputError(
                f"{image.name}: {len(image.boxes)} boxes, {len(image.codes)} codes, hits of "
                f"{len(image.hits)} regions. Give one of each for every region."
            )
    with torch.inference_mode():
        outputs = [
            [head(image.codes[None], torch.ones(1, len(image.codes), dtype=torch.bool)) for image in images]
            for head in heads.values()
        ]
    stages = list(heads)
    least = min(len(image.boxes) for image in images)
    everything = max(len(image.boxes) for image in images)

    @torch.inference_mode()
    def answer(stage: int, image: int, c: int, k: int) -> _Answer:
        output = outputs[stage][image]
        select = select_regions(output.log_cls, k)
        # A softmax does not see what is added to all its logits, so that log p_det serves as logits again.
        log_det = log_p_det(output.log_det_all, select)
        prob = image_log_prob(output.log_cls, log_det)[0, c, 1].exp().item()
        return _Answer(select[0, :, c].numpy(), log_det[0, :, c].exp().numpy(), prob)

    def draw(k: int, stage: int = 0, image: int = 0, finding: str = FINDINGS[-1]) -> Scene:
        c, shown = FINDINGS.index(finding), images[image]
        now, full = answer(stage, image, c, k), answer(stage, image, c, everything)
        p_cls = outputs[stage][image].log_cls[0, :, c + 1].exp().numpy()
        scene = Scene(WIDTH, BOTTOM, _words(shown, stages[stage], c, p_cls, now, full.prob))
        _draw_image(scene, shown, c, now)
        _draw_facts(scene, shown, c, p_cls, now, full.prob)
        _draw_bars(scene, shown, c, p_cls, now)
        return scene

    ks = [k for k in KS if k < least]
    texts = [*map(str, ks), "all"]
    start = 10 if 10 in ks else everything
    controls: list[Control] = [slider("k", "k", [*ks, everything], texts, start=start)]
    if len(heads) > 1:
        last = len(heads) - 1
        controls.append(slider("stage", "Training", range(len(heads)), stages, start=last, play=True))
    if len(images) > 1:
        controls.append(choice("image", "Image", {shown.name: i for i, shown in enumerate(images)}))
    controls.append(choice("finding", "Finding", FINDINGS, start=FINDINGS[-1]))
    note = (
        "What is selected is in the light and has coloured bars: the upper row is p_cls of the most "
        "suspicious regions in order, the lower row what the ranking gives each of them. The image's p is "
        "the sum of upper times lower. A dot marks a region that hits a lesion (IoM of 0.5 or more), the "
        "dashed box is the lesion, the yellow frame the region with the largest weight. The thin line on p "
        "is its value with all regions ranked."
    )
    return Explorer("Which regions are ranked", controls, draw, note)


def _draw_image(scene: Scene, shown: Shown, c: int, now: _Answer) -> None:
    """Draw the mammogram, dark where no region is selected, with lesions and the first of the ranking."""
    height, width = shown.pixels.shape
    scale = min(MAMMOGRAM / height, (RIGHT - 14) / width)
    tall, wide = scale * height, scale * width
    scene.image(coloured(shown.pixels), 0, 0, wide, tall, smooth=True)
    dark = np.ones(((height + 1) // 2, (width + 1) // 2))  # two pixels a cell
    for x0, y0, x1, y1 in (shown.boxes[torch.from_numpy(now.selected)] / 2).round().int().tolist():
        dark[max(y0, 0) : y1, max(x0, 0) : x1] = 0
    scene.image(np.zeros_like(dark), 0, 0, wide, tall, low=0, high=1, alpha=0.6 * dark)
    for x0, y0, x1, y1 in (scale * shown.lesions[c]).tolist():
        scene.rect(x0, y0, x1 - x0, y1 - y0, COLOURS[FINDINGS[c]], stroke=2, dashed=True)
    x0, y0, x1, y1 = (scale * shown.boxes[int(now.weights.argmax())]).tolist()
    scene.rect(x0, y0, x1 - x0, y1 - y0, YELLOW, stroke=2.5)


def _draw_facts(
    scene: Scene, shown: Shown, c: int, p_cls: Float[np.ndarray, "m"], now: _Answer, full: float
) -> None:
    """Draw the image's probability, and what can be counted."""
    finding, length = FINDINGS[c], WIDTH - RIGHT - 6
    scene.text(RIGHT, 18, f"p({finding}) = {now.prob:.2f}", size=17, bold=True)
    scene.rect(RIGHT, 28, length, 24, stroke=1)
    scene.rect(RIGHT, 28, length * now.prob, 24, fill=COLOURS[finding], stroke=0)
    mark = RIGHT + length * full
    scene.line([(mark, 23), (mark, 57)], INK, stroke=2)
    scene.text(RIGHT, 76, f"{full:.2f} with all regions ranked", size=15)
    count, hits = int(now.selected.sum()), shown.hits[:, c]
    lines = [f"{count} of {len(p_cls)} regions ranked", _say_range(p_cls[now.selected], "p_cls ")]
    lines.append(f"largest weight {now.weights.max():.2f}")
    if hits.any():
        lines += [f"{(hits & now.selected).sum()} of {hits.sum()} regions that", "hit the lesion are ranked"]
    else:
        lines += [f"no {finding} lesion here:", "these are the hard negatives"]
    for i, words in enumerate(lines):
        scene.text(RIGHT, 120 + 26 * i, words, size=15)


def _draw_bars(scene: Scene, shown: Shown, c: int, p_cls: Float[np.ndarray, "m"], now: _Answer) -> None:
    """Draw p_cls of the most suspicious regions, the first one left, and their weights below."""
    order = np.argsort(-p_cls, kind="stable")[:BARS]
    colour = COLOURS[FINDINGS[c]]
    letter = FINDINGS[c][0].upper()
    scene.text(0, CLASS - TALL - 14, f"p_cls({letter} | r), the first {len(order)}", size=15)
    scene.text(0, WEIGHT - TALL - 14, f"weight of each in p({FINDINGS[c]})", size=15)
    for base in (CLASS, WEIGHT):
        scene.line([(LEFT - 4, base), (WIDTH, base)], GREY, stroke=1)
        for share, words in ((0, "0"), (1, "1")):
            scene.text(LEFT - 8, base - share * TALL + 5, words, size=13, anchor="end")
    for place, i in enumerate(order):
        x, on = LEFT + place * STEP, bool(now.selected[i])
        height = TALL * float(p_cls[i])
        scene.rect(x, CLASS - height, STEP - 3, height, fill=colour if on else GREY, stroke=0)
        if shown.hits[i, c]:
            scene.circle(x + (STEP - 3) / 2, CLASS + 8, 3, INK, fill=INK, stroke=0)
        height = TALL * float(now.weights[i])
        if height >= 0.1:
            scene.rect(x, WEIGHT - height, STEP - 3, height, fill=colour, stroke=0)
    for rank in (1, 5, 10, 20, 30):
        if rank <= len(order):
            scene.text(LEFT + (rank - 1) * STEP + 5, WEIGHT + 17, str(rank), size=13, anchor="middle")
    scene.text(WIDTH, BOTTOM - 6, "place in the order of suspicion", size=13, anchor="end")


def _say_range(values: Float[np.ndarray, "k"], words: str) -> str:
    """Say the largest and the smallest of some probabilities."""
    if len(values) == 1:
        return f"{words}{values[0]:.2f}"
    return f"{words}from {values.max():.2f} down to {values.min():.2f}"


def _words(shown: Shown, stage: str, c: int, p_cls: Float[np.ndarray, "m"], now: _Answer, full: float) -> str:
    """Say what a picture shows."""
    finding, hits = FINDINGS[c], shown.hits[:, c]
    where = f"none hits a lesion, as there is no {finding} one"
    if hits.any():
        found = f"{(hits & now.selected).sum()} of the {hits.sum()}"
        where = f"{found} that hit a {finding} lesion are ranked"
    first = int(now.weights.argmax())
    place, count = int((p_cls > p_cls[first]).sum()) + 1, int(now.selected.sum())
    verb = "is" if count == 1 else "are"
    return (
        f"{shown.name}, {stage}, {finding}. {count} of {len(p_cls)} regions {verb} ranked, with "
        f"{_say_range(p_cls[now.selected], 'p_cls ')}; {where}. The largest weight, {now.weights.max():.2f}, "
        f"is on the region in place {place}. p({finding}) is {now.prob:.2f}; with all regions ranked it is "
        f"{full:.2f}."
    )
