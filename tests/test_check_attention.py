import numpy as np
import pytest
import torch
from answers import common_answers

from mammomil.check import attention as check

# The right answers, written as in the chapter.


def weights(scores):
    return scores[..., 0].softmax(1)


def pool(h, V, U, w):
    alpha = ((torch.tanh(h @ V.T) * torch.sigmoid(h @ U.T)) @ w).softmax(1)
    return (alpha[..., None] * h).sum(1)


def masked(scores, valid):
    kept = valid | ~valid.any(1, keepdim=True)
    return scores.masked_fill(~kept, -torch.inf).softmax(1) * valid


def naive_masked(scores, valid):
    """Plain Python floats; no gradient, so not right in the end."""
    rows = np.zeros(scores.shape)
    for i, row in enumerate(scores.tolist()):
        kept = [j for j in range(len(row)) if valid[i, j]]
        exponents = {j: np.exp(np.float64(row[j])) for j in kept}
        for j in kept:
            rows[i, j] = exponents[j] / sum(exponents.values())
    return torch.from_numpy(rows).float()


ANSWERS = [(check.attention_weights, weights), (check.gated_pool, pool), (check.masked_weights, masked)]


test_common_answers = common_answers(ANSWERS)


def gated(h, V, U):
    return torch.tanh(h @ V.T), torch.sigmoid(h @ U.T)


def weigh(alpha, h):
    return torch.einsum("bk,bkf->bf", alpha, h)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s: torch.softmax(s, -1).squeeze(-1), "last axis of the scores"),
        (lambda s: torch.softmax(s, 0).squeeze(-1), "over the bags"),
        (lambda s: torch.exp(s[..., 0]) / torch.exp(s).sum(), "bags and patches together"),
        (lambda s: torch.sigmoid(s).squeeze(-1), "sigmoid"),
        (lambda s: torch.log(weights(s)), "logarithms"),
        (lambda s: torch.softmax(s, 1), "squeeze"),
    ],
)
def test_mistakes_of_weights_are_named(answer, words):
    assert words in check.attention_weights(answer).words


def by_hand(h, V, U, w, factor, softmax_first=False):
    """Loops over bags and patches, so that the mistakes are computed in another way than in the check."""
    z = []
    for bag in h:
        scores = torch.stack([w @ factor(V @ row, U @ row) for row in bag])
        if softmax_first:
            alpha = torch.stack([w @ torch.tanh(V @ row) for row in bag]).softmax(0)
            alpha = alpha * torch.stack([w @ torch.sigmoid(U @ row) for row in bag])
        else:
            alpha = scores.softmax(0)
        z.append(sum(a * row for a, row in zip(alpha, bag, strict=True)))
    return torch.stack(z)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: by_hand(*a, lambda v, u: v.tanh()), "gate is missing"),
        (lambda *a: by_hand(*a, lambda v, u: u.sigmoid()), "tanh(V h) is missing"),
        (lambda *a: by_hand(*a, lambda v, u: u.tanh() * v.sigmoid()), "changed places"),
        (lambda *a: by_hand(*a, lambda v, u: v.tanh() + u.sigmoid()), "added"),
        (lambda *a: by_hand(*a, lambda v, u: v.tanh(), softmax_first=True), "before the gate"),
        (lambda h, V, U, w: weigh(torch.softmax(torch.mul(*gated(h, V, U)), -1) @ w, h), "over the units"),
        (lambda h, V, U, w: torch.softmax(torch.mul(*gated(h, V, U)), -1) @ w, "shape"),
        (lambda h, V, U, w: sum(h.unbind(1)), "summed without"),
        (lambda h, V, U, w: sum(h.unbind(1)) / h.shape[1], "averaged"),
        (lambda h, V, U, w: weigh(torch.mul(*gated(h, V, U)) @ w, h), "softmax over the patches is missing"),
        (lambda h, V, U, w: weigh(torch.softmax(torch.mul(*gated(h, V, U)) @ w, 0), h), "over the bags"),
        (
            lambda h, V, U, w: torch.softmax(torch.mul(*gated(h, V, U)) @ w, 1)[..., None] * h,
            "sum over the patches",
        ),
    ],
)
def test_mistakes_of_pooling_are_named(answer, words):
    assert words in check.gated_pool(answer).words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, v: s.softmax(1), "Use `valid`"),
        (lambda s, v: s.softmax(1) * v, "Masking after the softmax"),
        (lambda s, v: (s * v).softmax(1), "Padding gets score 0"),
        (lambda s, v: (s * v).softmax(1) * v, "its score of 0 was in the sum"),
        (lambda s, v: s.masked_fill(~v, -torch.inf).softmax(1), "0 / 0, which is NaN"),
        (lambda s, v: s.masked_fill(~v, -1e9).softmax(1), "large finite number"),
        (lambda s, v: s.softmax(1) * v / (s.softmax(1) * v).sum(1, keepdim=True), "divide by what is left"),
        (lambda s, v: s.exp() * v / (s.exp() * v).sum(1, keepdim=True), "divide by what is left"),
        (lambda s, v: masked(s, v).log(), "logarithms"),
        (
            lambda s, v: (s + torch.where(v, 0.0, -torch.inf)).softmax(1).nan_to_num(),
            "does not mend the backward pass",
        ),
        (lambda s, v: masked(s, v).detach(), "no gradient"),
        (naive_masked, "no gradient"),
    ],
)
def test_mistakes_of_masking_are_named(answer, words):
    assert words in check.masked_weights(answer).words


def test_another_right_way_of_masking_passes():
    """Right weights, finite gradients: a finite filler and a product; and NaN that masked_fill stops."""
    assert check.masked_weights(lambda s, v: s.masked_fill(~v, -1e9).softmax(1) * v).right
    assert check.masked_weights(lambda s, v: s.masked_fill(~v, -torch.inf).softmax(1).nan_to_num()).right
