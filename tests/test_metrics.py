import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from mammomil.metrics import (
    auc_score,
    bootstrap_ci,
    froc_curve,
    inside_any,
    map_peak,
    mean_score,
    partial_auc_ratio,
    sensitivity_at_fppi,
    specificity_at_sensitivity,
    top_region_iom,
)
from mammomil.regions import iom


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


def froc_image(label: float, score: float, regions: list[float], iom: list[list[float]], n: int) -> dict:
    """One image of `froc_curve`: its regions' scores, and the IoM of each with each of n lesions."""
    return {
        "label": label,
        "score": score,
        "region_score": np.array(regions, float),
        "iom": np.array(iom, float).reshape(len(regions), n),
    }


def random_images(seed: int) -> list[dict]:
    """A few images with tied scores, dropped regions, unplaced lesions, unknown labels, empty images."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(rng.integers(0, 9)):
        label = rng.choice([0.0, 1.0, np.nan], p=[0.4, 0.5, 0.1])
        m, n = rng.integers(0, 6), 0 if label == 0 else rng.integers(0, 4)
        regions = rng.choice([-np.inf, -1, 0, 0.2, 0.4, 0.4, 0.8], size=m)
        iom = rng.choice([0, 0.49, 0.5, 1], size=(m, n), p=[0.5, 0.2, 0.2, 0.1])
        images.append(froc_image(label, rng.integers(4) / 4, regions, iom, n))
    return images


def naive_froc(images, alpha=0.5, operating_sensitivity=0.85, gate=True, fppi_over="classified", per="image"):
    """Readings A26 to A28, one sentence at a time."""
    images = [image for image in images if image["label"] in (0, 1)]
    positive = [image["score"] for image in images if image["label"] == 1]
    taus = [
        t
        for t in set(positive)
        if sum(score >= t for score in positive) / len(positive) >= operating_sensitivity
    ]
    judged = [image for image in images if image["label"] == 0 or image["iom"].shape[1] > 0]
    classified = [image for image in judged if not gate or (taus and image["score"] >= max(taus))]
    true_set = [image for image in classified if image["label"] == 1]
    if not true_set:
        return None
    thresholds = {float(t) for image in classified for t in image["region_score"] if t > 0}
    points = []
    for t in [np.inf, *sorted(thresholds, reverse=True)]:
        false, found_images, found_lesions, n_lesions = 0, 0, 0, 0
        for image in classified:
            lesions = set()
            for score, row in zip(image["region_score"], image["iom"], strict=True):
                if score >= t:
                    met = {j for j, overlap in enumerate(row) if overlap >= alpha}
                    false += not met
                    lesions |= met
            found_images += bool(lesions)
            found_lesions += len(lesions)
            n_lesions += image["iom"].shape[1]
        found = found_images / len(true_set) if per == "image" else found_lesions / n_lesions
        points.append((found, false / len(judged if fppi_over == "all" else classified), t))
    return points


FROC_OPTIONS = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.3, 0.5, 1.0]),
        "operating_sensitivity": st.sampled_from([0.01, 0.5, 0.75, 0.85, 1.0]),
        "gate": st.booleans(),
        "fppi_over": st.sampled_from(["classified", "all"]),
        "per": st.sampled_from(["image", "lesion"]),
    }
)


@settings(max_examples=400)
@given(st.integers(0, 2**20), FROC_OPTIONS)
def test_the_froc_curve_agrees_with_a_loop(seed, options):
    images = random_images(seed)
    points = naive_froc(images, **options)
    curve = froc_curve(images, **options)
    if points is None:
        assert curve is None
        return
    np.testing.assert_allclose(np.stack(curve, 1), points, rtol=0, atol=1e-12)


@given(st.integers(0, 2**20), FROC_OPTIONS)
def test_the_froc_curve_rises_and_leaves_order_and_dropped_regions_out(seed, options):
    images = random_images(seed)
    if (curve := froc_curve(images, **options)) is None:
        return
    sensitivity, fppi, thresholds = curve
    assert (sensitivity[0], fppi[0], thresholds[0]) == (0, 0, np.inf)
    assert (np.diff(sensitivity) >= 0).all()
    assert (np.diff(fppi) >= 0).all()
    assert (np.diff(thresholds) < 0).all()
    assert sensitivity[-1] <= 1
    rng = np.random.default_rng(seed)
    shuffled = []
    for image in images:
        kept = rng.permutation(np.flatnonzero(image["region_score"] > 0))
        shuffled.append(image | {key: image[key][kept] for key in ("region_score", "iom")})
    rng.shuffle(shuffled)
    for ours, theirs in zip(froc_curve(shuffled, **options), curve, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_froc_curve_worked_out_by_hand():
    """Two of three positives suffice for 0.6, so tau is 0.5: the third and one negative are not looked at."""
    images = [
        froc_image(1, 0.9, [0.8, 0.6, 0.4], [[0, 0], [0.7, 0], [0, 0.5]], 2),
        froc_image(1, 0.5, [0.9, 0.3], [[0.49], [1]], 1),
        froc_image(1, 0.4, [0.95], [[1]], 1),
        froc_image(0, 0.5, [0.6, 0.0], [], 0),
        froc_image(0, 0.1, [0.9], [], 0),
    ]
    sensitivity, fppi, thresholds = froc_curve(images, operating_sensitivity=0.6)
    assert thresholds.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.4, 0.3]
    assert sensitivity.tolist() == [0, 0, 0, 0.5, 0.5, 1]
    assert (3 * fppi).tolist() == [0, 1, 2, 3, 3, 3]
    over_all = froc_curve(images, operating_sensitivity=0.6, fppi_over="all")
    assert over_all[1] == pytest.approx(3 / 5 * fppi)
    lesions = froc_curve(images, operating_sensitivity=0.6, per="lesion")
    assert (3 * lesions[0]).tolist() == [0, 0, 0, 1, 2, 3]
    ungated = froc_curve(images, gate=False)
    assert ungated[2].tolist() == [np.inf, 0.95, 0.9, 0.8, 0.6, 0.4, 0.3]
    assert (3 * ungated[0]).tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert (5 * ungated[1]).tolist() == [0, 0, 2, 3, 4, 4, 4]
    for at, best in ((0.0, 0), (0.99, 0), (1.0, 1), (9.0, 1)):
        assert sensitivity_at_fppi(sensitivity, fppi, at) == best


def test_the_gate_takes_images_that_tie_with_its_threshold():
    """17 of 20 positives make 0.85; two more share the lowest of their scores, and so does a negative."""
    scores = [*range(40, 24, -1), 10, 10, 10, 5]
    images = [froc_image(1, score, [1], [[1]], 1) for score in scores]
    images += [froc_image(0, score, [1], [], 0) for score in (10, 9.9)]
    sensitivity, fppi, _ = froc_curve(images)
    assert (sensitivity[-1], fppi[-1]) == (1, 1 / 20)
    assert froc_curve(images, operating_sensitivity=0.96)[1][-1] == 2 / 22


def test_a_single_tied_score_keeps_its_point():
    """MONAI drops the lowest threshold, and with one score only (0, 0) is left."""
    images = [froc_image(1, 1, [0.5, 0.5], [[1], [0]], 1), froc_image(0, 1, [0.5], [], 0)]
    sensitivity, fppi, thresholds = froc_curve(images)
    assert (sensitivity.tolist(), fppi.tolist(), thresholds.tolist()) == ([0, 1], [0, 1], [np.inf, 0.5])


def test_a_box_far_away_is_no_hit():
    """coco-froc-analysis pairs every lesion with some box, and counts one that is 500 pixels away."""
    box, lesion = (torch.tensor([[x, x, x + 9.0, x + 9.0]]) for x in (500.0, 0.0))
    image = froc_image(1, 1, [0.9], iom(box, lesion).tolist(), 1)
    sensitivity, fppi, _ = froc_curve([image])
    assert (sensitivity[-1], fppi[-1]) == (0, 1)


def test_two_regions_on_one_lesion_are_one_hit_and_no_false_positive():
    """FPs are counted without suppression (A27), but a second hit is neither a hit more nor an FP."""
    image = froc_image(1, 1, [0.9, 0.8], [[1, 0], [1, 0]], 2)
    assert [a[-1] for a in froc_curve([image])] == [1, 0, 0.8]
    assert [a[-1] for a in froc_curve([image], per="lesion")] == [0.5, 0, 0.8]


def test_regions_that_were_not_selected_detect_nothing():
    image = froc_image(1, 1, [0, -np.inf, -0.3], [[1], [1], [0]], 1)
    assert [a.tolist() for a in froc_curve([image])] == [[0], [0], [np.inf]]
    assert sensitivity_at_fppi(*froc_curve([image])[:2], 1.0) == 0


def test_a_positive_image_without_a_placed_lesion_only_sets_the_gate():
    images = [
        froc_image(1, 0.6, [0.9], [[1]], 1),
        froc_image(1, 0.5, [0.7], [[1]], 1),
        froc_image(0, 0.6, [0.8], [], 0),
    ]
    unplaced = froc_image(1, 0.8, [1.0, 0.95], [], 0)
    alone = froc_curve(images, operating_sensitivity=2 / 3)
    assert alone[2].tolist() == [np.inf, 0.9, 0.8, 0.7]
    both = froc_curve([*images, unplaced], operating_sensitivity=2 / 3)  # tau rises from 0.5 to 0.6
    assert [a.tolist() for a in both] == [[0, 1, 1], [0, 0, 0.5], [np.inf, 0.9, 0.8]]
    assert froc_curve([*images, unplaced], fppi_over="all", operating_sensitivity=2 / 3)[1][-1] == 1 / 3
    assert froc_curve([unplaced, images[2]]) is None


def test_a_froc_curve_needs_positives_and_no_negatives():
    positive, negative = froc_image(1, 1, [0.9], [[1]], 1), froc_image(0, 1, [0.9], [], 0)
    assert froc_curve([]) is None
    assert froc_curve([negative, positive | {"label": np.nan}]) is None
    assert [a[-1] for a in froc_curve([positive])] == [1, 0, 0.9]


def test_single_precision_and_whole_labels_are_taken():
    image = froc_image(1, 1, [0.1], [[0.5]], 1)
    image = {"label": True, "score": np.float32(0.1)} | {
        key: image[key].astype(np.float32) for key in ("region_score", "iom")
    }
    sensitivity, fppi, thresholds = froc_curve([image, froc_image(0, 0.0, [], [], 0)])
    assert (sensitivity[-1], fppi[-1], thresholds[-1]) == (1, 0, np.float32(0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "label is 0, 1 or NaN, not 2"),
        ({"label": 0}, "an image with label 0 has 1 lesions"),
        ({"score": np.nan}, "score is NaN"),
        ({"region_score": np.array([np.nan])}, "region_score NaN"),
        ({"region_score": np.array([np.inf])}, "region_score NaN or inf"),
        ({"region_score": np.ones(3)}, r"do not fit: \(3,\) and \(1, 1\)"),
        ({"iom": np.ones(1)}, r"do not fit: \(1,\) and \(1,\)"),
    ],
)
def test_images_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        froc_curve([froc_image(1, 1, [0.9], [[1]], 1) | change])


def test_froc_settings_out_of_range_are_refused():
    for name, bad in itertools.product(("alpha", "operating_sensitivity"), (0.0, 1.1, np.nan)):
        with pytest.raises(ValueError, match=f"{name} is in"):
            froc_curve([], **{name: bad})


def test_no_point_with_so_few_false_positives_has_sensitivity_0():
    sensitivity, fppi = np.array([0.4, 0.7, 0.6]), np.array([0.5, 1.0, 1.0])
    for at, best in ((0.4, 0), (0.5, 0.4), (1.0, 0.7)):
        assert sensitivity_at_fppi(sensitivity, fppi, at) == best
    assert sensitivity_at_fppi(sensitivity[:0], fppi[:0], 1.0) == 0
