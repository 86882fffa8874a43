"""The experiments on GMIC's modules and on GMIC against the dual branch."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mammomil.experiments.compare as compare
import mammomil.experiments.gmic_ablation as ablation
from mammomil.dataset import MammogramDataset
from mammomil.experiments.gmic_runs import answers, baseline_run, breasts_of, gmic_run, map_overlap
from mammomil.gmic import ablate
from mammomil.index import BOX, read_index, select, split_patients, subset, write_index
from mammomil.items import index_items
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.regions import iom
from mammomil.types import FINDINGS, Prediction
from mammomil.weights import SHIPPED, load_model

QUICK = SHIPPED / "weights" / "gmic-quick"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen shipped phantoms with splits that hold both findings."""
    folder = tmp_path_factory.mktemp("data")
    index = read_index(SHIPPED)
    kept = select(index, index.images["exam_id"].isin(index.images["exam_id"].unique()[:16]))
    shares = {"train": 0.4, "val": 0.2, "test": 0.4}
    write_index(kept._replace(images=split_patients(kept.images, shares)), folder)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def twelve(twelve_phantoms):
    return MammogramDataset(twelve_phantoms, PreprocessConfig.quick())


def refuse(item, error):
    raise error


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_rows_of_table_1_are_the_model_with_parts_switched_off(twelve):
    model = load_model(QUICK).model
    found = answers(model, twelve, seed=3)
    assert set(found) == set(ablation.PAPER) - {"ResNet-22"}
    assert model.config == load_model(QUICK).model.config  # given back as it was
    said = list(Predictor.from_pretrained(QUICK).stream(index_items(twelve.index), refuse))
    for name, values in (("GMIC-loc", "loc"), ("GMIC-mil", "mil")):
        assert found[name] == pytest.approx(np.stack([p.parts[values] for p in said]), abs=1e-4)
    assert found["GMIC"] == pytest.approx((found["GMIC-loc"] + found["GMIC-mil"]) / 2, abs=1e-6)
    blind = 2 * found["GMIC-loc-random"] - found["GMIC-random"]  # y = (y_loc + y_random) / 2
    assert blind == pytest.approx(found["GMIC-loc"], abs=1e-5)
    # Without attention: the mean of the patches' features, by hand.
    image = twelve[0].image[None]
    with torch.no_grad():
        output = model(image)
        patches = torch.stack([image[0, 0, r : r + 32, c : c + 32] for r, c in output.rois[0].tolist()])
        bag = model.projection(model.patch_net(patches[:, None])).mean(0)
        by_hand = model.mil_classifier(bag).sigmoid()
        assert found["GMIC-noattn"][0] == pytest.approx(by_hand.numpy(), abs=1e-5)
        model.config = ablate(model.config, "noattn")
        assert found["GMIC-noattn"][0] == pytest.approx(model(image).y[0].numpy(), abs=1e-6)
    assert not np.allclose(found["GMIC-random"], found["GMIC-mil"])


def test_breasts_are_means_of_their_views(twelve):
    for c, finding in enumerate(FINDINGS):
        breasts = breasts_of(twelve, finding)
        s = np.arange(len(twelve), dtype=float)
        images = twelve.images.assign(s=s, y=[twelve.label(row)[c] for row in range(len(twelve))])
        groups = images.groupby(["exam_id", "laterality"])
        expected = {(g["patient_id"].iloc[0], round(g["s"].mean(), 6), g["y"].max()) for _, g in groups}
        assert len(breasts.label) == groups.ngroups
        got = zip(breasts.patients, np.round(breasts.scores(s), 6), breasts.label, strict=True)
        assert {(str(p), float(v), float(y)) for p, v, y in got} == expected


@pytest.mark.slow
def test_continuous_figures_agree_with_a_map_blown_up_by_torch(twelve):
    rows = [row for row in map_overlap(QUICK, twelve, "malignant") if row is not None]
    model, naive = load_model(QUICK).model, []
    for row in range(len(twelve)):
        prepared = twelve.prepared(row)
        found = twelve.findings_on_canvas(row, prepared)
        if not found.malignant.any():
            continue
        mask = twelve.masks_on_canvas(row, prepared)[found.malignant].any(0).double()
        with torch.no_grad():
            saliency = model(torch.from_numpy(prepared.image)[None, None]).saliency[:, 1:]
        large = torch.nn.functional.interpolate(saliency, mask.shape, mode="nearest")[0, 0].double()
        p, r = float((large * mask).sum() / large.sum()), float((large * mask).sum() / mask.sum())
        naive.append((p, r, 2 * p * r / (p + r)))
    assert len(rows) == len(naive) == 6
    assert np.array(rows) == pytest.approx(np.array(naive), rel=1e-4)


def test_all_networks_of_the_ablation_start_alike(tmp_path, data):
    config = ablation.Config(epochs=2)
    runs = [gmic_run(config, data, 0), gmic_run(config, data, 0, "random"), baseline_run(config, data, 0)]
    assert {run.warm_start for run in runs} == {SHIPPED / "weights" / "gmic-quick-half"}
    assert {run.train.epochs for run in runs} == {2}
    assert {run.train.learning_rate for run in runs} == {2e-4}
    assert runs[1].model.mil.patches == "random"
    assert runs[2].model.target == "findings"
    full = gmic_run(ablation.defaults("full"), data, 1)
    assert (full.warm_start, full.train.epochs, full.preprocess.height) == (None, 40, 2944)


@pytest.mark.slow
def test_the_ablation_writes_what_its_models_say(data, work, tmp_path, capsys):
    config = ablation.Config(out=tmp_path, work=work, data=data, epochs=1, resamples=20, retrain=False)
    assert ablation.run(config) == 0
    rows = {
        (r["model"], r["how"], r["finding"], r["figure"]): r for r in read(tmp_path / "gmic-ablation.csv")
    }
    table = read_index(data).images.set_index("image_id")
    for label, name in (("gmic-*", "GMIC"), ("resnet-22-*", "ResNet-22")):
        (folder,) = (work / "runs").glob(label)
        found = [r for r in read(folder / "predictions.csv") if r["split"] == "test"]
        for finding in FINDINGS:
            breasts: dict = {}
            for row in found:
                image = table.loc[row["image_id"]]
                values = breasts.setdefault((image["exam_id"], image["laterality"]), ([], []))
                values[0].append(float(row[finding]))
                values[1].append(float(row[f"p_{finding}"]))
            y, s = zip(*[(max(y), np.mean(p)) for y, p in breasts.values()], strict=True)
            row = rows[name, "test time", finding, "AUC of breasts"]
            assert float(row["value"]) == pytest.approx(roc_auc_score(y, s), abs=1e-6)
            assert float(row["paper"]) == ablation.PAPER[name][finding == "benign"]
    page = (tmp_path / "gmic-ablation.md").read_text(encoding="utf-8")
    for words in ("GMIC above ResNet-22", "reading G-i", "Phantoms only", "## Section 3.3"):
        assert words in page
    capsys.readouterr()


def test_the_first_region_that_hits_a_lesion():
    rng = np.random.default_rng(0)
    for _ in range(50):
        corner = rng.integers(0, 60, (9, 2)).astype(float)
        lesion = rng.integers(0, 60, (4, 2)).astype(float)
        regions, boxes = (
            np.hstack([corner, corner + 20]),
            np.hstack([lesion, lesion + rng.integers(5, 30, (4, 2))]),
        )
        scores = np.round(rng.random((9, 2)), 1) * (rng.random((9, 2)) < 0.7)
        named = {"image_id": "", "path": "", "model": "", "laterality": "", "view": "", "p_normal": 0.0}
        prediction = Prediction(
            **named, prob=np.zeros(2), parts={}, saliency=None, map_box=None, boxes=regions, scores=scores,
            attention=None,
        )  # fmt: skip
        order = sorted(range(9), key=lambda k: (-scores[k, 1], k))
        order = [k for k in order if scores[k, 1] > 0][: compare.RANKS]
        overlap = iom(torch.from_numpy(regions), torch.from_numpy(boxes)).numpy()
        expected = []
        for n in range(4):
            ranks = [r for r, k in enumerate(order, 1) if overlap[k, n] >= 0.5]
            expected.append(ranks[0] if ranks else compare.RANKS + 1)
        assert compare.first_hit(prediction, 1, boxes).tolist() == expected
    assert compare.first_hit(prediction, 1, np.zeros((0, 4))).tolist() == []


@pytest.mark.slow
def test_the_comparison_counts_the_same_lesions_for_both(data, work, tmp_path, capsys):
    config = compare.Config(out=tmp_path, work=work, data=data, epochs=1, dual_epochs=2, resamples=20)
    assert compare.run(config) == 0
    rows = {row["figure"]: row for row in read(tmp_path / "compare.csv")}
    index = subset(read_index(data), "test")
    for finding in FINDINGS:
        mine = index.findings[index.findings["finding"] == finding]
        assert (
            int(rows[f"{finding} lesions hit by the first region"]["count"])
            == mine[BOX].notna().all(axis=1).sum()
        )
    for model, label in (("gmic", "gmic-*"), ("dual_branch", "cls-det-rs-*")):
        (folder,) = (work / "runs").glob(label)
        found = [r for r in read(folder / "predictions.csv") if r["split"] == "test"]
        y, s = ([float(r[name]) for r in found] for name in ("malignant", "p_malignant"))
        assert float(rows["AUC malignant, images"][model]) == pytest.approx(roc_auc_score(y, s), abs=2e-3)
    page = (tmp_path / "compare.md").read_text(encoding="utf-8")
    for row in rows.values():
        if row["low"]:
            clear = float(row["low"]) > 0 or float(row["high"]) < 0
            line = next(line for line in page.splitlines() if line.startswith(f"- {row['figure']}:"))
            assert ("is ahead" in line) == clear
    assert "DeLong's test takes images for independent" in page
    capsys.readouterr()
    again = dataclasses.replace(config, out=tmp_path / "again")
    assert compare.run(again) == 0  # nothing is trained again, and the table is the same
    assert (tmp_path / "again" / "compare.csv").read_bytes() == (tmp_path / "compare.csv").read_bytes()
    assert "Training" not in capsys.readouterr().out
