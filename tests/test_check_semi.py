"""Answers of chapter 13: right ones pass, and each mistake a learner may make is named."""

import pytest
import torch
from answers import common_answers

from mammomil.check import semi as check

# The right answers, written as in the chapter.


def log_bn(log_cls):
    return torch.logaddexp(log_cls[:, 0], log_cls[:, 1])


def rank_loss(logits, selected, region_label):
    return logits.log_softmax(0)[region_label == 1].logsumexp(0)


def mean(values):
    return values.sum() / max(1, len(values))


def objective(log_cls, log_det, log_prob, label, region_label, annotated, mean=mean):
    full = annotated & (region_label == 1).any(1)
    chosen = log_prob.gather(2, label.nan_to_num().long()[..., None])[..., 0]
    known = ~label.isnan()
    weak = mean(chosen[known[:, 1] & ~full, 1]) + mean(chosen[known[:, 0], 0])
    cls, det = [], []
    for image in full.nonzero().flatten().tolist():
        for region, kind in enumerate(region_label[image].tolist()):
            p = log_cls[image, region]
            if kind >= 0:
                cls.append(p[2] if kind == 1 else torch.logaddexp(p[0], p[1]))
        det.append(log_det[image, region_label[image] == 1, 1].logsumexp(0))
    labelled = mean(torch.tensor(cls)) + mean(torch.tensor(det))
    return torch.stack([weak, labelled, weak + labelled])


test_common_answers = common_answers(
    ((check.log_bn, log_bn), (check.rank_loss, rank_loss), (check.objective, objective))
)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p: p[:, 0] + p[:, 1], "logarithms are added"),
        (lambda p: p[:, :2].sum(1), "logarithms are added"),
        (lambda p: p[:, :2].max(1).values, "larger of both"),
        (lambda p: (1 - p[:, 2].exp()).log(), "1 - p(M) to 0"),
        (lambda p: p[:, :2].exp().sum(1).log(), "underflow"),
        (lambda p: p[:, :2].exp().sum(1), "needs its logarithm"),
        (lambda p: 1 - p[:, 2].exp(), "needs its logarithm"),
        (lambda p: p[:, [0, 2]].logsumexp(1), "normal and malignant"),
        (lambda p: p[:, 1:].logsumexp(1), "benign and malignant"),
        (lambda p: p[:, :2].exp().mean(1).log(), "without the half"),
    ],
)
def test_mistakes_of_benign_or_normal_are_named(answer, words):
    assert words in check.log_bn(answer).words


def masked(logits, selected, region_label):
    shares = torch.where(selected, logits.exp(), 0)
    return (shares / shares.sum())[region_label == 1].sum().log()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda u, s, y: u.softmax(0).log()[y == 1].sum(), "one that is high is enough"),
        (lambda u, s, y: u.softmax(0).log()[y == 1].mean(), "adds the probabilities first"),
        (masked, "reading A5"),
        (lambda u, s, y: u.softmax(0).sum().log(), "shares that sum to 1"),
        (lambda u, s, y: u.softmax(0)[y != 0].sum().log(), "Ignored regions"),
        (lambda u, s, y: u.softmax(0)[y == 0].sum().log(), "benign or normal"),
        (lambda u, s, y: u.softmax(0)[y == 1].max().log(), "Only the highest"),
        (lambda u, s, y: u[y == 1].softmax(0).sum().log(), "shares that sum to 1"),
        (lambda u, s, y: u[y == 1].exp().sum().log(), "softmax over the regions comes first"),
        (lambda u, s, y: u.softmax(0)[y == 1].sum(), "This is the probability"),
        (lambda u, s, y: u.softmax(0)[y == 1].mean().log(), "no such mean"),
        (lambda u, s, y: (u.exp() / u.exp().sum())[y == 1].sum().log(), "overflows"),
        (lambda u, s, y: u.softmax(0)[y == 1].sum().log(), "underflow to 0"),
    ],
)
def test_mistakes_of_the_ranking_are_named(answer, words):
    assert words in check.rank_loss(answer).words


def loops(
    log_cls, log_det, log_prob, label, region_label, annotated, *, low=1, weak=None, benign=None, skip=None,
    size=None, per_image=False, counted=(0, 1), lam=True, column=1, add="sum", over=None, whole=None, sign=1,
):  # fmt: skip
    """Eq. 10 to 12 in plain loops, with a place for each mistake."""
    n = len(label)
    has = [bool((region_label[t] == 1).any()) for t in range(n)]
    full = [t for t in range(n) if annotated[t] and (has[t] or whole)]
    skip = skip or (lambda y: bool(y.isnan()))

    def said(c, images, count=None):
        values = [
            log_prob[t, c, int(label[t, c].nan_to_num())]
            if not label[t, c].isnan() or skip is zero
            else label[t, c]
            for t in images
            if not skip(label[t, c])
        ]
        count = max(len(values), low) if count is None else count
        return sum(values, torch.tensor(0.0)) / count

    in_weak = [t for t in range(n) if (weak or (lambda t: t not in full))(t)]
    in_benign = [t for t in range(n) if (benign or (lambda t: True))(t)]
    sizes = size or (None, None)
    weak_part = said(1, in_weak, sizes[0]) + said(0, in_benign, sizes[1])
    sums, counts, det = [], [], []
    for t in full:
        values = [
            log_cls[t, i, 2] if y == 1 else (log_cls[t, i, 0].exp() + log_cls[t, i, 1].exp()).log()
            for i, y in enumerate(region_label[t].tolist())
            if y >= 0
        ]
        sums.append(sum(values))
        counts.append(sum(int(y) in counted for y in region_label[t]))
        p = log_det[t, region_label[t] == 1, column]
        det.append(p.exp().sum().log() if add == "sum" else p.sum())
    nothing = torch.tensor(0.0)
    cls = sum(sums, nothing) / (max(sum(counts), low) if lam else 1)
    if per_image:
        cls = sum((s / c for s, c in zip(sums, counts, strict=True)), nothing) / max(len(full), 1)
    rank = sum(det, nothing) / (over or max(len(full), low))
    return sign * torch.stack([weak_part, cls + rank, weak_part + cls + rank])


def zero(y):
    return False


def with_flaw(**flaw):
    return lambda *batch: loops(*batch, **flaw)


def annotated_kept_out(*batch):
    """An annotated image without a malignant region is nowhere."""
    return loops(*batch, weak=lambda t: not batch[5][t])


def benign_of_weak(*batch):
    return loops(*batch, benign=lambda t: not (batch[5][t] and (batch[4][t] == 1).any()))


def divided_by_n(*batch):
    known = ~batch[3].isnan()
    return loops(*batch, size=(len(batch[3]), max(int(known[:, 0].sum()), 1)))


def unknown_counted(*batch):
    weak = ~(batch[5] & (batch[4] == 1).any(1)) & ~batch[3][:, 1].isnan()
    return loops(*batch, size=(max(int(weak.sum()), 1), len(batch[3])))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *batch: objective(*batch, mean=torch.mean), "0 / 0"),
        (with_flaw(skip=zero), "counts as 0"),
        (unknown_counted, "still counted in n"),
        (with_flaw(per_image=True), "m_f is one number"),
        (with_flaw(counted=(-1, 0, 1)), "Ignored regions are counted"),
        (with_flaw(counted=(1,)), "malignant regions only"),
        (with_flaw(lam=False), "lambda_1 = 1 / m_f is missing"),
        (with_flaw(over=4), "averaged over all images"),
        (with_flaw(over=1), "not a sum"),
        (with_flaw(add="logs"), "then comes the logarithm"),
        (with_flaw(column=0), "column 1 of log_det"),
        (with_flaw(weak=lambda t: True), "also in W"),
        (benign_of_weak, "Eq. 11 has all n images"),
        (divided_by_n, "divides by |W|"),
        (with_flaw(size=(1, 1)), "sum of means"),
        (with_flaw(whole=True), "log 0"),
        (annotated_kept_out, "in neither set"),
        (with_flaw(sign=-1), "These are losses"),
    ],
)
def test_mistakes_of_the_objective_are_named(answer, words):
    assert words in check.objective(answer).words


def test_an_unknown_label_that_is_added_is_named():
    def answer(log_cls, log_det, log_prob, label, region_label, annotated):
        weak, full, both = objective(log_cls, log_det, log_prob, label, region_label, annotated)
        lost = label.sum() - label.nansum()
        return torch.stack([weak + lost, full, both + lost])

    assert "An unknown label is NaN" in check.objective(answer).words


def test_loops_without_a_mistake_pass():
    assert check.objective(loops).right
