from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from mammomil.anatomy import (
    DENSITY,
    GLAND,
    Breast,
    clustered_lumps,
    draw_breast,
    draw_fold,
    draw_outline,
    draw_tissue,
    draw_vessels,
    edges,
    strands,
)
from mammomil.noise import Grid, enlarge, field

GRID = Grid(368, 240, 0.56)


@cache
def drawn(seed, mlo):
    rng = np.random.default_rng([seed, 17])
    breast = draw_breast(rng)
    outline = draw_outline(rng, breast.reach, mlo)
    return breast, outline, draw_tissue((seed, int(mlo)), breast, outline, GRID)


def nipple_of(outline):
    return outline.reach, outline.centre + outline.droop * outline.reach


def slopes_to(point, image, where):
    """Mean square of the slope along and across the way to a point."""
    down, right = np.gradient(image)
    dx, dy = point[0] - GRID.x.numpy(), point[1] - GRID.y.numpy()
    length = np.hypot(dx, dy) + 1e-6
    along, across = (right * dx + down * dy) / length, (down * dx - right * dy) / length
    return np.mean(along[where] ** 2), np.mean(across[where] ** 2)


def test_the_classes_of_density_have_their_shares():
    drawn = [draw_breast(np.random.default_rng(seed)).density for seed in range(2000)]
    counts = [drawn.count(density) for density in "ABCD"]
    assert stats.chisquare(counts, 2000 * np.array([0.1, 0.4, 0.4, 0.1])).pvalue > 0.01


def test_denser_breasts_are_smaller_and_thinner():
    """Dense share of the area by class: 4.3/19.3/40.4/62.3 % in mini-MIAS."""
    breasts = [draw_breast(np.random.default_rng(seed)) for seed in range(2000)]
    by_class = {density: [b for b in breasts if b.density == density] for density in "ABCD"}
    dense, reach, thick = (
        [np.median([getattr(b, name) for b in by_class[density]]) for density in "ABCD"]
        for name in ("dense", "reach", "thick")
    )
    assert dense == pytest.approx([0.043, 0.193, 0.404, 0.623], abs=0.02)
    assert reach == sorted(reach, reverse=True)
    assert thick == sorted(thick, reverse=True)
    assert np.mean([b.beta for b in breasts]) == pytest.approx(3.1, abs=0.03)
    assert {b.density: DENSITY[b.density][4] for b in breasts}.keys() == set("ABCD")


@pytest.mark.parametrize("mlo", [False, True])
def test_the_distance_inside_the_skin_is_that_of_a_distance_transform(mlo):
    middling = []
    for seed in range(6):
        _, outline, tissue = drawn(seed, mlo)
        inside = tissue.breast.numpy()
        wide = np.pad(inside, ((60, 60), (60, 0)), mode="edge")  # the film's edges are no skin
        exact, air = (ndimage.distance_transform_edt(part) for part in (wide, ~wide))
        exact = ((exact - 0.5) * (exact > 0) - (air - 0.5) * (air > 0))[60:-60, 60:] * 0.56
        x, y = nipple_of(outline)
        far = np.hypot(GRID.x.numpy() - x, GRID.y.numpy() - y) > 15  # the nipple is not smooth
        error = np.abs(tissue.skin.numpy() - exact)[(np.abs(exact) < 8) & far]
        assert error.max() < 1.5
        middling.append(np.median(error))
    assert np.mean(middling) < 0.3


@pytest.mark.parametrize("mlo", [False, True])
def test_the_nipple_stands_out_where_the_outline_reaches_furthest(mlo):
    for seed in range(20):
        _, outline, tissue = drawn(seed, mlo)
        x, y = nipple_of(outline)
        rows, columns = np.nonzero(tissue.breast.numpy())
        assert (columns.max() + 1) * 0.56 == pytest.approx(x + 4, abs=1.8)
        tip = rows[columns == columns.max()].mean() * 0.56
        assert tip == pytest.approx(y, abs=4)


def test_the_distance_to_the_muscle_is_that_to_its_edge():
    """A straight edge from (40, 0) to (0, 100), by the formula of a point and a line."""
    outline = draw_outline(np.random.default_rng(0), 100.0, mlo=True)._replace(muscle=(40.0, 100.0, 1.0))
    muscle = edges(outline, GRID.x, GRID.y)[1].double().numpy()
    a, b = np.array([40.0, 0]), np.array([0.0, 100])
    x, y = np.broadcast_arrays(GRID.x.numpy(), GRID.y.numpy())
    normal = np.array([a[1] - b[1], b[0] - a[0]]) / np.linalg.norm(b - a)  # towards the corner
    distance = (x - a[0]) * normal[0] + (y - a[1]) * normal[1]
    np.testing.assert_allclose(muscle, distance, atol=1e-3)


def test_the_muscle_is_as_large_as_in_mini_mias_and_only_in_mlo():
    """It takes 29/50/67 % of the chest wall (5/50/95 %)."""
    shares = []
    for seed in range(150):
        rng = np.random.default_rng([seed, 3])
        reach = draw_breast(rng).reach
        assert not (edges(draw_outline(rng, reach, mlo=False), GRID.x[:, :9], GRID.y)[1] > 0).any()
        muscle = edges(draw_outline(rng, reach, mlo=True), GRID.x[:, :1], GRID.y)[1]
        shares.append(float((muscle > 0).float().mean()))
    assert np.percentile(shares, (5, 50, 95)) == pytest.approx([0.29, 0.5, 0.67], abs=0.05)


def test_very_small_breasts_have_no_muscle_and_stay_small():
    for seed in range(10):
        outline = draw_outline(np.random.default_rng(seed), 18.0, mlo=True)
        skin, muscle = edges(outline, GRID.x, GRID.y)
        assert not (muscle > 0).any()
        assert float((skin > 0).sum()) * 0.56**2 / 100 < 20  # cm2


@pytest.mark.parametrize("mlo", [False, True])
def test_the_signal_is_finite_largest_inside_and_even_in_the_air(mlo):
    for seed in range(10):
        breast, _, tissue = drawn(seed, mlo)
        signal, skin = tissue.signal.numpy(), tissue.skin.numpy()
        assert np.isfinite(signal).all()
        np.testing.assert_allclose(signal[skin <= 0], 0.12, rtol=1e-6)  # the skin; air is cut off later
        assert signal[skin > 0].min() > 0.1
        fat = (skin > breast.thick) & (tissue.gland.numpy() < 0.02) & (tissue.muscle.numpy() < -10)
        if fat.sum() > 500:  # plain fat is the middle of the scale
            assert np.median(signal[fat]) == pytest.approx(0.9, abs=0.1)


def test_gland_adds_its_attenuation():
    """Regressed on the thickness of gland the signal gains 0.023 per mm (VICTRE), and a bit for the lines."""
    slopes = []
    for seed in range(20):
        breast, outline, tissue = drawn(seed, False)
        inner = (tissue.roll > 0.999).numpy()
        thickness = (tissue.gland * min(breast.thick, outline.reach)).numpy()[inner]
        if thickness.std() > 2:
            slopes.append(np.polyfit(thickness, tissue.signal.numpy()[inner], 1)[0])
    assert len(slopes) > 8
    assert 0.9 * GLAND < np.mean(slopes) < 1.35 * GLAND


def dense_share(tissue):
    gland = tissue.gland[(tissue.skin > 0) & (tissue.muscle < 0)].numpy()
    return (gland > 0.5 * np.percentile(gland, 95)).mean()


@pytest.mark.parametrize("mlo", [False, True])
def test_the_dense_share_of_the_area_follows_what_was_asked_for(mlo):
    for seed in range(3):
        breast, outline, _ = drawn(seed, mlo)
        shares = [
            dense_share(draw_tissue((seed, 1), breast._replace(dense=dense), outline, GRID))
            for dense in (0.05, 0.2, 0.4, 0.6)
        ]
        assert (np.diff(shares) > 0.05).all()
        assert shares == pytest.approx([0.05, 0.2, 0.4, 0.6], abs=0.12)


def test_the_classes_of_density_are_ordered_by_their_dense_share():
    found = {density: [] for density in "ABCD"}
    asked, got = [], []
    for seed in range(30):
        breast, _, tissue = drawn(seed, bool(seed % 2))
        found[breast.density].append(dense_share(tissue))
        asked.append(breast.dense)
        got.append(dense_share(tissue))
    means = [np.mean(found[density]) for density in "ABCD"]
    assert (np.diff(means) > 0.05).all()
    assert stats.spearmanr(asked, got).statistic > 0.9


def test_gland_is_a_share_and_none_is_in_the_muscle_or_the_air():
    for seed in range(10):
        _, _, tissue = drawn(seed, True)
        gland = tissue.gland
        assert float(gland.min()) >= 0
        assert float(gland.max()) <= 0.95
        assert float(gland[tissue.skin <= 0].max()) == 0
        assert float(gland[tissue.muscle > 10].max()) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_lumps_have_zero_mean_and_unit_deviation_and_point_to_the_nipple(seed):
    outline = draw_outline(np.random.default_rng(seed), 100.0, mlo=bool(seed % 2))
    lumps = clustered_lumps((seed, 2), outline, GRID).double().numpy()
    assert lumps.mean() == pytest.approx(0, abs=0.01)
    assert lumps.std() == pytest.approx(1, abs=0.04)
    assert stats.skew(lumps.ravel()) > 0.3  # bright blobs on an even ground
    x, y = nipple_of(outline)
    for upper in (True, False):  # a picture upside down would fail in one half at least
        where = (torch.hypot(GRID.x - x, GRID.y - y) > 20) & ((GRID.y < y) == upper)
        along, across = slopes_to((x + 10, y), lumps, where.numpy())
        assert along < 0.85 * across


@pytest.mark.parametrize("seed", range(4))
def test_strands_are_bright_lines_towards_the_nipple(seed):
    outline = draw_outline(np.random.default_rng(seed), 100.0, mlo=bool(seed % 2))
    coarse = field((seed, 1), Grid(184, 120, 1.12), lambda square: (square + 0.01**2) ** -1.0)
    clouds = enlarge(coarse, GRID)
    straight = strands((seed, 3), outline, torch.zeros_like(clouds), GRID).double().numpy()
    bent = strands((seed, 3), outline, clouds, GRID).double().numpy()
    for lines in (straight, bent):
        assert lines.min() >= 0
        assert np.percentile(lines, 99) > 0.5
        assert (lines < 0.3).mean() > 0.6  # between the lines is more than under them
    x, y = nipple_of(outline)
    way = torch.hypot(GRID.x - x - 25, GRID.y - y)
    for upper in (True, False):
        half = (GRID.y < y) == upper
        along, across = slopes_to((x + 25, y), straight, (half & (way > 25) & (way < 130)).numpy())
        assert along < 0.7 * across
        # The clouds bend them: further from the nipple they wind as much as they run towards it.
        along, across = slopes_to((x + 25, y), bent, (half & (way > 25) & (way < 60)).numpy())
        assert along < 0.85 * across


def test_the_thickness_rolls_off_like_a_half_circle():
    for seed in range(10):
        breast, outline, tissue = drawn(seed, False)
        roll, depth = tissue.roll.double().numpy(), tissue.skin.double().numpy()
        radius = min(breast.thick, outline.reach) / 2
        assert (roll[depth <= 0] == 0).all()
        assert (roll[depth >= radius] == 1).all()
        rim = (depth > 0) & (depth < radius)
        # Height and way to the middle of the rim's circle lie on that circle.
        np.testing.assert_allclose(
            (radius * roll[rim]) ** 2 + (radius - depth[rim]) ** 2, radius**2, rtol=1e-4
        )


def test_a_finer_grid_shows_the_same_tissue():
    breast, outline, tissue = drawn(2, True)
    fine = draw_tissue((2, 1), breast, outline, Grid(736, 480, 0.28))
    for name, least in (
        ("skin", 0.9999),
        ("roll", 0.999),
        ("gland", 0.98),
        ("signal", 0.99),
        ("lumps", 0.99),
    ):
        coarse = getattr(tissue, name).double().numpy()
        blocks = getattr(fine, name).double().numpy().reshape(368, 2, 240, 2).mean((1, 3))
        assert np.corrcoef(coarse.ravel(), blocks.ravel())[0, 1] > least
        assert np.polyfit(coarse.ravel(), blocks.ravel(), 1) == pytest.approx([1, 0], abs=0.05)


def test_another_key_draws_other_tissue_in_the_same_outline():
    breast, outline, tissue = drawn(3, False)
    other = draw_tissue((99, 0), breast, outline, GRID)
    assert torch.equal(tissue.skin, other.skin)
    where = (tissue.roll > 0.99).numpy()
    assert np.corrcoef(tissue.lumps.numpy()[where], other.lumps.numpy()[where])[0, 1] < 0.4


def test_vessels_and_folds_have_the_volumes_of_vessels_and_folds():
    for seed in range(30):
        _, outline, _ = drawn(seed % 8, True)
        vessels, fold = (
            draw(np.random.default_rng([seed, 1]), outline, GRID).double().numpy()
            for draw in (draw_vessels, draw_fold)
        )
        for lines in (vessels, fold):
            assert np.isfinite(lines).all()
            assert lines.min() >= 0
        # Cylinders of 1.2 to 2.8 mm, of 30 to 90 % of the breast; up to four; they lose 0.4 of their width.
        one = np.pi / 4 * outline.reach
        assert 0.3 * 1.2**2 * 0.4 * one < vessels.sum() * 0.56**2 < 4 * 2.8**2 * 0.9 * one
        assert fold[GRID.y[:, 0].numpy() < outline.centre].max() == 0  # below the breast's middle only
        assert np.nonzero(fold)[1].min() < 12  # it begins at the chest wall
        assert 0.05 * 4**2 * 15 < fold.sum() * 0.56**2 < np.pi / 4 * 7**2 * 40 / 3  # cones


def test_vessels_hold_the_same_volume_on_finer_grids():
    _, outline, _ = drawn(1, False)
    for seed in range(5):
        one, two = (
            draw_vessels(np.random.default_rng(seed), outline, grid).double().sum() * grid.pixel**2
            for grid in (GRID, Grid(1472, 960, 0.14))
        )
        assert float(one) == pytest.approx(float(two), rel=0.03)


def test_the_same_key_and_breast_give_the_same_tissue():
    breast = Breast("C", 95.0, 0.4, 50.0, 3.0)
    one, two = (
        draw_tissue((4, 4), breast, draw_outline(np.random.default_rng(4), 95.0, True), GRID)
        for _ in range(2)
    )
    assert torch.equal(one.signal, two.signal)
