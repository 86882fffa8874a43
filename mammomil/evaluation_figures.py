"""Figures of an evaluation beyond the table of findings: levels, FROC curves, maps, and pairs of models.

The questions are those of the dual-branch paper (checklist D25): M vs BN is told by p(malignant), MB vs N by
the larger of both probabilities; benign against the rest is their mirror.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mammomil.judging import ALPHA, CONTINUOUS, Interval, ModelEvaluation
from mammomil.metrics import (
    any_finding,
    auc_score,
    average_precision,
    bootstrap_ci,
    bootstrap_rows,
    brier_score,
    delong_test,
    expected_calibration_error,
    froc_curve,
    group_scores,
    mean_prf,
    mean_score,
    partial_auc_ratio,
    sensitivity_at_fppi,
    specificity_at_sensitivity,
)
from mammomil.types import FINDINGS

QUESTIONS = {"malignant": "M vs BN", "any": "MB vs N", "benign": "B vs MN"}
LEVELS = ("image", "breast", "exam")
FROC_RESAMPLES = 200  # a FROC curve takes longer than an area
VARIANTS = {  # what FPPI is divided by (reading A27), and what sensitivity is a share of (A28)
    "image, of classified": ("image", "classified"),
    "image, of all": ("image", "all"),
    "lesion, of classified": ("lesion", "classified"),
    "lesion, of all": ("lesion", "all"),
}


@dataclass(frozen=True)
class RankFigures:
    """How well probabilities answer a question at one level; None where the labels do not define a figure."""

    level: str
    """`image`, `breast` or `exam`."""
    question: str
    """A name in `QUESTIONS`."""
    known: int
    """Images, breasts or exams with a known label."""
    positive: int
    """Of these, those where the answer is yes."""
    auc: float | None
    """Area under the ROC curve."""
    auc_95ci: Interval | None
    """Its 95 % interval over patients."""
    average_precision: float | None
    """Area under the precision-recall curve."""
    partial_auc_ratio: float | None
    """Mean specificity where sensitivity is 0.8 or more (reading A24)."""
    specificity_at_85: float | None
    """Specificity where sensitivity is 0.85 or more (A25)."""
    specificity_at_90: float | None
    """Specificity where sensitivity is 0.90 or more."""
    brier: float | None
    """Mean squared distance of probabilities from labels."""
    calibration_error: float | None
    """Mean gap between probability and observed share, over ten bins."""


@dataclass(frozen=True)
class FrocFigures:
    """How many lesions regions hit at 1 false positive per image (checklist D27, readings A26 to A30)."""

    question: str
    """A name in `QUESTIONS`."""
    placed: int
    """Positive images with a placed lesion."""
    at_one_fppi: dict[str, tuple[float, Interval | None] | None]
    """Sensitivity at 1 FPPI and its interval, by a name in `VARIANTS`."""
    cut_below: float | None
    """Region score below which some image's regions are not listed; None where all that matter are."""
    whole_to_fppi: float | None
    """FPPI (of classified images) up to which the curve is whole; None where all of it is."""


@dataclass(frozen=True)
class MapFigures:
    """How well a finding's maps cover its masks (checklist G13), as means over images."""

    finding: str
    """A name in `FINDINGS`."""
    images: int
    """Images with a map whose lesions of the finding all have masks."""
    precision: float | None
    """Mean continuous precision."""
    recall: float | None
    """Mean continuous recall."""
    f1: float | None
    """Mean of the images' F1."""
    f1_95ci: Interval | None
    """Its interval."""


@dataclass(frozen=True)
class PairFigures:
    """Two models on the images that both have answered."""

    first: str
    """Name of a model."""
    second: str
    """Name of the other."""
    question: str
    """A name in `QUESTIONS`."""
    known: int
    """Images with a known label that both answered."""
    auc_first: float | None
    """AUC of the first."""
    auc_second: float | None
    """AUC of the second."""
    difference: float | None
    """First less second."""
    difference_95ci: Interval | None
    """Its interval over patients."""
    p: float | None
    """Of DeLong's paired test, which takes images for independent."""


class ModelFigures(NamedTuple):
    """All figures of one model beyond those of `ModelEvaluation.findings`."""

    ranks: list[RankFigures]
    froc: list[FrocFigures]
    maps: list[MapFigures]


class Level(NamedTuple):
    """Labels and probabilities (n, c) of images, breasts or exams, and their patients (n,)."""

    label: np.ndarray
    prob: np.ndarray
    patient: np.ndarray


def model_figures(evaluation: ModelEvaluation) -> ModelFigures:
    """Compute the figures of every level, question and finding."""
    ranks = []
    for level in LEVELS:
        here = level_scores(evaluation, level)
        for question in QUESTIONS:
            y, s = question_scores(here.label, here.prob, question)
            if level == "image" and question in evaluation.findings:  # was computed before
                interval = evaluation.findings[question].auc_95ci
            else:
                interval = bootstrap_ci(auc_score, y, s, here.patient)
            counts = int((~np.isnan(y)).sum()), int((y == 1).sum())
            figures = [auc_score(y, s), interval, average_precision(y, s), partial_auc_ratio(y, s)]
            figures += [specificity_at_sensitivity(y, s, at) for at in (0.85, 0.90)]
            figures += [brier_score(y, s), expected_calibration_error(y, s)]
            ranks.append(RankFigures(level, question, *counts, *figures))
    froc = [found for q in ("malignant", "any") if (found := _froc_figures(evaluation, q)) is not None]
    return ModelFigures(ranks, froc, [_map_figures(evaluation, finding) for finding in FINDINGS])


def level_scores(evaluation: ModelEvaluation, level: str) -> Level:
    """Bring the images of an evaluation to a level.

    A breast has the mean of its views, as GMIC's does, each view the mean of its images (checklist G12); of
    a model that ranks regions the largest (D26). An exam has the larger of its breasts. Images of unknown
    side are in no breast and no exam. Unknown labels are treated as `group_scores` does.

    Args:
        evaluation: of images.
        level: one of `LEVELS`.
    """
    rows = evaluation.rows if level == "image" else sided(evaluation)
    label = np.array([[row[f] for f in FINDINGS] for row in rows], float).reshape(-1, len(FINDINGS))
    prob = np.array([[row[f"p_{f}"] for f in FINDINGS] for row in rows], float).reshape(-1, len(FINDINGS))
    names = ("patient_id", "exam_id", "laterality", "view")
    keys = [tuple(row[name] for name in names) for row in rows]
    how = "max" if evaluation.ranks_regions else "mean"
    steps = {"image": (), "breast": ((4, how), (3, how)), "exam": ((4, how), (3, how), (2, "max"))}
    for length, rule in steps[level]:
        number = {key: n for n, key in enumerate(dict.fromkeys(key[:length] for key in keys))}
        groups = np.array([number[key[:length]] for key in keys], int)
        told = [group_scores(label[:, c], prob[:, c], groups, rule) for c in range(len(FINDINGS))]
        label, prob = (np.stack([columns[n] for columns in told], 1) for n in (0, 1))
        keys = list(number)
    return Level(label, prob, np.array([key[0] for key in keys], str))


def sided(evaluation: ModelEvaluation) -> list[dict[str, Any]]:
    """Return the rows of images whose side is known."""
    return [row for row in evaluation.rows if row.get("laterality") in ("L", "R")]


def question_scores(
    label: Float[np.ndarray, "n c"], prob: Float[np.ndarray, "n c"], question: str
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Return labels (NaN where unknown) and scores of a question of `QUESTIONS`."""
    if question == "any":
        return any_finding(label), prob.max(1, initial=0)
    c = FINDINGS.index(question)
    return label[:, c], prob[:, c]


def froc_images(evaluation: ModelEvaluation, question: str) -> list[dict[str, Any]]:
    """Return what `froc_curve` takes: for any finding, regions count by their larger score (reading A29)."""
    y, s = question_scores(*level_scores(evaluation, "image")[:2], question)
    images = []
    for label, score, place in zip(y, s, evaluation.places, strict=True):
        if question == "any":
            region, overlap = place.scores.max(1), place.iom
        else:
            c = FINDINGS.index(question)
            region, overlap = place.scores[:, c], place.iom[:, place.finding == c]
        images.append({"label": label, "score": score, "region_score": region, "iom": overlap})
    return images


def pair_figures(first: ModelEvaluation, second: ModelEvaluation) -> list[PairFigures]:
    """Compare two models at image level, on the images that both have answered."""
    others = {row["image_id"]: n for n, row in enumerate(second.rows)}
    both = [(n, others[row["image_id"]]) for n, row in enumerate(first.rows) if row["image_id"] in others]
    rows = np.array(both, int).reshape(-1, 2)
    one, two = (level_scores(e, "image") for e in (first, second))
    label, patient = one.label[rows[:, 0]], one.patient[rows[:, 0]]
    pairs = []
    for question in QUESTIONS:
        y, a = question_scores(label, one.prob[rows[:, 0]], question)
        b = question_scores(label, two.prob[rows[:, 1]], question)[1]
        test = delong_test(y, a, b)
        interval = bootstrap_rows(partial(_difference, y=y, a=a, b=b), patient)
        figures = (*test[:3], interval, test.p) if test else (None,) * 5
        known = int((~np.isnan(y)).sum())
        pairs.append(PairFigures(first.model, second.model, question, known, *figures))
    return pairs


def _difference(
    rows: np.ndarray, y: Float[np.ndarray, "n"], a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]
) -> float | None:
    test = delong_test(y[rows], a[rows], b[rows])
    return test and test.difference


def _froc_figures(evaluation: ModelEvaluation, question: str) -> FrocFigures | None:
    """Judge the regions; None where the model names none."""
    if not any(len(place.scores) for place in evaluation.places):
        return None
    images = froc_images(evaluation, question)
    patients, few = np.array([row["patient_id"] for row in evaluation.rows], str), _strongest(images)
    found: dict[str, tuple[float, Interval | None] | None] = {}
    for name, (per, over) in VARIANTS.items():
        statistic = partial(_at_one, images=images, few=few, per=per, fppi_over=over)
        value = statistic(np.arange(len(images)))
        interval = bootstrap_rows(statistic, patients, n_resamples=FROC_RESAMPLES)
        found[name] = None if value is None else (value, interval)
    placed = sum(bool(image["label"] == 1) and image["iom"].shape[1] > 0 for image in images)
    return FrocFigures(question, placed, found, *_cut(evaluation, images, question))


def _at_one(
    rows: np.ndarray, images: Sequence[dict[str, Any]], few: Sequence[dict[str, Any]], **settings: Any
) -> float | None:
    """Sensitivity at 1 FPPI of some of the images; `few` are the same with their strongest regions alone."""
    curve = froc_curve([few[n] for n in rows], ALPHA, **settings)
    if curve is not None and curve[1][-1] <= 1:  # weaker regions may be below 1 FPPI too
        curve = froc_curve([images[n] for n in rows], ALPHA, **settings)
    return curve and sensitivity_at_fppi(*curve[:2], 1.0)


def _strongest(images: Sequence[Mapping[str, Any]], mean: int = 4) -> list[dict[str, Any]]:
    """Keep the regions of the highest scores, so many per image in the mean."""
    scores = np.concatenate([image["region_score"] for image in images])
    spare = len(scores) - mean * len(images)
    least = np.partition(scores, spare)[spare] if spare > 0 else -np.inf
    kept = []
    for image in images:
        strong = image["region_score"] >= least
        kept.append({**image, "region_score": image["region_score"][strong], "iom": image["iom"][strong]})
    return kept


def _cut(
    evaluation: ModelEvaluation, images: Sequence[Mapping[str, Any]], question: str
) -> tuple[float | None, float | None]:
    """Say below which score, and from which FPPI on, a curve misses regions that were not listed."""
    columns = range(len(FINDINGS)) if question == "any" else [FINDINGS.index(question)]
    least = 0.0  # a score of 0 is no detection
    for place in evaluation.places:
        for c in columns:
            listed = place.scores[:, c][np.isfinite(place.scores[:, c])]
            if evaluation.listed is not None and len(listed) >= evaluation.listed:
                least = max(least, float(listed.min()))
    curve = froc_curve(images, ALPHA) if least else None
    if curve is None or curve[2][-1] > least:
        return None, None
    return least, float(curve[1][curve[2] > least][-1])


def _map_figures(evaluation: ModelEvaluation, finding: str) -> MapFigures:
    names = [f"{name}_{finding}" for name in CONTINUOUS]
    rows = [row for row in evaluation.rows if row.get(names[-1]) is not None]
    means = mean_prf([tuple(row[name] for name in names) for row in rows])
    f1 = np.array([row[names[-1]] for row in rows], float)
    interval = bootstrap_ci(mean_score, f1, f1, np.array([row["patient_id"] for row in rows], str))
    return MapFigures(finding, len(rows), *(means[:3] if means else (None,) * 3), interval)
