"""GMIC runs and answers that several experiments share: training, ablations at test time, breasts, maps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mammomil.backbones import ClassifierConfig
from mammomil.dataset import MammogramDataset, collate
from mammomil.gmic import GMIC, ablate
from mammomil.jobs import breast_codes
from mammomil.metrics import continuous_prf, group_scores
from mammomil.recipes import ClassifierRun, GMICRun, preset, whole_stage
from mammomil.types import FINDINGS
from mammomil.weights import SHIPPED, load_model

SHARES = {"train": 0.5, "val": 0.15, "test": 0.35}  # of the patients, where an index names no splits


def gmic_run(config: Any, index: Path, seed: int, ablation: str = "gmic") -> GMICRun:
    """Return the training run of GMIC, or of one of its ablations, for experiments with these options."""
    start = start_of(config)
    if config.scale == "quick" and start is not None:
        run = whole_stage(index, Path(), start, seed, config.epochs)
    else:
        run = preset("gmic", config.scale, index, Path())
        train = dataclasses.replace(run.train, epochs=config.epochs, seed=seed)
        run = dataclasses.replace(run, train=train, warm_start=start)
    return dataclasses.replace(run, model=ablate(run.model, ablation), memory_gb=4.0)


def start_of(config: Any) -> Path | None:
    """Return the model that training starts from."""
    shipped = SHIPPED / "weights" / "gmic-quick-half"
    if config.warm_start is not None or config.scale == "full" or not shipped.is_dir():
        return config.warm_start
    return shipped


def baseline_run(config: Any, index: Path, seed: int) -> ClassifierRun:
    """Return the run of ResNet-22, GMIC's global network with an average over the image, same start."""
    gmic = gmic_run(config, index, seed)
    run = preset("classifier", config.scale, index, Path())
    model = ClassifierConfig(gmic.model.backbone, target="findings")
    train = dataclasses.replace(gmic.train, monitor="auc_malignant")
    return dataclasses.replace(
        run, model=model, train=train, augment=gmic.augment, warm_start=gmic.warm_start, memory_gb=4.0
    )


@torch.inference_mode()
def answers(model: Any, data: MammogramDataset, seed: int = 0) -> dict[str, Float[np.ndarray, "n c"]]:
    """Let a model answer all images: GMIC with parts of it switched off, a classifier as ResNet-22.

    The rows of Table 1 come from the three ways to choose and weigh patches, with the same weights.

    Args:
        model: a GMIC or a classifier of findings.
        data: the images.
        seed: of the random patches.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    found: dict[str, list[np.ndarray]] = {}
    config = getattr(model, "config", None)
    generator = torch.Generator(device).manual_seed(seed)
    for batch in tqdm(DataLoader(data, 8, collate_fn=collate), "Judging", leave=False, unit="batch"):
        image = batch.image.to(device)
        if not isinstance(model, GMIC):
            given = {"ResNet-22": model(image).y}
        else:
            plain = model(image)
            given = {"GMIC": plain.y, "GMIC-loc": plain.y_loc, "GMIC-mil": plain.y_mil}
            try:
                model.config = ablate(config, "noattn")
                given["GMIC-noattn"] = model(image).y
                model.config = ablate(config, "loc-random")
                blind = model(image, generator)
                given |= {"GMIC-random": blind.y_mil, "GMIC-loc-random": (blind.y_loc + blind.y_mil) / 2}
            finally:
                model.config = config
        for name, value in given.items():
            found.setdefault(name, []).append(value.double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


class Breasts(NamedTuple):
    """Breasts of a finding: labels, how to bring the scores of images to breasts, and patients."""

    label: Float[np.ndarray, "n"]
    scores: Callable[[np.ndarray], np.ndarray]
    patients: np.ndarray


def breasts_of(data: MammogramDataset, finding: str) -> Breasts:
    """Bring the views of each breast together by their mean (checklist G12); unknown sides stay images."""
    codes = breast_codes(data)
    codes = np.where(codes < 0, codes.max() + 1 + np.arange(len(codes)), codes)
    y = np.array([data.label(row)[FINDINGS.index(finding)] for row in range(len(codes))], float)
    label, _, names = group_scores(y, np.zeros(len(y)), codes, "mean")
    first = {code: row for row, code in reversed(list(enumerate(codes)))}
    patients = data.images["patient_id"].to_numpy(str)[[first[code] for code in names]]
    return Breasts(label, lambda s: group_scores(y, s, codes, "mean")[1], patients)


def map_overlap(
    folder: Path, data: MammogramDataset, finding: str
) -> list[tuple[float, float, float] | None]:
    """Continuous precision, recall and F1 of each image that has the finding marked (checklist G13)."""
    model = load_model(folder).model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, c, rows = model.to(device).eval(), FINDINGS.index(finding), []
    for row in range(len(data)):
        if not len(data.findings_of(row)[0]):
            continue
        prepared = data.prepared(row)
        mine = data.findings_on_canvas(row, prepared).malignant == (finding == "malignant")
        if not mine.any():
            continue
        mask = data.masks_on_canvas(row, prepared)[mine].any(0).numpy()
        with torch.inference_mode():
            saliency = model(torch.from_numpy(prepared.image)[None, None].to(device)).saliency[0, c]
        rows.append(continuous_prf(saliency.double().cpu().numpy(), mask))
    return rows
