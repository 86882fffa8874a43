"""How well a model does on the images of an index: who has a finding, and where it is, always together.

A model can tell who has a finding and look at the wrong place, or the other way round; neither figure stands
for the other. All intervals are over patients.
"""

import csv
import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from tqdm.auto import tqdm

from mammomil.files import InputError, atomic_path, provenance, read_json, sha256, write_json
from mammomil.index import BOX, read_index, subset
from mammomil.items import Item, failure_reason, index_items
from mammomil.metrics import auc_score, bootstrap_ci, inside_any, map_peak, mean_score, top_region_iom
from mammomil.predictor import Predictor, model_name
from mammomil.regions import iom, iom_masks
from mammomil.report import Failure
from mammomil.types import FINDINGS, Prediction
from mammomil.weights import codes_of, load_model

Interval = tuple[float, float]
Split = Literal["train", "val", "test"]
ALPHA = 0.5  # a region hits a lesion from this IoM on (checklist D11, D27)
FIELDS_PER_IMAGE = 8


@dataclass(frozen=True)
class FindingFigures:
    """Figures of one finding. Shares and intervals are None where there is nothing to compute them from."""

    known: int
    """Images whose label is known."""
    positive: int
    """Of these, images with the finding."""
    auc: float | None
    """Area under the ROC curve over the images whose label is known."""
    auc_95ci: Interval | None
    """Its 95 % interval over patients, as of all shares here."""
    located: int = 0
    """Images with at least one placed lesion of the finding."""
    region_hit: float | None = None
    """Of these, the share whose top-ranked region hits such a lesion with IoM 0.5 or more."""
    region_hit_95ci: Interval | None = None
    """Interval of `region_hit`."""
    peak_hit: float | None = None
    """Of these, the share where the saliency map peaks in the box of such a lesion."""
    peak_hit_95ci: Interval | None = None
    """Interval of `peak_hit`."""
    tied_peaks: int = 0
    """Of these, images where several cells share the map's maximum; the mean of their places is its peak."""
    unplaced: int = 0
    """Lesions left out of all this because nobody noted their place."""


class ModelEvaluation(NamedTuple):
    """A model's figures on some images.

    Attributes:
        model: name of the model.
        images: images (or fields of view) that were answered.
        patients: their patients.
        findings: figures by finding.
        rows: per image its ids, labels, probabilities and hits; None where there is none.
        failures: images that could not be used.
    """

    model: str
    images: int
    patients: int
    findings: dict[str, FindingFigures]
    rows: list[dict[str, Any]]
    failures: list[Failure]


def evaluate_model(
    model_folder: str | Path,
    index_path: str | Path,
    split: Split | None = None,
    mask_iom: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> ModelEvaluation:
    """Predict the images of an index and compare the answers with what the index knows of them.

    Localisation is judged per image and finding: does the region with the largest `Prediction.scores` hit a
    lesion of that finding (IoM 0.5 or more, in pixels of the file), and does the map peak in a lesion's box?
    A lesion without a box can be neither hit nor missed; it is left out and counted. Equal scores go to the
    region that was retrieved first.

    Args:
        model_folder: a GMIC, or a classifier of findings, which is judged by its probabilities alone.
        index_path: an index.csv or its folder.
        split: judge the images of this split only; None is all.
        mask_iom: compare regions with the pixels of a lesion where the index names a mask, in place of its
            box.
        device: see `Predictor`.
        progress: show a bar.

    Raises:
        InputError: the model or the index cannot be used, or no image could be read.
    """
    index = read_index(index_path)
    index = index if split is None else subset(index, split)
    predictor = Predictor.from_pretrained(model_folder, device)
    failures: list[Failure] = []

    def fail(item: Item, error: Exception) -> None:
        failures.append(Failure(str(item.path), item.image_id, failure_reason(item, error)))
        tqdm.write(f"{item.path}: {failures[-1].reason}", file=sys.stderr)

    items = {item.image_id: item for item in index_items(index)}
    known = {row["image_id"]: row for row in index.images.to_dict("records")}
    found = index.findings
    lesions = {(str(i), str(f)): rows for (i, f), rows in found.groupby(["image_id", "finding"])}
    answers = predictor.stream(items.values(), fail)
    rows = []
    for prediction in tqdm(answers, "Evaluating", len(items), disable=not progress, unit="image"):
        image = known[prediction.image_id]
        row = {name: image[name] for name in ("image_id", "patient_id", "split")}
        row |= _labels([image[name] for name in FINDINGS], prediction.prob)
        try:
            for c, finding in enumerate(FINDINGS):
                here = lesions.get((prediction.image_id, finding), found[:0])
                placed = here[here["x0"].notna()]
                boxes = placed[BOX].to_numpy(float)
                masks = placed["mask"].to_list() if mask_iom else []
                overlap = _overlap(prediction.boxes, boxes, masks, index.root, image)
                row |= _places(prediction, c, boxes, overlap)
        except InputError as error:  # a mask that cannot be read
            fail(items[prediction.image_id], error)
            continue
        rows.append(row)
    if not rows:
        raise InputError(f"{index_path}: no image could be evaluated. The first: {failures[0].reason}")
    answered = found["image_id"].isin([row["image_id"] for row in rows])
    unplaced = found[answered & found["x0"].isna()]["finding"]
    return _summed(predictor.name, rows, {name: int((unplaced == name).sum()) for name in FINDINGS}, failures)


@torch.inference_mode()
def evaluate_fields(
    model_folder: str | Path,
    index_path: str | Path,
    size: int,
    split: Split | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ModelEvaluation:
    """Judge a classifier of small fields of view; there is nothing to locate in one.

    The fields are those of `FieldDataset`, eight per image and always the same: half of them show a finding.

    Args:
        model_folder: a classifier of findings, trained on fields.
        index_path: an index.csv or its folder; its findings need boxes.
        size: side of a field in canvas pixels.
        split: take the fields from this split only; None is all.
        device: `auto` is CUDA where there is one, else the CPU.
        progress: show a bar.

    Raises:
        InputError: the model or the index cannot be used.
    """
    from torch.utils.data import DataLoader

    from mammomil.dataset import FieldDataset, collate

    index = read_index(index_path)
    index = index if split is None else subset(index, split)
    model, preprocess, _ = load_model(model_folder)
    predictor = Predictor(model, preprocess, model_name(model_folder), device)  # it checks model and device
    data = FieldDataset(index, preprocess, size, FIELDS_PER_IMAGE * len(index.images))
    paths = {i: str(index.root / path) for i, path in index.images[["image_id", "path"]].to_numpy()}
    failures = []
    for i, reason in data.prepare_all(progress):
        failures.append(Failure(paths[i], i, reason.removeprefix(f"image {i}, {paths[i]}: ")))
        print(f"{paths[i]}: {failures[-1].reason}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for batch in tqdm(DataLoader(data, 64, collate_fn=collate), "Evaluating fields", disable=not progress):
        prob = predictor.model(batch.image.to(predictor.device)).y.cpu().numpy()
        for place, label, p in zip(batch.row.tolist(), batch.label.tolist(), prob, strict=True):
            image = data.images.iloc[place]
            row = {name: image[name] for name in ("image_id", "patient_id", "split")}
            rows.append({**row, "field": len(rows), **_labels(label, p)})
    return _summed(predictor.name, rows, dict.fromkeys(FINDINGS, 0), failures)


def write_evaluation(evaluation: ModelEvaluation, out: str | Path, **facts: Any) -> None:
    """Write `evaluation.json` (figures, failures, provenance and `facts`) and `evaluation.csv` (images)."""
    names = list(dict.fromkeys(name for row in evaluation.rows for name in row))
    with atomic_path(Path(out, "evaluation.csv")) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(evaluation.rows)
    content = {
        "model": evaluation.model,
        "images": evaluation.images,
        "patients": evaluation.patients,
        "findings": {name: dataclasses.asdict(figures) for name, figures in evaluation.findings.items()},
        "failures": [failure._asdict() for failure in evaluation.failures],
    }
    write_json(Path(out, "evaluation.json"), {**content, "provenance": provenance(**facts)})


def evaluation_text(evaluation: ModelEvaluation) -> str:
    """Return the figures as a table for a terminal."""
    head = (
        f"{'finding':<11}{'positive':>12}  {'AUC':<22}{'located':>8}  {'top region hits':<22}map peaks in box"
    )
    lines = [
        f"{evaluation.model}: {evaluation.images} images of {evaluation.patients} patients, "
        f"{len(evaluation.failures)} failed; in brackets 95 % intervals over patients",
        head,
    ]
    for name, f in evaluation.findings.items():
        count, auc = f"{f.positive} of {f.known}", with_interval(f.auc, f.auc_95ci)
        hit, peak = with_interval(f.region_hit, f.region_hit_95ci), with_interval(f.peak_hit, f.peak_hit_95ci)
        lines.append(f"{name:<11}{count:>12}  {auc:<22}{f.located:>8}  {hit:<22}{peak}")
        if f.unplaced:
            lines.append(f"  {f.unplaced} {name} lesions have no box and are left out of the places")
        if f.tied_peaks:
            lines.append(
                f"  {f.tied_peaks} maps of {name} have tied peaks; the mean of the tied cells is taken"
            )
    return "\n".join(lines)


def with_interval(value: float | None, interval: Interval | None) -> str:
    """Write a figure with its interval, such as `0.913 (0.880-0.941)`; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


def evaluate_to_folder(
    model_folder: str | Path,
    index_path: str | Path,
    split: Split | None = None,
    out: str | Path | None = None,
    mask_iom: bool = False,
) -> int:
    """Print a model's figures and write them to `out` if it is given; see `evaluate_model`.

    Returns:
        The exit status of a program: 0; 1 if an image failed.
    """
    evaluation = evaluate_model(model_folder, index_path, split, mask_iom)
    print(evaluation_text(evaluation))
    if out is not None:
        path = Path(index_path)
        write_evaluation(
            evaluation, out, command="evaluate", split=split, mask_iom=mask_iom,
            index_sha256=sha256(path / "index.csv" if path.is_dir() else path),
            weights_sha256=read_json(Path(model_folder) / "config.json").get("weights_sha256"),
            codes=codes_of(model_folder),
        )  # fmt: skip
    return int(bool(evaluation.failures))


def _labels(label: Sequence[float], prob: np.ndarray) -> dict[str, Any]:
    """Labels, None where unknown, and probabilities of an image, as columns."""
    columns = {name: None if math.isnan(y) else int(y) for name, y in zip(FINDINGS, label, strict=True)}
    return columns | {f"p_{name}": float(p) for name, p in zip(FINDINGS, prob, strict=True)}


def _places(prediction: Prediction, c: int, boxes: np.ndarray, overlap: np.ndarray) -> dict[str, Any]:
    """Say how a prediction's places for one finding meet its lesions, as columns; None where not asked."""
    best = top_region_iom(prediction.scores[:, c], overlap)
    peak = tied = None
    if len(boxes) and prediction.saliency is not None and prediction.map_box is not None:
        place, tied = map_peak(prediction.saliency[c], prediction.map_box)
        peak = int(inside_any(place, boxes))
    name = FINDINGS[c]
    return {
        f"lesions_{name}": len(boxes),
        f"iom_{name}": best,
        f"region_hit_{name}": None if best is None else int(best >= ALPHA),
        f"peak_hit_{name}": peak,
        f"tied_{name}": tied,
    }


def _overlap(
    regions: np.ndarray, boxes: np.ndarray, masks: Sequence[str], root: Path, image: dict[str, Any]
) -> Float[np.ndarray, "k n"]:
    """IoM of regions with lesions: with the mask of a lesion where a file is named, else with its box.

    Raises:
        InputError: a mask cannot be read, or is not as large as its image.
    """
    regions_ = torch.from_numpy(regions)
    shared = iom(regions_, torch.from_numpy(boxes))
    for n, name in enumerate(masks):
        if not name:
            continue
        try:
            with Image.open(root / name) as file:
                mask = torch.from_numpy(np.asarray(file) > 0)
        except OSError as error:
            raise InputError(f"{root / name}: cannot read this mask ({error}). Restore the file.") from error
        size = (image["height"], image["width"])
        if tuple(mask.shape) != size and not any(map(math.isnan, size)):
            raise InputError(
                f"{root / name}: the mask is {tuple(mask.shape)}, its image {size}. Give one of that size."
            )
        shared[:, n] = iom_masks(regions_, mask[None])[:, 0]
    return shared.numpy()


def _summed(
    model: str, rows: list[dict[str, Any]], unplaced: dict[str, int], failures: list[Failure]
) -> ModelEvaluation:
    """Turn columns of images into figures of findings."""

    def column(name: str) -> np.ndarray:
        return np.array([row.get(name) for row in rows], dtype=float)  # None becomes NaN

    patients = np.array([row["patient_id"] for row in rows])
    findings = {}
    for finding in FINDINGS:
        y, s = column(finding), column(f"p_{finding}")
        shares: dict[str, Any] = {}
        for name in ("region_hit", "peak_hit"):
            hit = column(f"{name}_{finding}")
            asked = ~np.isnan(hit)
            data = (hit[asked], hit[asked], patients[asked])
            shares[name] = mean_score(*data[:2])
            shares[f"{name}_95ci"] = bootstrap_ci(mean_score, *data)
        findings[finding] = FindingFigures(
            known=int((~np.isnan(y)).sum()),
            positive=int((y == 1).sum()),
            auc=auc_score(y, s),
            auc_95ci=bootstrap_ci(auc_score, y, s, patients),
            located=int((column(f"lesions_{finding}") > 0).sum()),
            tied_peaks=int((column(f"tied_{finding}") > 1).sum()),
            unplaced=unplaced[finding],
            **shares,
        )
    return ModelEvaluation(model, len(rows), len(set(patients)), findings, rows, failures)
