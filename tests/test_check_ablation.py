"""Checks of chapter 6: right answers pass, and each common mistake is named."""

import itertools
import math
import warnings

import numpy as np
import pytest
from answers import common_answers, named_mistakes
from sklearn.metrics import roc_auc_score

from mammomil.check import ablation as check


def of_breasts(score, exam, side, how=np.mean):
    return np.array(
        [how(score[(exam == e) & (side == s)]) for e, s in sorted({*zip(exam, side, strict=True)})]
    )


def of_exams(score, exam, side):
    return np.array([score[exam == e].mean() for e in sorted(set(exam))])


def of_sides(score, exam, side):
    return np.array([score[side == s].mean() for s in (0, 1)])


def first_view(score, exam, side):
    return of_breasts(score, exam, side, lambda values: values[0])


def repeats(patient, drawn):
    return np.array([row for p in drawn for row in range(len(patient)) if patient[row] == p])


def difference(label, first, second, rows):
    return roc_auc_score(label[rows], first[rows]) - roc_auc_score(label[rows], second[rows])


def paired(label, first, second, patient, draws, ends=(2.5, 97.5), rows=repeats):
    values = [difference(label, first, second, rows(patient, drawn)) for drawn in draws]
    return tuple(np.percentile(values, ends))


def one_interval(label, s, patient, draws):
    return np.percentile(
        [roc_auc_score(label[r], s[r]) for r in (repeats(patient, d) for d in draws)], (2.5, 97.5)
    )


def far_ends(label, first, second, patient, draws):
    a, b = (one_interval(label, s, patient, draws) for s in (first, second))
    return a[0] - b[1], a[1] - b[0]


def near_ends(label, first, second, patient, draws):
    a, b = (one_interval(label, s, patient, draws) for s in (first, second))
    return a - b


def other_draws(label, first, second, patient, draws):
    pairs = zip(draws, draws[::-1], strict=True)
    rows = [(repeats(patient, a), repeats(patient, b)) for a, b in pairs]
    values = [roc_auc_score(label[a], first[a]) - roc_auc_score(label[b], second[b]) for a, b in rows]
    return np.percentile(values, (2.5, 97.5))


def over_seeds(first, second, spread=lambda d: d.std(ddof=1)):
    both = ~np.isnan(first) & ~np.isnan(second)
    d = first[both] - second[both]
    return d.mean(), spread(d) if len(d) > 1 else math.nan


def seeds_unpaired(first, second):
    a, b = (x[~np.isnan(x)] for x in (first, second))
    return a.mean() - b.mean(), math.sqrt(a.var(ddof=1) + b.var(ddof=1)) if len(a) > 1 else math.nan


def seeds_with_gaps(first, second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.nanmean(first) - np.nanmean(second), over_seeds(first, second)[1]


def naive_seeds(first, second):
    d = first - second
    return d.mean(), d.std(ddof=1) if len(d) > 1 else math.nan


def of_one_is_zero(first, second):
    mean, spread = over_seeds(first, second)
    return mean, 0.0 if math.isnan(spread) else spread


def best_seeds(first, second):
    return np.nanmax(first) - np.nanmax(second), over_seeds(first, second)[1]


def standard_error(first, second):
    return over_seeds(first, second, lambda d: d.std(ddof=1) / len(d) ** 0.5)


def spreads_apart(first, second):
    return over_seeds(first, second)[0], first.std(ddof=1) - second.std(ddof=1)


RIGHT = (
    (check.breast_scores, of_breasts),
    (check.paired_interval, paired),
    (check.seed_difference, over_seeds),
)
WRONG = (
    (check.breast_scores, lambda *a: of_breasts(*a, np.max), "largest view"),
    (check.breast_scores, of_exams, "one mean per exam"),
    (check.breast_scores, of_sides, "one mean per side"),
    (check.breast_scores, first_view, "first view"),
    (check.breast_scores, lambda *a: of_breasts(*a, np.sum), "sum of the views"),
    (check.paired_interval, lambda *a: paired(*a, rows=lambda _, drawn: drawn), "draws breasts"),
    (check.paired_interval, far_ends, "far ends"),
    (check.paired_interval, near_ends, "subtracts the ends"),
    (check.paired_interval, other_draws, "different draws"),
    (check.paired_interval, lambda *a: paired(*a, rows=lambda p, d: np.flatnonzero(np.isin(p, d))), "once"),
    (check.paired_interval, lambda y, a, b, *rest: paired(y, b, a, *rest), "AUC(second) - AUC(first)"),
    (check.paired_interval, lambda *a: paired(*a, ends=(5, 95)), "90 %"),
    (check.seed_difference, lambda *a: over_seeds(*a, np.std), "ddof 0"),
    (check.seed_difference, standard_error, "standard error"),
    (check.seed_difference, seeds_unpaired, "nothing in common"),
    (check.seed_difference, spreads_apart, "subtracts two spreads"),
    (check.seed_difference, best_seeds, "best seeds"),
    (check.seed_difference, naive_seeds, "A NaN went through"),
    (check.seed_difference, seeds_with_gaps, "kept in the other"),
    (check.seed_difference, of_one_is_zero, "One seed has no spread"),
)  # fmt: skip


@pytest.mark.parametrize(("judge", "answer"), RIGHT)
def test_a_list_is_as_good_as_an_array(judge, answer):
    assert judge(lambda *a: list(answer(*a))).right


test_a_common_mistake_is_named = named_mistakes(WRONG)


test_common_answers = common_answers(RIGHT)


def test_mistakes_differ_from_the_right_answer_and_from_each_other():
    """Else a mistake could pass, or be called by another's name."""
    seen = []
    for seed, count in ((0, 30), (1, 40)):
        _, want, mistakes = check._study(seed, count)
        seen.append([want, *mistakes.values()])
    for values in seen:
        for a, b in itertools.combinations(values, 2):
            assert not np.allclose(a, b, atol=1e-4)
