import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mammomil.metrics import auc_score, bootstrap_ci


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
