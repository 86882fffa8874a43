"""Checks of chapter 17: right answers pass, and each common mistake is named."""

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from answers import common_answers, named_mistakes
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from mammomil.check import versus as check

ROOT = Path(__file__).parents[1]


def join(label, score, exam, side, how, by=lambda e, s: (e, s), of_label=max, pool=None):
    views = {}
    for y, p, e, s in zip(label, score, exam, side, strict=True):
        views.setdefault(by(e, s), []).append((y, p))
    pool = pool or {"mean": np.mean, "max": np.max}[how]
    names = sorted(views)
    labels = [of_label([y for y, _ in views[name]]) for name in names]
    return np.array(labels), np.array([pool([p for _, p in views[name]]) for name in names])


def per_woman(*a):
    return join(*a, by=lambda e, s: e)


def spread_over_breasts(label, score, exam, side, how):
    names, (y, _) = sorted({*zip(exam, side, strict=True)}), join(label, score, exam, side, how)
    women = dict(zip(sorted(set(exam)), per_woman(label, score, exam, side, how)[1], strict=True))
    return y, np.array([women[e] for e, _ in names])


def other_rule(label, score, exam, side, how):
    return join(label, score, exam, side, {"mean": "max", "max": "mean"}[how])


def as_they_come(label, score, exam, side, how):
    y, s = join(label, score, exam, side, how)
    names = sorted({*zip(exam, side, strict=True)})
    order = [names.index(name) for name in dict.fromkeys(zip(exam, side, strict=True))]
    return y[order], s[order]


def rows_of(patient, drawn):
    return [row for one in drawn for row in range(len(patient)) if patient[row] == one]


def hits(first, second, patient, draws, ends=(2.5, 97.5), rows=rows_of):
    gaps = []
    for drawn in draws:
        chosen = rows(patient, drawn)
        gaps.append(sum(first[chosen]) / len(chosen) - sum(second[chosen]) / len(chosen))
    return tuple(np.percentile(gaps, ends))


def alone(hit, patient, draws):
    return np.percentile([np.mean(hit[rows_of(patient, drawn)]) for drawn in draws], (2.5, 97.5))


def far_ends(first, second, patient, draws):
    a, b = (alone(hit, patient, draws) for hit in (first, second))
    return a[0] - b[1], a[1] - b[0]


def near_ends(first, second, patient, draws):
    return alone(first, patient, draws) - alone(second, patient, draws)


def other_draws(first, second, patient, draws):
    pairs = [(rows_of(patient, a), rows_of(patient, b)) for a, b in zip(draws, draws[::-1], strict=True)]
    return np.percentile([np.mean(first[a]) - np.mean(second[b]) for a, b in pairs], (2.5, 97.5))


def one_vote(first, second, patient, draws):
    gaps = []
    for drawn in draws:
        each = [rows_of(patient, [one]) for one in drawn]
        gaps.append(np.mean([np.mean(first[r]) - np.mean(second[r]) for r in each]))
    return np.percentile(gaps, (2.5, 97.5))


def normal_ends(first, second, patient, draws):
    gaps = [np.mean(first[r]) - np.mean(second[r]) for r in (rows_of(patient, d) for d in draws)]
    middle = first.mean() - second.mean()
    return middle - 1.96 * np.std(gaps), middle + 1.96 * np.std(gaps)


def structural(label, score):
    """DeLong's components by ranks, as Sun and Xu have them."""
    positive, ranks = label == 1, rankdata(score)
    m, n = positive.sum(), (~positive).sum()
    of_positives = (ranks[positive] - rankdata(score[positive])) / n
    return of_positives, 1 - (ranks[~positive] - rankdata(score[~positive])) / m


def delong(label, first, second, twice=2.0, ddof=1, swap=False, keep=(True, True), root=False, divide=True):
    """Variance from the two covariance matrices."""
    parts = [structural(label, s) for s in (first, second)]
    counts = [len(p) for p in parts[0]][:: -1 if swap else 1]
    total = 0.0
    for k in (0, 1):
        matrix = np.cov(parts[0][k], parts[1][k], ddof=ddof) / (counts[k] if divide else 1)
        total += keep[k] * (matrix[0, 0] + matrix[1, 1] - twice * matrix[0, 1])
    gap = roc_auc_score(label, first) - roc_auc_score(label, second)
    return gap, np.sqrt(total) if root else total


def with_ties(value):
    def answer(label, first, second):
        parts = []
        for s in (first, second):
            a, b = s[label == 1], s[label == 0]
            wins = np.array([[1.0 if x > z else value if x == z else 0.0 for z in b] for x in a])
            parts.append((wins.mean(1), wins.mean(0)))
        d = [p - q for p, q in zip(*parts, strict=True)]
        return d[0].mean(), sum(x.var(ddof=1) / len(x) for x in d)

    return answer


RIGHT = ((check.join_views, join), (check.hit_difference, hits), (check.auc_difference, delong))
WRONG = (
    (check.join_views, per_woman, "one value for each woman"),
    (check.join_views, spread_over_breasts, "of its woman"),
    (check.join_views, other_rule, "`how` is"),
    (check.join_views, lambda *a: join(*a, pool=np.mean), "takes the mean"),
    (check.join_views, lambda *a: join(*a, pool=np.max), "takes the max"),
    (check.join_views, lambda *a: join(*a, of_label=np.mean), "became a fraction"),
    (check.join_views, lambda *a: join(*a, of_label=lambda y: y[0]), "first view"),
    (check.join_views, lambda *a: join(*a, pool=np.sum), "sums"),
    (check.join_views, as_they_come, "first appear"),
    (check.join_views, lambda *a: join(*a)[::-1], "changed places"),
    (check.hit_difference, far_ends, "far ends"),
    (check.hit_difference, near_ends, "subtracts the ends"),
    (check.hit_difference, other_draws, "different draws"),
    (check.hit_difference, lambda *a: hits(*a, rows=lambda p, d: d), "draws lesions"),
    (check.hit_difference, one_vote, "one vote"),
    (check.hit_difference, lambda *a: hits(*a, rows=lambda p, d: np.isin(p, d).nonzero()[0]), "once"),
    (check.hit_difference, lambda a, b, *rest: hits(b, a, *rest), "second less the first"),
    (check.hit_difference, lambda *a: hits(*a, ends=(5, 95)), "90 %"),
    (check.hit_difference, normal_ends, "1.96 standard deviations"),
    (check.auc_difference, lambda *a: delong(*a, twice=0.0), "covariance is missing"),
    (check.auc_difference, lambda *a: delong(*a, twice=-2.0), "was added"),
    (check.auc_difference, lambda *a: delong(*a, twice=1.0), "taken away once"),
    (check.auc_difference, lambda *a: delong(*a, keep=(True, False)), "positives alone"),
    (check.auc_difference, lambda *a: delong(*a, keep=(False, True)), "negatives alone"),
    (check.auc_difference, lambda *a: delong(*a, swap=True), "exchanged"),
    (check.auc_difference, lambda *a: delong(*a, divide=False), "not divided"),
    (check.auc_difference, lambda *a: delong(*a, ddof=0), "ddof 0"),
    (check.auc_difference, with_ties(0.0), "count as lost"),
    (check.auc_difference, with_ties(1.0), "count as won"),
    (check.auc_difference, lambda *a: delong(*a, root=True), "standard error"),
    (check.auc_difference, lambda y, a, b: delong(y, b, a), "second less the first"),
)


@pytest.mark.parametrize(("judge", "answer"), RIGHT)
def test_a_list_is_as_good_as_a_tuple(judge, answer):
    assert judge(lambda *a: list(answer(*a))).right


def test_ties_of_one_half_by_hand_are_right():
    assert check.auc_difference(with_ties(0.5)).right


test_a_common_mistake_is_named = named_mistakes(WRONG)


test_common_answers = common_answers(RIGHT)


@pytest.mark.parametrize(
    "case",
    [
        check._views_case(0, "max", (2, 3), ""),
        check._views_case(1, "mean", (2, 3), ""),
        check._hits_case(0),
        check._hits_case(1),
        check._delong_case(2, 15, 25, 0.7, 0, ""),
    ],
)
def test_mistakes_differ_from_the_right_answer_and_from_each_other(case):
    """Else a mistake could pass, or be called by another's name."""
    values = [np.asarray(value, float) for value in (case.want, *case.mistakes.values())]
    for a, b in itertools.combinations(values, 2):
        assert a.shape != b.shape or not np.allclose(a, b, atol=1e-5)


def test_the_chapter_tells_what_the_recorded_experiment_found():
    """The chapter types these numbers, as the pages of benchmarks are not part of an installed package."""
    notebook = json.loads((ROOT / "book" / "chapters" / "17_versus.ipynb").read_text("utf-8"))
    source = next(text for c in notebook["cells"] if "RECORDED = {" in (text := "".join(c["source"])))
    number = r"(-?\d?\.\d+)"
    told = {
        name: tuple(map(float, values))
        for name, *values in re.findall(
            rf'"(.+?)": \({", ".join([number] * 5)}\),', source.split("RECORDED = {")[1]
        )
    }
    path = ROOT / "benchmarks" / "experiments" / "compare" / "compare.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert len(told) == 8
    for name, values in told.items():
        row = [float(rows[name][key]) for key in ("gmic", "dual_branch", "difference", "low", "high")]
        np.testing.assert_allclose(values, row, atol=0.0005001)
