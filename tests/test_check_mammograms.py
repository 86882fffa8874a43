"""The exercises of chapter 1: right answers pass, and each common mistake is named."""

import numpy as np
import pandas as pd
import pytest
from answers import common_answers

from mammomil.check import mammograms as check
from mammomil.index import split_patients

# The right answers, written as in the chapter.


def invert(stored, bits):
    return 2**bits - 1 - stored.astype(int)


def on_canvas(boxes, affine, size):
    """Corner by corner, in plain Python."""
    (a, _, c), (_, e, f) = affine
    rows = []
    for x0, y0, x1, y1 in boxes:
        x, y = sorted([(x0 - c) / a, (x1 - c) / a]), sorted([(y0 - f) / e, (y1 - f) / e])
        left, right = (min(max(v, 0), size[1]) for v in x)
        top, bottom = (min(max(v, 0), size[0]) for v in y)
        rows.append([left, top, right, bottom])
    return np.array(rows)


def split(patients, kinds, seed):
    rng, worst, side = np.random.default_rng(seed), {}, {}
    for patient, kind in zip(patients, kinds, strict=True):
        worst[patient] = max(worst.get(patient, 0), check.KINDS.index(kind))
    for kind in range(3):
        group = rng.permutation(sorted(p for p in worst if worst[p] == kind))
        few = max(1, round(0.2 * len(group)))
        for n, patient in enumerate(group):
            side[patient] = "val" if n < few else "test" if n < 2 * few else "train"
    return [side[patient] for patient in patients]


def library_split(patients, kinds, seed):
    table = pd.DataFrame({"patient_id": patients})
    for finding in ("benign", "malignant"):
        table[finding] = [float(kind == finding) for kind in kinds]
    return split_patients(table, seed=seed)["split"].tolist()


ANSWERS = [
    (check.from_monochrome1, invert),
    (check.boxes_on_canvas, on_canvas),
    (check.split_by_patient, split),
    (check.split_by_patient, library_split),
]


test_common_answers = common_answers(ANSWERS, {check.split_by_patient: "one split for each image"})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, b: s, "Nothing is inverted"),
        (lambda s, b: -s, "wraps around"),
        (lambda s, b: -s.astype(np.float32), "negative grey values"),
        (lambda s, b: s.max() - s, "(a 12-bit detail without air)"),
        (lambda s, b: s.max() - s, "brightest pixel that happens"),
        (lambda s, b: s.max() + s.min() - s.astype(int), "darkest and the brightest"),
        (lambda s, b: 2**b - s.astype(int), "Off by one"),
        (lambda s, b: 65535 - s.astype(int), "BitsStored"),
        (lambda s, b: np.uint16(4095) - s, "You count from 4095"),
        (lambda s, b: np.uint16(255) - s, "You count from 255"),
        (lambda s, b: invert(s, b)[0], "shape"),
        (lambda s, b: np.subtract(2**b - 1, s, out=s), "changes its arguments"),
    ],
)
def test_mistakes_of_grey_values_are_named(answer, words):
    assert words in check.from_monochrome1(answer).words


def by_corners(move, sort=True, cut=True):
    """A box answer out of a map of corners (n, 2, 2), given the scale and the shift of the affine."""

    def answer(boxes, affine, size):
        corners = move(boxes.reshape(-1, 2, 2), np.diag(affine[:, :2]), affine[:, 2])
        moved = (np.sort(corners, axis=1) if sort else corners).reshape(-1, 4)
        return moved.clip(0, [size[1], size[0]] * 2) if cut else moved

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by_corners(lambda p, scale, shift: p * scale + shift), "Invert it"),
        (by_corners(lambda p, scale, shift: p * scale + shift, cut=False), "Invert it"),
        (by_corners(lambda p, scale, shift: (p - shift) / scale, sort=False), "change places"),
        (by_corners(lambda p, scale, shift: (p - shift) / scale, sort=False, cut=False), "change places"),
        (by_corners(lambda p, scale, shift: (p - shift) / abs(scale)), "scale is negative"),
        (by_corners(lambda p, scale, shift: p / scale), "shift is missing"),
        (by_corners(lambda p, scale, shift: p - shift), "scale is missing"),
        (by_corners(lambda p, scale, shift: p / scale - shift), "scales first"),
        (by_corners(lambda p, scale, shift: (p - shift) / scale, cut=False), "Cut it at the border"),
        (lambda b, a, size: on_canvas(b, a, size[::-1]), "Width and height"),
        (lambda b, a, size: on_canvas(b, a, size)[:, :2], "shape"),
    ],
)
def test_mistakes_of_boxes_are_named(answer, words):
    assert words in check.boxes_on_canvas(answer).words


def by_image(patients, kinds, seed):
    return np.random.default_rng(seed).choice(list(check.SHARES), len(patients), p=[0.6, 0.2, 0.2]).tolist()


def without_kinds(patients, kinds, seed):
    """The first 60 % train, in a table that is sorted by kind."""
    order = np.random.default_rng(seed).permutation(sorted(set(patients)))
    worst = {p: max(kind for q, kind in zip(patients, kinds, strict=True) if q == p) for p in order}
    names = sorted(order, key=worst.__getitem__)
    shares = np.linspace(0, 1, len(names), endpoint=False)
    side = {
        p: "train" if s < 0.6 else "val" if s < 0.8 else "test" for p, s in zip(names, shares, strict=True)
    }
    return [side[patient] for patient in patients]


def unsorted_patients(patients, kinds, seed):
    renamed = {name: f"{n:03d}" for n, name in enumerate(dict.fromkeys(patients))}
    return split([renamed[name] for name in patients], kinds, seed)


def of_halves(patients, kinds, seed):
    """Thirds instead of 60, 20, 20."""
    rng, side = np.random.default_rng(seed), {}
    worst = {
        p: max(check.KINDS.index(k) for q, k in zip(patients, kinds, strict=True) if q == p) for p in patients
    }
    for kind in range(3):
        group = rng.permutation(sorted(p for p in worst if worst[p] == kind))
        side |= dict(zip(group, np.resize(["train", "val", "test"], len(group)), strict=True))
    return [side[patient] for patient in patients]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda p, k, s: ["train"] * len(set(p)), "length"),
        (lambda p, k, s: ["validation"] * len(p), "names"),
        (by_image, "leak"),
        (lambda p, k, s: split(p, k, np.random.default_rng().integers(2**40)), "random"),
        (of_halves, "shares"),
        (without_kinds, "kinds"),
        (lambda p, k, s: ["train"] * len(p), "kinds"),
        (lambda p, k, s: split(p, k, 0), "seed"),
        (unsorted_patients, "order"),
    ],
)
def test_what_is_wrong_with_a_split_is_named(answer, problem):
    verdict = check.split_by_patient(answer)
    assert verdict.words.startswith(check._PROBLEMS[problem])
    assert not verdict.right


def test_an_answer_that_sorts_its_arguments_is_told_so():
    def sorting(patients, kinds, seed):
        result = split(patients, kinds, seed)
        kinds.sort()
        return result

    assert not check.split_by_patient(sorting).right
