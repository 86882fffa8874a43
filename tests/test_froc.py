import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammomil.froc import (
    continuous_prf,
    froc_curve,
    gate_threshold,
    inside_any,
    map_peak,
    mean_prf,
    sensitivity_at_fppi,
    top_region_iom,
)
from mammomil.regions import iom


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


@given(st.integers(0, 2**20))
def test_without_the_gate_and_by_lesion_it_is_monais_curve_and_its_lowest_point(seed):
    """The definition of CAMELYON16 and MONAI: lesions found of all lesions, false ones per image.

    It wants one probability per lesion, of its best region, and drops the lowest threshold; ours keeps it.
    """
    images = [
        image
        for image in random_images(seed)
        if image["label"] == 0 or (image["label"] == 1 and image["iom"].shape[1])
    ]
    false, lesions = [], []
    for image in images:
        hit = image["iom"] >= 0.5
        false += [p for p, row in zip(image["region_score"], hit, strict=True) if p > 0 and not any(row)]
        lesions += [max([0.0, *image["region_score"][column]]) for column in hit.T]
    curve = froc_curve(images, gate=False, fppi_over="all", per="lesion")
    if not lesions:
        assert curve is None
        return
    thresholds = sorted({p for p in false + lesions if p > 0})
    points = [
        (sum(p >= t for p in lesions) / len(lesions), sum(p >= t for p in false) / len(images))
        for t in thresholds
    ]
    ours = dict(zip(curve[2], zip(*curve[:2], strict=True), strict=True))
    for t, point in zip(thresholds, points, strict=True):
        assert ours[t] == pytest.approx(point)
    assert set(thresholds) <= set(ours)  # ours also has second hits of a lesion, where nothing changes


def test_edges_of_the_froc_curve():
    tied = [froc_image(1, 1, [0.5] * 4, [[1], [0], [0], [1]], 1), froc_image(0, 1, [0.5] * 3, [], 0)]
    assert [a.tolist() for a in froc_curve(tied)] == [[0, 1], [0, 2.5], [np.inf, 0.5]]
    assert [a.tolist() for a in froc_curve(tied[:1])] == [[0, 1], [0, 2], [np.inf, 0.5]]
    assert froc_curve(tied[1:]) is None  # no lesion at all
    bare = froc_image(1, 1, [], [], 1)
    assert [a.tolist() for a in froc_curve([bare])] == [[0], [0], [np.inf]]
    gated, ungated = ([bare, froc_image(1, 0, [0.9], [[1]], 1)] for _ in range(2))
    assert froc_curve(gated, operating_sensitivity=0.5)[0].tolist() == [0]
    assert froc_curve(ungated, gate=False)[0].tolist() == [0, 0.5]


def test_single_precision_decides_on_its_own_whether_iom_reaches_alpha():
    """0.7 in single precision is a little less than 0.7, and still 0.7; another image may be in double."""
    single = froc_image(1, 1, [0.9], [[0.7]], 1)
    single["iom"] = single["iom"].astype(np.float32)
    double = froc_image(1, 1, [0.8], [[0.6999]], 1)
    assert froc_curve([single, double], alpha=0.7)[0].tolist() == [0, 0.5, 0.5]


def test_a_score_of_a_region_or_a_cell_that_is_none_is_refused():
    with pytest.raises(ValueError, match="the score of a region is NaN"):
        top_region_iom(np.array([0.5, np.nan]), np.ones((2, 1)))
    for saliency in (np.array([[np.nan, 1.0]]), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="saliency has no cell, or one that is NaN"):
            map_peak(saliency, np.array([0.0, 0.0, 1.0, 1.0]))


def brute_force_prf(saliency: np.ndarray, mask: np.ndarray) -> tuple[float, float, float] | None:
    """GMIC's sums over the upsampled map, pixel by pixel."""
    (h, w), (height, width) = saliency.shape, mask.shape
    inside, whole, size = 0.0, 0.0, 0
    for i in range(height):
        for j in range(width):
            a = float(saliency[int(np.floor(i * h / height)), int(np.floor(j * w / width))])
            whole += a
            if mask[i, j]:
                inside, size = inside + a, size + 1
    if not size:
        return None
    p, r = (inside / whole if whole else 0.0), inside / size
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


@settings(max_examples=200)
@given(st.integers(0, 2**20), *[st.integers(1, 7)] * 2, *[st.integers(1, 12)] * 2)
def test_the_continuous_f1_agrees_with_the_upsampled_map(seed, h, w, height, width):
    """Of sizes that are multiples and that are not, of a mask with fewer rows than the map too."""
    rng = np.random.default_rng(seed)
    saliency = rng.choice([0.0, 0.25, 0.5, 1.0], size=(h, w)) * rng.integers(0, 2)
    mask = rng.random((height, width)) < rng.choice([0, 0.3, 1])
    expected = brute_force_prf(saliency, mask)
    for dtype in (np.float32, np.float64):  # these values are exact in both
        ours = continuous_prf(saliency.astype(dtype), mask)
        assert ours == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_the_nearest_cell_is_torchs_where_a_mask_is_a_multiple_of_the_map():
    rng = np.random.default_rng(0)
    saliency, mask = rng.random((5, 3)), rng.random((40, 12)) < 0.2
    large = torch.nn.functional.interpolate(torch.from_numpy(saliency)[None, None], (40, 12), mode="nearest")
    large = large[0, 0].numpy()
    p, r = large[mask].sum() / large.sum(), large[mask].sum() / mask.sum()
    assert continuous_prf(saliency, mask) == pytest.approx((p, r, 2 * p * r / (p + r)))


def test_a_continuous_f1_worked_out_by_hand():
    """A mask of 4 pixels, half of it on a cell of 0.8 and half on one of 0.4; each cell has 4 pixels."""
    saliency = np.array([[0.8, 0.4], [0.0, 0.2]])
    mask = np.zeros((4, 4), bool)
    mask[0, :] = True
    p, r, f1 = continuous_prf(saliency, mask)
    assert (p, r) == (pytest.approx(2.4 / 5.6), pytest.approx(2.4 / 4))
    assert f1 == pytest.approx(1 / ((1 / p + 1 / r) / 2))
    assert continuous_prf(np.zeros((2, 2)), mask) == (0, 0, 0)
    assert continuous_prf(saliency, ~mask & False) is None
    assert continuous_prf(np.array([[1.0, 1.0], [0.0, 0.0]]), np.repeat([True, False], 2)[:, None]) == (
        1,
        1,
        1,
    )
    assert continuous_prf(saliency, np.zeros((0, 4), bool)) is None
    far = np.zeros((4, 4), bool)
    far[3, 0] = True
    assert continuous_prf(saliency, far) == (0, 0, 0)


@pytest.mark.parametrize(
    "bad", [np.array([[1.01]]), np.array([[-0.1]]), np.array([[np.nan]]), np.ones((0, 2))]
)
def test_a_map_that_holds_no_probabilities_is_refused(bad):
    with pytest.raises(ValueError, match=r"no cell, or a value that is NaN or outside \[0, 1\]"):
        continuous_prf(bad, np.ones((2, 2), bool))


UNIT = st.floats(0, 1, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=UNIT),
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
)
@example(np.full((2, 2), 1.4e-45, np.float32), np.ones((3, 3), bool))
@example(np.full((3, 3), 0.1, np.float32), np.ones((7, 7), bool))
def test_precision_recall_and_f1_are_shares_and_f1_lies_between(saliency, mask):
    if (found := continuous_prf(saliency, mask)) is None:
        assert not mask.any()
        return
    p, r, f1 = found
    assert 0 <= p <= 1
    assert 0 <= r <= 1
    assert min(p, r) * (1 - 1e-12) <= f1 <= max(p, r) * (1 + 1e-12)
    if mask.all():
        assert p in (0, 1)  # 0: no pixel of a mask smaller than the map takes a cell above 0
        assert p == 1 or min(mask.shape) < max(saliency.shape) or not saliency.any()


def test_the_mean_f1_is_not_the_f1_of_the_means():
    rows = [(1.0, 0.5, 2 / 3), None, (0.5, 1.0, 2 / 3), (0.0, 0.0, 0.0)]
    assert mean_prf(rows) == (0.5, 0.5, pytest.approx(4 / 9), 3)
    assert mean_prf([None]) is None
    assert mean_prf([]) is None


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8]), min_size=1, max_size=12),
    st.sampled_from([0.25, 0.5, 0.85, 1.0]),
)
def test_the_gate_is_the_largest_score_that_calls_enough(scores, sensitivity):
    enough = [t for t in scores if sum(s >= t for s in scores) / len(scores) >= sensitivity]
    assert gate_threshold(np.array(scores), sensitivity) == max(enough)
