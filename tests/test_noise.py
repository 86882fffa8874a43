import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, ndimage, stats

from mammomil.noise import (
    Grid,
    band,
    blur,
    curves,
    enlarge,
    field,
    hash32,
    look_up,
    normal_pairs,
    power_law,
    splat,
    white,
)

FINE, COARSE = Grid(368, 240, 0.56), Grid(92, 60, 2.24)  # both 206 x 134 mm


def mixed(x: int) -> int:
    """lowbias32 on Python's integers, which never wrap by themselves."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def signed(x: int) -> int:
    return x - 2**32 if x >= 2**31 else x


def spectrum(image, pixel):
    """Power of a periodic picture and the length of each frequency in 1/mm."""
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, pixel) for n in image.shape[::-1])))
    return np.abs(np.fft.fft2(image.double().numpy())) ** 2, f


def binned(power, f, edges):
    """Mean power in rings of frequency."""
    at = np.digitize(f, edges)
    return np.array([power[at == i].mean() for i in range(1, len(edges))])


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_hash_is_lowbias32_on_integers_that_never_wrap(numbers):
    hashed = hash32(torch.tensor(numbers, dtype=torch.int32)).tolist()
    assert hashed == [signed(mixed(n & 0xFFFFFFFF)) for n in numbers]


def test_hash_has_no_collisions_and_flips_half_the_bits():
    x = torch.arange(-50_000, 50_000, dtype=torch.int32)
    hashed = hash32(x)
    assert len(hashed.unique()) == len(x)  # it is a permutation
    for bit in range(31):
        flipped = (hashed ^ hash32(x ^ (1 << bit))).numpy().view(np.uint8)
        assert np.unpackbits(flipped).mean() == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=4), st.integers(-(2**31), 2**31 - 1))
def test_normal_pairs_are_box_and_muller_of_the_hash(key, index):
    first, second = (int(n) ^ 2**31 for n in np.random.SeedSequence(key).generate_state(2))
    a = mixed(mixed(index & 0xFFFFFFFF) ^ first)
    b = mixed(a ^ second)
    u, v = (((bits & 0xFFFFFF) + 0.5) / 2**24 for bits in (a, b))
    expected = [math.sqrt(-2 * math.log(u)) * f(2 * math.pi * v) for f in (math.cos, math.sin)]
    pair = [float(n) for n in normal_pairs(tuple(key), torch.tensor([index], dtype=torch.int32))]
    assert pair == pytest.approx(expected, abs=1e-3)


def test_normal_pairs_are_standard_normal_and_unrelated():
    index = torch.arange(2**16, dtype=torch.int32)
    a, b = (n.double().numpy() for n in normal_pairs((3, 1), index))
    other = normal_pairs((3, 2), index)[0].double().numpy()
    assert stats.kstest(a, "norm").pvalue > 0.01
    assert stats.kstest(b, "norm").pvalue > 0.01
    limit = 4 / math.sqrt(len(index))  # four standard errors
    pairs = [(a, b), (a, other), (a[1:], a[:-1]), (b[1:], b[:-1]), (a[1:], b[:-1]), (a[256:], a[:-256])]
    for left, right in pairs:
        assert abs(np.corrcoef(left, right)[0, 1]) < limit
        assert abs(np.corrcoef(left**2, right**2)[0, 1]) < limit


def test_white_noise_is_normal_without_neighbours_and_another_key_gives_other_noise():
    grid = Grid(201, 150, 1.0)
    image, other = (white(key, grid).double().numpy() for key in ((5, 0), (5, 1)))
    assert stats.kstest(image.ravel(), "norm").pvalue > 0.01
    limit = 4 / math.sqrt(image.size)
    halves = (image[:100], image[101:])
    pairs = [(image[1:], image[:-1]), (image[:, 1:], image[:, :-1]), (image, other), halves]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < limit


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 3))
def test_grid_has_the_centres_of_its_pixels(rows, columns, pixel):
    grid = Grid(rows, columns, pixel)
    assert grid.x.tolist()[0] == pytest.approx([(i + 0.5) * pixel for i in range(columns)], rel=1e-5)
    assert [y for (y,) in grid.y.tolist()] == pytest.approx(
        [(i + 0.5) * pixel for i in range(rows)], rel=1e-5
    )


@pytest.mark.parametrize("wavelength", [5.0, 10.0, 20.0])
def test_a_field_of_waves_shorter_than_the_picture_has_about_unit_variance(wavelength):
    """Waves that run straight down are too faint by a root of 2, hence a little less than 1."""
    both = [field((k,), FINE, lambda f: (f > wavelength**-2) * (f < 0.0625)) for k in range(30)]
    assert np.mean([image.square().mean() for image in both]) == pytest.approx(1, abs=0.1)


def test_a_field_has_the_spectrum_that_was_asked_for():
    edges = np.linspace(0.02, 0.5, 13)
    power, f = 0, None
    for k in range(20):
        one, f = spectrum(field((k, 1), FINE, lambda square: (1 + 40 * square) ** -1), 0.56)
        power = power + one
    measured = binned(power, f, edges)
    fx, fy = np.meshgrid(np.fft.fftfreq(240, 0.56), np.fft.fftfreq(368, 0.56))
    shown = (np.sinc(fx * 0.56) * np.sinc(fy * 0.56)) ** 2  # pixels average
    expected = binned((1 + 40 * f**2) ** -2.0 * shown, f, edges)
    np.testing.assert_allclose(measured / measured[0], expected / expected[0], rtol=0.1)


@pytest.mark.parametrize("key", [(0,), (7, 2), (1, 2, 3)])
def test_coarse_and_fine_grids_show_the_same_waves(key):
    fine, coarse = (power_law(key, grid, 3.0).double().numpy() for grid in (FINE, COARSE))
    blocks = fine.reshape(92, 4, 60, 4).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), coarse.ravel())[0, 1] > 0.98
    assert np.polyfit(coarse.ravel(), blocks.ravel(), 1)[0] == pytest.approx(1, abs=0.02)
    assert blocks.mean() == pytest.approx(coarse.mean(), abs=0.02)


@pytest.mark.parametrize("beta", [2.6, 3.1, 3.6])
def test_power_law_falls_with_its_exponent(beta):
    edges = np.geomspace(0.08, 0.6, 12)
    power, f = 0, None
    for k in range(12):
        one, f = spectrum(power_law((k,), Grid(368, 240, 0.56), beta), 0.56)
        power = power + one
    fx, fy = np.meshgrid(np.fft.fftfreq(240, 0.56), np.fft.fftfreq(368, 0.56))
    power = power / (np.sinc(fx * 0.56) * np.sinc(fy * 0.56)) ** 2
    slope = np.polyfit(np.log(binned(f, f, edges)), np.log(binned(power, f, edges)), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.15)


@pytest.mark.parametrize("beta", [2.6, 3.1, 3.6])
def test_waves_of_the_power_law_below_25_mm_have_about_unit_deviation(beta):
    found = []
    for k in range(30):
        power, f = spectrum(power_law((k,), FINE, beta), 0.56)
        found.append(power[f > 1 / 25.6].sum() / power.size**2)  # Parseval
    assert math.sqrt(np.mean(found)) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("wavelength", [6.0, 11.0, 20.0])
def test_a_band_peaks_at_its_wavelength(wavelength):
    grid = Grid(192, 192, 0.6)
    edges = np.geomspace(0.3, 3, 14) / wavelength
    power, f = 0, None
    for k in range(20):
        one, f = spectrum(band((k,), grid, wavelength), 0.6)
        power = power + one
    rings = binned(power, f, edges)
    middle = np.sqrt(edges[1:] * edges[:-1])[rings.argmax()]
    assert middle * wavelength == pytest.approx(1, rel=0.15)
    assert rings[[0, -1]].max() < 0.05 * rings.max()


def test_look_up_is_bilinear_and_periodic():
    rng = np.random.default_rng(0)
    tile = rng.normal(size=(5, 7))
    u, v = rng.uniform(-3, 3, (2, 20, 30))
    u[0, :8], v[1, :8] = np.arange(-4, 4), np.arange(-4, 4)  # on the seams
    read = look_up(*(torch.from_numpy(a).float() for a in (tile, u, v)))
    for i in np.ndindex(u.shape):
        x, y = u[i] * 7 - 0.5, v[i] * 5 - 0.5  # centres of pixels lie half a pixel inside
        left, top = math.floor(x), math.floor(y)
        a, b = x - left, y - top
        rows = [(1 - a) * tile[r % 5, left % 7] + a * tile[r % 5, (left + 1) % 7] for r in (top, top + 1)]
        assert float(read[i]) == pytest.approx((1 - b) * rows[0] + b * rows[1], abs=2e-5)


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_a_tile_repeats_exactly(right, down):
    tile = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    u, v = torch.arange(64).view(1, -1) / 64, torch.arange(32).view(-1, 1) / 32  # exact in float32
    assert torch.equal(look_up(tile, u + right, v + down), look_up(tile, u, v))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_the_gaussian_filter_of_scipy(sigma):
    image = torch.randn(23, 31)
    expected = ndimage.gaussian_filter(
        image.double().numpy(), sigma, mode="nearest", radius=math.ceil(3 * sigma)
    )
    before = image.clone()
    np.testing.assert_allclose(blur(image, sigma), expected, atol=2e-6)
    assert torch.equal(image, before)
    np.testing.assert_allclose(blur(torch.full((9, 12), 2.5), sigma), 2.5, rtol=1e-6)


def test_enlarging_keeps_smooth_pictures_in_their_place():
    coarse, fine = Grid(46, 30, 4.48), FINE

    def wave(grid):
        return torch.sin(grid.x / 15) * torch.cos(grid.y / 20)

    np.testing.assert_allclose(
        enlarge(wave(coarse), fine)[16:-16, 16:-16], wave(fine)[16:-16, 16:-16], atol=0.03
    )


def drops(rng, number, low, high):
    return rng.uniform(low, high, (number, 2)), rng.uniform(0.5, 2, number)


def test_splat_spreads_each_volume_over_four_pixels_and_blurs():
    grid, rng = Grid(30, 24, 0.5), np.random.default_rng(1)
    points, volume = drops(rng, 40, (-2, -2), (14, 17))  # some outside
    image = np.zeros((40, 34))
    for (x, y), v in zip(points / 0.5 + 4.5, volume, strict=True):
        left, top = math.floor(x), math.floor(y)
        for i in (left, left + 1):
            for j in (top, top + 1):
                if 0 <= i < 34 and 0 <= j < 40:
                    image[j, i] += v / 0.25 * (1 - abs(x - i)) * (1 - abs(y - j))
    expected = ndimage.gaussian_filter(image[5:-5, 5:-5], 1.2, mode="nearest", radius=4)
    drawn = splat(points, volume, grid.x, grid.y, 0.5, 0.6)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_splat_conserves_volume_and_its_centre_and_is_additive(seed, sigma):
    grid, rng = Grid(80, 60, 0.3), np.random.default_rng(seed)
    points, volume = drops(rng, 9, (4, 4), (14, 20))
    one, two, both = (
        splat(points[s], volume[s], grid.x, grid.y, 0.3, sigma).double()
        for s in (slice(4), slice(4, None), slice(None))
    )
    np.testing.assert_allclose(one + two, both, atol=1e-4)
    mass = both * 0.09
    assert float(mass.sum()) == pytest.approx(volume.sum(), rel=1e-4)
    centre = [float((mass * along).sum()) / volume.sum() for along in (grid.x, grid.y)]
    assert centre == pytest.approx(volume @ points / volume.sum(), abs=1e-3)


def test_splat_into_a_window_is_the_window_of_the_picture():
    grid, rng = Grid(80, 60, 0.3), np.random.default_rng(2)
    points, volume = drops(rng, 12, (6, 9), (12, 15))
    whole = splat(points, volume, grid.x, grid.y, 0.3, 0.3)
    part = splat(points, volume, grid.x[:, 10:50], grid.y[20:60], 0.3, 0.3)
    np.testing.assert_allclose(part, whole[20:60, 10:50], atol=1e-4)


def test_curves_have_their_length_step_and_taper():
    rng = np.random.default_rng(3)
    for length, width, taper in [(12.3, 2.0, 1.0), (30.0, 1.5, 0.4), (55.2, 3.0, 0.0)]:
        start, heading = rng.uniform(0, 50, (1, 2)), rng.uniform(0, 6, 1)
        points, volume = curves(rng, start, heading, np.array([length]), np.array([width]), taper)
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        np.testing.assert_allclose(steps, 0.25, atol=1e-4)
        assert len(points) * 0.25 == pytest.approx(length, abs=0.3)
        assert np.linalg.norm(points[0] - start) < 0.6

        def cut(s, length=length, width=width, taper=taper):  # area of the cross section
            return np.pi / 4 * (width * (1 - taper * s / length) * min(s / 4, 1)) ** 2

        assert volume.sum() == pytest.approx(integrate.quad(cut, 0, length, points=[4])[0], rel=0.03)
        assert volume[-1] / 0.25 == pytest.approx(cut(length), abs=0.02 * width**2)
        assert volume[20] / 0.25 == pytest.approx(cut(5.25), rel=0.03)


def test_each_curve_has_its_own_start_length_and_width():
    rng = np.random.default_rng(4)
    start, length, width = (
        np.array([[0.0, 0], [500, 0], [0, 500]]),
        np.array([10.0, 25, 40]),
        np.array([1.0, 2, 3]),
    )
    points, volume = curves(rng, start, np.array([0.0, 2, 4]), length, width, taper=0.0)
    near = np.linalg.norm(points[:, None] - start, axis=2).argmin(1)
    np.testing.assert_allclose(np.bincount(near) * 0.25, length, atol=0.3)
    thickest = [np.sqrt(volume[near == i].max() / 0.25 * 4 / np.pi) for i in range(3)]
    np.testing.assert_allclose(thickest, width, rtol=1e-3)


def test_curves_wind_around_their_heading():
    rng, number, heading = np.random.default_rng(5), 300, np.linspace(0, 6.2, 300)
    length = np.full(number, 20.0)
    points, _ = curves(rng, np.zeros((number, 2)), heading, length, np.ones(number), taper=0.0)
    ends = points.reshape(number, -1, 2)[:, -1]
    turned = np.angle((ends[:, 0] + 1j * ends[:, 1]) * np.exp(-1j * heading))
    assert np.mean(turned) == pytest.approx(0, abs=4 * turned.std() / math.sqrt(number))
    assert 0.05 < turned.std() < 0.4
    assert 18 < np.linalg.norm(ends, axis=1).mean() < 20
