"""Synthetic four-view mammography exams with exact truth.

A view is a sum of log signals (what X-rays lose on their way): normal tissue (`anatomy`), findings and
their look-alikes (`lesions`); then the detector's blur and noise, a vendor's tone curve and 12 bits.
Everything is in millimetres, so one seed shows the same breasts at every scale and on every device. Nothing
measured on phantoms holds for real screening.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt16
from PIL import Image, ImageDraw, ImageFont
from skimage.morphology import convex_hull_image
from torch import Tensor

from mammomil.anatomy import (
    SMALL,
    Tissue,
    draw_breast,
    draw_fold,
    draw_outline,
    draw_tissue,
    draw_vessels,
)
from mammomil.lesions import GLAND, KINDS, Lesion, draw_lesion, draw_lesions, place
from mammomil.noise import Grid, Key, blur, white

Scale = Literal["quick", "half", "full"]
SCALES: dict[str, tuple[int, int, float]] = {
    "quick": (368, 240, 0.56),
    "half": (1472, 960, 0.14),
    "full": (2944, 1920, 0.07),
}  # rows, columns, mm per pixel: 206 x 134 mm
MIX = (0.25, 0.25, 0.05)  # share of breasts with benign findings only, malignant only, both
PIXEL_NOISE = 0.02  # of the signal, in a pixel of 0.07 mm behind fat


class Finding(NamedTuple):
    """One lesion in one view.

    `box` (xyxy on pixel edges) is tight around `mask`: the pixels a mass adds signal to, or the convex hull
    of a group of calcifications. `lesion` is the same number in CC and MLO.
    """

    finding: str  # benign | malignant
    kind: str  # mass | calcification | distortion | asymmetry
    box: tuple[float, float, float, float]
    mask: Bool[np.ndarray, "h w"]
    descriptor: str
    size_mm: float
    lesion: int


class View(NamedTuple):
    """One image as a file stores it: 12 bits, air exactly 0, chest wall on the right in right breasts.

    Attributes:
        laterality: L | R.
        view: CC | MLO.
        pixels: brighter is denser; labels and tape lie outside the breast.
        breast: muscle included.
        pectoral: the muscle, empty on CC.
        gland: share of gland in the thickness, 0 to 1: the density map.
        findings: what shows in this view.
    """

    laterality: str
    view: str
    pixels: UInt16[np.ndarray, "h w"]
    breast: Bool[np.ndarray, "h w"]
    pectoral: Bool[np.ndarray, "h w"]
    gland: Float32[np.ndarray, "h w"]
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


class _Machine(NamedTuple):
    """How one hospital's pictures look."""

    level: float  # log signal of the middle grey
    width: float  # of the tone curve
    even: float  # share of the thinner rim that the software makes up for
    sharp: float  # blur in mm
    grain: float  # noise, relative to a good detector
    label: bool
    tape: bool


def _draw_machine(rng: np.random.Generator) -> _Machine:
    film = rng.random() < 0.4
    return _Machine(
        level=rng.uniform(0.8, 1.15),
        width=rng.uniform(1.5, 2.2) if film else rng.uniform(1.9, 2.6),
        even=0.0 if film else rng.uniform(0, 0.8),
        sharp=0.12 if film else 0.08,
        grain=rng.uniform(1.0, 2.0) if film else rng.uniform(0.7, 1.2),
        label=bool(rng.random() < 0.35),
        tape=bool(rng.random() < 0.1),
    )


def render_exam(
    seed: int,
    scale: Scale = "quick",
    conspicuity: float = 1.0,
    device: str = "cpu",
    mix: tuple[float, float, float] = MIX,
    lesions: bool = True,
    crowd: int = 0,
) -> Exam:
    """Draw one exam of four views.

    Args:
        seed: 0 or larger; the same seed shows the same breasts at every scale and on every device.
        scale: `quick` (368 x 240 pixels of 0.56 mm), `half` (1472 x 960 of 0.14 mm) or `full` (2944 x 1920
            of 0.07 mm).
        conspicuity: factor on the contrast of findings and look-alikes: 1 is physics, 0.5 subtle, 3 trivial.
        device: where tensors are computed.
        mix: probability per breast of benign findings only, malignant only, and both.
        lesions: False leaves out the labelled findings and changes nothing else, look-alikes included.
        crowd: this many more findings in every breast: unlike any woman's, but a model that learns from
            small fields of view sees more lesions in less time.

    Returns:
        The exam; brighter is denser.
    """
    rng, grid = np.random.default_rng([seed, 0]), Grid(*SCALES[scale], device)
    woman, machine, small = draw_breast(rng), _draw_machine(rng), rng.random() < SMALL
    views, categories = [], dict.fromkeys("LR", "1")
    for side, laterality in enumerate("LR"):
        rng = np.random.default_rng([seed, 1, side])
        reach = float(rng.uniform(17.5, 20)) if small else woman.reach * rng.uniform(0.97, 1.03)
        outlines = [draw_outline(rng, reach * 0.94, mlo=False), draw_outline(rng, reach, mlo=True)]
        drawn, category = ([], "1") if small else draw_lesions(rng, mix, crowd)
        if lesions or not any(lesion.finding for lesion in drawn):
            categories[laterality] = category
        placed = place(rng, outlines, drawn)
        for number, outline in enumerate(outlines):
            key = (seed, 2, side, number)
            tissue = draw_tissue(key, woman, outline, grid)
            extras = np.random.default_rng([*key, 9])
            over = GLAND * draw_vessels(extras, outline, grid)
            if number == 1 and extras.random() < 0.25:
                over = over + GLAND * draw_fold(extras, outline, grid)
            tissue = tissue._replace(signal=tissue.signal + over * tissue.roll)
            spots = [spot[number] for spot in placed]
            shown = [lesion for lesion in drawn if lesions or not lesion.finding]
            where = [spot for lesion, spot in zip(drawn, spots, strict=True) if lesions or not lesion.finding]
            signal, found = _add(tissue, shown, where, number, conspicuity, grid)
            pixels = _expose(signal, tissue, machine, key, grid)
            breast = tissue.breast
            arrays = (pixels * breast, breast, breast & (tissue.muscle > 0), tissue.gland * breast)
            flip = slice(None, None, -1 if laterality == "R" else 1)
            pixels, breast, pectoral, gland = (array.cpu().numpy()[:, flip].copy() for array in arrays)
            pixels = pixels.astype(np.uint16)
            if laterality == "R":
                found = [_mirrored(finding) for finding in found]
            name = ("CC", "MLO")[number]
            _stick(pixels, breast, laterality, name, machine, grid.pixel)
            views.append(View(laterality, name, pixels, breast, pectoral, gland, tuple(found)))
    return Exam(tuple(views), woman.density, categories, seed)


def _add(
    tissue: Tissue, lesions: list[Lesion], spots: list[list[float]], view: int, conspicuity: float, grid: Grid
) -> tuple[Tensor, list[Finding]]:
    """Add lesions to normal tissue -> log signal, and the truth."""
    signal, breast, found = tissue.signal.clone(), tissue.breast, []
    for number, (lesion, spot) in enumerate(zip(lesions, spots, strict=True), 1):
        if not lesion.views[view]:
            continue
        window, extra = draw_lesion(lesion, spot, view, grid.x, grid.y, grid.pixel, tissue.lumps)
        extra = extra * breast[window]
        # A mass takes the place of fat and of gland; only the fat makes contrast.
        signal[window] += conspicuity * extra * (1 - tissue.gland[window] if lesion.is_mass else 1)
        if not lesion.finding or not (extra > 0).any():
            continue
        part = (extra > 0).cpu().numpy()
        mask = np.zeros((grid.rows, grid.columns), bool)
        mask[window] = part if lesion.is_mass else convex_hull_image(part)
        kind = KINDS[lesion.name]
        found.append(Finding(lesion.finding, kind, _box(mask), mask, lesion.name, lesion.size, number))
    return signal, found


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    down, along = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(along[0]), float(down[0]), float(along[-1] + 1), float(down[-1] + 1)


def _mirrored(finding: Finding) -> Finding:
    mask = finding.mask[:, ::-1].copy()
    return finding._replace(mask=mask, box=_box(mask))


def _expose(signal: Tensor, tissue: Tissue, machine: _Machine, key: Key, grid: Grid) -> Tensor:
    """Blur, noise, tone curve -> 1 to 4095."""
    if machine.sharp > 0.4 * grid.pixel:
        signal = blur(signal, machine.sharp / grid.pixel)  # far below a quick pixel
    # Fewer photons where more is absorbed; a larger pixel counts more of them.
    noise = machine.grain * PIXEL_NOISE * 0.07 / grid.pixel * torch.exp((signal - 1) / 2)
    signal = signal + noise * white((*key, 5), grid)
    signal = signal + 0.9 * machine.even * (1 - tissue.roll) * (1 - torch.exp(-tissue.skin.clamp(min=0) / 4))
    zero = 1 / (1 + np.exp(4 * machine.level / machine.width))
    tone = (torch.sigmoid(4 * (signal - machine.level) / machine.width) - zero) / (1 - zero)
    return (4095 * tone).round().clamp(1, 4095)


def _stick(
    pixels: np.ndarray, breast: np.ndarray, laterality: str, view: str, machine: _Machine, pixel: float
) -> None:
    """Put a label and tape on the air, in place; nothing where the breast comes near."""
    rows, columns = pixels.shape
    rng = np.random.default_rng([len(view), ord(laterality), int(1000 * machine.level)])

    def stick(top: float, left: float, patch: np.ndarray) -> None:
        """Patch with its corner at (top, left) mm from the upper edge and from the side opposite the wall."""
        h, w = patch.shape
        row, column = round(top / pixel), round(left / pixel)
        column = column if laterality == "R" else columns - column - w
        near = round(6 / pixel)
        around = breast[max(row - near, 0) : row + h + near, max(column - near, 0) : column + w + near]
        if not around.any() and row + h <= rows and column >= 0:
            pixels[row : row + h, column : column + w] = patch

    if machine.label:
        font = ImageFont.load_default(100)
        left, top, right, bottom = font.getbbox(f"{laterality}{view}")
        text = Image.new("L", (right - left + 40, bottom - top + 40), 60)
        ImageDraw.Draw(text).text((20 - left, 20 - top), f"{laterality}{view}", fill=255, font=font)
        height = 9 / pixel  # of the label, 9 mm
        text = text.resize((round(height * text.width / text.height), round(height)))
        stick(rng.uniform(5, 12), rng.uniform(3, 8), np.asarray(text).astype(np.uint16) * 16)
    if machine.tape:
        patch = np.full((round(60 / pixel), round(4 / pixel)), 3600, np.uint16)
        stick(rng.uniform(60, 130), 1.0, patch)
