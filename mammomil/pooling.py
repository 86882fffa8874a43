"""From many scores to one: pooling a saliency map into a probability, and attention over patches."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Pooling = Literal["top_t", "gap", "gmp", "lse"]


def top_t_count(height: int, width: int, t: float) -> int:
    """Number of cells in the top fraction `t` of a map: at least one, halves to even (reading G-c)."""
    return max(1, round(t * height * width))


def top_t_pool(saliency: Float[Tensor, "b c h w"], t: float) -> Float[Tensor, "b c"]:
    """Mean of the largest values of each map: f_agg of GMIC, section 2.4 (checklist G3).

    Args:
        saliency: values in [0, 1].
        t: fraction of the cells that count, in (0, 1]. 1 is global average pooling; a fraction below one cell
            is global max pooling.
    """
    count = top_t_count(*saliency.shape[-2:], t)
    return saliency.flatten(2).topk(count).values.mean(-1)


def log_sum_exp_pool(saliency: Float[Tensor, "b c h w"], sharpness: float) -> Float[Tensor, "b c"]:
    """Smooth maximum (1/r) log mean exp(r A): the mean as r goes to 0, the maximum as r grows.

    Args:
        saliency: values in [0, 1]; the result is then in [0, 1] too.
        sharpness: r, larger than 0.
    """
    # What the largest cell has above 30 is taken out before exp and put back after the logarithm, as float32
    # overflows from 88 on. expm1 and log1p keep small values exact where exp and log would round them away.
    scaled = sharpness * saliency
    shift = (scaled.amax((-2, -1), keepdim=True) - 30).clamp(min=0).detach()
    return (torch.expm1(scaled - shift).mean((-2, -1)).log1p() + shift[..., 0, 0]) / sharpness


def log_pool(
    logits: Float[Tensor, "b c h w"], pooling: Pooling = "top_t", t: float = 0.02, sharpness: float = 5.0
) -> Float[Tensor, "b c 2"]:
    """Pool a saliency map of logits into log-probabilities, without ever leaving log space.

    The mean of the top t of A = sigmoid(logits) is y; the mean of 1 - A over the same cells is 1 - y. Both
    logarithms stay exact where sigmoid has saturated, so that the loss needs no clamp.

    Args:
        logits: the map before the sigmoid.
        pooling: `top_t` (the paper), `gap` (average), `gmp` (maximum) or `lse` (log-sum-exp).
        t: fraction of cells for `top_t`.
        sharpness: r of `lse`.

    Returns:
        (log p(y=0), log p(y=1)) per class.
    """
    if pooling == "lse":
        y = log_sum_exp_pool(logits.sigmoid(), sharpness)
        # 1 - y, from 1 - A = sigmoid(-logits) in place of a difference of nearly equal numbers. Where y is
        # small it is y that is exact: exp(-r (1 - A)) has few digits left. The nearest cell to 1 is taken out
        # before exp, or all of exp would be 0 for a large r.
        scaled = sharpness * (-logits).sigmoid()
        least = scaled.amin((-2, -1), keepdim=True).detach()
        complement = (least[..., 0, 0] - torch.expm1(least - scaled).mean((-2, -1)).log1p()) / sharpness
        small = y < 0.5
        log_not_y = torch.where(small, torch.log1p(-torch.where(small, y, 0.0)), complement.log())
        return torch.stack([log_not_y, y.log()], -1)
    height, width = logits.shape[-2:]
    count = {"gap": height * width, "gmp": 1, "top_t": top_t_count(height, width, t)}[pooling]
    top = logits.flatten(2).topk(count).values  # (b, c, count)
    both = torch.stack([F.logsigmoid(-top), F.logsigmoid(top)], -1)  # (b, c, count, 2)
    return both.logsumexp(2) - math.log(count)


def top_k_mask(scores: Float[Tensor, "*n m"], k: int) -> Bool[Tensor, "*n m"]:
    """Mark the `k` largest scores of the last dimension; of equal ones those with the lowest index (A2).

    Args:
        scores: any values; -inf is never marked, so that padding can be left out.
        k: how many, 1 or more; all where there are fewer.
    """
    smallest = scores.topk(min(k, scores.shape[-1])).values[..., -1:]  # the k-th largest
    above, tied = scores > smallest, scores == smallest
    room = k - above.sum(-1, keepdim=True)
    return (above | (tied & (tied.cumsum(-1) <= room))) & (scores > -torch.inf)


def masked_log_softmax(
    logits: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"], dim: int
) -> Float[Tensor, "*n"]:
    """Log-softmax over the marked entries of `dim`; -inf, with no gradient, at the others (checklist D8).

    What is not marked is set to -inf before the softmax: masking its result would give 0/0 where a large
    entry is not marked (reading A3).

    Args:
        logits: any finite values.
        mask: same shape. Where nothing is marked, everything is -inf.
        dim: the dimension that is normalised.
    """
    # Rows without a mark keep their entries for the softmax, whose gradient would be NaN otherwise.
    kept = mask | ~mask.any(dim, keepdim=True)
    return logits.masked_fill(~kept, -torch.inf).log_softmax(dim).masked_fill(~mask, -torch.inf)


class GatedAttention(nn.Module):
    """Gated attention over the instances of a bag (Ilse et al. 2018, used in GMIC section 2.3; G8).

    weights = softmax over k of w(tanh(V h) * sigmoid(U h)), bag = sum over k of weights * h.

    Args:
        in_features: length of an instance's feature vector.
        hidden: length of the gate.
        bias: whether V, U and w have biases; the released model has none.
    """

    def __init__(self, in_features: int, hidden: int, bias: bool = False):
        super().__init__()
        self.V = nn.Linear(in_features, hidden, bias=bias)
        self.U = nn.Linear(in_features, hidden, bias=bias)
        self.w = nn.Linear(hidden, 1, bias=bias)

    def forward(self, h: Float[Tensor, "b k f"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b f"]]:
        """Return the weights, which sum to 1 over k, and the weighted sum of the instances."""
        gate = torch.tanh(self.V(h)) * torch.sigmoid(self.U(h))  # (b, k, hidden)
        weights = self.w(gate).squeeze(-1).softmax(-1)  # (b, k)
        return weights, torch.einsum("bk,bkf->bf", weights, h)
