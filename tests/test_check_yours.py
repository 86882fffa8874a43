"""Answers of chapter 18: right ones pass, and each mistake a learner may make is named."""

import math

import numpy as np
import pytest
from answers import common_answers

from mammomil.check import yours as check

NAN = math.nan

# The right answers, written as in the chapter.


def leaks(patients, exams, splits):
    women = [patient.strip().upper() for patient in patients]
    sides = {}
    for woman, split in zip(women, splits, strict=True):
        sides.setdefault(woman, set()).add(split)
    return np.array([not woman or len(sides[woman]) > 1 for woman in women])


def label(birads, pathology):
    text = pathology.strip().lower()
    for start, answer in (("malignant", (NAN, 1)), ("benign", (1, 0)), ("no malignancy", (NAN, 0))):
        if text.startswith(start):
            return answer
    return {"1": (0, 0), "2": (1, 0), "6": (NAN, 1)}.get(birads.strip(), (NAN, NAN))


def labels(rows):
    return np.array([label(*row) for row in rows], dtype=float)


def variance(auc, m, n):
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (m * n)


def needed(auc, width, ratio, z=1.96, ends=2, spread=variance, power=0.5):
    m = 2
    while ends * z * spread(auc, m, ratio * m) ** power > width:
        m += 1
    return m


test_common_answers = common_answers(
    ((check.leaks, leaks), (check.labels, labels), (check.positives_needed, needed)),
)


def by(name):
    """Compare names that are made of a patient and an exam."""

    def answer(patients, exams, splits):
        names = [name(*row) for row in zip(patients, exams, strict=True)]
        sides = [{s for n, s in zip(names, splits, strict=True) if n == own} for own in names]
        return np.array([len(side) > 1 for side in sides])

    return answer


def and_blank(answer):
    return lambda p, e, s: answer(p, e, s) | np.array([not name.strip() for name in p])


def plain(patient, exam):
    return patient.strip().upper()


def test_alone(patients, exams, splits):
    return leaks(patients, exams, ["test" if split == "test" else "else" for split in splits])


test_alone.__test__ = False  # an answer, not a test


def later(patients, exams, splits):
    women = [patient.strip().upper() for patient in patients]
    return leaks(patients, exams, splits) & np.array([w in women[:k] for k, w in enumerate(women)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by(lambda p, e: e), "You compare exams"),
        (and_blank(by(lambda p, e: p.strip())), "Capitals count"),
        (and_blank(by(lambda p, e: p.upper())), "Blanks count"),
        (test_alone, "the test alone"),
        (by(plain), "taken for one woman"),
        (lambda *table: ~leaks(*table), "wrong way round"),
        (later, "Only her later images"),
        (lambda *table: leaks(*table) & ~later(*table), "Only her first image"),
    ],
)
def test_mistakes_about_leaks_are_named(answer, words):
    assert words in check.leaks(answer).words


def test_images_without_an_id_that_pass_are_named():
    def answer(patients, exams, splits):
        return leaks(patients, exams, splits) & np.array([bool(name.strip()) for name in patients])

    assert "Images without an id pass" in check.leaks(answer).words


def changed(change):
    """Spoil the answer to single rows: change(birads, pathology) gives a label, or None for the right one."""
    return lambda rows: np.array([change(*row) or label(*row) for row in rows], dtype=float)


def when(condition, answer):
    return changed(lambda b, p: answer if condition(b.strip().lower(), p.strip().lower()) else None)


def no_text(p):
    return not p.startswith(("malignant", "benign", "no malignancy"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda rows: np.nan_to_num(labels(rows)), "Unknown labels are 0"),
        (when(lambda b, p: not b and not p, (0, 0)), "nothing is written at all"),
        (when(lambda b, p: b == "0" and no_text(p), (0, 0)), "BI-RADS 0 is not negative"),
        (when(lambda b, p: b == "3" and no_text(p), (1, 0)), "probably benign"),
        (when(lambda b, p: b == "3" and no_text(p), (0, 0)), "BI-RADS 3 is not negative"),
        (when(lambda b, p: b[:1] in ("4", "5") and no_text(p), (NAN, 1)), "are suspicions"),
        (when(lambda b, p: b == "6" and no_text(p), (NAN, NAN)), "a biopsy has proved"),
        (when(lambda b, p: b == "2" and no_text(p), (0, 0)), "BI-RADS 2 is a benign finding"),
        (when(lambda b, p: label(b, p)[1] == 1, (0, 1)), "benign is NaN, not 0"),
        (when(lambda b, p: p.startswith("benign"), (1, NAN)), "malignant is known: 0"),
        (when(lambda b, p: "malignan" in p, (NAN, 1)), "a search for `malignan`"),
        (when(lambda b, p: p.startswith("no"), (0, 0)), "answers one question alone"),
        (when(lambda b, p: p.startswith("no"), (NAN, NAN)), "an answer about malignant"),
        (changed(lambda b, p: label(b, "") if "_" in p else None), "begins with benign too"),
        (changed(lambda b, p: label(b, "") if b.strip() in ("1", "2") else None), "the text goes first"),
        (changed(lambda b, p: label(b, "") if p != p.lower() else None), "Capitals in pathology"),
        (lambda rows: labels(rows)[:, ::-1], "columns are exchanged"),
    ],
)
def test_mistakes_about_labels_are_named(answer, words):
    assert words in check.labels(answer).words


def test_blanks_around_texts_are_named():
    def answer(rows):
        """Compare texts as they stand; a blank is some other text."""
        plain = [(b if b == b.strip() else "", p if p == p.strip() else "") for b, p in rows]
        return np.array([label(*row) for row in plain], dtype=float)

    assert "Blanks around texts" in check.labels(answer).words


def test_categories_read_as_numbers_are_told_of():
    verdict = check.labels(lambda rows: np.array([label(str(int(b or 0)), p) for b, p in rows]))
    assert not verdict.right
    assert "raised ValueError" in verdict.words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: needed(*a, ends=1), "from end to end"),
        (lambda *a: needed(*a, z=1), "covers 68 %"),
        (lambda *a: needed(*a, z=1.645), "90 %"),
        (lambda *a: needed(*a, power=1), "square root"),
        (lambda a, w, r: needed(a, w, r) * (1 + r), "counts all cases"),
        (lambda a, w, r: needed(a, w, r) * r, "counts the negative cases"),
        (lambda a, w, r: needed(a, w, r, spread=lambda a, m, n: variance(a, n, m)), "changed places"),
        (lambda *a: needed(*a, spread=lambda a, m, n: a * (1 - a) / m), "throw of a coin"),
        (lambda a, w, r: needed(a, w, 1), "Use `ratio`"),
        (lambda a, w, r: needed(a, w, 1 / r), "n is m / ratio"),
        (lambda *a: needed(*a) - 1, "One too few"),
        (lambda *a: needed(*a) + 1, "One too many"),
    ],
)
def test_mistakes_about_the_number_of_cases_are_named(answer, words):
    assert words in check.positives_needed(answer).words


@pytest.mark.parametrize(("auc", "count"), [(0.7, 60), (0.8, 100), (0.9, 40)])
def test_the_formula_agrees_with_scores_drawn_from_exponentials(auc, count):
    """Hanley and McNeil's Q1 and Q2 are exact for exponential scores; many samples show their variance."""
    random = np.random.default_rng(0)
    positive = random.exponential(auc / (1 - auc), (4000, count, 1))
    negative = random.exponential(1.0, (4000, 1, count))
    found = [(p > n).mean() for p, n in zip(positive, negative, strict=True)]
    assert np.mean(found) == pytest.approx(auc, abs=0.003)
    assert np.var(found) == pytest.approx(variance(auc, count, count), rel=0.08)
