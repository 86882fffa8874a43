import csv
import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mammomil.augment import AugmentConfig
from mammomil.backbones import ClassifierConfig, ResNet22Config
from mammomil.dataset import MammogramDataset
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, MILConfig
from mammomil.index import read_index, select, write_index
from mammomil.jobs import breast_codes, run_training
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.preprocess import PreprocessConfig
from mammomil.recipes import ClassifierRun, GMICRun, preset
from mammomil.train import TrainConfig
from mammomil.weights import load_model

SAMPLES = Path(__file__).parents[1] / "data_samples"
CANVAS = PreprocessConfig(96, 64, "fit")
BACKBONE = ResNet22Config((4, 8), (2, 2), 1, stem_pool=False)
MODEL = GMICConfig(
    BACKBONE, MILConfig(2, 16, arch="narrow", instance_features=64, attention_width=8), saliency_bias=True
)
TRAIN = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """2000 resamples take most of a small run's time; test_metrics tests the intervals themselves."""
    plain = inspect.unwrap(bootstrap_ci)
    monkeypatch.setattr(plain, "__defaults__", tuple(20 if n == 2000 else n for n in plain.__defaults__))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A copy of half the shipped phantoms, with splits that each have both classes."""
    folder = tmp_path_factory.mktemp("phantoms")
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    index = read_index(folder)
    exams = sorted(index.images["exam_id"].unique())[:6]
    split = dict(zip(exams, ["train"] * 3 + ["val", "test", "test"], strict=True))
    kept = select(index, index.images["exam_id"].isin(exams))
    write_index(kept._replace(images=kept.images.assign(split=kept.images["exam_id"].map(split))), folder)
    return folder


def gmic_run(data: Path, out: Path, **changes) -> GMICRun:
    return GMICRun(data=data, out=out, model=MODEL, train=TRAIN, preprocess=CANVAS, **changes)


def test_a_run_leaves_a_model_with_its_figures_and_where_it_comes_from(small, tmp_path, capsys):
    run_training(gmic_run(small, tmp_path / "run"))
    assert "val: 4 images" in capsys.readouterr().out
    loaded = load_model(tmp_path / "run" / "model")
    assert loaded.model.config == MODEL
    assert loaded.preprocess == CANVAS
    facts = loaded.card["provenance"]
    assert facts["seed"] == 0
    assert facts["settings"]["objective"] == {"weight": 1e-4, "beta": 1.0}
    assert "12 images of 3 patients" in facts["data"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val", "test"}
    # The figures are those of the written answers, and the answers those of the saved model.
    test = [row for row in rows if row["split"] == "test"]
    assert result["test"]["images"] == len(test) == 8
    y, s = (np.array([float(row[name]) for row in test]) for name in ("malignant", "p_malignant"))
    assert result["test"]["auc_malignant"] == auc_score(y, s)
    index = read_index(small)
    data = MammogramDataset(index, CANVAS)
    place = list(index.images["image_id"]).index(test[0]["image_id"])
    with torch.no_grad():
        again = loaded.model(data[place].image[None]).y[0]
    np.testing.assert_allclose(again, [float(test[0]["p_benign"]), float(test[0]["p_malignant"])], rtol=1e-4)
    # The kept weights are those of the epoch with the best figure.
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert facts["epoch"] == max(row["epoch"] for row in history if row["best"])


def test_an_image_that_cannot_be_read_is_listed_and_the_rest_trains(small, tmp_path, capsys):
    shutil.copytree(small, tmp_path / "data")
    victim = read_index(tmp_path / "data").images.query("split == 'train'").iloc[0]
    (tmp_path / "data" / victim["path"]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    run_training(gmic_run(tmp_path / "data", tmp_path / "run", cache=tmp_path / "cache"), progress=False)
    failures = (tmp_path / "run" / "failures.csv").read_text()
    assert victim["image_id"] in failures
    assert failures.count("\n") == 2
    assert f"left out: {victim['image_id']}" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_birads_pretraining_warm_starts_the_global_network(small, tmp_path):
    """Checklist G10: f_d is pre-trained on BI-RADS labels, then GMIC is trained."""
    pretraining = ClassifierRun(
        data=small, out=tmp_path / "birads", model=ClassifierConfig(BACKBONE),
        train=dataclasses.replace(TRAIN, monitor="loss"), preprocess=CANVAS,
    )  # fmt: skip
    run_training(pretraining, progress=False)
    source = load_model(tmp_path / "birads" / "model").model
    still = dataclasses.replace(TRAIN, epochs=1, learning_rate=1e-12)
    warm = gmic_run(small, tmp_path / "warm", warm_start=tmp_path / "birads" / "model")
    run_training(dataclasses.replace(warm, train=still), progress=False)
    ours = load_model(tmp_path / "warm" / "model").model.backbone
    for name, theirs in source.backbone.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), theirs, rtol=0, atol=1e-6)


def test_a_gmic_warm_starts_all_of_a_gmic_of_its_own_shape(small, tmp_path):
    run_training(gmic_run(small, tmp_path / "fields", fields=48), progress=False)
    assert "fields of 48 pixels" in (tmp_path / "fields" / "model" / "README.md").read_text()
    still = dataclasses.replace(TRAIN, epochs=1, learning_rate=1e-12)
    warm = gmic_run(small, tmp_path / "warm", warm_start=tmp_path / "fields" / "model")
    run_training(dataclasses.replace(warm, train=still), progress=False)
    assert not (tmp_path / "fields" / "result.json").exists()  # whole images do not judge a warm start
    first, second = (load_model(tmp_path / name / "model").model for name in ("fields", "warm"))
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_an_index_without_splits_is_split_by_patient(small, tmp_path, capsys):
    shutil.copytree(small, tmp_path / "data")
    index = read_index(tmp_path / "data")
    write_index(index._replace(images=index.images.assign(split="")), tmp_path / "data")
    run_training(gmic_run(tmp_path / "data", tmp_path / "run"), progress=False)
    assert "splitting patients 60/20/20 with seed 0" in capsys.readouterr().err


def test_training_without_any_birads_category_is_refused(small, tmp_path):
    run = ClassifierRun(
        data=small,
        out=tmp_path / "r",
        model=ClassifierConfig(BACKBONE, birads=(0,)),
        train=TRAIN,
        preprocess=CANVAS,
    )
    with pytest.raises(InputError, match="no training image has one of the BI-RADS categories 0"):
        run_training(run, progress=False)


def test_views_of_a_breast_share_a_code_and_unknown_sides_have_none(small):
    data = MammogramDataset(read_index(small), CANVAS)
    codes = breast_codes(data)
    images = data.images
    for i in range(len(images)):
        for j in range(len(images)):
            same = all(images[name].iloc[i] == images[name].iloc[j] for name in ("exam_id", "laterality"))
            assert (codes[i] == codes[j]) == same
    data.images["laterality"] = ""
    assert (breast_codes(data) == -1).all()


def test_presets_are_the_two_scales():
    quick, full = (preset("gmic", scale, Path("i"), Path("o")) for scale in ("quick", "full"))
    assert (quick.preprocess.height, quick.preprocess.width) == (368, 240)
    assert (full.preprocess.height, full.preprocess.width) == (2944, 1920)
    assert quick.augment == full.augment == AugmentConfig()
    for run in (quick, full):
        assert run.model.mil.num_patches == 6
        assert run.preprocess.height // run.model.mil.patch_size == 11  # 256 of 2944, 32 of 368
    assert preset("classifier", "quick", Path("i"), Path("o")).model.backbone == quick.model.backbone
