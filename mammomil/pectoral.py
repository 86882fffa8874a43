"""The pectoral muscle of an MLO view: a straight first guess, an edge grown along it, a cubic curve.

The order follows Chen et al. 2015 (doi 10.1007/s40846-015-0043-6): a first boundary at the upper chest-wall
corner, a seed on it, candidates grown from the seed, a cubic through them. Its inner numbers are not public,
and one step is replaced: a first boundary by threshold and morphology of the image weighted at the corner
often followed dense tissue in trials. Here it is the line with the best edge, as in a Hough transform. That
line is also what remains when the curve is not credible.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

Array = np.ndarray


@dataclass(frozen=True)
class PectoralConfig:
    """What counts as the edge of a muscle. Lengths are fractions of the height of the breast."""

    rows: int = 256
    """Rows of the reduced copy in which the muscle is looked for."""
    smoothing: float = 0.01
    """Standard deviation of the Gaussian whose derivative measures edges."""
    edge: float = 0.01
    """Fall of grey per reduced row, as a fraction of the bright end of the breast, that counts half.

    Edges saturate above it, so that a long weak edge wins over a short strong one of dense tissue.
    """
    skin: float = 0.03
    """Edges nearer than this to the outline of the breast are the skin, not a muscle."""
    min_slope: float = 0.9
    """Smallest height over width of the muscle; flatter edges are folds of the armpit."""
    max_slope: float = 8.0
    """Largest height over width of the muscle; steeper edges are the rim of the film."""
    min_length: float = 0.025
    """Length at which a line has half the weight of a long one."""
    band: float = 0.03
    """Largest distance of the curve from the line."""
    step: float = 0.012
    """How far the curve may move sideways from one row to the next."""
    min_score: float = 0.33
    """Smallest mean saturated edge along the line, between -1 and 1; below it there is no muscle."""
    max_area: float = 0.45
    """Largest part of the breast that is credible as muscle."""


def pectoral_mask(
    pixels: Float[Array, "h w"], breast: Bool[Array, "h w"], config: PectoralConfig | None = None
) -> Bool[Array, "h w"]:
    """Find the pectoral muscle of an MLO view; never call it on a CC view, which shows none in most women.

    Args:
        pixels: image with the chest wall left (`preprocess.orient`), brighter means denser.
        breast: mask of the breast, muscle included (`preprocess.breast_mask`).
        config: what counts as an edge; None means the defaults.

    Returns:
        Mask of the muscle inside the breast; all False when no credible muscle is found.
    """
    config = config or PectoralConfig()
    empty = np.zeros_like(breast)
    if not breast.any():
        return empty
    rows, columns = np.flatnonzero(breast.any(1)), np.flatnonzero(breast.any(0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    scale = (bottom - top) / config.rows
    width = round((right - left) / scale)
    if width < 16:
        return empty
    box, size = (left, top, right, bottom), (width, config.rows)
    small = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BOX, box=box))
    inside = (
        np.asarray(Image.fromarray(breast.astype(np.float32)).resize(size, Image.Resampling.BOX, box=box))
        >= 0.5
    )
    bright = np.percentile(small[inside], 95) if inside.any() else 0.0
    if bright <= 0:
        return empty

    falls, usable = _falling_edges(small / bright, inside, config)
    line = _best_line(falls, usable, inside, config)
    if line is None:
        return empty
    straight = line[0] * (1 - np.arange(config.rows) / line[1])
    # The horizontal grid of the curve in pixels of the source: centres of rows, edges of columns.
    centres = (np.arange(bottom - top) + 0.5) / scale - 0.5
    for curve in (_grown_curve(falls, usable, line, config), straight):
        if curve is None:
            continue
        beyond = np.polyfit(np.arange(config.rows)[-8:], curve[-8:], 1)  # the last half row
        limit = np.where(
            centres > config.rows - 1,
            np.polyval(beyond, centres),
            np.interp(centres, np.arange(config.rows), curve),
        )
        muscle = empty.copy()
        muscle[top:bottom] = np.arange(breast.shape[1]) + 0.5 < left + (limit[:, None] + 0.5) * scale
        muscle &= breast
        if 0 < muscle.sum() <= config.max_area * breast.sum():
            return muscle
    return empty


def _falling_edges(image: Array, inside: Array, config: PectoralConfig) -> tuple[tuple[Array, Array], Array]:
    """Fall of grey to the right and downward, and where it can be an edge of the muscle."""
    sigma = config.smoothing * config.rows
    right = -ndimage.gaussian_filter(image, sigma, order=(0, 1), mode="nearest")
    down = -ndimage.gaussian_filter(image, sigma, order=(1, 0), mode="nearest")
    # `edge` padding: the borders of the image are no skin.
    distance = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
    return (right, down), distance > config.skin * config.rows


def _across(
    falls: tuple[Array, Array], x: Array, y: Array, line_x: Array, line_y: Array, edge: float
) -> Array:
    """Saturated fall of grey, in (-1, 1), across lines from (line_x, 0) to (0, line_y) at pixels (x, y)."""
    fall = (falls[0][y, x] * line_y + falls[1][y, x] * line_x) / np.hypot(line_x, line_y)
    return fall / (np.abs(fall) + edge)


def _best_line(
    falls: tuple[Array, Array], usable: Array, inside: Array, config: PectoralConfig
) -> tuple[float, float] | None:
    """Where the best line cuts the top row (x) and the chest wall (y); None when no line is credible."""
    height, width = usable.shape
    across_top = np.flatnonzero(inside[: height // 32].any(0))
    if not len(across_top):
        return None
    starts = np.arange(0.12 * width, min(width, 1.3 * across_top[-1]), 3)
    ends = np.arange(0.12 * height, 0.95 * height, 4)
    line_x, line_y = (grid.ravel()[:, None] for grid in np.meshgrid(starts, ends))  # (lines, 1)
    steep = ((line_y >= config.min_slope * line_x) & (line_y <= config.max_slope * line_x))[:, 0]
    line_x, line_y = line_x[steep], line_y[steep]
    if not len(line_x):
        return None
    along = (np.arange(48) + 0.5) / 48
    x, y = (line_x * (1 - along)).astype(int), (line_y * along).astype(int)  # (lines, 48)
    seen = x < width
    x = np.minimum(x, width - 1)
    seen &= usable[y, x]
    edge = np.where(seen, _across(falls, x, y, line_x, line_y, config.edge), 0)
    seen_share = seen.mean(1)
    score = edge.sum(1) / np.maximum(seen.sum(1), 1)
    length = np.hypot(line_x, line_y)[:, 0] * seen_share
    weighted = np.where(seen_share >= 0.25, score * length / (length + config.min_length * height), -1)
    best = weighted.argmax()
    if weighted[best] < config.min_score:
        return None
    return float(line_x[best, 0]), float(line_y[best, 0])


def _grown_curve(
    falls: tuple[Array, Array], usable: Array, line: tuple[float, float], config: PectoralConfig
) -> Array | None:
    """Right end of the muscle in every row: a cubic through the edge grown from a seed; None if it fails."""
    height, width = usable.shape
    y, x = np.mgrid[:height, :width]
    edge = _across(falls, x, y, np.asarray(line[0]), np.asarray(line[1]), config.edge)
    straight = line[0] * (1 - np.arange(height) / line[1])
    away = np.abs(x - straight[:, None]) * line[1] / np.hypot(*line) / (config.band * height)
    edge = np.where(usable & (away <= 1), edge * (1 - away**2 / 2), -1.0)

    seed = np.unravel_index(edge.argmax(), edge.shape)
    step = max(1, round(config.step * height))
    found = {int(seed[0]): int(seed[1])}
    for direction in (-1, 1):  # up, where the muscle widens, then down, where it narrows
        column = int(seed[1])
        for row in range(int(seed[0]) + direction, height if direction > 0 else -1, direction):
            low, high = (column, column + step) if direction < 0 else (column - step, column)
            reach = edge[row, max(low, 0) : high + 1]
            if not len(reach) or reach.max() <= 0:  # no edge here: follow the slope of the line
                column = round(np.clip(column - direction * line[0] / line[1], 0, width - 1))
                continue
            column = max(low, 0) + int(reach.argmax())
            found[row] = column
    rows = np.array(sorted(found))
    if len(rows) < height // 12:
        return None
    columns = np.array([found[row] for row in rows])
    weight = np.ones(len(rows))
    for _ in range(5):  # Cauchy weights: a stretch on a wrong edge must not bend the curve
        cubic = np.polynomial.Polynomial.fit(rows, columns, 3, w=weight)
        residual = np.abs(columns - cubic(rows))
        weight = 1 / (1 + (residual / (3 * np.median(residual) + 1)) ** 2)
    # A cubic runs away outside its points: go on along the straight slope of the line instead.
    every = np.arange(height)
    nearest = np.clip(every, rows[0], rows[-1])
    curve = cubic(nearest) - (every - nearest) * line[0] / line[1]
    shown = curve[: rows[-1] + 1]
    if np.diff(shown).max(initial=0) > 0.2 or np.abs(shown - straight[: rows[-1] + 1]).max() > 0.1 * height:
        return None
    return curve
