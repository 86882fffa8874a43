"""Checks of chapter 17: views to breasts by two rules, an interval of hit rates, DeLong's covariance."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mammomil.check.answers import Case, Verdict, judge
from mammomil.metrics import delong, delong_test, group_scores


def join_views(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(label, score, exam, side, how)`: (label, score) of each breast (checklist G12, D26).

    The first four have one entry per image: 0 or 1, a score, a number, and 0 left or 1 right. `how` is "mean"
    or "max". A breast is 1 where any of its views is. What comes back has one entry per breast, sorted by
    exam and then by side.
    """
    cases = [
        _views_case(0, "max", (2, 3), "the largest view"),
        _views_case(1, "mean", (2, 3), "the mean of the views"),
        _views_case(2, "max", (1, 4), "breasts with one, two or three views"),
    ]
    return judge(
        answer,
        cases,
        "Views of one breast become one answer; the two breasts of a woman stay two, each with its label.",
    )


def _views_case(seed: int, how: str, views: tuple[int, int], note: str) -> Case:
    rng = np.random.default_rng(seed)
    counts = rng.integers(*views, 8)
    exam, side = np.repeat(np.arange(8) // 2 + 20, counts), np.repeat(np.arange(8) % 2, counts)
    order = rng.permutation(len(exam))
    exam, side, score = exam[order], side[order], rng.random(len(exam))
    label = (rng.random(len(exam)) < 0.4).astype(float)
    breast = 2 * exam + side
    # One breast has a finding that a single view shows, one woman has a finding in one breast alone.
    label[exam == 20] = side[exam == 20]
    last = np.flatnonzero(breast == 45)
    label[last] = 0
    label[last[-1]] = 1
    y, want, names = group_scores(label, score, breast, how)
    other = {"max": "mean", "mean": "max"}[how]
    of_exam = {h: group_scores(label, score, exam, h)[:2] for h in ("max", "mean")}
    place = names // 2 - 20  # the exam of each breast
    appear = np.argsort(np.unique(breast, return_index=True)[1])
    sums = np.array([score[breast == b].sum() for b in names])
    means = np.array([label[breast == b].mean() for b in names])
    firsts = np.array([label[breast == b][0] for b in names])
    per_exam = {"max": "the largest of both breasts", "mean": "the mean of both breasts"}[how]
    mistakes = {
        f"This is {per_exam}, one value for each woman. A breast has its own label: group by exam and "
        "side.": of_exam[how],
        f"Each breast has {per_exam} of its woman: a finding on the left then makes the right one "
        "suspicious. Group by exam and side.": (y, of_exam[how][1][place]),
        f"This takes the {other} of the views, and `how` is {how}. Each paper has its own rule: GMIC the "
        "mean, the dual branch the largest.": (y, group_scores(label, score, breast, other)[1]),
        "A label became a fraction. A breast has a finding as soon as one view shows it: take the largest "
        "label.": (means, want),
        "The label is that of the first view. A finding that only the other view shows is lost.": (
            firsts, want,
        ),
        "These are sums. A breast with more views is not more suspicious.": (y, sums),
        "The breasts stand in the order in which they first appear. Sort them by exam, then by side.": (
            y[appear], want[appear],
        ),
        "Labels and scores have changed places.": (want, y),
    }  # fmt: skip
    return Case((label, score, exam, side, how), (y, want), mistakes, note)


def hit_difference(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(first, second, patient, draws)`: 95 % interval of a difference of hit rates.

    `first` and `second` say of each lesion whether a model hits it, `patient` whose it is (0 to p - 1); every
    row of `draws` holds the p patients of one resample, some more than once. What comes back is (low, high),
    the quantiles 0.025 and 0.975 of hit rate of `first` less that of `second`, over lesions.
    """
    praise = (
        "Who is drawn brings all her lesions, to both models, and as often as she is drawn. So what is hard "
        "for both cancels out."
    )
    return judge(answer, [_hits_case(seed) for seed in (0, 1)], praise)


def _hits_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    p = 24
    patient = np.repeat(np.arange(p), rng.choice([1, 2, 4, 6], p))
    easy = rng.normal(0, 1.2, p)[patient] + rng.normal(0, 0.5, len(patient))  # for both models
    first, second = (easy + rng.normal(0, 0.5, len(patient)) > cut for cut in (-0.8, 0.0))
    draws = rng.integers(0, p, (80, p))
    rows = [np.flatnonzero(patient == one) for one in range(p)]

    def rates(hit: Bool[np.ndarray, "l"], drawn: Int[np.ndarray, "r p"]) -> Float[np.ndarray, "r"]:
        return np.array([hit[np.concatenate([rows[one] for one in line])].mean() for line in drawn])

    def ends(values: np.ndarray, tail: float = 0.025) -> Float[np.ndarray, "2"]:
        return np.quantile(values, (tail, 1 - tail))

    gap = rates(first, draws) - rates(second, draws)
    each = [ends(rates(hit, draws)) for hit in (first, second)]
    of_woman = np.array([first[r].mean() - second[r].mean() for r in rows])
    once = np.array([(first * 1.0 - second)[np.isin(patient, line)].mean() for line in draws])
    lesions = (first * 1.0 - second)[draws].mean(1)
    spread = 1.96 * gap.std()
    observed = first.mean() - second.mean()
    mistakes = {
        "This is unpaired: each model has an interval of its own, and the far ends were subtracted. Take the "
        "difference within each draw.": each[0] - each[1][::-1],
        "This subtracts the ends of two intervals. Take the difference within each draw, then the "
        "quantiles.": each[0] - each[1],
        "This is unpaired: the two models are judged on different draws of patients.": ends(
            rates(first, draws) - rates(second, draws[::-1])
        ),
        "This draws lesions, not patients: `draws` was used as rows. Lesions of one woman are no independent "
        "witnesses; who is drawn brings them all.": ends(lesions),
        "Each woman has one vote here, however many lesions she has. Asked is the share of lesions.": ends(
            of_woman[draws].mean(1)
        ),
        "This counts each drawn patient once. Who is drawn three times is there three times.": ends(once),
        "This is the second less the first.": ends(-gap),
        "These are the quantiles 0.05 and 0.95, an interval of 90 %.": ends(gap, 0.05),
        "This is the difference and 1.96 standard deviations of the draws to each side. Asked are the "
        "quantiles.": np.array([observed - spread, observed + spread]),
    }  # fmt: skip
    return Case((first, second, patient, draws), ends(gap), mistakes, f"{len(patient)} lesions of {p} women")


def auc_difference(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(label, first, second)`: (AUC difference, its variance) of paired scores (DeLong 1988).

    `label` is 0 or 1; a tied pair counts half.
    """
    cases = [
        _delong_case(0, 18, 30, 0.8, 9, "correlated scores"),
        _delong_case(1, 6, 40, 0.8, 9, "6 positives and 40 negatives"),
        _delong_case(2, 15, 25, 0.7, 0, "many scores are equal"),
    ]
    return judge(
        answer,
        cases,
        "What both models find hard together is in both variances, and is taken out once for each of them.",
    )


def _delong_case(seed: int, m: int, n: int, shared: float, digits: int, note: str) -> Case:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([1.0, 0.0], [m, n]))
    common = rng.normal(size=m + n)
    noise = np.sqrt(1 - shared**2)
    first, second = (
        np.round(shared * common + noise * rng.normal(size=m + n) + shift * label, digits)
        for shift in (1.3, 0.8)
    )
    test, alone = delong_test(label, first, second), [delong(label, s) for s in (first, second)]
    d, v = test.difference, test.variance
    both = alone[0][1] + alone[1][1]
    covariance = (both - v) / 2

    def placements(s: np.ndarray, tie: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        a, b = s[label == 1][:, None], s[label == 0][None]
        wins = (a > b) + tie * (a == b)
        return wins.mean(1), wins.mean(0)

    def variance(ddof: int = 1, tie: float = 0.5, counts: tuple[int, int] = (m, n)) -> tuple[float, float]:
        parts = [p - q for p, q in zip(placements(first, tie), placements(second, tie), strict=True)]
        return parts[0].mean(), sum(p.var(ddof=ddof) / c for p, c in zip(parts, counts, strict=True))

    of_positives, of_negatives = (p - q for p, q in zip(placements(first), placements(second), strict=True))
    mistakes = {
        "The covariance is missing: this is the variance for two separate groups of patients. Both models "
        "saw the same cases.": (d, both),
        "The covariance was added. The variance of a difference is the sum less twice the covariance.": (
            d, both + 2 * covariance,
        ),
        "The covariance was taken away once. It is in there twice.": (d, both - covariance),
        "This is the part of the positives alone. The negatives were drawn too.": (
            d, of_positives.var(ddof=1) / m,
        ),
        "This is the part of the negatives alone. The positives were drawn too.": (
            d, of_negatives.var(ddof=1) / n,
        ),
        "The counts are exchanged: the placements of the positives are divided by the number of positives, "
        "and those of the negatives by the number of negatives.": variance(counts=(n, m)),
        "The placements are not divided by their number: this is the variance of one case, not of a mean.": (
            d, of_positives.var(ddof=1) + of_negatives.var(ddof=1),
        ),
        "This divides by n inside the variances (ddof 0, NumPy's default). Use ddof=1.": variance(ddof=0),
        "Equal scores count as lost. A tied pair counts half.": variance(tie=0.0),
        "Equal scores count as won. A tied pair counts half.": variance(tie=1.0),
        "This is the standard error, the root of the variance.": (d, np.sqrt(v)),
        "This is the second less the first.": (-d, v),
    }  # fmt: skip
    return Case((label, first, second), (d, v), mistakes, note)
