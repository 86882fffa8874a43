import re

import numpy as np
import pytest
import torch

from mammomil.explorers.ranking import LOGITS, STEPS, ranking_explorer
from mammomil.files import InputError

HEIGHT, CORNERS = 184, ((0, 20), (40, 22), (80, 60), (5, 60), (44, 70), (84, 120))


def example(count=6, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    image = np.pad(np.random.default_rng(seed).random((140, 110)) + 0.1, ((14, 30), (0, 10)))
    corners = torch.tensor(CORNERS[:count], dtype=torch.float32)
    arguments = {
        "image": image,
        "boxes": torch.cat([corners, corners + 28], 1),
        "cls_logits": 2 * torch.randn(count, 3, generator=generator),
        "det_logits": 2 * torch.randn(count, 2, generator=generator),
    }
    arguments |= changes
    return ranking_explorer(**arguments), arguments


def by_hand(arguments, values):
    """Both softmaxes, products and sums in numpy and float64, from logits rounded to one decimal."""
    logits = np.concatenate([arguments["cls_logits"], arguments["det_logits"]], 1).astype(float)
    logits = np.round(logits, 1)
    logits[values["region"]] += [values[name] for name in LOGITS]
    powers = np.exp(logits)
    if not values["has_normal"]:
        powers[:, 0] = 0
    cls = powers[:, :3] / powers[:, :3].sum(1, keepdims=True)
    det = powers[:, 3:] / powers[:, 3:].sum(0)
    return logits, cls, det, cls[:, 1:] * det


def settings(count, seed=0):
    draw = np.random.default_rng(seed)
    chosen = []
    for _ in range(count):
        moved = {name: float(draw.choice(STEPS)) for name in LOGITS}
        chosen.append(moved | {"region": int(draw.integers(6)), "has_normal": bool(draw.random() < 0.7)})
    return chosen


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


@pytest.mark.parametrize("values", settings(12, seed=1))
def test_words_bars_and_light_tell_the_numbers(values):
    explorer, arguments = example()
    scene = explorer.scene(**values)
    logits, cls, det, d = by_hand(arguments, values)
    i, y = values["region"], d.sum(0)
    said = [*logits[i], *cls[i], *det[i], *d[i], *y]
    assert scene.words.startswith(f"Region {i + 1} of 6. ")
    assert scene.words.endswith("There is no normal class.") is not values["has_normal"]
    np.testing.assert_allclose(numbers(scene.words), said, atol=0.0051)

    table = [m for kind, m in scene.marks if kind == "rect" and m["height"] == 10]
    widths = np.array([m["width"] for m in table]).reshape(6, 7)
    np.testing.assert_allclose(widths, np.hstack([110 * cls, 66 * det, 66 * d]), atol=1e-6)
    half = 14 * 250 / 140
    lit = [m["opacity"] for kind, m in scene.marks if kind == "rect" and m["width"] == pytest.approx(half)]
    np.testing.assert_allclose(np.reshape(lit, (6, 2)), 0.9 * d, atol=0.0051)
    image = [m for kind, m in scene.marks if kind == "rect" and m["height"] == 20]
    np.testing.assert_allclose([image[1]["width"], image[3]["width"]], y * image[0]["width"], atol=1e-6)


def test_regions_lie_where_they_are_on_the_mammogram():
    """The background is cut away: the first row of tissue is row 14, and 140 rows fill the height of 250."""
    explorer, _ = example()
    scene = explorer.scene()
    frames = [m for kind, m in scene.marks if kind == "rect" and m["colour"] in ("#F0E442", "#fff")]
    scale = 250 / 140
    want = [(scale * x, scale * (y - 14), scale * 28) for x, y in CORNERS]
    np.testing.assert_allclose([(m["x"], m["y"], m["width"]) for m in frames], want)
    (picture,) = (m for kind, m in scene.marks if kind == "image")
    assert picture["rgba"].shape[:2] == (140, 110)
    hot = [m["positions"] for kind, m in scene.marks if kind == "hot"]
    assert hot == [{"region": i} for i in range(6)]


def test_handles_stand_on_the_logits_and_their_drag_leads_back_to_them():
    explorer, arguments = example()
    for values in settings(5, seed=2):
        logits = by_hand(arguments, values)[0][values["region"]]
        handles = [m for kind, m in explorer.scene(**values).marks if kind == "handle"]
        for name, handle in zip(LOGITS, handles, strict=True):
            ((control, (axis, origin, step)),) = handle["drags"].items()
            assert (control, axis) == (name, "x")
            assert STEPS[round((handle["x"] - origin) / step)] == values[name]
        x = [handle["x"] for handle in handles]
        assert np.ptp(np.array(x) - np.array(logits) * 2 * step) < 1e-9  # one scale for all of them
        assert min(x) >= 122 - 1e-9
        assert max(x) <= 402 + 1e-9


def test_every_step_of_every_control_changes_picture_and_words():
    explorer, _ = example()
    for control in explorer.controls:
        scenes = [explorer.scene(**{control.name: value}) for value in control.values]
        assert len({scene.words for scene in scenes}) == len(scenes), control.name
        pictures = ["".join(scene.elements({}, active=False)) for scene in scenes]
        assert len(set(pictures)) == len(scenes), control.name


def test_html_is_small_and_self_contained():
    explorer, _ = example()
    page = explorer.html()
    assert len(page) < 100_000
    assert "http" not in page.replace("http://www.w3.org", "")
    scene = explorer.scene()
    assert scene.width <= 450
    assert all(m["size"] >= 12 for kind, m in scene.marks if kind == "text")


def test_other_numbers_of_regions_and_names():
    explorer, _ = example(2, names=["a lesion", "<b>"])
    assert explorer.controls[0].texts == ("a lesion", "<b>")
    assert explorer.scene(region=1).words.startswith("Region 2 of 2.")
    assert "<b>" not in explorer.html().split("<script")[0]
    example(2, image=np.zeros((HEIGHT, 120)))  # nothing to cut away
    with pytest.raises(InputError, match="1 regions, and"):
        example(1)
    with pytest.raises(InputError, match="1 names"):
        example(names=["one"])


@pytest.mark.book
def test_the_browser_draws_what_the_library_says(assert_same_in_browser):
    assert_same_in_browser(example()[0], list(settings(70)))


@pytest.mark.book
def test_a_region_is_chosen_by_click_and_a_logit_dragged(explorer_page):
    explorer, _ = example()
    page, wrong = explorer_page(explorer)
    page.locator('[aria-label="choose region 4"]').click()
    assert page.locator(".mm-words").inner_text().startswith("Region 4 of 6.")
    handle, svg = page.locator(".mm-handle").nth(4), page.locator(".mm-picture svg").bounding_box()
    box, scale = handle.bounding_box(), svg["width"] / 450
    marks = [m for kind, m in explorer.scene(region=3).marks if kind == "handle"]
    _, origin, step = marks[4]["drags"]["rank_malignant"]
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(svg["x"] + scale * (origin + 12 * step), box["y"], steps=3)
    page.mouse.up()
    want = explorer.scene(region=3, rank_malignant=STEPS[12])
    assert page.locator(".mm-words").inner_text() == want.words
    assert wrong == []
