"""Worker processes that share a folder, on one machine or several: what they know of each other.

A worker holds a folder by a file in it, `worker.json`, and renews the time of that file (a heartbeat). What
all write to goes through locks that are files made with O_EXCL: they hold on local disks and on NFS from
version 3 on, where locks of the operating system often do not, and on systems without symbolic links.
"""

import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from mammomil.files import InputError, read_json, write_json
from mammomil.runs import stop_signals

BEAT, STALE = 20.0, 300.0  # seconds between signs of life, and without one until a folder is free again
_HELD = "worker.json"


def import_optuna() -> Any:
    """Return Optuna, without its messages.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            'the search needs Optuna, which is not installed. Run: pip install "mammomil[search]".'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def journal(path: Path) -> Any:
    """Return Optuna's storage in a file that many processes may append to."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep all others that ask for this lock waiting; one that a killed process left is broken after 30 s."""
    from optuna.storages.journal import JournalFileOpenLock

    folder.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(folder / "folder"))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def take(folder: Path) -> None:
    """Write down that this process holds a folder; `holding` keeps that alive."""
    write_json(folder / _HELD, {"host": platform.node(), "pid": os.getpid()})


def is_held(folder: Path) -> bool:
    """Say whether a living process holds a folder: by its number on this machine, and by its heartbeat.

    To be asked by a process that holds none itself, as a number is given again after a process has ended.
    """
    try:
        owner, beat = read_json(folder / _HELD), (folder / _HELD).stat().st_mtime
    except (InputError, OSError):
        return False  # given back, or never taken
    if owner["host"] == platform.node() and os.name == "posix":
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        if owner["pid"] == os.getpid():
            return False
    return time.time() - beat < STALE


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Renew the heartbeat of a folder that was taken, and give the folder back at the end."""
    path, stop = folder / _HELD, threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


def is_orphan() -> bool:
    """Say whether this is a worker process whose starter has died."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def start_workers(work: Callable[[Any], int], config: Any, workers: int) -> int:
    """Let several processes work, sharing the cores and the GPUs of this machine; hand Ctrl-C on to them.

    Args:
        work: a function of a module, called with `config` in each process; returns an exit status.
        config: handed to the processes.
        workers: how many.

    Returns:
        An exit status: 0; 1 if a process ended with another one; 130 if stopped.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    gpus, threads = visible.split(","), max(1, torch.get_num_threads() // workers)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_worker, args=(work, config, threads, gpus[n % len(gpus)]))
        for n in range(workers)
    ]
    with stop_signals() as stop:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not stop.wait(0.2):
            pass
        for process in processes:
            if stop.is_set():
                process.terminate()  # a training run finishes its step and saves
        for process in processes:
            process.join()
    return 130 if stop.is_set() else int(any(process.exitcode for process in processes))


def _worker(work: Callable[[Any], int], config: Any, threads: int, gpu: str) -> None:
    """Be a worker process."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal is for the process that started this one
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    try:
        sys.exit(work(config))
    except InputError as error:
        sys.exit(f"mammomil: {error}")
