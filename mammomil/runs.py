"""The folder of a training run: its settings, its checkpoint, and stopping without losing anything."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mammomil.files import InputError, read_json, write_json

# What a continued run may change without becoming another run.
_MAY_CHANGE = {"train.epochs", "train.workers", "train.save_minutes", "train.tensorboard", "train.patience"}


def open_run(out: Path, settings: dict[str, Any], resume: bool, main: bool) -> dict[str, Any]:
    """Return the checkpoint to go on from, or {} for a new run whose folder and config are then made."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they do in the file
    path = out / "checkpoint.pt"
    if not path.exists():
        if main:
            write_json(out / "config.json", settings)
        return {}
    if not resume:
        raise InputError(f"{out}: holds a run already. Continue it with --resume, or choose another --out.")
    known = {"processes": 1, **read_json(out / "config.json")}
    changed = [
        f"{name} was {old!r}, now {new!r}"
        for name, old, new in _differences(known, settings)
        if name not in _MAY_CHANGE
    ]
    if changed:
        raise InputError(
            f"{out}: the run there has other settings: {'; '.join(changed)}. Resume with the same settings, "
            "or choose another --out."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise InputError(f"{path}: cannot be read ({error}). Delete the folder and train again.") from error


def processes() -> Any:
    """Join the other processes of this run where a launcher has started several; says which one this is.

    Returns:
        Accelerate's `PartialState`, with `num_processes`, `process_index`, `is_main_process` and `device`.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


@contextmanager
def together() -> Iterator[None]:
    """Stop all processes of this run where one meets an `InputError`, so that none waits for it forever."""
    from accelerate.utils import gather_object

    problem = None
    try:
        yield
    except InputError as error:
        problem = error
    texts = gather_object([str(problem or "")])
    if problem is not None:
        raise problem
    for number, text in enumerate(texts):
        if text:
            raise InputError(f"process {number}: {text}")


def same_everywhere(value: Any, problem: str) -> None:
    """Wait for all processes of this run.

    Raises:
        InputError: `problem`, on all of them, where they do not bring the same value.
    """
    from accelerate.utils import gather_object

    if any(other != value for other in gather_object([value])):
        raise InputError(problem)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old value, new value) wherever two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield name, old, new


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one, a second later, interrupts at once.

    Launchers of several processes pass a signal on that the processes may have got already.
    """
    stop, first = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def handle(number: int, _: Any) -> None:
        nonlocal first
        if stop.is_set() and time.monotonic() > first + 1:
            raise KeyboardInterrupt
        if not stop.is_set():
            first = time.monotonic()
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
