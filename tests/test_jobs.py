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
from mammomil.codes import PoseConfig
from mammomil.dataset import MammogramDataset
from mammomil.dual_branch import DualBranchConfig
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, MILConfig
from mammomil.index import read_index, select, write_index
from mammomil.jobs import breast_codes, run_training
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.recipes import ClassifierRun, DualBranchRun, GMICRun, preset
from mammomil.region_model import RegionModelConfig
from mammomil.regions import WindowConfig
from mammomil.train import TrainConfig
from mammomil.weights import codes_of, load_model

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


REGIONS = RegionModelConfig(
    EncoderConfig(weights="none", side=16), WindowConfig((16,)), DualBranchConfig(k=4)
)


def dual_run(data: Path, out: Path, **changes) -> DualBranchRun:
    train = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2)
    settings = {"model": REGIONS, "train": train, "preprocess": CANVAS} | changes
    return DualBranchRun(data=data, out=out, **settings)


@pytest.mark.parametrize("annotated", [0.0, 1.0])
def test_a_dual_branch_run_leaves_a_model_that_answers_as_written(small, tmp_path, annotated, recwarn):
    run_training(dual_run(small, tmp_path / "run", annotated=annotated), progress=False)
    loaded = load_model(tmp_path / "run" / "model")
    assert loaded.model.config == REGIONS
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    facts = loaded.card["provenance"]
    for told in (result, facts):  # every result says which codes it used
        assert told["codes"]["encoder"] == "small"
        assert told["codes"]["windows"] == [16]
        assert len(told["codes"]["sha256"]) == 16
    assert "codes of [16] pixel windows by small" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert codes_of(tmp_path / "run" / "model") == result["codes"]
    index = read_index(small)
    train = index.images[index.images["split"] == "train"]
    count = int((train["malignant"] == 1).sum())
    assert result["annotated_images"] == (count if annotated else 0)
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (history[0]["train"]["region"] > 0) == bool(annotated)
    assert (history[0]["train"]["rank"] > 0) == bool(annotated)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    paths = index.images.set_index("image_id")["path"]
    view = index.images.set_index("image_id")["view"]
    assert len(rows) == 8
    from mammomil.items import Item

    predictor = Predictor.from_pretrained(tmp_path / "run" / "model")
    items = [
        Item(
            index.root / paths[row["image_id"]], row["image_id"], view=view[row["image_id"]], spacing_mm=0.56
        )
        for row in rows
    ]
    answers = {p.image_id: p.prob for p in predictor.stream(items, lambda *_: None)}
    for row in rows:
        expected = [float(row["p_benign"]), float(row["p_malignant"])]
        np.testing.assert_allclose(answers[row["image_id"]], expected, rtol=1e-3)
    label, p = (np.array([[float(r[f"{start}{f}"]) for f in ("benign", "malignant")] for r in rows])
                for start in ("", "p_"))  # fmt: skip
    assert result["test"]["auc_any"] == auc_score(label.max(1), p.max(1))  # MB vs N of the paper (D25)


def test_a_stopped_dual_branch_run_goes_on_to_the_same_bits(small, tmp_path):
    run = dual_run(small, tmp_path / "whole", poses=PoseConfig(2), codes=tmp_path / "codes")
    run_training(run, progress=False)
    part = dataclasses.replace(run, out=tmp_path / "part")
    run_training(dataclasses.replace(part, train=dataclasses.replace(run.train, epochs=1)), progress=False)
    run_training(dataclasses.replace(part, resume=True), progress=False)
    for name in ("weights.safetensors", "config.json"):
        first, second = ((tmp_path / out / "model" / name).read_bytes() for out in ("whole", "part"))
        assert first == second
    with pytest.raises(InputError, match="annotated was 0"):
        run_training(dataclasses.replace(part, resume=True, annotated=1.0), progress=False)


def test_end_to_end_training_moves_the_encoder_and_frozen_training_does_not(small, tmp_path):
    before = {}
    for name, end_to_end in (("frozen", False), ("whole", True)):
        train = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3)
        run_training(dual_run(small, tmp_path / name, train=train, end_to_end=end_to_end), progress=False)
        before[name] = load_model(tmp_path / name / "model").model.encoder.state_dict()
    from mammomil.encoders import build_encoder

    start = build_encoder(REGIONS.encoder, 0).state_dict()
    for name, value in start.items():
        torch.testing.assert_close(before["frozen"][name], value, rtol=0, atol=0)
    moved = [not torch.equal(before["whole"][n], v) for n, v in start.items() if n.endswith("weight")]
    assert all(moved)
    assert not (tmp_path / "whole" / "codes").exists()


def test_a_dual_branch_starts_from_another_one(small, tmp_path):
    run_training(dual_run(small, tmp_path / "weak"), progress=False)
    still = TrainConfig(epochs=1, learning_rate=1e-12)
    semi = dual_run(
        small, tmp_path / "semi", annotated=0.5, train=still, warm_start=tmp_path / "weak" / "model"
    )
    run_training(semi, progress=False)
    first, second = (load_model(tmp_path / name / "model").model for name in ("weak", "semi"))
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    run_training(gmic_run(small, tmp_path / "gmic"), progress=False)
    with pytest.raises(InputError, match="no dual-branch network"):
        run_training(dual_run(small, tmp_path / "x", warm_start=tmp_path / "gmic" / "model"))
    with pytest.raises(InputError, match="no global network"):
        run_training(gmic_run(small, tmp_path / "y", warm_start=tmp_path / "weak" / "model"))


def test_several_window_sizes_train_and_predict(small, tmp_path):
    model = dataclasses.replace(REGIONS, windows=WindowConfig((16, 32)))
    run_training(dual_run(small, tmp_path / "run", model=model), progress=False)
    p = Predictor.from_pretrained(tmp_path / "run" / "model")([read_index(small).root / "images"])[0]
    sides = np.unique(np.round((p.boxes[:, 2] - p.boxes[:, 0]) / (p.boxes[0, 2] - p.boxes[0, 0])))
    assert {1.0, 2.0} <= set(sides)


def test_the_presets_are_the_papers_at_full_scale():
    """Checklist D20, D21: 256 images with all their regions, 1e-4, dropout .5, l2, k = 10, copies."""
    run = preset("dual-branch", "full", Path(), Path())
    assert (run.train.batch_size, run.train.learning_rate, run.train.weight_decay) == (256, 1e-4, 1e-4)
    assert (run.model.head.k, run.model.head.dropout, run.model.head.hidden) == (10, 0.5, 128)
    assert run.model.windows == WindowConfig((224,))
    assert run.poses.balance
    assert run.poses.copies > 1
    quick = preset("dual-branch", "quick", Path(), Path())
    mm = [r.model.windows.sizes[0] * r.preprocess.spacing_mm for r in (run, quick)]
    assert mm[0] == pytest.approx(mm[1])
