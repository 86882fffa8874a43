"""Answers of chapter 3: normalised maps, the best window, greedy retrieval without repeats."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.regions import normalise_saliency, retrieve_rois


def min_max(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Judge maps (c, h, w) -> maps in [0, 1], each class for itself, a constant one all zeros (G-e)."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(2, 4, 5, generator=generator)
    maps = maps * torch.tensor([0.5, 0.05])[:, None, None] + torch.tensor([0.2, 0.9])[:, None, None]
    constant = torch.stack([maps[0], torch.full((4, 5), 0.3), torch.zeros(4, 5)])
    small = torch.arange(12.0).flip(0).view(1, 3, 4) * 1e-8
    cases = [
        _min_max_case(maps, "two classes, one with a small range"),
        _min_max_case(constant, "two of three classes are constant"),
        _min_max_case(small, "a map from 0 to 0.00000011"),
    ]
    return judge(
        answer,
        cases,
        "Every class has its say, whatever its range, and a map that says nothing stays silent.",
    )


def _min_max_case(maps: Tensor, note: str) -> Case:
    want = torch.cat([normalise_saliency(one[None, None]) for one in maps])
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    mistakes = {
        "You take the minimum and the maximum over all classes: a class with a small range stays small. Each "
        "class has its own: `maps.amin((1, 2), keepdim=True)`.": (maps - maps.min())
        / (maps.max() - maps.min()),
        "A constant map has no range, and 0 / 0 is NaN. Define it as zeros.": (maps - low) / (high - low),
        "You divide by the maximum, not by the range: after subtracting the minimum the largest value is no "
        "longer 1.": (maps - low) / high,
        "You divide by the maximum and never subtract the minimum: the least value is not 0.": maps / high,
        "A constant map must become zeros: it names no place. Yours stays as it was.": torch.where(
            high > low, want, maps
        ),
        "A constant map must become zeros: it names no place. Yours becomes ones.": torch.where(
            high > low, want, torch.ones_like(maps)
        ),
        "The classes are added up already. Here each keeps its map; the sum is the next step.": want.sum(0),
        "These are the maps as they were.": maps,
    }
    for exponent in (4, 5, 6, 7, 8, 9, 10):
        value = 10.0**-exponent
        mistakes[
            f"A small number in the denominator (here 1e-{exponent}) avoids NaN, but shrinks a map of small "
            "range. Ask whether the range is 0 instead."
        ] = (maps - low) / (high - low + value)
        mistakes[
            f"A range raised to at least a small number (here 1e-{exponent}) avoids NaN, but shrinks a map "
            "of small range. Ask whether the range is 0 instead."
        ] = (maps - low) / (high - low).clamp(min=value)
    return Case((maps,), want, mistakes, note)


def best_window(answer: Callable[[Tensor, tuple[int, int]], Sequence[int]]) -> Verdict:
    """Judge (saliency (c, h, w), (rows, columns)) -> top left (row, column) of the first best window (G6)."""
    cases = []
    wide = torch.rand(2, 7, 12, generator=torch.Generator().manual_seed(2)) * 0.2
    wide[0, 1:3, 7:10] = wide[1, 4:6, 1:4] = 0.7  # each class has a favourite, and one place pleases both
    wide[:, 4:6, 7:10], wide[:, 5, 9] = 0.5, 0.6
    cases.append(_window_case(wide, (2, 3), "a map wider than high, a window of 2 x 3 cells"))
    quiet = torch.zeros(2, 8, 6)
    quiet[0, 0, 0], quiet[0, 1:3, 1:3] = 0.9, 0.25  # a loud class with a peak and a plateau
    quiet[1, 5:7, 3:5] = torch.tensor([[0.02, 0.01], [0.01, 0.02]])  # a quiet class with something of its own
    cases.append(_window_case(quiet, (2, 2), "one class with values below 0.03"))
    edge = torch.zeros(1, 6, 9)
    edge[0, 0, 0], edge[0, 3:5, 4:6] = 1.0, 0.2
    for one, where in ((edge, "first"), (edge.flip(1, 2), "last")):
        cases.append(_window_case(one, (3, 3), f"the largest value in the {where} corner"))
    corner = torch.zeros(2, 5, 8)
    corner[:, 1:3, 2:4] = corner[:, 2:4, 5:7] = 1.0
    cases.append(_window_case(corner, (2, 2), "two windows with the same sum: the first in row-major order"))
    return judge(
        answer,
        cases,
        "Every class normalised and added, windows inside the map, and a place in (row, column).",
    )


def _window_case(saliency: Tensor, size: tuple[int, int], note: str) -> Case:
    want = retrieve_rois(saliency[None], 1, size)[0, 0].tolist()
    width = saliency.shape[2]
    total = normalise_saliency(saliency[None])[0]
    together = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    positions = width - size[1] + 1
    flat = want[0] * positions + want[1]
    margin = [length - 1 for length in size]
    padded = F.pad(total, (margin[1], margin[1], margin[0], margin[0]))
    outside = [i - m for i, m in zip(_first_best(padded, size), margin, strict=True)]
    mistakes: dict[str, list[int]] = {}

    def mistake(explanation: str, row_column: Sequence[int]) -> None:
        """Keep a mistake that this case can tell from the right answer."""
        if list(row_column) != want:
            mistakes[explanation] = list(row_column)

    mistake("Row and column have changed places.", want[::-1])
    mistake(
        "The maps are added without normalising them: the class with larger values decides alone. Bring each "
        "class to 0..1 first.",
        _first_best(saliency.sum(0), size),
    )
    mistake(
        "You normalise all classes by one minimum and one maximum, so the class with larger values still "
        "decides alone. Each class has its own.",
        _first_best(together.sum(0), size),
    )
    mistake("Only the first class counts in your sum. Add all of them.", _first_best(saliency[0], size))
    mistake(
        "Only the last class counts in your sum. Add all of them.",
        _first_best(saliency[-1], size),
    )
    mistake(
        "Your window leaves the map: with zeros around it, windows across the border compete. A map of h x w "
        "cells has (h - rows + 1) x (w - columns + 1) windows.",
        outside,
    )
    mistake("This is the cell with the largest value, not the window with the largest sum.", _peak(total))
    mistake(
        "The index of the window is taken apart by the width of the map. A row of windows is shorter: "
        "w - columns + 1.",
        divmod(flat, width),
    )
    mistake("This is the middle of the window. Return its top left corner.", _middle(want, size))
    mistake("This is the last of the windows with the largest sum. Take the first.", _last_best(total, size))
    return Case((saliency, size), want, mistakes, note)


def _window_sums(total: Tensor, size: tuple[int, int]) -> Tensor:
    return F.avg_pool2d(total[None, None], size, stride=1)[0, 0]


def _first_best(total: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    sums = _window_sums(total, size)
    return divmod(int(sums.argmax()), sums.shape[1])


def _last_best(total: Tensor, size: tuple[int, int]) -> list[int]:
    sums = _window_sums(total, size)
    return (sums == sums.max()).nonzero()[-1].tolist()


def _peak(total: Tensor) -> tuple[int, int]:
    return divmod(int(total.argmax()), total.shape[1])


def _middle(corner: Sequence[int], size: tuple[int, int]) -> list[int]:
    return [corner[0] + size[0] // 2, corner[1] + size[1] // 2]


def retrieve(answer: Callable[[Tensor, int, int], Sequence[Sequence[int]]]) -> Verdict:
    """Judge (total (h, w), k, size) -> k top left corners, no window twice (Algorithm 1, readings G-d)."""
    # Multiples of 1/8, at least one 0 and one 1: sums are exact and ties are ties.
    generator = torch.Generator().manual_seed(10)
    noise = torch.randint(0, 9, (9, 7), generator=generator) / 8
    noise[0, 0], noise[8, 6] = 0, 1
    peak = torch.zeros(8, 8)
    peak[2:6, 3:6], peak[3:5, 4] = 0.5, 1.0
    cases = [
        _retrieve_case(noise, 4, 3, "every cell has a value"),
        _retrieve_case(peak, 6, 3, "one peak, and zeros around it"),
        _retrieve_case(torch.zeros(5, 6), 4, 2, "nothing but zeros"),
    ]
    return judge(
        answer,
        cases,
        "Zeroing keeps windows apart while there is something to find; a list of those taken ends repeats.",
    )


def _retrieve_case(total: Tensor, k: int, size: int, note: str) -> Case:
    want = retrieve_rois(total[None, None], k, size)[0]
    letter = retrieve_rois(total[None, None], k, size, distinct=False)[0]
    sums = _window_sums(total, (size, size))
    best = sums.flatten().argsort(descending=True, stable=True)[:k].tolist()
    mistakes = {
        "A window is chosen twice: zeroed cells stay candidates, and once the map is used up the first "
        "window has the largest sum again. Remember which were taken.": letter,
        "These are the windows with the largest sums of the untouched map: neighbours of one peak. Zero the "
        "cells of a window before you look for the next.": [divmod(i, sums.shape[1]) for i in best],
        "The same window again and again: nothing is zeroed.": want[:1].expand(k, 2),
        "You zero one cell of the window. All of its cells must go.": _greedy(total, k, size, cells=1),
        "You forbid every window that overlaps an earlier one. Only the same window is forbidden; one that "
        "still holds enough may overlap.": _greedy(total, k, size, apart=True),
        "Row and column have changed places.": want.flip(1),
        "The windows are right, but not in the order chosen.": want[_row_major(want)],
    }
    return Case((total, k, size), want, mistakes, note)


def _row_major(corners: Tensor) -> list[int]:
    return sorted(range(len(corners)), key=lambda i: corners[i].tolist())


def _greedy(total: Tensor, k: int, size: int, cells: int | None = None, apart: bool = False) -> Tensor:
    """Choose windows with a fault: only `cells` rows and columns of each become zero, or all stay `apart`."""
    left, taken = total.clone(), []
    for _ in range(k):
        sums = _window_sums(left, (size, size)).clone()
        reach = size - 1 if apart else 0
        for row, column in taken:
            sums[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = -1
        row, column = divmod(int(sums.argmax()), sums.shape[1])
        taken.append((row, column))
        many = size if cells is None else cells
        left[row : row + many, column : column + many] = 0
    return torch.tensor(taken)
