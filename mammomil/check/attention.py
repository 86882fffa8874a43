"""Answers of chapter 4: weights over patches, gated attention, bags of unequal size."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.pooling import GatedAttention, masked_log_softmax


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_weights(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Judge scores (b, k, 1) -> weights (b, k), which sum to 1 over the patches of each bag."""
    cases = []
    for shape, note in (((2, 3, 1), "2 bags of 3 patches"), ((3, 5, 1), "3 bags of 5 patches")):
        scores = 2 * _random(*shape, seed=sum(shape))
        flat = scores[..., 0]
        mistakes = {
            "Every weight is 1: you normalise over the last axis of the scores, which holds one number for "
            "each patch. The patches are axis 1.": scores.softmax(-1)[..., 0],
            "You normalise over the bags: the weight of a patch then depends on what else is in the batch. "
            "The patches are axis 1.": flat.softmax(0),
            "You normalise over bags and patches together: all bags share one sum of 1. Each bag needs its "
            "own.": flat.flatten().softmax(0).view_as(flat),
            "A sigmoid makes every weight a number of its own, and they do not sum to 1. Softmax makes "
            "patches compete.": flat.sigmoid(),
            "These are logarithms of the weights: use softmax, or take exp.": flat.log_softmax(1),
            "The last axis, of length 1, is still there. Drop it: `squeeze(-1)`.": scores.softmax(1),
        }
        cases.append(Case((scores,), flat.softmax(1), mistakes, note))
    return judge(answer, cases, "Patches compete within their bag, and bags do not know of each other.")


def gated_pool(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (h (b, k, f), V (d, f), U (d, f), w (d,)) -> z (b, f) = sum over k of alpha_k h_k (GMIC, G8)."""
    cases = []
    for (b, k, f, d), note in (((3, 5, 4, 6), "3 bags of 5 patches"), ((1, 4, 3, 2), "one bag")):
        module = GatedAttention(f, d)
        V, U, w = (_random(*shape, seed=9 + i) for i, shape in enumerate(((d, f), (d, f), (d,))))
        module.load_state_dict({"V.weight": V, "U.weight": U, "w.weight": w[None]})
        h = _random(b, k, f, seed=k)
        tanh, gate = torch.tanh(h @ V.T), torch.sigmoid(h @ U.T)

        def pool(weights: Tensor, h: Tensor = h) -> Tensor:
            return (weights[..., None] * h).sum(1)

        with torch.no_grad():
            want = module(h)[1]
        mistakes = {
            "The gate is missing: the score is w(tanh(V h)) alone. Multiply by sigmoid(U h), unit by unit, "
            "before w.": pool((tanh @ w).softmax(1)),
            "Only the gate is there: tanh(V h) is missing.": pool((gate @ w).softmax(1)),
            "tanh and sigmoid have changed places: tanh goes with V, the sigmoid with U.": pool(
                (torch.tanh(h @ U.T) * torch.sigmoid(h @ V.T) @ w).softmax(1)
            ),
            "The two factors are added. A gate multiplies: where it is 0, nothing passes.": pool(
                ((tanh + gate) @ w).softmax(1)
            ),
            "The softmax comes before the gate, so that the weights no longer sum to 1. Gate the units "
            "first, then w, then softmax.": pool((tanh @ w).softmax(1) * (gate @ w)),
            "The softmax runs over the units. It belongs behind w, over the patches.": pool(
                (tanh * gate).softmax(-1) @ w
            ),
            "The patches are summed without their weights.": h.sum(1),
            "The patches are averaged: every weight is 1 / k.": h.mean(1),
            "The scores themselves are the weights: the softmax over the patches is missing.": pool(
                tanh * gate @ w
            ),
            "The softmax runs over the bags. The patches are axis 1.": pool((tanh * gate @ w).softmax(0)),
            "The weights are there, the sum over the patches is not: z is one vector for each bag.": (
                (tanh * gate @ w).softmax(1)[..., None] * h
            ),
        }
        cases.append(Case((h, V, U, w), want, mistakes, note))
    return judge(
        answer,
        cases,
        "A unit counts where tanh finds something and the gate is open; softmax turns scores into shares.",
    )


def masked_weights(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (scores (b, k), valid (b, k)) -> weights that are 0 at padding and sum to 1 over the rest.

    A bag without a patch has weights 0, and neither weights nor gradients are NaN.
    """
    some = torch.tensor([[True, True, False, False], [True, True, True, True], [False, True, False, True]])
    scores = _random(3, 4, seed=4)
    loud = scores.masked_fill(~some, 200.0)
    none = torch.cat([scores, scores[:1]]), torch.cat([some, torch.zeros(1, 4, dtype=torch.bool)])
    cases = [
        _masked_case(scores, some, "bags of 2, 4 and 2 patches"),
        _masked_case(loud, some, "padding with a score of 200"),
        _masked_case(*none, "the last bag has no patch"),
    ]
    verdict = judge(
        answer,
        cases,
        "Padding never enters the softmax, and an empty bag has weights 0 with a finite gradient.",
    )
    return judge(_gradient_of(answer), [_gradient_case(*none)], verdict.words) if verdict.right else verdict


def _masked_case(scores: Tensor, valid: Tensor, note: str) -> Case:
    minus_infinity = scores.masked_fill(~valid, -torch.inf).softmax(1)
    mistakes = {
        "Padding has a weight, and what belongs to the patches is less than 1. Use `valid`.": scores.softmax(
            1
        ),
        "Masking after the softmax: padding has taken its share before it was removed, and the rest no "
        "longer sums to 1. Mask the scores.": scores.softmax(1) * valid,
        "Padding gets score 0, and exp(0) is 1: it still has a weight. Its score must be -inf.": (
            scores * valid
        ).softmax(1),
        "The weights of padding are removed after the softmax, but its score of 0 was in the sum: the score "
        "of padding must be -inf.": (scores * valid).softmax(1) * valid,
        "A row of nothing but -inf has softmax 0 / 0, which is NaN. Treat a bag without a patch before the "
        "softmax.": minus_infinity,
        "A large finite number in place of -inf: a bag without a patch gets uniform weights over padding.": (
            scores.masked_fill(~valid, -1e9).softmax(1)
        ),
        "You take padding out after exp or softmax and divide by what is left. Where padding had all the "
        "weight that is 0 / 0, and exp alone overflows. Mask the scores, then softmax.": (
            scores.softmax(1) * valid / (scores.softmax(1) * valid).sum(1, keepdim=True)
        ),
        "These are logarithms of the weights: take exp.": masked_log_softmax(scores, valid, 1),
    }
    return Case((scores, valid), masked_log_softmax(scores, valid, 1).exp(), mistakes, note)


def _gradient_of(answer: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gives the gradient of a weighted sum of the weights by the scores."""

    @wraps(answer)
    def gradient(scores: Tensor, valid: Tensor) -> Tensor:
        leaf = scores.clone().requires_grad_()
        weights = answer(leaf, valid)
        if not weights.requires_grad:
            return torch.zeros_like(scores)
        return torch.autograd.grad((weights * _importance(weights.shape)).sum(), leaf)[0]

    return gradient


def _importance(shape: torch.Size) -> Tensor:
    return torch.arange(1.0, shape.numel() + 1).view(shape)


def _gradient_case(scores: Tensor, valid: Tensor) -> Case:
    want = _gradient_of(lambda s, v: masked_log_softmax(s, v, 1).exp())(scores, valid)
    broken = _gradient_of(lambda s, v: (s + v.float().log()).softmax(1).nan_to_num())(scores, valid)
    mistakes = {
        "The weights are right, but their gradient is NaN for the bag without a patch: replacing NaN "
        "afterwards does not mend the backward pass. The softmax must never see a row of -inf.": broken,
        "The weights are right, but no gradient reaches the scores: stay in torch, without detach.": (
            torch.zeros_like(scores)
        ),
    }
    return Case((scores, valid), want, mistakes, "the gradient of the weights")
