import numpy as np
import pytest
import torch
from answers import common_answers

from mammomil.check import contours as check

# The right answers, written as in the chapter.


def two(a, b):
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return sides.prod() / smaller if smaller > 0 else 0.0


def labels(iom, alpha):
    label = torch.full((len(iom),), -1)
    label[(iom == 0).all(1)] = 0
    label[(iom >= alpha).any(1)] = 1
    return label


def integral(boxes, mask):
    total = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1)
    total[1:, 1:] = mask.float().cumsum(0).cumsum(1)
    x0, y0, x1, y1 = boxes.T
    shared = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    area = (x1 - x0) * (y1 - y0)
    return shared / torch.minimum(area, mask.sum()).clamp(min=1)


test_common_answers = common_answers(
    ((check.iom_of_two, two), (check.labels, labels), (check.iom_by_integral, integral))
)


def by_hand(divide, clip=True, more=0):
    """IoM of two boxes in plain Python, with a place for each mistake."""

    def answer(a, b):
        a, b = a.tolist(), b.tolist()
        sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + more for k in (0, 1)]
        shared = np.prod([max(side, 0) for side in sides] if clip else sides)
        first, second = ((box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (a, b))
        return np.float64(shared) / divide(first, second, shared) if shared else 0.0

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by_hand(lambda a, b, s: a + b - s), "This is IoU"),
        (by_hand(lambda a, b, s: a), "the larger box, or always"),
        (by_hand(lambda a, b, s: b), "the larger box, or always"),
        (by_hand(lambda a, b, s: max(a, b)), "the larger box, or always"),
        (by_hand(lambda a, b, s: min(a, b), clip=False), "Clip each side at 0"),
        (by_hand(lambda a, b, s: min(a, b), more=1), "without + 1"),
        (by_hand(lambda a, b, s: 1), "shared area"),
        (lambda a, b: torch.tensor(by_hand(lambda *_: 1)(a, b)) / min(
            (a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()), "0 / 0"),
    ],
)  # fmt: skip
def test_mistakes_of_the_overlap_are_named(answer, words):
    assert words in check.iom_of_two(answer).words


def test_the_overlap_in_plain_python_passes():
    assert check.iom_of_two(by_hand(lambda a, b, s: min(a, b))).right


def each(rule):
    """Label region by region; `rule` is given the overlaps of one as a list."""
    return lambda found, alpha: np.array([rule(row, alpha) for row in found.tolist()])


def ignored(row):
    return -1 if max(row, default=0) > 0 else 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (each(lambda r, a: int(max(r, default=0) >= a)), "leaves them out"),
        (each(lambda r, a: 1 if max(r, default=0) > a else ignored(r)), "Alpha itself"),
        (each(lambda r, a: 1 if r and sum(r) / len(r) >= a else ignored(r)), "average"),
        (each(lambda r, a: 1 if r and r[-1] >= a else (-1 if r and r[-1] > 0 else 0)), "last lesion"),
        (each(lambda r, a: 1 if sum(r) >= a else ignored(r)), "add up"),
        (each(lambda r, a: 1 if r and min(r) >= a else ignored(r)), "all of them"),
        (each(lambda r, a: -1 if any(0 < v < a for v in r) else int(max(r, default=0) >= a)), "reading A8"),
        (each(lambda r, a: 1 if max(r, default=0) >= 0.5 else ignored(r)), "always 0.5"),
        (each(lambda r, a: 1 if max(r, default=0) >= a else -1), "touch no lesion"),
        (
            each(lambda r, a: {1: 0, 0: 1, -1: -1}[1 if max(r, default=0) >= a else ignored(r)]),
            "changed places",
        ),
        (lambda found, alpha: torch.where(found.max(1).values >= alpha, 1, 0), "leaves them out"),
        (lambda found, alpha: labels(found, alpha) + 0 * int(found.max(1).values[0]), "raised IndexError"),
    ],
)
def test_mistakes_of_labels_are_named(answer, words):
    assert words in check.labels(answer).words


def counted(rows, columns, divide, swap=False):
    """IoM with a mask by slices, with a place for each mistake; `rows` and `columns` shift the edges."""

    def answer(boxes, mask):
        mask, shares = mask.numpy(), []
        for x0, y0, x1, y1 in boxes.tolist():
            if swap:
                x0, y0, x1, y1 = y0, x0, y1, x1
            shared = mask[y0 + rows[0] : y1 + rows[1], x0 + columns[0] : x1 + columns[1]].sum()
            area = (x1 - x0) * (y1 - y0)
            shares.append(shared / divide(area, mask.sum()) if shared else 0.0)
        return torch.tensor(shares)

    return answer


def framed(boxes, mask):
    """Divide by the box around the lesion where it is smaller."""
    where = mask.nonzero()
    sides = where.max(0).values - where.min(0).values + 1 if len(where) else torch.ones(2)
    return counted((0, 0), (0, 0), lambda a, p: min(a, float(sides.prod())))(boxes, mask)


def twice(boxes, mask):
    shares = []
    for x0, y0, x1, y1 in boxes.tolist():
        shared = mask[y0:y1, x0:x1].sum() - mask[:y0, :x0].sum()
        shares.append(float(shared) / min((x1 - x0) * (y1 - y0), int(mask.sum()) or 1))
    return torch.tensor(shares)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (counted((1, 0), (1, 0), min), "first row and the first column"),
        (counted((0, 1), (0, 1), min), "one row and one column too far"),
        (counted((1, 1), (1, 1), min), "moved by one pixel"),
        (counted((0, 0), (0, 0), min, swap=True), "Rows and columns"),
        (twice, "taken away twice"),
        (counted((0, 0), (0, 0), lambda a, p: a), "You divide by the area of the box"),
        (counted((0, 0), (0, 0), lambda a, p: p), "You divide by the pixels"),
        (framed, "not the area of the box around it"),
        (counted((0, 0), (0, 0), lambda a, p: 1), "the shared pixels"),
        (lambda boxes, mask: integral(boxes, mask) / (mask.sum() > 0), "0 / 0"),
    ],
)
def test_mistakes_of_the_integral_are_named(answer, words):
    assert words in check.iom_by_integral(answer).words


def test_counting_by_slices_passes():
    assert check.iom_by_integral(counted((0, 0), (0, 0), min)).right
