"""Answers of chapter 12: IoM of two boxes, labels of regions, IoM with a mask by an integral image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.regions import iom, iom_masks, region_labels


def iom_of_two(answer: Callable[[Tensor, Tensor], Tensor | float]) -> Verdict:
    """Judge two boxes (4,), xyxy -> their intersection over the smaller area (Eq. 6, checklist D10)."""
    pairs = {
        "the first box is larger": ((0, 0, 10, 10), (6, 4, 14, 8)),
        "the second box is larger": ((8, 2, 12, 7), (1, 1, 10, 9)),
        "a small box inside a large one": ((0, 0, 28, 28), (3, 4, 8, 14)),
        "side by side": ((0, 0, 4, 6), (7, 1, 12, 5)),
        "apart in x and in y": ((0, 0, 4, 6), (7, 9, 12, 15)),
        "the second box has no area": ((0, 0, 4, 6), (2, 1, 2, 5)),
    }
    cases = []
    for note, boxes in pairs.items():
        a, b = (torch.tensor(box, dtype=torch.float64) for box in boxes)
        (raw, shared), areas = _shared(a, b), [_area(a), _area(b)]
        smaller, larger = min(areas), max(areas)
        mistakes = {
            "This is IoU, the intersection over the union. IoM divides by the smaller of both areas.": (
                shared / (sum(areas) - shared)
            ),
            "You divide by the area of the larger box, or always by that of the same box. The smaller one "
            "can be either.": shared / larger,
            "Boxes that are apart share nothing, but their `high - low` is negative, and the product of two "
            "negative numbers is positive. Clip each side at 0.": raw / (smaller or 1),
            "Edges are not pixels: the width of a box is x1 - x0, without + 1.": _inclusive(a, b),
            "This is the shared area. Divide it by the smaller of both areas.": shared,
            "This is 0 / 0. A box without area shares nothing: return 0.": shared / smaller,
        }
        cases.append(Case((a, b), iom(a[None], b[None])[0, 0], mistakes, note))
    return judge(
        answer, cases, "A small box in a large one has IoM 1, whichever is the region and which the lesion."
    )


def _area(box: Tensor) -> Tensor:
    return (box[2:] - box[:2]).prod()


def _shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Area of the intersection, without clipping and with it."""
    sides = torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])
    return sides.prod(), sides.clamp(min=0).prod()


def _inclusive(a: Tensor, b: Tensor) -> Tensor:
    """IoM where a box ends in the pixel it names."""
    a, b = (torch.cat([box[:2], box[2:] + 1]) for box in (a, b))
    return _shared(a, b)[1] / min(_area(a), _area(b))


def labels(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Judge (IoM (m, n), alpha) -> labels (m,): 1, 0 or -1 (Eq. 7; checklist D11, readings A7 and A8)."""
    three = torch.tensor(
        [
            [0.0, 0, 0], [0.7, 0, 0], [0.2, 0.9, 0], [0.1, 0.3, 0], [0.5, 0, 0.2], [0, 0, 0.4],
            [0.6, 0.8, 0.9], [0.3, 0.3, 0.2], [1, 0.9, 0],
        ]
    )  # fmt: skip
    one = torch.tensor([[0.31], [0.0], [0.25], [0.01], [0.5]])
    none = torch.zeros(3, 0)
    cases = []
    for found, alpha, note in (
        (three, 0.5, "three lesions, alpha 0.5"),
        (one, 0.25, "one lesion, alpha 0.25"),
        (none, 0.5, "an image without a malignant lesion"),
    ):
        largest = found.max(1).values if found.shape[1] else torch.zeros(len(found))
        malignant, touched = largest >= alpha, largest > 0
        zone = torch.where(touched, -1, 0)
        mistakes = {
            "Regions that overlap a little are 0: they would be learned from as benign or normal. The paper "
            "leaves them out; give them -1.": malignant.long(),
            "Alpha itself is malignant: Eq. 7 has IoM >= alpha.": torch.where(largest > alpha, 1, zone),
            "You average over the lesions. One lesion that is overlapped enough makes a region malignant.": (
                _by(found.mean(1), touched, alpha)
            ),
            "Only the last lesion counts in your answer. Look at all: `any(1)`.": _last(found, alpha),
            "You add up the overlaps with all lesions. One of them has to reach alpha by itself.": _by(
                found.sum(1), touched, alpha
            ),
            "A region is malignant if any lesion is overlapped enough; you ask it of all of them.": (
                torch.where((found >= alpha).all(1), 1, zone)
            ),
            "A region that is overlapped enough by one lesion and a little by another is malignant, not "
            "ignored (reading A8).": torch.where(
                ((found > 0) & (found < alpha)).any(1), -1, malignant.long()
            ),
            "Your alpha is always 0.5. Use the argument.": region_labels(found, 0.5),
            "Regions that touch no lesion are ignored in your answer. They are the examples of benign or "
            "normal: 0.": torch.where(malignant, 1, -1),
            "1 and 0 have changed places: malignant is 1.": torch.where(
                malignant, 0, torch.where(touched, -1, 1)
            ),
        }
        cases.append(Case((found, alpha), region_labels(found, alpha), mistakes, note))
    return judge(answer, cases, "One lesion is enough for malignant, none at all for benign or normal.")


def _by(value: Tensor, touched: Tensor, alpha: float) -> Tensor:
    return torch.where(value >= alpha, 1, torch.where(touched, -1, 0))


def _last(found: Tensor, alpha: float) -> Tensor:
    return region_labels(found[:, -1:], alpha)


def iom_by_integral(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (boxes (m, 4) in whole pixels, mask (H, W)) -> IoM (m,) of each with the mask (reading A9)."""
    random = torch.rand(14, 17, generator=torch.Generator().manual_seed(12)) < 0.4
    ring = torch.zeros(12, 15, dtype=torch.bool)
    ring[2:9, 3:11] = True
    ring[4:7, 5:9] = False
    boxes = torch.tensor([[0, 0, 5, 4], [3, 2, 10, 9], [6, 5, 12, 12], [1, 4, 2, 11], [2, 1, 12, 11]])
    cases = [
        _mask_case(boxes[:4], random, "a mask of scattered pixels"),
        _mask_case(boxes, ring, "a ring"),
        _mask_case(boxes, torch.zeros_like(ring), "an empty mask"),
    ]
    return judge(
        answer, cases, "Four look-ups for each box, whatever its size, and the row of zeros for box edge 0."
    )


def _mask_case(boxes: Tensor, mask: Tensor, note: str) -> Case:
    total = F.pad(mask.double().cumsum(0).cumsum(1), (1, 1, 1, 1))  # zeros before; the last is never right
    total[-1], total[:, -1] = total[-2], total[:, -2]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pixels = mask.sum()
    x0, y0, x1, y1 = boxes.T

    def over(shared: Tensor, below: Tensor | None = None) -> Tensor:
        below = torch.minimum(area, pixels) if below is None else below
        return torch.where(shared == 0, 0.0, shared / below.clamp(min=1))

    def summed(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor) -> Tensor:
        return total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]

    shared = summed(x0, y0, x1, y1)
    whole = mask.double().cumsum(0).cumsum(1)  # without the row and the column of zeros
    late = whole[y1 - 1, x1 - 1] - whole[y0, x1 - 1] - whole[y1 - 1, x0] + whole[y0, x0]
    low = [columns.nonzero().flatten()[[0, -1]] for columns in (mask.any(0), mask.any(1)) if mask.any()]
    boxed = (low[0][1] - low[0][0] + 1) * (low[1][1] - low[1][0] + 1) if low else pixels
    mistakes = {
        "Off by one: the first row and the first column of each box are missing. Sum before edge y0 is the "
        "entry y0 - 1 of the cumulative sums; pad them with a row and a column of zeros.": over(late),
        "Off by one: each box reaches one row and one column too far. A box ends before x1 and y1.": over(
            summed(x0, y0, x1 + 1, y1 + 1)
        ),
        "Each box is moved by one pixel to the right and down: with cumulative sums that are not padded, "
        "entry y0 already holds row y0.": over(summed(x0 + 1, y0 + 1, x1 + 1, y1 + 1)),
        "Rows and columns have changed places: boxes are xyxy, a mask is [y, x].": over(
            summed(*_within((y0, x0, y1, x1), total))
        ),
        "The corner is taken away twice: add the sum above and left of (x0, y0) once.": over(
            shared - total[y0, x0]
        ),
        "You divide by the area of the box. Where the lesion is smaller, divide by its pixels.": over(
            shared, area
        ),
        "You divide by the pixels of the lesion. Where the box is smaller, divide by its area.": over(
            shared, pixels.expand(len(boxes))
        ),
        "The lesion's area is the number of its pixels, not the area of the box around it.": over(
            shared, torch.minimum(area, boxed)
        ),
        "This is 0 / 0. A lesion without a pixel shares nothing: return 0.": shared
        / torch.minimum(area, pixels),
        "These are the shared pixels. Divide them by the smaller area.": shared,
    }
    return Case((boxes, mask), iom_masks(boxes.double(), mask[None])[:, 0], mistakes, note)


def _within(corners: tuple[Tensor, ...], total: Tensor) -> list[Tensor]:
    """Cut positions at the ends of a table, as NumPy would not."""
    return [c.clamp(max=total.shape[1 - k % 2] - 1) for k, c in enumerate(corners)]
