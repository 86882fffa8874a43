import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mammomil.codes import CodeDataset, PoseConfig
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.index import read_index, select, write_index
from mammomil.pectoral import pectoral_mask
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import POSES, RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig
from mammomil.weights import SHIPPED

QUICK = PreprocessConfig.quick()
CONFIG = dataclasses.replace(RegionModelConfig.quick(), encoder=EncoderConfig(weights="none"))


@pytest.fixture(scope="module")
def model():
    return build_region_model(CONFIG, seed=2).eval()


def dataset(index, model, **options):
    data = CodeDataset(index, QUICK, model, **options)
    assert data.prepare_all(progress=False, workers=0) == []
    return data


def test_codes_are_those_of_the_windows_over_the_breast_without_the_muscle(twelve_phantoms, model):
    data = dataset(twelve_phantoms, model)
    assert len(data) == len(twelve_phantoms.images)
    for row in (0, 5, 11):
        look, prepared = data.look(row), data.prepared(row)
        view = twelve_phantoms.images["view"].iloc[row]
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


def test_rare_kinds_of_images_get_more_poses(twelve_phantoms, model):
    malignant = twelve_phantoms.images["malignant"].to_numpy() == 1
    rare = select(twelve_phantoms, malignant.cumsum() * malignant <= 2)
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


def test_codes_are_kept_under_what_they_are_made_of(twelve_phantoms, model, tmp_path, monkeypatch):
    few = select(twelve_phantoms, np.arange(len(twelve_phantoms.images)) < 3)
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


def test_bad_images_are_named_and_the_rest_goes_on(twelve_phantoms, model, tmp_path):
    images = twelve_phantoms.images.copy()
    images.loc[images.index[0], "path"] = "images/missing.png"
    data = CodeDataset(twelve_phantoms._replace(images=images), QUICK, model, cache=tmp_path)
    failures = data.prepare_all(progress=False, workers=0)
    assert [name for name, _ in failures] == [images["image_id"].iloc[0]]
    assert "missing.png" in failures[0][1]
    assert len(data) == len(images) - 1
    assert data[0].row == 0
    huge = dataclasses.replace(CONFIG, windows=WindowConfig((360,)))
    data = CodeDataset(twelve_phantoms, QUICK, build_region_model(huge))
    with pytest.raises(InputError, match=r"no image can be used.*no window of 360 pixels lies in the breast"):
        data.prepare_all(progress=False, workers=0)


def test_a_full_disk_is_said_once_and_stops_nothing(twelve_phantoms, model, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    data = dataset(twelve_phantoms, model, cache=tmp_path / "codes")
    assert len(data) == len(twelve_phantoms.images)
    assert capsys.readouterr().err.count("No space left") == 1
    assert list((tmp_path / "codes").iterdir()) == []


@pytest.mark.slow
def test_processes_change_nothing(model):
    index = read_index(SHIPPED)
    few = select(index, np.arange(len(index.images)) < 24)
    alone = dataset(few, model)
    data = CodeDataset(few, QUICK, model)
    assert data.prepare_all(progress=False, workers=2) == []
    for row in range(24):
        torch.testing.assert_close(data[row].codes, alone[row].codes, atol=1e-6, rtol=1e-5)
