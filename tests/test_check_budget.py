"""Answers of chapter 14: right ones pass, and each mistake a learner may make is named."""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from answers import common_answers

from mammomil.check import budget as check
from mammomil.index import Index
from mammomil.region_data import choose_annotated

# The right answers, written as in the chapter.


def number(fraction, n):
    return max(1, round(fraction * n)) if fraction > 0 else 0


def cost(lesions, fraction, per_image, per_lesion):
    n = number(fraction, len(lesions))
    return per_image * n + per_lesion * lesions[:n].sum()


def nested(n, fractions, seed):
    order = np.random.default_rng(seed).permutation(n)
    table = np.zeros((len(fractions), n), bool)
    for row, fraction in zip(table, fractions, strict=True):
        row[order[: number(fraction, n)]] = True
    return table


def needed(patients, low, high, gain, power):
    z = NormalDist().inv_cdf
    error = (high - low) / 2 / z(0.975)
    return math.ceil(patients * ((z(0.975) + z(power)) * error / gain) ** 2)


test_common_answers = common_answers(
    ((check.cost, cost), (check.nested, nested), (check.patients_needed, needed))
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda y, f, a, b: (a + b) * number(f, len(y)), "as if it had one lesion"),
        (lambda y, f, a, b: a * number(f, len(y)) + b * y.sum(), "lesions of all images"),
        (lambda y, f, a, b: a * len(y) + b * y[: number(f, len(y))].sum(), "All images are opened"),
        (lambda y, f, a, b: cost(y, f, b, a), "changed places"),
        (lambda y, f, a, b: cost(y, f, 0, b), "Opening the images is missing"),
        (lambda y, f, a, b: cost(y, f, a, 0), "Marking the lesions is missing"),
        (lambda y, f, a, b: cost(y, f, a, b) / 60, "in hours"),
        (lambda y, f, a, b: a * number(f, len(y)) + b * f * y.sum(), "multiplied by the share"),
        (lambda y, f, a, b: a * int(f * len(y)) + b * y[: int(f * len(y))].sum(), "images down"),
        (lambda y, f, a, b: a * math.ceil(f * len(y)) + b * y[: math.ceil(f * len(y))].sum(), "round up"),
        (lambda y, f, a, b: a * round(f * len(y)) + b * y[: round(f * len(y))].sum(), "at least one"),
        (lambda y, f, a, b: cost(y, max(f, 1e-9), a, b), "0 takes no image"),
    ],
)
def test_mistakes_of_the_cost_are_named(answer, words):
    assert words in check.cost(answer).words


def chosen(draw):
    """`draw(generator, n, count, fraction)` gives the images of one share; one generator for all shares."""

    def answer(n, fractions, seed):
        generator, table = np.random.default_rng(seed), np.zeros((len(fractions), n), bool)
        for row, fraction in zip(table, fractions, strict=True):
            row[draw(generator, n, number(fraction, n), fraction)] = True
        return table

    return answer


def with_order(take):
    def answer(n, fractions, seed):
        order = np.random.default_rng(seed).permutation(n)
        table, start = np.zeros((len(fractions), n), bool), 0
        for row, fraction in zip(table, fractions, strict=True):
            count = number(fraction, n)
            row[take(order, count, fraction, start)] = True
            start += count
        return table

    return answer


def choice_of_the_same_seed(n, fractions, seed):
    table = np.zeros((len(fractions), n), bool)
    for row, fraction in zip(table, fractions, strict=True):
        row[np.random.default_rng(seed).choice(n, number(fraction, n), replace=False)] = True
    return table


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chosen(lambda g, n, c, f: g.permutation(n)[:c]), "A new order is drawn"),
        (chosen(lambda g, n, c, f: g.choice(n, c, replace=False)), "`choice` draws anew"),
        (choice_of_the_same_seed, "The same seed does not help"),
        (chosen(lambda g, n, c, f: g.random(n) < f), "A coin is thrown"),
        (with_order(lambda o, c, f, s: o < c), "which places hold"),
        (with_order(lambda o, c, f, s: np.arange(c)), "as they stand"),
        (with_order(lambda o, c, f, s: o[len(o) - c :]), "The last images"),
        (with_order(lambda o, c, f, s: np.roll(o, -s)[:c]), "after those of the share before"),
        (with_order(lambda o, c, f, s: o[: int(f * len(o))]), "You round down"),
        (with_order(lambda o, c, f, s: o[: round(f * len(o))]), "at least one"),
        (with_order(lambda o, c, f, s: o[: max(c, 1)]), "0 takes no image"),
    ],
)
def test_mistakes_of_the_nested_choice_are_named(answer, words):
    assert words in check.nested(answer).words


def flawed(size=None, beyond=None, width=1.0, power=2.0, finish=math.ceil, patients=None):
    def answer(n, low, high, gain, wanted):
        z = NormalDist().inv_cdf
        error = width * (high - low) / 2 / z(0.975)
        ratio = (
            ((z(0.975) if size is None else size) + (z(wanted) if beyond is None else beyond)) * error / gain
        )
        return finish((n if patients is None else patients) * ratio**power)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (flawed(width=2), "width of the interval"),
        (flawed(power=1), "square the ratio"),
        (flawed(power=0.5), "The root goes the other way"),
        (flawed(beyond=0), "The power is missing"),
        (flawed(width=NormalDist().inv_cdf(0.975)), "divide by 1.96"),
        (flawed(size=0), "1.96 is missing"),
        (flawed(size=1.645), "one-sided"),
        (flawed(patients=1), "number of patients is missing"),
        (flawed(finish=float), "Patients are whole"),
        (flawed(finish=math.floor), "round down"),
    ],
)
def test_mistakes_of_the_number_of_patients_are_named(answer, words):
    assert words in check.patients_needed(answer).words


def test_rounded_quantiles_are_good_enough():
    def answer(patients, low, high, gain, power):
        z = {0.5: 0.0, 0.8: 0.8416, 0.9: 1.2816}[power]
        return math.ceil(patients * ((1.96 + z) * (high - low) / 2 / 1.96 / gain) ** 2)

    assert check.patients_needed(answer).right


def test_so_many_patients_tell_the_gain_as_often_as_wanted():
    """Draw studies of so many patients, and count those whose interval leaves 0 out."""
    gain, power, patients, half = 0.02, 0.8, 150, 0.05
    n = needed(patients, -half, half, gain, power)
    error = half / 1.96 * math.sqrt(patients / n)
    found = np.random.default_rng(0).normal(gain, error, 20_000)
    assert np.mean(found - 1.96 * error > 0) == pytest.approx(power, abs=0.01)


def test_the_library_rounds_and_nests_as_the_exercise_does(tmp_path):
    import pandas as pd

    n, seed = 7, 14
    names = [f"i{k}" for k in range(n)]
    images = pd.DataFrame({"image_id": names, "malignant": 1})
    findings = pd.DataFrame({"image_id": names, "finding": "malignant", "x0": 1.0})
    index = Index(images, findings, tmp_path)
    sets = [choose_annotated(index, f, seed) for f in (0.0, 0.1, 0.25, 0.5, 1.0)]
    assert [len(s) for s in sets] == [number(f, n) for f in (0.0, 0.1, 0.25, 0.5, 1.0)]
    assert all(a <= b for a, b in pairwise(sets))
