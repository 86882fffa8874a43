import dataclasses
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mammomil import predictor as module
from mammomil.backbones import ClassifierConfig, ResNet22Config, build_classifier
from mammomil.dual_branch import DualBranchConfig, build_dual_branch
from mammomil.encoders import EncoderConfig, RegionEncoder
from mammomil.files import InputError
from mammomil.gmic import GMIC, GMICConfig, GMICOutput, build_gmic, log_bernoulli
from mammomil.items import Item, collect
from mammomil.predictor import Loaded, Predictor, model_name, read_ahead, read_item, region_scores
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModel, RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig, cells_to_pixels, retrieve_rois
from mammomil.weights import save_model

QUICK = GMICConfig.quick()
SMALL = PreprocessConfig(184, 120, "fit")


class Brightness(GMIC):
    """A GMIC whose malignant map is the mean brightness of each 8x8 cell; the benign map is its square."""

    def __init__(self):
        model = build_gmic(QUICK)
        super().__init__(model.backbone, model.patch_net, QUICK)

    def forward(self, image, generator=None):
        mean = F.avg_pool2d(image, 8)
        low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
        malignant = (mean - low) / (high - low)
        saliency = torch.cat([malignant**2, malignant], 1)
        corners = retrieve_rois(saliency, 6, 4)
        rois = cells_to_pixels(corners, saliency.shape[-2:], image.shape[-2:], 32)
        attention = torch.linspace(6, 1, 6).softmax(0).expand(len(image), 6)
        logits = saliency.logit(1e-6)
        log_p = log_bernoulli(logits.amax((-2, -1)))
        y = log_p[..., 1].exp()
        return GMICOutput(saliency, rois, attention, y, y, y, None, logits, log_p, log_p, None)


def breast(height=300, width=200, blob=(70, 110), radius=14, seed=0):
    """A left breast, chest wall on the left: (pixels, box of its blob), xy of the blob as given."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = (x / (0.8 * width)) ** 2 + ((y - height / 2) / (0.4 * height)) ** 2 < 1
    pixels = np.where(inside, 9000 + 2000 * np.sin(x / 17) * np.cos(y / 23), 0)
    pixels += inside * np.random.default_rng(seed).normal(0, 300, pixels.shape)
    pixels[(x - blob[0]) ** 2 + (y - blob[1]) ** 2 < radius**2] = 50000
    return pixels.clip(0).astype(np.uint16)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    """Six readable images with a blob at different heights, and two files that are no images between them."""
    for k in range(6):
        save(tmp_path / f"{k}.png", breast(blob=(60 + 5 * k, 100 + 15 * k), seed=k))
    for name in ("2b.png", "4b.png"):
        (tmp_path / name).write_bytes(b"no image")
    return tmp_path


def predict_all(predictor, items):
    failures = []
    found = list(predictor.stream(items, lambda item, error: failures.append((item, error))))
    return found, failures


@pytest.mark.parametrize("flip", [False, True], ids=["left", "right"])
@pytest.mark.parametrize("canvas", [(368, 240), (240, 160)], ids=["padded", "cropped"])
@pytest.mark.parametrize("resize", ["none", "fit", "spacing"])
def test_boxes_and_maps_lie_where_the_file_is_bright(tmp_path, resize, canvas, flip):
    centre = np.array([70, 110])
    pixels = breast()
    if flip:
        pixels, centre = np.fliplr(pixels), np.array([200 - centre[0], centre[1]])
    item = Item(save(tmp_path / "x.png", pixels), "x", spacing_mm=0.4)
    config = PreprocessConfig(*canvas, resize, spacing_mm=0.5)
    (p,), _ = predict_all(Predictor(Brightness(), config, "stub"), [item])

    best = p.boxes[p.scores[:, 1].argmax()]
    assert (best[:2] < centre).all()
    assert (centre < best[2:]).all()
    assert (p.boxes >= 0).all()
    assert (p.boxes <= [200, 300, 200, 300]).all()

    # The map against the file: mean brightness under each cell that lies in the image, cell by cell.
    x0, y0, x1, y1 = p.map_box
    rows, columns = p.saliency.shape[1:]
    expected, found = [], []
    for i in range(rows):
        for j in range(columns):
            left, right = (x0 + (x1 - x0) * (j + side) / columns for side in (0, 1))
            top, bottom = (y0 + (y1 - y0) * (i + side) / rows for side in (0, 1))
            if left >= 0 and right <= 200 and top >= 0 and bottom <= 300:
                expected.append(pixels[round(top) : round(bottom), round(left) : round(right)].mean())
                found.append(p.saliency[1, i, j])
    assert len(found) > 100
    assert np.corrcoef(expected, found)[0, 1] > 0.97
    # One canvas pixel is the same length along both axes, and the length the resize mode asks for.
    scale = (x1 - x0) / canvas[1]
    assert scale == pytest.approx((y1 - y0) / canvas[0])
    if resize == "none":
        assert scale == pytest.approx(1)
    elif resize == "spacing" and canvas == (368, 240):
        assert scale == pytest.approx(0.5 / 0.4)
    side = p.boxes[:, 2:] - p.boxes[:, :2]
    whole = ((p.boxes > 0) & (p.boxes < [200, 300, 200, 300])).all(1)
    assert whole.any()
    np.testing.assert_allclose(side[whole], 32 * scale)


def test_a_mirrored_file_gives_mirrored_places_and_the_same_numbers(tmp_path):
    pixels = breast()
    left = Item(save(tmp_path / "l.png", pixels), "l", spacing_mm=0.4)
    right = Item(save(tmp_path / "r.png", np.fliplr(pixels)), "r", spacing_mm=0.4)
    predictor = Predictor(build_gmic(QUICK, 3), PreprocessConfig(184, 120, "fit"), "m")
    (a, b), _ = predict_all(predictor, [left, right])
    np.testing.assert_allclose(b.prob, a.prob, atol=1e-5)
    np.testing.assert_allclose(b.saliency, a.saliency[:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(b.boxes, np.stack([200 - a.boxes[:, 2], a.boxes[:, 1],
                                                  200 - a.boxes[:, 0], a.boxes[:, 3]], 1))  # fmt: skip
    np.testing.assert_allclose(b.scores, a.scores, atol=1e-5)


@given(
    seed=st.integers(0, 99),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    cell=st.integers(1, 5),
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    size=st.integers(1, 9),
)
def test_region_scores_are_means_of_the_map_drawn_pixel_by_pixel(seed, cells, cell, corner, size):
    saliency = np.random.default_rng(seed).random((2, *cells))
    drawn = np.kron(saliency, np.ones((1, cell, cell)))
    height, width = drawn.shape[1:]
    top, left = min(corner[0], height - 1), min(corner[1], width - 1)
    patches = np.array([[left, top, left + size, top + size]], float)  # may reach past the canvas
    expected = [drawn[c, top : top + size, left : left + size].mean() for c in range(2)]
    np.testing.assert_allclose(region_scores(saliency, patches, (height, width)), [expected])


def test_scores_of_whole_cells_rank_windows_as_algorithm_1_does():
    torch.manual_seed(0)
    saliency = torch.rand(1, 1, 46, 30)
    corners = retrieve_rois(saliency, 1, 4)
    pixels = cells_to_pixels(corners, (46, 30), (368, 240), 32)[0].numpy()
    every = np.array([(x, y, x + 32, y + 32) for y in range(0, 337, 8) for x in range(0, 209, 8)], float)
    best = every[region_scores(saliency[0].numpy(), every, (368, 240))[:, 0].argmax()]
    assert tuple(best[:2]) == (pixels[0, 1], pixels[0, 0])


@pytest.mark.parametrize("head", ["average", "fusion"])
def test_numbers_are_those_of_the_model(images, head):
    config = dataclasses.replace(QUICK, head=head)
    model = build_gmic(config, 1)
    (p,), _ = predict_all(Predictor(model, SMALL, "m"), collect(images / "0.png"))
    canvas = read_item(collect(images / "0.png")[0], [SMALL]).prepared[SMALL].image
    with torch.no_grad():
        out = model.eval()(torch.from_numpy(canvas)[None, None])
    np.testing.assert_allclose(p.prob, out.y[0])
    assert p.p_normal == pytest.approx(float((1 - p.prob[0]) * (1 - p.prob[1])), rel=1e-5)
    assert list(p.parts) == ["loc", "mil", *(["fusion"] if head == "fusion" else [])]
    for name, value in p.parts.items():
        np.testing.assert_allclose(value, getattr(out, f"y_{name}")[0])
    np.testing.assert_allclose(p.attention, out.attention[0])
    np.testing.assert_allclose(p.saliency, out.saliency[0])  # a left breast lies as it is
    assert (p.image_id, p.model) == ("0", "m")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_failures_in_the_middle_leave_the_rest_in_order(images, batch_size):
    predictor = Predictor(build_gmic(QUICK), SMALL, "m", batch_size=batch_size)
    found, failures = predict_all(predictor, collect(images))
    assert [p.image_id for p in found] == ["0", "1", "2", "3", "4", "5"]
    assert [item.image_id for item, _ in failures] == ["2b", "4b"]
    assert all(isinstance(error, InputError) for _, error in failures)
    alone = Predictor(build_gmic(QUICK), SMALL, "m")(images / "3.png")[0]
    np.testing.assert_allclose(found[3].prob, alone.prob, atol=1e-6)
    np.testing.assert_array_equal(found[3].boxes, alone.boxes)


def test_calling_it_stops_at_the_first_bad_file(images):
    predictor = Predictor(build_gmic(QUICK), SMALL, "m")
    assert [p.image_id for p in predictor([images / "1.png", str(images / "0.png")])] == ["1", "0"]
    with pytest.raises(InputError, match=r"2b\.png"):
        predictor(images)


def test_what_an_index_says_goes_before_the_file(tmp_path):
    path = save(tmp_path / "L_CC.png", breast())
    mammogram = read_item(Item(path, "x"), []).mammogram
    assert (mammogram.laterality, mammogram.view) == ("L", "CC")
    assert math.isnan(mammogram.spacing_mm)
    mammogram = read_item(Item(path, "x", "R", "MLO", 0.07), []).mammogram
    assert (mammogram.laterality, mammogram.view, mammogram.spacing_mm) == ("R", "MLO", 0.07)


def test_reading_stays_a_fixed_number_of_images_ahead(monkeypatch):
    lock, started = threading.Lock(), []

    def slow(item, configs):
        with lock:
            started.append(item)
        time.sleep(0.002)
        if item.image_id == "7":
            raise ZeroDivisionError("odd")
        return Loaded(item, None, {})

    monkeypatch.setattr(module, "read_item", slow)
    seen = []
    items = [Item(Path("x"), str(k)) for k in range(20)]
    for item, result in read_ahead(items, [], workers=3):
        time.sleep(0.004)
        seen.append(item)
        assert isinstance(result, ZeroDivisionError) if item.image_id == "7" else result.item == item
        assert len(started) - len(seen) <= 3
    assert seen == items
    # A caller who stops early leaves no thread behind.
    images = read_ahead(items * 50, [], workers=3)
    next(images)
    images.close()
    assert len(started) < 20 + 10
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_modes_are_given_back_part_by_part(images):
    model = build_gmic(QUICK)
    model.train()
    model.backbone.stages[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    (p,) = Predictor(model, SMALL, "m")(images / "0.png")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(p.prob, Predictor(model.eval(), SMALL, "m")(images / "0.png")[0].prob)


def test_a_classifier_of_findings_gives_probabilities_alone(images):
    config = ClassifierConfig(ResNet22Config((8, 16), (1, 2), stem_pool=False), target="findings")
    model = build_classifier(config)
    (p,) = Predictor(model, SMALL, "m")(images / "0.png")
    canvas = read_item(collect(images / "0.png")[0], [SMALL]).prepared[SMALL].image
    with torch.no_grad():
        expected = torch.sigmoid(model.eval()(torch.from_numpy(canvas)[None, None]).logits)[0]
    np.testing.assert_allclose(p.prob, expected, rtol=1e-5)
    assert p.saliency is None
    assert p.map_box is None
    assert p.attention is None
    assert (p.boxes.shape, p.scores.shape, p.parts) == ((0, 4), (0, 2), {})


def test_what_cannot_predict_is_refused():
    config = ClassifierConfig(ResNet22Config((8,), (1,)), target="birads")
    with pytest.raises(InputError, match="tells BI-RADS categories"):
        Predictor(build_classifier(config), SMALL, "m")
    with pytest.raises(InputError, match="bfloat16 needs CUDA"):
        Predictor(build_gmic(QUICK), SMALL, "m", device="cpu", precision="bfloat16")
    with pytest.raises(InputError, match="'warp9': not there"):
        Predictor(build_gmic(QUICK), SMALL, "m", device="warp9")


def test_weights_that_overflowed_are_a_failure_and_no_number(images):
    model = build_gmic(QUICK)
    torch.nn.init.constant_(model.mil_classifier.weight, torch.nan)
    found, failures = predict_all(Predictor(model, SMALL, "m"), collect(images / "0.png"))
    assert found == []
    assert "no number" in str(failures[0][1])


def test_random_patches_are_the_same_each_time(images):
    config = dataclasses.replace(QUICK, mil=dataclasses.replace(QUICK.mil, patches="random"))
    predictor = Predictor(build_gmic(config), SMALL, "m")
    a, b = predictor([images / "0.png", images / "1.png"])
    again = predictor([images / "1.png", images / "0.png"])
    np.testing.assert_array_equal(again[1].boxes, a.boxes)
    np.testing.assert_array_equal(again[0].boxes, b.boxes)
    assert not np.array_equal(a.boxes, b.boxes)


def test_a_model_folder_predicts(images, tmp_path):
    save_model(tmp_path / "m1", build_gmic(QUICK, 5), SMALL, {})
    (p,) = Predictor.from_pretrained(tmp_path / "m1")(images / "0.png")
    np.testing.assert_array_equal(
        p.prob, Predictor(build_gmic(QUICK, 5), SMALL, "")(images / "0.png")[0].prob
    )
    assert p.model == "m1"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_answers_as_the_cpu_does(images):
    items = [item for item in collect(images) if "b" not in item.image_id]
    cpu, _ = predict_all(Predictor(build_gmic(QUICK), SMALL, "m", "cpu"), items)
    cuda, _ = predict_all(Predictor(build_gmic(QUICK), SMALL, "m", "cuda", 3), items)
    half, _ = predict_all(Predictor(build_gmic(QUICK), SMALL, "m", "cuda", 3, "bfloat16"), items)
    for a, b, c in zip(cpu, cuda, half, strict=True):
        np.testing.assert_allclose(a.prob, b.prob, atol=2e-3)
        np.testing.assert_allclose(a.prob, c.prob, atol=3e-2)


def test_real_mammograms_of_both_sides(real_data):
    folder = real_data / "nyu-gmic-sample" / "images"
    found = Predictor(Brightness(), PreprocessConfig.quick(), "stub")(folder)
    assert {(p.laterality, p.view) for p in found} == {(s, v) for s in "LR" for v in ("CC", "MLO")}
    for p in found:
        height, width = read_item(Item(p.path, ""), []).mammogram.pixels.shape
        x0, y0, x1, _ = p.map_box
        # The canvas starts at the chest wall, which is on the left of a left breast.
        assert x0 == pytest.approx(0, abs=3) if p.laterality == "L" else x1 == pytest.approx(width, abs=3)
        assert 0 < y0 + height / 2 < height


def test_a_model_is_named_after_its_folder_or_its_run():
    assert model_name("runs/first/model") == "first"
    assert model_name("weights/quick") == "quick"


class MeanGrey(RegionEncoder):
    """An encoder whose code is the mean grey value of a window, twice."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.side, self.out_features = 16, 2

    def grey(self, image):
        return image

    def forward(self, fields):
        return fields.mean((1, 2, 3))[:, None].expand(-1, 2).relu()


def bright_regions(method="cls-det-rs", k=3):
    """A dual branch to which bright windows are malignant, and nothing is benign."""
    config = RegionModelConfig(
        EncoderConfig(weights="none"), WindowConfig((16,)), DualBranchConfig(method=method, k=k, hidden=2)
    )
    head = build_dual_branch(config.head, 2)
    with torch.no_grad():
        head.fc3.weight.copy_(torch.eye(2))
        head.fc4.weight.copy_(torch.tensor([[0.0, 0.0], [-9.0, 0.0], [2.0, 0.0]])[-head.fc4.out_features :])
        if head.fc5 is not None:
            head.fc5.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    return RegionModel(MeanGrey(), head, config)


@pytest.mark.parametrize("flip", [False, True], ids=["left", "right"])
@pytest.mark.parametrize(("resize", "side"), [("none", 16), ("fit", 16), ("spacing", 20)])
def test_regions_lie_where_the_file_is_bright(tmp_path, resize, side, flip):
    centre = np.array([70, 110])
    pixels = breast()
    if flip:
        pixels, centre = np.fliplr(pixels), np.array([200 - centre[0], centre[1]])
    item = Item(save(tmp_path / "x.png", pixels), "x", spacing_mm=0.4)
    config = PreprocessConfig(368, 240, resize, spacing_mm=0.5)
    (p,), _ = predict_all(Predictor(bright_regions(), config, "stub"), [item])
    best = p.boxes[p.scores[:, 1].argmax()]
    assert (best[:2] < centre).all()
    assert (centre < best[2:]).all()
    sides = p.boxes[:, 2:] - p.boxes[:, :2]
    if resize != "fit":
        np.testing.assert_allclose(sides.max(0), [side, side], rtol=1e-6)
    # Evidence against the file: the brightest windows are the ones that were ranked, up to resampling.
    means = np.array(
        [pixels[round(y0) : round(y1), round(x0) : round(x1)].mean() for x0, y0, x1, y1 in p.boxes]
    )
    ranked = np.flatnonzero(p.selected[:, 1])
    assert len(ranked) == 3
    np.testing.assert_allclose(np.sort(means[ranked]), np.sort(means)[-3:], rtol=0.1)
    assert means[ranked].min() > 1.5 * np.median(means)
    assert (p.scores[~p.selected] == 0).all()
    np.testing.assert_allclose(p.scores.sum(0), p.prob, rtol=1e-5)
    assert p.saliency is None
    assert p.attention is None
    assert p.ranks_regions
    assert p.p_normal == pytest.approx(np.prod(1 - p.prob))


def test_methods_without_selection_name_none_and_keep_every_region(images):
    for method in ("cls-det", "db-baseline", "max-region"):
        p = Predictor(bright_regions(method), SMALL, "stub")([images / "0.png"])[0]
        assert p.selected is None
        assert len(p.boxes) == len(p.scores) > 20
        total = p.scores.max(0) if method == "max-region" else p.scores.sum(0)
        np.testing.assert_allclose(total, p.prob, rtol=1e-5)


def test_images_of_a_batch_do_not_feel_each_other(images):
    items = collect([images / f"{k}.png" for k in range(5)])
    alone, _ = predict_all(Predictor(bright_regions(), SMALL, "stub"), items)
    together, _ = predict_all(Predictor(bright_regions(), SMALL, "stub", batch_size=4), items)
    for one, other in zip(alone, together, strict=True):
        assert one.image_id == other.image_id
        np.testing.assert_allclose(one.prob, other.prob, rtol=1e-5)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_a_breast_without_room_for_a_window_is_one_failure(images, monkeypatch):
    real = module.region_mask

    def nothing_in_the_third(prepared, view, config):
        mask = real(prepared, view, config)
        return mask & False if next(count) == 2 else mask

    count = iter(range(100))
    monkeypatch.setattr(module, "region_mask", nothing_in_the_third)
    items = collect([images / f"{k}.png" for k in range(5)])
    found, failures = predict_all(Predictor(bright_regions(), SMALL, "stub"), items)
    assert [p.image_id for p in found] == ["0", "1", "3", "4"]
    assert [item.image_id for item, _ in failures] == ["2"]
    assert "no window of 16 pixels lies in the breast" in str(failures[0][1])
    batched = Predictor(bright_regions(), SMALL, "stub", batch_size=5)
    monkeypatch.setattr(module, "region_mask", lambda p, v, c: real(p, v, c) & (p.image.std() < 0))
    assert len(predict_all(batched, items)[1]) == 5


def test_a_dual_branch_folder_predicts_as_the_model_does(images, tmp_path):
    config = dataclasses.replace(RegionModelConfig.quick(), encoder=EncoderConfig(weights="none"))
    model = build_region_model(config, seed=3)
    save_model(tmp_path / "dual" / "model", model, PreprocessConfig.quick(), {})
    predictor = Predictor.from_pretrained(tmp_path / "dual" / "model")
    assert predictor.name == "dual"
    first = predictor([images / "1.png"])[0]
    second = Predictor(model, PreprocessConfig.quick(), "x")([images / "1.png"])[0]
    np.testing.assert_array_equal(first.scores, second.scores)
    assert first.prob == pytest.approx([1 / 3, 1 / 3], abs=0.02)  # untrained
