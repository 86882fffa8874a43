"""How well models do on the images of an index: who has a finding, and where it is, always together.

A model can tell who has a finding and look at the wrong place, or the other way round; neither figure stands
for the other. Answers come from a model, or from a folder that `mammomil predict` wrote; one path judges
both. All intervals are over patients.
"""

import csv
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from mammomil.files import InputError, atomic_path, provenance, write_json
from mammomil.index import Index, read_index, subset
from mammomil.items import Item, failure_reason, index_items
from mammomil.judging import FindingFigures, Interval, ModelEvaluation, judge_answer, judge_map, label_columns
from mammomil.metrics import auc_score, bootstrap_ci, mean_score
from mammomil.predicted import Predicted, read_predictions, with_map
from mammomil.predictor import Predictor, model_name
from mammomil.report import REGIONS_LISTED, Failure
from mammomil.types import FINDINGS, Prediction
from mammomil.weights import load_model

Split = Literal["train", "val", "test"]
FIELDS_PER_IMAGE = 8
_SAID = 20  # failures said on standard error; the report lists them all


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
    region that was retrieved first. Where all lesions of a finding have masks, the map is compared with
    them (`continuous_prf`).

    Args:
        model_folder: a GMIC, a dual-branch network, or a classifier of findings, which is judged by its
            probabilities alone.
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
    items, failures = list(index_items(index)), _Failures()
    answers = predictor.stream(items, failures.add)
    evaluation = _judge(predictor.name, answers, index, items, failures, mask_iom, progress)
    if not evaluation.rows:
        raise InputError(f"{index_path}: no image could be evaluated. The first: {failures[0].reason}")
    return evaluation


def evaluate_predictions(
    folder: str | Path,
    index_path: str | Path,
    split: Split | None = None,
    mask_iom: bool = False,
    progress: bool = True,
) -> list[ModelEvaluation]:
    """Compare predictions that were made before with what an index knows, as `evaluate_model` does.

    An image counts as failed where it has no usable row of a model, and a prediction where the index does not
    know its image; the rest goes on. Predictions of other splits are passed over.

    Args:
        folder: what `mammomil predict` wrote, see `predicted.read_predictions`. Images are told by image_id.
        index_path: an index.csv or its folder.
        split: judge the images of this split only; None is all.
        mask_iom: see `evaluate_model`.
        progress: show a bar.

    Returns:
        An evaluation per model, in the order of predictions.csv.

    Raises:
        InputError: the folder or the index cannot be used, or no prediction is of an image of the index.
    """
    whole = read_index(index_path)
    index = whole if split is None else subset(whole, split)
    items, known = list(index_items(index)), set(whole.images["image_id"])
    stored = read_predictions(folder)
    evaluations = []
    for model, predictions in stored.models.items():
        failures = _Failures()
        for image_id in (*predictions, *stored.faults[model]):
            if image_id not in known:
                place = Item(Path(folder, "predictions.csv"), image_id)
                failures.add(place, InputError(f"image {image_id!r} is not in the index {index_path}."))
        answers = _stored(folder, stored, model, items, failures)
        found = _judge(model, answers, index, items, failures, mask_iom, progress)
        evaluations.append(found._replace(listed=REGIONS_LISTED))
    if not any(evaluation.rows for evaluation in evaluations):
        raise InputError(
            f"{folder}: no prediction could be judged. The first: {evaluations[0].failures[0].reason}"
        )
    return evaluations


class _Failures(list[Failure]):
    """Images that could not be used, said on standard error as they come."""

    def add(self, item: Item, error: Exception) -> None:
        self.append(Failure(str(item.path), item.image_id, failure_reason(item, error)))
        if len(self) <= _SAID:
            tqdm.write(_printable(f"{item.path}: {self[-1].reason}"), file=sys.stderr)
        if len(self) == _SAID + 1:
            tqdm.write("and more, which the report lists (--out)", file=sys.stderr)


def _stored(
    folder: str | Path, stored: Predicted, model: str, items: Sequence[Item], failures: _Failures
) -> Iterator[Prediction]:
    """Give the stored predictions of images, in order, with their maps; what is not there has failed."""
    predictions, reasons = stored.models[model], {**stored.reasons, **stored.faults[model]}
    for item in items:
        try:
            if item.image_id not in predictions:
                absent = "has no row in predictions.csv. Predict it, or take it out of the index."
                raise InputError(reasons.get(item.image_id, absent))
            yield with_map(predictions[item.image_id], folder, len(stored.models))
        except InputError as error:
            failures.add(item, error)


def _judge(
    model: str,
    answers: Iterable[Prediction],
    index: Index,
    items: Sequence[Item],
    failures: _Failures,
    mask_iom: bool,
    progress: bool,
) -> ModelEvaluation:
    """Compare answers with what the index knows of their images."""
    by_id = {item.image_id: item for item in items}
    known = {row["image_id"]: row for row in index.images.to_dict("records")}
    found = index.findings
    lesions = {str(name): rows for name, rows in found.groupby("image_id")}
    rows, places, ranks = [], [], False
    for p in tqdm(answers, "Evaluating", len(items), disable=not progress, unit="image"):
        asked = known[p.image_id], lesions.get(p.image_id, found[:0]), index.root
        try:
            row, place = judge_answer(p, *asked, mask_iom)
        except InputError as error:  # a mask that cannot be read
            failures.add(by_id[p.image_id], error)
            continue
        try:
            row |= judge_map(p, *asked)
        except InputError as error:  # the image counts, its map does not
            failures.add(by_id[p.image_id], error)
        rows.append(row)
        places.append(place)
        ranks |= p.ranks_regions
    answered = found["image_id"].isin([row["image_id"] for row in rows])
    unplaced = found[answered & found["x0"].isna()]["finding"]
    counts = {name: int((unplaced == name).sum()) for name in FINDINGS}
    return _summed(model, rows, counts, failures)._replace(places=places, ranks_regions=ranks)


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
            rows.append({**row, "field": len(rows), **label_columns(label, p)})
    return _summed(predictor.name, rows, dict.fromkeys(FINDINGS, 0), failures)


def write_evaluation(evaluation: ModelEvaluation, out: str | Path, **facts: Any) -> None:
    """Write `evaluation.json` (figures, failures, provenance and `facts`) and `evaluation.csv` (images)."""
    write_rows(evaluation.rows, Path(out, "evaluation.csv"))
    content = {**evaluation_content(evaluation), "provenance": provenance(**facts)}
    write_json(Path(out, "evaluation.json"), content)


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the rows of evaluations as a table; a cell is empty where a row has none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def evaluation_content(evaluation: ModelEvaluation) -> dict[str, Any]:
    """Return the figures and failures of an evaluation as JSON can hold them."""
    return {
        "model": evaluation.model,
        "images": evaluation.images,
        "patients": evaluation.patients,
        "findings": {name: dataclasses.asdict(figures) for name, figures in evaluation.findings.items()},
        "failures": [failure._asdict() for failure in evaluation.failures],
    }


def evaluation_text(evaluation: ModelEvaluation) -> str:
    """Return the figures as a table for a terminal."""
    head = (
        f"{'finding':<11}{'positive':>12}  {'AUC':<22}{'located':>8}  {'top region hits':<22}map peaks in box"
    )
    lines = [
        f"{_printable(evaluation.model)}: {evaluation.images} images of {evaluation.patients} patients, "
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


def _printable(text: str) -> str:
    """Write out what a terminal could take for an order; names need not be printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def with_interval(value: float | None, interval: Interval | None) -> str:
    """Write a figure with its interval, such as `0.913 (0.880-0.941)`; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


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
