"""The small models that chapters start from, trained on phantoms and scored on phantoms never seen before."""

import csv
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mammomil.backbones import ClassifierConfig
from mammomil.encoders import SMALL
from mammomil.evaluate import (
    FindingFigures,
    ModelEvaluation,
    evaluate_fields,
    evaluate_model,
    with_interval,
    write_evaluation,
)
from mammomil.experiments.common import keep_settings
from mammomil.files import atomic_path, provenance, read_json
from mammomil.index import read_index, split_patients, write_index
from mammomil.jobs import run_training
from mammomil.preprocess import PreprocessConfig
from mammomil.recipes import ClassifierRun, GMICRun, fields_stage, preset, whole_stage
from mammomil.train import TrainConfig
from mammomil.types import FINDINGS
from mammomil.weights import EXAMPLE, load_model, save_model

WINDOW = 28  # pixels of 0.56 mm: 15.7 mm, a window of the dual-branch network at the quick scale
# Phantoms of the demo have seeds from 1,000,000 on, those of data_samples 2026.
TRAINING_SEED, TEST_SEED, CROWDED_SEED = 2_000_000, 3_000_000, 4_000_000
CROWD = 5  # more findings in every breast of the phantoms that fields are cut from
MODELS = {  # name -> the run that ends in it
    "gmic-quick": "gmic-polish",
    "gmic-quick-half": "gmic-fields",
    "region-encoder": "region-encoder",
}
NOTES = {
    "gmic-quick": "A GMIC at the quick scale, to start a chapter from.",
    "gmic-quick-half": "It has learned from small fields of view alone, one patch each: to be trained on "
    "with whole images in a chapter, not to be used as it is.",
    "region-encoder": f"It looks at fields of {WINDOW} x {WINDOW} canvas pixels ({WINDOW * 0.56:.1f} mm), "
    f"not at whole images, and turns each into {SMALL.widths[-1]} numbers.",
}
ENCODER_EXAMPLE = f"""from mammomil.weights import load_model

encoder = load_model("{{folder}}").model
codes = encoder.backbone(fields).mean((-2, -1))  # (n, 1, {WINDOW}, {WINDOW}) to (n, {SMALL.widths[-1]})"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the small models that chapters start from, on phantoms, and score them on others.

    Leaves OUT/warm-start.csv, .md and .png, and model folders in OUT/weights: gmic-quick, gmic-quick-half
    (stopped early on purpose) and region-encoder. Ctrl-C loses nothing; the same command goes on.
    """

    out: Path
    """Folder for phantoms, runs, tables and models."""
    exams: int = 1500
    """Phantoms of GMIC's second stage, four images each."""
    crowded: int = 1000
    """Phantoms with five more findings a breast, which fields of view are cut from."""
    validation: int = 100
    """Phantoms that choose which epoch of the second stage is kept."""
    test: int = 200
    """Phantoms of another seed, seen by nothing but the final figures."""
    seed: int = 0
    """Seed of phantoms and training."""
    conspicuity: float = 1.0
    """1 draws subtle lesions, as real ones are; 3 plain ones."""
    encoder_epochs: int = 4
    """Epochs of the region encoder, eight fields an image each."""
    fields_epochs: int = 4
    """Epochs of GMIC's first stage, on labelled fields of view; eight an image."""
    whole_epochs: int = 2
    """Epochs of GMIC's second stage, on whole images and image labels alone."""
    polish_epochs: int = 1
    """Epochs of its third stage: the second with a fifth of the learning rate."""
    birads_epochs: int = 0
    """Epochs of a BI-RADS classifier whose network GMIC's first stage starts from; 0 starts from nothing."""
    workers: int = 2
    """Processes that draw phantoms; on a GPU also those that load images."""

    def __post_init__(self):
        counts = [self.exams, self.crowded, self.validation, self.test]
        counts += [self.encoder_epochs, self.fields_epochs, self.whole_epochs, self.polish_epochs]
        if min(counts) < 1:
            raise ValueError("numbers of exams and epochs must be 1 or more.")
        if min(self.seed, self.birads_epochs, self.workers) < 0:
            raise ValueError("seed, birads_epochs and workers must be 0 or more.")


def run(config: Config) -> int:
    """Run what is not done yet of the experiment, and return an exit status: 0, 1 or 130.

    Raises:
        InputError: `config.out` holds an experiment with other settings, or cannot be written.
    """
    out = config.out
    keep_settings(config)
    phantoms = _draw(config)
    test = phantoms["test"]
    for training_run in _runs(config, phantoms):
        if _finished(training_run):
            continue
        print(f"Training {training_run.out.name}")
        if run_training(training_run).interrupted:
            print("Stopped; everything is saved. The same command goes on from here.")
            return 130
    if not (out / "warm-start.md").exists():  # written last
        scores = {
            name: evaluate_fields(out / "runs" / source / "model", test, WINDOW)
            if name == "region-encoder"
            else evaluate_model(out / "runs" / source / "model", test)
            for name, source in MODELS.items()
        }
        minutes = {name: _minutes(out, source, config) for name, source in MODELS.items()}
        scores = {name: score._replace(model=name) for name, score in scores.items()}
        for name, evaluation in scores.items():
            write_evaluation(evaluation, out / "scores" / name, command="experiment warm-start")
            _publish(config, name, evaluation)
        _write_tables(config, scores, minutes)
    print((out / "warm-start.md").read_text(encoding="utf-8"))
    print(f"models: {out / 'weights'}")
    return int(any(read_json(out / "scores" / name / "evaluation.json")["failures"] for name in MODELS))


def _draw(config: Config) -> dict[str, Path]:
    """Draw the phantoms that are not there yet; return the folder of each set: training, crowded, test."""
    from mammomil.phantom_set import write_phantoms

    sizes = {"training": config.exams + config.validation, "crowded": config.crowded, "test": config.test}
    seeds = {"training": TRAINING_SEED, "crowded": CROWDED_SEED, "test": TEST_SEED}
    held_out = {"training": config.validation / sizes["training"], "crowded": 0.0}
    folders = {name: config.out / "phantoms" / name for name in sizes}
    for name, exams in sizes.items():
        if (folders[name] / "splits").exists():
            continue
        if not (folders[name] / "index.csv").exists():
            print(f"Drawing {exams} synthetic exams (phantoms: no patient is in them)")
            seed, crowd = seeds[name] + config.seed, CROWD if name == "crowded" else 0
            write_phantoms(
                folders[name], exams, "quick", seed, config.conspicuity, workers=config.workers, crowd=crowd
            )
        if name in held_out:
            index = read_index(folders[name])
            shares = {"train": 1 - held_out[name], "val": held_out[name]}
            shares = {split: share for split, share in shares.items() if share}
            images = split_patients(index.images, shares, config.seed)
            write_index(index._replace(images=images), folders[name])
        (folders[name] / "splits").touch()
    return folders


def _runs(config: Config, phantoms: dict[str, Path]) -> list[ClassifierRun | GMICRun]:
    """Return the training runs in their order."""
    runs, seed = config.out / "runs", config.seed
    encoder = ClassifierRun(
        data=phantoms["crowded"],
        out=runs / "region-encoder",
        model=ClassifierConfig(SMALL, target="findings"),
        train=TrainConfig(epochs=config.encoder_epochs, batch_size=32, learning_rate=5e-4, seed=seed),
        preprocess=PreprocessConfig.quick(),
        fields=WINDOW,
    )
    fields = fields_stage(phantoms["crowded"], runs / "gmic-fields", seed, config.fields_epochs)
    whole = whole_stage(
        phantoms["training"],
        runs / "gmic-whole",
        runs / "gmic-fields" / "model",
        seed,
        config.whole_epochs,
    )
    polish = whole_stage(
        phantoms["training"], runs / "gmic-polish", runs / "gmic-whole" / "model", seed, config.polish_epochs
    )
    slow = dataclasses.replace(polish.train, learning_rate=polish.train.learning_rate / 5)
    polish = dataclasses.replace(polish, train=slow)
    planned: list[ClassifierRun | GMICRun] = [encoder]
    if config.birads_epochs:
        birads = preset("classifier", "quick", phantoms["training"], runs / "birads")
        train = dataclasses.replace(birads.train, epochs=config.birads_epochs, seed=seed)
        planned.append(dataclasses.replace(birads, train=train))
        fields = dataclasses.replace(fields, warm_start=runs / "birads" / "model")
    planned += [
        fields,
        whole,
        polish,
    ]
    return [_fitted(one, config) for one in planned]


def _fitted(run: Any, config: Config) -> Any:
    """Give a run the memory its images may need, and what a GPU needs to be kept busy."""
    import torch

    canvas = run.preprocess.height * run.preprocess.width
    memory_gb = (
        4 * max(config.exams, config.crowded) * canvas * (2 + 1 / 8) / 2**30 + 1
    )  # 16 bits and the mask's bit a pixel
    workers = config.workers if torch.cuda.is_available() else 0
    train = dataclasses.replace(run.train, workers=workers)
    cache = config.out / "cache"
    return dataclasses.replace(run, memory_gb=memory_gb, cache=cache, train=train, resume=True)


def _epochs(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _finished(run: ClassifierRun | GMICRun) -> bool:
    """Say whether all epochs of a run are done and, for whole images, its figures written."""
    judged = bool(run.fields) or (run.out / "result.json").exists()
    return len(_epochs(run.out)) >= run.train.epochs and judged


def _minutes(out: Path, source: str, config: Config) -> float:
    """Minutes of training behind a model, the stages before it included; drawing and scoring excluded."""
    stages = {
        "gmic-polish": ["birads", "gmic-fields", "gmic-whole", "gmic-polish"],
    }
    names = stages.get(source, [source])
    return sum(row["seconds"] for name in names for row in _epochs(out / "runs" / name)) / 60


def _publish(config: Config, name: str, evaluation: ModelEvaluation) -> None:
    """Copy a trained model to OUT/weights/NAME with its measured figures and no path of this machine."""
    model, preprocess, card = load_model(config.out / "runs" / MODELS[name] / "model")
    trained = dict(card["provenance"])
    settings = dict(trained.get("settings", {}))
    for key in ("data", "warm_start"):
        if settings.get(key):
            settings[key] = Path(os.path.relpath(settings[key], config.out)).as_posix()
    encoder = name == "region-encoder"
    what = "fields of test phantoms" if encoder else "test phantoms"
    figures = {}
    for finding, f in evaluation.findings.items():
        figures[f"AUC {finding}, {f.positive} of {f.known} {what}"] = with_interval(f.auc, f.auc_95ci)
        if f.region_hit is not None:
            figures[f"top region hits a {finding} lesion (IoM 0.5), {f.located} images"] = with_interval(
                f.region_hit, f.region_hit_95ci
            )
        if f.peak_hit is not None:
            figures[f"map of {finding} peaks in a lesion's box, {f.located} images"] = with_interval(
                f.peak_hit, f.peak_hit_95ci
            )
    facts = {
        **trained,
        "data": f"phantoms only (synthetic images, no patient is in them): {trained.get('data')}, "
        f"conspicuity {config.conspicuity:g}",
        "settings": settings,
        "figures": figures,
        "scored": provenance(command="experiment warm-start", test_seed=TEST_SEED + config.seed),
    }
    note = (
        f"**Phantoms only**: trained and measured on synthetic images, so its figures say nothing about real "
        f"mammograms. {NOTES[name]} In brackets 95 % intervals over patients."
    )
    folder = config.out / "weights" / name
    save_model(folder, model, preprocess, facts, note, ENCODER_EXAMPLE if encoder else EXAMPLE)


def _write_tables(config: Config, scores: dict[str, ModelEvaluation], minutes: dict[str, float]) -> None:
    """Write the figures as a table for machines, a picture, and last a table for people."""
    with atomic_path(config.out / "warm-start.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        names = [field.name for field in dataclasses.fields(FindingFigures)]
        flat = [c for n in names for c in ([f"{n[:-5]}_low", f"{n[:-5]}_high"] if n.endswith("ci") else [n])]
        table.writerow(["model", "finding", "images", "patients", *flat, "training_minutes"])
        for name, score in scores.items():
            for finding, figures in score.findings.items():
                values: list[Any] = []
                for field in names:
                    value = getattr(figures, field)
                    values += (value or (None, None)) if field.endswith("ci") else [value]
                start = [name, finding, score.images, score.patients]
                table.writerow([*start, *values, round(minutes[name], 2)])
    _draw_curves(scores, config.out / "warm-start.png")
    facts = provenance(settings=read_json(config.out / "config.json"))
    lines = [
        "# Warm-start models", "",
        f"Trained on {config.exams} phantom exams and scored on {config.test} others of another seed "
        f"(conspicuity {config.conspicuity:g}). Phantoms only: this says nothing about real mammograms.",
        "In brackets 95 % intervals over patients. The region encoder is scored on fields of "
        f"{WINDOW} x {WINDOW} pixels, half of which show a finding; the others on whole images.", "",
        "| model | finding | positive | AUC | images with lesion | top region hits (IoM 0.5) "
        "| map peaks in lesion | training minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, score in scores.items():
        for finding, f in score.findings.items():
            cells = [
                name, finding, f"{f.positive} of {f.known}", with_interval(f.auc, f.auc_95ci),
                str(f.located or "-"), with_interval(f.region_hit, f.region_hit_95ci),
                with_interval(f.peak_hit, f.peak_hit_95ci), f"{minutes[name]:.1f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    settings = ", ".join(f"{name} {value}" for name, value in facts["settings"].items())
    lines += [
        "", f"Settings: {settings}.", "",
        f"Commit {facts['commit']}; {versions}; {facts['device']}, {facts['threads']} threads; "
        f"{facts['date']}.",
        "", "![ROC curves](warm-start.png)", "",
    ]  # fmt: skip
    with atomic_path(config.out / "warm-start.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _draw_curves(scores: dict[str, ModelEvaluation], path: Path) -> None:
    """Draw a ROC curve per model, one axes per finding; models differ in colour and in dashes."""
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    from mammomil.plots import save_figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    styles: Sequence[tuple[str, str]] = (("#0072B2", "-"), ("#E69F00", "--"), ("#009E73", ":"))
    for ax, finding in zip(figure.subplots(1, 2), FINDINGS, strict=True):
        for (name, score), (colour, dashes) in zip(scores.items(), styles, strict=True):
            y, s = (np.array([row[c] for row in score.rows], float) for c in (finding, f"p_{finding}"))
            known = ~np.isnan(y)
            if (auc := score.findings[finding].auc) is None:  # one class only has no curve
                continue
            false, true, _ = roc_curve(y[known], s[known])
            kind = "fields" if name == "region-encoder" else "images"
            ax.plot(false, true, dashes, color=colour, label=f"{name} ({kind}), AUC {auc:.3f}")
        ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, label="chance")
        ax.set(title=finding, xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        ax.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)
