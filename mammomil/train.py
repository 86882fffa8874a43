"""The training loop: plain and visible, on Accelerate, with checkpoints that continue to the bit.

Every draw follows from (seed, epoch, step): the sampler orders an epoch from its seed, every image carries
the seed of its augmentation, every step seeds torch. A checkpoint therefore needs no generator state, and a
run that was stopped in the middle of an epoch goes on exactly as if it had not been.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mammomil.files import InputError, atomic_path
from mammomil.runs import open_run, same_everywhere, stop_signals
from mammomil.types import Batch
from mammomil.validation import Evaluation, Objective, evaluate, own_share


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the learning rate is the middle of the GMIC paper's search range (checklist G10)."""

    epochs: int = 40
    """Passes over the training images. GMIC's are all positive exams and as many fresh negative ones; its
    paper trains 40."""
    batch_size: int = 8
    """Images per step and process."""
    learning_rate: float = 2e-5
    """Of Adam; the GMIC paper searches 10^-5.5 to 10^-3.8, the dual-branch paper has 10^-4."""
    weight_decay: float = 0.0
    """Weight of the l2 penalty."""
    seed: int = 0
    """Seed of the weights, the sampling, the augmentation and everything else that is drawn."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere; the saliency map and losses stay in fp32."""
    accumulate: int = 1
    """Batches per optimiser step."""
    workers: int = 0
    """Processes that load images; 0 loads in the training process."""
    monitor: str = "auc_malignant"
    """Figure on the validation images that decides which epoch's weights are kept: a loss, where smaller is
    better, or one of the others, where larger is."""
    patience: int = 0
    """Stop after so many epochs without a better figure; 0 trains them all."""
    save_minutes: float = 10.0
    """Also save within an epoch, every so many minutes."""
    judge_training: bool = False
    """Also compute the AUC of the training images after every epoch, as the dual-branch paper's Fig. 3."""
    tensorboard: bool = False
    """Write TensorBoard logs beside metrics.jsonl (needs the extra `mammomil[tensorboard]`)."""

    def __post_init__(self):
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise ValueError("epochs, batch_size and accumulate must be 1 or more.")
        if self.learning_rate <= 0 or min(self.weight_decay, self.workers, self.patience) < 0:
            raise ValueError(
                "learning_rate must be larger than 0; weight_decay, workers and patience 0 or more."
            )


class FitResult(NamedTuple):
    """How a run ended: one row per finished epoch, and whether it was stopped before its last."""

    history: list[dict[str, Any]]
    interrupted: bool


def fit(
    model: nn.Module,
    objective: Objective,
    train: tuple[Dataset, Any],
    valid: Dataset | None,
    config: TrainConfig,
    out: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    breast: np.ndarray | None = None,
    views: Literal["mean", "max"] = "mean",
    on_best: Callable[[nn.Module, dict[str, Any], Evaluation | None], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], bool] | None = None,
    collate: Callable[[list], Batch] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a model and leave a run folder: `config.json`, `metrics.jsonl`, `checkpoint.pt`.

    Ctrl-C (or SIGTERM) finishes the current step, saves, and returns; `resume=True` goes on from there. On a
    CPU the continued run ends with the same bits as an undisturbed one.

    Args:
        model: trained in place; at the end it holds the last weights.
        objective: (output, batch) to named terms; their sum is minimised.
        train: the data set, and a sampler of (row, seed) with `set_epoch`.
        valid: images judged after every epoch, or None.
        config: how to train.
        out: the run folder.
        settings: everything else that defines the run, JSON-able; kept in `config.json`, compared on resume.
        resume: continue the run in `out` if it has begun.
        breast: breast of each row of `valid`, see `evaluate`.
        views: how the views of a breast become one score, see `evaluate`.
        on_best: called on the main process with the model, the epoch's metrics and the validation answers,
            whenever `config.monitor` improves (without validation data: after every epoch).
        on_epoch: asked on the main process before each further epoch with the row of the last one, which is
            saved; True ends the run there, as if it had no more epochs. A continued run is asked again before
            it goes on.
        collate: turns samples into a `Batch`; the data set's own by default.
        progress: show a bar per epoch.

    Raises:
        InputError: `out` holds another run, or the loss stopped being finite.
    """
    from accelerate import Accelerator, skip_first_batches
    from accelerate.state import AcceleratorState

    out = Path(out)
    if collate is None:
        from mammomil.dataset import collate
    # Accelerate keeps one precision per process; a notebook may train twice with different ones.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=_precision(config.precision),
        gradient_accumulation_steps=config.accumulate,
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=out / "tensorboard" if config.tensorboard else None,
    )
    told = {"train": vars(config), "processes": accelerator.num_processes, **(settings or {})}
    state = open_run(out, told, resume, accelerator.is_main_process)
    place = (state.get("epoch", 0), state.get("batch", 0))
    same_everywhere(place, f"{out}: not all processes find the same checkpoint. Put it on a shared disk.")
    if config.tensorboard:
        accelerator.init_trackers("mammomil")
    data, sampler = train
    loader = DataLoader(
        data, config.batch_size, sampler=sampler, collate_fn=collate, num_workers=config.workers
    )
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        config.learning_rate,
        weight_decay=config.weight_decay,
    )
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def in_order(images: Dataset | None) -> Any:
        if images is None:
            return None
        return own_share(images, config.batch_size, collate, accelerator, config.workers)

    judge, judge_train = in_order(valid), in_order(data if config.judge_training else None)
    history: list[dict[str, Any]] = state.get("history", [])
    first_epoch, done = state.get("epoch", 0), state.get("batch", 0)
    sums = {name: value.to(accelerator.device) for name, value in state.get("sums", {}).items()}
    spent = state.get("seconds", 0.0)

    def save(epoch: int, batch: int, seconds: float) -> None:
        # Called by all processes alike: the sums of the epoch so far are theirs together.
        means = {name: accelerator.reduce(value, "mean") for name, value in sorted(sums.items())}
        if accelerator.is_main_process:
            content = {
                "model": accelerator.unwrap_model(wrapped).state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "batch": batch,
                "sums": means,
                "seconds": seconds,
                "history": history,
            }
            with atomic_path(out / "checkpoint.pt") as temporary:
                torch.save(content, temporary)

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        stop_signals() as stop,
        torch.random.fork_rng(devices),
    ):  # the caller's generators come back as they were
        for epoch in range(first_epoch, config.epochs):
            asked = history and on_epoch is not None and accelerator.is_main_process
            ended = _enough(history, config) or bool(asked and on_epoch(history[-1]))
            if _agreed((ended,), accelerator, 0)[0]:
                break
            start = saved = time.monotonic()
            loader.set_epoch(epoch)  # Accelerate's loader hands it on to the sampler
            wrapped.train()
            batches = skip_first_batches(loader, done) if done else loader
            bar = _bar(
                batches, f"epoch {epoch + 1}/{config.epochs}", len(loader), done,
                progress and accelerator.is_main_process,
            )  # fmt: skip
            for step, batch in enumerate(bar, done):
                _seed_step(config.seed, epoch, step, accelerator.process_index)
                with accelerator.accumulate(wrapped):
                    terms = objective(wrapped(*batch.inputs), batch)
                    accelerator.backward(torch.stack(list(terms.values())).sum())
                    optimizer.step()
                    optimizer.zero_grad()
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0) + term.detach()
                done = step + 1
                due = time.monotonic() - saved > 60 * config.save_minutes
                halt, due = _agreed((stop.is_set(), due), accelerator, step)
                if done < len(loader) and (halt or due):
                    save(epoch, done, spent + time.monotonic() - start)
                    saved = time.monotonic()
                    if halt:
                        accelerator.wait_for_everyone()  # a launcher ends all when the first has ended
                        return FitResult(history, interrupted=True)
            totals = {name: accelerator.reduce(value, "mean") for name, value in sorted(sums.items())}
            row: dict[str, Any] = {
                "epoch": epoch,
                "train": {name: float(value) / max(done, 1) for name, value in totals.items()},
            }
            if not all(math.isfinite(value) for value in row["train"].values()):
                raise InputError(
                    f"{out}: the loss is not finite in epoch {epoch + 1} ({row['train']}). Lower "
                    "--train.learning-rate; the last checkpoint is from before."
                )
            if judge_train is not None:
                figures = evaluate(wrapped, objective, judge_train, accelerator).figures
                row["train_figures"] = {k: v for k, v in figures.items() if k.startswith("auc")}
            found = None
            if judge is not None:
                found = evaluate(wrapped, objective, judge, accelerator, breast, views)
                row["val"] = found.figures
            row["seconds"] = round(spent + time.monotonic() - start, 2)
            better = _is_better(row, history, config.monitor)
            history.append({**row, "best": better})
            done, sums, spent = 0, {}, 0.0
            if progress and accelerator.is_main_process:
                print(_summary(history[-1], config), flush=True)
            if accelerator.is_main_process:
                # The best model first: a run cut short between the two repeats the epoch and writes it again.
                if better and on_best is not None:
                    on_best(accelerator.unwrap_model(wrapped), row, found)
                save(epoch + 1, 0, 0.0)
                with atomic_path(out / "metrics.jsonl") as temporary:
                    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))
            if config.tensorboard:
                flat = {f"{part}/{k}": v for part in ("train", "val") for k, v in row.get(part, {}).items()}
                accelerator.log({k: v for k, v in flat.items() if v is not None}, step=epoch)
            if _agreed((stop.is_set(),), accelerator, 0)[0]:
                return FitResult(history, interrupted=epoch + 1 < config.epochs)
    for tracker in accelerator.trackers:
        tracker.finish()
    return FitResult(history, interrupted=False)


def _precision(choice: str) -> str:
    if choice == "auto":
        choice = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(False) else "fp32"
    return "no" if choice == "fp32" else choice


def _seed_step(*key: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _bar(batches: Any, title: str, total: int, done: int, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(batches, title, total=total, initial=done, disable=not show, leave=False, unit="batch")


def _summary(row: dict[str, Any], config: TrainConfig) -> str:
    """Return an epoch in one line: `epoch 3/40  loss 1.23  val loss 1.31  auc_benign 0.61  12 s`."""
    parts = [f"epoch {row['epoch'] + 1}/{config.epochs}", f"loss {sum(row['train'].values()):.4f}"]
    for name, value in row.get("val", {}).items():
        if value is not None and (name == "loss" or name.startswith("auc")):
            parts.append(f"{'val ' if name == 'loss' else ''}{name} {value:.3f}")
    return "  ".join([*parts, f"{row['seconds']:.0f} s", *(["* best so far"] if row["best"] else [])])


def _score(row: dict[str, Any], monitor: str) -> float:
    """Return the monitored figure; where it cannot be computed (one class only), minus the loss."""
    if "val" not in row:
        return -sum(row["train"].values())
    if monitor not in row["val"]:
        known = ", ".join(row["val"])
        raise InputError(f"--train.monitor {monitor}: no such figure; there are {known}.")
    if monitor.startswith("loss"):
        return -row["val"][monitor]
    value = row["val"][monitor]
    return -row["val"]["loss"] if value is None else value


def _is_better(row: dict[str, Any], history: list[dict[str, Any]], monitor: str) -> bool:
    if "val" not in row:
        return True
    return _score(row, monitor) > max((_score(old, monitor) for old in history), default=-math.inf)


def _enough(history: list[dict[str, Any]], config: TrainConfig) -> bool:
    """Say whether `patience` epochs have passed since the last better one."""
    since = next((n for n, row in enumerate(reversed(history)) if row["best"]), 0)
    return 0 < config.patience <= since


def _agreed(wishes: Sequence[bool], accelerator: Any, step: int) -> list[bool]:
    """Say of each wish whether any process has it; several processes compare notes every ten steps."""
    if accelerator.num_processes == 1:
        return list(wishes)
    if step % 10:
        return [False] * len(wishes)
    flags = torch.tensor(wishes, dtype=torch.float32, device=accelerator.device)
    return (accelerator.reduce(flags, "sum") > 0).tolist()
