"""Answers of chapter 9: two softmaxes and their product, the image's probabilities, p(y=0) in log space."""

from collections.abc import Callable

import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge
from mammomil.dual_branch import image_log_prob, log_not_cls, log_p_cls, log_p_det
from mammomil.dual_branch import region_scores as scores_of


def _logits(b: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = 2 * torch.randn(b, m, 5, generator=generator)
    return draw[..., :3].contiguous(), draw[..., 3:].contiguous()


def region_scores(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (cls_logits (b, m, 3), det_logits (b, m, 2)) -> d (b, m, 2): Eq. 1, 2 and 13."""
    cases = []
    for b, m, note in ((2, 3, "2 images of 3 regions"), (1, 5, "an image of 5 regions")):
        cls, det = _logits(b, m, seed=m)
        log_cls, log_det = log_p_cls(cls), log_p_det(det)
        p_cls, p_det = log_cls.exp()[..., 1:], log_det.exp()
        over_regions, over_findings = cls.softmax(1)[..., 1:], det.softmax(2)
        mistakes = {
            "Both softmaxes have the wrong axis: classes share 1 within a region (dim 2), regions share 1 "
            "within an image (dim 1).": over_regions * over_findings,
            "The classification's softmax runs over the regions. Eq. 1 asks of one region which class it "
            "is: the classes are dim 2.": over_regions * p_det,
            "The ranking's softmax runs over the findings, so that benign and malignant compete within a "
            "region. Eq. 2 lets regions compete: dim 1.": p_cls * over_findings,
            "The ranking's softmax runs over the images: what else is in the batch would matter. The regions "
            "are dim 1.": p_cls * det.softmax(0),
            "The ranking's softmax runs over regions and findings at once. Each finding has a ranking of its "
            "own, which sums to 1.": p_cls * det.flatten(1).softmax(1).view_as(det),
            "Class 0 is normal and has no ranking. The findings are classes 1 and 2.": (
                log_cls.exp()[..., :2] * p_det
            ),
            "The normal class is gone before the softmax, so that benign and malignant share 1 in every "
            "region: that is DB-Baseline. Take the softmax over three, then leave out normal.": (
                cls[..., 1:].softmax(2) * p_det
            ),
            "Class and rank are added. A region counts if it is suspicious and speaks for the image: "
            "multiply.": p_cls + p_det,
            "The logits are added and one softmax is taken over the regions. Eq. 1 and 2 are two softmaxes "
            "over different axes, and their results are multiplied.": (cls[..., 1:] + det).softmax(1),
            "This is the ranking alone: p_cls is missing.": p_det,
            "This is the classification alone: p_det is missing.": p_cls,
            "These are logarithms of the scores: take exp.": log_cls[..., 1:] + log_det,
            "This is the sum over the regions, Eq. 3. Eq. 13 keeps a score for each region.": (
                p_cls * p_det
            ).sum(1),
        }
        cases.append(Case((cls, det), scores_of(log_cls, log_det), mistakes, note))
    return judge(
        answer,
        cases,
        "Classes compete within a region, regions within an image, and a score needs a large share of both.",
    )


def image_probability(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (p_cls (b, m, 3), p_det (b, m, 2)) -> (b, 2, 2): p(y_c = 0) and p(y_c = 1), Eq. 3."""
    cases = []
    for b, m, note in ((1, 4, "an image of 4 regions"), (3, 6, "3 images of 6 regions")):
        cls, det = _logits(b, m, seed=m)
        log_cls, log_det = log_p_cls(cls), log_p_det(det)
        p_cls, p_det = log_cls.exp(), log_det.exp()
        found, d = p_cls[..., 1:], p_cls[..., 1:] * p_det
        yes = d.sum(1)
        no = 1 - yes
        normal = (p_cls[..., :1] * p_det).sum(1)

        def pair(no: Tensor, yes: Tensor) -> Tensor:
            return torch.stack([no, yes], -1)

        some = 1 - (1 - found).prod(1)
        mistakes = {
            "p(y=1) is right, but p(y=0) is the product over regions of 1 - d. The regions are not asked one "
            "after the other: the image speaks through one of them, and p(y=0) = 1 - p(y=1).": (
                pair((1 - d).prod(1), yes)
            ),
            "p(y=1) is right, but p(y=0) is the product over regions of 1 - p_cls. That is 'no region at "
            "all', another model; here p(y=0) = 1 - p(y=1).": pair((1 - found).prod(1), yes),
            "p(y=1) is right, but p(y=0) counts normal alone. A region without c may also hold the other "
            "finding: 1 - p_cls(c), not p_cls(N).": pair(normal, yes),
            "'At least one region is c', 1 - prod(1 - p_cls), is not Eq. 3: with 200 regions of .02 it is "
            ".98. Weigh the regions by their rank and sum.": pair(1 - some, some),
            "The regions' scores are combined as independent chances, 1 - prod(1 - d). They are parts of one "
            "probability: sum them.": pair((1 - d).prod(1), 1 - (1 - d).prod(1)),
            "The largest product is taken for the sum: the other regions are lost. Eq. 3 sums.": (
                pair(1 - d.amax(1), d.amax(1))
            ),
            "This is Max-Region: the most suspicious region decides, the ranking is not used.": (
                pair(1 - found.amax(1), found.amax(1))
            ),
            "The products are averaged. The ranking already sums to 1: sum them.": (
                pair(1 - d.mean(1), d.mean(1))
            ),
            "All regions count alike: the ranking is not used.": pair(1 - found.mean(1), found.mean(1)),
            "Classes 0 and 1 are normal and benign. The findings are classes 1 and 2.": (
                pair(1 - (p_cls[..., :2] * p_det).sum(1), (p_cls[..., :2] * p_det).sum(1))
            ),
            "The order is reversed: p(y=0) comes first, p(y=1) second.": pair(yes, no),
            "The findings are the last axis here; they belong before p(y=0) and p(y=1): stack on dim -1.": (
                torch.stack([no, yes], 1)
            ),
            "This is p(y=1) alone. Stack p(y=0) and p(y=1) on a last axis.": yes,
        }
        cases.append(Case((p_cls, p_det), image_log_prob(log_cls, log_det).exp(), mistakes, note))
    return judge(
        answer,
        cases,
        "One region speaks for the image, drawn by rank; p(y=1) is the chance that it shows the finding.",
    )


def log_absent(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (log_cls (b, m, 3), log_det (b, m, 2)) -> log p(y_c = 0 | x) (b, 2), exact in float32."""
    ordinary = _logits(2, 4, seed=1)
    cls, det = _logits(1, 5, seed=2)
    sure = cls.clone()
    sure[..., 2] += 30  # p(y_M = 1) rounds to 1
    extreme = cls.clone()
    extreme[..., 2] += 200  # and p(y_M = 0) to 0
    cases = [
        _log_case(*ordinary, "2 images of 4 regions"),
        _log_case(sure, det, "every region malignant, by 30 logits"),
        _log_case(extreme, det, "every region malignant, by 200 logits"),
    ]
    return judge(
        answer,
        cases,
        "Other classes are added up, never subtracted from 1, and no probability leaves log space.",
    )


def _log_case(cls: Tensor, det: Tensor, note: str) -> Case:
    log_cls, log_det = log_p_cls(cls), log_p_det(det)
    log_yes = (log_cls[..., 1:] + log_det).logsumexp(1)
    normal, benign, malignant = log_cls.unbind(-1)
    no = log_not_cls(log_cls)
    own = torch.stack([torch.logaddexp(normal, benign), torch.logaddexp(normal, malignant)], -1)
    mistakes = {
        "This is log p(y=1).": log_yes,
        "Normal alone is counted. 'Not malignant' is normal or benign, 'not benign' normal or malignant.": (
            (normal[..., None] + log_det).logsumexp(1)
        ),
        "The complements have changed places: 'not benign' is normal or malignant, and you have added normal "
        "and benign there.": (own + log_det).logsumexp(1),
        "Normal is left out. 'Not malignant' is normal or benign: logaddexp of both.": (
            (log_cls[..., [2, 1]] + log_det).logsumexp(1)
        ),
        "The logarithm is taken before the average over regions: sum of p_det log(1 - p_cls). The average of "
        "logarithms is not the logarithm of the average.": (log_det.exp() * no).sum(1),
        "The regions are multiplied: you add the logarithms of all of them. Eq. 3 is a sum over regions: "
        "logsumexp.": (no + log_det).sum(1),
        "The ranking is missing: add log_det before logsumexp.": no.logsumexp(1),
        "These are probabilities: the logarithm is missing.": (no + log_det).logsumexp(1).exp(),
        "The right sum, but of probabilities that have become 0 in float32 before they are added. Stay with "
        "logarithms: logaddexp over classes, logsumexp over regions.": (no.exp() * log_det.exp())
        .sum(1)
        .log(),
        "1 - p is computed from p. Where p(y=1) has rounded to 1 in float32 nothing of p(y=0) is left in it, "
        "and the logarithm of 0 is -inf; log1p cannot repair that. Add up the other classes instead.": (
            torch.log(1 - log_yes.exp())
        ),
    }
    for floor in (1e-6, 1e-7, 1e-8, 1e-10, 1e-12):
        told = f"A clamp at {floor:g} makes the number finite and wrong, and its gradient 0. "
        told += "Add up the other classes in log space: nothing has to be clamped."
        mistakes[told] = torch.log((1 - log_yes.exp()).clamp(min=floor))
    return Case((log_cls, log_det), image_log_prob(log_cls, log_det)[..., 0], mistakes, note)
