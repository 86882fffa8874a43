import csv
import dataclasses
import functools
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import kstest, spearmanr

import mammomil.jobs as jobs
import mammomil.search as search
import mammomil.train as train
import mammomil.workers as workers
from mammomil.backbones import ResNet22Config
from mammomil.cli import main
from mammomil.dataset import MammogramDataset
from mammomil.experiments import gmic_search
from mammomil.experiments.common import Stopped
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, MILConfig, build_gmic
from mammomil.index import Index, read_index, select, subset, write_index
from mammomil.metrics import bootstrap_ci
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.recipes import GMICRun
from mammomil.search import SearchConfig, SearchSpace, ensemble_predictions, run_search, top_trials
from mammomil.train import FitResult, TrainConfig
from mammomil.weights import SHIPPED, load_model, save_model

CANVAS = PreprocessConfig(96, 64, "fit")
MODEL = GMICConfig(
    ResNet22Config((4, 8), (2, 2), 1, stem_pool=False),
    MILConfig(2, 16, arch="narrow", instance_features=16, attention_width=8),
    saliency_bias=True,
)
BRIEF = TrainConfig(epochs=2, batch_size=2, save_minutes=0.0)


def small_index(folder: Path) -> Path:
    """Twelve shipped phantom images with both classes in train and val."""
    index = read_index(SHIPPED)
    sick = index.images["malignant"] == 1
    kept = select(index, (sick & (sick.cumsum() <= 6)) | (~sick & ((~sick).cumsum() <= 6)))
    order = kept.images.groupby("malignant").cumcount()
    write_index(kept._replace(images=kept.images.assign(split=np.where(order < 4, "train", "val"))), folder)
    return folder


def quick_intervals() -> None:
    """2000 resamples take most of a small run's time; test_metrics tests the intervals themselves."""
    jobs.bootstrap_ci = functools.partial(bootstrap_ci, n_resamples=20)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(jobs, "bootstrap_ci", bootstrap_ci)  # put back at the end
    quick_intervals()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_index(tmp_path_factory.mktemp("phantoms"))


def config_of(data: Path, out: Path, trials: int = 2, **changes) -> SearchConfig:
    fit = dataclasses.replace(BRIEF, epochs=changes.pop("epochs", 2))
    run = GMICRun(data=data, out=out, model=MODEL, train=fit, preprocess=CANVAS)
    space = SearchSpace(learning_rate=(1e-4, 1e-2))
    return SearchConfig(run=run, trials=trials, space=space, **changes)


def told(aucs, minutes: float = 0.5):
    """Make a training that has the given validation AUC per epoch, of (trial, run), and trains nothing."""

    def training(run, progress, on_epoch):
        rows: list[dict] = []
        for epoch, auc in enumerate(aucs(int(run.out.name), run)):
            if rows and on_epoch(rows[-1]):
                break
            best = auc is not None and all(auc > row["val"]["auc_malignant"] for row in rows)
            val = {"loss": 1.0, "auc_malignant": auc, "auc_benign": 0.5}
            rows.append({"epoch": epoch, "train": {}, "val": val, "seconds": 60 * minutes, "best": best})
        return FitResult(rows, interrupted=False)

    return training


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "trials.csv")


def memory_study():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def test_the_space_is_the_papers_and_the_quick_one_contains_the_presets():
    """Checklist G10."""
    full, quick = (search.search_preset(scale, Path("i"), Path("o")) for scale in ("full", "quick"))
    for name, base, low, high in (
        ("learning_rate", 10, -5.5, -3.8), ("weight", 10, -5, -2.8),
        ("beta", math.e, -1.6, 1.6), ("top_t", math.e, -5, -1.5),
    ):  # fmt: skip
        bounds = np.log(getattr(full.space, name)) / np.log(base)
        np.testing.assert_allclose(bounds, [low, high], rtol=1e-12)
    assert (full.trials, full.run.train.epochs, full.run.train.monitor) == (100, 40, "auc_malignant")
    low, high = quick.space.learning_rate
    assert low < 2e-4 < quick.run.train.learning_rate == 5e-4 < high
    assert high / low == pytest.approx(np.divide(*full.space.learning_rate[::-1]))
    with pytest.raises(ValueError, match=r"space\.beta is two numbers, 0 < low <= high"):
        SearchSpace(beta=(2.0, 1.0))


def test_values_are_log_uniform_independent_and_the_same_for_every_worker():
    space, study = SearchSpace(top_t=(0.01, 0.01)), memory_study()
    drawn = [search.suggest(space, study.ask(), seed=7) for _ in range(300)]
    values = {name: np.array([one[name] for one in drawn]) for name in vars(space)}
    assert set(values.pop("top_t")) == {0.01}
    for name, value in values.items():
        low, high = getattr(space, name)
        assert low <= value.min() < value.max() <= high
        assert kstest(np.log(value / low) / np.log(high / low), "uniform").pvalue > 0.01
        assert kstest((value - low) / (high - low), "uniform").pvalue < 1e-6
        assert len(set(value)) == 300
    for a, b in (("learning_rate", "weight"), ("weight", "beta"), ("learning_rate", "beta")):
        assert abs(spearmanr(values[a], values[b]).statistic) < 0.2
    # Another worker that trains trials 1 and 3 alone draws their values, also after a cut between two draws.
    other = memory_study()
    asked = [other.ask() for _ in range(4)]
    assert search.suggest(space, asked[3], seed=7) == drawn[3]
    search.suggest(dataclasses.replace(space, beta=(1.0, 1.0)), other.ask(), seed=7)
    asked[1].suggest_float("learning_rate", *space.learning_rate, log=True)
    again = search.suggest(space, asked[1], seed=7)
    assert {name: again[name] for name in ("weight", "beta")} == {n: drawn[1][n] for n in ("weight", "beta")}
    assert search.suggest(space, memory_study().ask(), seed=8) != drawn[0]


def test_a_trial_trains_with_its_values_and_the_seed_of_the_search(data, tmp_path):
    config = config_of(data, tmp_path)
    values = {"learning_rate": 1e-3, "weight": 2e-5, "beta": 0.3, "top_t": 0.07}
    run = search.trial_run(config, 7, values)
    assert run.out == tmp_path / "trials" / "0007"
    assert (run.train.learning_rate, run.objective.weight, run.objective.beta) == (1e-3, 2e-5, 0.3)
    assert run.model == dataclasses.replace(MODEL, top_t=0.07)
    assert run.train == dataclasses.replace(config.run.train, learning_rate=1e-3)
    assert run.resume
    assert run.cache == tmp_path / "cache"


def test_a_search_trains_lists_and_goes_on_with_more_trials(data, tmp_path, capsys):
    assert run_search(config_of(data, tmp_path)) == 0
    lines = capsys.readouterr().out
    assert re.search(
        r"^trial 1: auc_malignant [01]\.\d+, best [01]\.\d+ \(trial [01]\), 2 of 2$", lines, re.M
    )
    assert "2 of 2 trials begun: 2 complete." in lines
    table = table_of(tmp_path)
    assert list(table["trial"]) == [0, 1]
    for row in table.to_dict("records"):
        folder = search.trial_folder(tmp_path, row["trial"])
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert row["epochs"] == len(history) == 2
        assert row["auc_malignant"] == max(epoch["val"]["auc_malignant"] for epoch in history)
        settings = json.loads((folder / "model" / "provenance.json").read_text())["settings"]
        assert settings["train"]["learning_rate"] == row["learning_rate"]
        assert settings["objective"] == {"weight": row["weight"], "beta": row["beta"]}
        assert settings["model"]["top_t"] == row["top_t"]
        assert not (folder / "worker.json").exists()
    facts = json.loads((tmp_path / "search.json").read_text())
    assert facts["states"] == {"complete": 2}
    assert facts["best"][0]["auc_malignant"] == table["auc_malignant"].max()
    assert facts["versions"]["torch"]
    before = (tmp_path / "trials" / "0001" / "checkpoint.pt").stat().st_mtime_ns
    assert run_search(config_of(data, tmp_path, trials=3)) == 0
    assert len(table_of(tmp_path)) == 3
    assert (tmp_path / "trials" / "0001" / "checkpoint.pt").stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(table_of(tmp_path)[:2], table)
    with pytest.raises(InputError, match=r"holds a search with train .*'epochs': 2"):
        run_search(config_of(data, tmp_path, trials=3, epochs=3))


@pytest.mark.slow
def test_two_workers_train_each_trial_once_and_draw_what_one_would(data, tmp_path):
    command = [sys.executable, __file__, str(data), str(tmp_path), "join"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [re.findall(r"^trial (\d):", worker.communicate()[0], re.M) for worker in started]
    assert [worker.returncode for worker in started] == [0, 0]
    assert sorted(map(int, lines[0] + lines[1])) == [0, 1, 2, 3, 4]
    assert lines[0]
    assert lines[1]
    table, study, space = table_of(tmp_path), memory_study(), config_of(data, tmp_path).space
    assert list(table["trial"]) == [0, 1, 2, 3, 4]
    assert (table["state"] == "complete").all()
    for row in table.to_dict("records"):
        assert search.suggest(space, study.ask(), 0) == {name: row[name] for name in vars(space)}
        assert (search.trial_folder(tmp_path, row["trial"]) / "metrics.jsonl").read_text().count("\n") == 2
    assert len(os.listdir(tmp_path / "trials")) == 5


def _stop_in_trial_1(stop: str) -> None:
    """Send this process a signal in the third step of the second epoch of the second trial."""
    seen, real = [], train._seed_step

    def counting(*key):
        if key[1:3] == (1, 2):
            seen.append(key)
            if len(seen) == 2:
                os.kill(os.getpid(), getattr(signal, stop))
        real(*key)

    train._seed_step = counting


@pytest.mark.slow
def test_a_stopped_and_a_killed_trial_end_with_the_bits_of_an_undisturbed_one(data, tmp_path, monkeypatch):
    assert run_search(config_of(data, tmp_path / "whole")) == 0
    killed = subprocess.run(
        [sys.executable, __file__, str(data), str(tmp_path / "SIGKILL"), "SIGKILL"], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with monkeypatch.context():
        monkeypatch.setattr(train, "_seed_step", train._seed_step)  # put back at the end
        _stop_in_trial_1("SIGINT")
        assert run_search(config_of(data, tmp_path / "SIGINT")) == 130
    whole = table_of(tmp_path / "whole").drop(columns="minutes")
    for name in ("SIGKILL", "SIGINT"):
        out = tmp_path / name
        state = torch.load(out / "trials" / "0001" / "checkpoint.pt", weights_only=True)
        assert (state["epoch"], state["batch"]) == (1, {"SIGKILL": 2, "SIGINT": 3}[name])
        assert (out / "trials" / "0001" / "worker.json").exists() == (name == "SIGKILL")
        study = search.open_study(config_of(data, out))
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
        assert run_search(config_of(data, out)) == 0
        pd.testing.assert_frame_equal(table_of(out).drop(columns="minutes"), whole)
        for trial in ("0000", "0001"):
            ours, theirs = (
                (folder / "trials" / trial / "model" / "weights.safetensors").read_bytes()
                for folder in (out, tmp_path / "whole")
            )
            assert ours == theirs
            rows = (out / "trials" / trial / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(row)["epoch"] for row in rows] == [0, 1]


@pytest.mark.slow
def test_a_signal_stops_all_workers_of_a_machine_and_loses_nothing(data, tmp_path):
    command = [sys.executable, __file__, str(data), str(tmp_path), "workers"]
    process = subprocess.Popen(command)
    while len(list(tmp_path.glob("trials/*/checkpoint.pt"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list(tmp_path.glob("trials/*/worker.json")) == []
    states = [trial.state.name for trial in search.open_study(config_of(data, tmp_path, epochs=500)).trials]
    assert states == ["RUNNING", "RUNNING"]


def test_a_living_worker_holds_its_trial_and_a_dead_or_silent_one_does_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / "worker.json"

    def held(host: str, pid: int, age: float) -> bool:
        path.write_text(json.dumps({"host": host, "pid": pid}))
        os.utime(path, (time.time() - age,) * 2)
        return workers.is_held(
            tmp_path,
        )

    here = platform.node()
    assert not workers.is_held(tmp_path)
    assert held(here, os.getppid(), 10)
    assert not held(here, gone.pid, 10)
    assert not held(here, os.getpid(), 10)  # the number of a process is given again
    assert not held(here, os.getppid(), workers.STALE + 10)
    assert held("elsewhere", gone.pid, 10)
    assert not held("elsewhere", gone.pid, workers.STALE + 10)


def test_a_heartbeat_renews_the_time_and_gives_the_trial_back(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "BEAT", 0.01)
    path = tmp_path / "worker.json"
    path.write_text("{}")
    os.utime(path, (0, 0))
    with workers.holding(tmp_path):
        while path.stat().st_mtime < 1:
            time.sleep(0.01)
    assert not path.exists()


def test_a_worker_does_not_take_what_another_machine_trains(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "run_training", told(lambda number, _: [0.5]))
    config = config_of(data, tmp_path, epochs=1)
    folder = search.trial_folder(tmp_path, search.open_study(config).ask().number)
    folder.mkdir(parents=True)
    (folder / "worker.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert run_search(config) == 0
    assert list(table_of(tmp_path)["state"]) == ["running", "complete"]
    assert "2 of 2 trials begun: 1 running, 1 complete." in capsys.readouterr().out
    os.utime(folder / "worker.json", (0, 0))
    assert run_search(config) == 0
    assert list(table_of(tmp_path)["state"]) == ["complete", "complete"]


def test_a_trial_below_the_median_is_pruned_and_keeps_its_best_figure(data, tmp_path, monkeypatch, capsys):
    curves = {n: [0.6, 0.7, 0.8, 0.9] for n in range(5)} | {
        5: [0.8, 0.65, 0.9, 0.9],
        6: [0.5, 0.55, 0.9, 0.9],
    }
    monkeypatch.setattr(search, "run_training", told(lambda number, _: curves[number]))
    assert run_search(config_of(data, tmp_path / "on", trials=7, epochs=4, prune=True)) == 0
    table = table_of(tmp_path / "on")
    assert list(table["state"]) == ["complete"] * 6 + ["pruned"]  # trial 5 has had 0.8 before its 0.65
    assert table["epochs"].iloc[6] == 2  # the first of four epochs is not judged
    assert table["auc_malignant"].iloc[6] == 0.55
    assert table["minutes"].iloc[6] == 1.0
    assert "trial 6: auc_malignant 0.550, pruned after 2 epochs, best 0.900 (trial 0), 7 of 7" in (
        capsys.readouterr().out
    )
    assert run_search(config_of(data, tmp_path / "off", trials=7, epochs=4)) == 0
    assert (table_of(tmp_path / "off")["state"] == "complete").all()


def test_what_was_pruned_stays_so_if_it_was_killed_before_it_was_told(data, tmp_path, monkeypatch):
    curves = {n: [0.6, 0.7, 0.8, 0.9] for n in range(5)} | {5: [0.5] * 4}
    config = config_of(data, tmp_path, trials=6, epochs=4, prune=True)
    training = told(lambda number, _: curves[number])

    def killed(run, progress, on_epoch):
        result = training(run, progress, on_epoch)
        if run.out.name == "0005":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(search, "run_training", killed)
    with pytest.raises(KeyboardInterrupt):
        run_search(config)
    rows = [{"epoch": n, "val": {"auc_malignant": 0.5}, "seconds": 1, "best": n == 0} for n in (0, 1)]

    def resumed(run, progress, on_epoch):
        assert on_epoch(rows[-1])
        return FitResult(rows, interrupted=False)

    monkeypatch.setattr(search, "run_training", resumed)
    assert run_search(dataclasses.replace(config, prune=False)) == 0
    assert table_of(tmp_path)["state"].iloc[5] == "pruned"


def test_a_run_that_is_ended_early_is_finished_and_a_continued_one_is_asked_again(data, tmp_path):
    values = {"learning_rate": 1e-3, "weight": 1e-4, "beta": 1.0, "top_t": 0.1}
    run, asked = search.trial_run(config_of(data, tmp_path, epochs=3), 0, values), []

    def enough(row):
        asked.append(row["epoch"])
        return row["epoch"] == 1

    for _ in range(2):
        result = jobs.run_training(run, progress=False, on_epoch=enough)
        assert [row["epoch"] for row in result.history] == [0, 1]
        assert not result.interrupted
        assert (run.out / "result.json").exists()
    assert asked == [0, 1, 1]
    assert len(jobs.run_training(run, progress=False).history) == 3


def test_a_failing_trial_is_listed_and_the_rest_goes_on(data, tmp_path, monkeypatch, capsys):
    good = told(lambda number, _: [0.5 + number / 10])

    def failing(run, progress, on_epoch):
        if run.out.name == "0001":
            raise InputError("the loss is not finite in epoch 1.")
        return good(run, progress, on_epoch)

    monkeypatch.setattr(search, "run_training", failing)
    assert run_search(config_of(data, tmp_path, trials=3, epochs=1)) == 0
    table = table_of(tmp_path)
    assert list(table["state"]) == ["complete", "failed", "complete"]
    assert table["reason"].iloc[1] == "the loss is not finite in epoch 1."
    assert np.isnan(table["auc_malignant"].iloc[1])
    out = capsys.readouterr().out
    assert "trial 1: failed (the loss is not finite in epoch 1.), best 0.500 (trial 0), 2 of 3" in out
    assert "3 of 3 trials begun: 2 complete, 1 failed." in out
    assert [path.parent.name for path in top_trials(tmp_path)] == ["0002", "0000"]


def test_a_search_that_can_only_fail_stops_after_three_trials(data, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run_training", told(lambda number, _: [None, None]))
    with pytest.raises(InputError, match=r"first three trials failed\..* val images give no auc_malignant"):
        run_search(config_of(data, tmp_path, trials=9))
    assert (table_of(tmp_path)["state"] == "failed").sum() == 3
    with pytest.raises(InputError, match="no trial with a model has auc_malignant"):
        top_trials(tmp_path)


def test_top_trials_are_ordered_with_ties_and_missing_figures(tmp_path):
    with (tmp_path / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "auc_malignant", "auc_benign", "loss"])
        table.writerows([
            [0, "complete", 0.7, 0.5, 1.0], [1, "pruned", 0.8, 0.6, 3.0], [2, "failed", "", "", ""],
            [3, "complete", "", 0.9, 2.0], [4, "complete", 0.8, "", 0.5], [5, "running", "", "", ""],
            [6, "complete", 0.75, 0.5, 0.5],
        ])  # fmt: skip

    def order(**how):
        return [int(path.parent.name) for path in top_trials(tmp_path, **how)]

    assert order() == [1, 4, 6, 0]
    assert order(n=2) == [1, 4]
    assert order(figure="auc_benign", n=9) == [3, 1, 0, 6]
    assert order(figure="loss") == [4, 6, 0, 3, 1]
    assert top_trials(tmp_path, 1) == [tmp_path / "trials" / "0001" / "model"]
    with pytest.raises(InputError, match=r"has auc_any; figures there: auc_malignant, auc_benign, loss"):
        order(figure="auc_any")
    with pytest.raises(InputError, match="Name the folder of a search"):
        top_trials(tmp_path / "nothing")


def test_an_ensemble_is_the_mean_of_its_models(data, tmp_path):
    other = PreprocessConfig(80, 64, "fit")
    folders = []
    for number, canvas in enumerate((CANVAS, CANVAS, other)):
        model = build_gmic(MODEL, seed=number)
        torch.nn.init.normal_(model.mil_classifier.weight, std=50.0)  # answers that differ
        save_model(tmp_path / str(number), model, canvas, {})
        folders.append(tmp_path / str(number))
    index = read_index(data)
    found = ensemble_predictions(folders, index, "val", batch_size=3)
    chosen = index.images[index.images["split"] == "val"]
    assert list(found["image_id"]) == list(chosen["image_id"])
    assert list(found["malignant"]) == list(chosen["malignant"])
    answers = []
    for folder in folders:
        one = {p.image_id: p.prob for p in Predictor.from_pretrained(folder)(data)}
        answers.append([one[name] for name in chosen["image_id"]])
    expected = np.mean(answers, axis=0, dtype=float)
    assert np.ptp(expected[:, 1]) > 0.01
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]], expected, atol=2e-4)
    assert len(ensemble_predictions(folders[:1], index)) == 12
    with pytest.raises(InputError, match="no model"):
        ensemble_predictions([], index)


def test_an_ensemble_leaves_out_an_image_that_cannot_be_read(data, tmp_path):
    save_model(tmp_path / "m", build_gmic(MODEL), CANVAS, {})
    index = read_index(data)
    paths = index.images["path"].mask(index.images.index == 3, "nothing.png")
    broken = Index(index.images.assign(path=paths), index.findings, index.root)
    found = ensemble_predictions([tmp_path / "m"], broken)
    assert list(found["image_id"]) == [name for n, name in enumerate(index.images["image_id"]) if n != 3]
    whole = ensemble_predictions([tmp_path / "m"], index)
    np.testing.assert_allclose(found["p_malignant"], whole["p_malignant"].drop(3), atol=1e-6)
    assert load_model(tmp_path / "m").model.config == MODEL


def test_without_optuna_one_sentence_says_what_to_install(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["search", "gmic", "--data", str(data), "--out", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == (
        'mammomil: the search needs Optuna, which is not installed. Run: pip install "mammomil[search]".\n'
    )
    assert not (tmp_path / "s").exists()


def test_the_command_explains_itself_and_its_scales(capsys):
    assert main(["search"]) == 2
    assert main(["search", "--help"]) == 0
    assert "mammomil search gmic --data INDEX --out DIR" in capsys.readouterr().out
    for scale, trials, low in (("quick", 12, "3.16"), ("full", 100, "3.16")):
        with pytest.raises(SystemExit) as done:
            main(["search", "gmic", "--scale", scale, "--help"])
        assert done.value.code == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"goes on with a finished study. (default: {trials})" in text
        assert f"(default: {low}" in text
        assert "--train.epochs INT" in text
        bare = re.findall(r"--[\w.-]+ (?:[A-Z]+|\{[^}]*\}(?:\|PATH)?) \((?:default|required)", text)
        assert bare == []


@pytest.mark.slow
def test_the_experiment_reports_its_trials_and_the_best_of_them(tmp_path, monkeypatch, capsys):
    """The figures of the tables, from the predictions the trials left and loops over breasts and masks."""
    index = read_index(SHIPPED)
    exams = index.images.groupby("exam_id")["malignant"].max().sort_values(ascending=False)
    places = dict(zip(exams.index, ["train", "val", "test"] * 14, strict=False))
    kept = [*exams.index[:7], *exams.index[-8:]]
    few = select(index, index.images["exam_id"].isin(kept))
    split = few.images["exam_id"].map(places)
    write_index(few._replace(images=few.images.assign(split=split)), tmp_path / "d")
    few = read_index(tmp_path / "d")
    config = gmic_search.Config(
        out=tmp_path / "out", data=tmp_path / "d", work=tmp_path / "work", trials=3, resamples=20
    )
    monkeypatch.setattr(gmic_search, "BEST", 2)
    assert gmic_search.run(config) == 0
    text = (tmp_path / "out" / "gmic-search.md").read_text()
    assert "Phantoms only" in text
    assert str(tmp_path) not in text
    rows = pd.read_csv(tmp_path / "out" / "gmic-search.csv")
    search_out = next((tmp_path / "work").glob("gmic-search-*"))
    trials = pd.read_csv(search_out / "trials.csv")
    order = trials.sort_values("auc_breast_malignant", ascending=False, kind="stable")["trial"].tolist()

    def value(row, finding, figure="AUC of breasts"):
        found = rows[(rows["row"] == row) & (rows["finding"] == finding) & (rows["figure"] == figure)]
        return found["value"].item()

    def test_auc(probs, finding):
        """Pairs of breasts in the right order; a breast has the mean of its views."""
        groups: dict = {}
        for row, p in zip(labels.to_dict("records"), probs[f"p_{finding}"], strict=True):
            groups.setdefault((row["exam_id"], row["laterality"]), []).append((row[finding], p))
        breasts = [(max(y for y, _ in g), sum(p for _, p in g) / len(g)) for g in groups.values()]
        pairs = [(a > b) + (a == b) / 2 for y, a in breasts for z, b in breasts if y == 1 and z == 0]
        return sum(pairs) / len(pairs)

    probs = []
    for trial in range(3):
        answers = pd.read_csv(search.trial_folder(search_out, trial) / "predictions.csv")
        answers = answers[answers["split"] == "test"]
        labels = few.images.set_index("image_id").loc[answers["image_id"]]
        probs.append(answers.reset_index(drop=True))
        for finding in ("benign", "malignant"):
            mine = rows.loc[rows["row"] == f"trial {trial}", f"test_{finding}"].item()
            assert mine == pytest.approx(test_auc(answers, finding))
    for finding in ("benign", "malignant"):
        two = [probs[trial] for trial in order[:2]]
        expected = np.mean([test_auc(one, finding) for one in two])
        assert value("mean of the best 2", finding) == pytest.approx(expected)
        mean = (two[0][["p_benign", "p_malignant"]] + two[1][["p_benign", "p_malignant"]]) / 2
        assert value("ensemble of the best 2", finding) == pytest.approx(test_auc(mean, finding))
    assert "| mean of the best 2 |" in text
    assert "| 0.900 |" in text

    # The model with the best maps, by a loop over images of float64 maps and full-size masks.
    def f1_of(folder, split):
        predictor, scores = Predictor.from_pretrained(folder), []
        images = few.images[few.images["split"] == split].set_index("image_id")
        marked = few.findings[(few.findings["finding"] == "malignant")]
        data = MammogramDataset(subset(few, split), predictor.preprocess)
        for row, image_id in enumerate(images.index):
            places = marked["image_id"] == image_id
            if not places.any():
                continue
            prepared = data.prepared(row)
            mask = np.zeros(prepared.image.shape, bool)
            for name in marked.loc[places, "mask"]:
                with Image.open(few.root / name) as file:
                    source = Image.fromarray((np.asarray(file) > 0).astype(np.uint8))
                size = prepared.image.shape[::-1]
                affine = tuple(prepared.affine.ravel())
                mask |= np.asarray(source.transform(size, Image.Transform.AFFINE, affine)) > 0
            with torch.no_grad():
                output = predictor.model(torch.from_numpy(prepared.image)[None, None])
            a = output.saliency[0, 1].double().numpy()
            a = np.kron(a, np.ones((8, 8)))
            precision, recall = (a * mask).sum() / a.sum(), (a * mask).sum() / mask.sum()
            scores.append((precision, recall, 2 * precision * recall / (precision + recall)))
        return np.mean(scores, axis=0)

    f1 = [f1_of(search.trial_folder(search_out, trial) / "model", "val")[2] for trial in range(3)]
    mapper = int(np.argmax(f1))
    name = f"best maps (trial {mapper})"
    expected = f1_of(search.trial_folder(search_out, mapper) / "model", "test")
    for figure, number in zip(("precision", "recall", "F1"), expected, strict=True):
        assert value(name, "malignant", figure) == pytest.approx(number, rel=1e-4)
    assert value(name, "malignant") == pytest.approx(test_auc(probs[mapper], "malignant"))
    with Image.open(tmp_path / "out" / "gmic-search.png") as picture:
        assert picture.width > 500
    before = [path.stat().st_mtime_ns for path in sorted(search_out.glob("trials/*/checkpoint.pt"))]
    assert gmic_search.run(config) == 0
    assert before == [path.stat().st_mtime_ns for path in sorted(search_out.glob("trials/*/checkpoint.pt"))]


def test_the_experiment_has_the_papers_size_at_full_scale_and_stops_as_the_search_does(
    data, tmp_path, monkeypatch
):
    full = gmic_search.defaults("full")
    assert (full.trials, full.epochs, full.scale) == (100, 40, "full")
    quick = gmic_search.defaults("quick")
    config = dataclasses.replace(quick, data=data, out=tmp_path / "o", work=tmp_path / "w")
    index = read_index(data)
    found = gmic_search.search_config(config, data, index)
    assert found.space == search.search_preset("quick", data, tmp_path).space
    assert found.run.warm_start.name == "gmic-quick-half"
    assert found.run.train.monitor == "auc_breast_malignant"
    unsided = index._replace(images=index.images.assign(laterality=""))
    assert gmic_search.search_config(config, data, unsided).run.train.monitor == "auc_malignant"
    monkeypatch.setattr(gmic_search, "run_search", lambda _: 130)
    with pytest.raises(Stopped):
        gmic_search.run(config)
    monkeypatch.setattr(gmic_search, "run_search", lambda _: 1)
    assert gmic_search.run(config) == 1


if __name__ == "__main__":  # what the processes of the tests above run
    folder, target, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    quick_intervals()
    if how == "workers":
        sys.exit(run_search(config_of(folder, target, epochs=500, workers=2)))
    if how == "join":
        sys.exit(run_search(config_of(folder, target, trials=5)))
    _stop_in_trial_1(how)
    run_search(config_of(folder, target))
