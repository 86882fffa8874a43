import dataclasses
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
from mammomil.explorers.attention import attention_explorer
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic

NAMES = ("a malignant phantom", "a phantom without a finding")


@pytest.fixture(scope="module")
def shipped():
    loaded = classroom.shipped_model()
    phantoms = MammogramDataset(classroom.sample_index(), loaded.preprocess)
    return loaded.model, torch.stack([phantoms[row].image for row in (12, 96)])


@pytest.fixture(scope="module")
def explorer(shipped):
    return attention_explorer(*shipped, NAMES)


def by_hand(model, image: torch.Tensor, kept: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and y_mil of some patches of an image, in loops of float64 over crops cut by slicing."""
    with torch.inference_mode():
        corners = model(image[None]).rois[0].tolist()
        crops = torch.stack([image[:, r : r + 32, c : c + 32] for r, c in corners])
        h = model.patch_net(crops).double().numpy()
    V, U, w = (getattr(model.attention, name).weight.detach().double().numpy() for name in "VUw")
    scores = [float(w[0] @ (np.tanh(V @ h[k]) / (1 + np.exp(-U @ h[k])))) for k in kept]
    weights = np.exp(scores) / np.exp(scores).sum()
    z = sum(a * h[k] for a, k in zip(weights, kept, strict=True))
    return weights, 1 / (1 + np.exp(-model.mil_classifier.weight.detach().double().numpy() @ z))


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [1, 2, 5], [3]])
@pytest.mark.parametrize("image", [0, 1])
def test_words_and_bars_tell_the_models_numbers(shipped, explorer, image, kept):
    model, images = shipped
    scene = explorer.scene(image=image, **{f"patch_{k + 1}": k in kept for k in range(6)})
    weights, y = by_hand(model, images[image], kept)
    told = re.fullmatch(
        r"(.*)\. Weights: (.*)\. y_mil: benign (\S+), malignant (\S+); with all .*", scene.words
    )
    assert told[1] == NAMES[image]
    shares = {int(k) - 1: float(share) for k, share in re.findall(r"patch (\d) (\S+?)(?:,|$)", told[2])}
    assert list(shares) == kept
    np.testing.assert_allclose(list(shares.values()), weights, atol=0.0051)
    np.testing.assert_allclose([float(told[3]), float(told[4])], y, atol=0.0051)
    black = [mark for kind, mark in scene.marks if kind == "rect" and mark["fill"] == "currentColor"]
    np.testing.assert_allclose([mark["height"] for mark in black], 45 * weights, atol=1e-3)


def test_shares_of_the_logit_add_up(shipped, explorer):
    """Bars of a finding, signed, sum to its logit in one scale for all positions."""
    model, images = shipped
    ratio = []
    for kept in ([0, 1, 2, 3, 4, 5], [0], [0, 2]):
        scene = explorer.scene(**{f"patch_{k + 1}": k in kept for k in range(6)})
        bars = [
            m for kind, m in scene.marks if kind == "rect" and m["fill"] == "#D55E00" and m["width"] == 20
        ]
        height = sum(m["height"] if m["y"] < 424 else -m["height"] for m in bars)
        y = by_hand(model, images[0], kept)[1][1]
        ratio.append(height / np.log(y / (1 - y)))
    np.testing.assert_allclose(ratio, ratio[0], rtol=0.1)  # bars too small to see are left out


def test_every_control_changes_the_picture_and_an_empty_bag_is_no_error(explorer):
    start = explorer.scene().svg({})
    assert explorer.scene(image=1).svg({}) != start
    for k in range(1, 7):
        assert explorer.scene(**{f"patch_{k}": False}).svg({}) != start
    for image in (0, 1):
        empty = explorer.scene(image=image, **{f"patch_{k}": False for k in range(1, 7)})
        assert "an empty bag has no probability" in empty.words
        assert not re.search(r"0\.\d\d", empty.words)


test_every_control_changes_the_words = every_control_changes_the_words


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 620_000
    assert "http" not in page.replace("http://www.w3.org", "")
    sizes = {(explorer.scene(image=i).width, explorer.scene(image=i).height) for i in (0, 1)}
    assert len(sizes) == 1
    assert max(sizes)[0] <= 720


def test_other_models_and_one_image():
    """Any number of patches and units, one image without a choice; other attention is refused."""
    config = GMICConfig.quick()
    mil = dataclasses.replace(config.mil, num_patches=3, attention_width=10, instance_features=20)
    explorer = attention_explorer(
        build_gmic(dataclasses.replace(config, mil=mil)).eval(), torch.randn(1, 1, 368, 240)
    )
    assert [control.name for control in explorer.controls] == ["patch_1", "patch_2", "patch_3"]
    scenes = [
        explorer.scene(**{f"patch_{k + 1}": on for k, on in enumerate(values)})
        for values in itertools.product((True, False), repeat=3)
    ]
    assert len({scene.words for scene in scenes}) == 8
    assert scenes[0].words.startswith("image 1. ")
    uniform = dataclasses.replace(config, mil=dataclasses.replace(config.mil, attention="uniform"))
    with pytest.raises(InputError, match="uniform"):
        attention_explorer(build_gmic(uniform).eval(), torch.zeros(1, 1, 368, 240))
    with pytest.raises(InputError, match="2 names for 1 images"):
        attention_explorer(build_gmic(config).eval(), torch.zeros(1, 1, 368, 240), ["a", "b"])


def test_patches_and_lines_stand_where_the_model_has_them(shipped, explorer):
    """Frames of all patches on the mammogram; the line is the probability of the full bag of this image."""
    model, images = shipped
    for image in (0, 1):
        scene = explorer.scene(image=image, patch_1=False)
        rects = [m for kind, m in scene.marks if kind == "rect"]
        drawn = [(m["x"], m["y"]) for m in rects if (m["colour"], m["width"]) == ("#F0E442", 20)]
        with torch.inference_mode():
            corners = model(images[image : image + 1]).rois[0, 1:].tolist()
        np.testing.assert_allclose(drawn, [(0.625 * column, 0.625 * row) for row, column in corners])
        frames = [m for m in rects if m["height"] == 22 and m["fill"] is None]
        full = by_hand(model, images[image], list(range(6)))[1]
        lines = [m["points"][0][0] for kind, m in scene.marks if kind == "line" and m["stroke"] == 2]
        want = [m["x"] + m["width"] * p for m, p in zip(frames, full, strict=True)]
        np.testing.assert_allclose(lines, want, atol=0.02)


def test_the_upper_grid_is_tanh_and_the_lower_one_the_gate(shipped, explorer):
    model, images = shipped
    (picture,) = (m for kind, m in explorer.scene().marks if kind == "image" and m["y"] == 470)
    with torch.inference_mode():
        row, column = model(images[:1]).rois[0, 0].tolist()
        h = model.patch_net(images[:1, :, row : row + 32, column : column + 32])[0].double()
        V, U = (getattr(model.attention, name).weight.double() for name in "VU")
    side = math.ceil(len(V) ** 0.5)
    for top, values in ((0, (1 + torch.tanh(V @ h)) / 2), (9 * side, torch.sigmoid(U @ h))):
        want = colormaps["cividis"](values.detach().numpy(), bytes=True)[:, :3].astype(int)
        for unit in range(len(V)):
            place = top + 4 + 8 * (unit // side), 4 + 8 * (unit % side)
            np.testing.assert_allclose(picture["rgba"][place][:3], want[unit], atol=4)
