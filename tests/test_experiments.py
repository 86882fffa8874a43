import csv
import functools
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mammomil.evaluate as evaluate
import mammomil.experiments.warm_start as warm_start
import mammomil.jobs as jobs
from mammomil.cli import main
from mammomil.dataset import FieldDataset
from mammomil.experiments import EXPERIMENTS
from mammomil.files import InputError
from mammomil.index import read_index
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.train import FitResult
from mammomil.types import FINDINGS
from mammomil.weights import load_model


def tiny(out: Path, **changes) -> warm_start.Config:
    small = {
        "exams": 4, "crowded": 3, "validation": 2, "test": 6, "conspicuity": 3.0,
        "encoder_epochs": 1, "fields_epochs": 1, "whole_epochs": 1, "seed": 1, "workers": 1,
    }  # fmt: skip
    return warm_start.Config(out=out, **(small | changes))


def test_every_experiment_has_what_the_command_needs():
    for module_name, text in EXPERIMENTS.values():
        module = importlib.import_module(module_name)
        assert "out" in {field.name for field in module.Config.__dataclass_fields__.values()}
        assert callable(module.run)
        assert text


def test_the_command_lists_the_experiments(capsys):
    assert main(["experiment", "--help"]) == 0
    assert "warm-start        train the small models" in capsys.readouterr().out
    assert main(["experiment", "cold-start"]) == 2
    assert main(["experiment"]) == 2


def test_settings_that_cannot_be_or_have_changed_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be 1 or more"):
        tiny(tmp_path, whole_epochs=0)
    (tmp_path / "config.json").write_text(json.dumps({"exams": 5, "seed": 0}))
    with pytest.raises(InputError, match="holds an experiment with exams 5"):
        warm_start.run(tiny(tmp_path))


def test_all_training_images_fit_in_the_memory_a_run_is_given(tmp_path):
    config = tiny(tmp_path, exams=2500)
    folders = {name: tmp_path / name for name in ("training", "crowded", "test")}
    for run in warm_start._runs(config, folders):
        assert run.memory_gb * 2**30 >= 10_000 * 368 * 240 * (2 + 1 / 8)
        assert run.resume
    names = [run.out.name for run in warm_start._runs(tiny(tmp_path, birads_epochs=1), folders)]
    assert names == ["region-encoder", "birads", "gmic-fields", "gmic-whole", "gmic-polish"]


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_and_its_table_can_be_recomputed(tmp_path, monkeypatch, capsys):
    for module in (evaluate, jobs):
        monkeypatch.setattr(module, "bootstrap_ci", functools.partial(bootstrap_ci, n_resamples=20))
    config, real = tiny(tmp_path), warm_start.run_training
    trained = []

    def stopping(run):
        if run.out.name == "gmic-whole" and run.out.name not in trained:
            trained.append(run.out.name)
            return FitResult([], interrupted=True)
        trained.append(run.out.name)
        return real(run, progress=False)

    monkeypatch.setattr(warm_start, "run_training", stopping)
    assert warm_start.run(config) == 130
    assert "The same command goes on from here" in capsys.readouterr().out
    assert warm_start.run(config) == 0
    assert trained == ["region-encoder", "gmic-fields", "gmic-whole", "gmic-whole", "gmic-polish"]
    (tmp_path / "weights" / "gmic-quick" / "README.md").unlink()
    assert warm_start.run(config) == 0  # finished: nothing is trained or written again
    assert len(trained) == 5
    assert not (tmp_path / "weights" / "gmic-quick" / "README.md").exists()

    # Who trains and who tests.
    phantoms = tmp_path / "phantoms"
    training, crowded, test = (read_index(phantoms / name) for name in ("training", "crowded", "test"))
    patients = {split: set(rows["patient_id"]) for split, rows in training.images.groupby("split")}
    assert sorted(patients) == ["train", "val"]
    assert sum(len(ids) for ids in patients.values()) == 6
    assert not set(test.images["patient_id"]) & set(training.images["patient_id"])
    assert not set(crowded.images["patient_id"]) & set(training.images["patient_id"])
    assert set(crowded.images["split"]) == {"train"}
    assert len(crowded.findings) > 3 * 4 * 5  # five more in every breast

    # The figures in the table.
    with (tmp_path / "warm-start.csv").open() as file:
        table = {(row["model"], row["finding"]): row for row in csv.DictReader(file)}
    assert len(table) == 6
    text = (tmp_path / "warm-start.md").read_text(encoding="utf-8")
    y = test.images[list(FINDINGS)].to_numpy(float)
    for name in ("gmic-quick", "gmic-quick-half"):
        folder = tmp_path / "weights" / name
        prob = np.stack([p.prob for p in Predictor.from_pretrained(folder)(phantoms / "test")]).astype(float)
        for c, finding in enumerate(FINDINGS):
            row = table[name, finding]
            assert (row["images"], row["positive"]) == ("24", str(int(y[:, c].sum())))
            auc = auc_score(y[:, c], prob[:, c])
            assert row["auc"] == ("" if auc is None else str(auc))
            if auc is not None:
                assert f"{auc:.3f} ({float(row['auc_low']):.3f}-" in text
                assert f"AUC {finding}" in (folder / "provenance.json").read_text()
    assert "| gmic-quick-half | malignant |" in text
    fields = FieldDataset(test, PreprocessConfig.quick(), 28, length=8 * 24)
    encoder = load_model(tmp_path / "weights" / "region-encoder").model
    samples = [fields[n] for n in range(len(fields))]
    with torch.no_grad():
        codes = encoder.backbone(torch.stack([s.image for s in samples])).mean((-2, -1))
        prob = encoder.classifier(codes).sigmoid().double().numpy()
    assert codes.shape == (8 * 24, 128)
    label = torch.stack([s.label for s in samples]).double().numpy()
    for c, finding in enumerate(FINDINGS):
        auc, found = auc_score(label[:, c], prob[:, c]), table["region-encoder", finding]["auc"]
        assert (found == "") if auc is None else (float(found) == pytest.approx(auc, abs=1e-3))
    assert any(table[name, finding]["auc"] for name in warm_start.MODELS for finding in FINDINGS)
    with Image.open(tmp_path / "warm-start.png") as picture:
        assert picture.width > 500

    # The models can be given away.
    for name in warm_start.MODELS:
        folder = tmp_path / "weights" / name
        assert {"config.json", "weights.safetensors", "provenance.json"} <= {p.name for p in folder.iterdir()}
        assert str(tmp_path) not in (folder / "provenance.json").read_text()
    card = (tmp_path / "weights" / "region-encoder" / "README.md").read_text()
    assert "**Phantoms only**" in card
    assert "encoder.backbone(fields)" in card
    assert "fields of test phantoms: " in card
