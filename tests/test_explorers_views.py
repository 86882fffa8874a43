"""The explorer of four views: its words and marks against the phantom's truth, its frames and its size."""

import io
import re

import numpy as np
import pytest
from controls import every_control_changes_the_words
from PIL import Image

from mammomil.dicom import Mammogram
from mammomil.explorers.views import COLUMNS, GAP, HEAD, TALL, WIDE, views_explorer
from mammomil.files import InputError
from mammomil.phantom import render_exam
from mammomil.preprocess import PreprocessConfig, prepare

SEEDS = (203700020, 203700019)


@pytest.fixture(scope="module")
def exams():
    return [render_exam(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def explorer(exams):
    return views_explorer(exams)


def boxes_of(scene, row, column):
    """Rectangles of one view, in pixels of a quick image."""
    x, y = column * (WIDE + GAP), HEAD + row * (TALL + GAP)
    unit = TALL / 368
    found = []
    for kind, mark in scene.marks:
        if kind == "rect" and x - 4 <= mark["x"] < x + WIDE and y - 4 <= mark["y"] < y + TALL:
            left, top = (mark["x"] + 3 - x) / unit, (mark["y"] + 3 - y) / unit
            size = (mark["width"] - 6) / unit, (mark["height"] - 6) / unit
            found.append((left, top, left + size[0], top + size[1]))
    return np.array(sorted(found))


def test_boxes_are_the_truth_and_mirrored_for_the_network(exams, explorer):
    place = {"R-CC": (0, 0), "L-CC": (0, 1), "R-MLO": (1, 0), "L-MLO": (1, 1)}
    for exam in exams:
        stored = explorer.scene(exam=exam.seed, findings=True)
        canvas = explorer.scene(exam=exam.seed, findings=True, network=True)
        for view in exam.views:
            where = place[f"{view.laterality}-{view.view}"]
            truth = np.array(sorted(f.box for f in view.findings)).reshape(-1, 4)
            np.testing.assert_allclose(boxes_of(stored, *where).reshape(-1, 4), truth, atol=1e-6)
            if view.laterality == "R":  # the chest wall is at the edge of the file and of the canvas
                truth[:, [0, 2]] = COLUMNS - truth[:, [2, 0]]
            truth = truth[np.lexsort(truth.T[::-1])]
            np.testing.assert_allclose(boxes_of(canvas, *where).reshape(-1, 4), truth, atol=1e-6)


def test_words_count_the_findings_and_measure_the_masks(exams, explorer):
    words = explorer.scene(findings=True).words
    assert "R-MLO: 1 benign finding." in words
    assert "L-CC: 2 malignant findings." in words
    assert "R-CC: no finding." in words
    shown = explorer.scene(breast=True, muscle=True)
    overlaps = [float(text) for text in re.findall(r"IoU (\d\.\d+)", shown.words)]
    assert len(overlaps) == 6  # four breasts, two muscles
    lines = [np.array(mark["points"]) for kind, mark in shown.marks if kind == "line"]
    assert len(lines) == 6
    # Shoelace area of each outline, against the area of the truth.
    views = {f"{v.laterality}-{v.view}": v for v in exams[0].views}
    truths = [views["R-CC"].breast, views["L-CC"].breast]
    truths += [m for name in ("R-MLO", "L-MLO") for m in (views[name].breast, views[name].pectoral)]
    for points, truth, overlap in zip(lines, truths, overlaps, strict=True):
        x, y = points.T / (TALL / 368)
        area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        assert area == pytest.approx(truth.sum(), rel=0.06)
        assert overlap > 0.93


def test_every_control_changes_the_picture(explorer):
    def frame(**values):
        images = {}
        return explorer.scene(**values).svg(images) + "".join(sorted(images))

    start = frame()
    moves = [{"exam": SEEDS[1]}, *({name: True} for name in ("network", "breast", "muscle", "findings"))]
    assert len({start, *(frame(**move) for move in moves)}) == 6


test_every_control_changes_the_words = every_control_changes_the_words


def test_the_page_is_small_and_loads_nothing(explorer):
    page = explorer.html()
    assert len(page) < 350_000  # two exams; four make twice as much
    assert "http" not in page
    assert np.asarray(Image.open(io.BytesIO(explorer.png()))).std() > 20


def test_a_single_exam_and_another_scale_are_refused(exams):
    with pytest.raises(InputError, match="1 exams"):
        views_explorer(exams[:1])
    small = exams[0].views[0]._replace(pixels=exams[0].views[0].pixels[:100])
    with pytest.raises(InputError, match=str(SEEDS[0])):
        views_explorer([exams[0]._replace(views=(small,)), exams[1]])


def test_colours_and_dashes_tell_the_findings(exams, explorer):
    unit, columns = TALL / 368, {"R": 0, "L": 1}
    for exam in exams:
        marks = explorer.scene(exam=exam.seed, findings=True).marks
        drawn = {(round(m["x"], 3), round(m["y"], 3)): m for kind, m in marks if kind == "rect"}
        for view in exam.views:
            left = columns[view.laterality] * (WIDE + GAP)
            top = HEAD + (view.view == "MLO") * (TALL + GAP)
            for f in view.findings:
                mark = drawn.pop((round(left + unit * f.box[0] - 3, 3), round(top + unit * f.box[1] - 3, 3)))
                malignant = f.finding == "malignant"
                assert mark["colour"] == ("#D55E00" if malignant else "#0072B2")
                assert mark["dashed"] != malignant
        assert not drawn


@pytest.mark.parametrize("network", [False, True])
def test_the_pixels_are_those_of_the_file_or_of_the_canvas(exams, explorer, network):
    views = {f"{v.laterality}-{v.view}": v for v in exams[0].views}
    shown = [m["rgba"] for kind, m in explorer.scene(network=network).marks if kind == "image"]
    for rgba, name in zip(shown, ("R-CC", "L-CC", "R-MLO", "L-MLO"), strict=True):
        view = views[name]
        pixels = view.pixels.astype(np.float32)
        if network:
            mammogram = Mammogram(pixels, view.laterality, view.view, 0.56, ())
            pixels = prepare(mammogram, PreprocessConfig.quick()).image
        grey = 255 * (pixels - pixels.min()) / (pixels.max() - pixels.min())
        np.testing.assert_allclose(rgba[..., 0], grey, atol=2)
