import csv
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mammomil.evaluate as evaluate
import mammomil.evaluation_figures as evaluation_figures
from mammomil.backbones import ClassifierConfig, ResNet22Config, build_classifier
from mammomil.cli import main
from mammomil.dual_branch import DualBranchConfig
from mammomil.encoders import EncoderConfig
from mammomil.evaluate import evaluate_fields, evaluate_model, evaluation_text, write_evaluation
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.index import BOX, Index, read_index, select, write_index
from mammomil.items import index_items
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModelConfig, build_region_model
from mammomil.types import FINDINGS
from mammomil.weights import save_model

SAMPLES = Path(__file__).parents[1] / "data_samples"
TINY = ResNet22Config((4, 8), (2, 2), 1, stem_pool=False)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    for module in (evaluate, evaluation_figures):
        monkeypatch.setattr(module, "bootstrap_ci", functools.partial(bootstrap_ci, n_resamples=20))
    monkeypatch.setattr(evaluation_figures, "FROC_RESAMPLES", 5)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    config = dataclasses.replace(GMICConfig.quick(), backbone=TINY)
    save_model(folder / "gmic", build_gmic(config), PreprocessConfig.quick(), {})
    classifier = build_classifier(ClassifierConfig(TINY, target="findings"))
    save_model(folder / "classifier", classifier, PreprocessConfig.quick(), {})
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Twelve shipped phantoms with images in two splits, read through paths that lead elsewhere."""
    folder = tmp_path_factory.mktemp("index")
    whole = read_index(SAMPLES)
    shows = whole.images.groupby("exam_id")[["benign", "malignant"]].max().sum(axis=1)
    exams = sorted(shows.index[shows == 2])[:3]  # each holds findings of both classes
    kept = select(whole, whole.images["exam_id"].isin(exams))
    split = kept.images["exam_id"].map({exams[0]: "test", exams[1]: "test", exams[2]: "val"})
    write_index(kept._replace(images=kept.images.assign(split=split)), folder)
    return read_index(folder)


class Oracle:
    """Stands in for a model: the boxes of a finding are its regions, on every second image moved aside."""

    name = "oracle"

    @classmethod
    def from_pretrained(cls, folder, device="auto"):
        real = Predictor.from_pretrained(folder, device)
        oracle = cls()
        oracle.real = real
        return oracle

    def stream(self, items, on_failure):
        for n, p in enumerate(self.real.stream(items, on_failure)):
            truth = Oracle.truth[p.image_id]
            boxes, scores = [np.zeros(4)], [np.zeros(2)]  # a region of no area, trusted least
            saliency = np.zeros((2, 92, 60), np.float32)
            for c, finding in enumerate(FINDINGS):
                for box in truth[finding][:1]:
                    moved = box + (500 if n % 2 else 0)
                    boxes.append(moved)
                    scores.append(np.eye(2)[c] * 0.9)
                    x, y = (box[:2] + box[2:]) / 2 if n % 2 == 0 else (0, 0)
                    saliency[c, int(y * 92 / 368), int(x * 60 / 240)] = 1
            yield p._replace(
                boxes=np.array(boxes), scores=np.array(scores), saliency=saliency,
                map_box=np.array([0.0, 0.0, 240.0, 368.0]),
            )  # fmt: skip


def boxes_of(index: Index) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for name in index.images["image_id"]:
        here = index.findings[index.findings["image_id"] == name]
        found[name] = {f: here.loc[here["finding"] == f, BOX].dropna().to_numpy(float) for f in FINDINGS}
    return found


def test_figures_are_those_of_a_plain_count_over_the_predictions(models, index):
    result = evaluate_model(models / "gmic", index.root, progress=False)
    predictions = {p.image_id: p for p in Predictor.from_pretrained(models / "gmic")(index.root)}
    truth, images = boxes_of(index), index.images
    assert (result.images, result.patients) == (len(images), images["patient_id"].nunique())
    for c, finding in enumerate(FINDINGS):
        region, peak, located = 0, 0, 0
        for name, p in predictions.items():
            if not len(boxes := truth[name][finding]):
                continue
            located += 1
            best, ratio = p.boxes[max(range(len(p.boxes)), key=lambda k, p=p, c=c: p.scores[k, c])], 0.0
            for box in boxes:
                sides = [min(best[i + 2], box[i + 2]) - max(best[i], box[i]) for i in (0, 1)]
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (best, box)]
                ratio = max(ratio, max(sides[0], 0) * max(sides[1], 0) / min(areas))
            region += ratio >= 0.5
            row, column = np.unravel_index(p.saliency[c].argmax(), p.saliency[c].shape)
            x = p.map_box[0] + (column + 0.5) * (p.map_box[2] - p.map_box[0]) / p.saliency.shape[2]
            y = p.map_box[1] + (row + 0.5) * (p.map_box[3] - p.map_box[1]) / p.saliency.shape[1]
            peak += any(b[0] <= x < b[2] and b[1] <= y < b[3] for b in boxes)
        figures = result.findings[finding]
        assert figures.tied_peaks == 0
        assert figures.located == located > 0
        assert (figures.region_hit, figures.peak_hit) == (region / located, peak / located)
        y = images[finding].to_numpy(float)
        s = np.array([predictions[name].prob[c] for name in images["image_id"]], float)
        assert figures.auc == auc_score(y, s)
        assert (figures.known, figures.positive) == ((~np.isnan(y)).sum(), (y == 1).sum())


@pytest.mark.parametrize("mask_iom", [False, True])
def test_a_model_that_looks_at_every_second_lesion_gets_that_share(models, index, monkeypatch, mask_iom):
    monkeypatch.setattr(evaluate, "Predictor", Oracle)
    Oracle.truth = truth = boxes_of(index)
    result = evaluate_model(models / "gmic", index.root, mask_iom=mask_iom, progress=False)
    for finding, figures in result.findings.items():
        places = [n for n, name in enumerate(index.images["image_id"]) if len(truth[name][finding])]
        share = np.mean([n % 2 == 0 for n in places])
        assert 0 < share < 1
        assert figures.region_hit == figures.peak_hit == share
        low, high = figures.region_hit_95ci
        assert 0 <= low <= share <= high <= 1
    tied = [row["tied_benign"] for row in result.rows if row["lesions_benign"]]
    assert set(tied) == {1}


def test_tied_peaks_and_lesions_without_a_place_are_counted(models, index, tmp_path, monkeypatch):
    findings = index.findings.copy()
    lost = findings["image_id"] == findings["image_id"].iloc[0]
    findings.loc[lost, BOX] = np.nan
    findings.loc[lost, "mask"] = ""
    write_index(index._replace(findings=findings), tmp_path)
    before = evaluate_model(models / "gmic", index.root, progress=False)

    class Flat(Oracle):
        def stream(self, items, on_failure):
            for p in self.real.stream(items, on_failure):
                yield p._replace(saliency=np.ones_like(p.saliency))

    monkeypatch.setattr(evaluate, "Predictor", Flat)
    result = evaluate_model(models / "gmic", tmp_path, progress=False)
    for finding, figures in result.findings.items():
        gone = int((findings.loc[lost, "finding"] == finding).sum())
        assert figures.unplaced == gone
        assert figures.located == before.findings[finding].located - (gone > 0)
        assert figures.tied_peaks == figures.located
    text = evaluation_text(result)
    assert "have no box and are left out of the places" in text
    assert "have tied peaks; the mean of the tied cells is taken" in text


def test_an_image_or_mask_that_cannot_be_read_is_listed_and_the_rest_counts(models, index, tmp_path, capsys):
    images, findings = index.images.copy(), index.findings.copy()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    (tmp_path / "index").mkdir()
    root = tmp_path / "index"
    write_index(index, root)
    copied = read_index(root)
    images, findings = copied.images, copied.findings
    other = findings["image_id"].iloc[-1]
    victim = next(name for name in images["image_id"] if name != other)
    images.loc[images["image_id"] == victim, "path"] = "../bad.png"
    findings.loc[findings.index[-1], "mask"] = "../small.png"
    write_index(copied._replace(images=images, findings=findings), root)
    result = evaluate_model(models / "gmic", root, mask_iom=True, progress=False)
    assert {failure.image_id for failure in result.failures} == {victim, other}
    assert result.images == len(images) - 2
    assert "the mask is (5, 5), its image" in capsys.readouterr().err
    assert evaluate_model(models / "gmic", root, progress=False).images == len(images) - 1


def test_a_classifier_is_judged_by_its_probabilities_alone(models, index, tmp_path):
    result = evaluate_model(models / "classifier", index.root, "test", progress=False)
    assert result.images == 8
    assert {row["split"] for row in result.rows} == {"test"}
    for figures in result.findings.values():
        assert (figures.region_hit, figures.peak_hit, figures.peak_hit_95ci) == (None, None, None)
    write_evaluation(result, tmp_path / "out", command="test")
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["findings"]["benign"]["auc"] == result.findings["benign"].auc
    assert content["provenance"]["command"] == "test"


def test_a_dual_branch_is_judged_by_its_first_ranked_region(index, tmp_path):
    config = dataclasses.replace(RegionModelConfig.quick(), encoder=EncoderConfig(weights="none"))
    config = dataclasses.replace(config, head=DualBranchConfig(branch_std=3.0))
    save_model(tmp_path / "dual", build_region_model(config, seed=1), PreprocessConfig.quick(), {})
    evaluation = evaluate_model(tmp_path / "dual", index.root, progress=False)
    items = list(index_items(index))
    answers = {
        p.image_id: p for p in Predictor.from_pretrained(tmp_path / "dual").stream(items, lambda *_: None)
    }
    for c, finding in enumerate(FINDINGS):
        hits = []
        for item in items:
            if len(boxes := item.truth.get(finding, ())):
                p = answers[item.image_id]
                x0, y0, x1, y1 = p.boxes[p.scores[:, c].argmax()]
                shared = [
                    max(min(x1, b[2]) - max(x0, b[0]), 0) * max(min(y1, b[3]) - max(y0, b[1]), 0)
                    for b in boxes
                ]
                areas = [min((x1 - x0) * (y1 - y0), (b[2] - b[0]) * (b[3] - b[1])) for b in boxes]
                hits.append(max(s / a for s, a in zip(shared, areas, strict=True)) >= 0.5)
        figures = evaluation.findings[finding]
        assert figures.located == len(hits) > 0
        assert figures.region_hit == pytest.approx(np.mean(hits))
        assert figures.peak_hit is None  # there is no map


def test_fields_are_judged_one_by_one(models, index):
    result = evaluate_fields(models / "classifier", index.root, 28, "test", progress=False)
    assert (result.images, result.patients) == (8 * 8, 2)
    for finding, figures in result.findings.items():
        rows = [row for row in result.rows if row[finding] is not None]
        y, s = (np.array([row[name] for row in rows], float) for name in (finding, f"p_{finding}"))
        assert figures.auc == auc_score(y, s)
        assert 0 < figures.positive < figures.known == len(rows)
        assert figures.located == 0


def test_the_command_prints_a_table_and_writes_what_it_counted(models, index, tmp_path, capsys):
    args = ["evaluate", "--model", str(models / "gmic"), "--data", str(index.root), "--split", "test"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "gmic: 8 images of 2 patients, 0 failed" in out
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    for finding in FINDINGS:
        figures = content["models"][0]["findings"][finding]
        hits = [int(row[f"region_hit_{finding}"]) for row in rows if row[f"region_hit_{finding}"]]
        assert len(hits) == figures["located"]
        assert figures["region_hit"] == (np.mean(hits) if hits else None)
    assert len(content["provenance"]["weights_sha256"]) == len(content["provenance"]["index_sha256"]) == 64
    assert main(["evaluate", "--model", str(tmp_path), "--data", str(index.root)]) == 1
    assert "not a model folder" in capsys.readouterr().err


def test_the_command_ends_with_1_where_an_image_failed(models, index, tmp_path, capsys):
    write_index(index, tmp_path)
    copied = read_index(tmp_path)
    images = copied.images
    images.loc[0, "path"] = "nowhere.png"
    write_index(copied._replace(images=images), tmp_path)
    assert main(["evaluate", "--model", str(models / "gmic"), "--data", str(tmp_path)]) == 1
    assert "nowhere.png" in capsys.readouterr().err
    images["path"] = "nowhere.png"
    write_index(copied._replace(images=images), tmp_path)
    with pytest.raises(InputError, match="no image could be evaluated"):
        evaluate_model(models / "gmic", tmp_path, progress=False)
