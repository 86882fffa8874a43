"""The demo: draw phantoms, train a small GMIC on them, and look at exams it has never seen."""

import shutil
import time
from pathlib import Path

from mammomil.files import InputError
from mammomil.index import read_index, split_patients, write_index
from mammomil.phantom_set import write_phantoms
from mammomil.predict import predict_to_folder
from mammomil.recipes import FIELD, GMICRun, fields_stage, run_training, whole_stage

EXAMS = 90  # training phantoms, four images each
CONSPICUITY = 3.0  # plain to see, as in data_samples; 1 is subtle, as real lesions are
SAMPLES_SEED, SAMPLES_EXAMS = 2026, 10  # what data_samples was drawn from


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
    index = phantoms / "index.csv"
    if not index.exists():  # else an earlier demo drew them all
        write_phantoms(phantoms, EXAMS, "quick", 1_000_000 + seed, CONSPICUITY)
        table = read_index(index)
        images = split_patients(table.images, {"train": 0.85, "val": 0.15}, seed)  # the test is data_samples
        write_index(table._replace(images=images), phantoms)

    print(f"2/4 Learning what findings look like, from fields of {FIELD} pixels with a label each")
    if not _train(fields_stage(index, fields, seed)):
        return 130
    print("3/4 Learning from whole images and image labels alone")
    if not _train(whole_stage(index, whole, fields / "model", seed)):
        return 130

    print("4/4 Looking at exams the model has never seen")
    shipped = Path(__file__).resolve().parents[1] / "data_samples" / "index.csv"
    unseen = shipped if shipped.is_file() else samples / "index.csv"
    if not unseen.exists():  # an installed package comes without data_samples: draw the same exams
        write_phantoms(samples, SAMPLES_EXAMS, "quick", SAMPLES_SEED, CONSPICUITY)
    status = predict_to_folder((whole / "model",), (unseen,), report)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {report / 'report.html'} in a browser.")
    return status


def _train(run: GMICRun) -> bool:
    """Train, or go on; say whether it came to its end."""
    try:
        result = run_training(run)
    except InputError as error:
        raise InputError(f"{error} (For the demo: add --force to begin anew.)") from error
    if result.interrupted:
        print(f"Stopped; everything is saved. The same command goes on from here ({run.out}).")
    return not result.interrupted
