import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mammomil.backbones import ClassifierConfig, ResNet22Config, build_classifier
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, MILConfig, build_gmic
from mammomil.losses import ClassifierObjective, GMICObjective
from mammomil.metrics import auc_score
from mammomil.train import TrainConfig, fit
from mammomil.types import Batch
from mammomil.validation import evaluate

SMALL = GMICConfig(
    backbone=ResNet22Config((4, 8), (1, 2), 1, stem_pool=False),
    mil=MILConfig(2, 16, arch="narrow", instance_features=64, attention_width=8),
    saliency_bias=True,
)


class Squares(Dataset):
    """Noise; images with label (0, 1) hold a bright square. Item is a row, or (row, seed) for more noise."""

    def __init__(self, n: int = 24, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.images = rng.normal(size=(n, 1, 32, 32)).astype(np.float32)
        self.labels = np.zeros((n, 2), np.float32)
        self.labels[::2, 1] = 1
        for image in self.images[::2]:
            r, c = rng.integers(0, 24, 2)
            image[0, r : r + 8, c : c + 8] += 3

    def __len__(self):
        return len(self.images)

    def __getitem__(self, item):
        row, seed = item if isinstance(item, tuple) else (item, None)
        image = torch.from_numpy(self.images[row])
        if seed is not None:
            image = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return image, torch.from_numpy(self.labels[row]), row


def collate(samples):
    images, labels, rows = zip(*samples, strict=True)
    unknown = torch.full((len(rows),), torch.nan)
    return Batch(torch.stack(images), torch.stack(labels), unknown, torch.tensor(rows))


class Shuffled:
    """All rows in an order that follows from (seed, epoch); can call something in the middle of an epoch."""

    def __init__(self, n: int, seed: int = 0, at=None):
        self.n, self.seed, self.epoch, self.at = n, seed, 0, at or {}

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        for position, row in enumerate(rng.permutation(self.n)):
            if (self.epoch, position) in self.at:
                self.at[self.epoch, position]()
            yield int(row), int(rng.integers(2**31))


def run(out, epochs=3, resume=False, at=None, model=None, valid=True, **options):
    model = build_gmic(SMALL, seed=1) if model is None else model
    data = Squares()
    config = TrainConfig(**{"epochs": epochs, "batch_size": 5, "learning_rate": 3e-3, **options})
    result = fit(
        model, GMICObjective(), (data, Shuffled(len(data), at=at)), Squares(12, seed=9) if valid else None,
        config, out, resume=resume, collate=collate, progress=False,
    )  # fmt: skip
    return model, result


def assert_same(first, second):
    for (name, ours), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_training_lowers_the_loss_and_writes_one_row_an_epoch(tmp_path):
    _, result = run(tmp_path, epochs=12)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == json.loads(json.dumps(result.history))
    assert [row["epoch"] for row in rows] == list(range(12))
    losses = [sum(row["train"].values()) for row in rows]
    assert losses[-1] < 0.8 * losses[0]
    assert rows[-1]["val"]["auc_malignant"] > 0.9
    assert rows[-1]["val"]["auc_benign"] is None  # one class only
    assert not result.interrupted


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    first, _ = run(tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())
    second, _ = run(tmp_path / "b")
    assert_same(first, second)
    assert (tmp_path / "a" / "metrics.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("ablation", ["saliency", "random"])
def test_ctrl_c_in_mid_epoch_saves_and_resume_ends_with_the_same_bits(tmp_path, ablation):
    """The random-patch ablation draws in its forward pass: those draws must continue too."""
    config = GMICConfig(**{**vars(SMALL), "mil": MILConfig(**{**vars(SMALL.mil), "patches": ablation})})
    whole, undisturbed = run(tmp_path / "whole", model=build_gmic(config, seed=1))
    before = signal.getsignal(signal.SIGINT)
    press = {(1, 12): lambda: os.kill(os.getpid(), signal.SIGINT)}
    _, stopped = run(tmp_path / "cut", at=press, model=build_gmic(config, seed=1))
    assert stopped.interrupted
    assert len(stopped.history) == 1
    assert signal.getsignal(signal.SIGINT) is before
    # A fresh process would build the model anew; its weights must come from the checkpoint alone.
    again, resumed = run(tmp_path / "cut", resume=True, model=build_gmic(config, seed=77))
    assert_same(whole, again)
    for ours, theirs in zip(resumed.history, undisturbed.history, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {
            k: v for k, v in theirs.items() if k != "seconds"
        }


def test_a_crash_in_mid_epoch_goes_on_from_the_last_timed_save(tmp_path):
    whole, _ = run(tmp_path / "whole")

    def crash():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", at={(1, 20): crash}, save_minutes=0.0)
    checkpoint = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["batch"]) == (1, 3)
    again, _ = run(tmp_path / "cut", resume=True, save_minutes=0.0)
    assert_same(whole, again)


def test_resuming_a_finished_run_with_more_epochs_equals_one_long_run(tmp_path):
    long, _ = run(tmp_path / "long", epochs=4)
    run(tmp_path / "short", epochs=2)
    longer, _ = run(tmp_path / "short", epochs=4, resume=True)
    assert_same(long, longer)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"holds a run already\. Continue it with --resume"):
        run(tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"other settings: train\.learning_rate was 0\.003, now 0\.1"):
        run(tmp_path, epochs=1, learning_rate=0.1, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"checkpoint\.pt: cannot be read"):
        run(tmp_path, epochs=1, resume=True)


def test_resume_of_a_run_that_never_began_begins_it(tmp_path):
    assert len(run(tmp_path, epochs=1, resume=True)[1].history) == 1


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path):
    model = build_gmic(SMALL)
    torch.nn.init.constant_(model.mil_classifier.weight, torch.nan)
    with pytest.raises(InputError, match=r"loss is not finite in epoch 1 .*learning-rate"):
        run(tmp_path, model=model)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_patience_stops_and_best_weights_are_those_of_the_best_epoch(tmp_path):
    kept = []
    data, valid = Squares(), Squares(12, seed=9)
    config = TrainConfig(epochs=30, batch_size=5, learning_rate=3e-3, patience=2)
    model = build_gmic(SMALL, seed=1)
    result = fit(
        model, GMICObjective(), (data, Shuffled(24)), valid, config, tmp_path,
        collate=collate, progress=False,
        on_best=lambda m, row, found: kept.append((row["epoch"], found)),
    )  # fmt: skip
    figures = [row["val"]["auc_malignant"] for row in result.history]
    assert kept[-1][0] == int(np.argmax(figures))
    assert len(result.history) == kept[-1][0] + 3
    best = kept[-1][1]
    assert sorted(best.row) == list(range(12))
    assert auc_score(best.label[:, 1], best.prob[:, 1]) == figures[kept[-1][0]]


def test_an_unknown_monitor_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"monitor auc_cancer: no such figure; there are loss, .*auc_malignant"
    ):
        run(tmp_path, monitor="auc_cancer")


def test_accumulated_batches_make_the_step_of_their_union(tmp_path):
    """Two batches of 4 equal one batch of 8: the gradients are averaged, then one step is taken."""
    models = []
    for accumulate, size in ((2, 4), (1, 8)):
        model = build_classifier(ClassifierConfig(ResNet22Config((4,), (2,), 1), "findings"), seed=3)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True: None  # statistics of a batch depend on its size
                module.training = False
        config = TrainConfig(epochs=1, batch_size=size, accumulate=accumulate, learning_rate=1e-3)
        fit(
            model, ClassifierObjective(model.config), (Squares(16), Shuffled(16)), None, config,
            tmp_path / str(size), collate=collate, progress=False,
        )  # fmt: skip
        models.append(model)
    start = build_classifier(models[0].config, seed=3).state_dict()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        assert (ours - start[name]).abs().max() > 5e-4, name


def test_evaluate_weighs_images_not_batches_and_averages_views():
    from accelerate import Accelerator

    data = Squares(7)
    breast = np.array([0, 0, 1, 1, 2, 2, 3])
    data.labels[:, 0] = np.nan
    data.labels[:, 1] = [1, 1, 0, 0, 1, 1, 0]  # the views of a breast share its label
    loader = torch.utils.data.DataLoader(data, 3, collate_fn=collate)
    model = build_gmic(SMALL, seed=2)
    found = evaluate(model, GMICObjective(), loader, Accelerator(), breast)
    with torch.no_grad():
        whole = collate([data[i] for i in range(7)])
        output = model.eval()(whole.image)
        expected = sum(GMICObjective()(output, whole).values()).item()
    assert found.figures["loss"] == pytest.approx(expected, rel=1e-4)
    y = output.y[:, 1].numpy()
    scores = [y[:2].mean(), y[2:4].mean(), y[4:6].mean(), y[6]]
    pairs = [(scores[p] > scores[n]) + 0.5 * (scores[p] == scores[n]) for p in (0, 2) for n in (1, 3)]
    assert found.figures["auc_breast_malignant"] == pytest.approx(np.mean(pairs))
    assert found.figures["auc_benign"] is None
    largest = evaluate(model, GMICObjective(), loader, Accelerator(), breast, "max")  # the dual branch's way
    scores = [y[:2].max(), y[2:4].max(), y[4:6].max(), y[6]]
    pairs = [(scores[p] > scores[n]) + 0.5 * (scores[p] == scores[n]) for p in (0, 2) for n in (1, 3)]
    assert largest.figures["auc_breast_malignant"] == pytest.approx(np.mean(pairs))


def test_training_from_another_thread_works(tmp_path):
    """A notebook may train in a thread, where signals cannot be handled."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert len(results[0][1].history) == 1


def _two_process_run(folder):
    model, _ = run(folder, epochs=2, batch_size=3)
    from accelerate import PartialState

    torch.save(model.state_dict(), f"{folder}/rank{PartialState().process_index}.pt")


@pytest.mark.slow
def test_two_processes_train_one_model_and_judge_every_image_once(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", __file__, str(tmp_path)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    ranks = [torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)]
    for name, ours in ranks[0].items():
        if "running" not in name:  # batch statistics are each process's own
            assert torch.equal(ours, ranks[1][name]), name
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert sum(rows[1]["train"].values()) < sum(rows[0]["train"].values())


def test_configs_refuse_impossible_values():
    for change in ({"epochs": 0}, {"learning_rate": 0.0}, {"workers": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            TrainConfig(**change)


if __name__ == "__main__":  # what each of the two processes runs
    _two_process_run(sys.argv[1])
