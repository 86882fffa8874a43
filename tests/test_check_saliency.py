import math

import pytest
import torch
from answers import common_answers

from mammomil.check import saliency as check

# The right answers, in plain Python floats where no gradient is asked for.


def top_t(A, t):
    def pool(rows):
        cells = sorted((value for row in rows for value in row), reverse=True)
        kept = cells[: max(1, round(t * len(cells)))]
        return sum(kept) / len(kept)

    return torch.tensor([[pool(rows) for rows in maps] for maps in A.tolist()])


def penalty(A, beta):
    lit = A > 0
    return torch.where(lit, torch.where(lit, A, 1.0) ** beta, 0.0).sum((2, 3))


def log_sum_exp(A, r):
    def pool(rows):
        cells = [value for row in rows for value in row]
        top = max(cells)
        return top + math.log(sum(math.exp(r * (v - top)) for v in cells) / len(cells)) / r

    return torch.tensor([[pool(rows) for rows in maps] for maps in A.tolist()])


ANSWERS = [(check.top_t, top_t), (check.penalty, penalty), (check.log_sum_exp, log_sum_exp)]


test_common_answers = common_answers(ANSWERS)


def cells(A):
    return A.flatten(2).sort(-1, descending=True).values


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda A, t: A.amax((2, 3)), "one largest cell"),
        (lambda A, t: A.mean((2, 3)), "mean of all cells"),
        (lambda A, t: top_t(A, t / 100), "t is a fraction"),
        (lambda A, t: cells(A)[..., : max(1, int(t * A[0, 0].numel()))].mean(-1), "rounded down"),
        (lambda A, t: cells(A)[..., : math.ceil(t * A[0, 0].numel())].mean(-1), "rounded up"),
        (lambda A, t: cells(A)[..., : round(t * A[0, 0].numel())].mean(-1), "mean of nothing is NaN"),
        (lambda A, t: top_t(A.flatten(1)[:, None, None], t).expand(A.shape[:2]), "both findings"),
        (lambda A, t: top_t(A.mean(1, keepdim=True), t).expand(A.shape[:2]), "average the cells over the"),
        (lambda A, t: 1 - top_t(1 - A, t), "smallest"),
        (lambda A, t: top_t(A, t) * max(1, round(t * A[0, 0].numel())), "Divide by their number"),
        (lambda A, t: A.topk(round(t * A.shape[3]), -1).values.mean((-2, -1)), "each row"),
        (lambda A, t: cells(A)[..., : max(1, round(t * A[0, 0].numel()))], "cells themselves"),
    ],
)
def test_mistakes_of_top_t_are_named(wrong, words):
    assert words in check.top_t(wrong).words


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda A, beta: (A**beta).mean((2, 3)), "averaged"),
        (lambda A, beta: A.sum((2, 3)), "beta is not used"),
        (lambda A, beta: A.sum((2, 3)) ** beta, "sum is raised"),
        (lambda A, beta: (beta * A).sum((2, 3)), "beta multiplies"),
        (lambda A, beta: -(A**beta).sum((2, 3)), "sign"),
        (lambda A, beta: (A**beta).sum(), "one number for all"),
        (lambda A, beta: (A**beta).sum((1, 2, 3)), "findings are added"),
        (lambda A, beta: torch.linalg.vector_norm(A, beta, (2, 3)), "root"),
        (lambda A, beta: (beta**A).sum((2, 3)), "base"),
        (lambda A, beta: A**beta, "not added up"),
        (lambda A, beta: (A**beta).sum((2, 3)), "gradient is NaN"),
        (lambda A, beta: penalty(A.detach(), beta), "no gradient"),
    ],
)
def test_mistakes_of_the_penalty_are_named(wrong, words):
    assert words in check.penalty(wrong).words


def naive(A, r):
    return (r * A).exp().mean((2, 3)).log() / r


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (naive, "overflows to infinity"),
        (lambda A, r: naive(A, r) - naive(A, r) + naive(A, r), "NaN"),
        (lambda A, r: (r * A).logsumexp((2, 3)) / r, "where the formula has a mean"),
        (lambda A, r: log_sum_exp(A, r) * r, "1 / r is missing"),
        (lambda A, r: naive(A - A.amax((2, 3), keepdim=True), r), "did not put it back"),
        (lambda A, r: naive(A - A.amax((2, 3), True), r) + A.amax((2, 3)) / r, "divided by r once more"),
        (lambda A, r: naive(A, 1.0), "missing inside exp"),
        (lambda A, r: A.amax((2, 3)), "the maximum"),
        (lambda A, r: A.mean((2, 3)), "the mean"),
        (lambda A, r: (r * (A - A.amax((2, 3), True))).exp().mean((2, 3)), "logarithm is missing"),
    ],
)
def test_mistakes_of_log_sum_exp_are_named(wrong, words):
    assert words in check.log_sum_exp(wrong).words
