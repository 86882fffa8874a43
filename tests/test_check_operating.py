import numpy as np
import pytest
from answers import common_answers
from sklearn.metrics import roc_auc_score, roc_curve

from mammomil.check import operating as check

# The right answers, in loops and without the library.


def specificity(y, s, sensitivity):
    positive, negative = s[y == 1], s[y == 0]
    reaching = [t for t in np.unique(s) if (positive >= t).mean() >= sensitivity]
    return float((negative < max(reaching)).mean())


def point(label, score, iom, threshold, alpha):
    hit = false = 0
    for y, scores, overlaps in zip(label, score, iom, strict=True):
        marked = [overlap for d, overlap in zip(scores, overlaps, strict=True) if d >= threshold]
        hit += y == 1 and any(max(overlap) >= alpha for overlap in marked)
        false += sum(max(overlap) < alpha for overlap in marked)
    return hit / sum(label == 1), false / len(label)


def resamples(y, s, patient, drawn, rows=None):
    for draw in drawn:
        chosen = [i for k in draw for i in np.flatnonzero(patient == k)] if rows is None else rows(draw)
        yield y[chosen], s[chosen]


def aucs(*arguments, rows=None, missing=None):
    values = []
    for y, s in resamples(*arguments, rows=rows):
        if len(np.unique(y)) == 2:
            values.append(roc_auc_score(y, s))
        elif missing is not None:
            values.append(missing)
    return np.array(values)


def interval(*arguments):
    return np.percentile(aucs(*arguments), [2.5, 97.5])


test_common_answers = common_answers(
    ((check.specificity_at, specificity), (check.froc_point, point), (check.patient_interval, interval))
)


def on_curve(choose, drop=False):
    def answer(y, s, sensitivity):
        fpr, tpr, _ = roc_curve(y, s, drop_intermediate=drop)
        return 1 - fpr[choose(tpr, sensitivity)]

    return answer


def at_the_threshold(y, s, sensitivity):
    t = np.sort(s[y == 1])[::-1][int(np.ceil(round(sensitivity * (y == 1).sum(), 9))) - 1]
    return np.mean(s[y == 0] <= t)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: 1 - specificity(*a), "This is 1 - specificity"),
        (on_curve(lambda tpr, at: np.abs(tpr - at).argmin()), "whose sensitivity is nearest"),
        (on_curve(lambda tpr, at: np.searchsorted(tpr, at) - 1), "is not reached yet"),
        (on_curve(lambda tpr, at: np.searchsorted(tpr, at, side="right")), ">=, not >"),
        (lambda y, s, at: 1 - np.interp(at, *roc_curve(y, s)[1::-1]), "between two thresholds"),
        (lambda y, s, at: 0.0, "lowest specificity"),
        (lambda y, s, at: 1.0, "best specificity of all"),
        (at_the_threshold, "just the score of the threshold"),
        (lambda y, s, at: specificity(1 - y, -s, at), "sensitivity at a specificity"),
        (on_curve(lambda tpr, at: np.searchsorted(tpr, at), drop=True), "drop_intermediate=False"),
    ],
)
def test_mistakes_of_specificity_are_named(answer, words):
    assert words in check.specificity_at(answer).words


def test_the_library_and_roc_curve_with_all_points_pass():
    assert check.specificity_at(on_curve(lambda tpr, at: np.searchsorted(tpr, at))).right


def counted(hit_of_image, false_of_image, below=None, over=None):
    """A FROC point from functions of (marked overlaps of an image (k, l), alpha), and what to divide by."""

    def answer(label, score, iom, threshold, alpha):
        parts = [overlap[d >= threshold] for d, overlap in zip(score, iom, strict=True)]
        hits = sum(hit_of_image(part, alpha) for part in parts)
        false = sum(false_of_image(part, alpha, y) for part, y in zip(parts, label, strict=True))
        return hits / (len(label) if over == "all" else sum(label)), false / (
            sum(label) if below == "positive" else len(label)
        )

    return answer


def any_hit(part, alpha):
    return bool((part >= alpha).any())


def misses(part, alpha, _):
    return sum(row.max() < alpha for row in part)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (counted(lambda p, a: sum(row.max() >= a for row in p), misses), "two regions hit counts twice"),
        (counted(lambda p, a: sum((column >= a).any() for column in p.T), misses), "You count lesions"),
        (counted(any_hit, lambda p, a, y: len(p)), "Hits are counted as false positives too"),
        (counted(any_hit, misses, below="positive"), "divided by the positive images"),
        (counted(any_hit, lambda p, a, y: misses(p, a, y) * (y == 0)), "without a lesion only"),
        (counted(any_hit, lambda p, a, y: misses(p, a, y) > 0), "at most one false positive"),
        (counted(any_hit, lambda p, a, y: sum(row.min() < a for row in p)), "misses another"),
        (counted(any_hit, misses, over="all"), "divide hits by all images"),
        (lambda y, d, o, t, a: point(y, d, o, t + 1e-9, a), "at the threshold is detected"),
        (lambda y, d, o, t, a: point(y, d, o, t, a + 1e-9), "exactly alpha"),
        (lambda *a: point(*a)[::-1], "changed places"),
    ],
)
def test_mistakes_of_a_froc_point_are_named(answer, words):
    assert words in check.froc_point(answer).words


def quantiles(low=2.5, high=97.5, **how):
    def answer(y, s, patient, drawn):
        given = dict(how)
        if "rows" in given:
            given["rows"] = lambda draw: how["rows"](patient, draw)
        return np.percentile(aucs(y, s, patient, drawn, **given), [low, high])

    return answer


def normal(*arguments):
    values = aucs(*arguments)
    return values.mean() - 1.96 * values.std(), values.mean() + 1.96 * values.std()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (quantiles(rows=lambda patient, draw: draw), "You draw images"),
        (quantiles(rows=lambda patient, draw: np.isin(patient, draw)), "drawn twice"),
        (quantiles(rows=lambda patient, draw: np.unique(patient, return_index=True)[1][draw]), "first image"),
        (quantiles(5, 95), "interval of 90 %"),
        (quantiles(0, 100), "least and the greatest"),
        (normal, "1.96 deviations"),
        (quantiles(missing=0.0), "count it as 0."),
        (quantiles(missing=0.5), "count it as 0.5"),
        (lambda *a: interval(*a)[::-1], "changed places"),
    ],
)
def test_mistakes_of_an_interval_are_named(answer, words):
    assert words in check.patient_interval(answer).words
