import json
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from mammomil.files import InputError
from mammomil.plots import COLOURS, alt_text, learning_curve, prediction_panel, save_figure
from mammomil.types import Prediction


def prediction(height=300, width=200, k=6, **changes):
    """A prediction whose malignant map has one hot cell, row 5 and column 12 of 23 x 15."""
    rng = np.random.default_rng(0)
    saliency = np.zeros((2, 23, 15))
    saliency[1, 5, 12] = 0.9
    corners = rng.uniform(0, 0.8, (k, 2)) * [width, height]
    base = Prediction(
        image_id="a_L-CC",
        path="a.png",
        model="m",
        laterality="L",
        view="CC",
        prob=np.array([0.21, 0.83]),
        p_normal=0.134,
        parts={"loc": np.array([0.2, 0.9]), "mil": np.array([0.22, 0.76])},
        saliency=saliency,
        map_box=np.array([0.0, 0.0, width, height]),
        boxes=np.concatenate([corners, corners + 0.15 * width], 1),
        scores=rng.random((k, 2)),
        attention=rng.dirichlet(np.ones(k)),
    )
    return base._replace(**changes)


def tissue(height=300, width=200):
    return np.random.default_rng(1).uniform(0.4, 0.6, (height, width)).astype(np.float32)


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for ax in figure.axes:
        found += [ax.get_title(), ax.get_xlabel(), *(text.get_text() for text in ax.texts)]
    return found


def drawn(figure, tmp_path):
    save_figure(figure, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        return np.asarray(image.convert("RGB")).astype(float)


def place(figure, ax, x, y):
    """Row and column of the saved picture where the data point (x, y) of `ax` lies."""
    column, up = ax.transData.transform((x, y))
    return round(figure.bbox.height - up), round(column)


def test_the_hot_cell_is_painted_where_it_lies_in_the_file(tmp_path):
    p = prediction(map_box=np.array([20.0, 30.0, 220.0, 330.0]))  # reaches past the image
    figure = prediction_panel(tissue(), p)
    picture = drawn(figure, tmp_path)
    saturation = picture.max(-1) - picture.min(-1)
    image, benign, malignant = figure.axes[:3]
    x, y = 20 + 200 * 12.5 / 15, 30 + 300 * 5.5 / 23
    assert saturation[place(figure, malignant, x, y)] > 60
    assert saturation[place(figure, malignant, 180 - (x - 40), y)] < 5  # its mirror image
    assert saturation[place(figure, malignant, x, 250)] < 5
    assert saturation[place(figure, benign, x, y)] < 5
    # The maps show the part of the file they cover, the image shows all of it.
    assert (image.get_xlim(), image.get_ylim()) == ((0, 200), (300, 0))
    assert (malignant.get_xlim(), malignant.get_ylim()) == ((20, 200), (300, 30))


def test_pixels_of_a_large_image_stay_where_they_are(tmp_path):
    pixels = np.zeros((3001, 2003), np.float32)
    pixels[2400:2500, 1500:1600] = 1
    figure = prediction_panel(
        pixels, prediction(3001, 2003, k=0, saliency=None, map_box=None, attention=None)
    )
    picture = drawn(figure, tmp_path)[..., 0]
    (ax,) = figure.axes
    assert picture[place(figure, ax, 1550, 2450)] > 200
    for x, y in ((1450, 2450), (1650, 2450), (1550, 2350), (1550, 2550)):
        assert picture[place(figure, ax, x, y)] < 50


def test_patches_are_numbered_by_attention_and_show_their_pixels(tmp_path):
    boxes = np.array([[0, 0, 50, 50], [50, 0, 100, 50], [100, 0, 150, 50.0]])
    pixels = np.zeros((300, 200), np.float32)
    pixels[:, 50:100], pixels[:, 100:150] = 0.5, 1
    p = prediction(k=3, boxes=boxes, attention=np.array([0.2, 0.7, 0.1]))
    figure = prediction_panel(pixels, p)
    picture = drawn(figure, tmp_path)[..., 0]
    titled = {ax.get_title(): ax for ax in figure.axes}
    middle = [
        (titled[title], x) for title, x in (("1: attention 0.70", 75), ("2: attention 0.20", 25),
                                            ("3: attention 0.10", 125))
    ]  # fmt: skip
    grey = [picture[place(figure, ax, x, 25)] for ax, x in middle]
    assert grey[1] < 10 < grey[0] - 90 < grey[2] - 180
    numbers = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert {n: tuple(xy) for n, xy in numbers.items()} == {"1": (50, 0), "2": (0, 0), "3": (100, 0)}


def test_every_number_is_said():
    p = prediction()
    said = " ".join(texts(prediction_panel(tissue(), p)))
    for words in (
        "benign 0.21",
        "malignant 0.83",
        "normal 0.13",
        "(map 0.90, patches 0.76)",
        "a_L-CC",
        "left, CC",
    ):
        assert words in said
    for score in p.scores.ravel():
        assert f"{score:.2f}" in said


def test_known_findings_are_drawn_in_their_colour():
    figure = prediction_panel(tissue(), prediction(), {"malignant": np.array([[10, 20, 60, 80.0]]),
                                                      "benign": np.zeros((0, 4))})  # fmt: skip
    for ax in figure.axes[:3]:
        boxes = [patch for patch in ax.patches if patch.get_linestyle() == "--"]
        assert [(b.get_xy(), b.get_width(), b.get_height()) for b in boxes] == [((10, 20), 50, 60)]
        assert boxes[0].get_edgecolor()[:3] == pytest.approx(
            [int(COLOURS["malignant"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        )


@pytest.mark.parametrize("changes", [
    {"saliency": None, "map_box": None, "boxes": np.zeros((0, 4)), "scores": np.zeros((0, 2)),
     "attention": None, "parts": {}},
    {"saliency": None, "map_box": None, "attention": None},
    {"boxes": np.tile([200.0, 50, 200, 90], (6, 1))},  # a patch wholly outside the image
    {"laterality": "", "view": ""},
], ids=["classifier", "regions only", "outside", "unknown view"])  # fmt: skip
def test_missing_parts_are_left_out(tmp_path, changes):
    figure = prediction_panel(tissue(), prediction(**changes))
    assert save_figure(figure, tmp_path / "x.png")[0] <= 1600
    said = " ".join(texts(figure))
    assert ("attention" in said) == (changes.get("attention", 0) is not None)
    assert ("Map of" in said) == (changes.get("saliency", 0) is not None)
    assert ("outside" in said) == ("boxes" in changes and len(changes["boxes"]) > 0)


@pytest.mark.parametrize("shape", [(4096, 3328), (300, 900), (1024, 1024), (40, 32)])
def test_panels_are_small_and_quick(tmp_path, shape):
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    pixels = 0.5 + 0.3 * np.sin(12 * x) * np.cos(9 * y) + np.random.default_rng(0).normal(0, 0.03, shape)
    pixels = pixels.astype(np.float32)  # twice the noise of a mammogram, and no air, which compresses best
    prediction_panel(tissue(), prediction())  # matplotlib finds its fonts once
    start = time.process_time()
    width, height = save_figure(prediction_panel(pixels, prediction(*shape)), tmp_path / "x.png")
    assert time.process_time() - start < 5  # about 0.8 s on a free machine
    assert width <= 1600
    assert height <= 1600
    assert (tmp_path / "x.png").stat().st_size < 1.5e6


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_is_drawn(tmp_path, value):
    save_figure(prediction_panel(np.full((300, 200), value, np.float32), prediction()), tmp_path / "x.png")


@pytest.mark.parametrize("name", ["$\\frac{1$ $x_", "乳房\udcff\n\x07", "<b>" + "long" * 100])
def test_odd_names_are_drawn_as_text(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing from the font would warn
        figure = prediction_panel(tissue(), prediction(image_id=name, model=name))
        save_figure(figure, tmp_path / "x.png")
    if name.startswith("$"):
        assert name in texts(figure)


def test_many_patches_are_cut_to_sixteen():
    figure = prediction_panel(tissue(), prediction(k=200))
    assert sum(ax.get_title().endswith(": attention 0.02") for ax in figure.axes) <= 16
    assert "16" in {text.get_text() for text in figure.axes[0].texts}
    assert "17" not in {text.get_text() for text in figure.axes[0].texts}


def test_the_scale_of_the_maps_can_be_stated():
    figure = prediction_panel(tissue(), prediction(), saliency_max=0.1)
    (bar,) = [ax for ax in figure.axes if ax.get_title() == "saliency"]
    assert bar.get_ylim() == (0, 0.1)


def test_words_stay_on_the_sheet_and_beside_the_pictures(tmp_path):
    figure = prediction_panel(tissue(), prediction(image_id="m" + "long" * 100))
    save_figure(figure, tmp_path / "x.png")
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)
    (bar,) = [ax for ax in figure.axes if ax.get_title() == "saliency"]
    title = bar.title.get_window_extent()
    assert figure.axes[2].get_window_extent().x1 < title.x0
    assert title.x1 < figure.bbox.x1


@pytest.mark.parametrize(("score", "words"), [(0, "0"), (0.0049, "<0.01"), (0.005, "0.01"), (1, "1.00")])
def test_a_small_score_is_not_taken_for_none(score, words):
    figure = prediction_panel(tissue(), prediction(k=1, scores=np.array([[0.5, score]])))
    assert [text.get_text() for text in figure.axes[-1].texts] == ["0.50", words]


def test_pyplot_stays_out_of_it():
    for name in ("panels", "plots"):
        assert not {"pyplot", "plt"} & set(vars(sys.modules[f"mammomil.{name}"]))


def test_alt_text_names_finding_and_place():
    p = prediction(
        k=2, boxes=np.array([[0, 0, 10, 10], [100, 200, 120, 260.0]]), attention=np.array([0.3, 0.7])
    )
    assert alt_text(p) == (
        "Left CC mammogram a_L-CC: the model m gives 0.21 for benign and 0.83 for malignant. The largest "
        "attention, 0.70, is on a patch centred at column 110, row 230."
    )
    p = p._replace(laterality="", view="", attention=None)
    assert alt_text(p) == "Mammogram a_L-CC: the model m gives 0.21 for benign and 0.83 for malignant."


def epochs(tmp_path, *rows):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def test_learning_curve_draws_each_figure_at_its_epoch(tmp_path):
    rows = [
        {
            "epoch": 0,
            "train": {"loc": 3.0, "mil": 1.0},
            "val": {"loss": 5.0, "auc_malignant": None},
            "best": True,
        },
        {
            "epoch": 1,
            "train": {"loc": 2.0, "mil": 0.5},
            "val": {"loss": 4.0, "auc_malignant": 0.3},
            "best": True,
        },
        {"epoch": 2, "train": {"loc": 1.0, "mil": 0.2, "reg": 0.1}, "seconds": 3.0, "best": False},
    ]
    figure = learning_curve(epochs(tmp_path, *rows))
    loss, auc = figure.axes
    np.testing.assert_array_equal(lines(loss)["training: loc"], [3, 2, 1])
    np.testing.assert_allclose(lines(loss)["training: sum of terms"], [4, 2.5, 1.3])
    np.testing.assert_array_equal(lines(loss)["training: reg"], [np.nan, np.nan, 0.1])
    np.testing.assert_array_equal(lines(loss)["validation: sum of terms"], [5, 4, np.nan])
    np.testing.assert_array_equal(lines(auc)["malignant"], [np.nan, 0.3, np.nan])
    assert "benign" not in lines(auc)
    assert auc.get_ylim()[0] < 0.3
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [1, 2, 3])
    assert "best epoch: 2" in lines(auc)
    save_figure(figure, tmp_path / "x.png")


def test_learning_curve_of_a_run_without_validation(tmp_path):
    figure = learning_curve(epochs(tmp_path, {"epoch": 0, "train": {"loc": 1.0}}))
    assert "not validated" in " ".join(texts(figure))
    save_figure(figure, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "holds no epoch yet"),
        ('{"epoch": 0, "train": {}}\n{"epo', "line 2: no epoch"),
        ("[1]\n", "line 1"),
        ('{"epoch": 0, "train": 3}', "line 1"),
        ("\udcff", "cannot read"),
    ],
)
def test_learning_curve_names_the_bad_line(tmp_path, content, match):
    (tmp_path / "m.jsonl").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=match):
        learning_curve(tmp_path / "m.jsonl")


def test_learning_curve_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no\.jsonl: cannot read"):
        learning_curve(tmp_path / "no.jsonl")
