import math

import numpy as np
import pandas as pd
import pytest
import torch
from answers import common_answers

from mammomil.check import training as check
from mammomil.dataset import BalancedSampler

# The right answers, written as in the chapter.


def eq1(y_loc, y_mil, saliency, label, weight, beta):
    def bce(y):
        return -(label * y.log() + (1 - label) * (1 - y).log())

    each = bce(y_loc) + bce(y_mil) + weight * saliency.pow(beta).sum((2, 3))
    return each.sum(1).mean()


def known_nll(log_prob, label):
    chosen = torch.where(label == 1, log_prob[..., 1], log_prob[..., 0])
    return torch.where(label.isnan(), 0.0, -chosen).sum(1).mean()


def balanced_rows(label, exam, seed):
    rng = np.random.default_rng(seed)
    positive = np.unique(exam[(label == 1).any(1)])
    negative = np.setdiff1d(exam[~np.isnan(label).all(1)], positive)
    drawn = rng.choice(negative, min(len(positive), len(negative)), replace=False)
    return np.flatnonzero(np.isin(exam, [*positive, *drawn]))


ANSWERS = [(check.eq1, eq1), (check.known_nll, known_nll), (check.balanced_rows, balanced_rows)]


test_common_answers = common_answers(ANSWERS, {check.balanced_rows: "row numbers"})


def test_arguments_must_stay_as_they_are_and_shapes_are_told():
    def careless(log_prob, label):
        loss = known_nll(log_prob, label)
        label.nan_to_num_()
        return loss

    assert "changes its arguments" in check.known_nll(careless).words
    assert "shape" in check.known_nll(lambda p, y: p.sum((1, 2))).words
    assert "shape" in check.eq1(lambda *a: torch.zeros(7)).words


def loops(
    y_loc, y_mil, saliency, label, weight, beta, *, over_b="mean", over_c="sum", cells="sum", parts="lmr"
):
    """Eq. 1 and its mistakes in loops of Python floats, another way than in the check."""
    images = []
    for i in range(len(label)):
        classes = []
        for c in range(2):
            y = float(label[i, c])
            terms = {
                part: -math.log(p if y else 1 - p)
                for part, p in (("l", float(y_loc[i, c])), ("m", float(y_mil[i, c])))
            }
            each = [float(a) ** beta for a in saliency[i, c].flatten()]
            terms["r"] = weight * (sum(each) if cells == "sum" else sum(each) / len(each))
            classes.append(sum(terms[part] for part in parts))
        images.append(sum(classes) / (1 if over_c == "sum" else 2))
    return torch.tensor(sum(images) / (1 if over_b == "sum" else len(images)), dtype=torch.float64)


def power_of_the_sum(*a):
    return loops(*a, parts="lm") + (a[4] * a[2].sum((2, 3)) ** a[5]).sum(1).mean()


def test_the_loops_are_right():
    assert check.eq1(loops).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: loops(*a, over_c="mean"), "average over the classes"),
        (lambda *a: loops(*a, over_b="sum"), "sum over the images"),
        (lambda *a: loops(*a, cells="mean"), "cells of the map are averaged"),
        (lambda *a: loops(*a[:4], 1.0, a[5]), "lambda is missing"),
        (lambda *a: loops(*a, parts="lm"), "The regulariser is missing"),
        (lambda *a: loops(*a, parts="lr"), "L_mil is missing"),
        (lambda *a: loops(*a, parts="mr"), "L_loc is missing"),
        (lambda *a: loops(*a[:5], 1.0), "beta is missing"),
        (lambda *a: loops(*a, parts="lm") + loops(*a, parts="r", over_c="mean"), "mean over the classes"),
        (lambda *a: loops(*a, parts="r") - loops(*a, parts="lm"), "The sign"),
        (
            lambda y_loc, y_mil, *rest: loops((y_loc + y_mil) / 2, y_mil, *rest, parts="lr"),
            "BCE of the average",
        ),
        (power_of_the_sum, "power of the sum"),
    ],
)
def test_mistakes_of_eq1_are_named(answer, words):
    assert words in check.eq1(answer).words


def formula(log_prob, label):
    return -(label * log_prob[..., 1] + (1 - label) * log_prob[..., 0])


def known_rows(each, label):
    return each[~label.isnan().any(1)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, y: (formula(p, y) * ~y.isnan()).sum(1).mean(), "NaN * 0 is NaN"),
        (lambda p, y: formula(p, y.nan_to_num()).sum(1).mean(), "counts as 0"),
        (lambda p, y: formula(p, y)[~y.isnan()].mean(), "number of known labels"),
        (lambda p, y: known_nll(p, y) / 2, "average over the classes"),
        (lambda p, y: known_nll(p, y) * len(y), "sum over the images"),
        (lambda p, y: known_rows(formula(p, y), y).sum(1).mean(), "its known labels with it"),
        (lambda p, y: formula(p, y).nanmean(1).nan_to_num().mean(), "known labels of each image"),
        (lambda p, y: known_nll(p.flip(-1), y), "changed places"),
        (lambda p, y: -known_nll(p, y), "The sign"),
        (lambda p, y: formula(p, y).nansum() / (~y.isnan()).any(1).sum(), "something is known"),
        (lambda p, y: known_nll(p, y).detach(), "no gradient"),
        (lambda p, y: known_nll(p, y).item(), "no gradient"),
        (lambda p, y: torch.where(y.isnan(), 0, formula(p, y)).sum(1).mean(), "its gradient is NaN"),
        (lambda p, y: formula(p, y).nan_to_num().sum(1).mean(), "its gradient is NaN"),
    ],
)
def test_mistakes_of_unknown_labels_are_named(answer, words):
    assert words in check.known_nll(answer).words


def test_other_right_ways_of_leaving_out_pass():
    def by_index(p, y):
        known = ~y.isnan()
        return formula(p[known], y[known]).sum() / len(y)

    def by_filling(p, y):
        return (formula(p, y.nan_to_num()) * ~y.isnan()).sum(1).mean()

    assert check.known_nll(by_index).right
    assert check.known_nll(by_filling).right


def by_library(label, exam, seed):
    """`BalancedSampler` itself is a right answer."""
    table = pd.DataFrame({"exam_id": exam, "benign": label[:, 0], "malignant": label[:, 1]})
    sampler = BalancedSampler(table)
    sampler.set_epoch(seed)
    return [row for row, _ in sampler]


def variant(*, positive=None, negative=None, count=min, replace=False, rows=None, seeded=True):
    """A right answer with one part exchanged."""

    def answer(label, exam, seed):
        rng = np.random.default_rng(seed if seeded is True else seeded)
        sick = np.unique(exam[(label == 1).any(1)]) if positive is None else positive(label, exam)
        well = (
            np.setdiff1d(exam[~np.isnan(label).all(1)], sick)
            if negative is None
            else negative(label, exam, sick)
        )
        drawn = rng.choice(well, min(count(len(sick), len(well)), len(well)), replace=replace)
        return (
            np.flatnonzero(np.isin(exam, [*sick, *drawn]))
            if rows is None
            else rows(exam, [*sick, *drawn], rng)
        )

    return answer  # fmt: skip


def with_global(label, exam, seed):
    np.random.seed(seed)  # noqa: NPY002
    return np.random.permutation(balanced_rows(label, exam, seed))  # noqa: NPY002


def images_not_exams(label, exam, seed):
    sick, well = (np.flatnonzero(kind) for kind in ((label == 1).any(1), (label == 0).all(1)))
    return [*sick, *np.random.default_rng(seed).choice(well, len(sick), replace=False)]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda *a: balanced_rows(*a)[:, None], "rows"),
        (lambda *a: list(a[1]), "rows"),  # exam numbers in place of rows
        (lambda *a: [*balanced_rows(*a), 1000], "rows"),
        (lambda *a: [*balanced_rows(*a)] * 2, "once"),
        (variant(negative=lambda y, e, sick: np.setdiff1d(e, sick)), "known"),
        (variant(positive=lambda y, e: np.unique(e[(y == 1).any(1)])[1:]), "positive"),
        (variant(rows=lambda e, chosen, rng: [np.flatnonzero(e == c)[0] for c in chosen]), "whole"),
        (images_not_exams, "whole"),
        (variant(count=max), "not more"),
        (variant(count=lambda p, n: p - 1), "not fewer"),
        (variant(replace=True), "not fewer"),
        (variant(negative=lambda y, e, sick: np.setdiff1d(e, [*sick, *e[np.isnan(y).any(1)]])), "all"),
        (variant(seeded=None), "repeats"),
        (with_global, "own generator"),
        (variant(seeded=3), "anew"),
    ],
)
def test_faults_of_an_epoch_are_named(answer, name):
    assert check.balanced_rows(answer).words.startswith(check.FAULTS[name])


def test_the_librarys_sampler_is_a_right_answer():
    assert check.balanced_rows(by_library).right
