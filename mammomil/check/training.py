"""Answers of chapter 5: Eq. 1 of GMIC, labels that nobody knows, epochs in balance."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mammomil.check.answers import Case, Verdict, gradient_of, judge
from mammomil.losses import bernoulli_nll, gmic_loss, saliency_penalty

Epoch = Callable[[np.ndarray, np.ndarray, int], Sequence[int]]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9 + 0.05


def eq1(answer: Callable[..., Tensor]) -> Verdict:
    """Judge (y_loc, y_mil (b, c), A (b, c, h, w), label (b, c), weight, beta) -> Eq. 1 (checklist G5)."""
    cases = []
    for (b, h, w), weight, beta, note in (
        ((3, 4, 5), 0.1, 1.0, "3 images"),
        ((2, 3, 3), 0.3, 0.5, "2 images, beta 0.5"),
    ):
        y_loc, y_mil, A = (_random(*s, seed=b + i) for i, s in enumerate(((b, 2), (b, 2), (b, 2, h, w))))
        label = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[:b]
        loc, mil = (-(label * y.log() + (1 - label) * (1 - y).log()) for y in (y_loc, y_mil))
        reg = weight * saliency_penalty(A, beta)

        def total(terms: Tensor) -> Tensor:
            return terms.sum(1).mean()

        mistakes = {
            "You average over the classes. Eq. 1 sums over them, and only the images are averaged.": (
                loc + mil + reg
            ).mean(),
            "You sum over the images. The loss of a batch is the mean over its images, or the step would "
            "grow with the batch.": (loc + mil + reg).sum(),
            "The cells of the map are averaged. L_reg sums over all of them (reading G-a); lambda's range "
            "belongs to a sum.": total(loc + mil + weight * A.pow(beta).mean((-2, -1))),
            "lambda is missing: the regulariser has full weight.": total(loc + mil + reg / weight),
            "The regulariser is missing.": total(loc + mil),
            "L_mil is missing: the patch branch would learn nothing.": total(loc + reg),
            "L_loc is missing: the map would learn from the regulariser alone, and vanish.": total(mil + reg),
            "The regulariser is a mean over the classes. Each class has its own map, and all are summed.": (
                total(loc + mil) + reg.mean()
            ),
            "The sign: BCE is minus the log-likelihood, and the loss goes down when the fit is better.": (
                total(reg - loc - mil)
            ),
            "You take the BCE of the average (y_loc + y_mil) / 2. In Eq. 1 each has a term of its own; the "
            "average comes when the model is used.": total(
                -(label * ((y_loc + y_mil) / 2).log() + (1 - label) * (1 - (y_loc + y_mil) / 2).log()) + reg
            ),
        }
        if beta != 1:
            mistakes["The exponent beta is missing."] = total(loc + mil + weight * A.sum((-2, -1)))
            mistakes["beta is the power of the sum. Eq. 1 has it on each cell."] = total(
                loc + mil + weight * A.sum((-2, -1)).pow(beta)
            )
        want = torch.stack(list(gmic_loss(y_loc, y_mil, A, label, weight, beta).values())).sum()
        cases.append(Case((y_loc, y_mil, A, label, weight, beta), want, mistakes, note))
    return judge(answer, cases, "Two cross-entropies and a penalty: summed over classes, a mean over images.")


def known_nll(answer: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Judge (log_prob (b, c, 2), label (b, c) with NaN) -> loss, NaN left out; its gradient is judged too."""
    nan = math.nan
    labels = {
        "one unknown label": [[1.0, nan], [0.0, 0.0], [0.0, 1.0]],
        "an image of which nothing is known": [[nan, nan], [1.0, 0.0], [nan, 1.0], [0.0, 0.0]],
    }
    cases = []
    for note, rows in labels.items():
        label = torch.tensor(rows, dtype=torch.float64)
        p = _random(*label.shape, seed=len(rows))
        cases.append(_nll_case(torch.stack([1 - p, p], -1).log(), label, note))
    praise = "An unknown label adds 0, has gradient 0, and the other labels keep their weight."
    verdict = judge(answer, cases, praise)
    if not verdict.right:
        return verdict
    log_prob, label = cases[1].arguments
    zero = torch.zeros_like(log_prob)
    spoilt = gradient_of(lambda p, y: torch.where(y.isnan(), 0.0, _by_formula(p, y)).sum(1).mean())
    mistakes = {
        "The loss is right, but no gradient reaches the log-probabilities: stay in torch, without detach "
        "or item.": zero,
        "The loss is right, but its gradient is NaN. An unknown label went into a product, whose gradient "
        "is NaN * 0 even where the result is thrown away. Choose by `torch.where` first.": spoilt(
            log_prob, label
        ),
    }
    want = gradient_of(_known_nll)(log_prob, label)
    return judge(gradient_of(answer), [Case((log_prob, label), want, mistakes, "the gradient")], praise)


def _known_nll(log_prob: Tensor, label: Tensor) -> Tensor:
    return bernoulli_nll(log_prob, label).sum(1).mean()


def _by_formula(log_prob: Tensor, label: Tensor) -> Tensor:
    return -(label * log_prob[..., 1] + (1 - label) * log_prob[..., 0])


def _nll_case(log_prob: Tensor, label: Tensor, note: str) -> Case:
    known = ~label.isnan()
    each = torch.where(known, _by_formula(log_prob, label), 0.0)  # (b, c)
    as_zero = _by_formula(log_prob, label.nan_to_num())
    mistakes = {
        "NaN in the loss. Multiplying by a mask does not help, since NaN * 0 is NaN. Choose by "
        "`torch.where`.": torch.tensor(math.nan),
        "An unknown label counts as 0, as if somebody had seen that there is no finding.": (
            as_zero.sum(1).mean()
        ),
        "You divide by the number of known labels. The library's loss sums over classes and divides by all "
        "images, so that a label keeps its weight.": each.sum() / known.sum(),
        "You average over the classes. Eq. 1 sums over them.": each.mean(),
        "You sum over the images. The loss of a batch is their mean.": each.sum(),
        "Every image with an unknown label is left out, and its known labels with it.": (
            each[known.all(1)].sum(1).mean()
        ),
        "You average over the known labels of each image. Eq. 1 sums over classes.": (
            (each.sum(1) / known.sum(1).clamp(min=1)).mean()
        ),
        "log p(y=0) and log p(y=1) have changed places: the last axis is (0, 1).": (
            torch.where(known, _by_formula(log_prob.flip(-1), label), 0.0).sum(1).mean()
        ),
        "The sign: the loss is minus the log-likelihood.": -each.sum(1).mean(),
    }
    if not known.any(1).all():
        words = (
            "You divide by the images of which something is known. The library divides by all of the batch."
        )
        mistakes[words] = each.sum() / known.any(1).sum()
    return Case((log_prob, label), _known_nll(log_prob, label), mistakes, note)


def balanced_rows(answer: Epoch) -> Verdict:
    """Judge (label (n, c) with NaN, exam (n,), seed) -> rows of an epoch, in any order (G10, reading G-j).

    All images of every exam with a finding, and of as many exams without, drawn by the seed; of fewer where
    there are fewer. Exams of which nothing is known are left out.
    """
    label, exam = _exams(positive=5, negative=12, unknown=3)
    few = _exams(positive=6, negative=4, unknown=2)
    explained = {words: words for words in FAULTS.values()}
    cases = [
        Case((label, exam, 1), "", explained),
        Case((*few, 2), "", explained, "fewer exams without a finding than with one"),
    ]
    praise = "All exams with a finding, as many fresh ones without, whole exams, and a seed repeats it."
    return judge(_first_fault(answer), cases, praise)


FAULTS = {
    "rows": "The result should be a list or an array of row numbers, 0 to n - 1.",
    "once": "A row comes more than once in an epoch.",
    "known": "Exams of which no label is known were drawn as if they had no finding. NaN is not 0.",
    "positive": "An exam with a finding is missing. One label of 1 makes it positive, whatever its other "
    "images say, and all of these are in every epoch.",
    "whole": "Of some exams only a part of the images is there. Draw exams, then take all their images.",
    "not more": "There are too many exams without a finding: as many as with one, or all there are.",
    "not fewer": "There are too few exams without a finding: as many as with one, or all there are. An exam "
    "is one if every label that is known is 0.",
    "repeats": "The same seed gives another epoch. Draw with `np.random.default_rng(seed)`.",
    "own generator": "You use NumPy's global generator, and so disturb whatever else is drawn. Use "
    "`np.random.default_rng(seed)`.",
    "anew": "Other seeds give the same exams without a finding. They are drawn anew in every epoch (G-j).",
    "all": "In 80 epochs some exams without a finding are never drawn. Each should have its chance.",
}


def _exams(positive: int, negative: int, unknown: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n, 2) and exam numbers (n,): four images an exam, not side by side."""
    kinds = np.repeat([0, 1, 2], [positive, negative, unknown])
    label = np.zeros((len(kinds), 4, 2))
    label[kinds == 2] = math.nan
    for number in range(positive):
        label[number, number % 4, number % 2] = 1
    label[0, 1:] = math.nan  # a positive image among unknown ones
    label[positive, 2] = math.nan  # a negative exam with an unknown image
    order = np.random.default_rng(len(kinds)).permutation(4 * len(kinds))
    names = (100 + 7 * np.arange(len(kinds))).repeat(4)
    return label.reshape(-1, 2)[order], names[order]


def _first_fault(answer: Epoch) -> Callable[[np.ndarray, np.ndarray, int], str | None]:
    """Return a function that says which of `FAULTS` an answer has first; nothing is the empty text."""

    @wraps(answer)
    def fault(label: np.ndarray, exam: np.ndarray, seed: int) -> str | None:
        before = _global_state()
        first = answer(label, exam, seed)
        own_generator = _global_state() == before
        if first is None or first is ...:
            return None
        epochs = [np.asarray(first), *(np.asarray(answer(label, exam, n)) for n in range(80))]
        again = np.asarray(answer(label, exam, seed))
        if any(
            r.ndim != 1 or r.dtype.kind not in "iu" or not np.isin(r, range(len(exam))).all() for r in epochs
        ):
            return FAULTS["rows"]
        positive = set(exam[(label == 1).any(1)])
        negative = set(exam[~np.isnan(label).all(1)]) - positive
        wanted = min(len(positive), len(negative))
        drawn = [frozenset(exam[rows]) for rows in epochs]
        healthy = [exams & negative for exams in drawn]
        fine = {
            "once": all(len(set(rows)) == len(rows) for rows in epochs),
            "known": all(exams <= positive | negative for exams in drawn),
            "positive": all(positive <= exams for exams in drawn),
            "whole": all(
                len(rows) == np.isin(exam, list(exams)).sum()
                for rows, exams in zip(epochs, drawn, strict=True)
            ),
            "not more": all(len(exams) <= wanted for exams in healthy),
            "not fewer": all(len(exams) >= wanted for exams in healthy),
            "repeats": sorted(again) == sorted(epochs[0]),
            "own generator": own_generator,
            "anew": len(set(healthy)) > 1 or wanted == len(negative),
            "all": frozenset().union(*healthy) == negative,
        }
        return next((FAULTS[name] for name, holds in fine.items() if not holds), "")

    return fault


def _global_state() -> tuple[Any, ...]:
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002 (to see whether an answer moves it)
    return (*np.asarray(words).tolist(), place)
