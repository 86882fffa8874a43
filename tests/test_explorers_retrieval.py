import itertools
import math
import re

import numpy as np
import pytest
import torch
from controls import every_control_changes_the_words

from mammomil import classroom
from mammomil.dataset import MammogramDataset
from mammomil.explorers.retrieval import retrieval_explorer, shared_cells
from mammomil.files import InputError

NAMES = ("a malignant phantom", "a phantom without a finding", "one broad peak", "a constant map")
K, CELLS, SIDE = 6, (46, 30), 4


@pytest.fixture(scope="module")
def material():
    """Maps of two phantoms, a peak with zeros around it, and a constant map."""
    loaded = classroom.shipped_model()
    phantoms = MammogramDataset(classroom.sample_index(), loaded.preprocess)
    images = torch.stack([phantoms[row].image for row in (12, 96)])
    with torch.inference_mode():
        maps = loaded.model(images).saliency
    rows, columns = torch.meshgrid(torch.arange(46.0), torch.arange(30.0), indexing="ij")
    peak = (1 - ((rows - 18.3) ** 2 + (columns - 9.2) ** 2) / 8).clamp(min=0).expand(2, -1, -1)
    maps = torch.stack([*maps, peak, torch.full_like(peak, 0.5)])
    return maps, images[[0, 1, 0, 0]]


@pytest.fixture(scope="module")
def explorer(material):
    return retrieval_explorer(*material, NAMES)


def by_hand(saliency: torch.Tensor, distinct: bool):
    """Algorithm 1 in loops of float64: per window the sums before it, its corner, and the map after it."""
    total = np.zeros(CELLS)
    for one in saliency.double().numpy():
        span = one.max() - one.min()
        total += (one - one.min()) / span if span else 0
    taken, steps = [], [(total.copy(), None, None)]
    for _ in range(K):
        sums = np.array(
            [
                [total[r : r + SIDE, c : c + SIDE].sum() for c in range(CELLS[1] - SIDE + 1)]
                for r in range(CELLS[0] - SIDE + 1)
            ]
        )
        allowed = sums.copy()
        for corner in taken if distinct else ():
            allowed[corner] = -np.inf
        # Sums that differ by rounding only are ties, and the first in row-major order wins.
        best = int(np.flatnonzero(allowed.ravel() > allowed.max() - 1e-9)[0])
        taken.append(divmod(best, sums.shape[1]))
        r, c = taken[-1]
        total[r : r + SIDE, c : c + SIDE] = 0
        steps.append((total.copy(), taken[-1], sums))
    return steps


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("image", [0, 1, 2, 3])
def test_words_and_marks_tell_algorithm_1(material, explorer, image, distinct):
    steps = by_hand(material[0][image], distinct)
    begin = steps[0][0].sum()
    words = explorer.scene(image=image, distinct=distinct, step=0).words
    variant = "no window twice" if distinct else "to the letter"
    assert words.startswith(f"{NAMES[image]}, {variant}. ")
    assert (f"sums to {begin:.1f}." in words) or (begin == 0 and "holds no place" in words)
    before = []
    for n in range(K):
        left, (row, column), sums = steps[n + 1]
        scenes = [explorer.scene(image=image, distinct=distinct, step=3 * n + i) for i in (1, 2, 3)]
        allowed = [v for at, v in np.ndenumerate(sums) if not (distinct and at in before)]
        assert float(re.search(r"1161 sums is (\S+)\.", scenes[0].words)[1]) == pytest.approx(
            max(allowed), abs=0.0051
        )
        told = re.search(
            r"sum (\S+?),? .*at row (\d+), column (\d+) .* at pixel (\d+), (\d+)", scenes[1].words
        )
        assert float(told[1]) == pytest.approx(sums[row, column], abs=0.0051)
        assert [int(v) for v in told.groups()[1:]] == [row, column, 8 * row, 8 * column]
        for i, (r, c) in enumerate(before):
            cells = {(y, x) for y in range(r, r + SIDE) for x in range(c, c + SIDE)}
            same = cells & {(y, x) for y in range(row, row + SIDE) for x in range(column, column + SIDE)}
            assert shared_cells((r, c), (row, column), (SIDE, SIDE)) == len(same)
            if 0 < len(same) < 16:
                assert f"{len(same)} of 16 cells with window {i + 1}" in scenes[1].words
        assert ("again" in scenes[1].words) == ((row, column) in before)
        still = float(re.search(r"still sums to (\S+?)\.?(?: |$)", scenes[2].words)[1])
        assert still == pytest.approx(left.sum(), abs=0.051)
        # The frame of this window, in the panel of the map.
        frames = [m for kind, m in scenes[1].marks if kind == "rect" and m["stroke"] == 2]
        cell = 142 / 30
        assert [frames[0][name] for name in ("x", "width")] == pytest.approx(
            [154 + column * cell, SIDE * cell]
        )
        before.append((row, column))
    assert len(set(before)) == (K if distinct or image < 2 else (1, 5)[image == 2])


def test_pictures_show_the_map_the_sums_and_the_crops(material, explorer):
    maps, images = material
    steps = by_hand(maps[0], True)
    scene = explorer.scene(image=0, step=8)  # window 3: choose
    pictures = [mark for kind, mark in scene.marks if kind == "image"]
    assert len(pictures) == 3 + 3  # mammogram, map, sums; three crops
    left = pictures[1]["rgba"]
    zero = (left == left[np.unravel_index(steps[2][0].argmin(), CELLS)]).all(-1)
    for n in (1, 2):  # the cells of both finished windows have the colour of 0
        r, c = steps[n][1]
        assert zero[r : r + SIDE, c : c + SIDE].all()
    assert pictures[2]["rgba"].shape[:2] == (43, 27)
    # Brightness of magma runs with the sums, and a crop is the piece of the image.
    brightness = pictures[2]["rgba"][..., :3].astype(float).sum(-1).ravel()
    assert np.corrcoef(brightness, steps[3][2].ravel())[0, 1] > 0.95
    for n, picture in enumerate(pictures[3:]):
        r, c = (8 * v for v in steps[n + 1][1])
        piece = images[0, 0, r : r + 32, c : c + 32].numpy()
        low, high = images[0].min().item(), images[0].max().item()
        grey = 255 * (piece - low) / (high - low)
        np.testing.assert_allclose(picture["rgba"][..., 0], grey, atol=3)


def test_every_control_changes_the_picture(explorer):
    for image in range(4):
        for distinct in (True, False):
            drawn = [
                explorer.scene(image=image, distinct=distinct, step=step).svg({}) for step in range(3 * K + 1)
            ]
            assert all(a != b for a, b in itertools.pairwise(drawn))
        assert explorer.scene(image=image).svg({}) != explorer.scene(image=image, distinct=False).svg({})
    assert len({explorer.scene(image=image).svg({}) for image in range(4)}) == 4


test_every_control_changes_the_words = every_control_changes_the_words


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 600_000
    assert "http" not in page.replace("http://www.w3.org", "")
    sizes = {(s.width, s.height) for s in (explorer.scene(image=i, step=j) for i in (0, 3) for j in (0, 17))}
    assert len(sizes) == 1
    assert max(sizes)[0] <= 720


def test_other_maps_and_one_image():
    """A window larger than the map, one class, one image without a choice; names must fit."""
    maps, images = torch.rand(1, 1, 3, 5), torch.randn(1, 1, 24, 40)
    explorer = retrieval_explorer(maps, images, window=4, k=2)
    assert [control.name for control in explorer.controls] == ["step", "distinct"]
    words = explorer.scene(step=2).words
    mean = maps[0, 0].double()
    mean = (mean - mean.min()) / (mean.max() - mean.min())
    best = max((mean[:, c : c + 4].sum().item(), -c) for c in range(2))
    assert f"has sum {best[0]:.2f} at row 0, column {-best[1]}" in words
    assert math.isfinite(explorer.scene(step=6).height)
    with pytest.raises(InputError, match="2 names for 1 images"):
        retrieval_explorer(maps, images, ["a", "b"])
    with pytest.raises(InputError, match="k is 0"):
        retrieval_explorer(maps, images, k=0)


def test_patches_and_the_circle_stand_at_row_and_column(material, explorer):
    steps = by_hand(material[0][0], True)
    scene = explorer.scene(image=0, step=8)  # window 3: choose
    corners = [steps[n + 1][1] for n in range(3)]
    unit = 142 / 240  # of a pixel; a cell has 8
    rects = [m for kind, m in scene.marks if kind == "rect" and m["x"] < 142]  # on the mammogram
    patches = [(m["x"], m["y"]) for m in rects if m["width"] == 32 * unit]
    np.testing.assert_allclose(patches, [(8 * unit * c, 52 + 8 * unit * r) for r, c in corners])
    (circle,) = (m for kind, m in scene.marks if kind == "circle")
    row, column = corners[2]
    want = 308 + (column + 0.5) * 142 / 30, 52 + (row + 0.5) * 218 / 46
    assert (circle["x"], circle["y"]) == pytest.approx(want)
