import math

import numpy as np
import pytest
import torch
from answers import common_answers

from mammomil.check import regions as check

# The right answers, in loops over plain numbers.


def normalised(maps):
    out = []
    for one in maps.tolist():
        values = [v for row in one for v in row]
        low, high = min(values), max(values)
        out.append([[(v - low) / (high - low) if high > low else 0.0 for v in row] for row in one])
    return torch.tensor(out)


def every_window(total, rows, columns):
    height, width = total.shape
    for r in range(height - rows + 1):
        for c in range(width - columns + 1):
            yield (r, c), math.fsum(total[r : r + rows, c : c + columns].flatten().tolist())


def first_best(total, rows, columns, taken=()):
    best, place = -math.inf, None
    for corner, value in every_window(total, rows, columns):
        if corner not in taken and value > best:
            best, place = value, corner
    return place


def window(saliency, size):
    return first_best(normalised(saliency).double().sum(0), *size)


def greedy(total, k, size, taken_again=False, zero=True):
    left, taken = total.clone(), []
    for _ in range(k):
        row, column = first_best(left, size, size, () if taken_again else taken)
        taken.append((row, column))
        if zero:
            left[row : row + size, column : column + size] = 0
    return taken


ANSWERS = [(check.min_max, normalised), (check.best_window, window), (check.retrieve, greedy)]


test_common_answers = common_answers(ANSWERS)


def low_high(m):
    return m.amin((1, 2), keepdim=True), m.amax((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda m: (m - m.min()) / (m.max() - m.min()), "over all classes"),
        (lambda m: (m - low_high(m)[0]) / (low_high(m)[1] - low_high(m)[0]), "0 / 0 is NaN"),
        (lambda m: (m - low_high(m)[0]) / low_high(m)[1], "not by the range"),
        (lambda m: m / low_high(m)[1], "never subtract"),
        (lambda m: torch.where(low_high(m)[1] > low_high(m)[0], normalised(m), m), "stays as it was"),
        (
            lambda m: torch.where(low_high(m)[1] > low_high(m)[0], normalised(m), torch.ones_like(m)),
            "becomes ones",
        ),
        (lambda m: normalised(m).sum(0), "added up already"),
        (lambda m: m.clone(), "as they were"),
        *(
            (lambda m, e=e: (m - low_high(m)[0]) / (low_high(m)[1] - low_high(m)[0] + e), "small number")
            for e in (1e-6, 1e-7, 1e-8, 1e-9)
        ),
        (
            lambda m: (m - low_high(m)[0]) / (low_high(m)[1] - low_high(m)[0]).clamp(min=1e-6),
            "raised to at least",
        ),
    ],
)
def test_mistakes_of_normalising_are_named(answer, words):
    assert words in check.min_max(answer).words


def test_another_right_way_of_normalising_passes():
    assert check.min_max(
        lambda m: ((m - low_high(m)[0]) / (low_high(m)[1] - low_high(m)[0])).nan_to_num()
    ).right


def with_border(s, size):
    """Windows that may leave the map on all sides, sums of what is inside."""
    total = normalised(s).double().sum(0)
    height, width = total.shape
    sums = {
        (r, c): math.fsum(total[max(r, 0) : r + size[0], max(c, 0) : c + size[1]].flatten().tolist())
        for r in range(1 - size[0], height)
        for c in range(1 - size[1], width)
    }
    return max(sums, key=lambda corner: (sums[corner], -corner[0], -corner[1]))


def by_map_width(s, size):
    row, column = window(s, size)
    width = s.shape[2]
    return divmod(row * (width - size[1] + 1) + column, width)


def last(s, size):
    sums = dict(every_window(normalised(s).double().sum(0), *size))
    return max(corner for corner, value in sums.items() if value == max(sums.values()))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, size: window(s, size)[::-1], "changed places"),
        (lambda s, size: first_best(s.sum(0).double(), *size), "without normalising"),
        (lambda s, size: first_best((s / s.max()).sum(0).double(), *size), "without normalising"),
        (lambda s, size: first_best(s[0].double(), *size), "first class"),
        (lambda s, size: first_best(s[-1].double(), *size), "last class"),
        (with_border, "leaves the map"),
        (
            lambda s, size: np.unravel_index(int(normalised(s).sum(0).argmax()), s.shape[1:]),
            "largest value, not the window",
        ),
        (by_map_width, "taken apart by the width"),
        (lambda s, size: tuple(a + b // 2 for a, b in zip(window(s, size), size, strict=True)), "middle"),
        (last, "Take the first"),
    ],
)
def test_mistakes_of_the_window_are_named(answer, words):
    assert words in check.best_window(answer).words


def one_cell(total, k, size):
    left, taken = total.clone(), []
    for _ in range(k):
        taken.append(first_best(left, size, size, taken))
        left[taken[-1]] = 0
    return taken


def apart(total, k, size):
    left, taken = total.clone(), []
    for _ in range(k):
        near = [
            (r, c)
            for r in range(total.shape[0])
            for c in range(total.shape[1])
            if any(abs(r - a) < size and abs(c - b) < size for a, b in taken)
        ]
        taken.append(first_best(left, size, size, near) or (0, 0))
        row, column = taken[-1]
        left[row : row + size, column : column + size] = 0
    return taken


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: greedy(*a, taken_again=True), "chosen twice"),
        (lambda *a: greedy(*a, zero=False), "untouched map"),
        (lambda *a: greedy(*a, taken_again=True, zero=False), "again and again"),
        (one_cell, "one cell of the window"),
        (apart, "forbid every window that overlaps"),
        (lambda *a: [(c, r) for r, c in greedy(*a)], "changed places"),
        (lambda *a: sorted(greedy(*a)), "order chosen"),
        (lambda t, k, size: greedy(t, k - 1, size), "shape"),
    ],
)
def test_mistakes_of_the_greedy_loop_are_named(answer, words):
    assert words in check.retrieve(answer).words
