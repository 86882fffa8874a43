"""Answers of chapter 11: Eq. 5 with unknown labels, the epoch by validation, a label's push on regions."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, gradient_of, judge
from mammomil.dual_branch import image_log_prob, log_p_cls
from mammomil.losses import semi_supervised_objective
from mammomil.metrics import any_finding, auc_score

Loss = Callable[[Tensor, Tensor], Tensor]


def weak_loss(answer: Loss) -> Verdict:
    """Judge (log_prob (b, c, 2), label (b, c) with NaN) -> minus Eq. 5; its gradient is judged too.

    A mean over the images that know a finding, summed over findings (checklist D9, readings A11 and A12).
    """
    nan = math.nan
    labels = {
        "two labels unknown": [[nan, 1.0], [0.0, 0.0], [nan, 1.0], [1.0, 0.0], [0.0, 0.0]],
        "no benign label known": [[nan, 1.0], [nan, 0.0], [nan, 0.0]],
    }
    cases = [_loss_case(rows, note) for note, rows in labels.items()]
    praise = "Each finding is averaged over the images that know it, and what nobody knows stays out."
    verdict = judge(answer, cases, praise)
    if not verdict.right:
        return verdict
    return judge(gradient_of(answer), [_gradient_case(*case.arguments) for case in cases], praise)


def _library_loss(log_prob: Tensor, label: Tensor) -> Tensor:
    """Minus Eq. 5 as the library's objective has it when nothing is annotated."""
    images = len(label)
    regions = torch.full((images, 1), -1)
    none, valid = torch.zeros(images, dtype=torch.bool), torch.ones(images, 1, dtype=torch.bool)
    log_cls = log_prob.new_zeros(images, 1, 3)
    return -semi_supervised_objective(log_cls, None, log_prob, label, regions, none, valid)["L"]


def _nll(log_prob: Tensor, label: Tensor) -> Tensor:
    return -(label * log_prob[..., 1] + (1 - label) * log_prob[..., 0])


def _loss_case(rows: list[list[float]], note: str) -> Case:
    label = torch.tensor(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(len(rows))
    p = 0.05 + 0.9 * torch.rand(label.shape, generator=generator, dtype=torch.float64)
    log_prob = torch.stack([1 - p, p], -1).log()
    known = ~label.isnan()
    each = torch.where(known, _nll(log_prob, label), 0.0)
    count = known.sum(0)
    whole = known.all(1)
    mistakes = {
        "The result is NaN: an unknown label went into the arithmetic, and NaN times 0 is NaN. Choose by "
        "`torch.where`.": torch.tensor(nan := math.nan),
        "An unknown label counts as 0, as if somebody had looked and found nothing.": (
            _nll(log_prob, label.nan_to_num()).mean(0).sum()
        ),
        "You divide by all images of the batch. A finding that is known of few images would weigh less; here "
        "each finding is averaged over the images that know it (reading A11).": each.mean(0).sum(),
        "Both findings share one average. Each has its own, over the images that know it, and the two are "
        "summed.": each.sum() / known.sum(),
        "You average over the findings. Eq. 5 sums over them.": (each.sum(0) / count.clamp(min=1)).mean(),
        "You sum over the images. With a mean the step does not grow with the batch (reading A12).": (
            each.sum()
        ),
        "Every image with an unknown label is left out, and its known label with it.": (
            each[whole].sum() / whole.sum().clamp(min=1)
        ),
        "log p(y=0) and log p(y=1) have changed places: the last axis is (0, 1).": (
            torch.where(known, _nll(log_prob.flip(-1), label), 0.0).sum(0) / count.clamp(min=1)
        ).sum(),
        "The sign: Eq. 5 is maximised, a loss is minimised.": -(each.sum(0) / count.clamp(min=1)).sum(),
        "The two findings are still apart. Sum them.": each.sum(0) / count.clamp(min=1),
    }
    if (count == 0).any():
        told = (
            "A finding of which no label is known is 0 / 0 = NaN. It contributes 0: `clamp(min=1)` the count."
        )
        mistakes = {told: torch.tensor(nan)} | mistakes
    return Case((log_prob, label), _library_loss(log_prob, label), mistakes, note)


def _gradient_case(log_prob: Tensor, label: Tensor) -> Case:
    def spoilt(log_prob: Tensor, label: Tensor) -> Tensor:
        known = ~label.isnan()
        each = torch.where(known, _nll(log_prob, label), 0.0)
        return (each.sum(0) / known.sum(0).clamp(min=1)).sum()

    mistakes = {
        "The loss is right, but no gradient reaches the log-probabilities: stay in torch, without detach or "
        "item.": torch.zeros_like(log_prob),
    }
    if label.isnan().any():
        told = (
            "The loss is right, but its gradient is NaN. An unknown label went into a product, whose "
            "gradient is NaN * 0 even where the result is thrown away. Choose between the two "
            "log-probabilities by `torch.where`, do not multiply."
        )
        mistakes[told] = gradient_of(spoilt)(log_prob, label)
    return Case((log_prob, label), gradient_of(_library_loss)(log_prob, label), mistakes, "the gradient")


def choose_epoch(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], int]) -> Verdict:
    """Judge (prob (e, n, 2), label (n, 2) with NaN, validation (n,)) -> epoch with the best validation AUC.

    The AUC is that of malignant findings, epochs count from 0, the first of equal ones wins (reading A20).
    """
    cases = [
        _epoch_case(22, 0.0, "40 epochs, all labels known"),
        _epoch_case(70, 0.2, "40 epochs, some labels unknown"),
    ]
    return judge(
        answer,
        cases,
        "Epochs are chosen on images that were neither learned from nor will be reported.",
    )


def _epoch_case(seed: int, unknown: float, note: str) -> Case:
    """Make answers of some epochs, and take the mistakes apart: each leads to an epoch of its own."""
    random = np.random.default_rng(seed)
    epochs, n = 40, 160
    label = (random.random((n, 2)) < 0.4).astype(float)
    validation = random.random(n) < 0.5
    prob = 1 / (1 + np.exp(2 - 1.5 * label - random.normal(size=(epochs, n, 2))))
    label[random.random((n, 2)) < unknown] = np.nan
    y, seen = label[validation], prob[:, validation]
    best = _best(y[:, 1], seen[..., 1])
    again = epochs - 4
    prob[again, validation, 1] = seen[best, :, 1] ** 1.5  # the same order, hence the same AUC
    seen = prob[:, validation]
    mistakes = {
        "You return the AUC. Asked is the number of the epoch.": auc_score(y[:, 1], seen[best, :, 1]),
        "Epochs count from 0 here.": best + 1,
        "This is the last epoch. Look for the best one.": epochs - 1,
        "Of equal ones take the first: the model that needed less training.": again,
        "This epoch is best outside validation, on images that were learned from or are to be reported.": (
            _best(label[~validation, 1], prob[:, ~validation, 1])
        ),
        "This epoch is best over all images. Take validation alone.": _best(label[:, 1], prob[..., 1]),
        "This is the best epoch for benign findings. Column 1 is malignant.": _best(y[:, 0], seen[..., 0]),
        "This is the best epoch for any finding. Asked is malignant.": _best(any_finding(y), seen.max(2)),
        "This epoch has the smallest loss on validation. A loss also judges how large probabilities are, the "
        "AUC only their order.": _least_loss(y[:, 1], seen[..., 1]),
    }
    if unknown:
        known = ~np.isnan(y).any(1)
        mistakes |= {
            "An unknown label counts as 0 in your AUC. Leave these images out.": (
                _best(np.nan_to_num(y[:, 1]), seen[..., 1])
            ),
            "You leave out images whose benign label is unknown. Their malignant label counts.": (
                _best(y[known, 1], seen[:, known, 1])
            ),
        }
    return Case((prob, label, validation), best, mistakes, note)


def _best(label: np.ndarray, prob: np.ndarray) -> int:
    return int(np.argmax([auc_score(label, p) for p in prob]))


def _least_loss(label: np.ndarray, prob: np.ndarray) -> int:
    known = ~np.isnan(label)
    chosen = np.where(label[known] == 1, prob[:, known], 1 - prob[:, known])
    return int(np.argmin(-np.log(chosen).mean(1)))


def class_gradient(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (p_cls (m, 3), p_det (m, 2), label (2,)) -> gradient of -log p(y_B|x) - log p(y_M|x), (m, 3).

    By the class logits of each region, through Eq. 1 and Eq. 3. Labels are 0 or 1, benign first.
    """
    labels = {
        "a malignant image": (0.0, 1.0),
        "a normal image": (0.0, 0.0),
        "both findings": (1.0, 1.0),
    }
    cases = [_class_case(len(note), label, note) for note, label in labels.items()]
    return judge(
        answer,
        cases,
        "Each region is pushed as if it had the image's label itself, by the share it has in the answer.",
    )


def _class_case(seed: int, label: tuple[float, float], note: str) -> Case:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    p_det = torch.randn(5, 2, generator=generator, dtype=torch.float64).softmax(0)
    y = torch.tensor(label, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    log_prob = image_log_prob(log_p_cls(leaf[None]), p_det.log()[None])[0]
    terms = -torch.where(y == 1, log_prob[:, 1], log_prob[:, 0])  # benign, malignant
    want = torch.autograd.grad(terms.sum(), leaf, retain_graph=True)[0]
    alone = [torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in terms]
    p = logits.softmax(1)
    of_image = torch.where(y == 1, log_prob[:, 1], log_prob[:, 0]).exp().detach()
    ways: dict[str, list[Tensor]] = {name: [] for name in ("rank", "every", "own", "p", "normal", "yes")}
    for c in range(2):
        one = torch.eye(3, dtype=torch.float64)[c + 1]
        away = p - one if y[c] else p[:, c + 1 :][:, :1] / (1 - p[:, c + 1 :][:, :1]) * (one - p)
        joint = p_det[:, c] * p[:, c + 1]
        sign = 1 if y[c] else -1
        share = (joint if y[c] else p_det[:, c] - joint) / of_image[c]
        ways["rank"].append(p_det[:, c, None] * away)
        ways["every"].append(away)
        ways["own"].append(alone[c] * one)
        ways["p"].append(alone[c] * of_image[c])
        target = one if y[c] else torch.eye(3, dtype=torch.float64)[0]
        ways["normal"].append(share[:, None] * (p - target))
        ways["yes"].append(joint[:, None] * (p - one) * sign / joint.sum())
    sums = {name: sum(parts) for name, parts in ways.items()}
    mistakes = {
        "The sign is the other way round: a gradient points to where the loss grows.": -want,
        "A region's share is taken from its rank alone. It is p_det p_cls / p(y|x), which also asks whether "
        "the region looks like it.": sums["rank"],
        "Every region is pushed as if it had the image's label, with full weight. Weigh it by its share "
        "in p(y|x).": sums["every"],
        "The softmax couples the classes: raising one logit lowers the other probabilities, so that all "
        "three columns have a gradient.": sums["own"],
        "This is the gradient of minus p(y|x). The logarithm divides it by p(y|x).": sums["p"],
        "The benign finding is missing: the loss is a sum over both.": alone[1],
        "The malignant finding is missing: the loss is a sum over both.": alone[0],
        "You average the two findings. Eq. 5 sums over them.": want / 2,
        "The two findings are stacked or kept apart. Add their gradients.": torch.stack(alone, -1),
    }
    if not y.all():
        mistakes["For y = 0 you push regions towards normal. 'Not c' may also be the other finding."] = sums[
            "normal"
        ]
        mistakes["For y = 0 you divide by p(y=1|x). The probability of the label is 1 - p(y=1|x)."] = sums[
            "yes"
        ]
    return Case((p, p_det, y), want, mistakes, note)
