"""Where to look: windows over the breast, greedy retrieval from a map, crops, overlap with lesions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class WindowConfig:
    """Which windows the dual-branch network cuts an image into (checklist D1). Lengths are canvas pixels."""

    sizes: tuple[int, ...] = (224,)
    """Sides of the windows. The paper has one; several are its authors' future work."""
    stride: float = 0.5
    """Step from window to window, as a fraction of the side."""
    min_breast: float = 0.0
    """Share of a window that must be breast. 0 asks for its centre alone (reading A18)."""
    shift_last: bool = False
    """Add windows that end at the right and bottom border, where the steps leave a remainder."""
    pectoral: bool = False
    """Keep windows on the pectoral muscle of MLO views; the paper leaves them out."""

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes are sides of windows in pixels, 1 or more, not {self.sizes}.")
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride is a fraction of the side in (0, 1], not {self.stride}.")
        if not 0 <= self.min_breast <= 1:
            raise ValueError(f"min_breast is a share in [0, 1], not {self.min_breast}.")

    @classmethod
    def quick(cls) -> "WindowConfig":
        """Windows of 28 pixels of 0.56 mm: 15.7 mm, as 224 pixels of 0.07 mm are."""
        return cls(sizes=(28,))


def sliding_windows(
    height: int,
    width: int,
    size: int = 224,
    stride: int = 112,
    mask: Bool[Tensor, "H W"] | None = None,
    *,
    min_share: float = 0.0,
    shift_last: bool = False,
    offset: tuple[int, int] = (0, 0),
) -> Float[Tensor, "m 4"]:
    """List square windows that lie inside an image, row by row (checklist D1, reading A18).

    Args:
        height: rows of the image.
        width: columns of the image.
        size: side of a window in pixels.
        stride: step between windows in pixels.
        mask: keep windows whose centre pixel, (size // 2, size // 2) from the corner, lies in this.
        min_share: with a mask, keep windows with at least this share in it instead; 0 is the centre rule.
        shift_last: where the steps leave a remainder at the right or bottom, add a window that ends there.
        offset: row and column of the first window.

    Returns:
        Boxes, xyxy in pixels; none where the image is smaller than a window.
    """

    def starts(length: int, first: int) -> Tensor:
        last = length - size
        steps = torch.arange(first, last + 1, stride) if last >= first else torch.zeros(0, dtype=torch.long)
        if shift_last and last >= 0 and (len(steps) == 0 or steps[-1] != last):
            steps = torch.cat([steps, torch.tensor([last])])
        return steps

    corners = torch.cartesian_prod(starts(height, offset[0]), starts(width, offset[1]))  # (m, row column)
    if mask is not None and len(corners):
        if min_share > 0:
            # Sums over windows from cumulative sums: four look-ups a window, whatever its size.
            total = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
            (top, left), (bottom, right) = corners.T, (corners + size).T
            inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
            keep = inside >= min_share * size**2
        else:
            keep = mask[corners[:, 0] + size // 2, corners[:, 1] + size // 2]
        corners = corners[keep]
    corners = corners.flip(1).float()  # (m, xy)
    return torch.cat([corners, corners + size], 1)


def region_labels(iom: Float[Tensor, "m n"], alpha: float = 0.5) -> Int[Tensor, "m"]:
    """Label the regions of an image by its malignant lesions (Eq. 7; checklist D11, readings A7 and A8).

    Args:
        iom: overlap of each region with each malignant lesion, see `iom`.
        alpha: overlap from which on a region is malignant, inclusive.

    Returns:
        1 malignant (one lesion is overlapped enough, whatever else is cut); 0 benign or normal (no lesion is
        touched; a shared edge is no touch); -1 ignored (less than `alpha` of a lesion).
    """
    malignant, touched = (iom >= alpha).any(1), (iom > 0).any(1)
    return torch.where(malignant, 1, torch.where(touched, -1, 0))


def normalise_saliency(saliency: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Min-max normalise each class's map and add the classes (GMIC Algorithm 1, lines 2-5; checklist G6).

    A constant map has no minimum-to-maximum range; it becomes zeros (reading G-e).
    """
    low = saliency.amin((-2, -1), keepdim=True)
    span = saliency.amax((-2, -1), keepdim=True) - low
    constant = span <= 0
    return ((saliency - low) / span.masked_fill(constant, 1)).masked_fill(constant, 0).sum(1)  # (b, h, w)


def retrieve_rois(
    saliency: Float[Tensor, "b c h w"], k: int, window: int | tuple[int, int], distinct: bool = True
) -> Int[Tensor, "b k 2"]:
    """Choose `k` windows greedily by the saliency they hold (GMIC Algorithm 1, checklist G6).

    Each round takes the window with the largest sum of normalised saliency, then sets its cells to zero. Ties
    go to the first window in row-major order, and every window lies inside the map (reading G-d). Nothing
    here is differentiable and nothing waits for the device.

    Args:
        saliency: one map per class, any finite values.
        k: how many windows.
        window: height and width of a window in cells, or one number for both; cut to the map's size.
        distinct: never choose the same window twice. False is Algorithm 1 to the letter: zeroed cells stay
            candidates, so that a map with one hot blob gives (0, 0) again and again.

    Returns:
        Top-left (row, column) of each window in cells, in the order chosen. A map with fewer than `k` windows
        repeats its first one.
    """
    height, width = saliency.shape[-2:]
    rows, columns = (window, window) if isinstance(window, int) else window
    rows, columns = min(rows, height), min(columns, width)
    remaining = normalise_saliency(saliency)
    row_index = torch.arange(height, device=saliency.device)[:, None]
    column_index = torch.arange(width, device=saliency.device)
    positions = torch.arange((height - rows + 1) * (width - columns + 1), device=saliency.device)
    taken = torch.zeros_like(positions, dtype=torch.bool)[None]
    corners = []
    for _ in range(k):
        # Means order the windows as sums do.
        score = F.avg_pool2d(remaining[:, None], (rows, columns), stride=1).flatten(1)  # (b, positions)
        if distinct:
            score = score.masked_fill(taken, -torch.inf)
        best = score.argmax(1, keepdim=True)  # (b, 1), the first of equal maxima
        taken = taken | (positions == best)
        row, column = best // (width - columns + 1), best % (width - columns + 1)
        corners.append(torch.cat([row, column], 1))
        in_rows = (row_index >= row[..., None]) & (row_index < row[..., None] + rows)  # (b, h, 1)
        in_columns = (column_index >= column[..., None]) & (column_index < column[..., None] + columns)
        remaining = remaining.masked_fill(in_rows & in_columns, 0)
    return torch.stack(corners, 1)  # (b, k, 2)


def cells_to_pixels(
    corners: Int[Tensor, "b k 2"], cells: tuple[int, int], pixels: tuple[int, int], size: int
) -> Int[Tensor, "b k 2"]:
    """Turn corners on a map of `cells` into corners on an image of `pixels` (height, width).

    Rounds half to even, then shifts a patch of `size` pixels inside the image; an image smaller than the
    patch gives corner 0.
    """
    # Plain numbers, axis by axis: a tensor of sizes would have to travel to the device.
    axes = [(corners[..., axis].double() * (pixels[axis] / cells[axis])).round().long() for axis in (0, 1)]
    return torch.stack([axes[axis].clamp(max=max(pixels[axis] - size, 0)) for axis in (0, 1)], -1)


def crop_rois(
    image: Float[Tensor, "b 1 H W"], corners: Int[Tensor, "b k 2"], size: int
) -> Float[Tensor, "b k 1 size size"]:
    """Cut `k` square patches out of each image, in one gather and without a loop.

    Args:
        image: standardised pixels.
        corners: top-left (row, column) of each patch in pixels; may lie outside the image.
        size: side of a patch in pixels.

    Returns:
        The patches. Pixels outside the image hold the image's minimum, which is its background.
    """
    height, width = image.shape[-2:]
    offset = torch.arange(size, device=image.device)
    rows = (corners[..., 0, None] + offset)[..., :, None]  # (b, k, size, 1)
    columns = (corners[..., 1, None] + offset)[..., None, :]  # (b, k, 1, size)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)  # (b, k, size, size)
    pixels = image.flatten(1).gather(1, flat.flatten(1)).view_as(flat)
    background = image.amin((1, 2, 3))[:, None, None, None]
    return torch.where(inside, pixels, background)[:, :, None]


def iom(regions: Float[Tensor, "m 4"], lesions: Float[Tensor, "n 4"]) -> Float[Tensor, "m n"]:
    """Intersection over the smaller area (the dual-branch paper's Eq. 6, checklist D10).

    Args:
        regions: boxes, xyxy in any pixels.
        lesions: boxes, xyxy in the same pixels.

    Returns:
        IoM of each region with each lesion, in [0, 1]; 0 where a box has no area.
    """
    low = torch.maximum(regions[:, None, :2], lesions[:, :2])  # (m, n, 2)
    high = torch.minimum(regions[:, None, 2:], lesions[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)  # (m, n)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (regions, lesions)]
    return _over_smaller(shared, areas[0], areas[1])


def iom_masks(regions: Float[Tensor, "m 4"], masks: Bool[Tensor, "n H W"]) -> Float[Tensor, "m n"]:
    """`iom` with lesions given pixel by pixel; a pixel that a region cuts counts by its part.

    Args:
        regions: boxes, xyxy in pixels of the masks.
        masks: one per lesion.

    Returns:
        IoM of each region with each lesion, in [0, 1]; 0 where one of them has no area.
    """

    def covered(low: Tensor, high: Tensor, count: int) -> Tensor:
        edge = torch.arange(count, device=low.device)
        inside = torch.minimum(high[:, None], edge + 1) - torch.maximum(low[:, None], edge)
        return inside.clamp(min=0)  # (m, count), part of each row or column

    rows = covered(regions[:, 1], regions[:, 3], masks.shape[1])
    columns = covered(regions[:, 0], regions[:, 2], masks.shape[2])
    shared = torch.einsum("mh,nhw,mw->mn", rows, masks.to(rows.dtype), columns)
    area = (regions[:, 2:] - regions[:, :2]).clamp(min=0).prod(-1)
    return _over_smaller(shared, area, masks.sum((1, 2)).to(rows.dtype))


def _over_smaller(shared: Tensor, region_area: Tensor, lesion_area: Tensor) -> Tensor:
    """Divide by the smaller area; nothing shared is 0, also where there is no area."""
    smaller = torch.minimum(region_area[:, None], lesion_area)
    return (shared / smaller.masked_fill(smaller <= 0, 1)).clamp(max=1)
