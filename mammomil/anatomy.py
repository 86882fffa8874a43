"""The normal breast of the phantom: outline, muscle, gland, strands, vessels, and what they do to X-rays.

Lengths are in millimetres, the chest wall is on the left. Figures are measurements on mini-MIAS and DDSM,
VICTRE's material tables and published means; each is named where it is used.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mammomil.noise import Grid, Key, band, curves, enlarge, field, look_up, power_law, splat

HEIGHT, WIDTH = 206.08, 134.4  # of the picture: 2944 x 1920 pixels of 0.07
GLAND, MUSCLE = 0.023, 0.035  # log signal per mm in place of fat (VICTRE's materials, 28 kVp, W/Rh)
# Share of women, reach from the chest wall in mm, dense share of the area and its deviation, thickness in mm
# (share of women: VICTRE; thickness: VICTRE's, raised in dense breasts towards the 59 mm mean of Yaffe 2009;
# dense share: mini-MIAS by BI-RADS class).
DENSITY = {
    "A": (0.1, 114, 0.043, 0.03, 60),
    "B": (0.4, 104, 0.193, 0.08, 57),
    "C": (0.4, 92, 0.404, 0.1, 50),
    "D": (0.1, 84, 0.623, 0.1, 43),
}
SMALL = 0.015  # share of very small (male) breasts, which show fewer regions than a model wants


class Breast(NamedTuple):
    """What both views of one breast share."""

    density: str
    reach: float  # chest wall to nipple in MLO
    dense: float  # dense share of the area
    thick: float  # compressed
    beta: float  # exponent of the texture's spectrum


class Outline(NamedTuple):
    """One view; radius and slope of the skin are tabled over the angle."""

    reach: float
    up: float
    down: float
    centre: float
    droop: float
    radius: Tensor
    slope: Tensor
    muscle: tuple[float, float, float]  # width at the top, height, bend


class Tissue(NamedTuple):
    """Normal tissue of one view.

    Attributes:
        skin: distance inside the skin in mm, negative outside.
        muscle: distance inside the edge of the muscle in mm, negative outside.
        signal: log signal, larger where less gets through.
        gland: share of gland in the thickness, 0 to 1.
        lumps: clustered lumps, zero mean and unit deviation.
        roll: share of the full thickness, 0 at the skin and 1 inside.
    """

    skin: Float[Tensor, "h w"]
    muscle: Float[Tensor, "h w"]
    signal: Float[Tensor, "h w"]
    gland: Float[Tensor, "h w"]
    lumps: Float[Tensor, "h w"]
    roll: Float[Tensor, "h w"]

    @property
    def breast(self) -> Bool[Tensor, "h w"]:
        """Where there is breast, muscle included."""
        return self.skin > 0


def draw_breast(rng: np.random.Generator) -> Breast:
    """Draw a woman's breasts; left and right then differ by a few per cent."""
    density = str(rng.choice(list(DENSITY), p=[row[0] for row in DENSITY.values()]))
    _, reach, dense, spread, thick = DENSITY[density]
    reach, thick = reach * np.exp(rng.normal(0, 0.17)), float(np.clip(rng.normal(thick, 8), 28, 80))
    dense = float(np.clip(rng.normal(dense, spread), 0.01, 0.8))
    return Breast(density, float(np.clip(reach, 62, 126)), dense, thick, float(rng.normal(3.1, 0.25)))


def draw_outline(rng: np.random.Generator, reach: float, mlo: bool) -> Outline:
    """Draw the outline of one view of a breast that reaches so far from the chest wall."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 4001)
    along, across = np.cos(angle).clip(1e-6), np.abs(np.sin(angle))
    small = reach < 50
    up, down = np.minimum(reach * rng.uniform(0.72, 0.95, 2), 97) * (1.9 if small else 1)
    power, droop, centre, muscle = rng.uniform(1.7, 2.1), rng.uniform(-0.06, 0.06), 103.0, (1e-3, 1e-3, 1.0)
    if mlo:  # hangs down from the armpit
        power, droop, down = power + 0.2, rng.uniform(0.05, 0.25), reach * rng.uniform(0.65, 0.8)
        centre = float(np.clip(206 - down - rng.uniform(8, 30) - reach * droop / 2, 80, 135))
        # Muscle: 29/50/67 % of the chest wall (5/50/95 percentiles), 19/38/58 % of the width on top.
        high = 206 * float(np.clip(rng.normal(0.49, 0.1), 0.3, 0.68))
        muscle = (reach * rng.uniform(0.28, 0.55), high, rng.uniform(0.6, 1.05))
    radius = ((along / reach) ** power + (across / np.where(angle < 0, up, down)) ** power) ** (-1 / power)
    if mlo and not small:
        base, top = reach * rng.uniform(0.8, 0.92), max(reach * rng.uniform(0.5, 0.75), muscle[0] + 8)
        tail = base / (along + across * (base - top) / centre)
        tail = tail * (1 - np.exp(-4 * angle.clip(max=0) ** 2))
        radius = (radius**8 + tail**8) ** (1 / 8)
    if small:
        muscle = (1e-3, 1e-3, 1.0)
    for k in range(2, 6):  # nobody is an ellipse
        radius = radius * (1 + rng.normal(0, 0.02 / k) * np.cos(2 * k * angle + rng.uniform(0, 6.3)) * along)
    slope = 1 / np.hypot(1, np.gradient(radius, angle) / radius)
    tables = (torch.tensor(table, dtype=torch.float32) for table in (radius, slope))
    return Outline(reach, float(up), float(down), centre, droop, *tables, muscle)


def edges(outline: Outline, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance in mm inside the skin and inside the edge of the muscle, negative outside (first order)."""
    width, height, bend = outline.muscle
    rest = 1 - y / height
    muscle = (width * rest.sign() * rest.abs() ** bend - x) * float(height / np.hypot(width, height))
    y = y - outline.centre - outline.droop * x
    at = ((torch.atan2(y, x.clamp(min=1e-3)) / torch.pi + 0.5) * 4000).round().long()
    radius, slope = outline.radius.to(x.device)[at], outline.slope.to(x.device)[at]
    nipple = 4 - torch.hypot(x - outline.reach + 1, y)
    return 1.5 * torch.logaddexp((radius - torch.hypot(x, y)) * slope / 1.5, nipple / 1.5), muscle


@lru_cache(maxsize=4)
def _blob_spectra(rows: int, columns: int, pixel: float, device: str, turns: int = 8) -> Tensor:
    """Spectra of one blob, exp(-2.1 (1.96 r / L)^0.5) (Bochud 1999), turned to `turns` angles."""
    fold = [torch.fft.fftfreq(n, 1 / (n * pixel), device=device) for n in (rows, columns)]
    y, x = fold[0][:, None], fold[1]
    blobs = []
    for turn in range(turns):
        c, s = np.cos(np.pi * turn / turns), np.sin(np.pi * turn / turns)
        u, v = (x * c + y * s) / 5.0, (y * c - x * s) / 2.0
        blobs.append(torch.exp(-2.1 * torch.hypot(u, v).sqrt() * 1.4))
    return torch.fft.rfft2(torch.stack(blobs))


def clustered_lumps(key: Key, outline: Outline, grid: Grid) -> Float[Tensor, "h w"]:
    """Clustered lumpy background (Bochud 1999): clusters of elongated blobs, here pointing to the nipple.

    Drawn on pixels of 1.12 mm, zero mean and unit deviation.
    """
    coarse = Grid(184, 120, 1.12, grid.device)
    rng = np.random.default_rng(key)
    clusters, blobs, turns = 420, 20, 8
    middle = rng.uniform(0, 1, (clusters, 1, 2)) * (WIDTH, HEIGHT)
    nipple = np.array([outline.reach + 10, outline.centre + outline.droop * outline.reach])
    towards = np.arctan2(*np.moveaxis(nipple - middle, -1, 0)[::-1]) + rng.normal(0, 0.35, (clusters, 1))
    points = middle + rng.normal(0, 5.0, (clusters, blobs, 2))
    turn = np.round(towards / np.pi * turns).astype(int) % turns + np.zeros((1, blobs), int)
    column, row = (points / coarse.pixel).astype(int).reshape(-1, 2).T
    index = (turn.ravel() * coarse.rows + row % coarse.rows) * coarse.columns + column % coarse.columns
    count = np.bincount(index, minlength=turns * coarse.rows * coarse.columns).astype(np.float32)
    count = torch.from_numpy(count).to(grid.device).view(turns, coarse.rows, coarse.columns)
    spectra = _blob_spectra(*coarse[:3], str(grid.device), turns)
    lumps = torch.fft.irfft2((torch.fft.rfft2(count) * spectra).sum(0), s=(coarse.rows, coarse.columns))
    return enlarge((lumps - lumps.mean()) / lumps.std(), grid)


def strands(key: Key, outline: Outline, clouds: Tensor, grid: Grid) -> Float[Tensor, "h w"]:
    """Fine curved lines that run towards the nipple and branch (ducts, ligaments), 0 to about 2.

    Lines are where a random field changes its sign; the field is read in coordinates around a point before
    the nipple, stretched along the way to it.
    """
    x, y = grid.x, grid.y
    dx = outline.reach + 25 - x
    dy = y - outline.centre - outline.droop * outline.reach
    angle, way = torch.atan2(dy, dx), torch.hypot(dx, dy)
    tile, total = Grid(192, 192, 0.6, grid.device), torch.zeros((), device=grid.device)
    layers = ((11.0, 3.5, 0.14), (20.0, 2.5, 0.09), (34.0, 1.8, 0.06))
    for layer, (wavelength, stretch, width) in enumerate(layers):
        waves = band((*key, layer), tile, wavelength)
        bend = clouds * (0.05 + 0.03 * layer)
        value = look_up(waves, angle * 0.55 + bend, way / 115.2 / stretch + 0.37 * layer)
        fade = clouds.roll(((layer + 1) * grid.rows // 4, (layer + 1) * grid.columns // 4), (0, 1))
        total = total + torch.exp(-0.5 * (value / width) ** 2) * torch.sigmoid(2 * fade)
    return total


def draw_tissue(key: Key, breast: Breast, outline: Outline, grid: Grid) -> Tissue:
    """Draw the normal tissue of one view."""
    x, y = grid.x, grid.y
    skin, muscle = edges(outline, x, y)
    inside, over = skin.clamp(min=0), torch.sigmoid(muscle / 1.5)
    thick = min(breast.thick, outline.reach)
    roll = (1 - (1 - 2 * inside / thick).clamp(min=0) ** 2).sqrt()  # the breast bulges between the plates
    coarse = Grid(184, 120, 1.12, grid.device)
    clouds = enlarge(field((*key, 1), coarse, lambda square: (square + 0.01**2) ** -1.0), grid)
    texture, lumps = power_law((*key, 0), grid, breast.beta), clustered_lumps((*key, 2), outline, grid)
    lines = strands((*key, 3), outline, clouds, grid)
    # Gland: a ragged cone behind the nipple, cut at the level that gives the dense share of the area.
    v = y - outline.centre - outline.droop * x
    v = v / torch.where(v < 0, outline.up, outline.down)
    zone = 0.38 * clouds + 0.13 * lumps + 0.2 * lines - (x / outline.reach - 0.58) ** 2 / 0.16 - v**2 / 0.3
    zone = zone - 2 * over - 1.5 * torch.exp(-inside / 6)
    every = slice(
        round(0.28 / grid.pixel - 0.5), None, round(0.56 / grid.pixel)
    )  # the same points at all scales
    part = zone[every, every][((skin > 0) & (muscle < 0))[every, every]]
    level = part.kthvalue(max(1, int((1 - breast.dense) * len(part)))).values
    dense = torch.sigmoid((zone - level) / 0.2)
    uneven = (1 + 0.17 * lumps + 0.22 * (lines - 0.6)).clamp(min=0.25)
    gland = (0.27 + 0.35 * breast.dense) * dense * uneven * roll
    gland = gland.clamp(max=0.95) * (1 - over)
    signal = 0.9 * roll + 0.12 * torch.exp(-inside)  # fat, skin
    signal = signal + GLAND * thick * gland + roll * (0.025 + 0.03 * dense * (1 - over)) * texture
    signal = signal + GLAND * (2.8 + 0.3 * dense) * roll * (1 - over) * lines
    # Muscle: thick and bright in the armpit, thin below, with fibres along its edge.
    width, height, _ = outline.muscle
    if height > 1:
        waves = band((*key, 4), Grid(96, 96, 1.2, grid.device), 12.0)
        fibres = look_up(waves, (x + y * width / height) / 115.2, y / 900)
        depth = 23 * (0.5 + 0.5 * (1 - y / height).clamp(min=0)) * (1 + 0.05 * fibres)
        signal = signal + MUSCLE * depth * over * roll
    return Tissue(skin, muscle, signal, gland, lumps, roll)


def draw_vessels(rng: np.random.Generator, outline: Outline, grid: Grid) -> Float[Tensor, "h w"]:
    """Blood vessels: a few long, even, winding lines -> thickness in mm."""
    number = int(rng.integers(1, 5))
    start = np.stack((rng.uniform(0.05, 0.4, number) * outline.reach, rng.uniform(-0.75, 0.5, number)), 1)
    start[:, 1] = outline.centre + start[:, 1] * np.where(start[:, 1] < 0, outline.up, outline.down)
    nipple = np.array([outline.reach * 0.8, outline.centre])
    heading = np.arctan2(*(nipple - start).T[::-1]) + rng.normal(0, 0.4, number)
    length, width = rng.uniform(0.3, 0.9, number) * outline.reach, rng.uniform(1.2, 2.8, number)
    return _lines(curves(rng, start, heading, length, width, taper=0.4), grid, 0.3)


def draw_fold(rng: np.random.Generator, outline: Outline, grid: Grid) -> Float[Tensor, "h w"]:
    """A fold of skin below the breast -> thickness in mm."""
    start = np.array([[0.0, outline.centre + outline.down * rng.uniform(0.6, 0.85)]])
    heading, length = rng.uniform(0.1, 0.6, 1), rng.uniform(15, 40, 1)
    return _lines(curves(rng, start, heading, length, np.array([rng.uniform(4, 7)])), grid, 0.8)


def _lines(drawn: tuple[np.ndarray, np.ndarray], grid: Grid, sigma: float) -> Float[Tensor, "h w"]:
    """Thickness of soft lines in mm; on pixels of 0.28 mm where the picture has finer ones."""
    coarse = Grid(736, 480, 0.28, grid.device) if grid.pixel < 0.28 else grid
    lines = splat(*drawn, coarse.x, coarse.y, coarse.pixel, sigma)
    return lines if coarse is grid else enlarge(lines, grid).clamp(min=0)
