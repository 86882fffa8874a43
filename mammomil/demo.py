"""The demo: train both models a little on phantoms, and look at exams they have never seen."""

import dataclasses
import shutil
import time
from pathlib import Path

from mammomil.evaluate import evaluate_model, evaluation_text
from mammomil.files import InputError
from mammomil.index import Index, read_index, select, split_patients, write_index
from mammomil.jobs import run_training
from mammomil.phantom_set import SAMPLES, write_phantoms
from mammomil.predict import predict_to_folder
from mammomil.recipes import FIELD, Run, fields_stage, preset, whole_stage
from mammomil.weights import SHIPPED

EXAMS = 100  # training phantoms, four images each
CROWD = 5  # more findings a breast, where fields of view are learned from
SHOWN = 10  # exams in the report
DUAL_EPOCHS = 40  # of the dual branch, a second each
WARM_START = "gmic-quick-half"  # a model whose training was stopped early on purpose


def run_demo(out: Path, seed: int = 0, force: bool = False) -> int:
    """Run the demo into `out` and return an exit status; see `mammomil demo --help`.

    GMIC starts from the half-trained model in data_samples/weights and goes on with whole images and image
    labels alone, as the paper does. Without data_samples (an installed package) that start is trained first,
    on small fields of view with a label each, which phantoms can give and screening data cannot. The
    dual-branch network learns its two branches from the same image labels, on codes of regions by the encoder
    in data_samples/weights, which has learned from labelled fields of other phantoms; without it, by a random
    encoder.

    Raises:
        InputError: `out` cannot be used.
    """
    start = time.monotonic()
    names = ("phantoms", "samples", "shown", "fields", "gmic", "dual-branch", "report")
    parts = [out / name for name in names]
    if force:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
    phantoms, samples, shown, fields, whole, dual, report = parts
    print(f"1/5 Drawing {EXAMS} synthetic exams (phantoms: no patient is in them)")
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
    print("2/5 What the model can do before: AUC, and whether it looks at the right place")
    print(evaluation_text(evaluate_model(warm, unseen / "index.csv")))
    print("3/5 Learning from whole images and image labels alone")
    if not _train(whole_stage(index, whole, warm, seed)):
        return 130

    print("4/5 The dual-branch network: classifying and ranking regions, from the same labels")
    ranking = preset("dual-branch", "quick", index, dual)
    # The loss chooses the epoch: an AUC does not see that all probabilities are still near their start, 1/3.
    train = dataclasses.replace(ranking.train, seed=seed, epochs=DUAL_EPOCHS, monitor="loss")
    ranking = dataclasses.replace(ranking, train=train, resume=True)
    if not (SHIPPED / "weights" / "region-encoder").is_dir():
        print("    No shipped encoder here: regions get random codes, from which little can be learned")
        blind = dataclasses.replace(ranking.model.encoder, weights="none")
        ranking = dataclasses.replace(ranking, model=dataclasses.replace(ranking.model, encoder=blind))
    if not _train(ranking):
        return 130

    print("5/5 Looking at exams the models have never seen")
    models = (whole / "model", dual / "model")
    for model in models:
        print(evaluation_text(evaluate_model(model, unseen / "index.csv")))
    if not (shown / "index.csv").exists():
        write_index(_first(read_index(unseen), SHOWN), shown)
    status = predict_to_folder(models, (shown / "index.csv",), report)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Open {report / 'report.html'} in a browser.")
    return status


def _first(index: Index, exams: int) -> Index:
    few = index.images["exam_id"].unique()[:exams]
    return select(index, index.images["exam_id"].isin(few))


def _train(run: Run) -> bool:
    """Train, or go on; say whether it came to its end."""
    try:
        result = run_training(run)
    except InputError as error:
        raise InputError(f"{error} (For the demo: add --force to begin anew.)") from error
    if result.interrupted:
        print(f"Stopped; everything is saved. The same command goes on from here ({run.out}).")
    return not result.interrupted
