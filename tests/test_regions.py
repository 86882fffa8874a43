import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammomil.regions import (
    WindowConfig,
    cells_to_pixels,
    crop_rois,
    iom,
    iom_masks,
    normalise_saliency,
    region_labels,
    retrieve_rois,
    sliding_windows,
)


def naive_algorithm_1(saliency: np.ndarray, k: int, rows: int, columns: int, distinct: bool):
    """GMIC Algorithm 1 line by line, in float64, for one image (c, h, w)."""
    total = np.zeros(saliency.shape[1:])
    for one in saliency.astype(np.float64):
        span = one.max() - one.min()
        total += (one - one.min()) / span if span > 0 else 0
    chosen = []
    for _ in range(k):
        best, corner = -np.inf, (0, 0)
        for r in range(total.shape[0] - rows + 1):
            for c in range(total.shape[1] - columns + 1):
                score = total[r : r + rows, c : c + columns].sum()
                if distinct and (r, c) in chosen:
                    continue
                if score > best:
                    best, corner = score, (r, c)
        chosen.append(corner)
        total[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = 0
    return chosen


# Multiples of 1/8 with ranges that are powers of two are exact in float32, so ties are ties in both.
exact_maps = hnp.arrays(
    np.float32, (2, 2, 9, 7), elements=st.integers(0, 8).map(lambda n: np.float32(n / 8)), fill=st.nothing()
)


@given(saliency=exact_maps, k=st.integers(1, 6), distinct=st.booleans())
def test_retrieve_rois_is_algorithm_1(saliency, k, distinct):
    saliency[:, :, 0, 0], saliency[:, :, -1, -1] = 0, 1  # the full range: normalising is then exact
    corners = retrieve_rois(torch.from_numpy(saliency), k, (4, 4), distinct)
    for image, rois in zip(saliency, corners, strict=True):
        assert [tuple(roi) for roi in rois.tolist()] == naive_algorithm_1(image, k, 4, 4, distinct)


def test_retrieve_rois_is_algorithm_1_at_the_papers_size():
    saliency = torch.rand(3, 2, 46, 30, dtype=torch.float64)
    for distinct in (True, False):
        corners = retrieve_rois(saliency, 6, 4, distinct)
        for image, rois in zip(saliency.numpy(), corners, strict=True):
            assert [tuple(roi) for roi in rois.tolist()] == naive_algorithm_1(image, 6, 4, 4, distinct)


@given(
    saliency=hnp.arrays(np.float32, (2, 1, 6, 8), elements=st.floats(0, 1, width=32)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_windows_are_distinct_and_inside(saliency, window):
    corners = retrieve_rois(torch.from_numpy(saliency), 6, window)
    for rois in corners.tolist():
        assert len({tuple(roi) for roi in rois}) == 6
        assert all(0 <= r <= 6 - window[0] and 0 <= c <= 8 - window[1] for r, c in rois)


def test_to_the_letter_one_hot_blob_repeats_the_first_window_and_distinct_does_not():
    """The behaviour of the release on an isolated blob (gmic-release.md, ROI retrieval)."""
    saliency = torch.zeros(1, 1, 46, 30)
    saliency[0, 0, 20:24, 10:14] = 1
    letter = retrieve_rois(saliency, 6, 4, distinct=False)[0].tolist()
    assert letter == [[20, 10]] + [[0, 0]] * 5
    ours = retrieve_rois(saliency, 6, 4)[0].tolist()
    assert ours[0] == [20, 10]
    assert len({tuple(roi) for roi in ours}) == 6


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_map_is_finite_and_all_zero(value):
    saliency = torch.full((1, 2, 5, 6), value)
    assert (normalise_saliency(saliency) == 0).all()
    assert retrieve_rois(saliency, 3, 4)[0].tolist() == [[0, 0], [0, 1], [0, 2]]


def test_a_map_smaller_than_the_window_gives_its_only_window():
    assert retrieve_rois(torch.rand(1, 1, 2, 3), 3, 4)[0].tolist() == [[0, 0]] * 3


@given(
    cells=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    pixels=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    size=st.integers(1, 300),
    data=st.data(),
)
def test_cells_to_pixels_rounds_halves_to_even_and_stays_inside(cells, pixels, size, data):
    corner = [data.draw(st.integers(0, n - 1)) for n in cells]
    result = cells_to_pixels(torch.tensor([[corner]]), cells, pixels, size)[0, 0].tolist()
    for axis in (0, 1):
        exact = round(corner[axis] * (pixels[axis] / cells[axis]))
        assert result[axis] == min(exact, max(pixels[axis] - size, 0))


def test_cells_to_pixels_of_the_paper_are_multiples_of_64():
    corners = torch.tensor([[[0, 0], [7, 3], [42, 26]]])
    result = cells_to_pixels(corners, (46, 30), (2944, 1920), 256)
    assert result.tolist() == [[[0, 0], [448, 192], [2688, 1664]]]


@given(
    size=st.integers(1, 6),
    corners=hnp.arrays(np.int64, (2, 4, 2), elements=st.integers(-8, 12)),
    seed=st.integers(0, 100),
)
def test_crops_equal_slices_of_the_padded_image(size, corners, seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 1, 9, 7)).astype(np.float32)
    patches = crop_rois(torch.from_numpy(image), torch.from_numpy(corners), size).numpy()
    for b in range(2):
        padded = np.pad(image[b, 0], 20, constant_values=image[b].min())
        for k, (row, column) in enumerate(corners[b]):
            expected = padded[row + 20 : row + 20 + size, column + 20 : column + 20 + size]
            np.testing.assert_array_equal(patches[b, k, 0], expected)


BOXES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 7), st.integers(0, 6), st.integers(0, 6)),
    min_size=1,
    max_size=3,
).map(lambda rows: [(x, y, min(x + w, 12), min(y + h, 10)) for x, y, w, h in rows])


@given(BOXES, BOXES)
def test_iom_counts_pixels_over_the_smaller_area(regions, lesions):
    expected = np.zeros((len(regions), len(lesions)))
    for i, region in enumerate(regions):
        for j, lesion in enumerate(lesions):
            pixels = [
                {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (region, lesion)
            ]
            if smaller := min(map(len, pixels)):
                expected[i, j] = len(pixels[0] & pixels[1]) / smaller
    first, second = (torch.tensor(boxes, dtype=torch.float64) for boxes in (regions, lesions))
    np.testing.assert_allclose(iom(first, second), expected)
    np.testing.assert_allclose(iom(second, first), expected.T)
    masks = torch.zeros(len(lesions), 10, 12, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, lesions, strict=True):
        mask[y0:y1, x0:x1] = True
    np.testing.assert_allclose(iom_masks(first, masks), expected)


def test_iom_with_a_mask_counts_its_pixels_and_parts_of_cut_ones():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 2, 2] = True
    regions = torch.tensor([[0.0, 0.0, 1.5, 1.5], [3.0, 0.0, 4.0, 1.0], [-5.0, -5.0, 9.0, 9.0]])
    np.testing.assert_allclose(iom_masks(regions, mask)[:, 0], [1.25 / 2.25, 0, 1])


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 12),
    stride=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    shift_last=st.booleans(),
    offset=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 1000),
)
def test_sliding_windows_equal_loops(height, width, size, stride, share, shift_last, offset, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.6
    expected = []
    for y in range(height - size + 1):
        for x in range(width - size + 1):
            on_grid = [p >= o and (p - o) % stride == 0 for p, o in ((y, offset[0]), (x, offset[1]))]
            last = [shift_last and p == side - size for p, side in ((y, height), (x, width))]
            if not all(g or end for g, end in zip(on_grid, last, strict=True)):
                continue
            part = mask[y : y + size, x : x + size]
            if part.mean() >= share if share > 0 else mask[y + size // 2, x + size // 2]:
                expected.append([x, y, x + size, y + size])
    found = sliding_windows(
        height, width, size, stride, torch.from_numpy(mask),
        min_share=share, shift_last=shift_last, offset=offset,
    )  # fmt: skip
    np.testing.assert_array_equal(found.numpy(), np.array(expected).reshape(-1, 4))


def test_windows_of_the_papers_image():
    """Checklist D1: 3000 x 1500 pixels give 25 x 12 windows."""
    windows = sliding_windows(3000, 1500)
    assert len(windows) == 25 * 12
    assert windows[1].tolist() == [112, 0, 336, 224]
    assert windows[:, 2:].max(0).values.tolist() == [224 + 11 * 112, 224 + 24 * 112]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"sizes": ()}, "sizes"), ({"stride": 0.0}, "stride"), ({"min_breast": 2.0}, "min_breast")],
)
def test_wrong_windows_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        WindowConfig(**change)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-9, 0.25, 0.5, 0.75, 1.0]), min_size=3, max_size=3), max_size=6)
)
def test_region_labels_are_equation_7(overlap):
    expected = []
    for row in overlap:
        if any(value >= 0.5 for value in row):
            expected.append(1)  # the quantifier "there is", reading A8
        else:
            expected.append(0 if all(value == 0 for value in row) else -1)
    found = region_labels(torch.tensor(overlap).reshape(-1, 3))
    assert found.tolist() == expected


def test_region_labels_without_lesions_and_at_other_thresholds():
    assert region_labels(torch.zeros(4, 0)).tolist() == [0, 0, 0, 0]
    assert region_labels(torch.tensor([[0.3], [0.6]]), alpha=0.3).tolist() == [1, 1]


def best_iom(width, height):
    """The best IoM any window of the paper's grid reaches, for a lesion anywhere on the grid's period."""
    windows = sliding_windows(1792, 1792)
    worst = 1.0
    for x in range(448, 560, 8):
        for y in range(448, 560, 8):
            box = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
            worst = min(worst, iom(windows, box).max().item())
    return worst


def test_the_papers_grid_reaches_every_lesion_but_long_thin_ones():
    """Reading A6: lesions up to 448 pixels always have a positive region; these two need not."""
    assert min(best_iom(w, h) for w, h in ((8, 8), (112, 448), (224, 224), (448, 448), (448, 30))) >= 0.5
    assert best_iom(100, 1000) == pytest.approx(0.446, abs=0.003)
    assert best_iom(40, 600) == pytest.approx(0.373, abs=0.001)
