"""What the phantom's breasts hold: findings by BI-RADS descriptor, and things that look like findings.

A finding's class is drawn from its descriptor's malignancy rate (CBIS-DDSM); what else differs between the
classes of one descriptor is measured too: malignant lesions are larger (mini-MIAS) and absorb more (Johns and
Yaffe 1987). Lengths are in millimetres; thickness is that of gland in place of fat.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mammomil.anatomy import GLAND, HEIGHT, Outline, edges
from mammomil.noise import curves, splat

CALCIUM = 0.68  # log signal per mm in place of fat


class Mass(NamedTuple):
    """How a mass looks: share among findings, malignancy rate, median diameter where benign and malignant."""

    share: float
    rate: float
    size: tuple[float, float]
    rough: float = 0.06  # relative deviation of the outline
    lobes: float = 0.0  # relative depth of lobulation
    long: float = 1.3  # largest ratio of length and width
    power: float = 0.5  # of the profile: 0.5 is a ball, more fades towards the edge
    core: float = 1.0  # thickness, relative to the diameter
    spicules: int = 0
    reach: float = 0.0  # of the spicules, in diameters


class Specks(NamedTuple):
    """How calcifications look; size is that of their group, where benign and malignant."""

    share: float
    rate: float
    size: tuple[float, float]
    number: tuple[int, int]
    diameter: float  # median
    spread: float = 0.3  # log deviation of the diameters
    long: float = 1.15  # largest ratio of length and width of a speck
    flat: float = 0.7  # ratio of width and length of the group
    hollow: bool = False


# Rates: margins and morphologies of CBIS-DDSM; asymmetry from BI-RADS' low suspicion. Sizes: mini-MIAS.
MASSES = {
    "circumscribed": Mass(0.20, 0.11, (15, 15)),
    "lobulated": Mass(0.09, 0.33, (16, 18), lobes=0.16, long=1.5),
    "ill-defined": Mass(0.14, 0.60, (14, 20), rough=0.17, power=1.1),
    "spiculated": Mass(0.19, 0.88, (13, 22), rough=0.15, power=0.9, spicules=32, reach=1.2),
    "distortion": Mass(0.05, 0.94, (16, 24), rough=0.3, power=1.5, core=0.12, spicules=30, reach=0.9),
    "asymmetry": Mass(0.04, 0.15, (26, 28), rough=0.3, long=2.0, power=1.3, core=0.45),
}
CALCIFICATIONS = {
    "round": Specks(0.05, 0.23, (4.4, 12), (5, 15), 0.4, 0.15),
    "coarse": Specks(0.05, 0.0, (7, 7), (1, 4), 2.0, 0.35, 1.4),
    "rings": Specks(0.04, 0.0, (6, 6), (1, 4), 1.6, 0.3, hollow=True),
    "vascular": Specks(0.03, 0.0, (26, 26), (60, 120), 0.4, 0.2, 2.0, 0.0),
    "amorphous": Specks(0.03, 0.36, (6, 14), (15, 40), 0.2, 0.2),
    "pleomorphic": Specks(0.05, 0.53, (5, 15), (8, 40), 0.4, 0.45, 2.5),
    "linear": Specks(0.04, 0.77, (9, 20), (12, 40), 0.35, 0.4, 4.0, 0.2),
}
# Distractors: nobody labels them.
NORMAL = {
    "island": Mass(0, 0, (15, 15), rough=0.3, long=2.2, power=1.3, core=0.55),
    "node": Mass(0, 0, (9, 9), rough=0.05, long=1.8, core=0.8),
    "single": Specks(0, 0, (1, 1), (1, 1), 0.8),
}
LOOKS: dict[str, Mass | Specks] = {**MASSES, **CALCIFICATIONS, **NORMAL}
KINDS = dict.fromkeys(MASSES, "mass") | dict.fromkeys(CALCIFICATIONS, "calcification")
KINDS |= {"distortion": "distortion", "asymmetry": "asymmetry"}
ONE_VIEW = "asymmetry"  # BI-RADS: seen in one projection only
CATEGORIES = ("1", "2", "3", "4A", "4B", "4C", "5")
Kind = Literal["", "benign", "malignant"]


class Lesion(NamedTuple):
    """A finding or a distractor (`finding` is empty), the same in both views."""

    name: str
    finding: Kind
    size: float
    density: float  # relative to gland
    seed: int
    views: tuple[bool, bool]  # whether CC and MLO show it

    @property
    def is_mass(self) -> bool:
        """Whether it is soft tissue, not calcium."""
        return isinstance(LOOKS[self.name], Mass)


def draw_descriptor(rng: np.random.Generator, finding: Kind) -> str:
    """Draw the descriptor of a finding of a known class: share times malignancy rate (Bayes)."""
    names = list(MASSES | CALCIFICATIONS)
    weights = [
        LOOKS[n].share * (LOOKS[n].rate if finding == "malignant" else 1 - LOOKS[n].rate) for n in names
    ]
    return str(rng.choice(names, p=np.divide(weights, sum(weights))))


def draw_category(rng: np.random.Generator, descriptors: list[str]) -> str:
    """BI-RADS category a reader might give: from the descriptors alone, not from the truth."""
    if not descriptors:
        return str(rng.choice(["1", "2"], p=[0.8, 0.2]))  # nodes and single calcifications are a 2
    worst = max(LOOKS[name].rate for name in descriptors)
    if worst == 0:
        return "2"
    odds = np.log(worst / (1 - worst)) + rng.normal(0, 0.7)
    return CATEGORIES[2 + int(np.searchsorted([0.02, 0.1, 0.5, 0.95], 1 / (1 + np.exp(-odds))))]


def draw_lesions(
    rng: np.random.Generator, mix: tuple[float, float, float], crowd: int = 0
) -> tuple[list[Lesion], str]:
    """Draw what one breast holds, findings before distractors, and its BI-RADS category.

    Args:
        rng: draws.
        mix: probability of benign findings only, malignant only, and both.
        crowd: further findings, as likely benign as malignant.
    """
    kind = rng.choice(4, p=(*mix, 1 - sum(mix)))
    findings: list[Kind] = ["benign"] * int(kind in (0, 2)) + ["malignant"] * int(kind in (1, 2))
    # One finding in seven has a companion of its class (CBIS-DDSM: one lesion in 85 to 96 % of images).
    findings += [finding for finding in findings if rng.random() < 0.12]
    findings += [("benign", "malignant")[c] for c in rng.integers(2, size=crowd)]
    names = [draw_descriptor(rng, finding) for finding in findings]
    category = draw_category(rng, names)
    names += ["island"] * rng.integers(1, 5) + ["single"] * rng.integers(0, 4)
    names += ["node"] * rng.choice(3, p=(0.5, 0.35, 0.15))
    findings += [""] * (len(names) - len(findings))
    lesions = []
    for name, finding in zip(names, findings, strict=True):
        size = LOOKS[name].size[int(finding == "malignant")] * np.exp(rng.normal(0, 0.38))
        low = 4.0 if isinstance(LOOKS[name], Mass) else 2.0
        density = rng.normal({"": 1.0, "benign": 0.9, "malignant": 1.12}[finding], 0.1)
        seen = (True, True)
        if name == ONE_VIEW:
            seen = (True, False) if rng.random() < 0.5 else (False, True)
        elif name == "node":
            seen = (False, True)  # the armpit is outside CC
        lesions.append(
            Lesion(
                name, finding, float(np.clip(size, low, 45)), float(density), int(rng.integers(2**31)), seen
            )
        )
    return lesions, category


def place(
    rng: np.random.Generator, outlines: list[Outline], lesions: list[Lesion]
) -> list[list[list[float]]]:
    """Choose the centre of each lesion in CC and MLO: one place in the breast, seen from two sides.

    A place is a distance behind the nipple, kept in both views, and two coordinates across: CC shows the
    lateral one, MLO the one that runs 45 degrees between up and lateral.

    Returns:
        xy in mm per lesion and view.
    """
    if not lesions:
        return []
    tries = 200
    size = torch.tensor([lesion.size for lesion in lesions])[:, None]
    behind = outlines[0].reach * torch.from_numpy(rng.uniform(0.1, 0.92, (len(lesions), tries))).float()
    lateral, high = torch.from_numpy(rng.uniform(-0.85, 0.85, (2, len(lesions), tries))).float()
    node = torch.tensor([lesion.name == "node" for lesion in lesions])[:, None]
    lateral, high = torch.where(node, -0.6, lateral), torch.where(node, -0.9 + 0.4 * high, high)
    spots, room = [], torch.full_like(behind, 1e3)
    for number, (outline, side) in enumerate(
        zip(outlines, (lateral, (high + lateral) / 2**0.5), strict=True)
    ):
        x = outline.reach - behind
        y = outline.centre + outline.droop * x + side * torch.where(side < 0, outline.up, outline.down)
        skin, muscle = edges(outline, x, y)
        inner = torch.where(node, muscle.abs() * -1 + 12, -muscle)  # nodes lie along the muscle's edge
        limits = torch.stack((skin - 3, inner, x, y - 4, HEIGHT - 4 - y)).amin(0) - size / 2
        shown = torch.tensor([lesion.views[number] for lesion in lesions])[:, None]
        room = torch.where(shown, torch.minimum(room, limits), room)
        spots.append(torch.stack((x, y), -1))
    spots = torch.stack(spots, 1)  # (lesions, views, tries, 2)
    placed = torch.zeros(len(lesions), len(outlines), 2)
    for i, lesion in enumerate(lesions):
        for other in range(i if lesion.finding else 0):
            gap = torch.linalg.vector_norm(spots[i] - placed[other, :, None], dim=-1).amin(0)
            room[i] = torch.minimum(room[i], gap - 0.75 * (size[i] + size[other]))
        placed[i] = spots[i, :, room[i].clamp(max=0).argmax()]  # the first that fits, else what nearly does
    return placed.tolist()


def draw_lesion(
    lesion: Lesion, at: list[float], view: int, x: Tensor, y: Tensor, pixel: float, lumps: Tensor
) -> tuple[tuple[slice, slice], Tensor]:
    """Draw one lesion in one view.

    Args:
        lesion: what.
        at: where, xy in mm.
        view: 0 for CC, 1 for MLO: the same lesion from another side.
        x: centres of the picture's columns (1, w).
        y: centres of its rows (h, 1).
        pixel: side of a pixel in mm.
        lumps: of the tissue (h, w); islands are made of them.

    Returns:
        Its window (slices of rows and columns) and the log signal it adds there, 0 outside the lesion. A mass
        still has to be weakened where it takes the place of gland.
    """
    look = LOOKS[lesion.name]
    same, rng = np.random.default_rng([lesion.seed, 7]), np.random.default_rng([lesion.seed, view])
    reach = lesion.size * (1.6 if isinstance(look, Mass) else 0.8) + 3
    window = tuple(slice(max(0, int((c - reach) / pixel)), int((c + reach) / pixel) + 1) for c in at[::-1])
    x, y, turn = x[:, window[1]], y[window[0]], float(rng.uniform(0, np.pi))
    if isinstance(look, Specks):
        return window, _specks(look, lesion, at, turn, rng, x, y, pixel)
    long = float(same.uniform(1, look.long)) ** 0.5
    c, s = float(np.cos(turn)), float(np.sin(turn))
    u, v = ((x - at[0]) * c + (y - at[1]) * s) / long, ((y - at[1]) * c - (x - at[0]) * s) * long
    angle, outline = torch.atan2(v, u), 1.0
    lobe = int(same.integers(3, 6))
    for k in range(2, 11):  # radial harmonics
        size, phase = float(same.normal(0, look.rough / k**0.8)), float(rng.uniform(0, 2 * np.pi))
        size += look.lobes * (k == lobe)
        outline = outline + size * torch.cos(k * angle + phase)
    extent = 1 + 0.3 * (look.power > 1)  # what fades out reaches further
    q = torch.hypot(u, v) / (0.5 * lesion.size * extent * outline.clamp(min=0.4))
    tissue = 0.9 * look.core * lesion.size * (1 - q**2).clamp(min=0) ** look.power
    if lesion.name == "node":  # fat in its hilum
        hole = torch.hypot(u - 0.12 * lesion.size, v - 0.1 * lesion.size) / (0.26 * lesion.size)
        tissue = tissue - 0.6 * lesion.size * (1 - hole**2).clamp(min=0) ** 0.5
    elif lesion.name in ("island", "asymmetry"):
        tissue = tissue * (1 + 0.45 * lumps[window]).clamp(min=0.15)
    if look.spicules:
        number = round(look.spicules * same.uniform(0.6, 1.4))
        heading = rng.uniform(0, 2 * np.pi, number)
        start = np.array(at) + 0.3 * lesion.size * np.stack((np.cos(heading), np.sin(heading)), 1)
        length = lesion.size * rng.uniform(0.25, look.reach, number)
        width = (0.7 + 0.025 * lesion.size) * rng.uniform(0.7, 1.4, number)
        lines = splat(*curves(rng, start, heading, length, width), x, y, pixel, 0.25)
        tissue = tissue + 3.5 * lines
    return window, lesion.density * GLAND * (tissue - 0.15).clamp(
        min=0
    )  # the mask ends where the signal does


def _specks(
    look: Specks, lesion: Lesion, at: list[float], turn: float, rng, x: Tensor, y: Tensor, pixel: float
):
    """Log signal of a group of calcifications."""
    number = int(rng.integers(look.number[0], look.number[1] + 1))
    diameter = (look.diameter * np.exp(rng.normal(0, look.spread, number))).clip(0.1, 4)
    long, tilt = rng.uniform(1, look.long, number), rng.uniform(0, np.pi, number)
    spread = rng.normal(0, 0.25, (number, 2)).clip(-0.5, 0.5) * lesion.size * (number > 1)
    if lesion.name in ("linear", "vascular"):  # along a duct, or the two walls of a vessel
        way = rng.uniform(-0.5, 0.5, number)
        across = 0.03 * rng.normal(0, 1, number) * lesion.size
        if lesion.name == "vascular":
            across = 1.1 * rng.choice([-1, 1], number) + rng.normal(0, 0.1, number)
        bend = rng.uniform(0.1, 0.35) * lesion.size * (way**2 - 0.08)
        spread = np.stack((way * lesion.size, across + bend), 1)
        tilt = turn + rng.normal(0, 0.3, number)
    else:
        spread = spread * (1, look.flat)
    c, s = np.cos(turn), np.sin(turn)
    spread = spread @ np.array([[c, s], [-s, c]])
    grains = 100
    ball = rng.standard_normal((number, grains, 3))
    inner = 0.55 if look.hollow else 0.0
    ball *= rng.uniform(inner, 1, (number, grains, 1)) ** (1 / 3) / np.linalg.norm(
        ball, axis=2, keepdims=True
    )
    if look.hollow:
        ball[..., :2] /= np.linalg.norm(ball[..., :2], axis=2, keepdims=True) + 0.15
    u, v = ball[..., 0] * (diameter * long / 2)[:, None], ball[..., 1] * diameter[:, None] / 2
    c, s = np.cos(tilt)[:, None], np.sin(tilt)[:, None]
    points = np.stack((u * c - v * s, u * s + v * c), -1) + spread[:, None] + at
    volume = np.repeat(np.pi / 6 * diameter**3 * long / grains * (0.5 if look.hollow else 1), grains)
    calcium = splat(points.reshape(-1, 2), volume, x, y, pixel, 0.08)
    return CALCIUM * (calcium - 0.01).clamp(min=0)
