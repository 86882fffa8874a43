import math

import numpy as np
import pytest
import torch
from answers import common_answers

from mammomil.check import branches as check

# The right answers, written as in the chapter.


def scores(cls_logits, det_logits):
    return cls_logits.softmax(2)[..., 1:] * det_logits.softmax(1)


def probability(p_cls, p_det):
    yes = (p_cls[..., 1:] * p_det).sum(1)
    return torch.stack([1 - yes, yes], -1)


def absent(log_cls, log_det):
    normal, benign, malignant = log_cls.unbind(-1)
    no = torch.stack([torch.logaddexp(normal, malignant), torch.logaddexp(normal, benign)], -1)
    return (no + log_det).logsumexp(1)


test_common_answers = common_answers(
    [(check.region_scores, scores), (check.image_probability, probability), (check.log_absent, absent)]
)


def naive_scores(cls_logits, det_logits):
    """Python floats, region by region."""
    d = np.zeros(det_logits.shape)
    for t, (classes, ranks) in enumerate(zip(cls_logits.tolist(), det_logits.tolist(), strict=True)):
        for i, c in np.ndindex(d.shape[1:]):
            over_classes = sum(math.exp(v) for v in classes[i])
            over_regions = sum(math.exp(row[c]) for row in ranks)
            d[t, i, c] = math.exp(classes[i][c + 1]) / over_classes * math.exp(ranks[i][c]) / over_regions
    return d


def test_answers_in_plain_python_pass():
    assert check.region_scores(naive_scores).right

    def loops(p_cls, p_det):
        y = np.zeros((*p_det.shape[::2], 2))
        for t, i, c in np.ndindex(p_det.shape):
            y[t, c, 1] += float(p_det[t, i, c]) * float(p_cls[t, i, c + 1])
            y[t, c, 0] += float(p_det[t, i, c]) * (float(p_cls[t, i, 0]) + float(p_cls[t, i, 2 - c]))
        return y

    assert check.image_probability(loops).right

    def in_float64(log_cls, log_det):
        p_cls, p_det = log_cls.double().exp(), log_det.double().exp()
        no = p_cls[..., :1] + p_cls[..., [2, 1]]
        return (no * p_det).sum(1).log()

    assert check.log_absent(in_float64).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c, d: torch.softmax(c, 1)[..., 1:] * torch.softmax(d, 2), "Both softmaxes"),
        (lambda c, d: torch.softmax(c, 1)[..., 1:] * torch.softmax(d, 1), "Eq. 1 asks of one region"),
        (lambda c, d: torch.softmax(c, 2)[..., 1:] * torch.softmax(d, 2), "Eq. 2 lets regions compete"),
        (lambda c, d: torch.softmax(c, 2)[..., 1:] * torch.softmax(d, 0), "over the images"),
        (
            lambda c, d: torch.softmax(c, 2)[..., 1:] * d.exp() / d.exp().sum((1, 2), keepdim=True),
            "a ranking of its own",
        ),
        (lambda c, d: torch.softmax(c, 2)[..., :2] * torch.softmax(d, 1), "Class 0 is normal"),
        (lambda c, d: torch.softmax(c[..., 1:], 2) * torch.softmax(d, 1), "that is DB-Baseline"),
        (lambda c, d: torch.softmax(c, 2)[..., 1:] + torch.softmax(d, 1), "are added. A region"),
        (lambda c, d: torch.softmax(c[..., 1:] + d, 1), "The logits are added"),
        (lambda c, d: torch.softmax(d, 1), "the ranking alone"),
        (lambda c, d: torch.softmax(c, 2)[..., 1:], "the classification alone"),
        (lambda c, d: torch.log(scores(c, d)), "take exp"),
        (lambda c, d: scores(c, d).sum(1), "Eq. 13 keeps"),
    ],
)
def test_mistakes_of_scores_are_named(answer, words):
    assert words in check.region_scores(answer).words


def pair(no, yes):
    return torch.stack((no, yes), dim=2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c, d: pair((1 - c[..., 1:] * d).prod(1), (c[..., 1:] * d).sum(1)), "one after the other"),
        (lambda c, d: pair((1 - c[..., 1:]).prod(1), (c[..., 1:] * d).sum(1)), "'no region at all'"),
        (lambda c, d: pair((c[..., :1] * d).sum(1), (c[..., 1:] * d).sum(1)), "counts normal alone"),
        (lambda c, d: pair((1 - c[..., 1:]).prod(1), 1 - (1 - c[..., 1:]).prod(1)), "'At least one region"),
        (lambda c, d: pair((1 - c[..., 1:] * d).prod(1), 1 - (1 - c[..., 1:] * d).prod(1)), "independent"),
        (lambda c, d: pair(1 - (c[..., 1:] * d).amax(1), (c[..., 1:] * d).amax(1)), "largest product"),
        (lambda c, d: pair(1 - c[..., 1:].amax(1), c[..., 1:].amax(1)), "Max-Region"),
        (lambda c, d: pair(1 - (c[..., 1:] * d).mean(1), (c[..., 1:] * d).mean(1)), "already sums to 1"),
        (lambda c, d: pair(1 - c[..., 1:].mean(1), c[..., 1:].mean(1)), "count alike"),
        (lambda c, d: pair(1 - (c[..., :2] * d).sum(1), (c[..., :2] * d).sum(1)), "normal and benign"),
        (lambda c, d: probability(c, d).flip(-1), "reversed"),
        (lambda c, d: probability(c, d).mT, "before p(y=0)"),
        (lambda c, d: probability(c, d)[..., 1], "alone. Stack"),
    ],
)
def test_mistakes_of_the_image_are_named(answer, words):
    assert words in check.image_probability(answer).words


def present(log_cls, log_det):
    return torch.logsumexp(log_cls[..., 1:] + log_det, 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (present, "This is log p(y=1)"),
        (lambda c, d: torch.logsumexp(c[..., :1] + d, 1), "Normal alone"),
        (lambda c, d: absent(c[..., [0, 2, 1]], d), "changed places"),
        (lambda c, d: torch.logsumexp(c[..., 1:].flip(-1) + d, 1), "Normal is left out"),
        (lambda c, d: (d.exp() * torch.log(1 - c[..., 1:].exp())).sum(1), "average of logarithms"),
        (lambda c, d: (d + torch.log(1 - c[..., 1:].exp())).sum(1), "are multiplied"),
        (lambda c, d: torch.log(1 - c[..., 1:].exp()).logsumexp(1), "ranking is missing"),
        (lambda c, d: absent(c, d).exp(), "the logarithm is missing"),
        (lambda c, d: torch.log(1 - present(c, d).exp()), "1 - p is computed from p"),
        (lambda c, d: torch.log1p(-present(c, d).exp()), "log1p cannot repair"),
        (lambda c, d: torch.log(((c[..., :1].exp() + c[..., [2, 1]].exp()) * d.exp()).sum(1)), "become 0"),
        *((lambda c, d, e=e: torch.log((1 - present(c, d).exp()).clamp(min=e)), f"clamp at {e:g}")
          for e in (1e-6, 1e-10)),
    ],
)  # fmt: skip
def test_mistakes_of_log_space_are_named(answer, words):
    assert words in check.log_absent(answer).words
