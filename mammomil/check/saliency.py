"""Answers of chapter 2: top-t pooling, the penalty of the map, a log-sum-exp that does not overflow."""

import math
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.losses import saliency_penalty
from mammomil.pooling import top_t_count, top_t_pool


def _map(*shape: int, seed: int) -> Tensor:
    """Return values in (0, 1) as a sigmoid gives them, most of them small."""
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) - 2).sigmoid()


def _wrong(mistakes: dict[str, Tensor], want: Tensor) -> dict[str, Tensor]:
    """Leave out what is no mistake in this case."""
    return {
        why: value
        for why, value in mistakes.items()
        if value.shape != want.shape or not torch.allclose(value, want)
    }


def top_t(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Judge (A (b, c, h, w), t) -> y_loc (b, c): the mean of the top fraction t (G3, reading G-c)."""
    cases = [
        _top_t_case(_map(*shape, seed=shape[2] + shape[0]), t, note)
        for shape, t, note in (
            ((2, 2, 20, 20), 0.5, "400 cells, t = 0.5"),
            ((3, 2, 6, 5), 0.22, "30 cells, t = 0.22: 6.6 cells"),
            ((1, 2, 6, 5), 0.08, "30 cells, t = 0.08: 2.4 cells"),
            ((2, 2, 6, 5), 0.01, "30 cells, t = 0.01: 0.3 of a cell"),
            ((2, 2, 6, 5), 1.0, "t = 1, which is the mean of all"),
        )
    ]
    praise = "One cell is GMP, all cells are GAP, and t says where between them you are."
    return judge(answer, cases, praise)


def _top_t_case(A: Tensor, t: float, note: str) -> Case:
    (b, c, h, w), cells = A.shape, A.flatten(2)
    want, count = top_t_pool(A, t), top_t_count(h, w, t)

    def largest(values: Tensor, number: int) -> Tensor:
        return values.topk(min(number, values.shape[-1])).values.mean(-1)

    mistakes = {
        "The result is the same for both findings: you pool over them as well. Each has its own map.": (
            largest(A.flatten(1), top_t_count(c * h, w, t))[:, None].expand(b, c)
        ),
        "You average the cells over the findings before you pool: axis 1 holds maps, not cells.": (
            top_t_pool(A.mean(1, keepdim=True), t).expand(b, c)
        ),
        "You return the mean of all cells. Sort them and keep the largest t.": A.mean((2, 3)),
        "You return the one largest cell, the maximum. Wanted is the mean of the largest ones.": (
            A.amax((2, 3))
        ),
        "t is a fraction: 0.02 means 2 % of the cells. You divide it by 100 once more.": (
            largest(cells, max(1, round(t / 100 * h * w)))
        ),
        "The number of cells is rounded down; round it to the nearest.": largest(
            cells, max(1, int(t * h * w))
        ),
        "The number of cells is rounded up; round it to the nearest.": largest(cells, math.ceil(t * h * w)),
        "These are the smallest cells. Sort in descending order.": 1 - top_t_pool(1 - A, t),
        "You sum the largest cells. Divide by their number.": want * count,
        "You keep the largest of each row. Flatten rows and columns into one list of cells first.": (
            A.topk(max(1, round(t * w)), -1).values.mean((-2, -1))
        ),
        "These are the cells themselves; their mean is still to be taken.": cells.topk(count).values,
    }
    if t * h * w < 0.5:
        nothing = torch.full((b, c), torch.nan)
        mistakes[
            "No cell is left, and the mean of nothing is NaN, a fault of the authors' code too. Keep one."
        ] = nothing
    return Case((A, t), want, _wrong(mistakes, want), note)


def penalty(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Judge (A (b, c, h, w), beta) -> L_reg (b, c) (checklist G4, reading G-a).

    Its gradient by the logits must be finite where A is 0 (reading G-b).
    """
    cases = []
    for shape, beta in (((2, 2, 5, 4), 2.0), ((1, 2, 6, 3), 0.5), ((3, 2, 4, 4), 1.0)):
        A = _map(*shape, seed=shape[0])
        want = saliency_penalty(A, beta)
        mistakes = {
            "The cells are averaged. The paper writes a sum, and its range of lambda fits one (G-a).": (
                want / A[0, 0].numel()
            ),
            "beta is not used: each cell is raised to the power beta.": A.sum((2, 3)),
            "The sum is raised to the power beta. Raise each cell, then add.": A.sum((2, 3)) ** beta,
            "beta multiplies. It is an exponent.": beta * A.sum((2, 3)),
            "The sign is wrong: this is added to a loss that is minimised, so it must grow with A.": -want,
            "You return one number for all. The sum runs over the cells of one map: (b, c).": want.sum(),
            "The findings are added as well. L_reg is one number for each map: (b, c).": want.sum(1),
            "This is the norm: the root at the end is too much.": want ** (1 / beta),
            "beta is the base and A the exponent; it is the other way round.": (beta**A).sum((2, 3)),
            "The cells are raised, but not added up.": A**beta,
        }
        cases.append(Case((A, beta), want, _wrong(mistakes, want), f"beta = {beta:g}"))
    verdict = judge(answer, cases, "Summed over cells, finite at 0, and ready for any beta.")
    return judge(_gradient_of(answer), [_gradient_case()], verdict.words) if verdict.right else verdict


def _gradient_of(answer: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Return a function that gives the gradient of the penalty by the logits behind the map."""

    @wraps(answer)
    def gradient(logits: Tensor, beta: float) -> Tensor:
        leaf = logits.clone().requires_grad_()
        total = answer(leaf.sigmoid(), beta).sum()
        return torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(logits)

    return gradient


def _gradient_case() -> Case:
    logits = torch.linspace(-6, 4, 12).view(1, 1, 3, 4)
    logits[0, 0, 0, 0] = -200.0  # whose sigmoid is exactly 0 in float32
    mistakes = {
        "The values are right, but the gradient is NaN where A is exactly 0: the slope of A ** beta is "
        "infinite there, and infinity times 0 is NaN (reading G-b). Let the power see only cells above 0.": (
            _gradient_of(lambda A, beta: A.pow(beta).sum((2, 3)))(logits, 0.5)
        ),
        "The values are right, but no gradient reaches the map: stay in torch, without detach.": (
            torch.zeros_like(logits)
        ),
    }
    want = _gradient_of(saliency_penalty)(logits, 0.5)
    return Case((logits, 0.5), want, mistakes, "the gradient by the logits, one cell at 0, beta = 0.5")


def log_sum_exp(answer: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Judge (A (b, c, h, w), r) -> (1 / r) log mean exp(r A), (b, c), finite for any sharpness r."""
    cases = []
    for shape, r, note in (
        ((2, 2, 5, 4), 5.0, "r = 5"),
        ((1, 2, 6, 5), 0.5, "r = 0.5, near the mean"),
        ((2, 2, 4, 3), 1000.0, "r = 1000, near the maximum"),
    ):
        A = _map(*shape, seed=shape[2])
        cells, n = A.flatten(2).double(), shape[2] * shape[3]
        top, total = cells.amax(2), torch.logsumexp(r * cells, 2)
        want = (total - math.log(n)) / r
        mistakes = {
            "exp(r A) overflows to infinity. Take the maximum out before exp, and add it again after the "
            "logarithm.": torch.full_like(want, torch.inf),
            "Infinity minus infinity, or over infinity, is NaN: exp(r A) has overflowed. Take the maximum "
            "out before exp.": torch.full_like(want, torch.nan),
            "You sum where the formula has a mean: the result is too large by log(n) / r and can exceed 1.": (
                total / r
            ),
            "The factor 1 / r is missing.": want * r,
            "You took the maximum out and did not put it back.": want - top,
            "The maximum you add at the end is divided by r once more.": want - top + top / r,
            "r is missing inside exp.": torch.logsumexp(cells, 2) - math.log(n),
            "This is the maximum.": top,
            "This is the mean.": cells.mean(2),
            "The logarithm is missing.": torch.exp(r * (cells - top[..., None])).mean(2),
        }
        cases.append(Case((A, r), want.float(), _wrong(mistakes, want), note))
    praise = "A smooth road from the mean to the maximum, and no exponential on it ever overflows."
    return judge(answer, cases, praise)
