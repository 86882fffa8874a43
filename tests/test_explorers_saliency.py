import itertools
import math
import re

import numpy as np
import pytest
import torch
from controls import every_control_changes_the_words
from matplotlib import colormaps

from mammomil import classroom
from mammomil.dataset import MammogramDataset
from mammomil.explorers.saliency import SHARES, saliency_explorer
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic

NAMES = ("a malignant phantom", "a benign phantom", "a phantom without a finding")
ROWS = (66, 76, 96)


@pytest.fixture(scope="module")
def shipped():
    loaded = classroom.shipped_model()
    phantoms = MammogramDataset(classroom.sample_index(), loaded.preprocess)
    images = torch.stack([phantoms[row].image for row in ROWS])
    lesions = [phantoms.findings_on_canvas(row) for row in ROWS]
    with torch.inference_mode():
        return loaded.model, images, lesions, loaded.model(images)


@pytest.fixture(scope="module")
def explorer(shipped):
    model, images, lesions, _ = shipped
    return saliency_explorer(model, images, NAMES, lesions)


def in_lesion(cell: tuple[int, int], lesions, malignant: bool) -> bool:
    x, y = 8 * cell[1] + 4, 8 * cell[0] + 4
    boxes = lesions.boxes[lesions.malignant == malignant].tolist()
    return any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(("image", "finding"), [(0, 1), (1, 0), (2, 0)])
def test_words_tell_the_pooled_cells(shipped, explorer, image, finding, share):
    """Count, mean and hits in plain loops; the line of the chart stands at the mean."""
    *_, lesions, output = shipped
    logits = output.saliency_logits[image, finding].double().tolist()
    cells = sorted(((logits[i][j], (i, j)) for i in range(46) for j in range(30)), key=lambda c: -c[0])
    kept = cells[: max(1, round(share * 1380))]
    y = np.mean([1 / (1 + np.exp(-logit)) for logit, _ in kept])
    scene = explorer.scene(image=image, finding=finding, share=share)
    assert scene.words.startswith(NAMES[image])
    assert re.search(r"y_loc is (\S+)\.", scene.words)[1] == f"{y:.2f}"
    if len(kept) == 1:
        assert "One cell is pooled" in scene.words
    else:
        assert f"{len(kept)} of 1380 cells are pooled" in scene.words
    found = re.search(r"(\d+) of \d+ lie", scene.words)
    if image == 2:
        assert found is None
    else:
        hits = sum(in_lesion(cell, lesions[image], bool(finding)) for _, cell in kept)
        assert int(found[1]) == hits
    line = next(mark for kind, mark in scene.marks if kind == "line")
    assert line["points"][0][1] == pytest.approx(330 - 240 * y, abs=1e-3)


def test_the_models_own_pooling_gives_its_y_loc(shipped, explorer):
    model, *_, output = shipped
    assert model.config.top_t in SHARES
    for image, finding in itertools.product(range(3), range(2)):
        words = explorer.scene(image=image, finding=finding, share=model.config.top_t).words
        assert f"y_loc is {output.y_loc[image, finding]:.2f}." in words


def test_the_outline_goes_round_the_chosen_cells(shipped, explorer):
    """Every chosen cell at a border of the set has pixels of the line, no cell outside has any."""
    *_, output = shipped
    logits = output.saliency_logits[0, 1].flatten()
    for share in (0.1, 0.0):
        chosen = np.zeros(1380, bool)
        chosen[logits.argsort(descending=True, stable=True)[: max(1, round(share * 1380))]] = True
        chosen = chosen.reshape(46, 30)
        pictures = [mark["rgba"] for kind, mark in explorer.scene(share=share).marks if kind == "image"]
        line = next(p for p in reversed(pictures) if p.shape[:2] == (368, 240))[..., 3] > 0
        drawn = line.reshape(46, 8, 30, 8).any((1, 3))
        padded = np.pad(chosen, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        assert drawn[chosen & ~inner].all()
        assert not drawn[~chosen].any()
        assert not line.all()


def test_every_control_changes_the_picture(explorer):
    start = explorer.scene()
    changes = [{"image": 1}, {"image": 2}, {"finding": 0}, {"overlay": False}, {"truth": True}]
    frames = [explorer.scene(**change).svg({}) for change in changes]
    frames += [explorer.scene(share=share).svg({}) for share in SHARES]
    assert len(set(frames)) == len(frames)  # one of them is the start
    assert start.svg({}) in frames
    assert all((s.width, s.height) == (start.width, start.height) for s in [explorer.scene(image=2)])


def test_words_say_which_switches_are_on(shipped, explorer):
    *_, lesions, _ = shipped
    for image in range(3):
        plain, hidden, shown = (
            explorer.scene(image=image, **change).words
            for change in ({}, {"overlay": False}, {"truth": True})
        )
        assert hidden == f"{plain} The map is hidden."
        kinds = lesions[image].malignant.tolist()
        counts = [int(n) for n in re.findall(r"(\d+) (?:malignant|benign)", shown.removeprefix(plain))]
        assert counts == ([kinds.count(True), kinds.count(False)] if kinds else [])
        assert ("There is no lesion to show." in shown) == (not kinds)


test_every_control_changes_the_words = every_control_changes_the_words


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 600_000
    assert "http" not in page.replace("http://www.w3.org", "")
    assert explorer.scene().width <= 720


def test_other_inputs():
    """One image without a choice, names and boxes left out; other numbers of them are refused."""
    model = build_gmic(GMICConfig.quick()).eval()
    image = torch.randn(1, 1, 96, 64, generator=torch.Generator().manual_seed(2))
    explorer = saliency_explorer(model, image)
    assert [control.name for control in explorer.controls] == ["share", "finding", "overlay"]
    assert "96 of 96 cells are pooled" in explorer.scene(share=1.0).words
    assert explorer.scene(share=1.0).words.startswith("image 1, map of malignant")
    with pytest.raises(InputError, match="2 names for 1 images"):
        saliency_explorer(model, image, ["a", "b"])
    with pytest.raises(InputError, match="0 sets of boxes for 1 images"):
        saliency_explorer(model, image, boxes=[])


@pytest.mark.parametrize("image", [0, 1])
def test_boxes_stand_on_the_lesions_in_the_colour_of_their_class(shipped, explorer, image):
    *_, lesions, _ = shipped
    marks = [m for kind, m in explorer.scene(image=image, truth=True).marks if kind == "rect"]
    scale = 380 / 368
    for mark, box, malignant in zip(marks, lesions[image].boxes, lesions[image].malignant, strict=True):
        drawn = mark["x"] + 3, mark["y"] + 3, mark["width"] - 6, mark["height"] - 6
        x0, y0, x1, y1 = box.tolist()
        np.testing.assert_allclose(drawn, np.array([x0, y0, x1 - x0, y1 - y0]) * scale, atol=1e-3)
        assert mark["colour"] == ("#D55E00" if malignant else "#0072B2")


def test_colours_of_the_map_run_from_0_to_1_whatever_its_range(shipped, explorer):
    *_, output = shipped
    for image, finding in itertools.product(range(3), range(2)):
        marks = explorer.scene(image=image, finding=finding).marks
        overlay = next(m["rgba"] for kind, m in marks if kind == "image" and m["rgba"].shape[:2] == (46, 30))
        values = output.saliency[image, finding].double().numpy()
        np.testing.assert_array_equal(overlay[..., :3], colormaps["viridis"](values, bytes=True)[..., :3])
        np.testing.assert_allclose(overlay[..., 3], 255 * values.clip(0, 0.75), atol=0.51)


@pytest.mark.parametrize("share", SHARES)
def test_the_chart_colours_the_pooled_ranks(shipped, explorer, share):
    *_, output = shipped
    chart = next(
        m["rgba"]
        for kind, m in explorer.scene(share=share).marks
        if kind == "image" and m["rgba"].shape[:2] == (120, 60)
    )
    coloured = (chart == (0xD5, 0x5E, 0x00, 255)).all(-1).any(0)
    ranked = sorted(output.saliency[0, 1].flatten().tolist(), reverse=True)
    for bar in range(60):
        rank = math.floor(1380 ** (bar / 60))
        assert coloured[bar] == (rank <= max(1, round(share * 1380)) and ranked[rank - 1] > 0.5 / 120)
