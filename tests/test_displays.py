import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from mammomil.displays import (
    CLASSES,
    BarsDisplay,
    ConfusionDisplay,
    FrocDisplay,
    LearningCurveDisplay,
    ProbabilityPlaneDisplay,
    ReliabilityDisplay,
    RocDisplay,
    figure_alt,
)
from mammomil.files import InputError
from mammomil.plots import CYCLE, save_figure

TABLE_III = [[60, 7, 3], [112, 304, 100], [5, 15, 23]]


def scores(n=120, seed=0, unknown=5):
    """Labels, some of them unknown, and scores with ties."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    s = np.round(np.clip(0.25 + 0.3 * y + rng.normal(0, 0.2, n), 0, 1), 2)
    y[:unknown] = np.nan
    return y, s


def curves(ax):
    return [line for line in ax.lines if (line.get_gid() or "").startswith("curve-")]


def words(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def overlapping_texts(figure):
    """Pairs of visible texts of a figure, legends included, whose boxes touch, and texts outside of it."""
    figure.draw_without_rendering()
    axes = [*figure.axes, *(child for ax in figure.axes for child in ax.child_axes)]
    hidden = set()  # of ticks outside of what an axis shows
    for axis in [axis for ax in axes for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize") and artist.get_visible())
    texts = [text for text in texts if text.get_text().strip() and text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
    page = figure.bbox.padded(1)
    outside = [name for name, box in boxes if not all(page.contains(*corner) for corner in box.corners())]
    pairs = [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)]
    return pairs + outside


def naive_roc(y, s):
    """Every threshold's (false positive share, true positive share), by counting."""
    known = ~np.isnan(y)
    y, s = y[known], s[known]
    steps = sorted(set(s), reverse=True)
    points = [(0.0, 0.0), *((np.mean(s[y == 0] >= t), np.mean(s[y == 1] >= t)) for t in steps)]
    return np.array(points).T


def test_the_roc_curve_and_its_area_are_those_of_counting():
    y, s = scores()
    display = RocDisplay.from_predictions(y, s).plot()
    fpr, tpr = naive_roc(y, s)
    # scikit-learn leaves out points on straight lines: interpolated, both are one curve.
    at = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr, strict=True)}
    assert {(round(a, 9), round(b, 9)) for a, b in zip(display.fpr, display.tpr, strict=True)} <= at
    known = ~np.isnan(y)
    wins = [(a > b) + 0.5 * (a == b) for a in s[known & (y == 1)] for b in s[known & (y == 0)]]
    assert display.auc == pytest.approx(np.mean(wins))
    assert np.trapezoid(display.tpr, display.fpr) == pytest.approx(np.mean(wins))
    (line,) = curves(display.ax_)
    assert np.array_equal(line.get_xydata(), np.stack([display.fpr, display.tpr], 1))
    assert display.counts == ((y == 0).sum(), (y == 1).sum())
    assert display.interval is None
    assert words(display.ax_) == [f"AUC {np.mean(wins):.3f}"]


def test_the_roc_interval_is_that_of_patients_drawn_by_hand():
    y, s = scores(unknown=0)
    patients = np.arange(len(y)) // 4
    display = RocDisplay.from_predictions(y, s, groups=patients, n_resamples=300, name="m")
    rng, areas = np.random.default_rng(5), []
    for _ in range(300):
        drawn = np.concatenate([np.flatnonzero(patients == g) for g in rng.integers(30, size=30)])
        good, bad = s[drawn][y[drawn] == 1], s[drawn][y[drawn] == 0]
        areas.append(np.mean((good[:, None] > bad) + 0.5 * (good[:, None] == bad)))
    assert display.interval == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.015)
    low, high = display.interval
    assert words(display.plot().ax_) == [f"m, AUC {display.auc:.3f} ({low:.2f}-{high:.2f})"]
    assert f"AUC {display.auc:.3f} (95 % interval {low:.2f} to {high:.2f}) over" in display.alt_text()


def test_the_shaded_range_of_sensitivity_has_its_mean_specificity():
    from sklearn.metrics import roc_auc_score

    y, s = scores(unknown=0)
    display = RocDisplay.from_predictions(y, s, min_sensitivity=0.8).plot()
    # The area above a sensitivity is that left of a specificity, with labels and scores turned round.
    mcclish = roc_auc_score(1 - y, -s, max_fpr=0.2)
    area = (2 * mcclish - 1) * (0.2 - 0.02) + 0.02
    assert display.partial_auc == pytest.approx(area / 0.2)
    assert display.ax_.patches[0].get_bbox().intervaly == pytest.approx([0.8, 1])
    assert f"sensitivities from 0.8: {area / 0.2:.3f}." in display.alt_text()
    assert words(RocDisplay.from_predictions(y, -s, min_sensitivity=0.8).plot(display.ax_).ax_)[0].endswith(
        f"pAUCR {area / 0.2:.3f}"
    )
    assert len(display.ax_.patches) == 1


def test_readers_are_marked_where_they_are_and_said():
    y, s = scores()
    display = RocDisplay.from_predictions(y, s, name="model").plot()
    display.mark(0.1, 0.7, "reader A").mark([0.2, 0.4], [0.8, 0.9], "others")
    one, more = (line for line in display.ax_.lines if (line.get_gid() or "").startswith("point-"))
    assert one.get_xydata().tolist() == [[0.1, 0.7]]
    assert more.get_xydata().tolist() == [[0.2, 0.8], [0.4, 0.9]]
    assert one.get_marker() != more.get_marker()
    assert words(display.ax_)[1:] == ["reader A", "others"]
    assert "reader A: sensitivity 0.70 at specificity 0.90" in display.alt_text()
    assert "others: sensitivity 0.85 at specificity 0.70, the mean of 2 points." in display.alt_text()


def test_a_single_class_draws_no_curve_and_says_so(tmp_path):
    y = np.array([0, 0, np.nan])
    display = RocDisplay.from_predictions(
        y, np.arange(3.0), groups=np.arange(3), min_sensitivity=0.8, name="m"
    )
    assert (display.auc, display.fpr, display.interval, display.partial_auc) == (None,) * 4
    assert curves(display.plot().ax_) == []
    assert words(display.ax_) == ["m, only one class, no curve"]
    assert "only one class is known, 0 positives and 2 negatives" in display.alt_text()
    save_figure(display.figure_, tmp_path / "x.png")


def froc_images():
    """Two positives, one hit by its second region of 0.7, one by its second of 0.2; two negatives."""
    hit = {"label": 1.0, "score": 0.9, "region_score": np.array([0.8, 0.7]), "iom": np.array([[0.1], [0.6]])}
    late = {"label": 1.0, "score": 0.8, "region_score": np.array([0.9, 0.2]), "iom": np.array([[0.0], [0.5]])}
    clean = {"label": 0.0, "score": 0.85, "region_score": np.array([0.6, 0.1]), "iom": np.zeros((2, 0))}
    return [hit, late, clean, {**clean, "score": 0.1}]


def test_the_froc_curve_is_that_of_hand_counts():
    display = FrocDisplay.from_predictions(froc_images(), gate=False, name="m").plot()
    # Scores down: .9 miss, .8 miss, .7 hit, .6 two misses, .2 hit, .1 two misses; four images.
    assert display.fppi.tolist() == [0, 0.25, 0.5, 0.5, 1, 1, 1.5]
    assert display.sensitivity.tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]
    assert display.at_one == 1
    (line,) = curves(display.ax_)
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata()[:-1].tolist() == display.fppi.tolist()
    dot = display.ax_.lines[-1]
    assert dot.get_xydata().tolist() == [[1, 1]]
    assert words(display.ax_) == ["m, 1.000 at 1 FPPI"]
    assert display.ax_.get_xlabel() == "false positives per image (FPPI)"
    assert "at 1 false positive per image, 1.000 of the positive images are hit" in display.alt_text()
    assert "ends at 1.50 with 1.000" in display.alt_text()


def test_the_froc_display_gates_and_goes_on_level_to_one():
    # The gate at 0.85 needs both positives, so tau is 0.8: three images, misses .9 .8 .6 .1.
    display = FrocDisplay.from_predictions(froc_images()[:3], alpha=0.55, per="lesion").plot()
    assert display.fppi[-1] == pytest.approx(5 / 3)  # with the region of IoM 0.5
    images = [dict(froc_images()[0], region_score=np.array([0.0, 0.7]))]
    short = FrocDisplay.from_predictions(images).plot()
    (line,) = curves(short.ax_)
    assert (short.fppi[-1], line.get_xydata()[-1].tolist(), short.at_one) == (0, [1, 1], 1)
    assert "image called positive" in short.ax_.get_xlabel()
    assert short.ax_.get_xlim() == (0, 1.5)
    assert "lesions hit" in display.ax_.get_ylabel()


def test_without_positive_images_there_is_no_froc_curve():
    display = FrocDisplay.from_predictions(froc_images()[2:], name="m").plot()
    assert curves(display.ax_) == []
    assert words(display.ax_) == ["m, no positive image to judge"]
    assert "no positive image to judge" in display.alt_text()


def test_a_long_froc_curve_is_cut():
    many = dict(froc_images()[0], region_score=np.linspace(0.2, 1, 40), iom=np.r_[0.9, np.zeros(39)][:, None])
    assert FrocDisplay.from_predictions([many], max_fppi=6.0).plot().ax_.get_xlim() == (0, 6)


PROB = np.array([[0.1, 0.05], [0.9, 0.1], [0.2, 0.8], [0.7, 0.9], [0.5, 0.5], [0.3, 0.3]])
LABEL = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [1, np.nan], [0, 0]], float)


class Nearest:
    """A classifier with a curved border: 2 where p(malignant) is over the square of p(benign) + 0.2."""

    def predict(self, rows):
        benign, malignant = rows.T
        return np.where(malignant > benign**2 + 0.2, 2, np.where(benign > 0.4, 1, 0))


def test_points_of_the_plane_lie_at_malignant_across_and_benign_up():
    display = ProbabilityPlaneDisplay.from_predictions(PROB, LABEL, name="test").plot()
    groups = {line.get_gid(): line for line in display.ax_.lines}
    expected = {"class-0": [[0.05, 0.1], [0.3, 0.3]], "class-1": [[0.1, 0.9]], "class-2": [[0.8, 0.2]],
                "class-3": [[0.9, 0.7]]}  # fmt: skip
    assert {gid: line.get_xydata().tolist() for gid, line in groups.items()} == expected
    for k, (colour, marker) in enumerate(CLASSES.values()):
        assert to_rgb(groups[f"class-{k}"].get_color()) == to_rgb(colour)
        assert groups[f"class-{k}"].get_marker() == marker
    assert display.n_unknown == 1
    assert words(display.ax_) == ["normal (N): 2", "benign (B): 1", "malignant (M): 1", "both (MB): 1"]
    text = display.alt_text()
    assert "of test: 2 normal (N), medians 0.17 and 0.20; 1 benign (B), medians 0.10 and 0.90" in text
    assert text.endswith("Left out with an unknown label: 1.")
    assert display.ax_.get_title() == "test"


def test_decision_regions_are_those_of_the_classifier():
    display = ProbabilityPlaneDisplay.from_predictions(PROB, LABEL, classifier=Nearest(), grid=100).plot()
    (image,) = display.ax_.images
    rng = np.random.default_rng(0)
    at = rng.random((300, 2))  # (benign, malignant)
    cells = (np.floor(at * 100) + 0.5) / 100
    near = Nearest().predict(cells)
    left, right, bottom, top = image.get_extent()
    row = ((at[:, 0] - bottom) / (top - bottom) * 100).astype(int)
    column = ((at[:, 1] - left) / (right - left) * 100).astype(int)
    assert image.origin == "lower"
    assert np.array_equal(image.get_array()[row, column], near)
    assert np.mean(Nearest().predict(at) == near) > 0.97
    for text in display.ax_.texts:  # each name stands in its region
        x, y = text.get_position()
        assert ("normal", "benign", "malignant")[Nearest().predict(np.array([[y, x]]))[0]] == text.get_text()
    # Areas by hand: malignant is under the parabola's right; its share is 1 minus the integral of b^2 + 0.2.
    b = np.sqrt(0.8)
    malignant = 1 - (b**3 / 3 + 0.2 * b + (1 - b))
    assert f"{100 * malignant:.0f} % malignant" in display.alt_text()


def test_a_fitted_support_vector_machine_colours_the_plane():
    from sklearn.svm import SVC

    known = ~np.isnan(LABEL).any(1)
    fitted = SVC(C=100).fit(PROB[known], [0, 1, 2, 2, 0])
    display = ProbabilityPlaneDisplay.from_predictions(PROB, LABEL, classifier=fitted, grid=20)
    for row, column in [(3, 2), (17, 2), (4, 16), (15, 18)]:
        cell = [[(row + 0.5) / 20, (column + 0.5) / 20]]
        assert display.regions[row, column] == fitted.predict(cell)[0]


def test_thresholds_part_the_plane_where_the_score_reaches_them():
    display = ProbabilityPlaneDisplay.from_predictions(PROB, LABEL, thresholds={"malignant": 0.4, "any": 0.3})
    upright, corner = [
        line for line in display.plot().ax_.lines if line.get_label().endswith(("0.40", "0.30"))
    ]
    assert set(upright.get_xdata()) == {0.4}
    assert all(max(x, y) == pytest.approx(0.3) for x, y in corner.get_xydata())
    assert corner.get_xydata().tolist() == [[0, 0.3], [0.3, 0.3], [0.3, 0]]
    assert upright.get_linestyle() != corner.get_linestyle()


def wilson(hits, n):
    z = 1.959963984540054
    middle, half = hits / n + z * z / (2 * n), z * math.sqrt(hits * (n - hits) / n**3 + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def test_reliability_points_and_bars_are_those_of_counting():
    y, p = scores()
    display = ReliabilityDisplay.from_predictions(y, p, n_bins=5, name="m").plot()
    known = ~np.isnan(y)
    y, p = y[known], p[known]
    assert display.count.sum() == len(y)
    assert (display.count * display.observed).sum() == pytest.approx(y.sum())
    assert (display.count * display.mean_predicted).sum() == pytest.approx(p.sum())
    for k in range(len(display.count)):
        hits = round(display.observed[k] * display.count[k])
        assert display.interval[k] == pytest.approx(wilson(hits, display.count[k]))
    assert display.brier == pytest.approx(np.mean((p - y) ** 2))
    held = [sum((p > k / 5) & (p <= (k + 1) / 5) | (p == 0) & (k == 0)) for k in range(5)]
    assert display.histogram.tolist() == held
    (line,) = curves(display.ax_)
    assert np.array_equal(line.get_xydata(), np.stack([display.mean_predicted, display.observed], 1))
    bars = np.array(display.ax_.collections[0].get_segments())
    assert np.array_equal(bars[..., 1], display.interval)
    assert np.array_equal(bars[:, 0, 0], display.mean_predicted)
    assert words(display.ax_) == [f"m, Brier {display.brier:.3f}"]
    assert f"Brier score {display.brier:.3f} over {len(y)} images" in display.alt_text()
    assert (
        f"{display.observed[-1]:.2f} where {display.mean_predicted[-1]:.2f} is predicted"
        in display.alt_text()
    )


def test_reliability_bins_hold_the_predictions_between_their_edges():
    y = np.array([0, 1, 1, 0, 1.0, np.nan])
    p = np.array([0.05, 0.15, 0.31, 0.33, 0.95, 0.5])
    display = ReliabilityDisplay.from_predictions(y, p)
    assert display.mean_predicted == pytest.approx([0.05, 0.15, 0.32, 0.95])
    assert display.observed.tolist() == [0, 1, 0.5, 1]
    assert display.count.tolist() == [1, 1, 2, 1]


def test_reliability_of_one_class_or_of_no_label_does_not_fail(tmp_path):
    display = ReliabilityDisplay.from_predictions(np.zeros(4), np.full(4, 0.2), name="m").plot()
    assert display.observed.tolist() == [0]
    assert "Brier score 0.040 over 4 images" in display.alt_text()
    nothing = ReliabilityDisplay.from_predictions(np.full(3, np.nan), np.full(3, 0.2)).plot(display.ax_)
    assert words(nothing.ax_)[1] == "no known label"
    assert "no label is known" in nothing.alt_text()
    save_figure(display.figure_, tmp_path / "x.png")


def run_file(path, val, train=None, best=()):
    with path.open("w") as file:
        for epoch, value in enumerate(val):
            row = {
                "epoch": epoch,
                "train": {"weak": 1.0},
                "val": {"auc_malignant": value},
                "best": epoch in best,
            }
            if train:
                row["train_figures"] = {"auc_malignant": train[epoch]}
            file.write(json.dumps(row) + "\n")
    return path


def test_learning_curves_are_the_files_numbers(tmp_path):
    one = run_file(tmp_path / "a.jsonl", [0.6, 0.8, 0.7], [0.65, 0.85, 0.95], best=(0, 1))
    two = run_file(tmp_path / "b.jsonl", [0.5, None, 0.9])
    display = LearningCurveDisplay.from_runs({"a": one, "b": two}).plot(name="M vs. BN")
    first, second = curves(display.ax_)
    assert first.get_xydata().tolist() == [[1, 0.6], [2, 0.8], [3, 0.7]]
    assert second.get_ydata()[[0, 2]].tolist() == [0.5, 0.9]
    assert np.isnan(second.get_ydata()[1])
    lines = {line.get_label(): line for line in display.ax_.lines}
    assert lines["a, training"].get_ydata().tolist() == [0.65, 0.85, 0.95]
    assert "b, training" not in lines
    rings = [line.get_xydata().tolist() for line in display.ax_.lines if line.get_markersize() == 12]
    assert rings == [[[2, 0.8]], []]
    text = display.alt_text()
    assert "AUC, malignant: a, best epoch 2 of 3, validation 0.800, training 0.850;" in text
    assert "b, last epoch 3 of 3, validation 0.900, no training figure." in text
    assert display.ax_.get_title() == "M vs. BN"


def test_a_learning_curve_of_one_class_says_so_and_an_unknown_figure_is_named(tmp_path):
    path = run_file(tmp_path / "a.jsonl", [None, None])
    display = LearningCurveDisplay.from_runs(path).plot()
    assert words(display.ax_) == ["no validation figure"]
    assert "no validation figure" in display.alt_text()
    with pytest.raises(InputError, match=r"no epoch has 'auc_odd'. Choose one of: auc_malignant"):
        LearningCurveDisplay.from_runs(path, figure="auc_odd")


def test_rows_of_the_comparison_are_dots_lines_and_diamonds():
    display = BarsDisplay.from_table(
        ["loc", "mil", "$a$"],
        [0.88, None, 0.7],
        [(0.85, 0.9), None, None],
        [0.885, 0.878, None],
        name="malignant",
    ).plot()
    dots, diamonds = display.ax_.lines
    assert dots.get_ydata().tolist() == diamonds.get_ydata().tolist() == [0, 1, 2]
    assert np.array_equal(dots.get_xdata(), [0.88, np.nan, 0.7], equal_nan=True)
    assert np.array_equal(diamonds.get_xdata(), [0.885, 0.878, np.nan], equal_nan=True)
    assert to_rgba(diamonds.get_markerfacecolor())[3] == 0
    assert display.ax_.collections[0].get_segments()[0].tolist() == [[0.85, 0], [0.9, 0]]
    assert display.ax_.yaxis_inverted()
    assert words(display.ax_) == ["ours", "paper"]
    assert display.alt_text() == (
        "Comparison of malignant, AUC, ours: loc 0.880 (0.85 to 0.90), paper 0.885; "
        "mil not measured, paper 0.878; $a$ 0.700."
    )
    with pytest.raises(ValueError, match="3 names need as many"):
        BarsDisplay.from_table(["a", "b", "c"], [1, 2])


def test_a_comparison_without_references_has_no_diamonds():
    display = BarsDisplay.from_table(["a"], np.array([0.5]), np.array([[0.4, 0.6]])).plot()
    assert words(display.ax_) == ["ours"]


def test_the_confusion_matrix_of_table_iii():
    display = ConfusionDisplay.from_matrix(TABLE_III, ["normal", "benign", "malignant"], "Table III").plot()
    (image,) = display.ax_.images
    assert image.get_array()[1].tolist() == pytest.approx([112 / 516, 304 / 516, 100 / 516])
    cells = {text.get_position(): text.get_text() for text in display.ax_.texts}
    assert cells[(0, 0)] == "60\n86 %"  # 60 of 70
    assert cells[(2, 1)] == "100\n19 %"  # column 2, row 1
    assert "387 of 629 right" in display.alt_text()
    assert "of 43 malignant are called 5 normal, 15 benign, 23 malignant." in display.alt_text()
    with pytest.raises(ValueError, match="square matrix"):
        ConfusionDisplay.from_matrix(TABLE_III, ["a", "b"])


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    return linear(np.array(to_rgb(colour))) @ [0.2126, 0.7152, 0.0722]


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@given(st.integers(0, 100))
def test_counts_can_be_read_on_every_grey(share):
    display = ConfusionDisplay.from_matrix([[share, 100 - share], [0, 0]], ["a", "b"]).plot()
    (image,) = display.ax_.images
    grey = image.cmap(image.norm(share / 100))[:3]
    assert contrast(grey, display.ax_.texts[0].get_color()) >= 4.4
    assert display.share[1].tolist() == [0, 0]


def test_colours_differ_to_people_who_see_no_green_or_no_red():
    """Distances in CIELAB after the simulation of Machado, Oliveira and Fernandes (2009)."""
    from skimage.color import rgb2lab

    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    for colours in (CYCLE, [colour for colour, _ in CLASSES.values()]):
        for matrix in (np.eye(3), deutan, protan):
            seen = np.clip(
                linear(np.array([to_rgb(colour) for colour in colours])) @ np.transpose(matrix), 0, 1
            )
            coded = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
            lab = rgb2lab(coded[None])[0]
            apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
            assert apart[np.triu_indices(len(colours), 1)].min() > 15  # 2.3 is just noticeable


@pytest.mark.parametrize("kind", ["roc", "froc", "reliability"])
def test_curves_on_one_axes_differ_in_colour_and_in_dashes(kind):
    y, s = scores()
    ax = Figure().subplots()
    for number in range(6):
        if kind == "roc":
            RocDisplay.from_predictions(y, s, name=f"{number}").plot(ax)
        elif kind == "froc":
            FrocDisplay.from_predictions(froc_images(), name=f"{number}").plot(ax)
        else:
            ReliabilityDisplay.from_predictions(y, s, name=f"{number}").plot(ax)
    lines = curves(ax)
    assert len({line.get_color() for line in lines}) == 6
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 6
    assert len(words(ax)) == 6
    assert sum((line.get_gid() or "") in {"chance", "one", "diagonal"} for line in ax.lines) == 1
    if kind == "reliability":
        assert len({line.get_marker() for line in lines}) == 6
        (below,) = ax.child_axes
        assert len(below.patches) == 6
        assert below.patches[0].get_data().values.sum() == (~np.isnan(y)).sum()


def test_a_line_style_and_a_name_given_to_plot_win():
    y, s = scores()
    display = RocDisplay.from_predictions(y, s, name="own").plot(
        name="$given$ \\x$", color="black", ls=":", lw=3
    )
    (line,) = curves(display.ax_)
    assert (line.get_color(), line.get_linestyle(), line.get_linewidth()) == ("black", ":", 3)
    assert words(display.ax_)[0].startswith("$given$ \\x$, AUC")
    assert display.alt_text().startswith("ROC curve of own:")
    display.figure_.draw_without_rendering()  # the dollar signs start no formula


def test_alternative_texts_join_under_a_title():
    a, b = (ConfusionDisplay.from_matrix([[1]], ["x"], name) for name in "ab")
    one = "of 1 x are called 1 x."
    assert figure_alt(a, b, title="Both.") == (
        f"Both. Confusion matrix of a, 1 of 1 right: {one} Confusion matrix of b, 1 of 1 right: {one}"
    )


def test_texts_of_figures_do_not_overlap_and_lie_on_the_page(tmp_path):
    y, s = scores()
    roc = None
    for number in range(7):
        name = f"dual branch with {number} % of the boxes"
        display = RocDisplay.from_predictions(y, s, min_sensitivity=0.8, name=name)
        roc = display.plot(roc and roc.ax_)
    reliability = ReliabilityDisplay.from_predictions(y, s, name="m").plot()
    for number in range(4):
        ReliabilityDisplay.from_predictions(y, s, name=f"{number}").plot(reliability.ax_)
    plane = ProbabilityPlaneDisplay.from_predictions(
        PROB, LABEL, classifier=Nearest(), thresholds={"malignant": 0.4, "any": 0.3}, name="phantom, test"
    ).plot()
    froc = FrocDisplay.from_predictions(froc_images(), name="m").plot()
    path = run_file(tmp_path / "a.jsonl", [0.6, 0.8, 0.7], [0.65, 0.85, 0.95], best=(1,))
    learning = LearningCurveDisplay.from_runs({"a": path, "b": path, "c": path}).plot(name="M vs. BN")
    bars = BarsDisplay.from_table(
        [f"GMIC-{k}" for k in range(7)], [0.8] * 7, None, [0.9] * 7, name="x"
    ).plot()
    table = ConfusionDisplay.from_matrix(TABLE_III, ["normal", "benign", "malignant"], "x").plot()
    for shown in (roc, reliability, plane, froc, learning, bars, table):
        assert overlapping_texts(shown.figure_) == [], type(shown).__name__
