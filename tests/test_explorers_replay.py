"""The replay of a training against the models that were recorded, asked again and by hand."""

import re

import numpy as np
import pytest
import torch
from controls import every_control_changes_the_words

from mammomil import classroom
from mammomil.cache import CanvasFindings
from mammomil.dataset import MammogramDataset
from mammomil.explorers.replay import hits, record, replay_explorer
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic

ROWS = (12, 0, 96)  # malignant, benign, nothing
NAMES = ("A malignant mass", "A benign mass", "No finding")
LOSSES = ({}, {"loc": 1.5, "mil": 1.3, "reg": 0.002}, {"loc": 1.0, "mil": 1.25, "reg": 0.001})


@pytest.fixture(scope="module")
def phantoms():
    return MammogramDataset(classroom.sample_index(), classroom.shipped_model().preprocess)


@pytest.fixture(scope="module")
def images(phantoms):
    return torch.stack([phantoms[row].image for row in ROWS])


@pytest.fixture(scope="module")
def models():
    """Stand-ins for three moments of a training: from nothing, half trained, trained."""
    half = build_gmic(GMICConfig.quick())
    half.load_state_dict(classroom.shipped_model("gmic-quick-half").model.state_dict())
    return build_gmic(GMICConfig.quick()), half, classroom.shipped_model().model


@pytest.fixture(scope="module")
def history(models, images):
    return [record(m, images, n / 2, loss) for n, (m, loss) in enumerate(zip(models, LOSSES, strict=True))]


@pytest.fixture(scope="module")
def explorer(history, images, phantoms):
    return replay_explorer(history, images, NAMES, [phantoms.findings_on_canvas(row) for row in ROWS])


def by_hand(roi, boxes):
    """IoM of one patch with each box, in plain numbers."""
    shares = []
    for x0, y0, x1, y1 in boxes:
        wide = max(0.0, min(roi[2], x1) - max(roi[0], x0))
        high = max(0.0, min(roi[3], y1) - max(roi[1], y0))
        smaller = min((roi[2] - roi[0]) * (roi[3] - roi[1]), (x1 - x0) * (y1 - y0))
        shares.append(wide * high / smaller)
    return shares


def test_a_moment_is_what_the_model_says_in_evaluation_mode(models, images, history):
    model = models[1].train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    moment = record(model, images, 0.5, LOSSES[1], batch_size=2)
    assert model.training
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])  # statistics of batches have not moved
    with torch.inference_mode():
        output = model.eval()(images)
    np.testing.assert_allclose(moment.saliency, output.saliency.numpy(), atol=5e-4)  # half precision
    np.testing.assert_allclose(moment.y_loc, output.y_loc.numpy(), atol=1e-5)
    np.testing.assert_allclose(moment.y_mil, output.y_mil.numpy(), atol=1e-5)
    for i, k in np.ndindex(3, 6):
        row, column = output.rois[i, k].tolist()
        assert moment.rois[i, k].tolist() == [column, row, column + 32, row + 32]
    assert moment.saliency.nbytes < 3 * 2 * 1380 * 4
    assert moment.losses == LOSSES[1]


def test_some_images_of_a_moment(history):
    few = history[2].of([2, 0])
    assert (few.epoch, few.losses) == (1.0, LOSSES[2])
    for name in ("saliency", "rois", "y_loc", "y_mil"):
        np.testing.assert_array_equal(getattr(few, name), getattr(history[2], name)[[2, 0]])


def test_hits_are_the_patches_with_half_the_smaller_area_in_common(history, phantoms):
    for i, row in enumerate(ROWS):
        lesions = phantoms.findings_on_canvas(row)
        for malignant in (None, False, True):
            boxes = [
                box
                for box, m in zip(lesions.boxes.tolist(), lesions.malignant.tolist(), strict=True)
                if malignant is None or m == malignant
            ]
            want = [max(by_hand(roi, boxes)) >= 0.5 for roi in history[1].rois[i].tolist()] if boxes else None
            assert hits(history[1].rois[i], lesions, malignant) == want


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.parametrize("image", [0, 1, 2])
@pytest.mark.parametrize("finding", [0, 1])
def test_words_tell_the_recorded_numbers(history, explorer, phantoms, moment, image, finding):
    scene = explorer.scene(moment=moment, image=image, finding=finding)
    now, name = history[moment], ("benign", "malignant")[finding]
    assert scene.words.startswith(f"Epoch {moment / 2:g}. {NAMES[image]}, map of {name}: ")
    told = re.search(r"highest (\S+), mean (\S+)\. y_loc (\S+), y_mil (\S+?)\.( |$)", scene.words)
    cells = now.saliency[image, finding].astype(float)
    want = cells.max(), cells.mean(), now.y_loc[image, finding], now.y_mil[image, finding]
    np.testing.assert_allclose([float(told[k]) for k in range(1, 5)], want, atol=0.0051)
    lesions = phantoms.findings_on_canvas(ROWS[image])
    boxes = lesions.boxes[lesions.malignant == bool(finding)].tolist()
    if not boxes:
        assert "lesion" not in scene.words
    else:
        said = re.search(r"(None|Patch(?:es)?) (.*?) a \w+ lesion", scene.words)
        hitting = [k + 1 for k, roi in enumerate(now.rois[image]) if max(by_hand(roi, boxes)) >= 0.5]
        numbers = said[2].split(" of ")[0] if said[1] == "Patches" else said[2]
        assert (said[1] == "None") == (not hitting)
        assert not hitting or [int(n) for n in re.findall(r"\d+", numbers)] == hitting
    for term, value in LOSSES[moment].items():
        assert f"{term} {value:g}" in scene.words


def test_marks_stand_where_the_numbers_are(history, explorer, phantoms):
    """Patches and lesions in the scale of the mammogram; dots on the curves at the height of their values."""
    scene = explorer.scene(moment=2, image=0, finding=1)
    picture = scene.marks[0][1]
    scale = picture["height"] / 368
    assert picture["width"] / 240 == pytest.approx(scale)
    rects = [mark for kind, mark in scene.marks if kind == "rect"]
    patches = [m for m in rects if m["colour"] == "#F0E442"]
    corners = sorted((m["x"] / scale, m["y"] / scale, m["width"] / scale) for m in patches)
    np.testing.assert_allclose(corners, sorted((x, y, 32.0) for x, y, *_ in history[2].rois[0]), atol=1e-3)
    assert sorted(m["stroke"] for m in patches) == [1.5] * 5 + [3]
    lesions = phantoms.findings_on_canvas(12).boxes * scale
    drawn = [(m["x"] + 3, m["y"] + 3) for m in rects if m["colour"] == "#D55E00"]
    np.testing.assert_allclose(sorted(drawn), sorted(map(tuple, lesions[:, :2].tolist())), atol=1e-3)
    upper, lower = (
        [m for kind, m in scene.marks if kind == "circle" and low < m["y"] < high]
        for low, high in ((50, 190), (240, 390))
    )
    lines = [m for kind, m in scene.marks if kind == "line" and len(m["points"]) == 2]
    grid = sorted({m["points"][0][1] for m in lines if m["points"][0][1] == m["points"][1][1]})
    high_1, low_1, _, high_2, low_2 = grid  # the line between them is in the legend
    values = [(low_1 - m["y"]) / (low_1 - high_1) for m in upper]
    np.testing.assert_allclose(values, [history[2].y_loc[0, 1], history[2].y_mil[0, 1]], atol=1e-5)
    values = [1.5 * (low_2 - m["y"]) / (low_2 - high_2) for m in lower]  # the largest term reaches the top
    np.testing.assert_allclose(values, [1.0, 1.25, 0.001], atol=1e-5)
    assert {m["x"] for m in upper + lower} == {520}  # the last moment, at the right end


def test_every_control_changes_the_picture(explorer):
    seen = set()
    for moment in range(3):
        for image in range(3):
            for finding in range(2):
                seen.add(explorer.scene(moment=moment, image=image, finding=finding).svg({}))
    assert len(seen) == 18
    assert [control.play for control in explorer.controls] == [True, False, False]


test_every_control_changes_the_words = every_control_changes_the_words


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 250_000  # 18 frames; the chapter has 66
    assert "http" not in page.replace("http://www.w3.org", "")
    assert explorer.scene().width <= 720


def test_without_lesions_and_with_one_image(history, images):
    explorer = replay_explorer([moment.of([1]) for moment in history], images[1:2])
    assert [control.name for control in explorer.controls] == ["moment", "finding"]
    assert "lesion" not in explorer.scene(moment=1).words + explorer.note
    assert explorer.scene(moment=1).words.startswith("Epoch 0.5. image 1, map of malignant")


def test_what_does_not_fit_is_refused(history, images):
    nothing = CanvasFindings(torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))
    for wrong in (
        {"history": history[:1]},
        {"history": [history[0], history[1].of([0])]},
        {"names": ["one"]},
        {"lesions": [nothing]},
        {"images": images[:2]},
    ):
        with pytest.raises(InputError, match="two moments"):
            replay_explorer(**({"history": history, "images": images} | wrong))


def test_a_model_in_evaluation_mode_stays_in_it(models, images):
    assert not models[2].eval().training
    record(models[2], images[:1])
    assert not models[2].training


def test_lesions_of_the_other_map_are_dashed(explorer, phantoms):
    for image, row in enumerate(ROWS):
        kinds = phantoms.findings_on_canvas(row).malignant.tolist()
        for finding in (0, 1):
            marks = explorer.scene(image=image, finding=finding).marks
            drawn = [m for kind, m in marks if kind == "rect" and m["colour"] in ("#D55E00", "#0072B2")]
            assert [m["colour"] == "#D55E00" for m in drawn] == kinds
            assert [m["dashed"] for m in drawn] == [kind != finding for kind in kinds]
