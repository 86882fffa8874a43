import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mammomil.metrics import (
    auc_score,
    bootstrap_ci,
    inside_any,
    map_peak,
    mean_score,
    top_region_iom,
)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 5)), min_size=1, max_size=12))
def test_auc_score_counts_pairs_and_leaves_unknown_labels_out(rows):
    y, s = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs = [(p > n) + 0.5 * (p == n) for p in s[y == 1] for n in s[y == 0]]
    assert auc_score(y, s) == (pytest.approx(np.mean(pairs)) if pairs else None)


def mean_of_positives(y: np.ndarray, s: np.ndarray) -> float | None:
    """A metric that is quick, and not defined without positives."""
    return float(s[y == 1].mean()) if (y == 1).any() else None


def test_bootstrap_of_single_images_agrees_with_scipy():
    rng = np.random.default_rng(0)
    y = (rng.random(120) < 0.4).astype(float)
    s = rng.normal(size=120) + y
    ours = bootstrap_ci(mean_of_positives, y, s, np.arange(120), n_resamples=3000)
    theirs = stats.bootstrap(
        (y, s),
        lambda *a: mean_of_positives(*a),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=3000,
        rng=1,
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.015)


def test_copies_of_an_image_do_not_narrow_the_interval():
    """Four copies of every image are no new evidence: by patient the interval stays, by image it halves."""
    rng = np.random.default_rng(1)
    y = (rng.random(80) < 0.5).astype(float)
    s = rng.normal(size=80) + y
    once = bootstrap_ci(mean_of_positives, y, s, np.arange(80))
    four = [np.repeat(a, 4) for a in (y, s, np.arange(80))]
    assert bootstrap_ci(mean_of_positives, *four) == pytest.approx(once, abs=0.01)
    careless = bootstrap_ci(mean_of_positives, four[0], four[1], np.arange(320))
    assert careless[1] - careless[0] < 0.6 * (once[1] - once[0])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Views of a patient share her offset; drawing patients must still cover the mean, which is 0."""
    rng = np.random.default_rng(2)
    hits, trials = 0, 300
    groups = np.repeat(np.arange(60), 2)
    for seed in range(trials):
        s = np.repeat(rng.normal(size=60), 2) + 0.1 * rng.normal(size=120)
        low, high = bootstrap_ci(
            mean_of_positives, np.ones(120), s, groups, confidence=0.8, n_resamples=200, seed=seed
        )
        hits += low <= 0 <= high
    assert abs(hits / trials - 0.8) < 3 * np.sqrt(0.8 * 0.2 / trials)


def test_an_interval_of_the_auc():
    y = np.repeat([0.0, 1.0], 20)
    low, high = bootstrap_ci(auc_score, y, np.arange(40.0), np.arange(40), n_resamples=20)
    assert (low, high) == (1.0, 1.0)


def test_one_class_has_no_interval():
    assert bootstrap_ci(auc_score, np.ones(3), np.arange(3.0), np.arange(3)) is None


@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2**20))
def test_the_top_region_is_the_first_of_the_largest_scores(k, n, seed):
    rng = np.random.default_rng(seed)
    scores, iom = rng.integers(3, size=k).astype(float), rng.random((k, n))
    best = None
    for score, row in zip(scores, iom, strict=True):
        if n and (best is None or score > best[0]):
            best = (score, max(row))
    assert top_region_iom(scores, iom) == (None if best is None else best[1])


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**20))
def test_the_peak_of_a_map_is_the_mean_of_the_cells_that_share_its_maximum(h, w, seed):
    rng = np.random.default_rng(seed)
    saliency = rng.integers(3, size=(h, w)).astype(np.float32)
    x0, y0, x1, y1 = box = np.array([-3.0, 2.0, 17.0, 32.0])
    best, places = -1, []
    for row in range(h):
        for column in range(w):
            place = (x0 + (x1 - x0) * (column + 0.5) / w, y0 + (y1 - y0) * (row + 0.5) / h)
            if saliency[row, column] > best:
                best, places = saliency[row, column], []
            if saliency[row, column] == best:
                places.append(place)
    peak, tied = map_peak(saliency, box)
    assert tied == len(places)
    assert peak == pytest.approx(np.mean(places, axis=0))


def test_a_point_on_the_left_or_top_edge_is_inside_and_on_the_others_not():
    boxes = np.array([[0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 8.0]])
    for point, inside in (
        ((0, 0), True),
        ((2, 0), False),
        ((1, 1), False),
        ((5.5, 7.9), True),
        ((3, 3), False),
    ):
        assert inside_any(np.array(point, float), boxes) is inside
    assert inside_any(np.zeros(2), np.zeros((0, 4))) is False


def test_the_share_of_no_images_is_not_defined():
    hits = np.array([1.0, 0.0, 0.0, 0.0])
    assert mean_score(hits, hits) == 0.25
    assert mean_score(hits[:0], hits[:0]) is None
    assert bootstrap_ci(mean_score, hits[:0], hits[:0], hits[:0]) is None
