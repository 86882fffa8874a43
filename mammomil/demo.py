"""The demo: train a small GMIC a little further on phantoms, and look at exams it has never seen."""

import shutil
import time
from pathlib import Path

from mammomil.evaluate import evaluate_model, evaluation_text
from mammomil.files import InputError
from mammomil.index import Index, read_index, select, split_patients, write_index
from mammomil.jobs import run_training
from mammomil.phantom_set import SAMPLES, write_phantoms
from mammomil.predict import predict_to_folder
from mammomil.recipes import FIELD, GMICRun, fields_stage, whole_stage
from mammomil.weights import SHIPPED

EXAMS = 100  # training phantoms, four images each
CROWD = 5  # more findings a breast, where fields of view are learned from
SHOWN = 10  # exams in the report
WARM_START = "gmic-quick-half"  # a model whose training was stopped early on purpose


def run_demo(out: Path, seed: int = 0, force: bool = False) -> int:
    """Run the demo into `out` and return an exit status; see `mammomil demo --help`.

    Starts from the half-trained model in data_samples/weights and goes on with whole images and image labels
    alone, as the paper does. Without data_samples (an installed package) that start is trained first, on
    small fields of view with a label each, which phantoms can give and screening data cannot.

    Raises:
        InputError: `out` cannot be used.
    """
    start = time.monotonic()
    parts = [out / name for name in ("phantoms", "samples", "shown", "fields", "whole", "report")]
    if force:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    phantoms, samples, shown, fields, whole, report = parts
    print(f"1/4 Drawing {EXAMS} synthetic exams (phantoms: no patient is in them)")
    index = phantoms / "index.csv"
    if not index.exists():  # else an earlier demo drew them all
        write_phantoms(phantoms, EXAMS, "quick", 1_000_000 + seed, workers=0)
        table = read_index(index)
        images = split_patients(table.images, {"train": 0.85, "val": 0.15}, seed)
        write_index(table._replace(images=images), phantoms)
    unseen = SHIPPED if (SHIPPED / "index.csv").is_file() else samples
    if not (unseen / "index.csv").exists():  # an installed package: draw the same exams
        _, scale, exams, samples_seed = SAMPLES[0]
        write_phantoms(samples, exams, scale, samples_seed, workers=0)

    warm = SHIPPED / "weights" / WARM_START
    if not warm.is_dir():
        print(f"    No shipped weights here: first learning from fields of {FIELD} pixels with a label each")
        crowded, warm = fields / "phantoms", fields / "model"
        if not (crowded / "index.csv").exists():
            write_phantoms(crowded, EXAMS, "quick", 1_100_000 + seed, workers=0, crowd=CROWD)
        if not _train(fields_stage(crowded / "index.csv", fields, seed, 1)):
            return 130
    print("2/4 What the model can do before: AUC, and whether it looks at the right place")
    print(evaluation_text(evaluate_model(warm, unseen / "index.csv")))
    print("3/4 Learning from whole images and image labels alone")
    if not _train(whole_stage(index, whole, warm, seed)):
        return 130

    print("4/4 Looking at exams the model has never seen")
    print(evaluation_text(evaluate_model(whole / "model", unseen / "index.csv")))
    if not (shown / "index.csv").exists():
        write_index(_first(read_index(unseen), SHOWN), shown)
    status = predict_to_folder((whole / "model",), (shown / "index.csv",), report)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {report / 'report.html'} in a browser.")
    return status


def _first(index: Index, exams: int) -> Index:
    few = index.images["exam_id"].unique()[:exams]
    return select(index, index.images["exam_id"].isin(few))


def _train(run: GMICRun) -> bool:
    """Train, or go on; say whether it came to its end."""
    try:
        result = run_training(run)
    except InputError as error:
        raise InputError(f"{error} (For the demo: add --force to begin anew.)") from error
    if result.interrupted:
        print(f"Stopped; everything is saved. The same command goes on from here ({run.out}).")
    return not result.interrupted
