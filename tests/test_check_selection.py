import pytest
import torch
from answers import common_answers

from mammomil.check import selection as check


def top_k(scores, k):
    first = scores.sort(descending=True, stable=True).indices[:k]
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[first] = True
    return mask


def image_prob(p_cls, logits, h):
    """Loops in float64."""
    result = []
    for c in range(2):
        chosen = [i for i in range(len(logits)) if h[i, c]]
        shift = max(logits[i, c].item() for i in chosen)
        parts = {i: torch.tensor(logits[i, c].item() - shift, dtype=torch.float64).exp() for i in chosen}
        total = sum(parts.values())
        result.append(sum(parts[i] / total * p_cls[i, c + 1].item() for i in chosen))
    return torch.stack(result)


def gradient(p, logits, h, y):
    w = logits.masked_fill(~h, -torch.inf).softmax(0)
    image = (w * p).sum()
    return w * (image - p) / image if y else w * (p - image) / (1 - image)


test_common_answers = common_answers(
    ((check.top_k, top_k), (check.image_prob, image_prob), (check.ranking_gradient, gradient))
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, k: s >= s.topk(min(k, len(s))).values[-1], "too many"),
        (lambda s, k: s > s.topk(min(k, len(s))).values[-1], "too few"),
        (lambda s, k: top_k(s.flip(0), k).flip(0), "highest index"),
        (lambda s, k: top_k(-s, k), "smallest"),
        (lambda s, k: s.sort(descending=True, stable=True).indices[:k], "indices"),
        (lambda s, k: s >= s.topk(k).values[-1], "too many"),
        (lambda s, k: top_k(s, len(s.topk(k).indices)), "RuntimeError"),  # k > m
    ],
)
def test_mistakes_of_the_k_largest_are_named(answer, words):
    assert words in check.top_k(answer).words


def ranked(p_cls, w):
    return torch.einsum("mc,mc->c", w, p_cls[:, 1:])


def divided(values):
    return values / values.sum(0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, u, h: ranked(p, u.softmax(0)), "Cls-Det"),
        (lambda p, u, h: ranked(p, u.softmax(0).where(h, 0.0)), "mask after the softmax"),
        (lambda p, u, h: ranked(p, u.where(h, 0.0).softmax(0)), "exp(0) is 1"),
        (lambda p, u, h: ranked(p, u.where(h, 0.0).softmax(0).where(h, 0.0)), "already had a share"),
        (lambda p, u, h: ranked(p, divided(u.softmax(0) * h)), "divide by what is left"),
        (lambda p, u, h: ranked(p, divided(u.exp() * h)), "divide by what is left"),
        (lambda p, u, h: ranked(p, u.where(h.any(1)[:, None], -torch.inf).softmax(0)), "own column"),
        (lambda p, u, h: ranked(p, u.where(h, -torch.inf).softmax(1).nan_to_num()), "axis 0"),
        (lambda p, u, h: (u.where(h, -torch.inf).softmax(0) * p[:, :2]).sum(0), "last two"),
        (lambda p, u, h: ranked(p, h / h.sum(0)), "alike"),
        (lambda p, u, h: u.where(h, -torch.inf).softmax(0) * p[:, 1:], "sum over the regions"),
        (lambda p, u, h: image_prob(p, u, h).log(), "logarithm"),
    ],
)
def test_mistakes_of_the_probability_are_named(answer, words):
    assert words in check.image_prob(answer).words


def by_difference(function):
    """Central differences in float64 by the logits: the mistakes are found in another way here."""

    def slope(p, logits, h, y):
        p, logits, step = p.double(), logits.double(), 1e-5
        moved = step * torch.eye(len(logits), dtype=torch.float64)
        up, down = ([function(p, logits + s * row, h, y) for row in moved] for s in (1, -1))
        return (torch.stack(up) - torch.stack(down)) / (2 * step)

    return slope


def prob(p, logits, h, y):
    w = logits.masked_fill(~h, -torch.inf).softmax(0)
    return (w * (p if y else 1 - p)).sum()


def product_only(p, logits, h, y):
    """Weights in the place of their derivative: the softmax is taken for a plain exponential."""
    w = logits.masked_fill(~h, -torch.inf).softmax(0)
    return (1 if y == 0 else -1) * w * p / prob(p, logits, h, y)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by_difference(lambda *a: prob(*a).log()), "other way round"),
        (by_difference(prob), "gradient of p(y | x) itself"),
        (by_difference(lambda *a: -prob(*a)), "Minus the gradient of p(y | x)"),
        (product_only, "weights sum to 1"),
        (by_difference(lambda p, u, h, y: -prob(p, u, h, 1).log()), "y is not used"),
        (
            lambda p, u, h, y: gradient(p, u, h, 1) * (1 if y else -1),
            "probability of the label is 1 - p(y = 1 | x)",
        ),
        (by_difference(lambda p, u, h, y: -prob(p, u, h | True, y).log()), "rank all regions"),
        (
            lambda p, u, h, y: (1 - 2 * y) * u.masked_fill(~h, -torch.inf).softmax(0) / prob(p, u, h, y),
            "by p_cls",
        ),
    ],
)
def test_mistakes_of_the_gradient_are_named(answer, words):
    assert words in check.ranking_gradient(answer).words


def test_the_gradient_by_differences_is_right():
    assert check.ranking_gradient(by_difference(lambda *a: -prob(*a).log())).right
