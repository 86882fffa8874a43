"""Answers of chapter 10: the k largest, an image's probability by a masked ranking, and its gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.dual_branch import image_log_prob, log_p_det
from mammomil.pooling import top_k_mask


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def top_k(answer: Callable[[Tensor, int], Tensor]) -> Verdict:
    """Judge (scores (m,), k) -> mask (m,): the k largest; of equal ones those with the lowest index (A2)."""
    tied = torch.tensor([0.2, 0.5, 0.3, 0.5, 0.3, 0.1, 0.3])
    cases = []
    for scores, k, note in (
        (_random(9, seed=1), 3, "all different, k = 3"),
        (tied, 3, "the third largest is there three times"),
        (tied, 1, "the largest is there twice"),
        (torch.zeros(40), 10, "all equal"),
        (_random(4, seed=2), 10, "k larger than the number of regions"),
    ):
        size, room = len(scores), min(k, len(scores))
        ordered = scores.sort(descending=True).values
        last = (len(scores) - 1 - scores.flip(0).sort(descending=True, stable=True).indices)[:room]
        smallest = (-scores).sort(stable=True, descending=True).indices[:room]
        mistakes = {
            "You mark too many: every score equal to the k-th largest is in. Of equal ones only as many as "
            "there is room for, those with the lowest index.": scores >= ordered[room - 1],
            "You mark too few: the k-th largest itself has to be in.": scores > ordered[room - 1],
            "Of equal scores you take those with the highest index. The lowest come first.": _marks(
                last, size
            ),
            "You take the k smallest.": _marks(smallest, size),
            "These are the indices of the regions. Asked is a mask, one truth value for each region.": (
                scores.sort(descending=True, stable=True).indices[:room]
            ),
            "torch.topk promises no order among equal scores. `sort(descending=True, stable=True)` does.": (
                _marks(scores.topk(room).indices, size)
            ),
        }
        cases.append(Case((scores, k), top_k_mask(scores, k), mistakes, note))
    return judge(
        answer, cases, "Exactly min(k, m) regions are marked, and the same ones on every machine.", 0.0
    )


def _marks(indices: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool).index_fill(0, indices, True)


def image_prob(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (p_cls (m, 3), rank logits (m, 2), h (m, 2)) -> p(y_c = 1 | x) (2,): Eq. 4 in Eq. 3."""
    h = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [0, 1]], dtype=torch.bool)
    p_cls, logits = (2 * _random(5, 3, seed=3)).softmax(1), _random(5, 2, seed=4)
    loud = logits.clone()
    loud[3] = 200.0
    other = (2 * _random(3, 3, seed=5)).softmax(1), _random(3, 2, seed=6), h[1:4]
    cases = [
        _prob_case(p_cls, logits, h, "5 regions, 2 and 3 of them selected"),
        _prob_case(*other, "3 regions, 1 and 2 of them selected"),
        _prob_case(p_cls, loud, h, "a region that is not selected has logits of 200"),
    ]
    return judge(
        answer,
        cases,
        "Each finding has a mask of its own, what is not selected is out before the softmax, and the ranking "
        "weighs the decisions of the regions.",
    )


def _prob_case(p_cls: Tensor, logits: Tensor, h: Tensor, note: str) -> Case:
    yes, numbers = p_cls[:, 1:], h.float()
    ranked = log_p_det(logits[None], h[None])[0].exp()
    everything = logits.softmax(0)
    mistakes = {
        "You rank all regions: h is not used. That is Eq. 2, Cls-Det.": (everything * yes).sum(0),
        "You mask after the softmax: what is not selected has taken its share, and the weights no longer sum "
        "to 1. Mask the logits.": (everything * numbers * yes).sum(0),
        "A logit of 0 does not leave a region out, as exp(0) is 1. What is not selected needs -inf.": (
            (logits * numbers).softmax(0) * yes
        ).sum(0),
        "You removed the others after the softmax, where their logits of 0 already had a share. They need "
        "-inf before it.": ((logits * numbers).softmax(0) * numbers * yes).sum(0),
        "You take out what is not selected after exp or softmax, and divide by what is left. Where a region "
        "that is not selected has a large logit this is 0 / 0 or inf * 0. Mask the logits, then softmax.": (
            everything * numbers / (everything * numbers).sum(0) * yes
        ).sum(0),
        "A region counts for both findings if it is selected for either. Each finding has its own column of "
        "h.": (logits.masked_fill(~h.any(1, keepdim=True), -torch.inf).softmax(0) * yes).sum(0),
        "The ranking runs over the findings of a region. It runs over the regions, axis 0.": (
            logits.masked_fill(~h, -torch.inf).softmax(1).nan_to_num() * yes
        ).sum(0),
        "The columns of p_cls are normal, benign, malignant: the findings are the last two.": (
            ranked * p_cls[:, :2]
        ).sum(0),
        "You average the selected regions alike. Weigh them by the ranking.": (numbers * yes).sum(0)
        / numbers.sum(0),
        "The products are there, the sum over the regions is not.": ranked * yes,
        "This is the logarithm. Asked is the probability.": (ranked * yes).sum(0).log(),
    }
    log_det = log_p_det(logits[None], h[None])
    want = image_log_prob(p_cls.log()[None], log_det)[0, :, 1].exp()
    return Case((p_cls, logits, h), want, mistakes, note)


def ranking_gradient(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Verdict:
    """Judge (p_cls (m,), logits (m,), h (m,), y) -> gradient of -log p(y | x) by the ranking logits."""
    p, logits = _random(6, seed=7).sigmoid(), _random(6, seed=8)
    some = torch.tensor([True, False, True, True, False, True])
    one = torch.tensor([False, False, True, False, False, False])
    loud = logits.masked_fill(~some, 200.0)
    cases = [
        _gradient_case(p, logits, some, 0, "y = 0, 4 of 6 regions selected"),
        _gradient_case(p, logits, some, 1, "y = 1, 4 of 6 regions selected"),
        _gradient_case(p, loud, some, 0, "y = 0, regions that are not selected have logits of 200"),
        _gradient_case(p, logits, one, 1, "y = 1, one region selected"),
    ]
    return judge(
        answer,
        cases,
        "Weight moves from regions below the image's p to those above it where y is 1, the other way where y "
        "is 0, and never outside the mask.",
    )


def _gradient_case(p: Tensor, logits: Tensor, h: Tensor, y: int, note: str) -> Case:
    leaf = logits.clone().requires_grad_()
    w = log_p_det(leaf[None, :, None], h[None, :, None])[0, :, 0].exp()
    image = (w * p).sum()
    want = torch.autograd.grad(-(image if y else 1 - image).log(), leaf)[0]
    w, image = w.detach(), image.detach()
    every = logits.softmax(0)
    whole = (every * p).sum()
    sign, chosen = (-1, image) if y else (1, 1 - image)
    mistakes = {
        "The sign is the other way round: the loss is minus the logarithm.": -want,
        "This is the gradient of p(y | x) itself. The logarithm divides it by p(y | x).": -sign
        * w
        * (p - image),
        "Minus the gradient of p(y | x): you have the minus of the loss, and the logarithm divides by "
        "p(y | x).": sign * w * (p - image),
        "You forgot that weights sum to 1: when one grows the others shrink, so that p_i - p(y = 1 | x) "
        "counts, not p_i.": sign * w * p / chosen,
        "y is not used: this is the gradient for y = 1.": -w * (p - image) / image,
        "For y = 0 the probability of the label is 1 - p(y = 1 | x).": sign * w * (p - image) / image,
        "You rank all regions: what is not selected has weight 0 and gradient 0.": (
            sign * every * (p - whole) / (whole if y else 1 - whole)
        ),
        "This is the gradient by p_cls, w_i / p(y | x). Asked is that by the logits of the ranking.": (
            sign * w / chosen
        ),
    }
    return Case((p, logits, h, y), want, mistakes, note)
