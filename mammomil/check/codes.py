"""Answers of chapter 8: counting windows, windows over the breast, a name for a cache entry."""

import math
import os
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.regions import sliding_windows

Weights = dict[str, list[float]]
LONGEST = 200  # characters: with an ending this is still a file name everywhere


def count_windows(answer: Callable[[int, int, int, int], tuple[int, int]]) -> Verdict:
    """Judge (height, width, size, step) -> (windows down, windows across) that lie inside the image."""
    cases = [
        _count_case(95, 67, 28, 10, "windows of 28 pixels, 10 pixels apart"),
        _count_case(368, 240, 28, 14, "the quick canvas"),
        _count_case(2944, 1920, 224, 112, "the paper's windows on the full canvas"),
        _count_case(56, 42, 28, 14, "windows that fit without a remainder"),
        _count_case(20, 60, 28, 14, "an image lower than a window"),
        _count_case(100, 10, 40, 15, "an image narrower than a window"),
    ]
    return judge(answer, cases, "n steps make n + 1 windows, and what is left over at the border is dropped.")


def _count_case(height: int, width: int, size: int, step: int, note: str) -> Case:
    down, across = (len(sliding_windows(side, size, size, step)) for side in (height, width))
    of_a_side: dict[str, Callable[[int], float]] = {
        "One is missing on each side: n steps lead from the first window to number n + 1.": lambda side: (
            (side - size) // step
        ),
        "A number of windows is never negative: where the image is smaller than a window, it is 0.": (
            lambda side: (side - size) // step + 1
        ),
        "You round up, or to the nearest number, and a window sticks out of the image. Round down.": (
            lambda side: math.ceil((side - size) / step) + 1
        ),
        "You divide the whole side by the step. The last window has to begin a window's side before the "
        "border: subtract the size first.": lambda side: side // step,
        "You count windows side by side. They overlap: the next begins one step on.": lambda side: (
            side // size
        ),
        "The number of steps is not whole yet: round it down.": lambda side: (side - size) / step + 1,
    }
    mistakes: dict[str, Any] = {
        "Down and across have changed places: the height gives the rows.": (across, down),
        "This is the number of all windows. Return how many there are down, and how many across.": (
            down * across
        ),
    }
    mistakes |= {words: (count(height), count(width)) for words, count in of_a_side.items()}
    return Case((height, width, size, step), (down, across), mistakes, note)


def windows_in(answer: Callable[[Tensor, int, int, float], Tensor]) -> Verdict:
    """Judge (mask (H, W), size, step, share) -> (row, column) of windows with that share in it, (m, 2)."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(44), indexing="ij")
    breast = (rows - 25) ** 2 / 24**2 + columns**2 / 30**2 < 1
    cases = [
        _windows_case(breast, 12, 6, 0.6, "half an ellipse, share 0.6"),
        _windows_case(breast & (rows + columns > 14), 9, 4, 0.25, "a breast without the muscle, share 0.25"),
        _windows_case(rows < 18 + 3 * (columns > 20), 12, 6, 0.5, "the upper rows, share 0.5"),
        _windows_case(torch.ones(36, 60, dtype=torch.bool), 12, 6, 1.0, "a full mask, share 1"),
    ]
    return judge(
        answer, cases, "The share is of the window's pixels, whatever the rest of the breast looks like."
    )


def _windows_case(mask: Tensor, size: int, step: int, share: float, note: str) -> Case:
    height, width = mask.shape

    def corners(keep: Callable[[Tensor], Any], last: int = 0, exchanged: bool = False) -> Tensor:
        plane = mask.T if exchanged else mask
        kept = [
            (row, column)
            for row in range(0, height - size + 1 - last, step)
            for column in range(0, width - size + 1 - last, step)
            if keep(plane[row : row + size, column : column + size].double())
        ]
        return torch.tensor(kept, dtype=torch.long).view(-1, 2)

    def enough(inside: Tensor) -> Any:
        return inside.mean() >= share

    boxes = sliding_windows(height, width, size, step, mask, min_share=share)
    want = boxes[:, [1, 0]].long()
    by_column = want[torch.argsort(want[:, 1], stable=True)]
    mistakes = {
        "You keep every window that touches the mask. Divide the pixels inside by all pixels of the window, "
        "and compare that with the share.": corners(lambda inside: inside.any()),
        "You keep only windows that lie in the mask as a whole.": corners(lambda inside: inside.all()),
        "The centre pixel decides in yours. Here it is the share of all pixels.": corners(
            lambda inside: inside[size // 2, size // 2]
        ),
        "A window with exactly this share belongs to them: compare with >=.": corners(
            lambda inside: inside.mean() > share
        ),
        "You divide by the side of the window. Its area has side times side pixels.": corners(
            lambda inside: inside.sum() / size >= share
        ),
        "You divide by the pixels of the whole mask: that is the share of the breast in a window.": (
            corners(lambda inside: inside.sum() / mask.sum() >= share)
        ),
        "You keep the windows in the air: those with less than this share.": corners(
            lambda inside: inside.mean() < share
        ),
        "The windows are right, but each is given as (column, row). Give the row first.": want.flip(1),
        "The windows are right, but their order is not: row by row, and each row from left to right.": (
            by_column
        ),
        "Row and column are exchanged where you look into the mask: it is mask[row, column].": corners(
            enough, exchanged=True
        ),
        "The last windows are missing: `range` leaves its end out, and a window may end at the border.": (
            corners(enough, last=1)
        ),
        "These are the centres of the windows. Give their upper left corners.": want + size // 2,
        "These are boxes. Give the upper left corners alone.": boxes,
        "These are all windows: the mask is not used.": corners(lambda _: True),
    }
    return Case((mask, size, step, share), want, mistakes, note)


def cache_key(answer: Callable[[Path, dict[str, int], Weights], str]) -> Verdict:
    """Judge (image file, window, weights) -> text that changes with what decides the codes, and only then.

    What the text is does not matter: pairs of images and settings are named, and the names compared.
    """
    strange: list[Verdict] = []

    @wraps(answer)
    def alike(*arguments: Any) -> Any:
        names = answer(*arguments[:3]), answer(*arguments[3:])
        for name in names:
            if name is None or name is ...:
                return None
            if not isinstance(name, str):
                shape = f" of shape {tuple(name.shape)}" if hasattr(name, "shape") else ""
                text = f"The key has to be a text, `str`; this is a {type(name).__name__}{shape}."
                strange.append(Verdict(False, text))
            elif not name or set(name) & set('/\\:*?"<>|\0') or len(name) > LONGEST:
                text = (
                    f"{name[:40]!r} cannot be the name of a file everywhere: a key has 1 to {LONGEST} "
                    "characters and no / or other special ones. A digest in hexadecimal is safe."
                )
                strange.append(Verdict(False, text))
        return names[0] == names[1]

    with tempfile.TemporaryDirectory() as folder:
        verdict = judge(
            alike,
            _pairs(Path(folder)),
            "The key follows bytes, window and weights: no stale code is ever used, and none is made twice.",
        )
    return strange[0] if strange else verdict


def _pairs(folder: Path) -> list[Case]:
    """Two images and settings each, and whether their codes are the same."""
    pixels = bytes(range(200))
    image, copy, changed = folder / "a/left.png", folder / "b/right.png", folder / "c/left.png"
    for path, content in ((image, pixels), (copy, pixels), (changed, pixels[:-1] + b"\0")):
        path.parent.mkdir()
        path.write_bytes(content)
    os.utime(image, (1e9, 1e9))
    os.utime(changed, (1e9, 1e9))  # size and date are those of `image`
    window, weights = {"size": 28, "step": 14}, {"conv": [0.25, -0.5], "scale": [1.0, 12.0]}
    base = (image, window, weights)

    def pair(other: tuple, alike: bool, wrong: str, note: str) -> Case:
        return Case((*base, *other), alike, {wrong: not alike}, note)

    return [
        pair(base, True, "Asked twice about the same, it gives two keys: no entry would ever be found.", ""),
        pair(
            (copy, window, weights), True,
            "A copy of the image under another name gets another key, though its codes are the same: name, "
            "folder and date of the file do not belong into the key.", "a copy in another folder",
        ),
        pair(
            (changed, window, weights), False,
            "A pixel has changed, the key has not, and the old codes would be used: read the bytes of the "
            "file. Name, size and date do not tell.", "one byte is another",
        ),
        pair(
            (image, {**window, "size": 32}, weights), False,
            "Windows of another size get the same key: the window does not count yet.", "size 32",
        ),
        pair(
            (image, {**window, "step": 7}, weights), False,
            "Another step between windows gets the same key: all settings of the window count.", "step 7",
        ),
        pair(
            (image, {"size": 14, "step": 28}, weights), False,
            "Size and step have changed places and the key has not noticed: it knows the numbers, but not "
            "which is which.", "size 14 and step 28",
        ),
        pair(
            (image, {"step": 14, "size": 28}, weights), True,
            "The same settings in another order get another key. Sort the names of a dictionary first.",
            "the window with its entries in another order",
        ),
        pair(
            (image, window, {**weights, "conv": [0.25, -0.4999]}), False,
            "An encoder with other weights gets the same key: a retrained network would be given the codes "
            "of the old one. Every number counts, unrounded.", "one weight a little different",
        ),
        pair(
            (image, window, {**weights, "conv": [-0.5, 0.25]}), False,
            "Two weights have changed places and the key has not noticed. Do not add or sort the numbers.",
            "the weights of a layer in another order",
        ),
        pair(
            (image, window, {"scale": [1.0, 12.0], "conv": [0.25, -0.5]}), True,
            "The same layers in another order get another key. Sort the names of a dictionary first.",
            "the layers in another order",
        ),
        pair(
            (image, window, {"convscale": [0.25, -0.5, 1.0, 12.0]}), False,
            "Two networks get one key, as their names and numbers run into each other. Keep them apart, for "
            "example with `json.dumps`.", "one layer that has the numbers of both",
        ),
    ]  # fmt: skip
