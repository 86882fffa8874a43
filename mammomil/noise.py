"""Random fields of the phantom: the same numbers on every device and at every scale.

Numbers come from a hash of (key, index), not from a generator with a state, so a GPU draws what a CPU draws,
and a fine grid shows the coarse grid's frequencies plus its own. Lengths are in millimetres.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

Key = tuple[int, ...]


class Grid(NamedTuple):
    """Pixels of a picture: rows, columns, side in mm, and where tensors are computed."""

    rows: int
    columns: int
    pixel: float
    device: str = "cpu"

    @property
    def x(self) -> Float[Tensor, "1 w"]:
        """Centres of the columns in mm from the left edge."""
        return ((torch.arange(self.columns, device=self.device) + 0.5) * self.pixel)[None]

    @property
    def y(self) -> Float[Tensor, "h 1"]:
        """Centres of the rows in mm from the upper edge."""
        return ((torch.arange(self.rows, device=self.device) + 0.5) * self.pixel)[:, None]


def hash32(x: Int32[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """Mix the bits of 32-bit integers: neighbours in, unrelated numbers out.

    Two rounds of xor-shift and multiply (Wellons' lowbias32). Products wrap; shifts are logical.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def normal_pairs(key: Key, index: Int32[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers for each index (Box and Muller 1958).

    Args:
        key: integers of 0 or more; another key, other numbers.
        index: any distinct numbers.
    """
    first, second = np.random.SeedSequence(key).generate_state(2).astype(np.int64) - 2**31
    a = hash32(hash32(index) ^ int(first))
    b = hash32(a ^ int(second))
    u, v = (((bits & 0xFFFFFF).float() + 0.5) / 2**24 for bits in (a, b))
    radius, angle = (-2 * u.log()).sqrt(), 2 * torch.pi * v
    return radius * angle.cos(), radius * angle.sin()


def white(key: Key, grid: Grid) -> Float[Tensor, "h w"]:
    """Independent standard normal numbers, one per pixel."""
    half = -(-grid.rows // 2)
    index = torch.arange(half * grid.columns, dtype=torch.int32, device=grid.device)
    return torch.cat(normal_pairs(key, index.view(half, -1)))[: grid.rows]


def field(key: Key, grid: Grid, gain) -> Float[Tensor, "h w"]:
    """Periodic random field with a given amplitude spectrum and about unit variance.

    Waves that run straight down have half the power of the others (the half-plane keeps their real part).

    Args:
        key: see `normal_pairs`.
        grid: its side in mm sets the frequencies; grids of the same side share those both can show.
        gain: amplitude as a function of the squared frequency in 1/mm2.
    """
    rows, columns, pixel, device = grid
    fy = torch.fft.fftfreq(rows, 1 / rows, device=device).round().int()[:, None]
    fx = torch.arange(columns // 2 + 1, dtype=torch.int32, device=device)
    real, imaginary = normal_pairs(key, (fy & 0xFFFF) * 65536 + fx)
    fy, fx = fy / (rows * pixel), fx / (columns * pixel)
    square = fy.square() + fx.square()
    amplitude = gain(square)
    # Normalised over the frequencies below 0.25/mm, which every grid has.
    common = amplitude * (square < 0.0625) * (square > 0)
    amplitude = amplitude / (4 * common.square().sum()).sqrt()
    # A pixel averages over its area; its centre lies half a pixel inside.
    ky, kx = (torch.polar(torch.sinc(f * pixel), torch.pi * pixel * f) for f in (fy, fx))
    spectrum = torch.complex(real, imaginary) * amplitude * ky * kx
    return torch.fft.irfft2(spectrum, s=(rows, columns), norm="forward")


def power_law(key: Key, grid: Grid, beta: float) -> Float[Tensor, "h w"]:
    """Field with power 1 / f^beta (Burgess), whose waves below 25.6 mm have unit deviation."""

    def gain(square: Tensor) -> Tensor:  # flat above 80 mm: breasts have no such waves
        return (square + 0.012**2) ** (-beta / 4)

    rough = field(key, grid, gain)
    side = torch.fft.fftfreq(64, 3.2, device=grid.device)
    square = side.square()[:, None] + side.square()
    power = gain(square).square() * (square > 0)
    return rough * (power.sum() / (power * (square > 25.6**-2)).sum()).sqrt()


def band(key: Key, grid: Grid, wavelength: float) -> Float[Tensor, "h w"]:
    """Field of waves near one wavelength in mm."""

    def gain(square: Tensor) -> Tensor:
        return torch.exp(-4 * (0.5 * (square + 1e-9).log() + math.log(wavelength)).square())

    return field(key, grid, gain)


def look_up(tile: Float[Tensor, "n m"], u: Tensor, v: Tensor) -> Float[Tensor, "h w"]:
    """Read a periodic tile at places u (columns) and v (rows), given in shares of the tile's sides."""
    tile = F.pad(tile[None, None], (1, 1, 1, 1), mode="circular")
    sides = (
        ((place - place.floor()) * (side - 2) + 1) * 2 / side - 1
        for place, side in ((u, tile.shape[3]), (v, tile.shape[2]))
    )
    places = torch.stack(torch.broadcast_tensors(*sides), -1)[None]
    return F.grid_sample(tile, places, align_corners=False)[0, 0]


def enlarge(image: Float[Tensor, "n m"], grid: Grid) -> Float[Tensor, "h w"]:
    """Interpolate a coarse picture of the same area to the pixels of a grid."""
    return F.interpolate(image[None, None], (grid.rows, grid.columns), mode="bicubic", align_corners=False)[
        0, 0
    ]


def blur(image: Float[Tensor, "h w"], sigma: float) -> Float[Tensor, "h w"]:
    """Gaussian blur, sigma in pixels."""
    reach = math.ceil(3 * sigma)
    taps = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    for axis in (0, 1):  # sums of shifted pictures: faster than a convolution of one channel
        side = image.shape[axis]
        pad = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
        wide = F.pad(image[None, None], pad, mode="replicate")[0, 0]
        image = wide.narrow(axis, reach, side) * taps[0]
        for i in range(1, reach + 1):
            image = image.add_(wide.narrow(axis, reach - i, side), alpha=float(taps[i]))
            image = image.add_(wide.narrow(axis, reach + i, side), alpha=float(taps[i]))
    return image


def splat(points: np.ndarray, volume: np.ndarray, x: Tensor, y: Tensor, pixel: float, sigma: float) -> Tensor:
    """Spread volumes over pixels.

    Args:
        points: places (n, 2), xy in mm.
        volume: mm3 at each.
        x: centres of the columns in mm (1, w).
        y: centres of the rows in mm (h, 1).
        pixel: side of a pixel in mm.
        sigma: of the Gaussian each volume is blurred with, in mm.

    Returns:
        Thickness in mm (h, w).
    """
    at = (torch.from_numpy(points).to(x) - torch.stack((x[0, 0], y[0, 0]))) / pixel
    mass = torch.from_numpy(volume).to(x) / pixel**2
    rows, columns = len(y) + 3, x.shape[1] + 3  # a margin that catches what lies outside
    column, row = at.T + 1
    left, top = column.floor().clamp(0, columns - 2), row.floor().clamp(0, rows - 2)
    image = torch.zeros(rows * columns, device=x.device)
    for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (1 - (column - left - i).abs()).clamp(min=0) * (1 - (row - top - j).abs()).clamp(min=0)
        image.index_add_(0, ((top + j) * columns + left + i).long(), mass * weight)
    return blur(image.view(rows, columns)[1:-2, 1:-2], max(sigma / pixel, 0.4))


def curves(
    rng: np.random.Generator,
    start: np.ndarray,
    heading: np.ndarray,
    length: np.ndarray,
    width: np.ndarray,
    taper: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Winding lines of round cross section.

    Args:
        rng: draws how they wind.
        start: where they begin (n, 2), xy in mm.
        heading: where they go, in radians (n,).
        length: in mm (n,).
        width: at the beginning, in mm (n,).
        taper: share of the width lost on the way.

    Returns:
        Points (m, 2) in mm and the volume in mm3 at each, for `splat`.
    """
    number, step = (len(start), 1), 0.25
    way = np.arange(0, length.max(), step, np.float32)[None]  # (1, s)
    wave = np.sin(way / rng.uniform(4, 9, number) + rng.uniform(0, 6.3, number))
    angle = heading[:, None] + rng.normal(0, 1 / 70, number) * way + rng.uniform(0.1, 0.35, number) * wave
    points = start[:, None] + np.cumsum(np.stack((np.cos(angle), np.sin(angle)), -1), 1) * step  # (n, s, 2)
    rest = np.where(way < length[:, None], 1 - taper * way / length[:, None], 0) * np.minimum(way / 4, 1)
    return points[rest > 0], (np.pi / 4 * step * (width[:, None] * rest) ** 2)[rest > 0]
