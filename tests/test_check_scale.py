"""Answers of chapter 19: right ones pass, and each mistake a learner may make is named."""

import math

import numpy as np
import pytest
import torch
from answers import common_answers
from test_train import Squares, run

from mammomil.check import scale as check

# The right answers, written as in the chapter.


def schedule(images, batch_size, processes, accumulate):
    step = batch_size * processes * accumulate
    return step, math.ceil(images / step)


def draws(top, chance):
    return math.ceil(math.log(1 - chance) / math.log(1 - top))


def accumulated(mean_loss, weight, parts):
    weight = weight.clone().requires_grad_()
    images = sum(len(part) for part in parts)
    for part in parts:
        (mean_loss(weight, part) * len(part) / images).backward()
    return weight.grad


test_common_answers = common_answers(
    ((check.schedule, schedule), (check.draws, draws), (check.accumulated, accumulated))
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n, b, p, a: (b * p * a, n // (b * p * a)), "You round down"),
        (lambda n, b, p, a: (b * p * a, n / (b * p * a)), "Steps are whole"),
        (lambda n, b, p, a: (b * p * a, n // (b * p * a) + 1), "You add 1"),
        (lambda n, b, p, a: schedule(n, b, p, 1), "accumulation is missing"),
        (lambda n, b, p, a: (b * p * a, schedule(n, b, p, 1)[1]), "You count batches"),
        (lambda n, b, p, a: schedule(n, b, 1, a), "processes are missing"),
        (lambda n, b, p, a: (b * p * a, schedule(n, b, 1, a)[1]), "They share them"),
        (lambda n, b, p, a: schedule(n, b, p, a)[::-1], "changed places"),
    ],
)
def test_mistakes_of_the_schedule_are_named(answer, words):
    assert words in check.schedule(answer).words


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_loop_makes_as_many_steps(tmp_path, accumulate):
    run(tmp_path, epochs=2, accumulate=accumulate, valid=False)  # batches of 5
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    steps = schedule(len(Squares()), 5, 1, accumulate)[1]
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {2 * steps}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda q, p: math.floor(math.log(1 - p) / math.log(1 - q)), "You round down"),
        (lambda q, p: math.log(1 - p) / math.log(1 - q), "Draws are whole"),
        (lambda q, p: math.ceil(p / q), "do not add up"),
        (lambda q, p: math.ceil(1 / q), "on average"),
        (lambda q, p: math.ceil(math.log(p) / math.log(1 - q)), "not chance"),
        (lambda q, p: math.ceil(math.log(1 - p) / math.log(q)), "not with top"),
    ],
)
def test_mistakes_of_the_draws_are_named(answer, words):
    assert words in check.draws(answer).words


@pytest.mark.parametrize(("top", "chance"), [(0.05, 0.95), (0.1, 0.9), (0.5, 0.99)])
def test_so_many_draws_are_just_enough(top, chance):
    n, random = draws(top, chance), np.random.default_rng(0)
    assert 1 - (1 - top) ** n >= chance > 1 - (1 - top) ** (n - 1)
    best = random.random((100_000, n)).max(1)
    assert np.mean(best > 1 - top) == pytest.approx(1 - (1 - top) ** n, abs=0.005)


def parts_first(combine):
    """An answer that combines the gradients (parts, d) of the parts and their sizes (parts, 1)."""

    def answer(mean_loss, weight, parts):
        leaf = weight.clone().requires_grad_()
        single = torch.stack([torch.autograd.grad(mean_loss(leaf, part), leaf)[0] for part in parts])
        return combine(single, torch.tensor([[float(len(part))] for part in parts], dtype=torch.float64))

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (parts_first(lambda g, n: g.mean(0)), "mean of the parts' means"),
        (parts_first(lambda g, n: g.sum(0)), "not divided"),
        (parts_first(lambda g, n: g[-1]), "Only the last part"),
        (parts_first(lambda g, n: g[0]), "Only the first part"),
        (parts_first(lambda g, n: (n * g).sum(0)), "not yet their mean"),
        (parts_first(lambda g, n: (n * g).sum(0) / (n[0] * len(n))), "large as the first"),
        (parts_first(lambda g, n: (n * g).sum(0) / (n[-1] * len(n))), "large as the last"),
        (parts_first(lambda g, n: (n * g)[:-1].sum(0) / n[:-1].sum()), "last part is missing"),
        (parts_first(lambda g, n: -(n * g).sum(0) / n.sum()), "The sign"),
    ],
)
def test_mistakes_of_the_accumulation_are_named(answer, words):
    assert words in check.accumulated(answer).words


def test_all_parts_at_once_do_not_fit():
    def whole(mean_loss, weight, parts):
        leaf = weight.clone().requires_grad_()
        return torch.autograd.grad(mean_loss(leaf, torch.cat(parts)), leaf)[0]

    assert "19 images at once, and only 8 fit" in check.accumulated(whole).words


def test_the_gradient_is_that_of_the_mean_over_all_images():
    """Against differences of a loss that numpy computes image by image."""
    random = np.random.default_rng(3)
    parts = [np.c_[random.normal(size=(n, 3)), random.integers(0, 2, n)] for n in (4, 4, 1)]
    weight = random.normal(size=3)

    def loss(w):
        rows = np.concatenate(parts)
        p = 1 / (1 + np.exp(-rows[:, :3] @ w))
        return np.mean([-np.log(q if y == 1 else 1 - q) for q, y in zip(p, rows[:, 3], strict=True)])

    steps = 1e-6 * np.eye(3)
    wanted = [(loss(weight + step) - loss(weight - step)) / 2e-6 for step in steps]
    found = accumulated(check._limited(4), torch.tensor(weight), [torch.tensor(part) for part in parts])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
