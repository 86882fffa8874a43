"""Answers of chapter 14: what a share costs, which images it takes, how many patients tell a gain."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mammomil.check.answers import Case, Verdict, judge

Number = int | float | np.number


def cost(answer: Callable[[NDArray, float, float, float], float]) -> Verdict:
    """Judge (lesions of each image, fraction, minutes an image, minutes a lesion) -> minutes (D29).

    Images are annotated in the order given; a share of 7 images is rounded, and above 0 at least 1.
    """
    cases = []
    for lesions, fraction, per_image, per_lesion, note in (
        ([1, 3, 1, 2, 1, 1, 2, 4], 0.5, 0.5, 1.0, "half of eight images"),
        ([2, 1, 1, 3, 1, 1, 2], 0.25, 1.0, 2.5, "a quarter of seven images is 1.75"),
        ([1, 2, 1, 1], 0.1, 0.5, 1.0, "a tenth of four images"),
        ([1, 2, 1, 1], 0.0, 0.5, 1.0, "nothing is annotated"),
        ([4, 1, 1, 1, 2], 1.0, 2.0, 0.25, "all images"),
        ([1, 2, 1, 3, 1], 0.25, 1.0, 2.0, "a quarter of five images is 1.25"),
    ):
        counts = np.array(lesions)
        n = _count(fraction, len(counts))
        marked = int(counts[:n].sum())
        share = fraction * len(counts)

        def price(images: int, marks: Number, a: float = per_image, b: float = per_lesion) -> float:
            return float(a * images + b * marks)

        mistakes = {
            "Every image is priced as if it had one lesion. Add up the lesions of the chosen images.": price(
                n, n
            ),
            "The lesions of all images are counted. Only those of the chosen images are marked.": price(
                n, counts.sum()
            ),
            "All images are opened in your answer. Only the chosen ones are.": price(len(counts), marked),
            "The two prices have changed places.": price(marked, n),
            "Opening the images is missing.": price(0, marked),
            "Marking the lesions is missing.": price(n, 0),
            "This is in hours. The answer is wanted in minutes.": price(n, marked) / 60,
            "The lesions are multiplied by the share. Add up those of the chosen images, the first ones.": (
                price(n, fraction * counts.sum())
            ),
            "A share above 0 takes at least one image: max(1, ...).": price(
                round(share), counts[: round(share)].sum()
            ),
            "You round the number of images down. `choose_annotated` rounds to the nearest number.": (
                price(int(share), counts[: int(share)].sum())
            ),
            "You round up. `choose_annotated` rounds to the nearest number.": price(
                math.ceil(share), counts[: math.ceil(share)].sum()
            ),
            "A share of 0 takes no image.": price(max(n, 1), counts[: max(n, 1)].sum()),
        }
        cases.append(Case((counts, fraction, per_image, per_lesion), price(n, marked), mistakes, note))
    return judge(answer, cases, "Two prices: one for each image that is opened, one for each lesion in it.")


def _count(fraction: float, n: int) -> int:
    return max(round(fraction * n), 1) if fraction > 0 else 0


def nested(answer: Callable[[int, Sequence[float], int], NDArray]) -> Verdict:
    """Judge (n, fractions, seed) -> truth values (fractions, n): which images each share takes (D29).

    The order of the images is `np.random.default_rng(seed).permutation(n)`; a share takes its first ones.
    """
    cases = []
    for n, fractions, seed, note in (
        (10, [0.2, 0.5, 1.0], 3, "ten images"),
        (7, [0.0, 0.05, 0.25, 0.75], 14, "seven images, small shares"),
        (6, [1.0, 0.5, 0.0], 8, "the largest share first"),
    ):
        order = np.random.default_rng(seed).permutation(n)
        counts = [_count(f, n) for f in fractions]
        want = _taken(n, [order[:c] for c in counts])
        one, two, three = (np.random.default_rng(seed) for _ in range(3))
        mistakes = {
            "A new order is drawn for each share, so that a larger share does not hold a smaller one. Draw "
            "once, before the loop.": _taken(n, [one.permutation(n)[:c] for c in counts]),
            "`choice` draws anew for each share: a larger share does not hold a smaller one. Draw one order, "
            "and take its first images.": _taken(n, [two.choice(n, c, replace=False) for c in counts]),
            "The same seed does not help `choice`: for another number it takes other images. Draw one order, "
            "and take its first images.": _taken(
                n, [np.random.default_rng(seed).choice(n, c, replace=False) for c in counts]
            ),
            "A coin is thrown for each image, so that the number of images is left to chance.": (
                three.random((len(fractions), n)) < np.array(fractions)[:, None]
            ),
            "`order < count` asks which places hold a small number. The images to take are order[:count].": (
                np.stack([order < c for c in counts])
            ),
            "The first images are taken as they stand, without the order. Sorted by name, they may all be of "
            "one centre.": _taken(n, [np.arange(c) for c in counts]),
            "The last images of the order are taken. Take the first: order[:count].": _taken(
                n, [order[n - c :] for c in counts]
            ),
            "Each share takes the images after those of the share before. A larger share must hold a smaller "
            "one.": _taken(n, [np.roll(order, -sum(counts[:k]))[:c] for k, c in enumerate(counts)]),
            "A share above 0 takes at least one image: max(1, ...).": _taken(
                n, [order[: round(f * n)] for f in fractions]
            ),
            "A share is rounded to the nearest number. You round down.": _taken(
                n, [order[: int(f * n)] for f in fractions]
            ),
            "A share of 0 takes no image.": _taken(n, [order[: max(c, 1)] for c in counts]),
        }
        cases.append(Case((n, list(fractions), seed), want, mistakes, note))
    return judge(
        answer,
        cases,
        "One order for all shares: two points of the curve differ by the images added, and by nothing else.",
    )


def _taken(n: int, chosen: Sequence[NDArray]) -> NDArray:
    table = np.zeros((len(chosen), n), bool)
    for row, images in zip(table, chosen, strict=True):
        row[images] = True
    return table


def patients_needed(answer: Callable[[int, float, float, float, float], int]) -> Verdict:
    """Judge (patients, low, high, gain, power) -> patients that tell `gain` with probability `power`.

    (low, high) is a 95 % interval of a difference of two models on the same `patients`.
    """
    cases = []
    for patients, low, high, gain, power, note in (
        (200, -0.021, 0.008, 0.017, 0.8, "power .8"),
        (42, -0.09, 0.05, 0.02, 0.5, "power .5"),
        (100, -0.01, 0.03, 0.04, 0.9, "a large gain"),
    ):
        error, z = (high - low) / 2 / _Z, NormalDist().inv_cdf(power)  # error: a standard error

        def ratio(size: float = _Z, beyond: float = z, error: float = error, gain: float = gain) -> float:
            return (size + beyond) * error / gain

        mistakes = {
            "You take the width of the interval for half of it. It reaches 1.96 standard errors to either "
            "side.": _whole(patients, ratio(error=2 * error) ** 2),
            "A standard error falls with the square root of the number of patients, not with the number: "
            "square the ratio.": _whole(patients, ratio()),
            "The root goes the other way: patients grow with the square of the ratio.": _whole(
                patients, math.sqrt(ratio())
            ),
            "The power is missing: such an interval leaves 0 out in half of all studies. Add its quantile to "
            "1.96.": _whole(patients, ratio(beyond=0.0) ** 2),
            "Half of the interval is 1.96 standard errors: divide by 1.96 before you scale.": _whole(
                patients, ratio(error=_Z * error) ** 2
            ),
            "1.96 is missing: an interval has to leave 0 out by itself, not only on average.": _whole(
                patients, ratio(size=0.0) ** 2
            ),
            "You take 1.645, the quantile of a one-sided test. A 95 % interval has 1.96.": _whole(
                patients, ratio(size=1.645) ** 2
            ),
            "The number of patients is missing: the interval was that of `patients`.": _whole(
                1, ratio() ** 2
            ),
            "Patients are whole. Round up: `math.ceil`.": patients * ratio() ** 2,
            "You round down, which is just too few. Round up: `math.ceil`.": math.floor(
                patients * ratio() ** 2
            ),
        }
        want = _whole(patients, ratio() ** 2)
        cases.append(Case((patients, low, high, gain, power), want, mistakes, note))
    return judge(answer, cases, "Half the gain needs four times the patients.", tolerance=1e-9)


_Z = NormalDist().inv_cdf(0.975)


def _whole(patients: int, times: float) -> int:
    return math.ceil(patients * times)
