from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mammomil import phantom
from mammomil.files import InputError
from mammomil.index import FINDING_COLUMNS, IMAGE_COLUMNS, read_index
from mammomil.phantom import render_exam, write_phantoms

HEALTHY, ALL_SICK = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)  # every breast holds a benign and a malignant finding
NAMES = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


@cache
def exam(seed, **kwargs):
    return render_exam(seed, **kwargs)


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
        np.testing.assert_array_equal(view.pixels > 0, view.breast)
        assert ndimage.label(view.breast)[1] == 1
        assert not view.breast[:, -1 if view.laterality == "L" else 0].any()  # air opposite the chest wall
        assert view.breast[:, 0 if view.laterality == "L" else -1].mean() > 0.3


def test_breasts_have_the_sizes_of_real_ones():
    """Mini-MIAS, MLO: chest wall to nipple 66/102/148 mm, area with muscle 97/167/240 cm2 (5/50/95 %)."""
    views = [left(v, v.breast) for s in range(30) for v in exam(s).views if v.view == "MLO"]
    reach = [np.flatnonzero(breast.any(0))[-1] * 0.56 for breast in views]
    area = [breast.sum() * 0.56**2 / 100 for breast in views]
    assert 85 < np.median(reach) < 115
    assert np.percentile(reach, 5) > 60
    assert np.percentile(reach, 95) < 134
    assert 110 < np.median(area) < 190
    assert np.percentile(area, 5) > 70
    assert np.percentile(area, 95) < 245


def test_the_edge_rolls_off_and_the_muscle_is_bright_on_mlo_only():
    bright = {"CC": [], "MLO": []}
    for seed in range(6):
        for view in exam(seed).views:
            pixels, depth = left(view, view.pixels), ndimage.distance_transform_edt(left(view, view.breast))
            rim, body = (pixels[(depth > a) & (depth < b)].mean() for a, b in ((0, 3), (25, 60)))
            assert rim < 0.5 * body
            bright[view.view].append(pixels[5:20, 2:12].mean() / body)
    assert min(bright["MLO"]) > 1.05  # the upper corner at the chest wall
    assert np.mean(bright["MLO"]) > 1.4
    assert max(bright["CC"]) < 0.9


@pytest.mark.parametrize("conspicuity", [1.0, 2.0])
def test_masks_and_boxes_are_exact(conspicuity):
    """Drawing the exam without its findings changes the pixels under the masks and no others."""
    kinds = set()
    for seed in range(10, 18):
        with_, without = (
            render_exam(seed, conspicuity=conspicuity, mix=ALL_SICK, lesions=has) for has in (True, False)
        )
        assert without.birads == {"L": "1", "R": "1"}
        for a, b in zip(with_.views, without.views, strict=True):
            assert len(a.findings) == 2
            assert not b.findings
            change = a.pixels.astype(int) - b.pixels
            assert not change[~np.logical_or.reduce([f.mask for f in a.findings])].any()
            for f in a.findings:
                rows, columns = np.nonzero(f.mask)
                assert f.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                x0, y0, x1, y1 = map(int, f.box)
                hit = change[y0:y1, x0:x1] != 0
                if f.kind == "mass":
                    assert (change[f.mask] > 0).mean() > 0.8  # faint fringes round away
                    assert change[f.mask].mean() > 0
                else:  # the hull is as tight as the specks, but for fringes that round away
                    assert all(h[:2].any() and h[-2:].any() for h in (hit.any(0), hit.any(1)))
                assert (f.mask & a.breast).sum() > 0.95 * f.mask.sum()
                kinds.add(f.descriptor)
    assert kinds == {"circumscribed", "coarse", "spiculated", "indistinct", "fine pleomorphic"}


def test_lesions_have_their_size_in_mm_and_lie_equally_deep_in_both_views():
    gaps, sizes = [], []
    for seed in range(30):
        for cc, mlo in (exam(seed).views[:2], exam(seed).views[2:]):
            assert [(f.finding, f.lesion, f.size_mm) for f in cc.findings] == [
                (f.finding, f.lesion, f.size_mm) for f in mlo.findings
            ]
            for pair in zip(cc.findings, mlo.findings, strict=True):
                depth = []
                for view, f in zip((cc, mlo), pair, strict=True):
                    nipple = np.flatnonzero(left(view, view.breast).any(0))[-1]
                    columns = np.nonzero(left(view, f.mask))[1]
                    depth.append((nipple - (columns.min() + columns.max()) / 2) * 0.56)
                    if f.descriptor == "circumscribed":
                        diameter = 2 * np.sqrt(f.mask.sum() * 0.56**2 / np.pi)
                        assert diameter == pytest.approx(f.size_mm, rel=0.2)
                        sizes.append(f.size_mm)
                gaps.append(depth[0] - depth[1])
    assert 11 < np.median(sizes) < 18
    assert min(sizes) >= 5
    assert max(sizes) <= 35
    assert np.abs(np.median(gaps)) < 3
    assert np.percentile(np.abs(gaps), 90) < 12  # radiologists' rule of thumb: within a centimetre


def test_labels_and_birads_follow_from_the_findings():
    for seed in range(30):
        e = exam(seed)
        for view in e.views:
            found = {f.finding for f in view.findings}
            assert view.label == ("benign" in found, "malignant" in found)
            allowed = {"4B", "4C", "5"} if "malignant" in found else {"2", "3"} if found else {"1"}
            assert e.birads[view.laterality] in allowed
    assert not any(view.findings for view in render_exam(5, mix=HEALTHY).views)


def test_three_breasts_in_ten_are_benign_and_three_malignant():
    names = [
        {phantom.MASSES.get(lesion.name, phantom.SPECKS.get(lesion.name))[0] for lesion in drawn}
        for drawn, _ in (phantom._lesions(np.random.default_rng(i), (0.25, 0.25, 0.05)) for i in range(3000))
    ]
    shares = {kind: np.mean([kind in found for found in names]) for kind in ("benign", "malignant", "")}
    assert shares["benign"] == pytest.approx(0.3, abs=0.03)
    assert shares["malignant"] == pytest.approx(0.3, abs=0.03)
    assert shares[""] == 1  # distractors everywhere
    assert np.mean([{"benign", "malignant"} <= found for found in names]) == pytest.approx(0.05, abs=0.015)


def test_denser_classes_are_brighter():
    mean = {}
    for seed in range(30):
        e = exam(seed)
        for v in e.views[::2]:
            inner = ndimage.distance_transform_edt(v.breast) > 15
            mean.setdefault(e.density, []).append(v.pixels[inner].mean())
    mean = {density: np.mean(values) for density, values in mean.items()}
    assert sorted(mean, key=mean.get) == list("ABCD")


def test_spectrum_of_the_breast_falls_as_real_ones_do():
    """Slope of log power over log frequency, 0.1 to 0.6 lp/mm: 2.9 +- 0.38 in mini-MIAS, 25.6 mm regions."""
    slopes, window = [], np.outer(np.hanning(46), np.hanning(46))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(46, 0.56), np.fft.fftfreq(46, 0.56)))
    band = (f > 0.1) & (f < 0.6)
    for seed in range(30):
        for view in exam(seed).views[::2]:
            depth = ndimage.distance_transform_edt(np.pad(view.breast, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)  # the middle of the breast
            region = view.pixels[y - 23 : y + 23, x - 23 : x + 23].astype(float)
            power = np.abs(np.fft.fft2((region - region.mean()) * window)) ** 2
            slopes.append(-np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0])
    assert 2.4 < np.mean(slopes) < 3.4


def test_every_class_holds_distractors_of_lesion_size_and_contrast(monkeypatch):
    """Healthy breasts are drawn with islands whose peak is that of a ball of gland of their size."""
    normal = render_exam(7, mix=HEALTHY)
    draw = phantom._draw
    drawn = []

    def note(lesion, *args):
        window, signal = draw(lesion, *args)
        drawn.append((lesion.name, lesion.size, float(signal.max())))
        return window, signal

    monkeypatch.setattr(phantom, "_draw", note)
    again = render_exam(7, mix=HEALTHY)
    np.testing.assert_array_equal(normal.views[0].pixels, again.views[0].pixels)
    islands = [(size, peak) for name, size, peak in drawn if name == "island"]
    assert {name for name, *_ in drawn} <= {"island", "single"}
    assert len(islands) >= 8  # two or more per breast, in both views
    assert all(0.5 < peak / (phantom.GLAND * size) < 1.1 for size, peak in islands)


def test_written_exams_can_be_read_and_say_what_was_drawn(tmp_path):
    table = write_phantoms(tmp_path / "set", exams=5, seed=9, conspicuity=2.0, progress=False)
    index = read_index(table)
    assert tuple(index.images.columns) == IMAGE_COLUMNS
    assert tuple(index.findings.columns[: len(FINDING_COLUMNS)]) == FINDING_COLUMNS
    assert len(index.images) == 20
    split = index.images.groupby("patient_id")["split"].agg(set)
    assert sorted(s for found in split for s in found) == ["test", "train", "train", "train", "val"]
    rows = iter(index.findings.itertuples())
    images = index.images.itertuples()
    for number in range(5):
        e = render_exam(900_000 + number, conspicuity=2.0)
        for view in e.views:
            row = next(images)
            stored = np.asarray(Image.open(index.root / row.path))
            np.testing.assert_array_equal(stored, view.pixels)
            assert stored.dtype == np.uint16
            assert (row.benign, row.malignant) == view.label
            assert (row.laterality, row.view, row.density) == (view.laterality, view.view, e.density)
            assert (row.height, row.width, row.spacing_mm) == (368, 240, 0.56)
            for f in view.findings:
                found = next(rows)
                assert (found.image_id, found.finding, found.kind) == (row.image_id, f.finding, f.kind)
                assert (found.x0, found.y0, found.x1, found.y1) == f.box
                np.testing.assert_array_equal(np.asarray(Image.open(index.root / found.mask)), f.mask)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "mammomil phantom --exams 5 --scale quick --seed 9 --out set --conspicuity 2" in card
    assert not (tmp_path / "set" / "unfinished").exists()


def test_file_names_tell_laterality_and_view(tmp_path):
    dicom = pytest.importorskip("mammomil.dicom")
    index = read_index(write_phantoms(tmp_path, exams=1, progress=False))
    assert [dicom.name_hints(index.root / path) for path in index.images["path"]] == NAMES


def test_the_same_command_writes_the_same_bytes(tmp_path):
    folders = [write_phantoms(tmp_path / name, exams=1, seed=4, progress=False).parent for name in "ab"]
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) >= 7
    for name in files[0]:
        if name.name != "README.md":  # it names its folder
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    render, drawn = phantom.render_exam, []

    def stop_at_third(seed, *args):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seed)
        return render(seed, *args)

    monkeypatch.setattr(phantom, "render_exam", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, exams=3, progress=False)
    assert not (tmp_path / "index.csv").exists()
    with pytest.raises(InputError, match="unfinished run"):
        write_phantoms(tmp_path, exams=3, seed=1, progress=False)
    monkeypatch.setattr(phantom, "render_exam", lambda seed, *args: drawn.append(seed) or render(seed, *args))
    write_phantoms(tmp_path, exams=3, progress=False)
    assert drawn == [0, 1, 2]  # no exam was drawn twice
    whole = write_phantoms(tmp_path / "whole", exams=3, progress=False)
    assert (tmp_path / "index.csv").read_text() == whole.read_text()
    assert not list(tmp_path.rglob(".*"))


def test_a_finished_set_is_replaced_only_by_force(tmp_path):
    write_phantoms(tmp_path, exams=2, progress=False)
    (tmp_path / "images" / "mine.png").write_bytes(b"keep")
    with pytest.raises(InputError, match="--force"):
        write_phantoms(tmp_path, exams=1, progress=False)
    write_phantoms(tmp_path, exams=1, seed=1, progress=False, force=True)
    assert len(read_index(tmp_path).images) == 4
    assert len(list(tmp_path.glob("images/phantom-*.png"))) == 4
    assert (tmp_path / "images" / "mine.png").exists()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("exams", {"exams": 0}),
        ("seed", {"exams": 1, "seed": -1}),
        ("conspicuity", {"exams": 1, "conspicuity": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, name, kwargs):
    with pytest.raises(InputError, match=f"^{name} .* give"):
        write_phantoms(tmp_path, progress=False, **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_set_without_findings_is_readable(tmp_path, monkeypatch):
    render = phantom.render_exam
    monkeypatch.setattr(phantom, "render_exam", lambda *args: render(*args, mix=HEALTHY))
    assert read_index(write_phantoms(tmp_path, exams=1, progress=False)).findings.empty


@pytest.mark.slow
def test_both_scales_show_the_same_anatomy():
    quick, full = (render_exam(21, scale, mix=ALL_SICK) for scale in ("quick", "full"))
    assert quick.birads == full.birads
    for a, b in zip(quick.views, full.views, strict=True):
        small = b.pixels.reshape(368, 8, 240, 8).mean((1, 3))
        inside = ndimage.binary_erosion(a.breast, iterations=8)  # the outline alone would correlate
        assert np.corrcoef(a.pixels[inside], small[inside])[0, 1] > 0.95
        assert (a.breast == (b.breast.reshape(368, 8, 240, 8).mean((1, 3)) > 0.5)).mean() > 0.999
        for f, g in zip(a.findings, b.findings, strict=True):
            np.testing.assert_allclose(np.array(g.box) / 8, f.box, atol=4)


@pytest.mark.slow
def test_global_grey_levels_do_not_give_the_labels_away():
    """Logistic regression on grey-level statistics, cross-validated by patient, stays below AUC 0.65.

    200 images (100 breasts): the standard error of a chance AUC is about 0.045, so 0.65 is three of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels, patients = [], [], []
    for seed in range(500, 550):
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
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for a, b in zip(render_exam(2).views, render_exam(2, device="cuda").views, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 4
