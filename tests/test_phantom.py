from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from mammomil import lesions, phantom
from mammomil.anatomy import GLAND, Tissue, draw_breast
from mammomil.lesions import CALCIFICATIONS, CATEGORIES, KINDS, MASSES, Lesion, draw_lesion, draw_lesions
from mammomil.noise import Grid
from mammomil.phantom import SCALES, SMALL, render_exam

HEALTHY, ALL_SICK = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)  # every breast holds a benign and a malignant finding
NAMES = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]
VERY_SMALL = 9  # seed of an exam of very small breasts


@cache
def exam(seed, **kwargs):
    return render_exam(seed, **kwargs)


@cache
def sick_exam(seed, conspicuity, has):
    """An exam whose breasts hold five findings or more, or the same one without them."""
    return render_exam(seed, conspicuity=conspicuity, mix=ALL_SICK, lesions=has, crowd=3)


def seeds(count, first=0):
    """Seeds of women: the rare very small breasts have other figures."""
    rng = (np.random.default_rng([seed, 0]) for seed in range(first, first + 2 * count))
    found = [
        first + i
        for i, r in enumerate(rng)
        if (draw_breast(r), phantom._draw_machine(r), r.random())[2] > SMALL
    ]
    return found[:count]


def left(view, array):
    """The array with the chest wall on the left."""
    return array if view.laterality == "L" else array[:, ::-1]


def test_the_same_seed_gives_the_same_exam_and_another_seed_another():
    first, again, other = render_exam(3), render_exam(3), render_exam(4)
    assert [(v.laterality, v.view) for v in first.views] == NAMES
    for a, b, c in zip(first.views, again.views, other.views, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert [f.box for f in a.findings] == [f.box for f in b.findings]
        assert (a.pixels != c.pixels).any()
    assert first.birads == again.birads


@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_12_bits_air_is_zero_and_the_chest_wall_is_where_files_have_it(seed):
    for view in exam(seed).views:
        assert view.pixels.dtype == np.uint16
        assert view.pixels.max() <= 4095
        assert (view.pixels[view.breast] > 0).all()
        near = ndimage.binary_dilation(view.breast, iterations=9)
        assert not view.pixels[near & ~view.breast].any()  # labels and tape keep 5 mm away
        assert (view.pixels[~view.breast] == 0).mean() > 0.85
        assert ndimage.label(view.breast)[1] == 1
        assert not view.breast[:, -1 if view.laterality == "L" else 0].any()  # air opposite the chest wall
        assert view.breast[:, 0 if view.laterality == "L" else -1].mean() > 0.3


def test_some_hospitals_stick_labels_and_tape_on_the_air():
    dirty = [any((v.pixels[~v.breast] > 0).any() for v in exam(seed).views) for seed in range(30)]
    assert 0.2 < np.mean(dirty) < 0.7


def test_breasts_have_the_sizes_of_real_ones():
    """Mini-MIAS, MLO: chest wall to nipple 66/102/148 mm, area with muscle 97/167/240 cm2 (5/50/95 %).

    The muscle takes 29/50/67 % of the chest wall and 19/38/58 % of the width on top.
    """
    views = [v for s in seeds(30) for v in exam(s).views if v.view == "MLO"]
    breasts, muscles = [left(v, v.breast) for v in views], [left(v, v.pectoral) for v in views]
    reach = [np.flatnonzero(breast.any(0))[-1] * 0.56 for breast in breasts]
    area = [breast.sum() * 0.56**2 / 100 for breast in breasts]
    height = [muscle[:, 0].mean() for muscle in muscles]
    for name, found, (low, middle, high), slack in (
        ("reach", reach, (66, 102, 148), 15),
        ("area", area, (97, 167, 240), 35),
        ("muscle", height, (0.29, 0.50, 0.67), 0.07),
    ):
        p5, p50, p95 = np.percentile(found, (5, 50, 95))
        assert low - slack < p5, name
        assert abs(p50 - middle) < slack, name
        assert p95 < high + slack, name


def test_dense_shares_follow_their_class():
    """Share of the breast that is dense, by class: 4.3/19.3/40.4/62.3 % (sd 4.3/11.3/14.8/11.7)."""
    shares = {}
    for seed in seeds(60):
        e = exam(seed)
        for v in e.views:
            tissue = v.breast & ~v.pectoral
            # The level of half the gland of a dense pixel of this woman.
            top = np.percentile(v.gland[tissue], 99.5)
            shares.setdefault(e.density, []).append((v.gland[tissue] > top / 2).mean())
    quoted = {"A": (0.043, 0.043), "B": (0.193, 0.113), "C": (0.404, 0.148), "D": (0.623, 0.117)}
    for density, (mean, sd) in quoted.items():
        assert abs(np.mean(shares[density]) - mean) < max(1.2 * sd, 0.08), density
    means = [np.mean(shares[density]) for density in "ABCD"]
    assert means == sorted(means)


def test_very_small_breasts_show_fewer_windows_than_the_dual_branch_network_ranks():
    """Ten regions are ranked (checklist D8); windows of 15.7 mm, half of it apart."""
    centres = np.ix_(range(14, 368 - 13, 14), range(14, 240 - 13, 14))
    counts = [left(v, v.breast)[centres].sum() for v in exam(VERY_SMALL).views]
    assert 0 < min(counts) < 10
    assert not any(v.findings for v in exam(VERY_SMALL).views)


def test_the_edge_rolls_off_and_the_muscle_is_bright_on_mlo_only():
    bright = {"CC": [], "MLO": []}
    for seed in seeds(6):
        for view in exam(seed).views:
            pixels, depth = left(view, view.pixels), ndimage.distance_transform_edt(left(view, view.breast))
            rim, body = (pixels[(depth > a) & (depth < b)].mean() for a, b in ((0, 3), (25, 60)))
            assert rim < 0.8 * body  # some vendors even the rim out
            bright[view.view].append(pixels[5:20, 2:12].mean() / body)
            assert view.pectoral.any() == (view.view == "MLO")
            assert not (view.pectoral & ~view.breast).any()
    assert min(bright["MLO"]) > 1.05  # the upper corner at the chest wall
    assert np.mean(bright["MLO"]) > 1.4
    assert max(bright["CC"]) < 0.95


@pytest.mark.parametrize("conspicuity", [1.0, 2.0])
def test_masks_and_boxes_are_exact(conspicuity):
    """Drawing the exam without its findings changes the pixels under the masks and no others."""
    kinds = set()
    for seed in seeds(6, 10):
        with_, without = (sick_exam(seed, conspicuity, has) for has in (True, False))
        assert without.birads == {"L": "1", "R": "1"}
        for a, b in zip(with_.views, without.views, strict=True):
            assert not b.findings
            change = a.pixels.astype(int) - b.pixels
            assert not change[~np.logical_or.reduce([f.mask for f in a.findings])].any()
            for f in a.findings:
                rows, columns = np.nonzero(f.mask)
                assert f.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert change[f.mask].max() > 0
                if f.kind == "mass":
                    assert (change[f.mask] > 0).mean() > 0.6  # faint fringes round away
                    assert change[f.mask].mean() > 0
                assert not (f.mask & ~a.breast).sum() > 0.05 * f.mask.sum()
                assert f.kind == KINDS[f.descriptor]
                kinds.add(f.kind)
    assert kinds >= {"mass", "calcification"}


def test_the_two_views_show_the_same_lesions_equally_deep():
    gaps = []
    for seed in seeds(40):
        for cc, mlo in (exam(seed).views[:2], exam(seed).views[2:]):
            pairs = [{f.lesion: f for f in v.findings if f.descriptor != "asymmetry"} for v in (cc, mlo)]
            assert pairs[0].keys() == pairs[1].keys()
            for number, first in pairs[0].items():
                second = pairs[1][number]
                assert (first.finding, first.descriptor, first.size_mm) == (
                    second.finding, second.descriptor, second.size_mm,
                )  # fmt: skip
                depth = []
                for view, f in ((cc, first), (mlo, second)):
                    nipple = np.flatnonzero(left(view, view.breast).any(0))[-1]
                    columns = np.nonzero(left(view, f.mask))[1]
                    depth.append((nipple - (columns.min() + columns.max()) / 2) * 0.56)
                gaps.append(depth[0] - depth[1])
    assert np.abs(np.median(gaps)) < 3
    assert np.percentile(np.abs(gaps), 90) < 12  # radiologists' rule of thumb: within a centimetre


def test_an_asymmetry_shows_in_one_view_alone(monkeypatch):
    monkeypatch.setattr(lesions, "draw_descriptor", lambda rng, finding: "asymmetry")
    found = []
    for seed in seeds(4):
        e = render_exam(seed, mix=ALL_SICK)  # two or more in every breast
        for breast in (e.views[:2], e.views[2:]):
            numbers = {f.lesion for v in breast for f in v.findings if f.descriptor == "asymmetry"}
            found += [sum(f.lesion == number for v in breast for f in v.findings) for number in numbers]
    assert len(found) >= 4 * 4
    assert set(found) == {1}


def test_labels_follow_from_the_findings_of_the_view():
    for seed in range(30):
        e = exam(seed)
        for view in e.views:
            found = {f.finding for f in view.findings}
            assert view.label == ("benign" in found, "malignant" in found)
            assert e.birads[view.laterality] in CATEGORIES
    assert not any(view.findings for view in render_exam(5, mix=HEALTHY).views)


def test_three_breasts_in_ten_are_benign_and_three_malignant():
    drawn = [draw_lesions(np.random.default_rng(i), phantom.MIX) for i in range(3000)]
    names = [{lesion.finding for lesion in lesions} for lesions, _ in drawn]
    shares = {kind: np.mean([kind in found for found in names]) for kind in ("benign", "malignant", "")}
    assert shares["benign"] == pytest.approx(0.3, abs=0.03)
    assert shares["malignant"] == pytest.approx(0.3, abs=0.03)
    assert shares[""] == 1  # distractors everywhere
    assert np.mean([{"benign", "malignant"} <= found for found in names]) == pytest.approx(0.05, abs=0.015)


def test_a_crowded_breast_holds_so_many_more_findings_of_both_classes():
    plain, crowded = (
        [draw_lesions(np.random.default_rng(i), HEALTHY, crowd)[0] for i in range(300)] for crowd in (0, 5)
    )
    assert not any(lesion.finding for lesions in plain for lesion in lesions)
    found = [lesion.finding for lesions in crowded for lesion in lesions if lesion.finding]
    assert len(found) == 5 * 300
    assert found.count("malignant") / len(found) == pytest.approx(0.5, abs=0.05)


def test_the_papers_edge_cases_come_up():
    """Benign and malignant in one image, a long thin lesion, normal exams."""
    views = [v for seed in range(60) for v in exam(seed).views]
    assert any(v.label == (1, 1) for v in views)
    sides = [(f.box[2] - f.box[0], f.box[3] - f.box[1]) for v in views for f in v.findings]
    assert max(max(s) / min(s) for s in sides) > 2.5
    assert any(not any(v.findings for v in exam(seed).views) for seed in range(60))
    names = {f.descriptor for v in views for f in v.findings}
    assert names <= set(MASSES | CALCIFICATIONS)
    assert len(names) > 8


def test_denser_classes_are_brighter():
    mean = {}
    for seed in seeds(60):
        e = exam(seed)
        for v in e.views[::2]:
            inner = ndimage.distance_transform_edt(v.breast) > 15
            mean.setdefault(e.density, []).append(v.gland[inner].mean())
    mean = {density: np.mean(values) for density, values in mean.items()}
    assert sorted(mean, key=mean.get) == list("ABCD")


def test_spectrum_of_the_breast_falls_as_real_ones_do():
    """Slope of log power over log frequency, 0.1 to 0.8 lp/mm: 2.9 +- 0.35 (mini-MIAS, 25.6 mm regions)."""
    slopes, n = [], 46
    window = np.outer(np.hanning(n), np.hanning(n))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(n, 0.56), np.fft.fftfreq(n, 0.56)))
    edges = np.geomspace(0.1, 0.8, 9)
    for seed in seeds(15):
        for view in exam(seed, mix=HEALTHY).views:
            tissue = ndimage.binary_erosion(view.breast & ~view.pectoral, iterations=8)
            for y in range(0, 368 - n, 23):
                for x in range(0, 240 - n, 23):
                    if not tissue[y : y + n, x : x + n].all():
                        continue
                    region = view.pixels[y : y + n, x : x + n].astype(float)
                    power = np.abs(np.fft.fft2((region - region.mean()) * window)) ** 2
                    rings = [(f >= a) & (f < b) for a, b in pairwise(edges)]
                    level = [power[ring].mean() for ring in rings]
                    middle = [np.exp(np.log(f[ring]).mean()) for ring in rings]
                    slopes.append(-np.polyfit(np.log(middle), np.log(level), 1)[0])
    assert len(slopes) > 300
    assert abs(np.mean(slopes) - 2.9) < 0.35
    assert np.std(slopes) < 0.55


def test_lesions_have_the_contrast_of_so_much_gland():
    """Signal grows with conspicuity, and gland in place of fat has VICTRE's contrast."""
    for seed in seeds(6, 10):
        plain, trivial = (sick_exam(seed, conspicuity, True) for conspicuity in (1.0, 3.0))
        bare = sick_exam(seed, 1.0, False)
        for a, b, c in zip(plain.views, trivial.views, bare.views, strict=True):
            for f in a.findings:
                weak, strong = (v.pixels[f.mask].mean() - c.pixels[f.mask].mean() for v in (a, b))
                assert strong > weak > 0  # the tone curve saturates
    assert pytest.approx(0.23) == 10 * GLAND  # VICTRE's table: 0.23 per cm


@pytest.mark.parametrize("name", ["circumscribed", "asymmetry", "island", "pleomorphic", "coarse", "single"])
@pytest.mark.parametrize("conspicuity", [1.0, 2.0])
def test_a_mass_takes_the_place_of_fat_alone_and_calcium_of_anything(name, conspicuity):
    """A mass adds its signal times the share of fat, from all of it to none; calcium adds all of its own."""
    grid, spot = Grid(100, 120, 0.5), [31.0, 24.0]
    size, finding = (2.0, "") if name == "single" else (16.0, "" if name == "island" else "benign")
    one = Lesion(name, finding, size, 1.0, 3, (True, True))
    window, alone = draw_lesion(one, spot, 0, grid.x, grid.y, grid.pixel, torch.zeros(100, 120))
    whole = torch.zeros(100, 120)
    whole[window] = alone
    whole[:, 70:] = 0  # the skin passes through the lesion; nothing is added to air
    assert float(whole.max()) > 0.01
    fat = torch.linspace(0, 1, 100)[:, None].expand(100, 120).contiguous()
    for share in (torch.ones(100, 120), torch.zeros(100, 120), fat):
        before = torch.rand(100, 120)
        skin = (35 - grid.x).expand(100, 120).contiguous()
        nothing = torch.zeros(100, 120)
        tissue = Tissue(skin, nothing - 1, before.clone(), 1 - share, nothing, nothing + 1)
        signal, found = phantom._add(tissue, [one], [spot], 0, conspicuity, grid)
        expected = conspicuity * whole * (share if name in MASSES or name == "island" else 1)
        torch.testing.assert_close(signal - before, expected, rtol=0, atol=1e-6)
        assert len(found) == bool(one.finding)
        assert torch.equal(tissue.signal, before)  # normal tissue stays as it was


def test_every_class_holds_distractors_of_lesion_size():
    """Healthy breasts are drawn with islands, nodes and single calcifications, as large as findings."""
    drawn = [draw_lesions(np.random.default_rng(i), HEALTHY)[0] for i in range(400)]
    sick = [draw_lesions(np.random.default_rng(i), ALL_SICK)[0] for i in range(400)]
    for kind in ("island", "node", "single"):
        here, there = ([sum(x.name == kind for x in lesions) for lesions in group] for group in (drawn, sick))
        assert np.mean(here) == pytest.approx(np.mean(there), abs=0.25)
        assert np.mean(here) > 0.5
    islands = [x.size for lesions in drawn for x in lesions if x.name == "island"]
    masses = [x.size for lesions in sick for x in lesions if x.name in MASSES]
    assert np.median(islands) == pytest.approx(np.median(masses), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["half", "full"])
def test_all_scales_show_the_same_anatomy(scale):
    quick, fine = (render_exam(21, s, mix=ALL_SICK) for s in ("quick", scale))
    assert quick.birads == fine.birads
    n = SCALES[scale][0] // 368
    for a, b in zip(quick.views, fine.views, strict=True):
        small = b.pixels.reshape(368, n, 240, n).mean((1, 3))
        inside = ndimage.binary_erosion(a.breast, iterations=8)  # the outline alone would correlate
        assert np.corrcoef(a.pixels[inside], small[inside])[0, 1] > 0.95
        assert (a.breast == (b.breast.reshape(368, n, 240, n).mean((1, 3)) > 0.5)).mean() > 0.999
        assert np.corrcoef(a.gland[inside], b.gland.reshape(368, n, 240, n).mean((1, 3))[inside])[0, 1] > 0.95
        found, finer = ([(f.lesion, f.finding, f.descriptor) for f in v.findings] for v in (a, b))
        assert found == finer
        for f, g in zip(a.findings, b.findings, strict=True):
            if f.kind == "mass":
                np.testing.assert_allclose(np.array(g.box) / n, f.box, atol=4)


@pytest.mark.slow
def test_global_grey_levels_do_not_give_the_labels_away():
    """Logistic regression on grey-level statistics, cross-validated by patient, stays below AUC 0.65.

    400 images (200 breasts): the standard error of a chance AUC is about 0.035, so 0.65 is four of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels, patients = [], [], []
    for seed in seeds(100, 500):
        for view in render_exam(seed).views:
            p = view.pixels[view.breast].astype(float)
            shape = [((p - p.mean()) ** k).mean() / p.std() ** k for k in (3, 4)]
            levels = np.percentile(p, [0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100])
            histogram = np.histogram(p, 16, (0, 4096))[0] / p.size
            features.append([p.mean(), p.std(), *shape, *levels, *histogram, view.breast.mean()])
            labels.append(view.label)
            patients.append(seed)
    for finding in np.transpose(labels):
        for strength in (0.01, 1.0):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            score = cross_val_predict(
                model, features, finding, groups=patients, cv=GroupKFold(5), method="predict_proba"
            )
            assert roc_auc_score(finding, score[:, 1]) < 0.65


@pytest.mark.gpu
def test_a_gpu_draws_the_same_exam():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for a, b in zip(render_exam(2).views, render_exam(2, device="cuda").views, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 4
