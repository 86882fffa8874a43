import dataclasses
import re

import numpy as np
import pytest
import torch

from mammomil.dual_branch import DualBranchConfig, build_dual_branch
from mammomil.explorers.selection import KS, Shown, selection_explorer
from mammomil.files import InputError

STAGES = ("untrained", "after 3 epochs")
PLACES = [(0, 0, "benign"), (1, 0, "malignant"), (1, 1, "benign")]


def shown(name: str, count: int, seed: int, lesion: bool) -> Shown:
    """An image of `count` windows of 20 pixels in rows of ten, with random codes."""
    torch.manual_seed(seed)
    corner = torch.tensor([(10.0 * (i % 10), 10.0 * (i // 10)) for i in range(count)])
    hits = np.zeros((count, 2), bool)
    hits[[3, 17, 40]] = lesion
    box = torch.tensor([[20.0, 10, 45, 30]])[: int(lesion)]
    pixels = np.random.default_rng(seed).random((120, 110), dtype=np.float32)
    return Shown(name, pixels, torch.cat([corner, corner + 20], 1), torch.randn(count, 16), hits, (box, box))


@pytest.fixture(scope="module")
def images():
    return [shown("a lesion", 90, 1, True), shown("nothing", 70, 2, False)]


@pytest.fixture(scope="module")
def heads():
    config = DualBranchConfig(hidden=16, branch_std=0.6)
    return {name: build_dual_branch(config, 16, seed).eval() for seed, name in enumerate(STAGES)}


@pytest.fixture(scope="module")
def explorer(heads, images):
    return selection_explorer(heads, images)


def by_hand(head, codes: torch.Tensor, c: int, k: int) -> tuple[list[int], np.ndarray, np.ndarray, float]:
    """Eq. 1, 4 and 3 in loops of float64: what is ranked, p_cls, weights, p."""
    layers = {name: value.double().numpy() for name, value in head.state_dict().items()}
    p_cls, u = [], []
    for code in codes.double().numpy():
        phi = np.maximum(layers["fc3.weight"] @ code + layers["fc3.bias"], 0)
        classes = np.exp(layers["fc4.weight"] @ phi + layers["fc4.bias"])
        p_cls.append(classes[c + 1] / classes.sum())
        u.append(float(layers["fc5.weight"][c] @ phi))
    order = sorted(range(len(u)), key=lambda i: -p_cls[i])[:k]
    weights = np.zeros(len(u))
    total = sum(np.exp(u[i]) for i in order)
    for i in order:
        weights[i] = np.exp(u[i]) / total
    return order, np.array(p_cls), weights, float(weights @ p_cls)


@pytest.mark.parametrize("k", [*KS, 90])
@pytest.mark.parametrize(
    ("stage", "image", "finding"), [(0, 0, "benign"), (1, 0, "malignant"), (1, 1, "benign")]
)
def test_words_and_bars_tell_the_models_numbers(heads, images, explorer, stage, image, finding, k):
    scene = explorer.scene(k=k, stage=stage, image=image, finding=finding)
    c = ("benign", "malignant").index(finding)
    head, codes = heads[STAGES[stage]], images[image].codes
    order, p_cls, weights, p = by_hand(head, codes, c, k)
    count, m = map(int, re.search(r"(\d+) of (\d+) regions (?:is|are) ranked", scene.words).groups())
    assert (count, m) == (len(order), len(codes))
    told = re.search(r"p_cls (?:from )?(\d\.\d\d)(?: down to (\d\.\d\d))?;", scene.words)
    assert float(told[1]) == pytest.approx(p_cls[order[0]], abs=0.0051)
    assert float(told[2] or told[1]) == pytest.approx(p_cls[order[-1]], abs=0.0051)
    largest, place = re.search(
        r"largest weight, (\d\.\d\d), is on the region in place (\d+)", scene.words
    ).groups()
    assert float(largest) == pytest.approx(weights.max(), abs=0.0051)
    assert order[int(place) - 1] == weights.argmax()
    mine, full = re.search(r"is (\d\.\d\d); with all regions ranked it is (\d\.\d\d)", scene.words).groups()
    assert float(mine) == pytest.approx(p, abs=0.0051)
    assert float(full) == pytest.approx(by_hand(head, codes, c, len(codes))[3], abs=0.0051)
    if image == 0:
        hit = sum(i in order for i in (3, 17, 40))
        assert f"{hit} of the 3 that hit a {finding} lesion" in scene.words
    else:
        assert f"there is no {finding} one" in scene.words
    colour = ("#0072B2", "#D55E00")[c]
    bars = [mark for kind, mark in scene.marks if kind == "rect" and mark["width"] == 11]
    upper = [m for m in bars if m["y"] + m["height"] == pytest.approx(420)]
    lower = [m for m in bars if m["y"] + m["height"] == pytest.approx(540)]
    first = np.argsort(-p_cls)[:30]
    np.testing.assert_allclose([m["height"] for m in upper], 76 * p_cls[first], atol=1e-3)
    assert [m["fill"] == colour for m in upper] == [i in order for i in first]
    seen = [76 * weights[i] for i in first if 76 * weights[i] >= 0.1]
    np.testing.assert_allclose([m["height"] for m in lower], seen, atol=1e-3)


def test_what_is_ranked_is_in_the_light(heads, images, explorer):
    """Pixels under a selected window are not darkened, all others are."""
    for k in (1, 5, 90):
        order, *_ = by_hand(heads[STAGES[1]], images[0].codes, 1, k)
        scene = explorer.scene(k=k)
        dark = [mark["rgba"] for kind, mark in scene.marks if kind == "image"][1][..., 3] > 0
        want = np.ones((60, 55), bool)
        for i in order:
            x, y = 5 * (i % 10), 5 * (i // 10)
            want[y : y + 10, x : x + 10] = False
        np.testing.assert_array_equal(dark, want)


def test_every_step_changes_picture_and_words(explorer):
    assert [control.name for control in explorer.controls] == ["k", "stage", "image", "finding"]
    for control in explorer.controls:
        scenes = [explorer.scene(**{control.name: value}) for value in control.values]
        assert len({scene.words for scene in scenes}) == len(control.values), control.name
        assert len({scene.svg({}) for scene in scenes}) == len(control.values), control.name


def test_one_head_and_one_image_need_no_choice_and_few_regions_no_large_k(heads):
    few = shown("few", 45, 3, True)
    explorer = selection_explorer({"trained": heads[STAGES[1]]}, [few])
    assert {control.name: control.texts for control in explorer.controls} == {
        "k": ("1", "2", "3", "5", "10", "20", "all"),
        "finding": ("benign", "malignant"),
    }
    assert explorer.scene(k=45).words.startswith("few, trained, malignant. 45 of 45")


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 600_000
    assert "http" not in page.replace("http://www.w3.org", "")
    scene = explorer.scene()
    assert scene.width <= 720
    assert min(mark["size"] for kind, mark in scene.marks if kind == "text") >= 12


def test_other_heads_and_numbers_that_differ_are_refused(images):
    for method in ("db-baseline", "max-region"):
        head = build_dual_branch(DualBranchConfig(method=method, hidden=16), 16).eval()
        with pytest.raises(InputError, match=method):
            selection_explorer({"x": head}, images)
    head = build_dual_branch(dataclasses.replace(DualBranchConfig(), hidden=16), 16).eval()
    with pytest.raises(InputError, match="nothing: 70 boxes, 69 codes"):
        selection_explorer({"x": head}, [images[1]._replace(codes=images[1].codes[1:])])
