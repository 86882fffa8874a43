"""From an index to a trained model folder: what `mammomil train` does, and what chapters call."""

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from mammomil.backbones import build_classifier
from mammomil.cache import Canvases
from mammomil.codes import CodeDataset
from mammomil.dataset import BalancedSampler, FieldDataset, MammogramDataset, ShuffledSampler, collate
from mammomil.encoders import fingerprint
from mammomil.files import InputError, atomic_path, provenance, sha256, write_json
from mammomil.gmic import GMIC, build_gmic
from mammomil.index import Index, read_index, select, split_patients, subset
from mammomil.losses import ClassifierObjective
from mammomil.metrics import auc_score, bootstrap_ci
from mammomil.recipes import ClassifierRun, DualBranchRun, GMICRun, ImageRun, Run
from mammomil.region_data import RegionImageDataset, choose_annotated, collate_regions
from mammomil.region_model import RegionModel, build_region_model
from mammomil.runs import processes, same_everywhere, together
from mammomil.train import FitResult, fit
from mammomil.types import FINDINGS
from mammomil.validation import Evaluation, evaluate, own_share
from mammomil.weights import Model, load_backbone, load_encoder, load_model, load_state, save_model

FIELDS_PER_IMAGE = 8  # in an epoch


class _Plan(NamedTuple):
    """What a run trains, on what, and what is kept of it.

    Attributes:
        model: what is saved.
        part: of a model that was saved, what is trained and judged; a dual branch on codes is its head alone.
        objective: see `train.fit`.
        data: training images.
        sampler: draws them.
        judged: images of `val` and `test` that are judged.
        collate: makes batches of both.
        failures: (image_id, reason) of images that cannot be used.
        facts: what the results should say beside the settings.
        views: how the model's paper brings the views of a breast together.
    """

    model: Model
    part: Callable[[Any], nn.Module]
    objective: Any
    data: Dataset
    sampler: Any
    judged: dict[str, Any]
    collate: Callable[[list], Any]
    failures: list[tuple[str, str]]
    facts: dict[str, Any]
    views: Literal["mean", "max"] = "mean"


def run_training(
    run: Run, progress: bool = True, on_epoch: Callable[[dict[str, Any]], bool] | None = None
) -> FitResult:
    """Train as `run` says, and leave the best model in OUT/model with the figures of its test images.

    Files in OUT: those of `mammomil.train.fit`, `model/`, `predictions.csv` (validation and test images, by
    the best model), `result.json` (figures with intervals over patients), `failures.csv` (images left out).

    Args:
        run: what to train, on what, how.
        progress: show bars and figures.
        on_epoch: may end the run early, see `fit`.

    Raises:
        InputError: the index, the settings or the folder cannot be used.
    """
    state = processes()
    show = progress and state.is_main_process
    with together():
        index = _with_splits(read_index(run.data), run.train.seed)
        if isinstance(run, DualBranchRun):
            plan = _plan_regions(run, index, show)
        elif isinstance(run, ImageRun):
            plan = _plan_images(run, index, show)
        else:
            raise TypeError(f"no way to train a {type(run).__name__}")
    same_everywhere(
        {name for name, _ in plan.failures},
        f"{run.data}: some processes can read images that others cannot. Give all machines the same files.",
    )
    if state.is_main_process:
        _write_failures(run.out, plan.failures)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(run).items()
        if name not in ("out", "train", "cache", "codes", "memory_gb", "resume")
    }
    valid = plan.judged.get("val")

    def keep(_: Any, row: dict[str, Any], found: Evaluation | None) -> None:
        figures = {f"validation {name}": value for name, value in row.get("val", {}).items()}
        facts = provenance(
            data=_describe(index, run, plan.facts), index_sha256=sha256(_index_file(run.data)),
            seed=run.train.seed, processes=state.num_processes, epoch=row["epoch"], figures=figures,
            settings={**settings, "train": vars(run.train)}, **plan.facts,
        )  # fmt: skip
        save_model(run.out / "model", plan.model, run.preprocess, facts)

    result = fit(
        plan.part(plan.model), plan.objective, (plan.data, plan.sampler), valid, run.train, run.out,
        settings=settings, resume=run.resume, breast=None if valid is None else breast_codes(valid),
        views=plan.views, on_best=keep, on_epoch=on_epoch, collate=plan.collate, progress=progress,
    )  # fmt: skip
    if not result.interrupted and plan.judged:
        _judge(run, plan, progress)
    return result


def _plan_images(run: ImageRun, index: Index, progress: bool) -> _Plan:
    """Plan a run on whole images, or on fields of them."""
    if isinstance(run, GMICRun):
        model: Any = build_gmic(run.model, run.train.seed)
        objective: Any = run.objective
        if run.warm_start is not None:
            _warm_start(model, run.warm_start)
    elif isinstance(run, ClassifierRun):
        model = build_classifier(run.model, run.train.seed)
        if run.warm_start is not None:
            load_backbone(model, run.warm_start)
        objective = ClassifierObjective(run.model)
    train, sampler, failures = _training_data(index, run, progress)
    judged: dict[str, Any] = {}
    # Fields are a warm start, which whole images cannot judge: its last weights are kept.
    for split in () if run.fields else _judged_splits(index):
        judged[split] = MammogramDataset(
            subset(index, split), run.preprocess, cache=_cache(run), memory_limit=_memory(run)
        )
        failures += judged[split].prepare_all(progress, start=_own_place())
    return _Plan(model, _all_of_it, objective, train, sampler, judged, collate, failures, {})


def _plan_regions(run: DualBranchRun, index: Index, progress: bool) -> _Plan:
    """Plan a run of the dual branch: on codes, or end to end on pixels."""
    seed = run.train.seed
    model = build_region_model(run.model, seed)
    load_encoder(model.encoder)
    if run.warm_start is not None:
        source = load_model(run.warm_start).model
        if not isinstance(source, RegionModel):
            raise InputError(f"{run.warm_start}: no dual-branch network, so it cannot be started from.")
        load_state(model, source.state_dict(), run.warm_start / "weights.safetensors")
    device = processes().device
    model.to(device if device.type == "cuda" else "cpu")
    parts = {split: subset(index, split) for split in ("train", *_judged_splits(index))}
    annotated = choose_annotated(parts["train"], run.annotated, seed)
    data: dict[str, Any] = {}
    for split, part in parts.items():
        labelled, training = annotated if split == "train" else (), split == "train"
        if run.end_to_end:
            data[split] = RegionImageDataset(
                part, run.preprocess, run.model.windows, labelled, _cache(run), _memory(run),
                random_poses=training,
            )  # fmt: skip
        else:
            poses = run.poses if training else None
            codes = run.codes or run.out / "codes"
            data[split] = CodeDataset(part, run.preprocess, model, codes, labelled, poses, seed)
    failures = [failure for one in data.values() for failure in one.prepare_all(progress, start=_own_place())]
    train = data.pop("train")
    encoder = run.model.encoder
    facts = {
        "codes": {
            "encoder": encoder.kind,
            "weights": encoder.weights,
            "sha256": fingerprint(model.encoder),
            "windows": list(run.model.windows.sizes),
            "trained_too": run.end_to_end,
        },
        "annotated_images": len(annotated),
    }
    part = _all_of_it if run.end_to_end else _head_of_it
    sampler = ShuffledSampler(len(train), seed)
    return _Plan(model, part, run.objective, train, sampler, data, collate_regions, failures, facts, "max")


def _own_place() -> float:
    """Where in a table this process begins, so that several fill a cache together."""
    state = processes()
    return state.process_index / state.num_processes


def _all_of_it(model: Any) -> nn.Module:
    return model


def _head_of_it(model: RegionModel) -> nn.Module:
    return model.head


def _judged_splits(index: Index) -> list[str]:
    return [split for split in ("val", "test") if (index.images["split"] == split).any()]


def breast_codes(data: Canvases) -> np.ndarray:
    """Number the breasts of an exam, one code per row: the views of a breast share it; -1 where unknown."""
    images = data.images
    names = images["exam_id"] + "\t" + images["patient_id"] + "\t" + images["laterality"]
    _, codes = np.unique(names.to_numpy(str), return_inverse=True)
    return np.where(images["laterality"].to_numpy(str) == "", -1, codes)


def _with_splits(index: Index, seed: int) -> Index:
    """Split by patient where the index names no splits at all."""
    if (index.images["split"] != "").any():
        return index
    if processes().is_main_process:
        text = f"{index.root}: no splits in the index; splitting patients 60/20/20 with seed {seed}."
        print(text, file=sys.stderr)
    return index._replace(images=split_patients(index.images, seed=seed))


def _training_data(index: Index, run: ImageRun, progress: bool) -> tuple[Dataset, Any, list[tuple[str, str]]]:
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
    failures = data.prepare_all(progress, start=_own_place())
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


def _judge(run: Run, plan: _Plan, progress: bool) -> None:
    """Let the best model answer validation and test images, and write answers and figures."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    model = plan.part(load_model(run.out / "model").model)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    result: dict[str, Any] = {}
    lines: list[list[Any]] = []
    for split, data in plan.judged.items():
        loader = own_share(data, run.train.batch_size, plan.collate, accelerator)
        found = evaluate(model, plan.objective, loader, accelerator, breast_codes(data), plan.views)
        result[split] = {"images": len(data), **found.figures}
        if found.prob is None or not accelerator.is_main_process:
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
    write_json(run.out / "result.json", {**result, **plan.facts})
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


def _describe(index: Index, run: Run, facts: dict[str, Any]) -> str:
    """Say in a sentence what was trained on, and on which codes."""
    train = index.images[index.images["split"] == "train"]
    sources = ", ".join(sorted(set(train["source"]) - {""})) or "unnamed source"
    more = ""
    if isinstance(run, ImageRun) and run.fields:
        more = f", fields of {run.fields} pixels around findings"
    if isinstance(run, DualBranchRun) and run.annotated:
        more = f", {facts['annotated_images']} malignant ones with annotated regions"
    if codes := facts.get("codes"):
        more += f"; codes of {codes['windows']} pixel windows by {codes['encoder']} ({codes['sha256']})"
    return f"{len(train)} images of {train['patient_id'].nunique()} patients ({sources}){more}"


def _index_file(path: Path) -> Path:
    return path / "index.csv" if path.is_dir() else path
