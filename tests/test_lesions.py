import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from mammomil import lesions
from mammomil.anatomy import GLAND, draw_breast, draw_outline, edges
from mammomil.lesions import (
    CALCIFICATIONS,
    CALCIUM,
    LOOKS,
    MASSES,
    Lesion,
    draw_category,
    draw_descriptor,
    draw_lesion,
    draw_lesions,
    place,
)
from mammomil.noise import Grid

GRID = Grid(400, 400, 0.25)  # 100 x 100 mm
FLAT = torch.zeros(400, 400)
# CBIS-DDSM's margins, shapes and morphologies.
RATES = {
    "circumscribed": 0.11,
    "lobulated": 0.33,
    "ill-defined": 0.60,
    "spiculated": 0.88,
    "distortion": 0.94,
    "round": 0.23,
    "coarse": 0.0,
    "rings": 0.0,
    "vascular": 0.0,
    "amorphous": 0.36,
    "pleomorphic": 0.53,
    "linear": 0.77,
}


def lesion(name, size=16.0, seed=0, finding="benign", density=1.0):
    return Lesion(name, finding, size, density, seed, (True, True))


def draw(one, at=(50.0, 50.0), view=0, grid=GRID, lumps=FLAT):
    """The whole picture of one lesion, float64."""
    window, signal = draw_lesion(one, list(at), view, grid.x, grid.y, grid.pixel, lumps)
    image = np.zeros((grid.rows, grid.columns))
    image[window] = signal.numpy()
    return image


@cache
def drawn(number=3000):
    """Breasts that hold something."""
    return [draw_lesions(np.random.default_rng([seed, 8]), (0.45, 0.45, 0.1)) for seed in range(number)]


@cache
def grains(name, seed, size=None):
    """Places and volumes of the calcium before it is drawn, one row per speck, and its picture."""
    kept, splat = [], lesions.splat

    def note(points, volume, *args):
        kept.append((points, volume))
        return splat(points, volume, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesions, "splat", note)
        image = draw(lesion(name, size or LOOKS[name].size[0], seed))
    ((points, volume),) = kept
    return points.reshape(-1, 100, 2), volume.reshape(-1, 100), image


def test_every_descriptor_is_as_often_malignant_as_in_cbis():
    """Classes are drawn first, as a breast's are; the descriptors' rates then follow (Bayes)."""
    rng, found = np.random.default_rng(1), {name: [] for name in MASSES | CALCIFICATIONS}
    prior = sum(look.share * look.rate for look in (MASSES | CALCIFICATIONS).values())
    for malignant in rng.random(6000) < prior:
        found[draw_descriptor(rng, "malignant" if malignant else "benign")].append(malignant)
    assert {name: LOOKS[name].rate for name in RATES} == RATES
    assert found.keys() - RATES == {"asymmetry"}  # BI-RADS' low suspicion
    for name, classes in found.items():
        rate, share = LOOKS[name].rate, LOOKS[name].share
        assert stats.binomtest(sum(classes), len(classes), rate).pvalue > 0.001
        assert stats.binomtest(len(classes), 6000, share).pvalue > 0.001


def test_shares_add_up_and_no_distractor_has_a_class():
    assert sum(look.share for look in (MASSES | CALCIFICATIONS).values()) == pytest.approx(1)
    for one, _ in drawn():
        assert {each.name for each in one if not each.finding} <= {"island", "node", "single"}
        assert all(each.name in MASSES | CALCIFICATIONS for each in one if each.finding)
        named = [bool(each.finding) for each in one]
        assert named == sorted(named, reverse=True)  # findings come first


def test_breasts_hold_what_the_mix_says():
    mix, counts, companions, many = (0.25, 0.2, 0.1), np.zeros(4), [], 1200
    for seed in range(many):
        found = [
            each.finding for each in draw_lesions(np.random.default_rng([seed, 4]), mix)[0] if each.finding
        ]
        counts[("benign" in found) + 2 * ("malignant" in found)] += 1
        if len(set(found)) == 1:
            companions.append(len(found) == 2)
    expected = many * np.array([0.45, 0.25, 0.2, 0.1])
    assert stats.chisquare(counts, expected).pvalue > 0.01
    assert np.mean(companions) == pytest.approx(0.12, abs=0.04)


def test_a_crowd_adds_findings_of_either_class():
    found = [
        [
            each.finding
            for each in draw_lesions(np.random.default_rng(seed), (0.0, 0.0, 0.0), crowd=5)[0]
            if each.finding
        ]
        for seed in range(400)
    ]
    assert {len(names) for names in found} == {5}
    malignant = sum(names.count("malignant") for names in found)
    assert stats.binomtest(malignant, 2000, 0.5).pvalue > 0.01


@pytest.mark.parametrize(
    "name", ["circumscribed", "lobulated", "ill-defined", "spiculated", "round", "linear"]
)
def test_the_category_is_the_rate_with_a_readers_doubt(name):
    """Log odds of the rate, deviation 0.7, cut at 2, 10, 50 and 95 % (BI-RADS 3, 4A, 4B, 4C, 5)."""
    rng, number = np.random.default_rng(2), 2000
    given = [draw_category(rng, [name]) for _ in range(number)]
    cuts = [-np.inf, *(math.log(p / (1 - p)) for p in (0.02, 0.1, 0.5, 0.95)), np.inf]
    middle = math.log(RATES[name] / (1 - RATES[name]))
    expected = number * np.diff(stats.norm(middle, 0.7).cdf(cuts))
    counts = np.array([given.count(category) for category in ("3", "4A", "4B", "4C", "5")])
    rare = expected < 5
    assert counts[rare].sum() < 25
    share = expected[~rare] * counts[~rare].sum() / expected[~rare].sum()
    assert stats.chisquare(counts[~rare], share).pvalue > 0.001


def test_the_category_goes_by_the_worst_descriptor_and_none_is_normal():
    for seed in range(50):
        one, two, three = (
            draw_category(np.random.default_rng(seed), names)
            for names in (["spiculated"], ["coarse", "spiculated", "circumscribed"], ["circumscribed"])
        )
        assert one == two
        assert lesions.CATEGORIES.index(three) <= lesions.CATEGORIES.index(one)
        assert draw_category(np.random.default_rng(seed), ["rings", "coarse"]) == "2"
    empty = [draw_category(np.random.default_rng(seed), []) for seed in range(1000)]
    assert stats.binomtest(empty.count("1"), 1000, 0.8).pvalue > 0.01
    assert set(empty) == {"1", "2"}


def test_the_category_does_not_know_the_truth():
    """Of one descriptor, benign and malignant findings get the same categories."""
    for name in ("lobulated", "ill-defined"):
        table = np.zeros((2, 7))
        for one, category in drawn():
            found = [each for each in one if each.finding]
            if len(found) == 1 and found[0].name == name:
                table[int(found[0].finding == "malignant"), lesions.CATEGORIES.index(category)] += 1
        table = table[:, table.sum(0) > 10]
        assert table.sum(1).min() > 50
        assert stats.chi2_contingency(table).pvalue > 0.01


def test_sizes_have_the_medians_of_their_class():
    sizes, densities = {}, {"": [], "benign": [], "malignant": []}
    for one, _ in drawn():
        for each in one:
            sizes.setdefault((each.name, each.finding), []).append(each.size)
            densities[each.finding].append(each.density)
            assert (4 if each.is_mass else 2) <= each.size <= 45 or each.name == "single"
    for (name, finding), found in sizes.items():
        if len(found) < 60 or name == "single":
            continue
        middle, error = LOOKS[name].size[finding == "malignant"], 1.2533 * 0.38 / math.sqrt(len(found))
        assert math.log(np.median(found) / middle) == pytest.approx(0, abs=4 * error)
    assert np.std(np.log(sizes["circumscribed", "benign"])) == pytest.approx(0.38, abs=0.05)
    # Mini-MIAS: spiculated benign 13, malignant 24; clusters 4.4 and 15.6 mm.
    assert np.median(sizes["spiculated", "malignant"]) > 1.5 * np.median(sizes["spiculated", "benign"])
    assert np.median(sizes["pleomorphic", "malignant"]) > 2 * np.median(sizes["pleomorphic", "benign"])
    for finding, middle in (("", 1.0), ("benign", 0.9), ("malignant", 1.12)):
        assert np.mean(densities[finding]) == pytest.approx(middle, abs=0.01)


def test_asymmetries_show_in_one_view_and_nodes_in_mlo():
    views = {}
    for one, _ in drawn():
        for each in one:
            views.setdefault(each.name, []).append(each.views)
    assert set(views["asymmetry"]) == {(True, False), (False, True)}
    first = sum(cc for cc, _ in views["asymmetry"])
    assert stats.binomtest(first, len(views["asymmetry"]), 0.5).pvalue > 0.01
    assert set(views["node"]) == {(False, True)}
    for name in views.keys() - {"asymmetry", "node"}:
        assert set(views[name]) == {(True, True)}


@cache
def exams(number=60):
    """Outlines of both views, lesions and their places."""
    exams = []
    for seed in range(number):
        rng = np.random.default_rng([seed, 5])
        reach = draw_breast(rng).reach
        outlines = [draw_outline(rng, reach * 0.94, False), draw_outline(rng, reach, True)]
        found, _ = draw_lesions(rng, (0.35, 0.35, 0.3))
        exams.append((outlines, found, place(rng, outlines, found)))
    return exams


def test_places_lie_equally_deep_behind_the_nipple_in_both_views():
    for outlines, _, places in exams():
        for cc, mlo in places:
            assert outlines[0].reach - cc[0] == pytest.approx(outlines[1].reach - mlo[0], abs=1e-3)
            assert 0.09 < (outlines[0].reach - cc[0]) / outlines[0].reach < 0.93


def test_places_lie_inside_the_skin_and_off_the_muscle():
    """The few lesions that are too large for their breast stick out."""
    fits = {"node": [], "other": []}
    for outlines, found, places in exams():
        for each, spots in zip(found, places, strict=True):
            for outline, spot, seen in zip(outlines, spots, each.views, strict=True):
                if not seen:
                    continue
                skin, muscle = (float(d) for d in edges(outline, *torch.tensor(spot).view(2, 1, 1)))
                assert skin > 3
                if each.name == "node":  # along the muscle's edge
                    fits["node"].append(abs(muscle) < 12)
                else:
                    fits["other"].append(skin > each.size / 2 and muscle < -each.size / 2 + 1e-3)
    assert np.mean(fits["other"]) > 0.97
    assert np.mean(fits["node"]) > 0.8


def test_findings_keep_apart():
    gaps = []
    for _, found, places in exams():
        number = sum(bool(each.finding) for each in found)
        for i in range(number):
            for j in range(i):
                away = min(math.dist(places[i][view], places[j][view]) for view in (0, 1))
                gaps.append(away / (found[i].size + found[j].size))
    assert len(gaps) > 20
    assert np.mean(np.array(gaps) > 0.7499) > 0.9


def test_no_lesions_have_no_places():
    assert place(np.random.default_rng(0), exams()[0][0], []) == []


def test_the_two_coordinates_across_turn_by_45_degrees():
    """In straight outlines the MLO's coordinate is correlated with the CC's by 1 / sqrt(2)."""
    rng, across = np.random.default_rng(6), []
    cc, mlo = (
        draw_outline(np.random.default_rng(s), r, m) for s, r, m in ((1, 94.0, False), (2, 100.0, True))
    )
    cc, mlo = (one._replace(droop=0.0, up=60.0, down=60.0) for one in (cc, mlo))
    mlo = mlo._replace(muscle=(1e-3, 1e-3, 1.0))
    for _ in range(500):
        ((a, b),) = place(rng, [cc, mlo], [lesion("round", 2.0)])
        across.append((a[1] - cc.centre, b[1] - mlo.centre))
    assert np.corrcoef(np.transpose(across))[0, 1] == pytest.approx(2**-0.5, abs=0.1)


def test_a_smooth_round_mass_is_nine_tenths_of_a_ball(monkeypatch):
    monkeypatch.setitem(LOOKS, "circumscribed", MASSES["circumscribed"]._replace(rough=0.0, long=1.0))
    for size, at, density in ((16.0, (50.0, 50.0), 1.0), (9.3, (41.7, 60.2), 1.2)):
        image = draw(lesion("circumscribed", size, density=density), at)
        x, y = (np.arange(400) + 0.5) * 0.25 - at[0], (np.arange(400) + 0.5)[:, None] * 0.25 - at[1]
        chord = 2 * np.sqrt(np.maximum((size / 2) ** 2 - x**2 - y**2, 0))  # the way of a ray through a ball
        expected = density * 0.023 * np.maximum(0.9 * chord - 0.15, 0)
        np.testing.assert_allclose(image, expected, atol=2e-4)


def test_masses_have_the_area_of_their_size_and_their_peak_in_the_middle():
    for name in ("circumscribed", "lobulated"):
        areas, peaks = [], []
        for seed in range(20):
            image = draw(lesion(name, 16.0, seed))
            areas.append((image > 0).sum() * 0.25**2 / (np.pi * 8**2))
            peaks.append(image.max() / (GLAND * 0.9 * 16))
            assert image[200, 200] > 0.98 * image.max()
        assert np.mean(areas) == pytest.approx(1, abs=0.06)
        assert np.mean(peaks) == pytest.approx(1, abs=0.03)


def test_lobulated_masses_have_three_to_five_lobes():
    found = set()
    for seed in range(12):
        image = draw(lesion("lobulated", 20.0, seed))
        angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        way = np.arange(0, 25, 0.1)[:, None]
        column, row = ((50 + way * f(angle)) / 0.25 for f in (np.cos, np.sin))
        radius = (image[row.astype(int), column.astype(int)] > 0).sum(0) * 0.1
        waves = np.abs(np.fft.rfft(radius - radius.mean()))[3:9]  # two are its length
        found.add(3 + int(waves.argmax()))
    assert found <= {3, 4, 5}
    assert len(found) > 1


def test_both_views_show_the_same_lesion_from_two_sides():
    for seed in range(8):
        one, two, again = (draw(lesion("ill-defined", 18.0, seed), view=view) for view in (0, 1, 0))
        np.testing.assert_array_equal(one, again)
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] < 0.995
        assert two.sum() == pytest.approx(one.sum(), rel=0.15)
        other = draw(lesion("ill-defined", 18.0, seed + 100))
        assert (one != other).any()


@pytest.mark.parametrize("name", ["spiculated", "distortion"])
def test_spicules_run_away_from_the_middle(name):
    """Outside the core the picture changes less along the way out than across it."""
    x, y = GRID.x.numpy() - 50, GRID.y.numpy() - 50
    away = np.hypot(x, y)
    ring = (away > 14) & (away < 20)
    for seed in range(6):
        image = draw(lesion(name, 18.0, seed))
        down, right = np.gradient(image)
        along, across = (right * x + down * y) / away, (down * x - right * y) / away
        assert np.mean(along[ring] ** 2) < 0.5 * np.mean(across[ring] ** 2)
        assert image[away > 1.6 * 18 + 2].max() == 0
    assert draw(lesion("circumscribed", 18.0))[ring].max() == 0


def test_a_distortion_has_almost_no_core():
    inner = (torch.hypot(GRID.x - 50, GRID.y - 50) < 2).numpy()
    for seed in range(5):
        core, mass = (draw(lesion(name, 18.0, seed))[inner].mean() for name in ("distortion", "spiculated"))
        assert core < 0.25 * mass


def test_nodes_have_fat_in_their_hilum():
    dips = []
    for seed in range(8):
        node = draw(lesion("node", 12.0, seed))
        dips.append(node[190:210, 190:210].min() / node.max())
    assert np.median(dips) < 0.6
    assert draw(lesion("circumscribed", 12.0))[190:210, 190:210].min() > 0.6 * 0.9 * 12 * GLAND


@pytest.mark.parametrize("name", ["island", "asymmetry"])
def test_islands_and_asymmetries_are_made_of_lumps_and_masses_are_not(name):
    lumps = torch.sin(GRID.x / 1.5) * torch.cos(GRID.y / 1.5)
    plain, lumpy = draw(lesion(name, 20.0)), draw(lesion(name, 20.0), lumps=lumps)
    inside = plain > 0.3 * plain.max()
    ratio = (lumpy / np.where(inside, plain, 1))[inside]
    assert np.corrcoef(ratio, lumps.numpy()[inside])[0, 1] > 0.98
    mass = lesion("circumscribed", 20.0)
    np.testing.assert_array_equal(draw(mass), draw(mass, lumps=lumps))


@pytest.mark.parametrize("name", [name for name in LOOKS if name != "rings"])
def test_a_finer_grid_shows_the_same_lesion(name):
    fine, coarse = Grid(800, 800, 0.125), Grid(400, 400, 0.25)
    one = lesion(name, 14.0, 3)
    a, b = draw(one, grid=fine, lumps=torch.zeros(800, 800)), draw(one, grid=coarse)
    blocks = a.reshape(400, 2, 400, 2).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), b.ravel())[0, 1] > (0.95 if one.is_mass else 0.7)  # blur differs
    assert blocks.sum() == pytest.approx(b.sum(), rel=0.03 if one.is_mass else 0.2)


@pytest.mark.parametrize(
    "name", ["round", "coarse", "amorphous", "pleomorphic", "linear", "vascular", "single"]
)
def test_specks_are_full_ellipsoids_of_the_volume_they_say(name):
    """From the places of their grains: in a full ball the deviation along an axis is a fifth of r squared."""
    ratio, number = [], []
    for seed in range(12):
        points, volume, _ = grains(name, seed)
        number.append(len(points))
        for place_, each in zip(points, volume.sum(1), strict=True):
            small, large = np.sqrt(5 * np.linalg.eigvalsh(np.cov(place_.T)))
            ratio.append(math.log(4 / 3 * np.pi * small**2 * large / each))
    assert np.median(ratio) == pytest.approx(0, abs=0.12)
    low, high = LOOKS[name].number
    assert low <= min(number) <= max(number) <= high


@pytest.mark.parametrize("name", ["round", "coarse", "pleomorphic", "vascular"])
def test_diameters_of_specks_are_log_normal_around_the_tables(name):
    found = np.concatenate([grains(name, seed)[1].sum(1) for seed in range(30)])
    look = LOOKS[name]
    stretch = np.log(np.random.default_rng(0).uniform(1, look.long, 100_000)) / 3  # of the length alone
    diameter = np.log(np.cbrt(found * 6 / np.pi))
    error = math.hypot(look.spread, stretch.std()) / math.sqrt(len(found))
    assert diameter.mean() == pytest.approx(math.log(look.diameter) + stretch.mean(), abs=4 * error)
    assert diameter.std() == pytest.approx(math.hypot(look.spread, stretch.std()), rel=0.25)


@pytest.mark.parametrize("name", ["round", "coarse", "rings", "pleomorphic", "vascular", "single"])
def test_calcium_is_conserved(name):
    """The picture holds the volume of its grains, less 0.01 mm where there is any."""
    for seed in range(6):
        _, volume, image = grains(name, seed)
        held = image.sum() / CALCIUM * 0.25**2
        cut = 0.01 * (image > 0).sum() * 0.25**2
        assert held < volume.sum() < held + 2.2 * cut + 1e-3
        assert held + cut == pytest.approx(volume.sum(), rel=0.15)


def test_rings_are_hollow():
    """Compared with full specks of their size, rings are fainter in the middle than near their edge."""
    hollow, full = [], []
    for kept, name in ((hollow, "rings"), (full, "coarse")):
        for seed in range(12):
            for place_ in grains(name, seed)[0]:
                middle = place_ - place_.mean(0)
                axes = np.linalg.eigh(np.cov(middle.T))
                q = np.linalg.norm(middle @ axes[1] / np.sqrt(axes[0]), axis=1)
                kept.append((q < 0.7).mean())
    assert np.mean(hollow) < 0.5 * np.mean(full)


def test_vascular_calcium_lies_along_two_walls():
    """Around the parabola that fits best the specks lie 1.1 mm to either side, none in between."""
    for seed in range(8):
        middle = grains("vascular", seed, 26.0)[0].mean(1)
        middle = middle - middle.mean(0)
        best = None
        for turn in np.linspace(0, np.pi, 361):
            way, off = (
                middle @ np.array(axis)
                for axis in ((np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn)))
            )
            for sides in (1, 2):  # start from one line; then one wall each
                side = np.ones_like(off) if sides == 1 else np.sign(rest)
                base = np.stack((np.ones_like(way), way, way**2, side * (sides - 1)), 1)
                rest = off - base @ np.linalg.lstsq(base, off, rcond=None)[0]
                if sides == 1:
                    line = rest
            if np.ptp(way) > 20 and (best is None or rest.std() < best[0]):
                best = rest.std(), line
        assert best[0] < 0.2
        walls = np.abs(best[1])
        assert np.median(walls) == pytest.approx(1.1, abs=0.2)
        assert (walls < 0.5).mean() < 0.05
        assert 0.25 < (best[1] > 0).mean() < 0.75


def test_linear_calcium_lies_along_one_line_and_amorphous_does_not():
    """Ratio of the group's width and length."""
    ratios = {}
    for name in ("linear", "amorphous"):
        for seed in range(12):
            width = np.sqrt(np.linalg.eigvalsh(np.cov(grains(name, seed, 15.0)[0].mean(1).T)))
            ratios.setdefault(name, []).append(width[0] / width[1])
    assert np.median(ratios["linear"]) < 0.25
    assert np.median(ratios["amorphous"]) > 0.45


def test_groups_of_specks_have_their_size():
    for name in ("amorphous", "pleomorphic", "linear"):
        lengths = []
        for seed in range(15):
            middle = grains(name, seed, 15.0)[0].mean(1)
            lengths.append(max(np.linalg.norm(middle[:, None] - middle, axis=2).ravel()))
        assert np.median(lengths) == pytest.approx(15, rel=0.2)


@pytest.mark.parametrize("name", list(LOOKS))
def test_what_is_drawn_ends_inside_its_window(name):
    for seed in range(8):
        one = lesion(name, 2.5 if name == "single" else 18.0, seed)
        _, signal = draw_lesion(one, [50.0, 50.0], 0, GRID.x, GRID.y, GRID.pixel, FLAT)
        assert float(signal.max()) > 0
        assert float(signal.min()) == 0
        assert all(float(side.max()) == 0 for side in (signal[0], signal[-1], signal[:, 0], signal[:, -1]))
