import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mammomil import pectoral
from mammomil.dicom import Mammogram, read_image
from mammomil.files import InputError
from mammomil.preprocess import (
    PectoralConfig,
    PreprocessConfig,
    breast_mask,
    invert_affine,
    orient,
    pectoral_mask,
    prepare,
    standardise,
    transform_boxes,
)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def film(height=600, air=0.0, noise=0.0, pad=0, label=False, seed=0, texture=0.25):
    """A half ellipse of tissue with its chest wall left, and its exact mask; the film may have faults."""
    width = height * 2 // 3
    y, x = np.mgrid[:height, :width] + 0.5
    depth = 1 - np.hypot(x / (0.62 * width), (y - 0.5 * height) / (0.42 * height))  # 0 at the skin
    breast = depth > 0
    tissue = 130 * np.clip(depth / 0.15, 0.15, 1)  # thinner towards the skin
    tissue *= 1 + texture * np.sin(40 * x / width) * np.sin(40 * y / height)
    pixels = np.where(breast, air + tissue, air)
    pixels += noise * np.random.default_rng(seed).normal(size=pixels.shape) * (air > 0)
    if label:
        pixels[height // 20 : height // 8, int(0.7 * width) : int(0.95 * width)] = 240
        pixels[:, -height // 100 :] = 255  # tape
        pixels[: height // 100] = 255  # rim of the film
    pixels = np.pad(pixels, ((0, 0), (pad, pad)))
    return np.clip(pixels, 0, None).astype(np.float32), np.pad(breast, ((0, 0), (pad, pad)))


def mammogram(pixels, view="CC", spacing=math.nan):
    return Mammogram(np.ascontiguousarray(pixels), "", view, spacing, ())


# --- breast and orientation


@pytest.mark.parametrize("height", [300, 600, 1400])
@pytest.mark.parametrize(("air", "noise"), [(0, 0), (8, 2), (60, 3)])
def test_the_breast_is_found_on_any_film_at_any_pixel_size(height, air, noise):
    pixels, truth = film(height, air, noise, pad=height // 10, label=True)
    found = breast_mask(pixels)
    assert dice(found, truth) > 0.97
    assert not found[height // 20 : height // 8, -height // 4 :].any(), "the label is no breast"


@pytest.mark.parametrize("factor", [1 / 256, 16, 256])
def test_the_bit_depth_does_not_matter(factor):
    pixels, _ = film(air=8, noise=2, label=True)
    np.testing.assert_array_equal(breast_mask(pixels * np.float32(factor)), breast_mask(pixels))


@pytest.mark.parametrize("pad", [0, 90])
@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("air", [0, 30])
def test_the_chest_wall_is_turned_left(pad, label, air):
    pixels, _ = film(air=air, noise=2, pad=pad, label=label)
    left, flipped = orient(pixels)
    assert not flipped
    np.testing.assert_array_equal(left, pixels)
    turned, flipped = orient(np.ascontiguousarray(pixels[:, ::-1]))
    assert flipped
    np.testing.assert_array_equal(turned, pixels)


def test_an_image_without_a_breast_stays_and_cannot_be_prepared():
    black = np.zeros((200, 150), np.float32)
    noise = np.random.default_rng(0).random((200, 150), dtype=np.float32)
    speck = black.copy()
    speck[90:100, 60:80] = 1
    for pixels in (black, black + 7, noise, speck):
        assert not breast_mask(pixels).any()
        assert not orient(pixels)[1]
        with pytest.raises(InputError, match=r"no breast found: .*denser tissue is brighter"):
            prepare(mammogram(pixels), PreprocessConfig.quick())


# --- values


@given(st.integers(0, 10_000), st.floats(0.01, 1e4), st.floats(-1e3, 1e3))
def test_standardise_is_the_population_z_score(seed, scale, offset):
    image = (np.random.default_rng(seed).normal(size=(7, 9)) * scale + offset).astype(np.float32)
    exact = image.astype(np.float64)
    expected = (exact - exact.sum() / 63) / max(math.sqrt(((exact - exact.mean()) ** 2).sum() / 63), 1e-5)
    np.testing.assert_allclose(standardise(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0, 0.1, 65535])
def test_a_constant_image_becomes_zeros(value):
    np.testing.assert_array_equal(standardise(np.full((300, 200), value, np.float32)), 0)


def test_the_floor_keeps_tiny_contrast_tiny():
    image = np.zeros((10, 10), np.float32)
    image[0, 0] = 1e-6
    assert 0.09 < standardise(image)[0, 0] < 0.1  # 1e-6 / 1e-5, less the mean


def test_the_padding_takes_part_in_the_standardisation():
    pixels, _ = film(300)
    image = prepare(mammogram(pixels), PreprocessConfig(1000, 800)).image
    assert abs(image.mean(dtype=np.float64)) < 1e-6
    assert abs(image.std(dtype=np.float64) - 1) < 1e-6
    assert image[-1, -1] == image.min()


# --- geometry


affines = st.tuples(
    st.sampled_from([-1, 1]), st.floats(0.05, 20), st.floats(-5e3, 5e3), st.floats(-5e3, 5e3)
).map(lambda p: np.array([[p[0] * p[1], 0, p[2]], [0, p[1], p[3]]]))
spans = st.tuples(st.floats(-4e3, 4e3), st.floats(0, 4e3)).map(lambda p: (p[0], p[0] + p[1]))


@given(affines, st.lists(st.tuples(spans, spans), max_size=5))
def test_boxes_there_and_back_are_the_same(affine, sides):
    boxes = np.array([(x0, y0, x1, y1) for (x0, x1), (y0, y1) in sides], dtype=np.float64).reshape(-1, 4)
    moved = transform_boxes(boxes, affine)
    assert (moved[:, :2] <= moved[:, 2:]).all()
    for box, new in zip(boxes, moved, strict=True):  # naive: both corners by hand
        x = sorted(affine[0, 0] * box[i] + affine[0, 2] for i in (0, 2))
        y = sorted(affine[1, 1] * box[i] + affine[1, 2] for i in (1, 3))
        np.testing.assert_allclose(new, [x[0], y[0], x[1], y[1]], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(transform_boxes(moved, invert_affine(affine)), boxes, atol=1e-6)


@pytest.mark.parametrize("view", ["CC", "MLO", ""])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        PreprocessConfig(900, 700),
        PreprocessConfig(400, 250),
        PreprocessConfig(900, 700, "fit"),
        PreprocessConfig(201, 133, "fit"),
        PreprocessConfig(300, 200, "spacing", 0.27),
    ],
)
def test_a_box_drawn_in_the_file_lands_where_the_affine_says(config, mirrored, view):
    pixels, _ = film(600, pad=37)
    box = np.array([[60.0, 260, 130, 360]])
    pixels[260:360, 60:130] = 1000
    if mirrored:
        pixels = pixels[:, ::-1]
        box = np.array([[pixels.shape[1] - 130.0, 260, pixels.shape[1] - 60, 360]])
    done = prepare(mammogram(pixels, view, 0.1), config)
    assert done.flipped == mirrored
    expected = transform_boxes(box, invert_affine(done.affine))[0]
    expected = np.clip(expected, 0, [config.width, config.height] * 2)
    bright = done.image > (done.image.max() + np.median(done.image[done.breast])) / 2
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(seen, expected, atol=0 if config.resize == "none" else 0.51)


@pytest.mark.parametrize("view", ["CC", "MLO"])
@pytest.mark.parametrize("config", [PreprocessConfig(512, 300), PreprocessConfig(230, 170, "fit")])
def test_the_mirror_image_gives_the_same_canvas(view, config):
    pixels, _ = film(613, air=8, noise=2, pad=11, label=True)
    a = prepare(mammogram(pixels, view), config)
    b = prepare(mammogram(pixels[:, ::-1], view), config)
    assert (a.flipped, b.flipped) == (False, True)
    np.testing.assert_allclose(a.image, b.image, atol=1e-4)
    np.testing.assert_array_equal(a.breast, b.breast)
    expected = np.diag([-1.0, 1]) @ a.affine  # x in the mirrored file = its width - x
    expected[0, 2] += pixels.shape[1]
    np.testing.assert_allclose(b.affine, expected)


def test_native_pixels_are_copied_not_resampled():
    pixels, _ = film(600)
    config = PreprocessConfig(300, 200, remove_background=False)
    done = prepare(mammogram(pixels), config)
    left, top = done.affine[:, 2].astype(int)
    np.testing.assert_array_equal(done.image, standardise(pixels[top : top + 300, left : left + 200]))


def window(pixels, view, height, width):
    done = prepare(mammogram(pixels, view), PreprocessConfig(height, width))
    left, top = done.affine[:, 2]
    rows, columns = np.flatnonzero(done.breast.any(1)), np.flatnonzero(done.breast.any(0))
    return left, top, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_the_window_keeps_what_the_view_needs():
    pixels, truth = film(600)
    pixels, truth = (np.pad(a, ((100, 0), (0, 0))) for a in (pixels, truth))  # the breast sits low
    y, x = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    # CC, canvas lower than the breast: centred on it. MLO: down to its lowest row. Chest wall: column 0.
    left, top, _ = window(pixels, "CC", 300, 400)
    assert left == 0
    assert top == pytest.approx((y[0] + y[-1] + 1) / 2 - 150, abs=3)
    left, top, _ = window(pixels, "MLO", 300, 400)
    assert top == pytest.approx(y[-1] + 1 - 300, abs=3)
    # Unknown and other views are treated as CC.
    assert window(pixels, "", 300, 400)[1] == window(pixels, "CC", 300, 400)[1]
    # Too narrow for the breast: the nipple side is kept, its last column is the last of the canvas.
    left, _, box = window(pixels, "CC", 600, 150)
    assert left == pytest.approx(x[-1] + 1 - 150, abs=3)
    assert box[2] == 150
    # Room for the whole image: it stays inside; MLO is padded at the bottom, CC on both sides.
    assert window(pixels, "MLO", 1000, 800)[:2] == (0, 0)
    left, top, box = window(pixels, "CC", 1000, 800)
    assert -300 <= top <= 0
    assert (box[1] + box[3]) / 2 == pytest.approx(500, abs=1)


def test_padding_columns_beside_the_chest_wall_are_cut_off():
    pixels, _ = film(600, pad=90)
    done = prepare(mammogram(pixels), PreprocessConfig(600, 400))
    assert done.affine[0, 2] == pytest.approx(90, abs=2)
    assert done.breast[:, :3].any()


def test_fit_fills_the_canvas_with_the_breast():
    for height, width in ((500, 900), (900, 200)):
        done = prepare(mammogram(film(600)[0]), PreprocessConfig(height, width, "fit"))
        rows, columns = np.flatnonzero(done.breast.any(1)), np.flatnonzero(done.breast.any(0))
        share = max((rows[-1] + 1 - rows[0]) / height, (columns[-1] + 1 - columns[0]) / width)
        assert share > 0.99
        assert not rows[-1] >= height
        assert columns[0] == 0


def test_spacing_makes_pixels_of_the_wanted_size_unless_the_breast_is_too_large():
    pixels, _ = film(600)
    config = PreprocessConfig(300, 240, "spacing", 0.5)
    assert prepare(mammogram(pixels, spacing=0.2), config).affine[0, 0] == pytest.approx(2.5)
    fit = prepare(mammogram(pixels), PreprocessConfig(300, 240, "fit"))
    too_large = prepare(mammogram(pixels, spacing=0.4), config)
    unknown = prepare(mammogram(pixels, spacing=math.nan), config)
    for done in (too_large, unknown):
        np.testing.assert_array_equal(done.affine, fit.affine)
        np.testing.assert_array_equal(done.image, fit.image)


def test_scaling_down_is_antialiased():
    pixels, truth = film(1200)
    y, x = np.mgrid[:1200, :800]
    pixels = np.where(truth, np.where((x // 2 + y // 2) % 2, 200, 100), 0).astype(np.float32)
    done = prepare(mammogram(pixels, spacing=0.1), PreprocessConfig(200, 150, "spacing", 0.85))
    ramp = done.image[80:120, 10:40]
    assert ramp.std() < 0.02 * (ramp.mean() - done.image.min())  # picking pixels would give about 0.33


def test_film_labels_do_not_reach_the_canvas():
    clean, labelled = film(600, air=8, noise=2)[0], film(600, air=8, noise=2, label=True)[0]
    config = PreprocessConfig(640, 420)
    a, b = (prepare(mammogram(pixels), config) for pixels in (clean, labelled))
    assert (b.image[30:75, 280:380] == b.image.min()).all()
    np.testing.assert_array_equal(a.breast, b.breast)
    np.testing.assert_allclose(a.image, b.image, atol=1e-5)
    kept = prepare(mammogram(labelled), PreprocessConfig(640, 420, remove_background=False))
    left, top = kept.affine[:, 2].astype(int)
    assert (kept.image[60 - top, 300 - left] > kept.image[kept.breast]).all()


def test_removing_the_background_costs_no_skin():
    pixels, truth = film(600)
    config = PreprocessConfig(600, 400, "none")
    done = prepare(mammogram(pixels), config)
    left, top = done.affine[:, 2].astype(int)
    kept = done.image > done.image.min()
    window = np.zeros((600, 400), bool)
    rows = slice(max(0, -top), min(600, 600 - top))
    window[rows] = truth[max(0, top) : max(0, top) + (rows.stop - rows.start), left : left + 400]
    np.testing.assert_array_equal(kept, window)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 0}, "canvas of 0 x 1920"),
        ({"spacing_mm": math.nan}, "spacing_mm=nan"),
        ({"spacing_mm": -1.0}, "spacing_mm=-1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        PreprocessConfig(**values)


def test_an_unknown_way_to_resize_is_refused():
    config = PreprocessConfig()
    object.__setattr__(config, "resize", "zoom")  # as read from a file, where no type is checked
    with pytest.raises(InputError, match="'zoom': choose one of none, fit, spacing"):
        config.__post_init__()


def test_the_quick_canvas():
    assert PreprocessConfig.quick() == PreprocessConfig(368, 240, "spacing", 0.56)


# --- pectoral muscle


def mlo(height=600, muscle=True, curve=0.0, seed=0):
    """A breast with a muscle whose edge is a parabola from the top to the chest wall; its exact masks."""
    pixels, breast = film(height, texture=0.03)
    width = pixels.shape[1]
    y, x = np.mgrid[:height, :width] + 0.5
    breast |= (x < 0.5 * width) & (y < height / 2)
    pixels = np.where(breast, np.maximum(pixels, 120), pixels)
    rows = y / (0.55 * height)
    edge = 0.38 * width * ((1 - rows) + curve * rows * (1 - rows))
    truth = (x < edge) & breast
    if muscle:
        pixels = pixels + 60 / (1 + np.exp((x - edge) / (0.01 * height))) * breast
    pixels = pixels + np.random.default_rng(seed).normal(size=pixels.shape) * 4 * breast
    return np.clip(pixels, 0, None).astype(np.float32), breast, truth


@pytest.mark.parametrize("height", [300, 600, 1200])
@pytest.mark.parametrize("curve", [-0.25, 0, 0.25])
def test_the_muscle_is_found_at_any_pixel_size(height, curve):
    pixels, breast, truth = mlo(height, curve=curve)
    found = pectoral_mask(pixels, breast)
    assert dice(found, truth) > 0.95
    assert not (found & ~breast).any()


def test_grey_scale_does_not_move_the_muscle():
    pixels, breast, _ = mlo()
    np.testing.assert_array_equal(pectoral_mask(pixels, breast), pectoral_mask(pixels * 16, breast))


def test_the_curve_follows_a_bent_muscle_better_than_the_line(monkeypatch):
    pixels, breast, truth = mlo(curve=0.25)
    with_curve = dice(pectoral_mask(pixels, breast), truth)
    monkeypatch.setattr(pectoral, "_grown_curve", lambda *_: None)
    line_alone = dice(pectoral_mask(pixels, breast), truth)
    assert 0.85 < line_alone < with_curve


def test_nothing_is_returned_where_no_muscle_is_credible():
    pixels, breast, _ = mlo(muscle=False)
    assert not pectoral_mask(pixels, breast).any()
    pixels, breast, _ = mlo()
    assert not pectoral_mask(pixels, breast, PectoralConfig(max_area=0.02)).any()
    assert not pectoral_mask(pixels, breast, PectoralConfig(min_score=0.99)).any()
    assert not pectoral_mask(pixels, np.zeros_like(breast)).any()
    assert not pectoral_mask(np.zeros_like(pixels), breast).any()


# --- real mammograms


def grey(path):
    return np.asarray(Image.open(path)).astype(np.float32)


@pytest.mark.slow
def test_breast_masks_of_mini_mias(real_data):
    """The best fixed threshold (> 18, opening, largest component, holes filled) reaches 0.960."""
    folder = real_data / "mini-mias"
    scores, wrong_side = [], []
    for path in sorted((folder / "all-mias").glob("*.pgm")):
        pixels = grey(path)
        truth = np.asarray(Image.open(folder / "breast-mask-aligned" / f"{path.stem}.png"))
        scores.append(dice(breast_mask(pixels), truth))
        if orient(pixels)[1] != (int(path.stem[3:]) % 2 == 1):  # odd numbers are left breasts, wall right
            wrong_side.append(path.stem)
    assert len(scores) == 204
    assert np.mean(scores) > 0.985
    assert np.percentile(scores, 5) > 0.965
    assert min(scores) > 0.92
    assert wrong_side in ([], ["mdb151"])  # fills the film from side to side


@pytest.mark.slow
def test_pectoral_muscles_of_ddsm(real_data):
    scores = []
    for path in sorted((real_data / "ddsm-mlo-segmentation" / "images").glob("*.png")):
        label = grey(real_data / "ddsm-mlo-segmentation" / "labels" / f"{path.stem}_LI.png")
        pixels, flipped = orient(grey(path))
        truth = label[:, ::-1] == 255 if flipped else label == 255
        assert truth[:, :240].sum() > truth[:, 240:].sum(), f"{path.name}: the muscle is at the chest wall"
        scores.append(dice(pectoral_mask(pixels, breast_mask(pixels)), truth))
    assert len(scores) == 16
    assert np.mean(scores) >= 0.90
    assert min(scores) > 0.7


@pytest.mark.slow
def test_the_sides_of_ddsm_films(real_data):
    paths = sorted((real_data / "ddsm-299").glob("*/*/*.png"))
    mirrored = ("A_1180", "A_2030", "D_4534")  # these films were stored as mirror images
    for path in paths:
        assert orient(grey(path))[1] == ("RIGHT" in path.stem) ^ path.stem.startswith(mirrored), path.name


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["nyu-gmic-sample/images", "nyu-bcc-sample/images", "cbis-ddsm/full-png"])
def test_full_size_images_of_other_sources(real_data, folder):
    for path in sorted((real_data / folder).glob("*.png")):
        image = read_image(path)
        if folder.startswith("nyu"):  # air is exactly 0
            truth = image.pixels > 0
            assert dice(breast_mask(image.pixels), truth) > 0.97, path.name
        for config in (PreprocessConfig(), PreprocessConfig.quick()):
            done = prepare(image, config)
            assert np.isfinite(done.image).all()
            assert done.breast[:, :3].any(), "the chest wall is at the left of the canvas"
            assert done.breast.mean() > 0.05
            if folder.startswith("nyu"):
                assert done.flipped == (image.laterality == "R")
