"""Answers of chapter 1: grey values of MONOCHROME1, boxes on the canvas, splits by patient."""

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np

from mammomil.check.answers import Case, Verdict, judge
from mammomil.preprocess import invert_affine, transform_boxes

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
KINDS = ("normal", "benign", "malignant")  # a patient is what her worst image is


def from_monochrome1(answer: Callable[[np.ndarray, int], np.ndarray]) -> Verdict:
    """Judge (stored values (h, w), bits) -> grey values of which larger is denser: 2^bits - 1 - stored."""
    pictures = (
        (np.array([[4095, 4095, 900], [4095, 1200, 310]], np.uint16), 12, "a 12-bit image with air"),
        (np.array([[3800, 2950], [1200, 310]], np.uint16), 12, "a 12-bit detail without air"),
        (np.array([[16383, 9000], [8500, 77]], np.uint16), 14, "a 14-bit image"),
        (np.array([[255, 130, 4]], np.uint8), 8, "an 8-bit image"),
    )
    cases = []
    for stored, bits, note in pictures:
        whole = stored.astype(np.int64)
        mistakes = {
            "Nothing is inverted: air is still the brightest.": whole,
            "Minus alone makes every value negative, or wraps around in unsigned numbers. Count from the "
            "largest value that the bits can hold.": -stored,
            "With floats minus gives negative grey values. Add the largest value that the bits can hold.": (
                -whole
            ),
            "You count from the brightest pixel that happens to be there. Two details of one image then get "
            "different grey values. Count from what the bits can hold.": whole.max() - whole,
            "You mirror between the darkest and the brightest pixel of this image. Two images of one machine "
            "then get different grey values.": whole.max() + whole.min() - whole,
            "Off by one: the largest value of n bits is 2^n - 1, and air has to become exactly 0.": (
                2**bits - whole
            ),
            "You count from 65535, as if all 16 bits that are allocated were in use. BitsStored says how "
            "many are.": 65535 - whole,
            "You count from 4095 whatever the bits are. Unsigned numbers below 0 wrap around.": (
                np.uint16(4095) - stored.astype(np.uint16)
            ),
            "You count from 255 whatever the bits are. Unsigned numbers below 0 wrap around.": (
                np.uint16(255) - stored.astype(np.uint16)
            ),
        }
        cases.append(Case((stored, bits), 2**bits - 1 - whole, mistakes, note))
    praise = "Brighter is denser again, air is exactly 0, and the bits decide, not the pixels of one image."
    return judge(answer, cases, praise)


def boxes_on_canvas(answer: Callable[[np.ndarray, np.ndarray, tuple[int, int]], np.ndarray]) -> Verdict:
    """Judge (boxes (n, 4) xyxy in the file, affine canvas -> file, (height, width)) -> boxes on the canvas.

    Boxes are clipped to the canvas; x0 <= x1 also where the canvas is a mirror image.
    """
    boxes = np.array([[30.0, 40.0, 70.0, 100.0], [100.0, 20.0, 140.0, 36.0]])
    wide = np.array([[60.0, 50.0, 400.0, 170.0]])
    cases = []
    for given, affine, size, note in (
        (boxes, [[1.0, 0, 12], [0, 1, -8]], (160, 200), "a left breast, native pixels"),
        (boxes, [[4.0, 0, 10], [0, 4, 20]], (48, 64), "a left breast, canvas pixels of 4 file pixels"),
        (boxes, [[-4.0, 0, 240], [0, 4, 0]], (48, 80), "a right breast: the canvas is its mirror image"),
        (wide, [[-2.0, 0, 300], [0, 2, 10]], (64, 96), "a box that reaches past the canvas"),
    ):
        matrix = np.array(affine)
        back = invert_affine(matrix)
        scale, shift = matrix[[0, 1], [0, 1]], matrix[:, 2]
        corners = given.reshape(-1, 2, 2)
        high = np.array([size[1], size[0]] * 2, dtype=float)  # x1 at most the width, y1 the height

        def clip(moved: np.ndarray, high: np.ndarray = high) -> np.ndarray:
            return moved.reshape(-1, 4).clip(0, high)

        right = transform_boxes(given, back)
        unsorted = (corners - shift) / scale
        mistakes = {}
        for explanation, moved in (
            (
                "You went from the canvas to the file, but the boxes are in the file already. Invert it.",
                transform_boxes(given, matrix),
            ),
            (
                "In a mirror image left and right change places: x0 must stay the smaller one. Sort.",
                unsorted,
            ),
            (
                "You ignore that the scale is negative: the canvas is a mirror image.",
                np.sort((corners - shift) / abs(scale), axis=1),
            ),
            ("The shift is missing: the canvas begins elsewhere than the file.", corners / scale),
            ("The scale is missing: a canvas pixel can be several file pixels wide.", corners - shift),
            (
                "First the shift is undone, then the scale: the affine scales first and shifts after it.",
                np.sort(corners / scale - shift, axis=1),
            ),
        ):
            mistakes[explanation] = clip(moved)
            mistakes[f"{explanation} Nor is the box cut at the border."] = moved.reshape(-1, 4)
        mistakes["The box reaches past the canvas. Cut it at the border."] = right
        mistakes["Width and height have changed places: x is cut at the width, y at the height."] = (
            right.clip(0, high[[1, 0, 3, 2]])
        )
        cases.append(Case((given, matrix, size), clip(right), mistakes, note))
    praise = "The inverse map, sorted where it mirrors, cut at the border: boxes and pixels move together."
    return judge(answer, cases, praise)


_FINE = "fine"
_PROBLEMS = {
    "length": "It does not return one split for each image.",
    "names": "It returns something else than train, val and test.",
    "leak": "A patient is on two sides. Deal out patients, and give every image the split of its patient.",
    "random": "The same call gives another split the next time. Let the seed decide: "
    "`np.random.default_rng(seed)`.",
    "shares": "The shares of the patients are far from 60, 20 and 20 %.",
    "kinds": "A kind of patient is missing from a split, though there are enough for all three. Deal out "
    "each kind by itself.",
    "seed": "Every seed gives the same split: it has to be a random one.",
    "order": "Sorting the table in another way moves patients to other splits. Sort the patients before "
    "you shuffle them.",
}


def split_by_patient(answer: Callable[[Sequence[str], Sequence[str], int], Sequence[str]]) -> Verdict:
    """Judge (patient and kind of each image, seed) -> split of each image, by the properties it must have.

    No patient on two sides; 60, 20 and 20 % of the patients, within 10 points; each kind of patient in each
    split; the seed decides, and the order of the images does not.
    """
    explained = {text: text for text in _PROBLEMS.values()}
    cases = [
        Case((*_cohort(counts, seed), seed), _FINE, explained, note)
        for counts, seed, note in (
            ((20, 20, 20), 1, "60 patients, 20 of each kind"),
            ((80, 10, 5), 2, "95 patients, 5 of them malignant"),
            ((10, 6, 3), 3, "19 patients, 3 of them malignant"),
        )
    ]
    praise = "Whole patients, each kind in each split, and the seed alone decides: this can be trusted."
    return judge(_reported(answer), cases, praise)


def _cohort(counts: tuple[int, int, int], seed: int) -> tuple[list[str], list[str]]:
    """Patient and kind of images: 2 to 6 for each patient, some of them better than the worst, shuffled."""
    rng = np.random.default_rng(seed)
    names = [f"P{n:03d}" for n in rng.permutation(sum(counts))]
    images = []
    for name, worst in zip(names, np.repeat(range(len(KINDS)), counts), strict=True):
        kinds = [worst, *rng.integers(0, worst + 1, rng.integers(1, 6))]
        images += [(name, KINDS[kind]) for kind in kinds]
    order = rng.permutation(len(images))
    return [images[i][0] for i in order], [images[i][1] for i in order]


def _reported(answer: Callable[..., Sequence[str]]) -> Callable[..., str | None]:
    """Turn an answer into the first thing that is wrong with what it returns."""

    @wraps(answer)
    def report(patients: list[str], kinds: list[str], seed: int) -> str | None:
        first = answer(patients, kinds, seed)
        if first is None or first is ...:
            return None
        found = [str(name) for name in first]
        if len(found) != len(patients):
            return _PROBLEMS["length"]
        if not set(found) <= set(SHARES):
            return _PROBLEMS["names"]
        side = dict(zip(patients, found, strict=True))
        if any(side[patient] != name for patient, name in zip(patients, found, strict=True)):
            return _PROBLEMS["leak"]
        if [str(name) for name in answer(patients, kinds, seed)] != found:
            return _PROBLEMS["random"]
        worst = dict.fromkeys(patients, 0)
        for patient, kind in zip(patients, kinds, strict=True):
            worst[patient] = max(worst[patient], KINDS.index(kind))
        sizes = {name: list(side.values()).count(name) / len(side) for name in SHARES}
        if len({(worst[patient], name) for patient, name in side.items()}) < len(KINDS) * len(SHARES):
            return _PROBLEMS["kinds"]
        if any(abs(sizes[name] - share) > 0.1 for name, share in SHARES.items()):
            return _PROBLEMS["shares"]
        others = [[str(name) for name in answer(patients, kinds, seed + n)] for n in (1, 2, 3)]
        if all(other == found for other in others):
            return _PROBLEMS["seed"]
        back = answer(patients[::-1], kinds[::-1], seed)
        return _FINE if [str(name) for name in back][::-1] == found else _PROBLEMS["order"]

    return report
