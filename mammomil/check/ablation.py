"""Checks of chapter 6: views to breasts, a paired bootstrap over patients, and a difference over seeds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mammomil.check.answers import Case, Verdict, judge
from mammomil.metrics import auc_score, group_scores


def breast_scores(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(score, exam, side)`: one score per breast, the mean of its views (checklist G12).

    `score`, `exam` (a number) and `side` (0 left, 1 right) have one entry per image. What comes back has one
    entry per breast, sorted by exam and then by side.
    """
    rng, cases = np.random.default_rng(6), []
    for note, most in (("two views of each breast", None), ("breasts with one, two or three views", 3)):
        counts = np.full(8, 2) if most is None else rng.integers(1, most + 1, 8)
        exam, side = np.repeat(np.arange(8) // 2 + 30, counts), np.repeat(np.arange(8) % 2, counts)
        order = rng.permutation(len(exam))
        exam, side, score = exam[order], side[order], rng.random(len(exam))
        breast = 2 * exam + side
        first = np.unique(breast, return_index=True)[1]
        mistakes = {
            "This is the largest view of each breast, which the dual-branch paper takes (D26). GMIC takes "
            "the mean.": _by(score, breast, np.max),
            "This is one mean per exam. The breasts of a woman have labels of their own: group by exam and "
            "side.": _by(score, exam, np.mean),
            "This is one mean per side over all women. Group by exam and side.": _by(score, side, np.mean),
            "This is the first view of each breast alone. Its other views count as much.": score[first],
            "This is the sum of the views. A breast with more views is not more suspicious.": _by(
                score, breast, np.sum
            ),
        }  # fmt: skip
        want = group_scores(np.zeros(len(score)), score, breast, "mean")[1]
        cases.append(Case((score, exam, side), want, mistakes, note))
    return judge(
        answer,
        cases,
        "A breast is called once, by all its views together, so two views of it are not two witnesses.",
    )


def paired_interval(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(label, first, second, patient, draws)`: 95 % interval of AUC(first) - AUC(second).

    `label`, `first`, `second` and `patient` (0 to p - 1) have one entry per breast; every row of `draws`
    holds the p patients of one resample, some more than once. What comes back is (low, high), the quantiles
    0.025 and 0.975 of the differences.
    """
    cases = [
        Case(*_study(seed, count), note)
        for seed, count, note in ((0, 30, "patients with two breasts"), (1, 40, "some have one breast"))
    ]
    return judge(
        answer,
        cases,
        "Both models are judged on the same drawn patients, so what makes a draw easy or hard for both "
        "cancels out of the difference.",
    )  # fmt: skip


def seed_difference(answer: Callable[..., Any]) -> Verdict:
    """Judge `answer(first, second)`: (mean, standard deviation) over seeds of the difference of two models.

    Entry i of both is the AUC with seed i, NaN where that training failed. A seed counts where both have a
    number; the standard deviation is the sample's (ddof 1), NaN of fewer than two seeds.
    """
    rng, cases = np.random.default_rng(7), []
    for note, n, lost in (("five seeds", 5, ()), ("one training failed", 6, (2,)), ("one seed", 1, ())):
        easy = rng.normal(0, 0.03, n)  # what a seed does to both models
        first = 0.80 + easy + rng.normal(0, 0.01, n)
        second = 0.77 + easy + rng.normal(0, 0.01, n)
        second[list(lost)] = np.nan
        cases.append(Case((first, second), _over_seeds(first, second), _seed_mistakes(first, second), note))
    return judge(
        answer,
        cases,
        "Seeds are paired like patients, and with few of them the spread must be divided by n - 1.",
    )


def _by(values: np.ndarray, groups: np.ndarray, how: Callable[[np.ndarray], float]) -> np.ndarray:
    return np.array([how(values[groups == g]) for g in np.unique(groups)])


def _study(
    seed: int, patients: int
) -> tuple[tuple[np.ndarray, ...], Float[np.ndarray, "2"], dict[str, np.ndarray]]:
    """Breasts of patients, two correlated scores, and 60 draws of patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2 if seed == 0 else rng.integers(1, 3, patients))
    label = (rng.random(len(patient)) < 0.4).astype(float)
    shared = rng.normal(size=len(patient)) + 0.8 * rng.normal(size=patients)[patient]
    first = label + shared + 0.4 * rng.normal(size=len(patient))
    second = 0.6 * label + shared + 0.4 * rng.normal(size=len(patient))
    draws = rng.integers(0, patients, (60, patients))

    def differences(
        rows: Callable[[Int[np.ndarray, "p"]], np.ndarray], other: Int[np.ndarray, "r p"]
    ) -> np.ndarray:
        return np.array(
            [
                auc_score(label[rows(a)], first[rows(a)]) - auc_score(label[rows(b)], second[rows(b)])
                for a, b in zip(draws, other, strict=True)
            ]
        )

    def breasts(drawn: Int[np.ndarray, "p"]) -> np.ndarray:
        return np.concatenate([np.flatnonzero(patient == p) for p in drawn])

    paired = differences(breasts, draws)
    ends = [
        np.quantile([auc_score(label[r], s[r]) for r in map(breasts, draws)], (0.025, 0.975))
        for s in (first, second)
    ]
    mistakes = {
        "This draws breasts in place of patients: `draws` was used as rows. A drawn patient brings all her "
        "breasts.": np.quantile(differences(lambda drawn: drawn, draws), (0.025, 0.975)),
        "This is unpaired: each model has an interval of its own, and their far ends were subtracted. Take "
        "the difference within each draw.": ends[0] - ends[1][::-1],
        "This subtracts the ends of two intervals. Take the difference within each draw, then the "
        "quantiles.": ends[0] - ends[1],
        "This is unpaired: the two models are judged on different draws of patients.": np.quantile(
            differences(breasts, draws[::-1]), (0.025, 0.975)
        ),
        "This counts each drawn patient once. Who is drawn three times is there three times.": np.quantile(
            differences(lambda drawn: np.flatnonzero(np.isin(patient, drawn)), draws), (0.025, 0.975)
        ),
        "This is AUC(second) - AUC(first).": np.quantile(-paired, (0.025, 0.975)),
        "These are the quantiles 0.05 and 0.95, an interval of 90 %.": np.quantile(paired, (0.05, 0.95)),
    }  # fmt: skip
    return (label, first, second, patient, draws), np.quantile(paired, (0.025, 0.975)), mistakes


def _over_seeds(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "2"]:
    d = (first - second)[~np.isnan(first - second)]
    return np.array([d.mean(), d.std(ddof=1) if len(d) > 1 else math.nan])


def _seed_mistakes(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    d = first - second
    kept = d[~np.isnan(d)]
    if len(kept) < 2:
        return {
            "One seed has no spread that could be known: NaN, not 0. A 0 would claim that training never "
            "varies.": np.array([kept.mean(), 0.0])
        }
    spread = kept.std(ddof=1)
    a, b = first[~np.isnan(first)], second[~np.isnan(second)]
    apart = a.mean() - b.mean()
    mistakes = {
        "This divides by n (ddof 0, NumPy's default). The mean is taken from the same few seeds: divide by "
        "n - 1.": (kept.mean(), kept.std()),
        "This is the standard error, the spread divided by the root of n. Asked is the spread of one "
        "training.": (kept.mean(), spread / math.sqrt(len(kept))),
        "This adds the spreads of two models as if their seeds had nothing in common. Subtract seed by "
        "seed.": (apart, math.hypot(a.std(ddof=1), b.std(ddof=1))),
        "This subtracts two spreads. Take the spread of the differences.": (
            apart,
            a.std(ddof=1) - b.std(ddof=1),
        ),
        "This compares the best seeds of both. More seeds have a higher best: take means.": (
            a.max() - b.max(),
            spread,
        ),
    }
    if len(kept) < len(d):
        mistakes |= {
            "A NaN went through. A training that failed has no AUC: leave its seed out of both models.": (
                math.nan,
                math.nan,
            ),
            "A seed that failed in one model was kept in the other. Leave it out of both, or the mean is not "
            "paired.": (apart, spread),
        }
    return {words: np.array(value) for words, value in mistakes.items()}
