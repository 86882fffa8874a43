import sys
import time
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mammomil.plots import COLOURS, alt_text, prediction_panel, save_figure
from mammomil.region_plots import best_regions, region_panel, score_map
from mammomil.types import FINDINGS, Prediction


def windows(height, width, side, stride):
    """Windows of an image, row by row, that overlap and stay inside."""
    rows, columns = range(0, height - side + 1, stride), range(0, width - side + 1, stride)
    return np.array([[x, y, x + side, y + side] for y in rows for x in columns], float)


def prediction(height=300, width=200, side=28, stride=14, k=10, **changes):
    """A dual-branch network's answer: k windows are selected per finding, their scores add up to `prob`."""
    rng = np.random.default_rng(0)
    boxes = windows(height, width, side, stride)
    selected = np.zeros((len(boxes), 2), bool)
    for c in range(2):
        selected[rng.permutation(len(boxes))[:k], c] = True
    scores = np.where(selected, rng.random(selected.shape), 0)
    prob = np.array([0.21, 0.83])
    scores *= prob / scores.sum(0)
    base = Prediction(
        image_id="a_L-CC", path="a.png", model="m", laterality="L", view="CC", prob=prob, p_normal=0.1343,
        parts={}, saliency=None, map_box=None, boxes=boxes, scores=scores, attention=None, selected=selected,
    )  # fmt: skip
    return base._replace(**changes)


def tissue(height=300, width=200):
    return np.random.default_rng(1).uniform(0.4, 0.6, (height, width)).astype(np.float32)


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        found += [ax.get_title(), ax.get_xlabel(), *(text.get_text() for text in ax.texts)]
    return found


def titled(figure, words):
    (ax,) = [ax for ax in figure.axes if ax.get_title() == words]
    return ax


def rectangles(ax, linestyle="solid"):
    """Corner, width, height and colour of each rectangle with a finding's colour."""
    colours = {to_rgb(colour): finding for finding, colour in COLOURS.items()}
    return [
        (colours[patch.get_edgecolor()[:3]], *patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in ax.patches
        if patch.get_linestyle() == linestyle and patch.get_edgecolor()[:3] in colours
    ]


def drawn(figure, tmp_path):
    save_figure(figure, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        return np.asarray(image.convert("RGB")).astype(float)


def place(figure, ax, x, y):
    """Row and column of the saved picture where the data point (x, y) of `ax` lies."""
    column, up = ax.transData.transform((x, y))
    return round(figure.bbox.height - up), round(column)


def naive_score(p, c, x, y):
    """The highest score of the ranked regions over a point of the file, NaN where there is none."""
    over = [
        p.scores[k, c]
        for k, (x0, y0, x1, y1) in enumerate(p.boxes)
        if x0 <= x < x1 and y0 <= y < y1 and (p.selected is None or p.selected[k, c])
    ]
    return max(over, default=np.nan)


@pytest.mark.parametrize("selection", [True, False])
@pytest.mark.parametrize(("size", "shape"), [((300, 200), (300, 200)), ((301, 203), (101, 68))])
def test_the_score_map_is_the_highest_score_of_the_regions_over_each_cell(selection, size, shape):
    p = prediction(*size)
    boxes = np.concatenate([p.boxes + 0.4, [[-20, -30, 9, 8.5], [190, 280, 260, 330]]])  # past the border
    rng = np.random.default_rng(2)
    p = p._replace(
        boxes=boxes,
        scores=rng.random((len(boxes), 2)),
        selected=rng.random((len(boxes), 2)) < 0.1 if selection else None,
    )
    for c in range(2):
        cells = score_map(p, c, shape, size)
        centres = [(np.arange(n) + 0.5) * length / n for n, length in zip(shape, size, strict=True)]
        naive = np.array([[naive_score(p, c, x, y) for x in centres[1][::5]] for y in centres[0][::7]])
        np.testing.assert_array_equal(cells[::7, ::5], naive)
        assert np.isnan(naive).any() or not selection


@pytest.mark.parametrize("c", [0, 1])
def test_the_panel_draws_that_map_where_it_lies(c):
    p = prediction(3000, 2000, 280, 140)
    figure = region_panel(np.zeros((3000, 2000), np.float32), p)
    image = figure.axes[c + 1].images[1]
    cells = image.get_array().filled(np.nan)
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0, 2000, 3000, 0)
    for x, y in np.random.default_rng(3).uniform(0, [2000, 3000], (300, 2)):
        row, column = int(y * cells.shape[0] / 3000), int(x * cells.shape[1] / 2000)
        centre = (column + 0.5) * 2000 / cells.shape[1], (row + 0.5) * 3000 / cells.shape[0]
        np.testing.assert_equal(cells[row, column], naive_score(p, c, *centre))


def test_ranked_regions_are_lit_and_the_rest_is_dimmed(tmp_path):
    boxes = np.array([[20, 30, 60, 70], [120, 30, 160, 70], [20, 200, 60, 240.0]])
    p = prediction(
        boxes=boxes,
        scores=np.array([[0.9, 0], [0, 0.0], [0, 0.2]]),
        selected=np.array([[True, False], [True, False], [False, True]]),
        prob=np.array([0.9, 0.2]),
    )
    figure = region_panel(np.pad(np.full((298, 198), 0.5, np.float32), 1), p)
    picture = drawn(figure, tmp_path)
    grey, colour = picture.mean(-1), picture.max(-1) - picture.min(-1)
    _, benign, malignant = figure.axes[:3]
    coloured, lit, dimmed = (place(figure, benign, x, y) for x, y in ((40, 50), (140, 50), (40, 220)))
    assert colour[coloured] > 100
    assert max(colour[lit], colour[dimmed]) < 5
    assert grey[lit] > 2 * grey[dimmed] > 20  # ranked with a score of 0, and not ranked
    assert colour[place(figure, malignant, 40, 220)] > 20
    assert grey[place(figure, malignant, 40, 50)] == grey[dimmed]
    every = region_panel(np.pad(np.full((298, 198), 0.5, np.float32), 1), p._replace(selected=None))
    grey = drawn(every, tmp_path).mean(-1)
    assert grey[place(every, every.axes[1], 40, 220)] == grey[place(every, every.axes[1], 140, 50)]


def test_the_boxes_are_those_of_the_highest_scores():
    p = prediction()
    figure = region_panel(tissue(), p)
    expected = {
        (c, k) for c in range(2) for k in sorted(range(len(p.boxes)), key=lambda k: -p.scores[k, c])[:3]
    }
    assert set(rectangles(figure.axes[0])) == {(FINDINGS[c], *p.boxes[k, :2], 28, 28) for c, k in expected}
    for c, finding in enumerate(FINDINGS):
        for rank, k in enumerate(best_regions(p, c), 1):
            crop = titled(figure, f"{finding[0].upper()}{rank}")
            x0, y0, x1, y1 = p.boxes[k]
            assert tuple(crop.images[0].get_extent()) == (x0, x1, y1, y0)
            pixels = tissue()[int(y0) : int(y1), int(x0) : int(x1)]
            np.testing.assert_array_equal(crop.images[0].get_array(), pixels)
            bars = figure.axes[figure.axes.index(crop) + 1]
            assert [bar.get_width() for bar in bars.patches[2:]] == list(p.scores[k])


def test_marks_tell_findings_and_ranks_apart_without_colour():
    p = prediction()
    figure = region_panel(tissue(), p)
    marks = {text.get_text(): tuple(text.xy) for text in figure.axes[0].texts}
    corners = {f"B{n}": tuple(p.boxes[k, :2]) for n, k in enumerate(best_regions(p, 0), 1)}
    corners |= {f"M{n}": tuple(p.boxes[k, 2:]) for n, k in enumerate(best_regions(p, 1), 1)}
    assert marks == corners
    widths = {to_rgb(patch.get_edgecolor()): patch.get_linewidth() for patch in figure.axes[0].patches}
    assert widths[to_rgb(COLOURS["malignant"])] >= 2 * widths[to_rgb(COLOURS["benign"])]


def test_nothing_is_drawn_for_scores_of_zero():
    p = prediction()
    scores = p.scores.copy()
    scores[:, 0] = 0
    scores[np.argsort(-scores[:, 1])[1:], 1] = 0
    figure = region_panel(tissue(), p._replace(scores=scores))
    assert [box[0] for box in rectangles(figure.axes[0])] == ["malignant"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["M1"]
    said = texts(figure)
    assert "No region scores above 0\nfor benign." in said
    assert "10 of 260 regions ranked for benign, best 0" in said
    assert not {"B1", "M2", "M3"} & set(said)
    assert not any("add up to the image's probability" in words for words in said)  # here they do not
    figure = region_panel(tissue(), p._replace(scores=np.zeros_like(scores)))
    assert rectangles(figure.axes[0]) == []
    assert not any(words.startswith("Bars") for words in texts(figure))


def test_equal_scores_keep_their_order():
    p = prediction(scores=np.full((260, 2), 0.004))
    assert best_regions(p, 0) == [0, 1, 2]


def test_every_number_is_said():
    p = prediction()
    said = texts(region_panel(tissue(), p))
    for words in ("benign 0.21", "malignant 0.83", "normal 0.13", "a_L-CC", "left, CC. Model m.",
                  f"10 of 260 regions ranked for malignant, best {p.scores[:, 1].max():.2f}"):  # fmt: skip
        assert words in said
    assert "coloured by score; dark: not ranked" in said
    assert any("add up to the image's probability" in words for words in said)
    said = texts(region_panel(tissue(), p._replace(selected=None)))
    assert f"All 260 regions ranked for benign, best {p.scores[:, 0].max():.2f}" in said
    assert not any("dark" in words for words in said)


@pytest.mark.parametrize(("score", "words"), [(0.0049, "<0.01"), (0.005, "0.01"), (0.416, "0.42"), (0, "0")])
def test_small_scores_are_not_taken_for_none(score, words):
    p = prediction(k=1, boxes=np.array([[0, 0, 9, 9.0]]), selected=np.ones((1, 2), bool),
                   scores=np.array([[0.3, score]]))  # fmt: skip
    said = texts(region_panel(tissue(), p))
    assert f"1 of 1 region ranked for malignant, best {words}" in said
    assert words in said  # beside the bar


@pytest.mark.parametrize("prob", [(0.0, 0.0), (0.25, 1.0), (1.0, 0.0)])
def test_the_point_lies_where_the_probabilities_say(prob):
    figure = region_panel(tissue(), prediction(prob=np.array(prob)))
    plane = titled(figure, "Probability plane")
    (point,) = plane.lines
    assert (point.get_ydata()[0], point.get_xdata()[0]) == prob
    assert (plane.get_xlabel(), plane.get_ylabel()) == ("p(malignant)", "p(benign)")
    box = plane.get_window_extent()
    assert box.width == pytest.approx(box.height)
    corners = {text.get_text(): np.round(text.get_position()).tolist() for text in plane.texts}
    assert corners == {"N": [0, 0], "B": [0, 1], "M": [1, 0], "MB": [1, 1]}
    x, y = plane.transData.transform((prob[1], prob[0]))
    assert all(
        np.hypot(*(plane.transData.transform(text.get_position()) - (x, y))) > 8 for text in plane.texts
    )


def test_known_findings_are_dashed_in_all_pictures():
    truth = {"malignant": np.array([[10, 20, 60, 80.0]]), "benign": np.zeros((0, 4))}
    figure = region_panel(tissue(), prediction(), truth)
    for ax in figure.axes[:3]:
        assert rectangles(ax, "--") == [("malignant", 10, 20, 50, 60)]
    assert "dashed: known findings, in the colour of their kind" in texts(figure)
    assert not any("dashed" in words for words in texts(region_panel(tissue(), prediction())))


def test_panels_of_both_kinds_have_one_layout():
    p = prediction()
    maps = p._replace(
        saliency=np.zeros((2, 9, 6)), map_box=np.array([0, 0, 200, 300.0]), attention=np.full(6, 1 / 6),
        boxes=p.boxes[:6], scores=p.scores[:6], selected=None,
    )  # fmt: skip
    regions, patches = region_panel(tissue(), p), prediction_panel(tissue(), maps)
    np.testing.assert_allclose(regions.get_size_inches(), patches.get_size_inches())
    for one, other in zip(regions.axes[:4], patches.axes[:4], strict=True):  # the fourth is the colour bar
        np.testing.assert_allclose(one.get_position().bounds, other.get_position().bounds)
    heads = [[(t.get_text(), t.get_position()) for t in figure.texts[:5]] for figure in (regions, patches)]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("shape", [(2944, 1920), (368, 240), (300, 900), (40, 32)])
def test_panels_are_small_and_quick(tmp_path, shape):
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    pixels = 0.5 + 0.3 * np.sin(12 * x) * np.cos(9 * y) + np.random.default_rng(0).normal(0, 0.03, shape)
    pixels = pixels.astype(np.float32)
    side = min(shape) // 8
    region_panel(tissue(), prediction())  # matplotlib finds its fonts once
    start = time.process_time()
    size = save_figure(region_panel(pixels, prediction(*shape, side, side // 2)), tmp_path / "x.png")
    assert time.process_time() - start < 5  # about 0.8 s on a free machine
    assert size[0] == 1536
    assert size[1] <= 1600
    assert (tmp_path / "x.png").stat().st_size < 1.5e6


@pytest.mark.parametrize(
    "box", [(-14, -14, 14, 14), (186, 286, 214, 314), (-50, -50, 300, 400), (210, 0, 230, 9)]
)
def test_regions_past_the_border_are_drawn_as_far_as_they_go(tmp_path, box):
    p = prediction(k=1, boxes=np.array([box], float), selected=np.ones((1, 2), bool),
                   scores=np.array([[0.21, 0.83]]))  # fmt: skip
    figure = region_panel(tissue(), p)
    save_figure(figure, tmp_path / "x.png")
    for ax in figure.axes[:3]:
        assert (ax.get_xlim(), ax.get_ylim()) == ((0, 200), (300, 0))
    x0, y0, x1, y1 = box
    part = tissue()[max(y0, 0) : y1, max(x0, 0) : x1]
    crop = titled(figure, "M1")
    if part.size:
        np.testing.assert_array_equal(crop.images[0].get_array(), part)
    else:
        assert "outside\nthe image" in texts(figure)
    for text in figure.axes[0].texts:  # the marks stay on the picture
        assert 0 <= text.xy[0] <= 200
        assert 0 <= text.xy[1] <= 300


def test_an_image_without_regions_is_drawn(tmp_path):
    none = prediction(boxes=np.zeros((0, 4)), scores=np.zeros((0, 2)), selected=np.zeros((0, 2), bool))
    save_figure(region_panel(np.full((300, 200), 7, np.float32), none), tmp_path / "x.png")


@pytest.mark.parametrize("name", ["$\\frac{1$ $x_", "乳房\udcff\n\x07", "<b>" + "long" * 100])
def test_odd_names_are_drawn_as_text(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing from the font would warn
        figure = region_panel(tissue(), prediction(image_id=name, model=name))
        save_figure(figure, tmp_path / "x.png")
    if name.startswith("$"):
        assert name in texts(figure)


def test_pyplot_stays_out_of_it():
    assert "pyplot" not in vars(sys.modules["mammomil.region_plots"])
    assert "plt" not in vars(sys.modules["mammomil.region_plots"])


def test_alt_text_names_the_region_ranked_first_for_the_likelier_finding():
    boxes = np.array([[0, 0, 28, 28], [100, 200, 128, 228], [14, 0, 42, 28.0]])
    p = prediction(
        boxes=boxes,
        scores=np.array([[0.2, 0.1], [0.01, 0.7], [0, 0.03]]),
        selected=np.array([[True, True], [True, True], [False, True]]),
    )
    start = "Left CC mammogram a_L-CC: the model m gives 0.21 for benign and 0.83 for malignant. "
    assert alt_text(p) == start + (
        "3 of 3 regions ranked for malignant; the first, centred at column 114, row 214, scores 0.70."
    )
    assert alt_text(p._replace(selected=None)).removeprefix(start).startswith("All 3 regions ranked")
    likelier = alt_text(p._replace(prob=np.array([0.5, 0.4])))
    assert likelier.endswith(
        "2 of 3 regions ranked for benign; the first, centred at column 14, row 14, scores 0.20."
    )
    none = alt_text(p._replace(scores=np.zeros((3, 2))))
    assert none == start + "3 of 3 regions ranked for malignant; none scores above 0."


def test_what_ranks_regions_is_told_from_what_does_not():
    p = prediction()
    assert p.ranks_regions
    assert p._replace(selected=None).ranks_regions
    assert not p._replace(selected=None, attention=np.full(len(p.boxes), 1 / len(p.boxes))).ranks_regions
    classifier = p._replace(selected=None, boxes=np.zeros((0, 4)), scores=np.zeros((0, 2)))
    assert not classifier.ranks_regions
