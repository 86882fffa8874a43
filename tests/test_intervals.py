import inspect
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mammomil.intervals import bootstrap_ci, bootstrap_rows, delong, delong_ci, delong_test
from mammomil.metrics import auc_score


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


@pytest.mark.slow
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


def test_the_bootstrap_agrees_with_a_plain_loop():
    """Patients with one to four images each; the loop draws patients one by one."""
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(50), rng.integers(1, 5, 50)))
    s = rng.normal(size=len(groups)) + groups / 25
    values = []
    for _ in range(4000):
        drawn = [row for g in rng.integers(50, size=50) for row in np.flatnonzero(groups == g)]
        values.append(s[drawn].mean())
    expected = np.quantile(values, [0.05, 0.95])
    ours = bootstrap_rows(lambda rows: float(s[rows].mean()), groups, confidence=0.9, n_resamples=4000)
    assert ours == pytest.approx(expected, abs=0.1 * np.ptp(expected))


@given(st.integers(0, 2**20))
def test_a_resample_holds_all_images_of_as_many_patients_as_there_are(seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(["a", "b", "c", "d"], size=rng.integers(2, 12))
    names = np.unique(groups)
    seen = []
    bootstrap_rows(lambda rows: seen.append(rows), groups, n_resamples=5)
    bootstrap_rows(lambda rows: seen.append(rows) or 0.0, groups, n_resamples=5)
    assert len(seen) == (1 + 1 + 5 if len(names) > 1 else 0)  # None on the data itself: nothing is drawn
    for rows in seen:
        times = np.bincount(rows, minlength=len(groups))
        per_patient = [set(times[groups == name]) for name in names]
        assert all(len(t) == 1 for t in per_patient)
        assert sum(t.pop() for t in per_patient) == len(names)
        assert len(rows) == times @ np.ones(len(groups))
    for rows in seen[:2]:
        np.testing.assert_array_equal(rows, np.arange(len(groups)))


def test_an_interval_of_two_patients_worked_out_by_hand():
    """Means are 0, 2/3, 2/3, 1 with equal chance; a seed gives the same draws again, another one others."""
    s = np.array([0.0, 1.0, 1.0])
    mean, patients = (lambda rows: float(s[rows].mean())), np.array(["p", "q", "q"])
    assert bootstrap_rows(mean, patients) == (0, 1)
    assert bootstrap_rows(mean, patients, confidence=0.4) == (pytest.approx(2 / 3),) * 2
    one = [bootstrap_rows(mean, patients, n_resamples=1, seed=seed) for seed in range(20)]
    assert sorted({round(low, 9) for low, _ in one}) == pytest.approx([0, 2 / 3, 1])
    assert all(low == high for low, high in one)
    assert one == [bootstrap_rows(mean, patients, n_resamples=1, seed=seed) for seed in range(20)]


def test_resamples_where_a_figure_is_not_defined_are_left_out_in_silence():
    """One positive in three: the figure is known where she is drawn, and is 7 there."""
    y = np.array([1.0, 0.0, 0.0])

    def seven(rows):
        if not y[rows].any():
            warnings.warn("no positive", stacklevel=1)
            return [None, math.nan, math.inf][len(calls) % 3]
        calls.append(rows)
        return 7.0

    calls = []
    assert bootstrap_rows(seven, np.arange(3), n_resamples=300) == (7, 7)
    assert 180 < len(calls) < 240  # 1 - (2 / 3)^3 of 300 is 211
    once = iter([1.0])
    assert bootstrap_rows(lambda rows: next(once, None), np.arange(3), n_resamples=5) is None


def test_no_interval_of_one_patient_or_none():
    s = np.array([0.0, 1.0])
    assert bootstrap_rows(lambda rows: float(s[rows].mean()), np.zeros(2)) is None
    assert bootstrap_rows(lambda rows: 1.0, np.zeros(0)) is None


@pytest.mark.parametrize("bad", [0.0, 1.0, 95.0, math.nan])
def test_confidences_out_of_range_are_refused(bad):
    y = np.array([0.0, 0.0, 1.0, 1.0])
    for call in (lambda: bootstrap_ci(auc_score, y, y, y, bad), lambda: delong_ci(y, y, bad)):
        with pytest.raises(ValueError, match="confidence is in"):
            call()


@pytest.mark.slow
def test_by_patient_95_percent_are_covered_and_by_image_too_few():
    """Two views that are copies: 95 % by patient. By image the spread is too small by sqrt(2): 83 %."""
    rng, trials, hits = np.random.default_rng(4), 200, {"patient": 0, "image": 0}
    plain = inspect.unwrap(bootstrap_rows)  # the checks of types take longer than the work
    for seed in range(trials):
        s = np.repeat(rng.normal(size=50), 2)
        for drawn, groups in (("patient", np.repeat(np.arange(50), 2)), ("image", np.arange(100))):
            low, high = plain(lambda rows, s=s: s[rows].mean(), groups, n_resamples=200, seed=seed)
            hits[drawn] += low <= 0 <= high
    assert hits["patient"] / trials == pytest.approx(0.945, abs=3 * np.sqrt(0.95 * 0.05 / trials))
    assert hits["image"] / trials == pytest.approx(0.83, abs=3 * np.sqrt(0.83 * 0.17 / trials))


def naive_delong(y: np.ndarray, s: np.ndarray) -> tuple[float, list[float], list[float]]:
    """DeLong's structural components, pair by pair: AUC, V10 of the positives, V01 of the negatives."""
    pos, neg = ([float(b) for a, b in zip(y, s, strict=True) if a == label] for label in (1, 0))

    def psi(x: float, z: float) -> float:
        return 1.0 if z < x else 0.5 if z == x else 0.0

    v10 = [sum(psi(x, z) for z in neg) / len(neg) for x in pos]
    v01 = [sum(psi(x, z) for x in pos) / len(pos) for z in neg]
    return sum(v10) / len(v10), v10, v01


def covariance(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((x - mean_a) * (z - mean_b) for x, z in zip(a, b, strict=True)) / (len(a) - 1)


def delong_data(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a few unknown, and two scores of them with ties; at times too few of a class."""
    rng = np.random.default_rng(seed)
    n = rng.integers(2, 25)
    y = rng.choice([0.0, 1.0, np.nan], size=n, p=[0.5, 0.4, 0.1])
    return y, rng.integers(rng.integers(1, 9), size=n).astype(float), rng.integers(6, size=n) / 4


@given(st.integers(0, 2**20))
def test_delong_agrees_with_the_loop_over_pairs(seed):
    y, first, second = delong_data(seed)
    m, n = (y == 1).sum(), (y == 0).sum()
    if min(m, n) < 2:
        assert delong(y, first) is delong_ci(y, first) is delong_test(y, first, second) is None
        return
    parts = [naive_delong(y, s) for s in (first, second)]
    s10, s01 = ([[covariance(a[k], b[k]) for a in parts] for b in parts] for k in (1, 2))
    matrix = np.array(s10) / m + np.array(s01) / n
    for i, s in enumerate((first, second)):
        assert delong(y, s) == pytest.approx((parts[i][0], matrix[i, i]), abs=1e-14)
        assert delong(y, s)[0] == pytest.approx(auc_score(y, s), abs=1e-14)
    test = delong_test(y, first, second)
    contrast = np.array([1, -1])
    assert test[:3] == pytest.approx((parts[0][0], parts[1][0], parts[0][0] - parts[1][0]), abs=1e-14)
    assert test.variance == pytest.approx(contrast @ matrix @ contrast, abs=1e-14)
    if test.variance > 1e-9:
        z = test.difference / math.sqrt(test.variance)
        assert (test.z, test.p) == pytest.approx((z, math.erfc(abs(z) / math.sqrt(2))))
    turned = delong_test(y, second, first)
    assert (turned.difference, turned.variance, turned.z, turned.p) == (
        -test.difference, test.variance, -test.z, test.p,
    )  # fmt: skip
    assert not np.isnan(test).any()


def test_delong_gives_the_published_variance_of_proc():
    """R pROC's test value for `wfns` of its aSAH data, in 5 grades, and its AUC."""
    poor, good = [2, 12, 1, 8, 18], [37, 20, 3, 8, 4]  # patients with grade 1 to 5
    y = np.repeat([1.0, 0.0], [sum(poor), sum(good)])
    s = np.repeat(np.tile(np.arange(1.0, 6.0), 2), poor + good)
    area, variance = delong(y, s)
    assert variance == pytest.approx(0.00146991470882363, abs=1e-17)
    half = 1.959963984540054 * math.sqrt(variance)
    assert delong_ci(y, s) == pytest.approx((area - half, area + half), abs=1e-15)


def test_delong_worked_out_by_hand():
    """Positives 3 and 1, negatives 2 and 0: V10 = 1, 1/2 and V01 = 1/2, 1; each has variance 1/8."""
    y, s = np.array([1.0, 1.0, 0.0, 0.0]), np.array([3.0, 1.0, 2.0, 0.0])
    assert delong(y, s) == (0.75, 0.125)
    half = 0.6744897502 * 0.125**0.5
    assert delong_ci(y, s, 0.5) == pytest.approx((0.75 - half, 0.75 + half))
    assert delong_ci(y, s)[1] == 1  # cut
    assert delong_ci(y, -s)[0] == 0
    assert delong(y, y) == (1, 0)
    assert delong_ci(y, y) == (1, 1)
    for few in (y[:3], y[1:], np.array([1.0, 0.0]), y[:0]):
        assert delong(few, s[: len(few)]) is None


def test_the_same_order_differs_by_nothing_and_a_sure_difference_has_p_0():
    rng = np.random.default_rng(5)
    y = (rng.random(70) < 0.3).astype(float)
    s = rng.normal(size=70).round(1) + y
    for other in (s, 3 * s - 1, np.arctan(s)):
        assert delong_test(y, s, other)[2:] == (0, 0, 0, 1)
    assert delong_test(y, y, 1 - y) == (1, 0, 1, 0, math.inf, 0)
    assert delong_test(y, 1 - y, y) == (0, 1, -1, 0, -math.inf, 0)
    assert delong_test(y, y, np.zeros(70))[1:4] == (0.5, 0.5, 0)


def correlated(rng: np.random.Generator, n: int, shifts: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Labels, and two scores that share half of their noise."""
    y, shared = (np.arange(n) % 3 == 0).astype(float), rng.normal(size=n)
    return y, *(shared + rng.normal(size=n) + shift * math.sqrt(2) * y for shift in shifts)


def test_delong_and_the_bootstrap_agree_on_paired_scores():
    y, first, second = correlated(np.random.default_rng(6), 240, (1.2, 0.8))
    test = delong_test(y, first, second)

    def gap(rows):
        found = [delong(y[rows], s[rows]) for s in (first, second)]
        return None if None in found else found[0][0] - found[1][0]

    half = 1.959963984540054 * math.sqrt(test.variance)
    drawn = bootstrap_rows(gap, np.arange(240), n_resamples=1000)
    assert drawn == pytest.approx((test.difference - half, test.difference + half), abs=0.15 * half)
    apart = delong(y, first)[1] + delong(y, second)[1]
    assert test.variance < 0.8 * apart  # pairing pays


def test_delong_rejects_and_covers_as_often_as_it_says():
    """Equal areas are told apart in 5 % of trials; the interval covers the true area, Phi(shift / sqrt 2)."""
    rng, trials, rejected, covered = np.random.default_rng(7), 400, 0, 0
    truth = stats.norm.cdf(1 / math.sqrt(2))
    for _ in range(trials):
        y, first, second = correlated(rng, 150, (1.0, 1.0))
        rejected += delong_test(y, first, second).p < 0.05
        low, high = delong_ci(y, first)
        covered += low <= truth <= high
    error = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert abs(rejected / trials - 0.05) < error
    assert abs(covered / trials - 0.95) < error
