"""The same training on one process and on several, launched as a person would launch it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_train import SMALL, Shuffled, Squares, collate, run

from mammomil import cli
from mammomil.cache import turned
from mammomil.codes import CodeDataset, PoseConfig
from mammomil.dataset import MammogramDataset, ShuffledSampler
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.gmic import build_gmic
from mammomil.index import read_index, select, write_index
from mammomil.losses import GMICObjective
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig
from mammomil.runs import same_everywhere, stop_signals, together
from mammomil.train import TrainConfig, fit
from mammomil.validation import own_share
from mammomil.weights import SHIPPED

ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
ONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
# `accelerate launch --cpu` starts one process; its launcher for several GPUs starts two on a CPU as well.
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip
TINY = [
    *("--preprocess.height", "96", "--preprocess.width", "64", "--model.windows.sizes", "16"),
    *("--model.encoder.weights", "none", "--model.encoder.side", "16", "--model.head.k", "4"),
    # Without dropout nothing is drawn; first weights of some size have gradients above the rounding of sums.
    *("--model.head.dropout", "0", "--model.head.branch-std", "0.1", "--train.learning-rate", "1e-2"),
]
CANVAS = PreprocessConfig(96, 64, "fit")


def write_phantoms(folder: Path, splits: list[str]) -> Path:
    """Copy some of the shipped exams, four images each, and split them."""
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("full", "half", "truth", "weights"))
    index = read_index(folder)
    split = dict(zip(sorted(index.images["exam_id"].unique()), splits, strict=False))
    kept = select(index, index.images["exam_id"].isin(split))
    write_index(kept._replace(images=kept.images.assign(split=kept.images["exam_id"].map(split))), folder)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """32 training images, which make whole batches, and 12 validation images, which do not."""
    folder = tmp_path_factory.mktemp("scale") / "phantoms"
    return write_phantoms(folder, ["train"] * 8 + ["test"] + ["val"] * 3)


def train(launcher: list[str], data: Path, out: Path, *options: str) -> list[str]:
    return [
        *launcher, "-m", "mammomil.cli", "train", "dual-branch", "--data", str(data), "--out", str(out),
        "--codes", str(data / "codes"), *TINY, *options,
    ]  # fmt: skip


def launched(command: list[str]) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(phantoms) -> Path:
    out = phantoms.parent / "alone"
    launched(train(ONE, phantoms, out, "--train.epochs", "3", "--train.batch-size", "16"))
    return out


def assert_same_model(first: Path, second: Path) -> None:
    """Compare each tensor as a whole: Adam makes full steps out of gradients that are rounding alone."""
    ours, theirs = (load_file(out / "model" / "weights.safetensors") for out in (first, second))
    for name, value in theirs.items():
        assert (ours[name] - value).double().norm() <= 1e-5 * value.double().norm(), name
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)  # a thousandth of a step


def assert_close_json(ours, theirs) -> None:
    """Compare two JSON values: numbers to 1e-4, everything else exactly."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for name in set(theirs) - {"seconds"}:
            assert_close_json(ours[name], theirs[name])
    elif isinstance(theirs, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_close_json(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    else:
        assert ours == theirs


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_train_the_model_of_one_with_batches_twice_as_large(
    phantoms, alone, launcher, tmp_path
):
    """All labels of the phantoms are known, so that the mean of two batches is the mean of their union."""
    out = tmp_path / "two"
    said = launched(train(launcher, phantoms, out, "--train.epochs", "3", "--train.batch-size", "8"))
    assert_same_model(out, alone)
    assert rows_of(alone)[0]["train"]["weak"] - rows_of(alone)[-1]["train"]["weak"] > 0.01  # it has learned
    assert_close_json(rows_of(out), rows_of(alone))
    assert_close_json(*(json.loads((run / "result.json").read_text()) for run in (out, alone)))
    tables = []
    for run_folder in (out, alone):
        with (run_folder / "predictions.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1]) == 16  # each judged image once, in the order of the index
    for ours, theirs in zip(*tables, strict=True):
        for name, value in theirs.items():
            assert ours[name] == value or float(ours[name]) == pytest.approx(float(value), rel=1e-4)
    for line in ("epoch 1/3", "epoch 3/3", "val: 12 images", "model: "):
        assert said.count(line) == 1, said
    assert (out / "failures.csv").read_text() == "image_id,reason\n"
    assert json.loads((out / "config.json").read_text())["processes"] == 2
    card = json.loads((out / "model" / "provenance.json").read_text())
    assert card["processes"] == 2
    left = {path.name for path in out.rglob("*") if path.name.startswith(".")}
    assert not left, "temporary files"


@pytest.mark.slow
def test_sigterm_to_the_launcher_loses_nothing(tmp_path):
    """Stopped after some epochs and resumed on two processes: the weights of an undisturbed run."""
    data, whole, cut = write_phantoms(tmp_path / "data", ["train"] * 4), tmp_path / "whole", tmp_path / "cut"
    options = ("--train.batch-size", "4", "--train.patience", "0", "--train.epochs")
    process = subprocess.Popen(
        train(TORCHRUN, data, cut, *options, "100000"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 100
    while not (cut / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert (cut / "checkpoint.pt").exists(), error
    epochs = str(len(rows_of(cut)) + 2)
    launched(train(TORCHRUN, data, cut, *options, epochs, "--resume"))
    launched(train(ONE, data, whole, "--train.batch-size", "8", *options[2:], epochs))
    assert len(rows_of(cut)) == int(epochs)
    assert_same_model(cut, whole)
    assert_close_json(rows_of(cut), rows_of(whole))


def frozen_gmic() -> torch.nn.Module:
    """A GMIC whose normalisation does not look at batches, which differ with the number of processes."""
    model = build_gmic(SMALL, seed=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True: None
            module.training = False
    return model


def train_gmic(out: Path, batch_size: int, at: dict | None = None, resume: bool = False):
    model = frozen_gmic()
    config = TrainConfig(epochs=3, batch_size=batch_size, learning_rate=1e-3, seed=5)
    result = fit(
        model, GMICObjective(), (Squares(), Shuffled(24, at=at)), Squares(7, seed=9), config, out,
        resume=resume, collate=collate, progress=False,
    )  # fmt: skip
    return model, result


def _in_two_processes(folder: Path) -> None:
    """Train GMIC; train it again with a signal to one process in the middle of an epoch; fail in two ways."""
    rank = int(os.environ["RANK"])
    model, _ = train_gmic(folder / "whole", 2)
    torch.save(model.state_dict(), folder / f"whole{rank}.pt")
    press = {(1, 1): lambda: os.kill(os.getpid(), signal.SIGTERM)} if rank == 1 else {}
    _, stopped = train_gmic(folder / "cut", 2, at=press)
    assert stopped.interrupted
    checkpoint = torch.load(folder / "cut" / "checkpoint.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["batch"]) == (1, 1)
    model, _ = train_gmic(folder / "cut", 2, resume=True)
    torch.save(model.state_dict(), folder / f"cut{rank}.pt")
    errors = []
    for work in (_fail_on_the_second, lambda: same_everywhere(rank, "ranks differ")):
        try:
            work()
        except InputError as error:
            errors.append(str(error))
    (folder / f"errors{rank}.json").write_text(json.dumps(errors))


def _fail_on_the_second() -> None:
    with together():
        if os.environ["RANK"] == "1":
            raise InputError("disk is full")


@pytest.mark.slow
def test_gmic_on_two_processes_equals_one_and_one_that_was_stopped_in_mid_epoch(tmp_path):
    """GMIC's loss is a mean over images. Its batch normalisation is left out: that is per process."""
    launched([*TORCHRUN, __file__, str(tmp_path)])
    single, result = train_gmic(tmp_path / "single", 4)
    start = frozen_gmic().state_dict()
    for name in ("whole0", "whole1", "cut0", "cut1"):
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for key, value in single.named_parameters():
            torch.testing.assert_close(state[key], value.data, rtol=0, atol=1e-5)
            assert (value - start[key]).abs().max() > 1e-3, key
    for folder in ("whole", "cut"):
        assert_close_json(rows_of(tmp_path / folder), json.loads(json.dumps(result.history)))
    errors = [json.loads((tmp_path / f"errors{rank}.json").read_text()) for rank in (0, 1)]
    assert errors == [["process 1: disk is full", "ranks differ"], ["disk is full", "ranks differ"]]


def test_a_run_goes_on_with_as_many_processes_as_it_began_with(tmp_path):
    run(tmp_path, epochs=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("processes") == 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    run(tmp_path, epochs=2, resume=True)  # a folder from before the number was noted
    (tmp_path / "config.json").write_text(json.dumps({**config, "processes": 2}))
    with pytest.raises(InputError, match="other settings: processes was 2, now 1"):
        run(tmp_path, epochs=3, resume=True)


def test_processes_share_an_epoch_and_its_seeds():
    """Every image is seen, with the seed it has on one process; what fills the last batches is seen twice."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = ShuffledSampler(21, seed=3)
    shares = [list(BatchSamplerShard(BatchSampler(sampler, 4, False), 2, number)) for number in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    drawn = [pair for share in shares for batch in share for pair in batch]
    assert set(drawn) == set(sampler)
    assert len(drawn) == 24
    exact = ShuffledSampler(24, seed=3)
    shares = [list(BatchSamplerShard(BatchSampler(exact, 4, False), 2, number)) for number in (0, 1)]
    steps = [sorted(one + other) for one, other in zip(*shares, strict=True)]
    assert steps == [sorted(batch) for batch in BatchSampler(exact, 8, False)]  # the steps of one process


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_shares_of_all_processes_are_every_image_once(count):
    rows = []
    for number in range(count):
        state = SimpleNamespace(process_index=number, num_processes=count, device=torch.device("cpu"))
        batches = list(own_share(Squares(7), 2, collate, state))
        assert all(len(batch.row) <= 2 for batch in batches)
        rows += [int(row) for batch in batches for row in batch.row]
    assert sorted(rows) == list(range(7))


def test_processes_that_begin_in_different_places_prepare_the_same_set(twelve_phantoms, tmp_path):
    assert turned(5, 0.5) == [2, 3, 4, 0, 1]
    sets = []
    for start in (0.0, 0.5):
        data = MammogramDataset(twelve_phantoms, CANVAS)
        broken = data._rows[1]
        data._rows[1] = broken._replace(path="nowhere.png")
        failures = data.prepare_all(progress=False, workers=0, start=start)
        assert [name for name, _ in failures] == [broken.image_id]
        sets.append(data)
    assert list(sets[0].images["image_id"]) == list(sets[1].images["image_id"])
    for row in range(11):
        assert torch.equal(sets[0][row].image, sets[1][row].image)
    model = build_region_model(RegionModelConfig(EncoderConfig(weights="none", side=16), WindowConfig((16,))))
    coded = []
    for start in (0.0, 0.5):
        data = CodeDataset(twelve_phantoms, CANVAS, model, poses=PoseConfig(2))
        data._rows[1] = data._rows[1]._replace(path="nowhere.png")
        data.prepare_all(progress=False, workers=0, start=start)
        coded.append(data)
    assert coded[0].items == coded[1].items
    assert len(coded[0]) == 22
    for ours, theirs in zip(coded[0], coded[1], strict=True):
        assert ours.row == theirs.row
        assert torch.equal(ours.codes, theirs.codes)


def test_a_signal_that_comes_twice_at_once_is_one_signal(monkeypatch):
    """A launcher passes on what the processes may have got already; a person presses again later."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        now[0] += 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_only_the_first_process_speaks(monkeypatch, capsys):
    def speak(args):
        print("hello")
        warnings.warn("look", stacklevel=1)
        raise InputError("no such file")

    monkeypatch.setitem(cli.COMMANDS, "train", ("", cli._one_voice()(speak)))
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mammomil: no such file\n")
    monkeypatch.setenv("RANK", "0")
    with pytest.warns(UserWarning, match="look"):
        assert cli.main(["train"]) == 1
    assert capsys.readouterr().out == "hello\n"


if __name__ == "__main__":  # what each of two processes runs
    _in_two_processes(Path(sys.argv[1]))
