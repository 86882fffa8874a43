import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from mammomil import froc, intervals, metrics
from mammomil.metrics import (
    any_finding,
    auc_score,
    average_precision,
    bootstrap_ci,
    brier_score,
    expected_calibration_error,
    group_scores,
    mean_score,
    partial_auc_ratio,
    reliability_curve,
    specificity_at_sensitivity,
)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 5)), min_size=1, max_size=12))
def test_auc_score_counts_pairs_and_leaves_unknown_labels_out(rows):
    y, s = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = [(p > n) + 0.5 * (p == n) for p in s[y == 1] for n in s[y == 0]]
    assert auc_score(y, s) == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_the_share_of_no_images_is_not_defined():
    hits = np.array([1.0, 0.0, 0.0, 0.0])
    assert mean_score(hits, hits) == 0.25
    assert mean_score(hits[:0], hits[:0]) is None
    assert bootstrap_ci(mean_score, hits[:0], hits[:0], hits[:0]) is None


def random_scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 25 images with many tied scores and a few unknown labels; sometimes of one class only."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 26)
    y = rng.choice([0.0, 1.0, np.nan], size=n, p=[0.5, 0.4, 0.1])
    return y, rng.integers(rng.integers(1, 12), size=n).astype(float)


def naive_roc(y: np.ndarray, s: np.ndarray) -> list[tuple[float, float]]:
    """(sensitivity, specificity) at every threshold, by counting; empty of one class."""
    pos, neg = ([b for a, b in zip(y, s, strict=True) if a == label] for label in (1, 0))
    if not pos or not neg:
        return []
    return [
        (sum(p >= t for p in pos) / len(pos), sum(n < t for n in neg) / len(neg))
        for t in [np.inf, *sorted(set(pos + neg), reverse=True)]
    ]


def naive_area(curve: list[tuple[float, float]], low: float) -> float:
    """Area over sensitivity [low, 1], trapezoid by trapezoid, each cut at low."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x1 > x0 and x1 > low:
            left = max(x0, low)
            at_left = y0 + (y1 - y0) * (left - x0) / (x1 - x0)
            area += (x1 - left) * (at_left + y1) / 2
    return area


@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.25, 0.5, 0.8, 0.93]))
def test_the_partial_area_agrees_with_a_loop_and_with_scikit_learn(seed, low):
    y, s = random_scores(seed)
    curve = naive_roc(y, s)
    ratio = partial_auc_ratio(y, s, low)
    if not curve:
        assert ratio is None
        return
    assert ratio == pytest.approx(naive_area(curve, low) / (1 - low), abs=1e-12)
    # With labels and scores turned round, the false-positive rate is 1 - sensitivity; undo McClish.
    width, known = 1 - low, ~np.isnan(y)
    v = roc_auc_score(1 - y[known], -s[known], max_fpr=width)
    area = v if low == 0 else (2 * v - 1) * (width - width**2 / 2) + width**2 / 2
    assert ratio == pytest.approx(area / width, abs=1e-12)


@given(st.integers(0, 2**20))
def test_specificities_bound_the_partial_area_that_is_their_mean(seed):
    """The article's Table II obeys these bounds, and McClish's rescaled area would not (reading A24)."""
    y, s = random_scores(seed)
    if (ratio := partial_auc_ratio(y, s)) is None:
        return
    at80, at85, at90, at100 = (
        specificity_at_sensitivity(y, s, at, interpolate=True) for at in (0.8, 0.85, 0.9, 1.0)
    )
    assert ratio >= (at85 + at90 + 2 * at100) / 4 - 1e-12
    assert ratio <= (at80 + at85 + 2 * at90) / 4 + 1e-12
    assert partial_auc_ratio(y, s, 0.0) == pytest.approx(auc_score(y, s))


def test_the_partial_area_gives_the_published_values_of_proc():
    """R pROC's test values for `wfns` of its aSAH data, in 5 grades: sensitivity [.9, 1] and [.8, .9]."""
    poor, good = [2, 12, 1, 8, 18], [37, 20, 3, 8, 4]  # patients with grade 1 to 5
    y = np.repeat([1.0, 0.0], [sum(poor), sum(good)])
    s = np.repeat(np.tile(np.arange(1.0, 6.0), 2), poor + good)
    above_90 = 0.1 * partial_auc_ratio(y, s, 0.9)
    assert above_90 == pytest.approx(0.0400999322493225, abs=1e-15)
    assert 0.2 * partial_auc_ratio(y, s) - above_90 == pytest.approx(0.0609953703703703, abs=1e-15)
    mcclish = 0.5 + (above_90 - 0.005) / (0.1 - 0.005) / 2
    assert mcclish == pytest.approx(0.68473648552275, abs=1e-13)


@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.2, 0.5, 0.6, 0.85, 0.9, 1.0]))
def test_the_specificity_at_a_sensitivity_agrees_with_loops(seed, at):
    y, s = random_scores(seed)
    curve = naive_roc(y, s)
    plain, smooth = (specificity_at_sensitivity(y, s, at, interpolate) for interpolate in (False, True))
    if not curve:
        assert plain is smooth is None
        return
    assert plain == pytest.approx(max(spec for sens, spec in curve if sens >= at))
    crossings = [spec for sens, spec in curve if sens == at]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 < at < x1:
            crossings.append(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    assert smooth == pytest.approx(max(crossings))
    assert smooth >= plain - 1e-12


def test_a_sensitivity_reached_exactly_is_enough():
    """17 of 20 positives are 0.85 of them, in floating point as on paper."""
    y = np.repeat([1.0, 0.0], 20)
    s = np.concatenate([np.arange(20.0), np.arange(20.0) - 0.5])
    assert specificity_at_sensitivity(y, s, 0.85) == pytest.approx(4 / 20)
    assert specificity_at_sensitivity(y, s, 0.86) == pytest.approx(3 / 20)
    assert specificity_at_sensitivity(y, s, 0.86, interpolate=True) == pytest.approx(
        3 / 20
    )  # no ties: a step
    tied = np.array([1.0, 1.0, 0.0]), np.zeros(3)
    assert specificity_at_sensitivity(*tied, 0.5) == 0
    assert specificity_at_sensitivity(*tied, 0.5, interpolate=True) == 0.5
    assert partial_auc_ratio(*tied) == pytest.approx(0.1)  # chance
    pairs = (
        np.tile([1.0, 0.0], 4),
        np.repeat(np.arange(4.0), 2),
    )  # on a straight line, which has thresholds too
    assert specificity_at_sensitivity(*pairs, 0.5) == 0.5


def test_sensitivities_out_of_range_are_refused():
    y = np.array([0.0, 1.0])
    for bad in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="min_sensitivity is in"):
            partial_auc_ratio(y, y, bad)
    for bad in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="sensitivity is in"):
            specificity_at_sensitivity(y, y, bad)


def test_every_metric_is_found_under_metrics():
    assert set(metrics.__all__) <= set(vars(metrics))
    for module in (froc, intervals):
        own = {name for name, v in vars(module).items() if getattr(v, "__module__", 0) == module.__name__}
        shown = {name for name in own if not name.startswith("_")} - {"known_rows", "check_scores"}
        assert shown <= set(metrics.__all__)
        assert all(getattr(metrics, name) is getattr(module, name) for name in shown)


def test_average_precision_worked_out_by_hand():
    y = np.array([1.0, 0.0, 1.0, 0.0, np.nan])
    assert average_precision(y, np.array([4.0, 3.0, 2.0, 1.0, 9.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(y, np.array([4.0, 2.0, 2.0, 1.0, 9.0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(y, np.zeros(5)) == 0.5  # all called together: the share of positives
    assert average_precision(np.ones(3), np.arange(3.0)) is None


@given(st.integers(0, 2**20))
def test_average_precision_agrees_with_a_loop(seed):
    y, s = random_scores(seed)
    rows = [(a, b) for a, b in zip(y, s, strict=True) if a in (0, 1)]
    n, total, found = sum(a for a, _ in rows), 0.0, 0.0
    for t in sorted({b for _, b in rows}, reverse=True):
        called = [a for a, b in rows if b >= t]
        total += (sum(called) - found) * sum(called) / len(called)
        found = sum(called)
    expected = total / n if 0 < n < len(rows) else None
    assert average_precision(y, s) == (None if expected is None else pytest.approx(expected))


def random_probabilities(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 30 probabilities, many on the edges of bins, with labels of which a few are unknown."""
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 31)
    p = np.where(rng.random(n) < 0.5, rng.random(n), rng.integers(0, 11, n) / 10)
    return rng.choice([0.0, 1.0, np.nan], size=n, p=[0.5, 0.4, 0.1]), p


def test_the_brier_score_worked_out_by_hand():
    y, p = np.array([1.0, 0.0, np.nan, 0.0]), np.array([0.8, 0.5, 0.1, 0.0])
    assert brier_score(y, p) == pytest.approx((0.04 + 0.25) / 3)
    assert brier_score(np.zeros(2), np.array([0.5, 1.0])) == 0.625  # one class is enough
    assert brier_score(np.ones(1), np.ones(1)) == 0
    assert brier_score(y[2:3], p[2:3]) is None


@given(st.integers(0, 2**20))
def test_the_brier_score_agrees_with_a_loop(seed):
    y, p = random_probabilities(seed)
    squares = [(a - b) ** 2 for a, b in zip(y, p, strict=True) if a in (0, 1)]
    assert brier_score(y, p) == (pytest.approx(sum(squares) / len(squares)) if squares else None)


def test_a_reliability_curve_worked_out_by_hand():
    """Five bins hold their upper edge, the first its lower one too; the middle one is empty."""
    p = np.array([0.0, 0.2, 0.3, 0.4, 0.7, 0.95, 1.0, 0.5])
    y = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, np.nan])
    mean, share, count = reliability_curve(y, p, 5)
    assert count.tolist() == [2, 2, 1, 2]
    assert mean == pytest.approx([0.1, 0.35, 0.7, 0.975])
    assert share.tolist() == [0.5, 0, 1, 0.5]
    gaps = 2 * 0.4 + 2 * 0.35 + 0.3 + 2 * 0.475
    assert expected_calibration_error(y, p, 5) == pytest.approx(gaps / 7)


def test_equal_quantiles_leave_fewer_bins():
    p = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9])
    mean, share, count = reliability_curve(np.ones(8), p, 4, "quantile")
    assert count.tolist() == [6, 2]  # the quartiles are 0.5, 0.5, 0.6
    assert mean == pytest.approx([2.6 / 6, 0.9])
    assert share.tolist() == [1, 1]
    mean, _, count = reliability_curve(np.ones(4), np.full(4, 0.3), 4, "quantile")
    assert (mean.tolist(), count.tolist()) == ([0.3], [4])


@given(st.integers(0, 2**20), st.integers(1, 12), st.sampled_from(["uniform", "quantile"]))
def test_the_reliability_curve_agrees_with_scikit_learn_and_loses_no_image(seed, n_bins, strategy):
    y, p = random_probabilities(seed)
    known = ~np.isnan(y)
    mean, share, count = reliability_curve(y, p, n_bins, strategy)
    assert count.sum() == known.sum()
    if not known.any():
        return
    theirs = calibration_curve(y[known], p[known], pos_label=1, n_bins=n_bins, strategy=strategy)
    np.testing.assert_allclose((share, mean), theirs, atol=1e-12)
    assert (mean * count).sum() == pytest.approx(p[known].sum())  # what bins cannot change
    assert (share * count).sum() == pytest.approx(y[known].sum())


@given(st.integers(0, 2**20), st.integers(1, 12))
def test_the_calibration_error_agrees_with_a_loop(seed, n_bins):
    y, p = random_probabilities(seed)
    edges = np.linspace(0, 1, n_bins + 1)
    error, n = 0.0, sum(a in (0, 1) for a in y)
    for k in range(n_bins):
        inside = (p <= edges[k + 1]) & ((p > edges[k]) | (k == 0)) & ~np.isnan(y)
        if inside.any():
            error += inside.sum() / n * abs(y[inside].mean() - p[inside].mean())
    assert expected_calibration_error(y, p, n_bins) == (pytest.approx(error, abs=1e-12) if n else None)
    if n:
        known = ~np.isnan(y)
        assert expected_calibration_error(y, p, 1) == pytest.approx(abs(y[known].mean() - p[known].mean()))


def test_probabilities_that_are_none_and_bins_that_are_none_are_refused():
    y = np.array([0.0, 1.0])
    for metric in (brier_score, reliability_curve, expected_calibration_error):
        with pytest.raises(ValueError, match=r"probabilities are in \[0, 1\], not 1.2"):
            metric(y, np.array([0.5, 1.2]))
    with pytest.raises(ValueError, match="n_bins is at least 1, not 0"):
        reliability_curve(y, y, 0)


SCORE_METRICS = (
    auc_score,
    average_precision,
    partial_auc_ratio,
    lambda y, s: specificity_at_sensitivity(y, s, 0.5),
    brier_score,
    expected_calibration_error,
    intervals.delong,
    intervals.delong_ci,
    lambda y, s: intervals.delong_test(y, s, s),
)


@pytest.mark.parametrize("metric", SCORE_METRICS)
def test_scores_that_are_none_are_refused_and_unknown_images_left_out(metric):
    y, s = np.array([0.0, 1.0, 0.0, 1.0, np.nan]), np.array([0.1, 0.3, 0.2, 0.2, np.nan])
    assert metric(y, s) == metric(y[:4], s[:4])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 4 scores are NaN or infinite"):
            metric(y, np.array([0.1, bad, 0.2, 0.2, 0.5]))
    with pytest.raises(ValueError, match="labels are 0, 1 or NaN, not 2"):
        metric(np.array([0.0, 1.0, 2.0]), s[:3])
    assert metric(y[:0], s[:0]) is None
    assert metric(y[4:], s[4:]) is None


def test_the_mean_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores"):
        mean_score(np.zeros(2), np.array([1.0, np.nan]))


def test_any_finding_needs_both_to_be_known_absent():
    one, none, unknown = 1.0, 0.0, np.nan
    answers = {
        (one, one): one, (one, none): one, (none, one): one, (none, none): none,
        (one, unknown): one, (unknown, one): one, (none, unknown): unknown, (unknown, none): unknown,
        (unknown, unknown): unknown,
    }  # fmt: skip
    np.testing.assert_array_equal(any_finding(np.array(list(answers))), list(answers.values()))
    assert any_finding(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match="labels are 0, 1 or NaN, not 3"):
        any_finding(np.array([[0.0, 3.0]]))


def test_views_of_a_breast_worked_out_by_hand():
    breast = np.array(["b", "a", "b", "a", "c", "d", "d"])
    y = np.array([0.0, 1.0, 1.0, np.nan, 0.0, np.nan, np.nan])
    s = np.array([0.2, 0.3, 0.6, 0.9, 0.5, 0.1, 0.3])
    label, mean, names = group_scores(y, s, breast)
    assert names.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(label, [1, 1, 0, np.nan])
    assert mean == pytest.approx([0.3, 0.4, 0.5, 0.2])  # the view of "a" that is unknown does not count
    assert group_scores(y, s, breast, "max")[1].tolist() == [0.3, 0.6, 0.5, 0.3]
    assert [a.tolist() for a in group_scores(y[:0], s[:0], breast[:0])] == [[], [], []]
    with pytest.raises(ValueError, match="1 of 2 scores"):
        group_scores(np.array([0.0, np.nan]), np.array([0.5, np.nan]), breast[:2])


@given(st.integers(0, 2**20), st.sampled_from(["mean", "max"]))
def test_groups_agree_with_a_loop(seed, how):
    y, s = random_scores(seed)
    groups = np.random.default_rng(seed).integers(1, 6, size=len(y))
    label, score, names = group_scores(y, s, groups, how)
    assert names.tolist() == sorted(set(groups.tolist()))
    for one, value, name in zip(label, score, names, strict=True):
        labels, scores = y[groups == name], s[groups == name]
        known = [(a, b) for a, b in zip(labels, scores, strict=True) if a in (0, 1)]
        taken = [b for _, b in known] or scores.tolist()
        assert value == pytest.approx(sum(taken) / len(taken) if how == "mean" else max(taken))
        np.testing.assert_equal(one, max(a for a, _ in known) if known else np.nan)
    alone = group_scores(y, s, np.arange(len(y)), how)
    np.testing.assert_array_equal(alone[:2], (y, s))
