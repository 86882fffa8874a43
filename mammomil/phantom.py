"""Synthetic four-view mammography exams with exact lesion masks: a simple generator, honest about its limits.

Everything is defined in millimetres and added up in log signal (what X-rays lose on their way), then blurred,
made noisy and mapped to 12 bits, so one seed shows the same breasts at both scales. Inside this module the
chest wall is on the left; right breasts are mirrored at the end. Figures are measurements on mini-MIAS and
DDSM, VICTRE's material tables and BI-RADS. Nothing measured on phantoms holds for real screening.
"""

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt16
from PIL import Image
from skimage.morphology import convex_hull_image
from torch import Tensor
from tqdm.auto import tqdm

from mammomil.files import InputError, atomic_path, read_json, write_json

Scale = Literal["quick", "full"]
Grid = tuple[int, int, float]
SCALES: dict[str, Grid] = {
    "quick": (368, 240, 0.56),
    "full": (2944, 1920, 0.07),
}  # rows, columns, mm per pixel: 206 x 134 mm
GLAND, MUSCLE, CALCIUM = 0.023, 0.035, 0.68  # log signal per mm in place of fat (28 kVp, W/Rh)
# Share of women, reach from the chest wall in mm, dense share of the area, its deviation, thickness in mm.
DENSITY = {"A": (0.1, 114, 0.043, 0.03, 60), "B": (0.4, 104, 0.193, 0.08, 57)}
DENSITY |= {"C": (0.4, 92, 0.404, 0.1, 50), "D": (0.1, 84, 0.623, 0.1, 43)}
# Finding, BI-RADS; roughness of the outline, elongation, exponent of the profile and its extent in radii,
# spicules and their length in diameters. Islands and singles are distractors: normal, but like lesions.
MASSES = {
    "circumscribed": ("benign", "2", 0.06, 1.2, 0.5, 1.0, 0, 0.0),
    "indistinct": ("malignant", "4C", 0.25, 1.2, 1.2, 1.3, 14, 0.5),
    "spiculated": ("malignant", "5", 0.3, 1.2, 0.8, 1.15, 30, 1.1),
    "island": ("", "", 0.15, 2.0, 2.0, 1.5, 0, 0.0),
}
# Finding, BI-RADS; fewest and most specks, median diameter in mm, its log deviation, elongation, flatness of
# the group and its median size in mm.
SPECKS = {
    "coarse": ("benign", "2", 3, 7, 1.1, 0.3, 1.15, 0.8, 9.0),
    "fine pleomorphic": ("malignant", "4B", 12, 40, 0.38, 0.4, 3.0, 0.5, 13.0),
    "single": ("", "", 1, 1, 1.0, 0.3, 1.15, 1.0, 0.1),
}
IMAGE_COLUMNS = (
    "image_id", "exam_id", "patient_id", "laterality", "view", "path", "benign", "malignant", "birads",
    "density", "spacing_mm", "height", "width", "source", "split",
)  # fmt: skip
FINDING_COLUMNS = ("image_id", "finding_id", "finding", "kind", "x0", "y0", "x1", "y1", "mask", "descriptor")
FINDING_COLUMNS += ("size_mm",)
CARD = """# Phantom mammograms: synthetic, not patients

{exams} exams of four views (CC and MLO of both breasts), drawn by `mammomil/phantom.py` with

    {command}

Licence: CC0 1.0 (public domain). No picture or model of a patient went into them.

- `index.csv`: one row per image; `findings.csv`: one row per lesion and view, boxes xyxy on pixel edges.
- `images/`: 12-bit values in 16-bit PNG, scale `{scale}`, air exactly 0; right breasts
  have the chest wall on the right.
- `masks/`: 1-bit PNG; the pixels a mass adds signal to, or the convex hull of a group of calcifications.
- An image is benign or malignant when such a lesion shows in it; splits are by patient.
- Contrast of lesions and look-alikes: {conspicuity:g} times the physical one (1 is subtle, 3 plain to see).
- Seed {seed}: the same command writes the same bytes with the same library versions on the same machine.

How: log signal of fat, gland (power-law texture), strands, muscle and lesions, blur, Poisson-like noise, tone
curve. Every breast also holds unlabelled islands of gland and single calcifications that look like lesions.

Limits: the class follows from the shape alone, real lesions overlap; each lesion shows in both views; no
distortions, asymmetries, folds, implants, scars, vessels, labels or scanner artefacts. Both views share the
lesions' distance from the nipple but not their texture. Nothing measured here holds for real screening.
"""


class Finding(NamedTuple):
    """One lesion in one view.

    `box` (xyxy on pixel edges) is tight around `mask`: the pixels a mass adds signal to, or the convex hull
    of a group of calcifications. `lesion` is the same number in CC and MLO.
    """

    finding: str  # benign | malignant
    kind: str  # mass | calcification
    box: tuple[float, float, float, float]
    mask: Bool[np.ndarray, "h w"]
    descriptor: str
    size_mm: float
    lesion: int


class View(NamedTuple):
    """One image as a file stores it: 12 bits, air exactly 0, chest wall on the right in right breasts."""

    laterality: str
    view: str
    pixels: UInt16[np.ndarray, "h w"]
    breast: Bool[np.ndarray, "h w"]
    findings: tuple[Finding, ...]

    @property
    def label(self) -> tuple[int, int]:
        """(benign, malignant): 1 where a finding of that class shows in this view."""
        found = {finding.finding for finding in self.findings}
        return int("benign" in found), int("malignant" in found)


class Exam(NamedTuple):
    """Views in the order L-CC, L-MLO, R-CC, R-MLO, density A-D, BI-RADS category per laterality."""

    views: tuple[View, ...]
    density: str
    birads: dict[str, str]
    seed: int


class _Lesion(NamedTuple):
    name: str
    size: float
    seed: int


class _Shape(NamedTuple):
    """Outline of one view in mm; radius and slope of the skin are tabled over the angle."""

    reach: float
    up: float
    down: float
    centre: float
    droop: float
    radius: Tensor
    slope: Tensor
    muscle: tuple[float, float, float]  # width at the top, height, bend


def _shape(rng: np.random.Generator, reach: float, mlo: bool) -> _Shape:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 4001)
    along, across = np.cos(angle).clip(1e-6), np.abs(np.sin(angle))
    up, down = np.minimum(reach * rng.uniform(0.72, 0.95, 2), 97)
    power, droop, centre, muscle = rng.uniform(1.7, 2.1), rng.uniform(-0.06, 0.06), 103.0, (1e-3, 1e-3, 1.0)
    if mlo:  # hangs down from the armpit
        power, droop, down = power + 0.2, rng.uniform(0.05, 0.25), reach * rng.uniform(0.65, 0.8)
        centre = float(np.clip(206 - down - rng.uniform(8, 30) - reach * droop / 2, 80, 135))
        # Muscle: 29/50/67 % of the chest wall (5/50/95 percentiles), 19/38/58 % of the width on top.
        high = 206 * float(np.clip(rng.normal(0.49, 0.1), 0.3, 0.68))
        muscle = (reach * rng.uniform(0.28, 0.55), high, rng.uniform(0.8, 1.1))
    radius = ((along / reach) ** power + (across / np.where(angle < 0, up, down)) ** power) ** (-1 / power)
    if mlo:
        base, top = reach * rng.uniform(0.8, 0.92), max(reach * rng.uniform(0.5, 0.75), muscle[0] + 8)
        tail = base / (along + across * (base - top) / centre)
        tail = tail * (1 - np.exp(-4 * angle.clip(max=0) ** 2))
        radius = (radius**8 + tail**8) ** (1 / 8)
    slope = 1 / np.hypot(1, np.gradient(radius, angle) / radius)
    tables = (torch.tensor(table, dtype=torch.float32) for table in (radius, slope))
    return _Shape(reach, float(up), float(down), centre, droop, *tables, muscle)


def _edges(shape: _Shape, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance in mm inside the skin and inside the edge of the muscle, negative outside (first order)."""
    width, height, bend = shape.muscle
    rest = 1 - y / height
    muscle = (width * rest.sign() * rest.abs() ** bend - x) * float(height / np.hypot(width, height))
    y = y - shape.centre - shape.droop * x
    at = ((torch.atan2(y, x.clamp(min=1e-3)) / torch.pi + 0.5) * 4000).round().long()
    radius, slope = shape.radius[at], shape.slope[at]
    nipple = 4 - torch.hypot(x - shape.reach + 1, y)
    return 1.5 * torch.logaddexp((radius - torch.hypot(x, y)) * slope / 1.5, nipple / 1.5), muscle


def _power_law(rng: np.random.Generator, grid: Grid, beta: float, device: torch.device) -> Tensor:
    """Random field with spectrum 1 / f^beta and unit deviation within 25.6 mm -> (h, w).

    Drawn in the frequency domain, the frequencies that quick images can show first: both scales share them.
    """
    rows, columns, pixel = grid
    noise = rng.standard_normal((2, min(rows, 368), min(columns, 240)), np.float32)
    if rows > 368:
        coarse, noise = noise, rng.standard_normal((2, rows, columns), np.float32)
        top, left = (rows - 368) // 2, (columns - 240) // 2
        noise[:, top : top + 368, left : left + 240] = np.fft.fftshift(coarse, (1, 2))
        noise = np.fft.ifftshift(noise, (1, 2))
    noise = torch.from_numpy(noise).to(device)
    fy = torch.fft.fftfreq(rows, pixel, device=device)[:, None]
    fx = torch.fft.fftfreq(columns, pixel, device=device)
    square = fy**2 + fx**2
    gain = (square + 0.012**2) ** (-beta / 4)  # flat above 80 mm: breasts have no such waves
    gain = gain / (gain * ((square > 25.6**-2) & (square < 0.2**2))).square().sum().sqrt()
    # A pixel averages over its area; its centre lies half a pixel inside.
    ky, kx = (torch.sinc(f * pixel) * torch.exp(1j * torch.pi * pixel * f) for f in (fy, fx))
    return torch.fft.ifft2(torch.complex(noise[0] * gain, noise[1] * gain) * ky * kx, norm="forward").real


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    tap = torch.arange(-np.ceil(3 * sigma), np.ceil(3 * sigma) + 1, device=image.device)
    tap = torch.softmax(-0.5 * (tap / sigma) ** 2, 0).float()
    image = F.pad(image[None, None], (len(tap) // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(image, tap[:, None][None, None]), tap[None, None, None])[0, 0]


def _splat(
    points: np.ndarray, volume: np.ndarray, x: Tensor, y: Tensor, pixel: float, sigma: float
) -> Tensor:
    """Spread volumes (mm3) at points (n, 2) in mm over the pixels at x, y -> thickness in mm (h, w)."""
    at = torch.from_numpy(points).to(x) - torch.stack((x[0, 0], y[0, 0]))
    mass, at = torch.from_numpy(volume).to(x) / pixel**2, at / pixel
    rows, columns = len(y) + 3, x.shape[1] + 3  # a margin that catches what lies outside
    column, row = at.T + 1
    left, top = column.floor().clamp(0, columns - 2), row.floor().clamp(0, rows - 2)
    image = torch.zeros(rows * columns, device=x.device)
    for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (1 - (column - left - i).abs()).clamp(min=0) * (1 - (row - top - j).abs()).clamp(min=0)
        image.index_add_(0, ((top + j) * columns + left + i).long(), mass * weight)
    return _blur(image.view(rows, columns)[1:-2, 1:-2], max(sigma / pixel, 0.4))


def _curves(rng, start: np.ndarray, heading: np.ndarray, length: np.ndarray, width: np.ndarray):
    """Winding tapered lines -> points (n, 2) in mm and the volume in mm3 at each."""
    number, step = (len(start), 1), 0.25
    way = np.arange(0, length.max(), step, np.float32)[None]  # (1, s)
    wave = np.sin(way / rng.uniform(4, 9, number) + rng.uniform(0, 6.3, number))
    angle = heading[:, None] + rng.normal(0, 1 / 70, number) * way + rng.uniform(0.1, 0.35, number) * wave
    points = start[:, None] + np.cumsum(np.stack((np.cos(angle), np.sin(angle)), -1), 1) * step  # (n, s, 2)
    taper = np.clip(1 - way / length[:, None], 0, 1) * np.minimum(way / 4, 1)
    return points[taper > 0], (np.pi / 4 * step * (width[:, None] * taper) ** 2)[taper > 0]


def _lesions(rng: np.random.Generator, mix: tuple[float, float, float]) -> tuple[list[_Lesion], str]:
    """What one breast holds, findings before distractors, and its BI-RADS category."""
    kind = rng.choice(4, p=(*mix, 1 - sum(mix)))  # benign, malignant, both, none
    names, birads = [], "1"
    if kind in (0, 2):
        names.append(str(rng.choice(["circumscribed", "coarse"], p=[0.65, 0.35])))
        birads = str(rng.choice(["2", "3"], p=[0.85, 0.15]))
    if kind in (1, 2):
        names.append(str(rng.choice(["spiculated", "indistinct", "fine pleomorphic"], p=[0.4, 0.25, 0.35])))
        birads = (MASSES | SPECKS)[names[-1]][1]
    names += ["island"] * rng.integers(2, 7) + ["single"] * rng.integers(0, 5)
    sizes = [(SPECKS[name][-1] if name in SPECKS else 14) * np.exp(rng.normal(0, 0.4)) for name in names]
    seeds = rng.integers(2**31, size=len(names)).tolist()
    sizes = np.clip(sizes, 5, 35).tolist()
    return [_Lesion(*lesion) for lesion in zip(names, sizes, seeds, strict=True)], birads


def _place(rng: np.random.Generator, shapes: list[_Shape], lesions: list[_Lesion]) -> list:
    """Centre per lesion and view in mm: equally far behind the nipple, well inside, findings apart."""
    size = torch.tensor([lesion.size for lesion in lesions])[:, None]
    behind = shapes[0].reach * torch.from_numpy(rng.uniform(0.12, 0.9, (len(lesions), 200))).float()
    spots, room = [], torch.full_like(behind, 1e3)
    for shape in shapes:
        x, side = shape.reach - behind, torch.from_numpy(rng.uniform(-0.8, 0.8, behind.shape)).float()
        y = shape.centre + shape.droop * x + side * torch.where(side < 0, shape.up, shape.down)
        skin, muscle = _edges(shape, x, y)
        edges = torch.stack((skin - 3, -muscle, x, y - 4, 202 - y)).amin(0)
        room = torch.minimum(room, edges - size / 2)
        spots.append(torch.stack((x, y), -1))
    spots = torch.stack(spots, 1)  # (lesions, views, 200, 2)
    placed = torch.zeros(len(lesions), len(shapes), 2)
    for i, lesion in enumerate(lesions):
        for other in range(i if lesion.name not in ("island", "single") else 0):
            gap = torch.linalg.vector_norm(spots[i] - placed[other, :, None], dim=-1).amin(0)
            room[i] = torch.minimum(room[i], gap - 0.75 * (size[i] + size[other]))
        placed[i] = spots[i, :, room[i].clamp(max=0).argmax()]  # the first that fits, else what nearly does
    return placed.tolist()


def _draw(lesion: _Lesion, at: list[float], mlo: bool, x: Tensor, y: Tensor, pixel: float):
    """Log signal of one lesion -> (row and column slices of its window, signal (h, w))."""
    rng = np.random.default_rng([lesion.seed, int(mlo)])
    reach = lesion.size * (1.5 if lesion.name in MASSES else 0.7) + 3
    window = tuple(slice(max(0, int((c - reach) / pixel)), int((c + reach) / pixel) + 1) for c in at[::-1])
    x, y, turn = x[:, window[1]], y[window[0]], rng.uniform(0, np.pi)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    if lesion.name in SPECKS:
        *_, least, most, median, sd, long, flat, _ = SPECKS[lesion.name]
        number = int(rng.integers(least, most + 1))
        spread = rng.normal(0, 0.25, (number, 2)).clip(-0.5, 0.5) * lesion.size * (number > 1)
        spread = spread * (1, flat) @ np.array([[c, s], [-s, c]])
        diameter, long = median * np.exp(rng.normal(0, sd, number)), rng.uniform(1, long, number)
        tilt, ball = turn + rng.normal(0, 0.6, number), rng.standard_normal((number, 100, 3))
        ball *= rng.uniform(0, 1, (number, 100, 1)) ** (1 / 3) / np.linalg.norm(ball, axis=2, keepdims=True)
        u, v = ball[..., 0] * (diameter * long / 2)[:, None], ball[..., 1] * diameter[:, None] / 2
        c, s = np.cos(tilt)[:, None], np.sin(tilt)[:, None]
        points = np.stack((u * c - v * s, u * s + v * c), -1) + spread[:, None] + at
        volume = np.repeat(np.pi / 6 * diameter**3 * long / 100, 100)
        calcium = _splat(points.reshape(-1, 2), volume, x, y, pixel, 0.08)
        return window, CALCIUM * (calcium - 0.01).clamp(min=0)
    *_, rough, long, power, edge, spicules, length = MASSES[lesion.name]
    long = rng.uniform(1, long) ** 0.5
    u, v = ((x - at[0]) * c + (y - at[1]) * s) / long, ((y - at[1]) * c - (x - at[0]) * s) * long
    angle, outline = torch.atan2(v, u), 1.0
    for k in range(2, 9):  # radial harmonics
        size, phase = float(rng.normal(0, rough / k)), float(rng.uniform(0, 2 * np.pi))
        outline = outline + size * torch.cos(k * angle + phase)
    q = torch.hypot(u, v) / (0.5 * lesion.size * edge * outline.clamp(min=0.4))
    tissue = 0.9 * lesion.size * (1 - q**2).clamp(min=0) ** power
    if spicules:
        heading = rng.uniform(0, 2 * np.pi, round(spicules * rng.uniform(0.7, 1.3)))
        start = np.array(at) + 0.35 * lesion.size * np.stack((np.cos(heading), np.sin(heading)), 1)
        length = lesion.size * rng.uniform(0.3, length, len(heading))
        curves = _curves(rng, start, heading, length, rng.uniform(1, 2.2, len(heading)))
        tissue = tissue + 4 * _splat(*curves, x, y, pixel, 0.3)
    return window, GLAND * (tissue - 0.15).clamp(min=0)  # cut so that the mask ends where the signal does


def _tissue(key: list[int], shape: _Shape, dense: float, thick: float, beta: float, x, y, grid):
    """Normal breast -> skin distance in mm, log signal, share of gland in the thickness, each (h, w)."""
    pixel, device = grid[2], x.device
    skin, muscle = _edges(shape, x, y)
    inside, over = skin.clamp(min=0), torch.sigmoid(muscle / 1.5)
    roll = (1 - (1 - 2 * inside / thick).clamp(min=0) ** 2).sqrt()  # the breast bulges between the plates
    texture = _power_law(np.random.default_rng([*key, 0]), grid, beta, device)
    clouds = _power_law(np.random.default_rng([*key, 1]), (92, 60, 2.24), 4.0, device)
    clouds = F.interpolate(clouds[None, None], grid[:2], mode="bicubic")[0, 0]
    # Gland: a ragged zone behind the nipple, cut at the level that gives the dense share of the area.
    v = y - shape.centre - shape.droop * x
    v = v / torch.where(v < 0, shape.up, shape.down)
    zone = 0.28 * clouds - (x / shape.reach - 0.56) ** 2 / 0.25 - v**2 / 0.56
    zone = zone - 2 * over - 1.2 * torch.exp(-inside / 5)
    every = slice(round(0.28 / pixel - 0.5), None, round(0.56 / pixel))  # the same points at both scales
    part = zone[every, every][((skin > 0) & (muscle < 0))[every, every]]
    level = part.kthvalue(max(1, int((1 - dense) * len(part)))).values
    gland = (0.35 + 0.35 * dense) * torch.sigmoid((zone - level) / 0.3) * roll
    rng = np.random.default_rng([*key, 2])
    nipple, number = np.array([shape.reach, shape.centre + shape.droop * shape.reach]), rng.integers(90, 150)
    start = np.stack((rng.uniform(0.05, 0.97, number), rng.normal(0, 0.4, number)), 1)
    start *= (shape.reach, shape.up)
    start[:, 1] += shape.centre + shape.droop * start[:, 0]
    heading = np.arctan2(*(nipple - start).T[::-1]) + rng.normal(0, 0.5, number)
    width = 0.9 * np.exp(rng.normal(0, 0.25, number))
    strands = _curves(rng, start, heading, rng.uniform(15, 70, number), width)
    signal = 0.9 * roll + 0.12 * torch.exp(-inside) + GLAND * thick * gland  # fat, skin, gland
    signal = signal + roll * (0.035 + 0.07 * gland) * texture
    signal = signal + GLAND * 4.5 * roll * (1 - over) * _splat(*strands, x, y, pixel, 0.3)
    return skin, signal + MUSCLE * 22 * over, gland


def render_exam(
    seed: int,
    scale: Scale = "quick",
    conspicuity: float = 1.0,
    device: str = "cpu",
    mix: tuple[float, float, float] = (0.25, 0.25, 0.05),
    lesions: bool = True,
) -> Exam:
    """Draw one exam of four views.

    Args:
        seed: 0 or larger; the same seed shows the same breasts at both scales and on every device.
        scale: `quick` (368 x 240 pixels of 0.56 mm) or `full` (2944 x 1920 pixels of 0.07 mm).
        conspicuity: factor on the contrast of lesions and distractors; 1 is physics, 2 to 3 plain to see.
        device: where tensors are computed; random numbers always come from the CPU.
        mix: probability per breast of benign findings only, malignant only, and both.
        lesions: False leaves out the labelled findings and changes nothing else, distractors included.

    Returns:
        The exam; brighter is denser.
    """
    rng, (rows, columns, pixel) = np.random.default_rng([seed, 0]), SCALES[scale]
    density = str(rng.choice(list(DENSITY), p=[row[0] for row in DENSITY.values()]))
    _, reach, dense, spread, thick = DENSITY[density]
    reach, thick = reach * np.exp(rng.normal(0, 0.17)), float(np.clip(rng.normal(thick, 8), 28, 80))
    dense, beta = float(np.clip(rng.normal(dense, spread), 0.01, 0.8)), float(rng.normal(2.9, 0.35))
    level, width = rng.uniform(0.85, 1.15), rng.uniform(1.9, 2.5)  # of the tone curve, DICOM's SIGMOID
    x = ((torch.arange(columns, device=device) + 0.5) * pixel)[None]
    y = ((torch.arange(rows, device=device) + 0.5) * pixel)[:, None]
    views, categories = [], dict.fromkeys("LR", "1")
    for side, laterality in enumerate("LR"):
        rng = np.random.default_rng([seed, 1, side])
        own = float(np.clip(reach * rng.uniform(0.97, 1.03), 62, 126))
        shapes = [_shape(rng, own * 0.94, mlo=False), _shape(rng, own, mlo=True)]
        drawn, birads = _lesions(rng, mix)
        placed = _place(rng, shapes, drawn)
        flip = slice(None, None, -1 if laterality == "R" else 1)
        for v, shape in enumerate(shapes):
            key, findings = [seed, 2, side, v], []
            shape = shape._replace(radius=shape.radius.to(device), slope=shape.slope.to(device))
            skin, signal, gland = _tissue(key, shape, dense, thick, beta, x, y, SCALES[scale])
            breast = skin > 0
            for number, (lesion, at) in enumerate(zip(drawn, placed, strict=True), 1):
                finding = (MASSES | SPECKS)[lesion.name][0]
                if finding and not lesions:
                    continue
                window, extra = _draw(lesion, at[v], v == 1, x, y, pixel)
                extra, mass = extra * breast[window], lesion.name in MASSES
                # A mass takes the place of fat and of gland; only the fat makes contrast.
                signal[window] += conspicuity * extra * (1 - gland[window] if mass else 1)
                if finding:
                    mask, categories[laterality] = np.zeros((rows, columns), bool), birads
                    mask[window] = (extra > 0).cpu() if mass else convex_hull_image((extra > 0).cpu().numpy())
                    mask = mask[:, flip].copy()
                    down, along = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                    box = (float(along[0]), float(down[0]), float(along[-1] + 1), float(down[-1] + 1))
                    kind = "mass" if mass else "calcification"
                    findings.append(Finding(finding, kind, box, mask, lesion.name, lesion.size, number))
            if pixel < 0.3:
                signal = _blur(signal, 0.1 / pixel)  # the detector's; far below a quick pixel
            grain = np.random.default_rng([*key, 3]).standard_normal((rows, columns), np.float32)
            # Fewer photons where more is absorbed: 2 % in a pixel of 0.07 mm behind fat.
            noise = 0.02 * (0.07 / pixel) * torch.exp((signal - 1) / 2) * torch.from_numpy(grain).to(device)
            zero = 1 / (1 + np.exp(4 * level / width))
            tone = (torch.sigmoid(4 * (signal + noise - level) / width) - zero) / (1 - zero)
            pixels = ((4095 * tone).round().clamp(1, 4095) * breast).cpu().numpy().astype(np.uint16)
            pixels, breast = pixels[:, flip].copy(), breast.cpu().numpy()[:, flip].copy()
            views.append(View(laterality, ("CC", "MLO")[v], pixels, breast, tuple(findings)))
    return Exam(tuple(views), density, categories, seed)


def write_phantoms(
    out: str | Path,
    exams: int,
    scale: Scale = "quick",
    seed: int = 0,
    conspicuity: float = 1.0,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Write exams as an index folder: index.csv, findings.csv, images/, masks/ and a README.

    A run that was interrupted goes on where it stopped: exams already on disk are not drawn again. The same
    arguments write the same bytes on the same machine and library versions.

    Args:
        out: the folder.
        exams: number of exams, 1 to 100000; exam i is `render_exam(100000 * seed + i)`.
        scale: see `render_exam`.
        seed: 0 or larger.
        conspicuity: see `render_exam`.
        progress: show a bar.
        force: replace the phantoms that `out` holds.

    Returns:
        The path of index.csv.

    Raises:
        InputError: an argument is out of range, or `out` holds a finished set or an unfinished other one.
    """
    out, limits = Path(out), {"exams": (exams, 1, 100_000), "seed": (seed, 0, 10**9)}
    for name, (value, low, high) in (limits | {"conspicuity": (conspicuity, 0.1, 10)}).items():
        if not low <= value <= high:
            raise InputError(f"{name} {value} cannot be used: give {low} to {high}.")
    if scale not in SCALES:
        raise InputError(f"scale {scale!r} is not known: give quick or full.")
    settings, work = {"scale": scale, "seed": seed, "conspicuity": float(conspicuity)}, out / "unfinished"
    if force:
        shutil.rmtree(work, ignore_errors=True)
        for old in (out / "index.csv", *out.glob("images/phantom-*.png"), *out.glob("masks/phantom-*.png")):
            old.unlink(missing_ok=True)
    elif (work / "settings.json").exists():
        if (other := read_json(work / "settings.json")) != settings:
            raise InputError(f"{out}: holds an unfinished run with {other}. Finish it, or use --force.")
    elif there := [name for name in ("index.csv", "findings.csv", "README.md") if (out / name).exists()]:
        raise InputError(f"{out / there[0]}: exists. Replace it with --force, or choose another --out.")
    write_json(work / "settings.json", settings)
    images, findings = [], []
    for number in tqdm(range(exams), desc="phantoms", unit="exam", disable=not progress):
        done = work / f"{number}.json"  # written after the exam's images
        if not done.exists():
            write_json(
                done, _write_exam(out, render_exam(100_000 * seed + number, scale, conspicuity), scale)
            )
        for table, rows in zip((images, findings), read_json(done), strict=True):
            table += rows
    # Whole patients, 60/20/20, dealt after sorting by label so that each split gets its share of each.
    table = pd.DataFrame(images)
    worst = table.assign(worst=table.benign + 2 * table.malignant).groupby("patient_id").worst.max()
    dealt = worst.sample(frac=1, random_state=seed % 2**32).sort_values(kind="stable").index
    deal = {patient: ("train", "val", "train", "test", "train")[i % 5] for i, patient in enumerate(dealt)}
    table["split"] = table.patient_id.map(deal)
    command = f"mammomil phantom --exams {exams} --scale {scale} --seed {seed} --out {out.name}"
    command += f" --conspicuity {conspicuity:g}" if conspicuity != 1 else ""
    texts = {"README.md": CARD.format(command=command, exams=exams, **settings)}
    texts["findings.csv"] = pd.DataFrame(findings, columns=FINDING_COLUMNS).to_csv(index=False)
    texts["index.csv"] = table[list(IMAGE_COLUMNS)].to_csv(index=False)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    shutil.rmtree(work)
    return out / "index.csv"


def _write_exam(out: Path, exam: Exam, scale: Scale) -> tuple[list[dict], list[dict]]:
    """Write the PNG files of one exam; give its rows of index.csv and of findings.csv."""
    images, findings, exam_id = [], [], f"phantom-{exam.seed:09d}"
    height, width, spacing = SCALES[scale]
    for view in exam.views:
        image_id = f"{exam_id}_{view.laterality}-{view.view}"
        files = {f"images/{image_id}.png": view.pixels}
        row = (image_id, exam_id, exam_id, view.laterality, view.view, *files, *view.label)
        row += (exam.birads[view.laterality], exam.density, spacing, height, width, "phantom", "")
        images.append(dict(zip(IMAGE_COLUMNS, row, strict=True)))
        for f in view.findings:
            mask = f"masks/{image_id}_{f.lesion}.png"
            files[mask] = f.mask
            row = (image_id, f.lesion, f.finding, f.kind, *f.box, mask, f.descriptor, round(f.size_mm, 1))
            findings.append(dict(zip(FINDING_COLUMNS, row, strict=True)))
        for name, pixels in files.items():
            with atomic_path(out / name) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=9 if scale == "quick" else 4)
    return images, findings
