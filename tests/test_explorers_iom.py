import random
import re

import numpy as np
import pytest
import torch

from mammomil import classroom
from mammomil.explorers.iom import LABELS, LENGTH, SIDE, iom_explorer
from mammomil.files import InputError
from mammomil.preprocess import PreprocessConfig
from mammomil.region_data import RegionCanvases
from mammomil.regions import WindowConfig
from mammomil.scenes import GREY

S = 124
CROPS = ((73, 73, 211), (48, 51, 135), (107, 0, 171))  # row of the samples, left, top
NAMES = ("small", "spiculated", "two")


@pytest.fixture(scope="module")
def crops():
    canvases = RegionCanvases(classroom.sample_index(), PreprocessConfig.quick(), WindowConfig.quick())
    images, masks = [], []
    for row, left, top in CROPS:
        prepared = canvases.prepared(row)
        malignant = canvases.findings_on_canvas(row, prepared).malignant
        part = slice(top, top + S), slice(left, left + S)
        images.append(torch.from_numpy(prepared.image[part].copy()))
        masks.append(canvases.masks_on_canvas(row, prepared)[malignant][:, *part])
    return torch.stack(images), masks


@pytest.fixture(scope="module")
def explorer(crops):
    return iom_explorer(*crops, NAMES)


def settings(explorer, count, seed=0):
    rng = random.Random(seed)
    return [{c.name: rng.choice(c.values) for c in explorer.controls} for _ in range(count)]


def counted(mask, region, boxed):
    """IoM and IoU by counting pixels, one by one."""
    x0, y0, x1, y1 = region
    pixels = {(r, c) for r, c in np.argwhere(mask.numpy()).tolist()}
    if boxed:
        rows, columns = zip(*pixels, strict=True)
        pixels = {
            (r, c) for r in range(min(rows), max(rows) + 1) for c in range(min(columns), max(columns) + 1)
        }
    inside = {(r, c) for r in range(y0, y1) for c in range(x0, x1)}
    shared = len(pixels & inside)
    return shared / min(len(pixels), len(inside)), shared / len(pixels | inside)


def test_words_bars_and_label_are_what_counting_pixels_gives(crops, explorer):
    _, masks = crops
    seen = set()
    for values in settings(explorer, 80):
        scene = explorer.scene(**values)
        x, y, alpha = values["left"], values["top"], values["alpha"]
        region = x, y, min(x + values["width"], S), min(y + values["height"], S)
        pairs = [counted(mask, region, not values["contour"]) for mask in masks[values["image"]]]
        largest = max(iom for iom, _ in pairs)
        want = "malignant" if largest >= alpha else "ignored" if largest > 0 else "benign or normal"
        seen.add((want, values["contour"]))
        head = f"{NAMES[values['image']]}, lesions as {'contours' if values['contour'] else 'boxes'}. "
        assert scene.words.startswith(
            f"{head}Region of {region[2] - x} x {region[3] - y} pixels at {x}, {y}: {want} at "
            f"alpha {alpha:g}."
        )
        told = re.findall(r"Lesion \d: IoM (under 0.01|[\d.]+\d|0), IoU (under 0.01|[\d.]+\d|0)", scene.words)
        assert len(told) == len(pairs)
        for words, pair in zip(told, pairs, strict=True):
            for word, value in zip(words, pair, strict=True):
                if word == "0":
                    assert value == 0
                elif word == "under 0.01":
                    assert 0 < value < 0.01
                else:
                    assert float(word) <= value + 1e-9 < float(word) + 0.01 + 2e-9
        tall = [m for kind, m in scene.marks if kind == "rect" and m["height"] == 20]
        np.testing.assert_allclose([m["width"] / LENGTH for m in tall], np.ravel(pairs), atol=1e-9)
        assert [m["fill"] == GREY for m in tall] == [False, True] * len(pairs)
        (badge,) = [m for kind, m in scene.marks if kind == "text" and m["words"].startswith("This region")]
        assert badge["words"] == f"This region: {want}"
        colour = dict(LABELS.values())[want]
        assert [m["fill"] for k, m in scene.marks if k == "rect" and m["height"] == 34] == [colour]
    assert len(seen) == 6  # every label by box and by contour


def test_each_step_of_a_control_changes_picture_and_words(explorer):
    for control in explorer.controls:
        scenes = [explorer.scene(**{control.name: value}) for value in control.values]
        for i in range(len(scenes) - 1):
            assert scenes[i].words != scenes[i + 1].words, control.name
            assert scenes[i].elements({}) != scenes[i + 1].elements({}), control.name


def test_the_first_region_holds_the_small_lesion_and_only_iom_says_so(explorer):
    words = explorer.scene().words
    assert "Lesion 1: IoM 1.00" in words
    assert float(re.search(r"IoU (\S+)\.$", words)[1]) < 0.2
    assert "malignant at alpha 0.5" in words


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 300_000
    assert "http" not in page.replace("http://www.w3.org", "")
    sizes = {(scene.width, scene.height) for scene in (explorer.scene(image=i) for i in range(3))}
    assert len(sizes) == 1


def test_bad_input_is_refused_and_one_crop_needs_no_choice(crops):
    images, masks = crops
    with pytest.raises(InputError, match="3 crops, 2 sets of masks"):
        iom_explorer(images, masks[:2])
    with pytest.raises(InputError, match="without a pixel"):
        iom_explorer(images, [masks[0], masks[1], torch.zeros(1, S, S, dtype=torch.bool)])
    alone = iom_explorer(images[:1], masks[:1])
    assert "image" not in [control.name for control in alone.controls]
    assert alone.scene(left=60).words.startswith("crop 1, ")


@pytest.mark.book
def test_the_script_draws_what_the_library_computes(explorer, assert_same_in_browser):
    edges = [
        {"left": 120, "top": 120},
        {"width": 4, "height": 4},
        {"alpha": 1.0},
        {"contour": True, "image": 2},
    ]
    assert_same_in_browser(explorer, settings(explorer, 80, seed=1) + edges)


@pytest.mark.book
def test_a_script_for_one_crop_draws_the_same(crops, assert_same_in_browser):
    alone = iom_explorer(crops[0][1:2], crops[1][1:2], window=20)
    assert_same_in_browser(alone, settings(alone, 10, seed=2))


@pytest.mark.book
def test_the_region_is_dragged_by_its_corners(explorer, explorer_page):
    page, wrong = explorer_page(explorer)
    values = {c.name: c.values[c.start] for c in explorer.controls}

    def drag(number, to):
        svg = page.locator(".mm-picture svg").bounding_box()
        scale = svg["width"] / SIDE
        dot = page.locator(".mm-handle").nth(number).bounding_box()
        page.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
        page.mouse.down()
        page.mouse.move(*(svg[a] + scale * SIDE / S * v for a, v in zip("xy", to, strict=True)), steps=4)
        page.mouse.up()

    def check(**changed):
        values.update(changed)
        assert page.locator(".mm-words").inner_text() == explorer.scene(**values).words
        for control in explorer.controls[2:]:
            place = page.locator(f"input[id$=-{control.name}]").input_value()
            assert control.values[int(place)] == values[control.name]

    drag(0, (60.2, 39.7))
    check(left=60, top=40)
    drag(1, (60 + 36, 40 + 12))
    check(width=36, height=12)
    drag(1, (10, 10))  # no smaller than the smallest
    check(width=4, height=4)
    drag(0, (-30, 500))
    check(left=0, top=120)
    assert wrong == []
