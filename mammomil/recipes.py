"""From an index to a trained model folder: what `mammomil train` does, and what chapters call."""

import csv
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from mammomil.augment import AugmentConfig
from mammomil.backbones import ClassifierConfig, ImageClassifier, build_classifier
from mammomil.dataset import BalancedSampler, FieldDataset, MammogramDataset, ShuffledSampler, collate
from mammomil.files import InputError, atomic_path, provenance, sha256, write_json
from mammomil.gmic import GMIC, GMICConfig, build_gmic
from mammomil.index import Index, read_index, select, split_patients, subset
from mammomil.losses import ClassifierObjective, GMICObjective
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.preprocess import PreprocessConfig
from mammomil.train import Evaluation, FitResult, TrainConfig, evaluate, fit
from mammomil.types import FINDINGS
from mammomil.weights import load_backbone, load_model, save_model

Scale = Literal["quick", "full"]
FIELDS_PER_IMAGE = 8  # in an epoch
FIELD = 64  # pixels: small fields of view learn in minutes what whole images learn in hours


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every kind of training needs to know."""

    data: Path
    """The index.csv of the images, or its folder."""
    out: Path
    """The run folder; the trained model will be in OUT/model."""
    scale: Scale = "quick"
    """Sets the defaults of everything below: `quick` fits two CPU cores; `full` is the paper's size, for a
    GPU."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """How files become images of one size."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training images."""
    fields: int = 0
    """Train on labelled fields of this many pixels around findings, not on whole images; 0 is off. A warm
    start for phantoms, whose findings have boxes: it uses more than image labels."""
    cache: Path | None = None
    """Folder for prepared images. By default memory at the quick scale, OUT/cache at the full one."""
    memory_gb: float = 1.0
    """Memory in GiB that each split's prepared images may take where there is no cache; 1 holds about 8,000
    of the quick scale. Images beyond it are prepared anew each time they are drawn, which is slow."""
    resume: bool = False
    """Continue the run in OUT, if it has begun."""


@dataclass(frozen=True, kw_only=True)
class GMICRun(Run):
    """Train a GMIC from image labels."""

    model: GMICConfig = GMICConfig()
    """The network."""
    objective: GMICObjective = GMICObjective()
    """The loss, Eq. 1 of the paper."""
    warm_start: Path | None = None
    """A model folder to start from: all weights of a GMIC, or the global network of a classifier."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(Run):
    """Train a plain classifier: the BI-RADS pre-training of GMIC's global network, or Table 1's baseline."""

    model: ClassifierConfig = ClassifierConfig()
    """The network."""


def preset(kind: Literal["gmic", "classifier"], scale: Scale, data: Path, out: Path) -> Any:
    """Return a run with the settings of a scale: `full` is the paper's, `quick` fits two CPU cores."""
    quick = scale == "quick"
    shared = {
        "data": data,
        "out": out,
        "scale": scale,
        "preprocess": PreprocessConfig.quick() if quick else PreprocessConfig(),
    }
    train = TrainConfig(epochs=30, learning_rate=5e-4) if quick else TrainConfig(batch_size=4, workers=4)
    model = GMICConfig.quick() if quick else GMICConfig.full()
    if kind == "gmic":
        return GMICRun(**shared, model=model, train=train)
    train = dataclasses.replace(train, monitor="loss")
    return ClassifierRun(**shared, model=ClassifierConfig(model.backbone), train=train)


def fields_stage(index: Path, out: Path, seed: int, epochs: int = 4) -> GMICRun:
    """Return the first of two stages on phantoms at the quick scale: fields of view with a label each.

    Phantoms can label fields, screening data cannot: there BI-RADS pre-training takes the place of this.
    """
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(run.train, epochs=epochs, batch_size=32, learning_rate=1e-3, seed=seed)
    # A field's map has a seventeenth of the cells of an image's: a larger share of it is lesion, and one
    # patch covers a quarter of it.
    mil = dataclasses.replace(run.model.mil, num_patches=1)
    model = dataclasses.replace(run.model, top_t=0.1, mil=mil)
    objective = GMICObjective(weight=1e-6)
    return dataclasses.replace(run, fields=FIELD, model=model, objective=objective, train=train, resume=True)


def whole_stage(index: Path, out: Path, warm_start: Path, seed: int, epochs: int = 3) -> GMICRun:
    """Return the second stage, from the first one's model: whole images and their image labels alone."""
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(run.train, epochs=epochs, learning_rate=2e-4, seed=seed)
    model = dataclasses.replace(run.model, top_t=0.02)
    objective = GMICObjective(weight=1e-5)
    return dataclasses.replace(
        run, warm_start=warm_start, model=model, objective=objective, train=train, resume=True
    )


def run_training(run: Run, progress: bool = True) -> FitResult:
    """Train as `run` says, and leave the best model in OUT/model with the figures of its test images.

    Files in OUT: those of `mammomil.train.fit`, `model/`, `predictions.csv` (validation and test images, by
    the best model), `result.json` (figures with intervals over patients), `failures.csv` (images left out).

    Raises:
        InputError: the index, the settings or the folder cannot be used.
    """
    index = _with_splits(read_index(run.data), run.train.seed)
    if isinstance(run, GMICRun):
        model: GMIC | ImageClassifier = build_gmic(run.model, run.train.seed)
        objective: Any = run.objective
        if run.warm_start is not None:
            _warm_start(model, run.warm_start)
    else:
        model = build_classifier(run.model, run.train.seed)
        objective = ClassifierObjective(run.model)
    train, sampler, failures = _training_data(index, run, progress)
    judged: dict[str, MammogramDataset] = {}
    # Fields are a warm start, which whole images cannot judge: its last weights are kept.
    for split in () if run.fields else ("val", "test"):
        if (index.images["split"] == split).any():
            judged[split] = MammogramDataset(
                subset(index, split), run.preprocess, cache=_cache(run), memory_limit=_memory(run)
            )
            failures += judged[split].prepare_all(progress)
    _write_failures(run.out, failures)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(run).items()
        if name not in ("out", "train", "cache", "memory_gb", "resume")
    }
    valid = judged.get("val")

    def keep(best: Any, row: dict[str, Any], found: Evaluation | None) -> None:
        figures = {f"validation {name}": value for name, value in row.get("val", {}).items()}
        save_model(
            run.out / "model",
            best,
            run.preprocess,
            provenance(
                data=_describe(index, run), index_sha256=sha256(_index_file(run.data)), seed=run.train.seed,
                epoch=row["epoch"], figures=figures, settings={**settings, "train": vars(run.train)},
            ),
        )  # fmt: skip

    result = fit(
        model, objective, (train, sampler), valid, run.train, run.out, settings=settings, resume=run.resume,
        breast=None if valid is None else breast_codes(valid), on_best=keep, progress=progress,
    )  # fmt: skip
    if not result.interrupted and judged:
        _judge(run, objective, judged, progress)
    return result


def breast_codes(data: MammogramDataset) -> np.ndarray:
    """Number the breasts of an exam, one code per row: the views of a breast share it; -1 where unknown."""
    images = data.images
    names = images["exam_id"] + "\t" + images["patient_id"] + "\t" + images["laterality"]
    _, codes = np.unique(names.to_numpy(str), return_inverse=True)
    return np.where(images["laterality"].to_numpy(str) == "", -1, codes)


def _with_splits(index: Index, seed: int) -> Index:
    """Split by patient where the index names no splits at all."""
    if (index.images["split"] != "").any():
        return index
    print(
        f"{index.root}: no splits in the index; splitting patients 60/20/20 with seed {seed}.",
        file=sys.stderr,
    )
    return index._replace(images=split_patients(index.images, seed=seed))


def _training_data(index: Index, run: Run, progress: bool) -> tuple[Dataset, Any, list[tuple[str, str]]]:
    """Return the training images, their sampler and the images that cannot be used."""
    chosen = subset(index, "train")
    if isinstance(run, ClassifierRun) and run.model.target == "birads":
        keep = chosen.images["birads"].str[:1].isin([str(category) for category in run.model.birads])
        if not keep.any():
            wanted = ", ".join(map(str, run.model.birads))
            raise InputError(f"{run.data}: no training image has one of the BI-RADS categories {wanted}.")
        chosen = select(chosen, keep)
    if run.fields:
        data: Any = FieldDataset(
            chosen,
            run.preprocess,
            run.fields,
            length=FIELDS_PER_IMAGE * len(chosen.images),
            augment=run.augment,
            cache=_cache(run),
            memory_limit=_memory(run),
        )
    else:
        data = MammogramDataset(chosen, run.preprocess, run.augment, _cache(run), _memory(run))
    failures = data.prepare_all(progress)
    if isinstance(run, GMICRun) and not run.fields:
        return data, BalancedSampler(data.images, run.train.seed), failures
    return data, ShuffledSampler(len(data), run.train.seed), failures


def _cache(run: Run) -> Path | None:
    """Return the folder for prepared images: one canvas of the full scale takes 11 MB."""
    large = run.preprocess.height * run.preprocess.width > 1_000_000
    return run.cache or (run.out / "cache" if large else None)


def _memory(run: Run) -> int:
    """Return the limit in bytes that each set of images of a run may keep in memory."""
    return int(run.memory_gb * 2**30)


def _warm_start(model: GMIC, folder: Path) -> None:
    """Copy all weights of a GMIC of the same shape, or the global network of a classifier."""
    source = load_model(folder).model.state_dict()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if shapes == {name: value.shape for name, value in source.items()}:
        model.load_state_dict(source)
    else:
        load_backbone(model, folder)


def _judge(run: Run, objective: Any, judged: dict[str, MammogramDataset], progress: bool) -> None:
    """Let the best model answer validation and test images, and write answers and figures."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator()
    model = accelerator.prepare(load_model(run.out / "model").model)
    result: dict[str, Any] = {}
    lines: list[list[Any]] = []
    for split, data in judged.items():
        loader = accelerator.prepare(DataLoader(data, run.train.batch_size, collate_fn=collate))
        found = evaluate(model, objective, loader, accelerator, breast_codes(data))
        result[split] = {"images": len(data), **found.figures}
        if found.prob is None:
            continue
        patients = data.images["patient_id"].to_numpy(str)[found.row]
        for c, finding in enumerate(FINDINGS):
            y, s = found.label[:, c].astype(float), found.prob[:, c].astype(float)
            interval = bootstrap_ci(auc_score, y, s, patients)
            result[split][f"auc_{finding}_95ci"] = interval
        for row, label, prob in zip(found.row, found.label, found.prob, strict=True):
            name = data.images["image_id"].iloc[row]
            lines.append([name, split, *("" if np.isnan(v) else int(v) for v in label), *map(float, prob)])
    if not accelerator.is_main_process:
        return
    write_json(run.out / "result.json", result)
    with atomic_path(run.out / "predictions.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "split", *FINDINGS, *(f"p_{name}" for name in FINDINGS)])
        table.writerows(lines)
    if progress:
        print(_result_text(result))


def _result_text(result: dict[str, Any]) -> str:
    """Return the figures of a run as a person reads them."""
    lines = []
    for split, figures in result.items():
        lines.append(f"{split}: {figures['images']} images, loss {figures['loss']:.3f}")
        for name, value in figures.items():
            if name.startswith("auc") and not name.endswith("ci") and value is not None:
                interval = figures.get(f"{name}_95ci")
                text = (
                    f" (95 % interval over patients {interval[0]:.3f} to {interval[1]:.3f})"
                    if interval
                    else ""
                )
                lines.append(f"  {name} {value:.3f}{text}")
    return "\n".join(lines)


def _write_failures(out: Path, failures: list[tuple[str, str]]) -> None:
    with atomic_path(out / "failures.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "reason"])
        table.writerows(failures)
    for name, reason in failures:
        print(f"left out: {name}: {reason}", file=sys.stderr)


def _describe(index: Index, run: Run) -> str:
    """Say in a sentence what was trained on."""
    train = index.images[index.images["split"] == "train"]
    sources = ", ".join(sorted(set(train["source"]) - {""})) or "unnamed source"
    fields = f", fields of {run.fields} pixels around findings" if run.fields else ""
    return f"{len(train)} images of {train['patient_id'].nunique()} patients ({sources}){fields}"


def _index_file(path: Path) -> Path:
    return path / "index.csv" if path.is_dir() else path
