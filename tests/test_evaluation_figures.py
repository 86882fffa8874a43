import functools
import math

import numpy as np
import pytest

import mammomil.evaluation_figures as evaluation_figures
from mammomil.evaluation_figures import (
    _at_one,
    _strongest,
    froc_images,
    level_scores,
    model_figures,
    pair_figures,
)
from mammomil.judging import FindingFigures, ModelEvaluation, Places
from mammomil.metrics import bootstrap_ci, bootstrap_rows, froc_curve, sensitivity_at_fppi
from mammomil.types import FINDINGS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    for name, function in (("bootstrap_ci", bootstrap_ci), ("bootstrap_rows", bootstrap_rows)):
        fewer = functools.partial(function, n_resamples=25)
        monkeypatch.setattr(evaluation_figures, name, fewer)
    monkeypatch.setattr(evaluation_figures, "FROC_RESAMPLES", 10)


def forge(patients=14, regions=9, seed=0, ranks_regions=False, listed=None, rows=None) -> ModelEvaluation:
    """Four views a patient, some labels and sides unknown, and lesions that some regions overlap."""
    rng = np.random.default_rng(seed)
    table, places = [], []
    for n in range(patients):
        for side, view in (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")):
            label = [None if rng.random() < 0.1 else int(rng.random() < 0.4) for _ in FINDINGS]
            prob = np.clip(0.3 * np.array([y or 0 for y in label]) + rng.random(2) * 0.7, 0, 1)
            table.append(
                {"image_id": f"{n}{side}{view}", "patient_id": f"p{n}", "exam_id": f"e{n}", "view": view,
                 "laterality": "" if rng.random() < 0.1 else side}
                | dict(zip(FINDINGS, label, strict=True))
                | {f"p_{f}": float(p) for f, p in zip(FINDINGS, prob, strict=True)}
            )  # fmt: skip
            finding = np.array([c for c in (0, 1) if label[c] for _ in range(rng.integers(0, 3))], int)
            overlap = rng.random((regions, len(finding))) * (rng.random((regions, len(finding))) < 0.3)
            places.append(Places(np.round(rng.random((regions, 2)), 1), overlap, finding))
    empty = {name: FindingFigures(0, 0, None, None) for name in FINDINGS}
    return ModelEvaluation(
        "forged", len(table), patients, empty, table, [], places, ranks_regions, listed
    )  # fmt: skip


def any_of(labels):
    if 1 in labels:
        return 1
    return 0 if all(y == 0 for y in labels) else None


def plain_auc(pairs):
    yes, no = ([s for y, s in pairs if y == v] for v in (1, 0))
    return sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))


def test_figures_of_images_are_those_of_plain_loops_over_the_rows():
    evaluation = forge()
    for ranks in model_figures(evaluation).ranks[:3]:
        pairs = []
        for row in evaluation.rows:
            if ranks.question == "any":
                y, s = any_of([row[f] for f in FINDINGS]), max(row[f"p_{f}"] for f in FINDINGS)
            else:
                y, s = row[ranks.question], row[f"p_{ranks.question}"]
            if y is not None:
                pairs.append((y, s))
        assert ranks.level == "image"
        assert (ranks.known, ranks.positive) == (len(pairs), sum(y for y, _ in pairs))
        assert ranks.auc == pytest.approx(plain_auc(pairs))
        assert ranks.brier == pytest.approx(np.mean([(y - s) ** 2 for y, s in pairs]))
        for wanted, told in ((0.85, ranks.specificity_at_85), (0.90, ranks.specificity_at_90)):
            best = 0.0
            for t in {s for _, s in pairs}:
                if np.mean([s >= t for y, s in pairs if y == 1]) >= wanted:
                    best = max(best, np.mean([s < t for y, s in pairs if y == 0]))
            assert told == pytest.approx(best)
        found = [s for y, s in pairs if y == 1]
        precision = [np.mean([y for y, s in pairs if s >= t]) for t in found]
        assert ranks.average_precision == pytest.approx(np.mean(precision))
        gap = 0.0
        for k in range(10):
            inside = [(y, s) for y, s in pairs if math.ceil(s * 10) == k + 1 or (k == 0 and s == 0)]
            if inside:
                ys, ss = np.mean(inside, 0)
                gap += len(inside) * abs(ys - ss) / len(pairs)
        assert ranks.calibration_error == pytest.approx(gap)


@pytest.mark.parametrize("ranks_regions", [False, True])
def test_breasts_and_exams_are_brought_together_as_the_papers_do(ranks_regions):
    evaluation = forge(ranks_regions=ranks_regions)
    # Of one view a second image: it counts within its view, not twice in the breast.
    twice = dict(evaluation.rows[0], image_id="again", p_benign=0.9, p_malignant=0.05)
    evaluation = evaluation._replace(rows=[*evaluation.rows, twice], places=evaluation.places * 2)
    breasts, exams = level_scores(evaluation, "breast"), level_scores(evaluation, "exam")
    merge = max if ranks_regions else lambda values: sum(values) / len(values)
    sided = [row for row in evaluation.rows if row["laterality"]]
    names = list(dict.fromkeys((row["patient_id"], row["laterality"]) for row in sided))
    assert len(names) == len(breasts.patient) > 20
    expected = {}
    for n, (patient, side) in enumerate(names):
        assert breasts.patient[n] == patient
        here = [row for row in sided if (row["patient_id"], row["laterality"]) == (patient, side)]
        for c, finding in enumerate(FINDINGS):
            known = [row for row in here if row[finding] is not None]
            label = max((row[finding] for row in known), default=math.nan)
            views = {}
            for row in known or here:
                views.setdefault(row["view"], []).append(row[f"p_{finding}"])
            score = merge([merge(values) for values in views.values()])
            np.testing.assert_allclose(breasts.label[n, c], label)
            assert breasts.prob[n, c] == pytest.approx(score)
            expected.setdefault((patient, c), []).append((label, score))
    for n, patient in enumerate(dict.fromkeys(patient for patient, _ in names)):
        for c in range(2):
            known = [pair for pair in expected[patient, c] if not math.isnan(pair[0])]
            scores = [score for _, score in known or expected[patient, c]]
            assert exams.prob[n, c] == pytest.approx(max(scores))
            np.testing.assert_allclose(exams.label[n, c], max((y for y, _ in known), default=math.nan))


@pytest.mark.parametrize("question", ["malignant", "any"])
def test_froc_figures_are_those_of_a_plain_count(question):
    evaluation = forge(patients=20, seed=3)
    figures = next(f for f in model_figures(evaluation).froc if f.question == question)
    images = []
    for row, place in zip(evaluation.rows, evaluation.places, strict=True):
        if question == "any":
            y, s = any_of([row[f] for f in FINDINGS]), max(row[f"p_{f}"] for f in FINDINGS)
            score, overlap = [max(pair) for pair in place.scores], place.iom
        else:
            y, s = row["malignant"], row["p_malignant"]
            score, overlap = [pair[1] for pair in place.scores], place.iom[:, place.finding == 1]
        if y is not None:
            images.append((y, s, score, overlap >= 0.5))
    ordered = sorted((s for y, s, *_ in images if y == 1), reverse=True)
    tau = next(t for n, t in enumerate(ordered, 1) if n / len(ordered) >= 0.85)
    placed = [i for i in images if i[0] == 0 or i[3].shape[1]]
    kept = [i for i in placed if i[1] >= tau]
    assert figures.placed == sum(i[0] == 1 for i in placed)
    for per in ("image", "lesion"):
        for over, count in (("classified", len(kept)), ("all", len(placed))):
            best = 0.0
            for t in {v for i in kept for v in i[2] if v > 0}:
                false = sum(v >= t and not hit.any() for i in kept for v, hit in zip(i[2], i[3], strict=True))
                if false / count > 1:
                    continue
                strong = [i[3][np.array(i[2]) >= t].any(0) for i in kept if i[0] == 1]  # lesions hit
                hits = np.concatenate(strong) if per == "lesion" else [h.any() for h in strong]
                best = max(best, np.mean(hits))
            assert figures.at_one_fppi[f"{per}, of {over}"][0] == pytest.approx(best)
            low, high = figures.at_one_fppi[f"{per}, of {over}"][1]
            assert low <= best <= high
    assert (figures.cut_below, figures.whole_to_fppi) == (None, None)


@pytest.mark.parametrize("seed", range(6))
def test_leaving_weak_regions_aside_changes_nothing(seed):
    evaluation = forge(regions=40, seed=seed)
    images = froc_images(evaluation, "any")
    few = _strongest(images, mean=1 + seed)
    assert sum(len(image["region_score"]) for image in few) < 0.5 * 40 * len(images)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        rows = rng.integers(len(images), size=len(images))
        for per in ("image", "lesion"):
            for over in ("classified", "all"):
                curve = froc_curve([images[n] for n in rows], per=per, fppi_over=over)
                found = _at_one(rows, images, few, per=per, fppi_over=over)
                assert found == sensitivity_at_fppi(*curve[:2], 1.0)


def test_intervals_are_by_patient():
    """Every image three times is no more evidence: the same patients are drawn, and the interval stays."""
    evaluation = forge(seed=1)
    triple = evaluation._replace(
        rows=[dict(row, image_id=f"{row['image_id']}{n}") for row in evaluation.rows for n in range(3)],
        places=[place for place in evaluation.places for _ in range(3)],
    )
    once, thrice = model_figures(evaluation), model_figures(triple)
    for a, b in zip(once.ranks, thrice.ranks, strict=True):
        assert (a.auc, a.brier) == pytest.approx((b.auc, b.brier))
        if not (a.level == "image" and a.question != "any"):  # those come from `findings`, empty here
            assert a.auc_95ci == pytest.approx(b.auc_95ci)
            assert a.auc_95ci[0] <= a.auc <= a.auc_95ci[1]
            assert a.level != "image" or a.auc_95ci[1] - a.auc_95ci[0] > 0.05
    for a, b in zip(once.froc, thrice.froc, strict=True):
        for name in ("image, of classified", "image, of all"):
            assert a.at_one_fppi[name][1] == pytest.approx(b.at_one_fppi[name][1])


def test_a_curve_is_said_to_be_cut_where_regions_are_not_listed():
    whole = forge(regions=30, seed=2)
    assert model_figures(whole).froc[0].cut_below is None
    places = []
    for place in whole.places:  # as `predicted` gives them: the first 20 of each finding
        scores = place.scores.copy()
        for c in range(2):
            scores[np.argsort(-scores[:, c], kind="stable")[20:], c] = -np.inf
        places.append(place._replace(scores=scores))
    cut = whole._replace(places=places, listed=20)
    for figures in model_figures(cut).froc:
        before = froc_curve(froc_images(whole, figures.question))
        after = froc_curve(froc_images(cut, figures.question))
        same = after[2] > figures.cut_below
        assert 0 < same.sum() < len(after[2])
        for a, b in zip(after, before, strict=True):
            np.testing.assert_array_equal(a[same], b[: same.sum()])
        assert figures.whole_to_fppi == after[1][same][-1]
        assert after[1][-1] < before[1][-1]  # and below, some are indeed missing


def test_two_models_are_compared_on_what_both_have_answered():
    first, second = forge(seed=5), forge(seed=6)
    for row, truth in zip(second.rows, first.rows, strict=True):
        row |= {name: truth[name] for name in FINDINGS}
    second = second._replace(rows=second.rows[::-1][5:], model="other")
    answered = {row["image_id"]: row for row in second.rows}
    for pair in pair_figures(first, second):
        if pair.question == "any":
            continue
        p = f"p_{pair.question}"
        both = [r for r in first.rows if r["image_id"] in answered and r[pair.question] is not None]
        assert pair.known == len(both)
        areas = [
            plain_auc([(r[pair.question], source[r["image_id"]][p]) for r in both])
            for source in ({r["image_id"]: r for r in first.rows}, answered)
        ]
        assert (pair.auc_first, pair.auc_second) == pytest.approx(areas)
        assert pair.difference == pytest.approx(areas[0] - areas[1])
        assert pair.difference_95ci[0] < pair.difference < pair.difference_95ci[1]
        assert 0 < pair.p <= 1
    for pair in pair_figures(first, first):
        assert (pair.difference, pair.difference_95ci, pair.p) == (0, (0, 0), 1)
    for pair in pair_figures(first, first._replace(rows=[])):
        assert (pair.known, pair.difference, pair.p) == (0, None, None)


def test_a_model_without_answers_or_regions_has_no_figures_and_no_error():
    nothing = forge()._replace(rows=[], places=[])
    figures = model_figures(nothing)
    assert {ranks.auc for ranks in figures.ranks} == {None}
    assert figures.froc == []
    assert [maps.f1 for maps in figures.maps] == [None, None]
    assert model_figures(forge(regions=0)).froc == []
