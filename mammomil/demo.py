"""The demo: draw phantoms, train a small GMIC on them, and look at exams it has never seen."""

import dataclasses
import shutil
import time
from pathlib import Path

from mammomil.files import InputError
from mammomil.phantom import write_phantoms
from mammomil.predict import predict_to_folder
from mammomil.recipes import GMICRun, preset, run_training

EXAMS = 50  # training phantoms, four images each
CONSPICUITY = 2.0  # between subtle (1) and plain to see (3), as in data_samples
SAMPLES_SEED, SAMPLES_EXAMS = 2026, 10  # what data_samples was drawn from
FIELD = 96  # pixels: small fields of view learn in a minute what whole images learn in an hour


def run_demo(out: Path, seed: int = 0, force: bool = False) -> int:
    """Run the demo into `out` and return an exit status; see `mammomil demo --help`.

    Training has two stages. The first sees small fields of view with a label each, which phantoms can give
    and screening data cannot (there BI-RADS pre-training takes its place); the second sees whole images and
    their image labels alone, as the paper does.

    Raises:
        InputError: `out` cannot be used.
    """
    start = time.monotonic()
    parts = [out / name for name in ("phantoms", "samples", "fields", "whole", "report")]
    if force:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    phantoms, samples, fields, whole, report = parts
    print(f"1/4 Drawing {EXAMS} synthetic exams (phantoms: no patient is in them)")
    # Seeds of the shipped samples start at 2026; training seeds are far from them.
    index = write_phantoms(phantoms, EXAMS, "quick", 1_000_000 + 1000 * seed, CONSPICUITY)

    print(f"2/4 Learning what findings look like, from fields of {FIELD} pixels with a label each")
    if not _train(_first_stage(index, fields, seed)):
        return 130
    print("3/4 Learning from whole images and image labels alone")
    if not _train(_second_stage(index, whole, fields / "model", seed)):
        return 130

    print("4/4 Looking at exams the model has never seen")
    shipped = Path(__file__).resolve().parents[1] / "data_samples" / "index.csv"
    unseen = (
        shipped
        if shipped.is_file()
        else write_phantoms(samples, SAMPLES_EXAMS, "quick", SAMPLES_SEED, CONSPICUITY)
    )
    status = predict_to_folder((whole / "model",), (unseen,), report)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {report / 'report.html'} in a browser.")
    return status


def _first_stage(index: Path, out: Path, seed: int) -> GMICRun:
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(
        run.train, epochs=8, batch_size=32, learning_rate=2e-3, seed=seed, monitor="loss"
    )
    return dataclasses.replace(run, fields=FIELD, train=train, resume=True)


def _second_stage(index: Path, out: Path, warm_start: Path, seed: int) -> GMICRun:
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(run.train, epochs=6, learning_rate=5e-4, seed=seed)
    return dataclasses.replace(run, warm_start=warm_start, train=train, resume=True)


def _train(run: GMICRun) -> bool:
    """Train, or go on; say whether it came to its end."""
    try:
        result = run_training(run)
    except InputError as error:
        raise InputError(f"{error} (For the demo: add --force to begin anew.)") from error
    if result.interrupted:
        print(f"Stopped; everything is saved. The same command goes on from here ({run.out}).")
    return not result.interrupted
