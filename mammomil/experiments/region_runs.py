"""Cross-validated dual-branch networks: the training runs and answers behind Table II and Figures 3, 5, 6."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mammomil.codes import CodeDataset
from mammomil.dual_branch import Method as Head
from mammomil.experiments.common import (
    Experiment,
    exam_index,
    index_key,
    keep_settings,
    train_once,
)
from mammomil.files import InputError, atomic_path
from mammomil.index import Index, read_index
from mammomil.losses import DualBranchObjective
from mammomil.metrics import (
    any_finding,
    auc_score,
    bootstrap_rows,
    froc_curve,
    partial_auc_ratio,
    sensitivity_at_fppi,
    specificity_at_sensitivity,
)
from mammomil.protocols import FoldSummary, mean_std, over_folds, write_folds
from mammomil.recipes import DualBranchRun, Scale, preset
from mammomil.region_data import RegionCanvases
from mammomil.region_model import build_region_model, pad_regions
from mammomil.regions import iom_masks
from mammomil.weights import load_encoder, load_model

Task = Literal["M vs BN", "MB vs N"]
TASKS: tuple[Task, ...] = ("M vs BN", "MB vs N")


class Method(NamedTuple):
    """A row of Table II: its name, the network, the share of annotated images, and whether Eq. 9 counts."""

    name: str
    head: Head
    annotated: float = 0.0
    detection: bool = True


WEAK = (
    Method("DB-Baseline", "db-baseline"),
    Method("Max-Region", "max-region"),
    Method("Cls-Det", "cls-det"),
    Method("Cls-Det-RS", "cls-det-rs"),
)
SEMI = (
    Method("SS-Cls-Det-RS .25", "cls-det-rs", 0.25),
    Method("SS-Baseline-RS .5", "cls-det-rs", 0.5, detection=False),
    Method("SS-Cls-Det-RS .5", "cls-det-rs", 0.5),
    Method("SS-Cls-Det-RS .75", "cls-det-rs", 0.75),
    Method("SS-Cls-Det-RS 1", "cls-det-rs", 1.0),
)
# Table II of the paper: AUROC, its deviation, pAUCR, its deviation, specificity at .85 and at .90.
PAPER: dict[tuple[Task, str], tuple[float, ...]] = {
    ("M vs BN", "DB-Baseline"): (0.709, 0.020, 0.251, 0.05, 0.37, 0.27),
    ("M vs BN", "Max-Region"): (0.699, 0.047, 0.235, 0.10, 0.36, 0.24),
    ("M vs BN", "Cls-Det"): (0.710, 0.026, 0.280, 0.06, 0.42, 0.31),
    ("M vs BN", "Cls-Det-RS"): (0.728, 0.036, 0.275, 0.10, 0.40, 0.27),
    ("M vs BN", "SS-Cls-Det-RS .25"): (0.731, 0.029, 0.305, 0.108, 0.40, 0.31),
    ("M vs BN", "SS-Baseline-RS .5"): (0.740, 0.022, 0.316, 0.126, 0.43, 0.30),
    ("M vs BN", "SS-Cls-Det-RS .5"): (0.745, 0.032, 0.313, 0.119, 0.46, 0.33),
    ("M vs BN", "SS-Cls-Det-RS .75"): (0.745, 0.026, 0.320, 0.109, 0.42, 0.33),
    ("M vs BN", "SS-Cls-Det-RS 1"): (0.751, 0.026, 0.316, 0.078, 0.47, 0.32),
    ("MB vs N", "DB-Baseline"): (0.826, 0.01, 0.347, 0.03, 0.51, 0.37),
    ("MB vs N", "Max-Region"): (0.817, 0.02, 0.323, 0.07, 0.48, 0.35),
    ("MB vs N", "Cls-Det"): (0.832, 0.02, 0.355, 0.06, 0.51, 0.36),
    ("MB vs N", "Cls-Det-RS"): (0.841, 0.02, 0.367, 0.05, 0.55, 0.38),
}
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "AUROC": auc_score,
    "pAUCR": partial_auc_ratio,
    "Spec@.85": lambda y, s: specificity_at_sensitivity(y, s, 0.85),
    "Spec@.90": lambda y, s: specificity_at_sensitivity(y, s, 0.90),
}


@dataclass(frozen=True, kw_only=True)
class RegionExperiment(Experiment):
    """What the experiments on the dual-branch network share."""

    folds: int = 5
    """Folds of patients (checklist D24)."""
    epochs: int = 40
    """Epochs of each training run."""
    patience: int = 0
    """Stop a run after so many epochs without a better figure; 0 trains them all. The best epoch is kept."""
    learning_rate: float = 2e-3
    """Of Adam; the paper's 1e-4 suits its larger data and batches."""
    monitor: str = "auc_malignant"
    """Validation figure that chooses the epoch (reading A20)."""
    resamples: int = 1000
    """Of the bootstrap over patients; a fifth of them where FROC curves are computed."""

    def __post_init__(self):
        super().__post_init__()
        if self.folds < 2 or min(self.epochs, self.resamples) < 1 or self.patience < 0:
            raise ValueError("folds must be 2 or more, epochs and resamples 1 or more, patience 0 or more.")


def scaled(config_class: type, scale: Scale) -> Any:
    """Return an experiment's defaults at a scale: the paper's training at `full` (checklist D20)."""
    if scale == "quick":
        return config_class()
    run = preset("dual-branch", "full", Path(), Path())
    chosen = ("epochs", "patience", "learning_rate")
    train = {name: getattr(run.train, name) for name in chosen}
    return config_class(scale=scale, exams=742, resamples=2000, **train)  # 2,968 images; the paper has 2,967


class Regions(NamedTuple):
    """Every image of an index as the dual branch sees it.

    Attributes:
        index: the images that could be used.
        label: (n, 2), 0, 1, or NaN.
        codes: per image (m, f).
        malignant: per image IoM of each region with each malignant lesion, pixel by pixel (m, l).
        benign: the same with each benign lesion.
    """

    index: Index
    label: Float[np.ndarray, "n c"]
    codes: list[Tensor]
    malignant: list[np.ndarray]
    benign: list[np.ndarray]

    def task_label(self, task: Task) -> Float[np.ndarray, "n"]:
        """Labels of one of the paper's two tasks (checklist D25)."""
        return self.label[:, 1] if task == "M vs BN" else any_finding(self.label)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each image."""
        return self.index.images["patient_id"].to_numpy(str)


class Answers(NamedTuple):
    """What a method says of every image by the model that has not seen its patient.

    Attributes:
        method: the row of Table II.
        prob: p of each finding.
        scores: per image d^c of each region (m, 2), Eq. 13.
        fold: fold of each image.
        runs: the training run of each fold.
        every: p of each finding by the model of each fold, of all images: those it was trained on too.
    """

    method: Method
    prob: Float[np.ndarray, "n c"]
    scores: list[np.ndarray]
    fold: Int[np.ndarray, "n"]
    runs: list[Path]
    every: Float[np.ndarray, "k n c"]

    def task_score(self, task: Task) -> Float[np.ndarray, "n"]:
        """Score of each image: p_M, or the larger of both (checklist D25)."""
        return self.prob[:, 1] if task == "M vs BN" else self.prob.max(1)


def load_regions(config: RegionExperiment, index_folder: Path) -> Regions:
    """Code the windows of all images and compare them with the lesions; both are kept in `config.work`."""
    run = preset("dual-branch", config.scale, index_folder, Path())
    index = read_index(index_folder)
    model = build_region_model(run.model, config.seed)
    load_encoder(model.encoder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = CodeDataset(index, run.preprocess, model, config.work / "codes")
    for name, reason in data.prepare_all():
        print(f"left out: {name}: {reason}")
    identity = [data.encoder_id, dataclasses.asdict(run.preprocess), dataclasses.asdict(run.model.windows)]
    key = hashlib.sha256(json.dumps([index_key(index_folder), *identity]).encode()).hexdigest()[:16]
    overlap = _overlaps(data, config.work / "overlaps" / f"{key}.npz")
    label = np.stack([data.label(row) for row in range(len(data.images))]).astype(float)
    codes = [data[row].codes for row in range(len(data))]
    return Regions(data.index, label, codes, *overlap)


def _overlaps(data: CodeDataset, entry: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """IoM of every window with malignant and with benign lesions, by mask where there is one (reading A9)."""
    names = data.images["image_id"].tolist()
    if entry.exists():
        with np.load(entry, allow_pickle=False) as kept:
            if kept["names"].tolist() == names:
                return tuple([kept[f"{f}_{i}"] for i in range(len(names))] for f in ("malignant", "benign"))
    canvases = RegionCanvases(data.index, data.preprocess, data.windows)
    malignant, benign = [], []
    for row in tqdm(range(len(names)), "Comparing windows with lesions", unit="image"):
        kind, shared = torch.zeros(0, dtype=torch.bool), np.zeros((len(data[row].codes), 0), np.float32)
        if len(canvases.findings_of(row)[0]):
            prepared = canvases.prepared(row)
            kind = canvases.findings_on_canvas(row, prepared).malignant
            boxes = canvases.look(row, prepared=prepared).boxes
            shared = iom_masks(boxes, canvases.masks_on_canvas(row, prepared)).numpy()
        malignant.append(shared[:, kind.numpy()])
        benign.append(shared[:, ~kind.numpy()])
    arrays = {f"malignant_{i}": a for i, a in enumerate(malignant)}
    arrays |= {f"benign_{i}": a for i, a in enumerate(benign)}
    with atomic_path(entry) as temporary:
        np.savez_compressed(temporary, names=np.array(names), **arrays)
    return malignant, benign


def fold_run(config: RegionExperiment, folder: Path, method: Method, fold: int) -> DualBranchRun:
    """Return the training run of a method in a fold; `fold` counts from 0."""
    run = preset("dual-branch", config.scale, folder, Path())
    train = dataclasses.replace(
        run.train, epochs=config.epochs, patience=config.patience, learning_rate=config.learning_rate,
        monitor=config.monitor, seed=config.seed, judge_training=fold == 0 and not method.annotated,
    )  # fmt: skip
    return dataclasses.replace(
        run, train=train, annotated=method.annotated, codes=config.work / "codes",
        model=dataclasses.replace(run.model, head=dataclasses.replace(run.model.head, method=method.head)),
        objective=DualBranchObjective(detection=method.detection),
    )  # fmt: skip


def fold_folders(config: RegionExperiment, index_folder: Path) -> list[Path]:
    """Write the index of each fold, or find it."""
    name = index_key(index_folder)[:8]
    out = config.work / "folds" / f"{name}-{config.folds}-{config.seed}"
    folders = [out / f"fold-{k + 1}" for k in range(config.folds)]
    if not all((folder / "index.csv").exists() for folder in folders):
        write_folds(read_index(index_folder), out, config.folds, config.seed)
    return folders


def run_methods(
    config: RegionExperiment, methods: Sequence[Method]
) -> tuple[Regions, list[Path], dict[str, Answers]]:
    """Do what every experiment on the dual branch begins with: settings, data, folds, and answers by name.

    Raises:
        Stopped: see `train_once`.
        InputError: the data or the folder cannot be used.
    """
    keep_settings(config)
    index_folder = exam_index(config)
    folders = fold_folders(config, index_folder)
    regions = load_regions(config, index_folder)
    return regions, folders, {m.name: cross_validate(config, regions, folders, m) for m in methods}


def cross_validate(
    config: RegionExperiment, regions: Regions, folders: Sequence[Path], method: Method
) -> Answers:
    """Train a method on every fold, unless that is done, and let each model answer all images.

    Raises:
        Stopped: see `train_once`.
    """
    names = regions.index.images["image_id"]
    fold, runs, every, scores = np.full(len(names), -1), [], [], {}
    for k, folder in enumerate(folders):
        label = f"{method.name.lower().replace(' ', '-').replace('.', '')}-fold{k + 1}"
        runs.append(train_once(fold_run(config, folder, method, k), config.work, label, progress=False))
        prob, evidence = answer(load_model(runs[-1] / "model").model.head, regions.codes)
        every.append(prob)
        images = read_index(folder).images.set_index("image_id")
        mine = (images["split"].reindex(names) == "test").to_numpy()
        fold[mine] = k
        scores |= {i: evidence[i] for i in np.flatnonzero(mine)}
    if (fold < 0).any():
        raise InputError(f"{folders[0].parent}: folds of other images. Delete this folder and run again.")
    prob = np.stack(every)[fold, np.arange(len(names))]
    return Answers(method, prob, [scores[i] for i in range(len(names))], fold, runs, np.stack(every))


@torch.inference_mode()
def answer(head: Any, codes: Sequence[Tensor]) -> tuple[Float[np.ndarray, "n c"], list[np.ndarray]]:
    """Let a head answer images of codes: probabilities and region scores."""
    prob, scores = [], []
    for start in range(0, len(codes), 64):
        part = list(codes[start : start + 64])
        padded, valid, _ = pad_regions(part)
        output = head.eval()(padded, valid)
        prob.append(output.y.double().numpy())
        scores += [s[: len(c)].double().numpy() for s, c in zip(output.scores, part, strict=True)]
    return np.concatenate(prob), scores


def froc_images(regions: Regions, answers: Answers, task: Task) -> list[dict[str, Any]]:
    """Say of each image what `froc_curve` asks (checklist D27; reading A29 for MB vs N)."""
    images = []
    label, score = regions.task_label(task), answers.task_score(task)
    for i, evidence in enumerate(answers.scores):
        iom, region_score = regions.malignant[i], evidence[:, 1]
        if task == "MB vs N":
            iom, region_score = np.concatenate([iom, regions.benign[i]], 1), evidence.max(1)
        images.append({"label": label[i], "score": score[i], "region_score": region_score, "iom": iom})
    return images


class TaskSummary(NamedTuple):
    """A method on a task: the four figures of Table II, and sensitivity at 1 FPPI (reading A30).

    Attributes:
        figures: by name, see `METRICS`.
        froc: sensitivity at 1 false positive per image by fold, mean, deviation, pooled, interval.
    """

    figures: dict[str, FoldSummary]
    froc: FoldSummary


def summarise(config: RegionExperiment, regions: Regions, answers: Answers, task: Task) -> TaskSummary:
    """Compute a row of Table II: over folds, and pooled with intervals over patients."""
    y, s = regions.task_label(task), answers.task_score(task)
    figures = {
        name: over_folds(metric, y, s, answers.fold, regions.patients, config.resamples, config.seed)
        for name, metric in METRICS.items()
    }
    images = froc_images(regions, answers, task)
    by_fold = [
        sensitivity_at_one([image for image, k in zip(images, answers.fold, strict=True) if k == fold])
        for fold in range(answers.fold.max() + 1)
    ]
    interval = bootstrap_froc(images, regions.patients, max(config.resamples // 5, 1), config.seed)
    return TaskSummary(figures, FoldSummary(*mean_std(by_fold), sensitivity_at_one(images), interval))


def sensitivity_at_one(images: Sequence[dict[str, Any]]) -> float | None:
    """Sensitivity at 1 false positive per image, gated at a sensitivity of .85."""
    curve = froc_curve(images)
    return None if curve is None else sensitivity_at_fppi(curve[0], curve[1], 1.0)


def bootstrap_froc(
    images: Sequence[dict[str, Any]], patients: np.ndarray, n_resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % interval of `sensitivity_at_one` over patients."""
    return bootstrap_rows(
        lambda rows: sensitivity_at_one([images[i] for i in rows]),
        patients,
        n_resamples=n_resamples,
        seed=seed,
    )
