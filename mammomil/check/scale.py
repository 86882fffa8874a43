"""Answers of chapter 19: steps of an epoch, draws of a random search, gradients in parts."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mammomil.check.answers import Case, Verdict, judge

MeanLoss = Callable[[Tensor, Tensor], Tensor]


def schedule(answer: Callable[[int, int, int, int], tuple[int, int]]) -> Verdict:
    """Judge (images, batch_size, processes, accumulate) -> (images of a step, steps of an epoch).

    `batch_size` counts the images of one process; the last step of an epoch may have fewer images.
    """
    cases = []
    for images, batch, processes, accumulate, note in (
        (1100, 4, 4, 2, "four processes, two batches each"),
        (403, 4, 1, 8, "one process, eight batches"),
        (300, 8, 3, 1, "three processes, nothing accumulated"),
        (64, 4, 2, 2, "64 images fill four steps"),
    ):
        step = batch * processes * accumulate
        want = (step, math.ceil(images / step))
        mistakes = {
            "You round down. The last, smaller step is a step too: `math.ceil`.": (step, images // step),
            "Steps are whole. Round up: `math.ceil`.": (step, images / step),
            "You add 1 to the quotient. Where the images fill the last step there is no further one: "
            "`math.ceil`.": (step, images // step + 1),
            "The accumulation is missing: the optimiser waits for `accumulate` batches.": (
                batch * processes,
                math.ceil(images / (batch * processes)),
            ),
            "You count batches, not steps: one step of the optimiser takes `accumulate` batches.": (
                step,
                math.ceil(images / (batch * processes)),
            ),
            "The processes are missing: `batch_size` counts the images of one of them.": (
                batch * accumulate,
                math.ceil(images / (batch * accumulate)),
            ),
            "Each process would go through all images in your answer. They share them.": (
                step,
                math.ceil(images / (batch * accumulate)),
            ),
            "The two numbers have changed places.": want[::-1],
        }
        cases.append(Case((images, batch, processes, accumulate), want, mistakes, note))
    return judge(
        answer,
        cases,
        "Twice the processes are half the steps, and a step of twice the images.",
        tolerance=1e-9,
    )


def draws(answer: Callable[[float, float], int]) -> Verdict:
    """Judge (top, chance) -> independent draws until the best is in the `top` share with that chance."""
    cases = []
    for top, chance in ((0.1, 0.6), (0.05, 0.95), (0.05, 0.5), (0.5, 0.99), (0.01, 0.8)):
        exact = math.log(1 - chance) / math.log(1 - top)
        mistakes = {
            "You round down, which is just too few. Round up: `math.ceil`.": math.floor(exact),
            "Draws are whole. Round up: `math.ceil`.": exact,
            "The chances of draws do not add up: two draws may both be good. Ask how likely it is that all "
            "of them miss.": math.ceil(chance / top),
            "1 / top is how many draws it takes on average. Asked is how many are enough with this chance.": (
                math.ceil(1 / top)
            ),
            "All n miss with (1 - top) ** n, which may be 1 - chance, not chance.": math.ceil(
                math.log(chance) / math.log(1 - top)
            ),
            "A draw misses with 1 - top, not with top.": math.ceil(math.log(1 - chance) / math.log(top)),
        }
        cases.append(Case((top, chance), math.ceil(exact), mistakes, f"top {top:g}, chance {chance:g}"))
    return judge(
        answer,
        cases,
        "The number depends on the share and the chance alone, not on how many values are searched.",
        tolerance=1e-9,
    )


def accumulated(answer: Callable[[MeanLoss, Tensor, Sequence[Tensor]], Tensor]) -> Verdict:
    """Judge (mean_loss, weight (d,), parts) -> gradient (d,) of the mean loss over all images of all parts.

    `mean_loss(weight, part)` is the mean over the images of one part; more images at once it refuses.
    """
    generator, cases = torch.Generator().manual_seed(19), []
    for sizes, note in (
        ((8, 8, 3), "parts of 8, 8 and 3 images"),
        ((1, 6, 2), "parts of 1, 6 and 2 images"),
        ((4, 4, 4), "three parts of 4 images"),
    ):
        parts = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes]
        for part in parts:
            part[:, -1] = part[:, -1] > 0
        weight = torch.randn(3, generator=generator, dtype=torch.float64)
        single = torch.stack([_gradient(weight, part) for part in parts])
        counts = torch.tensor(sizes, dtype=torch.float64)
        total = (counts[:, None] * single).sum(0)
        mistakes = {
            "You take the mean of the parts' means, so that an image of a small part counts for more. Weigh "
            "each part by its images.": single.mean(0),
            "The parts are added up but not divided: this is `len(parts)` times the mean of means.": (
                single.sum(0)
            ),
            "Only the last part is left. Clear the gradient before the loop, not in it.": single[-1],
            "Only the first part is there. Go on to the others before you return.": single[0],
            "The sum over all images is not yet their mean: divide by the number of images.": total,
            "You take every part for as large as the first one.": total / (counts[0] * len(parts)),
            "You take every part for as large as the last one.": total / (counts[-1] * len(parts)),
            "The last part is missing.": total.sub(counts[-1] * single[-1]) / counts[:-1].sum(),
            "The sign is that of a step downhill. Asked is the gradient.": -total / counts.sum(),
        }
        want = _gradient(weight, torch.cat(parts))
        cases.append(Case((_limited(max(sizes)), weight, parts), want, mistakes, note))
    return judge(
        answer,
        cases,
        "Weighted by their images, parts of any size add up to the whole gradient, in the memory of one.",
        tolerance=1e-9,
    )


def _mean_loss(weight: Tensor, part: Tensor) -> Tensor:
    """Logistic loss; the last column holds the labels."""
    logits = part[:, :-1] @ weight
    return (F.softplus(logits) - part[:, -1] * logits).mean()


def _gradient(weight: Tensor, part: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad(_mean_loss(leaf, part), leaf)[0]


def _limited(most: int) -> MeanLoss:
    def mean_loss(weight: Tensor, part: Tensor) -> Tensor:
        if len(part) > most:
            raise MemoryError(f"{len(part)} images at once, and only {most} fit. Go through the parts")
        return _mean_loss(weight, part)

    return mean_loss
