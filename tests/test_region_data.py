import dataclasses
import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mammomil.codes import CodeDataset
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.index import make_index, read_index
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


def dataset(index, model, **options):
    data = CodeDataset(index, QUICK, model, **options)
    assert data.prepare_all(progress=False, workers=0) == []
    return data


def test_the_muscle_is_looked_for_on_mlo_views_alone(twelve_phantoms, model):
    data = dataset(twelve_phantoms, model)
    prepared = data.prepared(int(np.flatnonzero(twelve_phantoms.images["view"] == "MLO")[0]))
    windows = CONFIG.windows
    whole = prepared.breast.sum()
    assert region_mask(prepared, "MLO", windows).sum() < whole
    for view, config in (("CC", windows), ("", windows), ("MLO", WindowConfig((28,), pectoral=True))):
        assert region_mask(prepared, view, config).sum() == whole


def test_region_labels_follow_the_malignant_lesions_of_annotated_images_alone(twelve_phantoms, model):
    ids = twelve_phantoms.images["image_id"].to_list()
    malignant = twelve_phantoms.images["malignant"].to_numpy() == 1
    annotated = {ids[i] for i in np.flatnonzero(malignant)[:3]}
    data = dataset(twelve_phantoms, model, annotated=annotated)
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


def test_benign_lesions_label_no_region(tmp_path, model):
    index = boxed_phantom(tmp_path, [(40, 100, 60, 130), (120, 200, 140, 225)])
    findings = index.findings.assign(finding=["malignant", "benign"])
    data = dataset(index._replace(findings=findings), model, annotated={"a"})
    look = data.look(0)
    alone = torch.tensor([[40.0, 100.0, 60.0, 130.0]])
    assert look.region_label.tolist() == region_labels(iom(look.boxes, alone)).tolist()


def test_an_annotated_image_without_a_malignant_region_becomes_weak_with_a_warning(tmp_path, model):
    """Reading A6: a long thin lesion that no window covers half of."""
    index = boxed_phantom(tmp_path, [(20, 100, 23, 260)])
    data = CodeDataset(index, QUICK, model, annotated={"a"})
    with pytest.warns(UserWarning, match=r"1 annotated image has no region.*: a$"):
        data.prepare_all(progress=False)
    assert not data[0].annotated
    assert -1 in data[0].region_label


def test_turned_images_keep_their_labels_and_get_other_codes(twelve_phantoms, model):
    ids = twelve_phantoms.images["image_id"].to_list()
    row = int(np.flatnonzero(twelve_phantoms.images["malignant"] == 1)[0])
    data = dataset(twelve_phantoms, model, annotated={ids[row]})
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


def test_pixels_of_images_without_a_window_are_left_out_and_weak_ones_named(twelve_phantoms, tmp_path):
    data = RegionImageDataset(twelve_phantoms, QUICK, WindowConfig((100,)))
    failures = data.prepare_all(progress=False, workers=0)  # 56 mm windows: some breasts hold none
    assert len(data) + len(failures) == len(twelve_phantoms.images)
    assert all("no window of 100 pixels" in reason for _, reason in failures)
    index = boxed_phantom(tmp_path, [(20, 100, 23, 260)])
    with pytest.warns(UserWarning, match="1 annotated image has no region"):
        RegionImageDataset(index, QUICK, CONFIG.windows, {"a"}).prepare_all(progress=False)
    with pytest.raises(InputError, match="no image can be used"):
        RegionImageDataset(index, QUICK, WindowConfig((360,))).prepare_all(progress=False)


def test_batches_pad_regions_and_say_so(twelve_phantoms, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dataset(twelve_phantoms, model, annotated=set(twelve_phantoms.images["image_id"]))
    batch = collate_regions([data[0], data[1], data[4]])
    counts = [len(data[i].codes) for i in (0, 1, 4)]
    assert batch.valid.sum(1).tolist() == counts
    assert (batch.codes[~batch.valid] == 0).all()
    assert (batch.region_label[~batch.valid] == -1).all()
    torch.testing.assert_close(batch.codes[1, : counts[1]], data[1].codes, rtol=0, atol=0)
    assert batch.inputs[0] is batch.codes
    assert batch.row.tolist() == [0, 1, 4]


def test_pixels_and_windows_lead_to_the_same_answer_as_codes(twelve_phantoms, model):
    coded = dataset(twelve_phantoms, model)
    pixels = RegionImageDataset(twelve_phantoms, QUICK, CONFIG.windows)
    first, second = (collate_regions([data[i] for i in (0, 3, 7)]) for data in (coded, pixels))
    with torch.inference_mode():
        output, again = model.head(*first.inputs), model(*second.inputs)
    torch.testing.assert_close(output.y, again.y)
    torch.testing.assert_close(output.scores, again.scores, atol=1e-6, rtol=1e-3)
    assert second.codes is None
    turned = RegionImageDataset(twelve_phantoms, QUICK, CONFIG.windows, random_poses=True)
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
    assert len(data.findings_on_canvas(0).boxes) == 0
    assert (data[0].region_label == 0).all()  # no window touches it
    assert not data[0].annotated


def test_the_samples_folder_is_where_tests_think():
    assert Path(SHIPPED, "index.csv").is_file()
