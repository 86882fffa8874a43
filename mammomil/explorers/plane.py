"""The probability plane: images as points, decision regions and threshold lines, epoch after epoch."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mammomil.experiments.probability_plane import Config, fit_plane, three_classes
from mammomil.experiments.region_runs import TASKS, answer
from mammomil.explorer import Explorer, choice, slider, toggle
from mammomil.files import InputError
from mammomil.marks import coloured
from mammomil.metrics import any_finding, auc_score
from mammomil.panels import reduce_pixels
from mammomil.practice import Practice, Trained
from mammomil.recipes import preset
from mammomil.region_data import RegionCanvases
from mammomil.scenes import BENIGN, GREY, INK, MALIGNANT, Length, Scene
from mammomil.types import FINDINGS, REGION_CLASSES

# Sizes in the scene: a plane that can be hit with a finger on a telephone, the mammogram below it.
WIDTH, LEFT, TOP, SIDE = 440, 46, 70, 384
ROW, TALL, BARS = TOP + SIDE + 50, 250, 96  # where the mammogram begins, its height; a bar of p = 1
GRID = 48  # cells across of the decision regions
KINDS = (*REGION_CLASSES, "malignant and benign")
SHORT = (*REGION_CLASSES, "both")
COLOURS = (GREY, BENIGN, MALIGNANT, INK)  # of `KINDS`
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
CORNERS = {2: ((0, -1), (0.866, 0.5), (-0.866, 0.5)), 3: ((0, -1), (1, 0), (0, 1), (-1, 0))}
REACH, REACH_FULL = {2: 4.8, 3: 5}, {2: 2.6, 3: 3}  # a thick line reaches farther
RULES = ("p(malignant)", "the larger of both")  # what is compared with the threshold, of `TASKS`


class _Shown(NamedTuple):
    """An image that can be chosen, in the size of the scene.

    Attributes:
        pixels: colours.
        width: in the scene.
        frames: x, y, width, height from its corner, place in `FINDINGS`, and what it is: None for a true
            finding, else the score (Eq. 13) of the best region.
    """

    pixels: UInt8[np.ndarray, "h w 4"]
    width: float
    frames: list[tuple[float, float, float, float, int, str | None]]


def plane_explorer(
    data: Practice,
    trained: Trained,
    epochs: Sequence[int] | None = None,
    rows: Int[np.ndarray, "n"] | None = None,
) -> Explorer:
    """Explore the plane of p(malignant) and p(benign): the paper's Fig. 6 (checklist D25, D28), replayed.

    Each picture fits the paper's SVM to the training points of its epoch (`fit_plane`), asks it about the
    plane and the images, and takes areas from `auc_score`; in a page a script draws what was computed.
    Probabilities are rounded to four digits. The best regions are those of the trained head, of the last
    epoch.

    Args:
        data: from `practice`.
        trained: from `train_head`.
        epochs: which to show, counted from 1, two or more; about ten spread over the training by default.
        rows: images to show, with known labels; by default 60 test images that resemble all: each class
            has its share, evenly spaced by p(malignant) after the last epoch.

    Raises:
        InputError: an epoch was not trained, or the label of an image is unknown.
    """
    last, label = len(trained.prob), data.regions.label
    epochs = _spread(last) if epochs is None else sorted(set(epochs))
    if len(epochs) < 2 or epochs[0] < 1 or epochs[-1] > last:
        raise InputError(f"epochs {list(epochs)}: give two or more between 1 and {last}.")
    rows = _choose_rows(data, trained.prob[-1]) if rows is None else rows
    if np.isnan(label[rows]).any():
        raise InputError("rows: an image whose label is unknown has no class to show. Leave it out.")
    learned = data.rows("train")
    learned = learned[~np.isnan(label[learned]).any(1)]
    prob = np.round(trained.prob[np.array(epochs) - 1], 4)
    points, lessons = prob[:, rows], prob[:, learned]  # (e, n, c), (e, t, c)
    true, taught = ((label[r] @ [1, 2]).astype(int) for r in (rows, learned))  # place in KINDS
    kind, lesson_kind = three_classes(label[rows]), three_classes(label[learned])
    positive = np.stack([label[rows, 1], any_finding(label[rows])])  # of each task
    shown = _look(data, trained, rows)
    names = [f"image {i + 1}, {KINDS[k]}" for i, k in enumerate(true)]
    radii = [_radii(_place(p)) for p in points]

    @cache
    def judge(e: int, balanced: bool) -> tuple[np.ndarray, np.ndarray, int]:
        """Return what the SVM of an epoch calls cells and images, and in how many lessons it is right."""
        plane = fit_plane(lessons[e], lesson_kind, Config(balanced=balanced))
        across, up = np.meshgrid((np.arange(GRID) + 0.5) / GRID, 1 - (np.arange(GRID) + 0.5) / GRID)
        cells = plane.predict(np.stack([up.ravel(), across.ravel()], 1)).reshape(GRID, GRID)
        right = int((plane.predict(lessons[e]) == lesson_kind).sum())
        return cells, plane.predict(points[e]), right

    @cache
    def area(e: int, task: int) -> str:
        found = auc_score(positive[task], points[e][:, 1] if task == 0 else points[e].max(1))
        return "undefined" if found is None else _two(found)

    def draw(epoch: int, image: int, task: int, threshold: float, *, balanced: bool, training: bool) -> Scene:
        cells, called, lessons_right = judge(epoch, balanced)
        scene = Scene(WIDTH, ROW + TALL + 4)
        scene.image(_tint(cells), LEFT, TOP, SIDE, SIDE)
        _draw_axes(scene)
        cut = LEFT + SIDE * threshold
        level = TOP if task == 0 else TOP + SIDE * (1 - threshold)
        corner = [(cut, TOP)] if task == 0 else [(LEFT, level), (cut, level)]
        scene.line([*corner, (cut, TOP + SIDE)], stroke=2.5, dashed=True)
        if training:
            for (x, y), k in zip(_place(lessons[epoch]), taught.tolist(), strict=True):
                _point(scene, x, y, k, full=False, size=0.6, opacity=0.6)
        places = _place(points[epoch])
        for i, (x, y) in enumerate(places):
            _point(scene, x, y, int(true[i]), full=bool(called[i] == kind[i]))
        scene.circle(*places[image], 11, stroke=2.5)
        for k, (x, y) in enumerate(((10, 14), (10, 36), (150, 14), (150, 36))):
            _point(scene, x, y - 5, k, full=True)
            scene.text(x + 12, y, f"{SHORT[k]}: {(true == k).sum()}", size=15)
        scene.text(WIDTH - 2, 14, "hollow:", size=15, anchor="end")
        scene.text(WIDTH - 2, 36, "SVM wrong", size=15, anchor="end")

        _draw_mammogram(scene, shown[image])
        benign, malignant = points[epoch][image]
        score = points[epoch][:, 1] if task == 0 else points[epoch].max(1)
        above, sick = score >= threshold, positive[task] == 1
        hits, passed = int((above & sick).sum()), int((~above & ~sick).sum())
        rate = (
            f"sensitivity {hits} of {sick.sum()}",
            f"specificity {passed} of {(~sick).sum()}",
            f"AUROC {area(epoch, task)}",
        )
        verdict = f"{REGION_CLASSES[called[image]]}, {'right' if called[image] == kind[image] else 'wrong'}"
        right = f"{(called == kind).sum()} of {len(kind)}"
        at = 186
        scene.text(at, ROW + 14, f"Image {image + 1}: {SHORT[true[image]]}", size=15, bold=True)
        for y, name, p, colour in ((38, "malignant", malignant, MALIGNANT), (62, "benign", benign, BENIGN)):
            scene.text(at, ROW + y, f"p({name}) {_two(p)}", size=15)
            scene.rect(at + 152, ROW + y - 12, BARS, 14, stroke=1)
            scene.rect(at + 152, ROW + y - 12, BARS * p, 14, fill=colour, stroke=0)
        scene.text(at, ROW + 88, f"SVM: {verdict}", size=15)
        scene.text(at, ROW + 110, f"right in {right} images", size=15)
        if training:
            scene.text(at, ROW + 132, f"and {lessons_right} of {len(taught)} it learned from", size=15)
        scene.text(at, ROW + 168, f"{TASKS[task]}, threshold {_two(threshold)}", size=15, bold=True)
        for k, text in enumerate(rate):
            scene.text(at, ROW + 190 + 22 * k, text, size=15)
        for i, ((x, y), radius) in enumerate(zip(places, radii[epoch], strict=True)):
            scene.hot(x, y, radius, names[i], image=i)
        scene.handle(cut, TOP + SIDE, threshold=("x", LEFT + SIDE * THRESHOLDS[0], SIDE / 20))
        scene.words = (
            f"Epoch {epochs[epoch]}. Image {image + 1}, {KINDS[true[image]]}: p(malignant) "
            f"{_two(malignant)}, p(benign) {_two(benign)}. The SVM{', classes weighed alike,' * balanced} "
            f"calls it {verdict}; it is right in {right} images"
            f"{_lessons(lessons_right, len(taught)) * training}. {TASKS[task]}, "
            f"called where {RULES[task]} is {_two(threshold)} or more: {', '.join(rate)}."
        )
        return scene

    both, every = (False, True), range(len(epochs))
    options = {name: i for i, name in enumerate(names)}
    start = int(np.argmax(true >= 2))
    controls = [
        slider("epoch", "Epoch", every, [str(n) for n in epochs], start=every[-1], play=True),
        choice("image", "Image", options, start=start),
        choice("task", "Line", dict(zip(TASKS, (0, 1), strict=True)), start=0),
        slider("threshold", "Threshold", THRESHOLDS, [_two(t) for t in THRESHOLDS], start=0.5),
        toggle("balanced", "SVM weighs classes alike"),
        toggle("training", "Training points"),
    ]
    note = (
        "Click a point, or choose an image: dashed frames are its true findings, solid ones the best region "
        "of each finding after the last epoch; blue is benign, orange malignant. Tints: what the SVM calls a "
        "point there. Drag the yellow dot to move the threshold. Small faint marks are training points; "
        "large hollow ones are test images that the SVM has wrong."
    )
    payload: dict[str, Any] = {
        "names": names, "true": true.tolist(), "kind": kind.tolist(), "kinds": KINDS, "short": SHORT,
        "tasks": TASKS, "rules": RULES, "classes": REGION_CLASSES, "epochs": list(epochs),
        "taught": taught.tolist(), "points": points.tolist(), "lessons": lessons.tolist(), "radii": radii,
        "called": [[judge(e, b)[1].tolist() for b in both] for e in every],
        "lessonsRight": [[judge(e, b)[2] for b in both] for e in every],
        "area": [[area(e, t) for t in (0, 1)] for e in every], "positive": positive.tolist(),
        "width": [s.width for s in shown], "frames": [s.frames for s in shown],
    }  # fmt: skip
    pictures = {f"image{i}": s.pixels for i, s in enumerate(shown)}
    pictures |= {f"tint{e}-{int(b)}": _tint(judge(e, b)[0]) for e in every for b in both}
    return Explorer("The probability plane", controls, draw, note, "plane", payload, pictures)


def _spread(last: int) -> list[int]:
    """Choose about ten epochs, the first and the last among them."""
    return sorted({1 + round(share * (last - 1)) for share in np.linspace(0, 1, 10)})


def _choose_rows(data: Practice, prob: Float[np.ndarray, "n c"], count: int = 60) -> Int[np.ndarray, "r"]:
    """Choose test images with known labels: of each class its share, evenly spaced by p(malignant).

    By chance alone the areas of so few would differ much from those of all test images.
    """
    rows = data.rows("test")
    rows = rows[~np.isnan(data.regions.label[rows]).any(1)]
    true = data.regions.label[rows] @ [1, 2]
    chosen = []
    for k in range(len(KINDS)):
        ranked = rows[true == k][np.argsort(prob[rows[true == k], 1], kind="stable")]
        take = round(min(1.0, count / len(rows)) * len(ranked))
        spaced = (np.arange(take) + 0.5) * len(ranked) / max(take, 1)
        chosen.append(np.sort(ranked[spaced.astype(int)]))
    return np.concatenate(chosen)


def _look(data: Practice, trained: Trained, rows: Int[np.ndarray, "n"]) -> list[_Shown]:
    """Load images with their findings, and find the best region of each finding in them."""
    run = preset("dual-branch", "quick", data.folder, Path())
    canvases = RegionCanvases(data.regions.index, run.preprocess, run.model.windows)
    shown = []
    for row in rows.tolist():
        look, truth = canvases.look(row), canvases.findings_on_canvas(row)
        (scores,) = answer(trained.head, [data.regions.codes[row]])[1]
        scale = TALL / look.image.shape[1]
        found = [(*box, int(m), None) for box, m in zip(truth.boxes.tolist(), truth.malignant, strict=True)]
        best = scores.argmax(0)
        found += [(*look.boxes[k].tolist(), c, _two(scores[k, c])) for c, k in enumerate(best)]
        frames = [
            (*(round(scale * v, 1) for v in (x0, y0, x1 - x0, y1 - y0)), c, score)
            for x0, y0, x1, y1, c, score in found
        ]
        pixels = coloured(reduce_pixels(look.image[0].numpy(), 184))
        shown.append(_Shown(pixels, round(scale * look.image.shape[2], 1), frames))
    return shown


def _two(value: float) -> str:
    """Two digits, halves up as in the script."""
    return f"{np.floor(100 * value + 0.5) / 100:.2f}"


def _lessons(right: int, count: int) -> str:
    return f" and in {right} of the {count} it has learned from"


def _place(prob: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n 2"]:
    """Put points (p benign, p malignant) into the scene: malignant goes right, benign up."""
    return np.stack([LEFT + SIDE * prob[:, 1], TOP + SIDE * (1 - prob[:, 0])], 1)


def _radii(places: Float[np.ndarray, "n 2"]) -> list[float]:
    """Return how far around each point a click counts: up to 13, less where its neighbour is close."""
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag(np.full(len(places), np.inf))
    return np.round(np.clip(0.7 * apart.min(1), 6, 13), 1).tolist()


def _tint(cells: Int[np.ndarray, "g g"]) -> np.ndarray:
    rgba = np.zeros((*cells.shape, 4), np.uint8)
    palette = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in COLOURS[:3]]
    rgba[..., :3], rgba[..., 3] = np.array(palette)[cells], 60
    return rgba


def _point(
    scene: Scene, x: Length, y: Length, kind: int, full: bool, size: Length = 1, opacity: Length = 1
) -> None:
    """Draw circle, square, triangle or diamond; those of lines are full where their line is thick."""
    colour, fill = COLOURS[kind], COLOURS[kind] if full else None
    if kind == 0:
        scene.circle(x, y, 4.5 * size, colour, fill=fill, stroke=1.8, opacity=opacity)
    elif kind == 1:
        side = 8.5 * size
        corner = x - side / 2, y - side / 2
        scene.rect(*corner, side, side, colour, fill=fill, stroke=1.8, opacity=opacity)
    else:
        reach = size * (REACH_FULL if full else REACH)[kind]
        corners = [(x + reach * across, y + reach * down) for across, down in CORNERS[kind]]
        # The first side twice, so that all corners are joined.
        scene.line(corners + corners[:2], colour, stroke=4.2 if full else 1.8, opacity=opacity)


def _draw_axes(scene: Scene) -> None:
    scene.rect(LEFT, TOP, SIDE, SIDE, stroke=1)
    end = TOP + SIDE
    for share in (0, 0.5, 1):
        x, y = LEFT + SIDE * share, end - SIDE * share
        scene.text(x, end + 24, f"{share:g}", size=15, anchor="middle")
        scene.text(LEFT - 8, y + 5, f"{share:g}", size=15, anchor="end")
    scene.text(LEFT + SIDE / 2, end + 42, "p(malignant)", size=15, anchor="middle", bold=True)
    scene.text(2, TOP - 10, "p(benign)", size=15, bold=True)
    scene.text(LEFT + 6, end - 8, "normal", size=15)
    scene.text(LEFT + 6, TOP + 18, "benign", size=15)
    scene.text(LEFT + SIDE - 6, end - 8, "malignant", size=15, anchor="end")
    scene.text(LEFT + SIDE - 6, TOP + 18, "both", size=15, anchor="end")


def _draw_mammogram(scene: Scene, shown: _Shown) -> None:
    scene.image(shown.pixels, 0, ROW, shown.width, TALL, smooth=True)
    for x, y, width, height, c, score in shown.frames:
        colour = (BENIGN, MALIGNANT)[c]
        scene.rect(x, ROW + y, width, height, colour, stroke=2 if score else 2.5, dashed=score is None)
        if score:
            scene.text(x + width + 2, ROW + y + 12, f"{FINDINGS[c][0].upper()} {score}", size=14, halo=True)
