"""From the pixels of a file to the canvas of a network: orient, mask the breast, place, scale, standardise.

Everything is measured in the pixels; tags about the side are never used. Masks are computed on a copy of at
most 512 pixels a side, so that thresholds and lengths do not depend on the pixel size or the bit depth.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from mammomil.dicom import Mammogram
from mammomil.files import InputError
from mammomil.pectoral import PectoralConfig, pectoral_mask

__all__ = [
    "PectoralConfig",
    "Prepared",
    "PreprocessConfig",
    "breast_mask",
    "invert_affine",
    "orient",
    "pectoral_mask",
    "prepare",
    "standardise",
    "transform_boxes",
]

Array = np.ndarray
Resize = Literal["none", "fit", "spacing"]

MASK_SIDE = 512  # longest side of the copy on which masks are computed, in pixels; lengths below are in these
OPENING = 6  # half the side of the opening that cuts off labels, tape and the frame of the film
AIR_MARGIN = 21  # nearer than this to the bright core of the breast, dark pixels may be its skin
SKIN_LEVEL = 0.03  # the skin line lies this share of the breast's median grey above the air
AIR_SPREAD = 3.0  # and at least this many times the spread of the air above it
FLAT = 0.08  # air is flatter than fat: its spread stays below this share of the breast's median grey
KEEP_MARGIN = 5  # what is kept around the mask when the background is removed, so that no skin is lost
MIN_BREAST = 0.02  # a smaller share of the image is no breast


@dataclass(frozen=True)
class PreprocessConfig:
    """Which canvas an image is put on, and how."""

    height: int = 2944
    """Rows of the canvas."""
    width: int = 1920
    """Columns of the canvas."""
    resize: Resize = "none"
    """none: native pixels, cropped or padded (the papers). fit: the breast fills the canvas.
    spacing: resampled to `spacing_mm`, and smaller still if the breast would not fit; fit where the
    pixel size is unknown."""
    spacing_mm: float = 0.07
    """Side of a canvas pixel in mm when `resize` is spacing."""
    remove_background: bool = True
    """Set everything outside the breast to 0: film labels tell the view, the side and the hospital."""

    def __post_init__(self):
        if self.height < 32 or self.width < 32:
            raise InputError(
                f"canvas of {self.height} x {self.width} pixels: give height and width of at least 32."
            )
        if self.resize not in get_args(Resize):
            raise InputError(f"resize={self.resize!r}: choose one of {', '.join(get_args(Resize))}.")
        if not 0 < self.spacing_mm < math.inf:
            raise InputError(f"spacing_mm={self.spacing_mm}: give the side of a pixel in mm, such as 0.07.")

    @classmethod
    def quick(cls) -> "PreprocessConfig":
        """The small canvas of the live chapters: 368 x 240 pixels of 0.56 mm."""
        return cls(height=368, width=240, resize="spacing", spacing_mm=0.56)


class Prepared(NamedTuple):
    """One mammogram on its canvas.

    Attributes:
        image: standardised grey values (checklist G10).
        breast: mask of the breast on the canvas.
        affine: [[a, b, c], [d, e, f]] from canvas xy to xy in the file, on pixel edges; b and d are 0.
        flipped: whether the canvas is the mirror image of the file.
    """

    image: Float32[Array, "H W"]
    breast: Bool[Array, "H W"]
    affine: Float64[Array, "2 3"]
    flipped: bool


def orient(pixels: Float[Array, "h w"]) -> tuple[Float[Array, "h w"], bool]:
    """Mirror an image so that the chest wall is left, judged by the outline of the breast.

    Args:
        pixels: grey values >= 0, brighter means denser.

    Returns:
        The image, mirrored or not, and whether it was; unchanged where no breast is found.
    """
    flipped = _chest_wall_right(_small_mask(pixels))
    return (np.ascontiguousarray(pixels[:, ::-1]), True) if flipped else (pixels, False)


def breast_mask(pixels: Float[Array, "h w"]) -> Bool[Array, "h w"]:
    """Find the breast, muscle and skin included; labels, tape, frame and air are left out.

    A first Otsu threshold finds the bright core. What lies away from it and is not exactly 0 (padding) is
    film without breast, which gives the grey level of the air and its spread; the skin line is drawn just
    above. The largest component after an opening is the breast.

    Args:
        pixels: grey values >= 0 of any scale, brighter means denser; either side.

    Returns:
        Mask of the breast without holes; all False when there is none.
    """
    return _enlarge(_small_mask(pixels), pixels.shape)


def standardise(image: Float[Array, "h w"]) -> Float32[Array, "h w"]:
    """Subtract the mean and divide by the population standard deviation, floored at 1e-5 (checklist G10).

    Args:
        image: the whole canvas, padding included.

    Returns:
        Mean 0 and standard deviation 1; zeros for a constant image.
    """
    mean = image.mean(dtype=np.float64)
    deviation = max(float(image.std(dtype=np.float64)), 1e-5)
    return ((image - mean) / deviation).astype(np.float32)


def prepare(mammogram: Mammogram, config: PreprocessConfig) -> Prepared:
    """Put a mammogram on the canvas of a network, chest wall left, and standardise it.

    The window follows the published GMIC preprocessing in simple rules: the chest wall is at its left side,
    unless the breast is too wide, when the nipple side is kept; an MLO view is kept down to the lowest row of
    the breast, any other or unknown view is centred on the rows of the breast; the window is shifted into the
    image where it can be, and filled with 0 where it cannot.

    Args:
        mammogram: what `dicom.read_image` returned.
        config: the canvas.

    Returns:
        The canvas and the way back to the pixels of the file.

    Raises:
        InputError: no breast was found; the caller adds the name of the file.
    """
    pixels = mammogram.pixels
    small = _small_mask(pixels)
    if not small.any():
        raise InputError(
            "no breast found: no bright region of a breast's size stands out from the background. "
            "Check that the image is a mammogram and that denser tissue is brighter."
        )
    flipped = _chest_wall_right(small)
    if flipped:
        pixels, small = pixels[:, ::-1], small[:, ::-1]
    breast = _enlarge(small, pixels.shape)
    box = _bounding_box(breast)
    scale = _scale(box, mammogram.spacing_mm, config)
    left, top = _window(box, pixels.shape, mammogram.view, config.height * scale, config.width * scale)
    if scale == 1:
        left, top = float(round(left)), float(round(top))

    if config.remove_background:
        pixels = np.where(_enlarge(_grow(small, KEEP_MARGIN), pixels.shape), pixels, np.float32(0))
    canvas = _resample(pixels, left, top, scale, config)
    mask = _resample(breast.astype(np.float32), left, top, scale, config) >= 0.5
    affine = np.array([[scale, 0, left], [0, scale, top]], dtype=np.float64)
    if flipped:
        affine[0] = -scale, 0, pixels.shape[1] - left
    return Prepared(standardise(canvas), mask, affine, flipped)


def transform_boxes(boxes: Shaped[Array, "n 4"], affine: Float[Array, "2 3"]) -> Float64[Array, "n 4"]:
    """Move xyxy boxes through an axis-aligned affine map such as `Prepared.affine`.

    Args:
        boxes: xyxy on pixel edges.
        affine: 2 x 3 matrix without rotation or shear.

    Returns:
        The boxes in the new frame, ordered again (x0 <= x1) where the map mirrors.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)  # (n, corner, xy)
    moved = corners @ affine[:, :2].T + affine[:, 2]
    return np.sort(moved, axis=1).reshape(-1, 4)


def invert_affine(affine: Float[Array, "2 3"]) -> Float64[Array, "2 3"]:
    """Return the map back: from xy in the file to xy on the canvas.

    Args:
        affine: 2 x 3 matrix of an invertible map.

    Returns:
        The 2 x 3 matrix of its inverse.
    """
    linear = np.linalg.inv(np.asarray(affine[:, :2], dtype=np.float64))
    return np.column_stack([linear, -linear @ affine[:, 2]])


def _small_mask(pixels: Array) -> Array:
    """Mask of the breast on the reduced copy; all False when there is none."""
    small = _reduce(pixels)
    nothing = np.zeros(small.shape, dtype=bool)
    if not small.max() > small.min():
        return nothing
    # The first threshold has to split air from breast, not fat from dense tissue or an implant: hence the cap
    # and the square root. Rows and columns of padding would make foggy film look bright.
    x0, y0, x1, y1 = _bounding_box(small > 0)
    capped = np.minimum(small, np.percentile(small[small > 0], 90))
    bright = small > threshold_otsu(np.sqrt(capped[y0:y1, x0:x1])) ** 2
    core = _largest(_open(bright))
    if not core.any():
        return nothing
    level = np.median(small[core])
    film = ~_grow(core, AIR_MARGIN) & ~bright & (small > 0)
    air = spread = 0.0
    if film.mean() > 0.03:
        low, middle = np.percentile(small[film], [25, 50])  # low, as some of it is skin
        if middle - low <= FLAT * level:  # else air is exactly 0, and this is dark fat
            air, spread = low, middle - low
    threshold = air + max(SKIN_LEVEL * level, AIR_SPREAD * spread)
    mask = ndimage.binary_fill_holes(_largest(_open(small > threshold)))
    return mask if mask.mean() >= MIN_BREAST else nothing


def _reduce(pixels: Array) -> Array:
    """Average down to `MASK_SIDE`; smaller images stay as they are."""
    factor = MASK_SIDE / max(pixels.shape)
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    if factor < 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image)


def _enlarge(mask: Array, shape: tuple[int, ...]) -> Array:
    """Scale a mask of the reduced copy up to the image, with a smooth outline."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)) >= 128


def _grow(mask: Array, margin: int) -> Array:
    """Widen a mask by `margin` pixels of a full-size reduced copy, with a square: separable, hence fast."""
    side = 2 * round(margin * max(mask.shape) / MASK_SIDE) + 1
    return ndimage.maximum_filter(mask.astype(np.uint8), side, mode="constant") > 0


def _open(mask: Array) -> Array:
    """Remove what is narrower than a square; beyond the border there is nothing, so that frames stay thin."""
    side = 2 * round(OPENING * max(mask.shape) / MASK_SIDE) + 1
    eroded = ndimage.minimum_filter(mask.astype(np.uint8), side, mode="constant")
    return ndimage.maximum_filter(eroded, side, mode="constant") > 0


def _largest(mask: Array) -> Array:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _bounding_box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _chest_wall_right(mask: Array) -> bool:
    """Whether the straight side of the breast is right: there its columns are full, at the nipple not."""
    if not mask.any():
        return False
    x0, _, x1, _ = _bounding_box(mask)
    strip = max(1, (x1 - x0) // 10)
    return bool(mask[:, x1 - strip : x1].sum() > mask[:, x0 : x0 + strip].sum())


def _scale(box: tuple[int, int, int, int], spacing_mm: float, config: PreprocessConfig) -> float:
    """Side of a canvas pixel in pixels of the image."""
    if config.resize == "none":
        return 1.0
    fit = max((box[2] - box[0]) / config.width, (box[3] - box[1]) / config.height)
    if config.resize == "spacing" and spacing_mm > 0:  # False for NaN
        return max(config.spacing_mm / spacing_mm, fit)
    return fit


def _window(
    box: tuple[int, int, int, int], shape: tuple[int, ...], view: str, height: float, width: float
) -> tuple[float, float]:
    """Left and top of a window of this size, in pixels of the oriented image."""
    x0, y0, x1, y1 = box
    left = float(x0) if x1 - x0 <= width else x1 - width
    spare = shape[0] - height  # rows of the image beyond the window; negative where it has to be padded
    if view == "MLO":
        return left, min(max(y1 - height, 0.0), max(spare, 0.0))
    return left, min(max((y0 + y1 - height) / 2, min(spare, 0.0)), max(spare, 0.0))


def _resample(pixels: Array, left: float, top: float, scale: float, config: PreprocessConfig) -> Array:
    """Cut the window out and scale it, antialiased; canvas pixels that reach past the image are 0."""
    spans = []
    for start, source, target in (
        (top, pixels.shape[0], config.height),
        (left, pixels.shape[1], config.width),
    ):
        # A canvas pixel whose outer edge misses the border by rounding alone still counts.
        first = max(0, math.ceil(-start / scale - 1e-6))
        last = min(target, math.floor((source - start) / scale + 1e-6))
        begin, end = max(start + first * scale, 0), min(start + last * scale, source)
        spans.append((slice(first, last), begin, end))
    (rows, y0, y1), (columns, x0, x1) = spans
    canvas = np.zeros((config.height, config.width), dtype=np.float32)
    if scale == 1:
        canvas[rows, columns] = pixels[int(y0) : int(y1), int(x0) : int(x1)]
    else:
        size = (columns.stop - columns.start, rows.stop - rows.start)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        canvas[rows, columns] = np.asarray(
            image.resize(size, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
        )
    return canvas
