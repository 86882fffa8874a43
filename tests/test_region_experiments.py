"""The experiments on the dual-branch network: Table II, Figures 3, 5 and 6, Table III, and the budget."""

import csv
import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mammomil.experiments.annotation_budget as budget
import mammomil.experiments.common as common
import mammomil.experiments.dual_branch_semi as semi
import mammomil.experiments.dual_branch_weak as weak
import mammomil.experiments.probability_plane as plane
from mammomil.experiments.common import Stopped
from mammomil.experiments.region_runs import (
    PAPER,
    SEMI,
    TASKS,
    WEAK,
    Answers,
    Regions,
    cross_validate,
    fold_folders,
    froc_images,
    load_regions,
    sensitivity_at_one,
)
from mammomil.experiments.region_tables import claim
from mammomil.index import BOX, read_index, select, split_patients, write_index
from mammomil.items import index_items
from mammomil.predictor import Predictor
from mammomil.regions import iom
from mammomil.train import FitResult
from mammomil.types import FINDINGS
from mammomil.weights import SHIPPED

SMALL = {"folds": 2, "epochs": 1, "resamples": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen shipped phantoms with both findings, as an index of their own."""
    folder = tmp_path_factory.mktemp("data")
    index = read_index(SHIPPED)
    kept = select(index, index.images["exam_id"].isin(index.images["exam_id"].unique()[:16]))
    write_index(kept._replace(images=split_patients(kept.images)), folder)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of training runs that all tests here share, as experiments do."""
    return tmp_path_factory.mktemp("work")


def refuse(item, error):
    raise error


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_table_ii_is_what_the_models_of_the_folds_say(data, work, tmp_path, capsys):
    config = weak.Config(out=tmp_path, work=work, data=data, **SMALL)
    assert weak.run(config) == 0
    page = (tmp_path / "dual-branch-weak.md").read_text(encoding="utf-8")
    assert "Phantoms only" in page
    rows = {(r["task"], r["method"], r["figure"]): r for r in read(tmp_path / "dual-branch-weak.csv")}
    assert {key[:2] for key in rows} == {(task, method.name) for task in TASKS for method in WEAK}
    # Independently: the command's own predictions of each fold's test images, written by `run_training`.
    for method in WEAK:
        each = []
        for folder in sorted((work / "runs").glob(f"{method.name.lower()}-fold*")):
            found = [r for r in read(folder / "predictions.csv") if r["split"] == "test"]
            each.append(roc_auc_score([float(r["malignant"]) for r in found],
                                      [float(r["p_malignant"]) for r in found]))  # fmt: skip
        row = rows["M vs BN", method.name, "AUROC"]
        assert len(each) == 2
        assert sorted([float(row["fold_1"]), float(row["fold_2"])]) == pytest.approx(sorted(each), abs=1e-6)
        assert float(row["mean"]) == pytest.approx(np.mean(each), abs=1e-6)
        assert float(row["std"]) == pytest.approx(np.std(each, ddof=1), abs=1e-6)
        assert float(row["paper"]) == PAPER["M vs BN", method.name][0]
        assert f"| {method.name} | {np.mean(each):.3f} ± {np.std(each, ddof=1):.3f} |" in page
    capsys.readouterr()


@pytest.mark.slow
def test_answers_and_overlaps_are_those_of_a_prediction(data, work):
    """Codes on disk and shared windows give what `mammomil predict` gives of a file, image by image."""
    config = weak.Config(work=work, data=data, **SMALL)
    regions = load_regions(config, data)
    # Cls-Det: a prediction's pixels are not rounded to 16 bits, and which of nearly equal regions are
    # selected depends on less than that.
    answers = cross_validate(config, regions, fold_folders(config, data), WEAK[2])
    index = read_index(data)
    images, items = froc_images(regions, answers, "MB vs N"), list(index_items(index))
    for i in (0, 21, 40, 63):
        predictor = Predictor.from_pretrained(answers.runs[answers.fold[i]] / "model")
        (said,) = predictor.stream([items[i]], refuse)
        assert said.prob == pytest.approx(answers.prob[i], abs=1e-4)
        assert said.scores == pytest.approx(answers.scores[i], abs=1e-4)
        mine = index.findings[index.findings["image_id"] == index.images["image_id"][i]]
        assert images[i]["iom"].shape == (len(said.boxes), len(mine))
        for c, found in enumerate((regions.benign, regions.malignant)):
            boxes = mine[mine["finding"] == FINDINGS[c]][BOX].to_numpy(float)
            # A mask lies within its box: what overlaps the mask overlaps the box.
            import torch

            by_box = iom(torch.from_numpy(said.boxes), torch.from_numpy(boxes)).numpy()
            assert ((found[i] > 0) <= (by_box > 0)).all()
        assert images[i]["region_score"] == pytest.approx(answers.scores[i].max(1))
    # Loaded again, overlaps come from the disk and are the same.
    again = load_regions(config, data)
    assert all((a == b).all() for a, b in zip(again.malignant, regions.malignant, strict=True))


def made_up(scores: list, names=("better", "worse")) -> tuple[Regions, list[Answers]]:
    """Forty images of twenty patients with one region each, and what methods say of them."""
    import pandas as pd

    index = read_index(SHIPPED)
    images = pd.DataFrame({"image_id": map(str, range(40)), "patient_id": np.repeat(np.arange(20), 2)})
    label = np.stack([np.zeros(40), np.tile([1.0, 0.0, 0.0, 1.0], 10)], 1)
    hits = [np.ones((1, 1)) if y else np.zeros((1, 0)) for y in label[:, 1]]
    regions = Regions(index._replace(images=images), label, [], hits, [np.zeros((1, 0))] * 40)
    fold = np.repeat([0, 1], 20)
    answers = [
        Answers(WEAK[0]._replace(name=name), np.stack([np.zeros(40), s], 1),
                [np.array([[0.0, v]]) for v in s], fold, [], np.zeros((2, 40, 2)))
        for name, s in zip(names, scores, strict=True)
    ]  # fmt: skip
    return regions, answers


def test_a_claim_is_the_difference_of_means_over_folds():
    rng = np.random.default_rng(0)
    label = np.tile([1.0, 0.0, 0.0, 1.0], 10)
    good, bad = rng.random(40) + 0.8 * label, rng.random(40)
    regions, (better, worse) = made_up([good, bad])
    config = weak.Config(resamples=200)
    found = claim(config, regions, "M vs BN", "AUROC", better, worse)
    each = [[roc_auc_score(label[k], s[k]) for k in (slice(20), slice(20, 40))] for s in (good, bad)]
    assert found.difference == pytest.approx(np.mean(each[0]) - np.mean(each[1]))
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.paper is None  # no rows of the paper
    same = claim(config, regions, "M vs BN", "AUROC", better, better)
    assert (same.difference, same.interval) == (0, (0, 0))
    froc = claim(config, regions, "M vs BN", "Sens@1FPPI", better, worse)
    assert froc.difference == pytest.approx(0)  # one region an image: at 1 FPPI all of them are found


def test_sensitivity_at_one_false_positive():
    regions, (answers, _) = made_up([np.linspace(1, 0.1, 40)] * 2)
    assert sensitivity_at_one(froc_images(regions, answers, "M vs BN")) == 1.0
    missed = regions._replace(malignant=[np.zeros_like(h) for h in regions.malignant])
    assert sensitivity_at_one(froc_images(missed, answers, "M vs BN")) == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*annotated images? ha.* no region")
def test_semi_budget_and_plane_share_what_was_trained(data, work, tmp_path, monkeypatch, capsys):
    small = SMALL | {"data": data, "work": work}
    monkeypatch.setattr(semi, "SEMI", SEMI[:3])
    for name in ("SS-Cls-Det-RS .75", "SS-Cls-Det-RS 1"):
        assert ("M vs BN", name) in PAPER
    monkeypatch.setattr(semi, "PAIRS", semi.PAIRS[:3])
    assert semi.run(semi.Config(out=tmp_path / "semi", **small)) == 0
    runs = sorted(path.name for path in (work / "runs").iterdir())
    rows = read(tmp_path / "semi" / "dual-branch-semi.csv")
    assert {row["method"] for row in rows} == {m.name for m in (*WEAK, *SEMI[:3])}

    real = common.run_training
    trained = []

    def counting(run, progress=True):
        trained.append(run.out.name)
        return real(run, progress)

    monkeypatch.setattr(common, "run_training", counting)
    monkeypatch.setattr(budget, "METHODS", (WEAK[-1], SEMI[0], SEMI[2]))
    assert budget.run(budget.Config(out=tmp_path / "budget", minutes_per_lesion=2.0, **small)) == 0
    assert plane.run(plane.Config(out=tmp_path / "plane", **small)) == 0
    assert not trained  # all of it is there
    assert runs == sorted(path.name for path in (work / "runs").iterdir())

    found = {float(row["fraction"]): row for row in read(tmp_path / "budget" / "annotation-budget.csv")}
    assert (float(found[0.0]["minutes"]), float(found[0.0]["lesions"])) == (0, 0)
    assert float(found[0.5]["images"]) > float(found[0.25]["images"]) > 0
    price = 0.5 * float(found[0.5]["images"]) + 2 * float(found[0.5]["lesions"])
    assert float(found[0.5]["minutes"]) == pytest.approx(price)

    calls = read(tmp_path / "plane" / "probability-plane.csv")
    assert len(calls) == len(read_index(data).images)  # every image is tested once
    page = (tmp_path / "plane" / "probability-plane.md").read_text(encoding="utf-8")
    right = sum(row["true"] == row["called"] for row in calls)
    assert f"Ours: {len(calls)} images, accuracy {right / len(calls):.3f}" in page
    capsys.readouterr()


def test_the_papers_confusion_matrix_says_what_the_paper_says():
    assert plane.PAPER.sum() == 629
    assert np.trace(plane.PAPER) / plane.PAPER.sum() == pytest.approx(0.615, abs=5e-4)
    assert plane.neighbour_share(plane.PAPER) == pytest.approx((0.75, 0.7))
    assert plane.neighbour_share(np.diag([3, 4, 5])) == (None, None)


def test_the_three_classes_bring_m_and_mb_together():
    label = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [np.nan, 1], [np.nan, 0], [1, np.nan]], float)
    assert plane.three_classes(label).tolist() == [0, 1, 2, 2, 2, -1, -1]


def test_the_plane_is_cut_by_one_svm_per_class():
    rng = np.random.default_rng(0)
    centres = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])  # p benign, p malignant of N, B, M
    kind = np.repeat(np.arange(3), 40)
    prob = centres[kind] + 0.03 * rng.normal(size=(120, 2))
    svm = plane.fit_plane(prob, kind, plane.Config())
    assert svm.predict(centres).tolist() == [0, 1, 2]
    assert len(svm.estimators_) == 3
    unknown = plane.fit_plane(
        np.concatenate([prob, [[0.9, 0.1]] * 50]), np.r_[kind, [-1] * 50], plane.Config()
    )
    assert (unknown.predict(prob) == svm.predict(prob)).all()


def test_a_stopped_training_run_stops_the_experiment(data, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "run_training", lambda run, progress: FitResult([], interrupted=True))
    with pytest.raises(Stopped):
        weak.run(weak.Config(out=tmp_path, work=tmp_path / "work", data=data, **SMALL))


def test_the_scales_differ_as_they_should():
    quick, full = weak.defaults("quick"), weak.defaults("full")
    assert (full.learning_rate, full.epochs, full.folds) == (1e-4, 100, 5)
    assert full.exams * 4 == pytest.approx(2967, abs=2)
    assert dataclasses.replace(quick, exams=1).exams == 1
    with pytest.raises(ValueError, match="folds must be 2"):
        weak.Config(folds=1)
