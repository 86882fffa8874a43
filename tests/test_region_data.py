import dataclasses
import itertools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mammomil.codes import CodeDataset, PoseConfig
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.index import make_index, read_index, select, write_index
from mammomil.pectoral import pectoral_mask
from mammomil.preprocess import PreprocessConfig
from mammomil.region_data import (
    RegionImageDataset,
    choose_annotated,
    collate_regions,
    region_mask,
)
from mammomil.region_model import POSES, RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig, iom, region_labels
from mammomil.weights import SHIPPED

QUICK = PreprocessConfig.quick()
CONFIG = dataclasses.replace(RegionModelConfig.quick(), encoder=EncoderConfig(weights="none"))


@pytest.fixture(scope="module")
def model():
    return build_region_model(CONFIG, seed=2).eval()


@pytest.fixture(scope="module")
def samples():
    """Twelve shipped phantom images: four malignant ones with placed lesions, four others."""
    index = read_index(SHIPPED)
    images = index.images
    malignant = images.index[(images["malignant"] == 1)][:6]
    others = images.index[(images["malignant"] == 0)][:6]
    keep = images.index.isin([*malignant, *others])
    return select(index, keep)


def dataset(index, model, **options):
    data = CodeDataset(index, QUICK, model, **options)
    assert data.prepare_all(progress=False, workers=0) == []
    return data


def test_codes_are_those_of_the_windows_over_the_breast_without_the_muscle(samples, model):
    data = dataset(samples, model)
    assert len(data) == len(samples.images)
    for row in (0, 5, 11):
        look, prepared = data.look(row), data.prepared(row)
        view = samples.images["view"].iloc[row]
        centres = (look.boxes[:, :2] + 14).long()
        assert prepared.breast[centres[:, 1], centres[:, 0]].all()
        if view == "MLO":
            muscle = pectoral_mask(prepared.image - prepared.image.min(), prepared.breast)
            assert muscle.any()
            assert not muscle[centres[:, 1], centres[:, 0]].any()
        x0, y0, x1, y1 = look.boxes[7].int().tolist()
        with torch.inference_mode():
            code = model.encoder(torch.from_numpy(prepared.image[y0:y1, x0:x1])[None, None])[0]
        torch.testing.assert_close(data[row].codes[7], code, atol=1e-5, rtol=1e-4)
        assert data[row].codes.shape == (len(look.boxes), 128)


def test_the_muscle_is_looked_for_on_mlo_views_alone(samples, model):
    data = dataset(samples, model)
    prepared = data.prepared(int(np.flatnonzero(samples.images["view"] == "MLO")[0]))
    windows = CONFIG.windows
    whole = prepared.breast.sum()
    assert region_mask(prepared, "MLO", windows).sum() < whole
    for view, config in (("CC", windows), ("", windows), ("MLO", WindowConfig((28,), pectoral=True))):
        assert region_mask(prepared, view, config).sum() == whole


def test_region_labels_follow_the_malignant_lesions_of_annotated_images_alone(samples, model):
    ids = samples.images["image_id"].to_list()
    malignant = samples.images["malignant"].to_numpy() == 1
    annotated = {ids[i] for i in np.flatnonzero(malignant)[:3]}
    data = dataset(samples, model, annotated=annotated)
    for row, image_id in enumerate(ids):
        sample, look = data[row], data.look(row)
        if image_id not in annotated:
            assert not sample.annotated
            assert (sample.region_label == -1).all()
            continue
        found = data.findings_on_canvas(row)
        masks = data.masks_on_canvas(row)[found.malignant].numpy()
        expected = []
        for x0, y0, x1, y1 in look.boxes.int().tolist():
            shares = [m[y0:y1, x0:x1].sum() / min(m.sum(), 28 * 28) for m in masks]
            hit, touched = any(s >= 0.5 for s in shares), any(s > 0 for s in shares)
            expected.append(1 if hit else -1 if touched else 0)
        assert sample.region_label.tolist() == expected
        assert bool(sample.annotated) == (1 in expected)


def boxed_phantom(folder, boxes, height=368, width=240):
    """A bright half disc with findings given by boxes alone, as mini-MIAS and others have them."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    breast = (x / 200) ** 2 + ((y - height / 2) / 170) ** 2 < 1
    noise = np.random.default_rng(0).integers(0, 4000, (height, width))
    Image.fromarray((breast * (20_000 + noise)).astype(np.uint16)).save(folder / "a.png")
    image = {"image_id": "a", "exam_id": "e", "patient_id": "p", "path": "a.png", "view": "CC"}
    image |= {"benign": 0, "malignant": 1, "spacing_mm": 0.56, "height": height, "width": width}
    images = pd.DataFrame([image])
    findings = pd.DataFrame([
        {"image_id": "a", "finding_id": f"f{n}", "finding": "malignant", "x0": b[0], "y0": b[1], "x1": b[2],
         "y1": b[3]} for n, b in enumerate(boxes)
    ])  # fmt: skip
    return make_index(images.astype(str), findings.astype(str), folder)


def test_boxes_stand_for_lesions_without_a_mask(tmp_path, model):
    index = boxed_phantom(tmp_path, [(40, 100, 60, 130), (120, 200, 126, 204)])
    data = dataset(index, model, annotated={"a"})
    boxes = data.findings_on_canvas(0).boxes
    look = data.look(0)
    expected = region_labels(iom(look.boxes, boxes.round()))
    assert look.region_label.tolist() == expected.tolist()
    assert set(expected.tolist()) == {-1, 0, 1}


def test_an_annotated_image_without_a_malignant_region_becomes_weak_with_a_warning(tmp_path, model):
    """Reading A6: a long thin lesion that no window covers half of."""
    index = boxed_phantom(tmp_path, [(20, 100, 23, 260)])
    data = CodeDataset(index, QUICK, model, annotated={"a"})
    with pytest.warns(UserWarning, match=r"1 annotated images have no region.*: a$"):
        data.prepare_all(progress=False)
    assert not data[0].annotated
    assert -1 in data[0].region_label


def test_turned_images_keep_their_labels_and_get_other_codes(samples, model):
    ids = samples.images["image_id"].to_list()
    row = int(np.flatnonzero(samples.images["malignant"] == 1)[0])
    data = dataset(samples, model, annotated={ids[row]})
    plain = data.look(row)
    area = (plain.boxes[:, 2] - plain.boxes[:, 0]).unique().tolist()
    assert area == [28.0]
    lesion = data.masks_on_canvas(row)[data.findings_on_canvas(row).malignant]
    for pose in (p for p in POSES if p.shift == 0):
        look = data.look(row, pose)
        hot = look.boxes[look.region_label == 1]
        assert len(hot) > 0
        if pose.turns % 2 == 0:  # quarter turns are exact
            moved = torch.rot90(lesion.flip(-1) if pose.mirrored else lesion, pose.turns // 2, (-2, -1))
            for x0, y0, x1, y1 in hot.int().tolist():
                cut = moved[:, y0:y1, x0:x1].sum((1, 2)) / moved.sum((1, 2)).clamp(max=28 * 28)
                assert cut.max() >= 0.5
        assert abs(len(look.boxes) - len(plain.boxes)) < 0.25 * len(plain.boxes)


def test_rare_kinds_of_images_get_more_poses(samples, model):
    malignant = samples.images["malignant"].to_numpy() == 1
    rare = select(samples, malignant.cumsum() * malignant <= 2)
    data = CodeDataset(rare, QUICK, model, poses=PoseConfig(2, balance=True), seed=3)
    chosen = data._choose_poses()
    labels = rare.images[["malignant", "benign"]].to_numpy()
    kinds = np.where(labels[:, 0] == 1, "M", np.where(labels[:, 1] == 1, "B", "N"))
    most = max((kinds == k).sum() for k in set(kinds))
    for kind in set(kinds):
        per = [len(chosen[i]) for i in np.flatnonzero(kinds == kind)]
        assert set(per) == {round(2 * most / (kinds == kind).sum())}
    assert all(poses[0] == POSES[0] and len(set(poses)) == len(poses) for poses in chosen)
    assert chosen == CodeDataset(rare, QUICK, model, poses=PoseConfig(2, True), seed=3)._choose_poses()
    assert chosen != CodeDataset(rare, QUICK, model, poses=PoseConfig(2, True), seed=4)._choose_poses()
    few = select(rare, np.arange(len(rare.images)) < 2)
    data = dataset(few, model, poses=PoseConfig(3), seed=3)
    assert [row for row, _ in data.items] == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(data[0].codes[:5], data[1].codes[:5])
    with pytest.raises(ValueError, match="copies is 0"):
        PoseConfig(0)


def test_codes_are_kept_under_what_they_are_made_of(samples, model, tmp_path, monkeypatch):
    few = select(samples, np.arange(len(samples.images)) < 3)
    write_index(few, tmp_path / "index")
    shutil.copytree(SHIPPED / "images", tmp_path / "images")
    copied = read_index(SHIPPED)
    copied = select(copied, copied.images["image_id"].isin(few.images["image_id"]))
    copied = copied._replace(root=tmp_path)
    cache = tmp_path / "codes"
    first = dataset(copied, model, cache=cache)
    entries = sorted(cache.iterdir())
    assert len(entries) == 3
    assert not list(cache.glob(".*"))  # no temporary file is left

    def never(*_):
        raise AssertionError("the codes were there")

    monkeypatch.setattr(CodeDataset, "encode", never)
    second = dataset(copied, model, cache=cache)
    for row in range(3):
        torch.testing.assert_close(second[row].codes, first[row].codes, rtol=0, atol=0)
    monkeypatch.undo()
    # Another state of a file, other weights, other windows, another canvas: other entries.
    path = tmp_path / copied.images["path"].iloc[0]
    pixels = np.asarray(Image.open(path)).copy()
    pixels[200, 30] += 500
    Image.fromarray(pixels).save(path)
    names = [data.entries(0, POSES[:2]) for data in (
        CodeDataset(copied, QUICK, model, cache),
        CodeDataset(copied, QUICK, build_region_model(CONFIG, seed=7), cache),
        CodeDataset(copied, dataclasses.replace(QUICK, spacing_mm=0.6), model, cache),
        CodeDataset(copied, QUICK, build_region_model(
            dataclasses.replace(CONFIG, windows=WindowConfig((32,))), seed=2), cache),
    )]  # fmt: skip
    flat = [name for pair in names for name in pair] + entries
    assert len(set(flat)) == len(flat)
    # A damaged entry is made anew.
    entries[0].write_bytes(entries[0].read_bytes()[:-100])
    again = dataset(first.index, model, cache=cache)
    assert torch.isfinite(again[0].codes).all()
    assert len(again) == 3


def test_bad_images_are_named_and_the_rest_goes_on(samples, model, tmp_path):
    images = samples.images.copy()
    images.loc[images.index[0], "path"] = "images/missing.png"
    data = CodeDataset(samples._replace(images=images), QUICK, model, cache=tmp_path)
    failures = data.prepare_all(progress=False, workers=0)
    assert [name for name, _ in failures] == [images["image_id"].iloc[0]]
    assert "missing.png" in failures[0][1]
    assert len(data) == len(images) - 1
    assert data[0].row == 0
    huge = dataclasses.replace(CONFIG, windows=WindowConfig((360,)))
    data = CodeDataset(samples, QUICK, build_region_model(huge))
    with pytest.raises(InputError, match=r"no image can be used.*no window of 360 pixels lies in the breast"):
        data.prepare_all(progress=False, workers=0)


def test_a_full_disk_is_said_once_and_stops_nothing(samples, model, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    data = dataset(samples, model, cache=tmp_path / "codes")
    assert len(data) == len(samples.images)
    assert capsys.readouterr().err.count("No space left") == 1
    assert list((tmp_path / "codes").iterdir()) == []


def test_pixels_of_images_without_a_window_are_left_out_and_weak_ones_named(samples, tmp_path):
    data = RegionImageDataset(samples, QUICK, WindowConfig((100,)))
    failures = data.prepare_all(progress=False, workers=0)  # 56 mm windows: some breasts hold none
    assert len(data) + len(failures) == len(samples.images)
    assert all("no window of 100 pixels" in reason for _, reason in failures)
    index = boxed_phantom(tmp_path, [(20, 100, 23, 260)])
    with pytest.warns(UserWarning, match="1 annotated images have no region"):
        RegionImageDataset(index, QUICK, CONFIG.windows, {"a"}).prepare_all(progress=False)
    with pytest.raises(InputError, match="no image can be used"):
        RegionImageDataset(index, QUICK, WindowConfig((360,))).prepare_all(progress=False)


def test_batches_pad_regions_and_say_so(samples, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dataset(samples, model, annotated=set(samples.images["image_id"]))
    batch = collate_regions([data[0], data[1], data[4]])
    counts = [len(data[i].codes) for i in (0, 1, 4)]
    assert batch.valid.sum(1).tolist() == counts
    assert (batch.codes[~batch.valid] == 0).all()
    assert (batch.region_label[~batch.valid] == -1).all()
    torch.testing.assert_close(batch.codes[1, : counts[1]], data[1].codes, rtol=0, atol=0)
    assert batch.inputs[0] is batch.codes
    assert batch.row.tolist() == [0, 1, 4]


def test_pixels_and_windows_lead_to_the_same_answer_as_codes(samples, model):
    coded = dataset(samples, model)
    pixels = RegionImageDataset(samples, QUICK, CONFIG.windows)
    first, second = (collate_regions([data[i] for i in (0, 3, 7)]) for data in (coded, pixels))
    with torch.inference_mode():
        output, again = model.head(*first.inputs), model(*second.inputs)
    torch.testing.assert_close(output.y, again.y)
    torch.testing.assert_close(output.scores, again.scores, atol=1e-6, rtol=1e-3)
    assert second.codes is None
    turned = RegionImageDataset(samples, QUICK, CONFIG.windows, random_poses=True)
    assert not torch.equal(turned[(0, 5)].boxes, pixels[(0, 5)].boxes)
    torch.testing.assert_close(turned[(0, 5)].image, turned[(0, 5 + len(POSES))].image)
    torch.testing.assert_close(turned[0].image, pixels[0].image)


def test_annotated_images_are_nested_fractions_chosen_by_the_seed():
    index = read_index(SHIPPED)
    sets = [choose_annotated(index, f, seed=4) for f in (0.25, 0.5, 0.75, 1.0)]
    malignant = set(index.images.loc[index.images["malignant"] == 1, "image_id"])
    for smaller, larger in itertools.pairwise(sets):
        assert smaller < larger
    assert sets[-1] <= malignant
    assert [len(s) for s in sets] == [round(f * len(sets[-1])) for f in (0.25, 0.5, 0.75, 1)]
    assert choose_annotated(index, 0.5, seed=5) != sets[1]
    assert choose_annotated(index, 0.0, seed=4) == frozenset()


def test_images_with_an_unplaced_malignant_finding_cannot_be_annotated(tmp_path):
    index = boxed_phantom(tmp_path, [(40, 100, 60, 130)])
    assert choose_annotated(index, 1.0, 0) == {"a"}
    findings = index.findings.copy()
    more = findings.iloc[[0]].assign(finding_id="f9", x0=np.nan, y0=np.nan, x1=np.nan, y1=np.nan)
    index = index._replace(findings=pd.concat([findings, more], ignore_index=True))
    with pytest.raises(InputError, match="none can be annotated"):
        choose_annotated(index, 0.5, 0)
    with pytest.raises(InputError, match=r"annotated is 1\.5"):
        choose_annotated(index, 1.5, 0)


@pytest.mark.parametrize(
    ("box", "words"), [((60, 100, 40, 130), "x1"), ((300, 100, 320, 130), "x1"), ((-9, 10, 20, 30), "x0")]
)
def test_inverted_boxes_and_lesions_outside_the_image_are_refused_with_their_place(tmp_path, box, words):
    with pytest.raises(InputError, match=rf"f0|{words}") as caught:
        boxed_phantom(tmp_path, [box])
    assert words in str(caught.value)


def test_a_lesion_outside_the_canvas_labels_nothing(tmp_path, model):
    """Its image is twice as high as the canvas: the lesion at its far end was not kept."""
    index = boxed_phantom(tmp_path, [(5, 900, 25, 930)], height=1000)
    data = CodeDataset(index, QUICK, model, annotated={"a"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.prepare_all(progress=False, workers=0)
    label = data[0].region_label
    assert not (label == 1).any() or data.findings_on_canvas(0).boxes.numel() > 0


@pytest.mark.slow
def test_processes_change_nothing(model):
    index = read_index(SHIPPED)
    few = select(index, np.arange(len(index.images)) < 24)
    alone = dataset(few, model)
    data = CodeDataset(few, QUICK, model)
    assert data.prepare_all(progress=False, workers=2) == []
    for row in range(24):
        torch.testing.assert_close(data[row].codes, alone[row].codes, atol=1e-6, rtol=1e-5)


def test_the_samples_folder_is_where_tests_think():
    assert Path(SHIPPED, "index.csv").is_file()
