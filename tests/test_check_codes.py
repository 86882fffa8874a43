import hashlib
import json
import math
import os
import random

import numpy as np
import pytest
import torch
from answers import common_answers

from mammomil.check import codes as check
from mammomil.regions import sliding_windows

# The right answers, written as in the chapter.


def count(height, width, size, step):
    return tuple(max(0, (side - size) // step + 1) for side in (height, width))


def windows(mask, size, step, share):
    height, width = mask.shape
    return torch.tensor(
        [
            (row, column)
            for row in range(0, height - size + 1, step)
            for column in range(0, width - size + 1, step)
            if mask[row : row + size, column : column + size].float().mean() >= share
        ]
    )


def key(path, window, weights):
    told = json.dumps([window, weights], sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(path.read_bytes()).digest() + told).hexdigest()


ANSWERS = [(check.count_windows, count), (check.windows_in, windows), (check.cache_key, key)]
test_common_answers = common_answers(ANSWERS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda h, w, s, t: count(w, h, s, t), "changed places"),
        (lambda h, w, s, t: ((h - s) // t, (w - s) // t), "One is missing"),
        (lambda h, w, s, t: (math.ceil((h - s) / t) + 1, math.ceil((w - s) / t) + 1), "You round up"),
        (lambda h, w, s, t: tuple(np.rint((np.array([h, w]) - s) / t).astype(int) + 1), "nearest number"),
        (lambda h, w, s, t: (h // t, w // t), "subtract the size"),
        (lambda h, w, s, t: (h // s, w // s), "side by side"),
        (lambda h, w, s, t: ((h - s) / t + 1, (w - s) / t + 1), "not whole"),
        (lambda h, w, s, t: count(h, w, s, t)[0] * count(h, w, s, t)[1], "number of all windows"),
        (lambda h, w, s, t: ((h - s) // t + 1, (w - s) // t + 1), "never negative"),
        (lambda h, w, s, t: [len(range(0, x - s, t)) for x in (h, w)], "without a remainder"),
    ],
)
def test_mistakes_of_counting_are_named(answer, words):
    verdict = check.count_windows(answer)
    assert not verdict.right
    assert words in verdict.words, verdict


def pooled(mask, size, step, keep):
    """In another way than in the check: shares of all windows by one average pooling."""
    shares = torch.nn.functional.avg_pool2d(mask[None, None].double(), size, step)[0, 0]
    return keep(shares).nonzero() * step


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x > 0), "touches the mask"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x * s**2 > q), "touches the mask"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x > 0.999), "as a whole"),
        (lambda m, s, t, q: sliding_windows(*m.shape, s, t, m)[:, [1, 0]], "centre pixel decides"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x > q), "exactly this share"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x * s >= q), "side times side"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x * s**2 / m.sum() >= q), "of the whole mask"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x < q), "in the air"),
        (lambda *a: windows(*a)[:, [1, 0]], "Give the row first"),
        (lambda m, s, t, q: windows(m.T, s, t, q).flip(1), "their order is not"),
        (lambda m, s, t, q: windows(m[:-1, :-1], s, t, q), "`range` leaves its end out"),
        (lambda m, s, t, q: windows(m, s, t, q) + s // 2, "centres of the windows"),
        (lambda m, s, t, q: sliding_windows(*m.shape, s, t, m, min_share=q), "boxes"),
        (lambda m, s, t, q: pooled(m, s, t, lambda x: x >= 0), "not used"),
    ],
)
def test_mistakes_of_choosing_windows_are_named(answer, words):
    verdict = check.windows_in(answer)
    assert not verdict.right
    assert words in verdict.words, verdict


def test_an_exchanged_look_up_is_named():
    def exchanged(mask, size, step, share):
        rows, columns = ((side - size) // step + 1 for side in mask.shape)
        found = []
        for row in range(0, rows * step, step):
            for column in range(0, columns * step, step):
                part = mask[column : column + size, row : row + size]
                found += [(row, column)] * bool(part.numel() and part.float().mean() >= share)
        return torch.tensor(found)

    assert "mask[row, column]" in check.windows_in(exchanged).words


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def ordered(values):
    return sorted(values.items())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, w, m: f"{random.random():.12f}", "Asked twice"),
        (lambda p, w, m: digest(str(p), p.read_bytes(), ordered(w), ordered(m)), "A copy of the image"),
        (lambda p, w, m: digest(p.name, p.read_bytes(), ordered(w), ordered(m)), "A copy of the image"),
        (lambda p, w, m: digest(os.stat(p).st_mtime, p.read_bytes(), ordered(w), ordered(m)), "A copy"),
        (lambda p, w, m: digest(p.stat().st_size, ordered(w), ordered(m)), "A pixel has changed"),
        (lambda p, w, m: digest(p.read_bytes()[:100], ordered(w), ordered(m)), "A pixel has changed"),
        (lambda p, w, m: digest(p.read_bytes(), ordered(m)), "window does not count"),
        (lambda p, w, m: digest(p.read_bytes(), w["size"], ordered(m)), "Another step"),
        (lambda p, w, m: digest(p.read_bytes(), sorted(w.values()), ordered(m)), "which is which"),
        (lambda p, w, m: digest(p.read_bytes(), w, ordered(m)), "Sort the names"),
        (lambda p, w, m: digest(p.read_bytes(), ordered(w)), "retrained network"),
        (lambda p, w, m: digest(p.read_bytes(), ordered(w), sorted(m)), "retrained network"),
        (lambda p, w, m: digest(p.read_bytes(), ordered(w), sum(map(sum, m.values()))), "changed places"),
        (lambda p, w, m: digest(p.read_bytes(), ordered(w), m), "The same layers in another order"),
        (
            lambda p, w, m: digest(
                p.read_bytes(), ordered(w), "".join(sorted(m)), [x for k in sorted(m) for x in m[k]]
            ),
            "run into each other",
        ),
        (lambda p, w, m: str(p), "cannot be the name of a file"),
        (lambda p, w, m: p.read_bytes().hex(), "cannot be the name of a file"),
        (lambda p, w, m: hash(p.read_bytes()), "this is a int"),
    ],
)
def test_mistakes_of_keys_are_named(answer, words):
    verdict = check.cache_key(answer)
    assert not verdict.right
    assert words in verdict.words, verdict


def test_another_right_key_passes():
    """The digests of the parts, joined."""

    def joined(path, window, weights):
        parts = [path.read_bytes(), repr(sorted(window.items())).encode()]
        parts += [f"{name}={weights[name]}".encode() for name in sorted(weights)]
        return "-".join(hashlib.md5(part).hexdigest()[:12] for part in parts)

    assert check.cache_key(joined).right
