"""Answers of chapter 13: log p(benign or normal), the loss of the ranking, the whole objective."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.losses import semi_supervised_objective


def log_bn(answer: Callable[[Tensor], Tensor]) -> Verdict:
    """Judge log p_cls (m, 3) of normal, benign, malignant -> log p(benign or normal) (m,) (checklist D12)."""
    generator = torch.Generator().manual_seed(13)
    cases = []
    for logits, note in (
        (2 * torch.randn(6, 3, generator=generator), "six regions"),
        (torch.tensor([[0.0, -1, 60], [-90, -80, 40]]), "regions the network is sure are malignant"),
    ):
        log_cls = logits.log_softmax(1)
        normal, benign, malignant = log_cls.unbind(1)
        mistakes = {
            "The logarithms are added: that is log(p_N p_B), the probability of both at once. Add the "
            "probabilities: logaddexp.": normal + benign,
            "This is the larger of both, log max(p_N, p_B). A region is benign or normal: both probabilities "
            "count.": torch.maximum(normal, benign),
            "p(M) rounds to 1 and 1 - p(M) to 0, so that its logarithm is infinite. Stay in log space: add "
            "up the two other classes.": torch.log(1 - malignant.exp()),
            "p_N and p_B underflow to 0 before they are added. torch.logaddexp never leaves log space.": (
                torch.log(normal.exp() + benign.exp())
            ),
            "This is the probability. Eq. 8 needs its logarithm.": normal.exp() + benign.exp(),
            "This adds normal and malignant. The order is normal, benign, malignant.": torch.logaddexp(
                normal, malignant
            ),
            "This adds benign and malignant. The order is normal, benign, malignant.": torch.logaddexp(
                benign, malignant
            ),
            "This is the mean of both probabilities: log(p_N + p_B) without the half.": (
                torch.logaddexp(normal, benign) - torch.log(torch.tensor(2.0))
            ),
        }
        cases.append(Case((log_cls,), torch.logaddexp(normal, benign), mistakes, note))
    return judge(
        answer, cases, "One label for two classes: their probabilities are added, their logarithms are not."
    )


def rank_loss(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (logits, selected, region_label), (m,) each, of one image -> its term of Eq. 9 (checklist D13).

    The ranking is over all regions (reading A5), so that `selected` is not needed.
    """
    generator = torch.Generator().manual_seed(13)
    cases = []
    for logits, label, chosen, note in (
        (
            1.5 * torch.randn(8, generator=generator),
            [1, 0, -1, 1, 0, 0, -1, 0],
            [0, 3, 5, 6],
            "eight regions, two malignant",
        ),
        (torch.randn(6, generator=generator), [0, 1, 0, 1, -1, 0], [0, 2, 4], "none of them selected"),
        (torch.tensor([150.0, -40, 120, 20, 149]), [1, 0, 1, 0, 0], [0, 2, 4], "large logits"),
        (torch.tensor([60.0, -40, -55, -20]), [0, 0, 1, -1], [0, 2], "the network is sure of another region"),
    ):
        region_label, selected = torch.tensor(label), torch.zeros(len(label), dtype=torch.bool)
        selected[chosen] = True
        malignant = region_label == 1
        log_det = logits.log_softmax(0)
        masked = logits.masked_fill(~selected, -torch.inf).log_softmax(0)
        mistakes = {
            "The logarithms of the regions are added. That asks every malignant region to be high; Eq. 9 is "
            "the logarithm of their sum, and one that is high is enough.": log_det[malignant].sum(),
            "The logarithms of the regions are averaged. Eq. 9 adds the probabilities first.": (
                log_det[malignant].mean()
            ),
            "This is the ranking of the selected regions, Eq. 4. Eq. 9 has p_det over all regions (reading "
            "A5): with the mask the sum can be 0.": masked[malignant].logsumexp(0),
            "You add up shares that sum to 1, and the logarithm of 1 is 0. The softmax runs over all "
            "regions, the sum over those with label 1.": log_det.logsumexp(0),
            "Ignored regions, label -1, are counted too. Take those with label 1.": (
                log_det[region_label != 0].logsumexp(0)
            ),
            "These are the regions that are benign or normal. Take those with label 1.": (
                log_det[region_label == 0].logsumexp(0)
            ),
            "Only the highest malignant region counts in your answer. Add up all of them.": (
                log_det[malignant].max()
            ),
            "The logits are not probabilities yet: softmax over the regions comes first.": (
                logits[malignant].logsumexp(0)
            ),
            "This is the probability. Eq. 9 is its logarithm.": log_det[malignant].logsumexp(0).exp(),
            "The sum is divided by the number of malignant regions. Eq. 9 has no such mean.": (
                log_det[malignant].logsumexp(0) - malignant.sum().log()
            ),
            "Small probabilities underflow to 0 and the logarithm is infinite. log_softmax and logsumexp "
            "stay in log space.": logits.softmax(0)[malignant].sum().log(),
            "The exponential overflows. log_softmax and logsumexp stay in log space.": (
                (logits.exp() / logits.exp().sum())[malignant].sum().log()
            ),
        }
        want = log_det[malignant].logsumexp(0)
        cases.append(Case((logits, selected, region_label), want, mistakes, note))
    return judge(
        answer, cases, "The share of the ranking that lies on the lesion, wherever on it: a soft constraint."
    )


def objective(answer: Callable[..., Tensor]) -> Verdict:
    """Judge Eq. 10 to 12 of a batch -> (L_W, L_F, L) as a tensor (3,) (checklist D14-D16).

    The answer is given log_cls (b, m, 3), log_det (b, m, 2), log_prob (b, 2, 2), label (b, 2), region_label
    (b, m) and annotated (b,); beta and lambda_2 are 1, all regions are valid.
    """
    full = _batch(annotated=(True, True, False, False), label=((0, 1), (1, 1), (0, 1), (1, 0)))
    cases = [
        (full, "two images annotated, two weak"),
        (
            _batch((True, False, False, False), ((torch.nan, 1), (0, 1), (1, 0), (0, 0))),
            "a label is unknown, NaN",
        ),
        (_batch((True, True, False, True), ((0, 1), (0, 1), (1, 0), (0, 1)), nothing=3), "reading A6"),
        (_batch((False,) * 4, ((0, 1), (1, 1), (0, 0), (1, 0))), "no image is annotated"),
        (_batch((True,) * 4, ((0, 1), (1, 1), (0, 1), (1, 1))), "every image is annotated"),
    ]
    return judge(
        answer,
        [_objective_case(*case) for case in cases],
        "Each mean has its own set, an empty set gives 0, and every image teaches its benign label.",
    )


def _batch(
    annotated: Sequence[bool], label: Sequence[Sequence[int | float]], nothing: int | None = None
) -> tuple[Tensor, ...]:
    """Return four images of five regions; image `nothing` has no malignant region."""
    generator = torch.Generator().manual_seed(13)
    log_cls = torch.randn(4, 5, 3, generator=generator).log_softmax(-1)
    log_det = torch.randn(4, 5, 2, generator=generator).log_softmax(1)
    log_prob = torch.randn(4, 2, 2, generator=generator).log_softmax(-1)
    region_label = torch.tensor([[1, 0, 0, -1, 1], [0, 0, 1, 0, 0], [1, -1, 0, 0, 0], [0, 1, 0, 1, -1]])
    if nothing is not None:
        region_label[nothing] = torch.tensor([0, -1, 0, -1, 0])
    annotated_ = torch.tensor(annotated)
    region_label[~annotated_] = -1
    return log_cls, log_det, log_prob, torch.tensor(label, dtype=torch.float32), region_label, annotated_


def _objective_case(batch: tuple[Tensor, ...], note: str) -> Case:
    log_cls, log_det, log_prob, label, region_label, annotated = batch
    valid = torch.ones_like(region_label, dtype=torch.bool)
    terms = semi_supervised_objective(log_cls, log_det, log_prob, label, region_label, annotated, valid)
    want = torch.stack([terms["L_W"], terms["L_F"], terms["L"]])
    mistakes = {words: _flawed(flaw, *batch) for flaw, words in _FLAWS.items()}
    return Case(batch, want, mistakes, note)


_FLAWS = {
    "0/0": "This is 0 / 0: a set is empty. Divide by max(1, its size), so that it contributes 0 (reading "
    "A11).",
    "nan label": "An unknown label is NaN and makes the sum NaN. Leave it out, of the sum and of the count.",
    "nan zero": "An unknown label counts as 0. Leave it out, of the sum and of the count.",
    "nan count": "An unknown label is left out of the sum but still counted in n.",
    "m_f image": "lambda_1 divides by the labelled regions of each image, and the images are averaged. m_f "
    "is one number: all labelled regions together.",
    "m_f ignored": "Ignored regions are counted in m_f. It counts regions with label 1 or 0.",
    "m_f malignant": "m_f counts malignant regions only. Benign or normal ones have a label too.",
    "no lambda": "Eq. 8 is a plain sum; lambda_1 = 1 / m_f is missing in Eq. 10.",
    "det n": "Eq. 9 is averaged over all images. It is averaged over the annotated ones, |F|.",
    "det sum": "Eq. 9 is a mean over the annotated images, not a sum.",
    "det logs": "In Eq. 9 the probabilities of the malignant regions are added, then comes the logarithm.",
    "det benign": "Eq. 9 ranks with the malignant detector: column 1 of log_det.",
    "keep": "Annotated images are also in W. The paper keeps them out, so that nothing is said twice.",
    "benign W": "The benign term is averaged over W only. Eq. 11 has all n images there: nobody has marked "
    "benign findings.",
    "W n": "The malignant term is divided by n. Eq. 11 divides by |W|.",
    "sums": "Eq. 11 is a sum of means, with 1 / |W| and 1 / n.",
    "a6": "An annotated image without a malignant region makes Eq. 9 log 0. Count it in W (reading A6).",
    "a6 lost": "An annotated image without a malignant region is in neither set. Count it in W (reading A6).",
    "sign": "These are losses. The paper maximises: leave the logarithms as they are.",
}


def _flawed(
    flaw: str,
    log_cls: Tensor,
    log_det: Tensor,
    log_prob: Tensor,
    label: Tensor,
    region_label: Tensor,
    annotated: Tensor,
) -> Tensor:
    """Eq. 10 to 12 with one mistake in it."""
    known, low = ~label.isnan(), 0 if flaw == "0/0" else 1
    malignant = region_label == 1
    full = annotated if flaw == "a6" else annotated & malignant.any(1)
    said = torch.where(label == 1, log_prob[..., 1], log_prob[..., 0])
    if flaw != "nan zero":
        said = said.masked_fill(~known, torch.nan if flaw == "nan label" else 0.0)
    counted = torch.ones_like(known) if flaw.startswith("nan") else known
    elsewhere = {"keep": torch.zeros_like(full), "a6 lost": annotated}.get(flaw, full)
    weak = counted[:, 1] & ~elsewhere
    benign = counted[:, 0] & weak if flaw == "benign W" else counted[:, 0]
    size = {"sums": 1}.get(flaw)
    weak_part = _mean(said[:, 1], weak, low, len(label) if flaw == "W n" else size)
    weak_part = weak_part + _mean(said[:, 0], benign, low, size)

    labelled = full[:, None] & (region_label >= 0)
    log_region = torch.where(malignant, log_cls[..., 2], torch.logaddexp(log_cls[..., 0], log_cls[..., 1]))
    counts = {"m_f ignored": full[:, None].expand_as(labelled), "m_f malignant": labelled & malignant}
    m_f = int(counts.get(flaw, labelled).sum().clamp(min=low))
    cls = _mean(log_region, labelled, low, 1 if flaw == "no lambda" else m_f)
    if flaw == "m_f image":
        each = torch.where(labelled, log_region, 0.0).sum(1) / labelled.sum(1).clamp(min=1)
        cls = _mean(each, full, low)
    ranked = log_det[..., 0 if flaw == "det benign" else 1]
    rows = torch.where(malignant, ranked, -torch.inf).logsumexp(1)
    if flaw == "det logs":
        rows = torch.where(malignant, ranked, 0.0).sum(1)
    det = _mean(rows, full, low, {"det n": len(label), "det sum": 1}.get(flaw))
    result = torch.stack([weak_part, cls + det, weak_part + cls + det])
    return -result if flaw == "sign" else result


def _mean(values: Tensor, of: Tensor, low: int, size: int | None = None) -> Tensor:
    """Add up some values and divide by their number, which is at least `low`, or by `size`."""
    return torch.where(of, values, 0.0).sum() / (of.sum().clamp(min=low) if size is None else size)
