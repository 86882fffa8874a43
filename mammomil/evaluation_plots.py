"""The pictures of an evaluation's page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mammomil.displays import (
    FrocDisplay,
    ProbabilityPlaneDisplay,
    ReliabilityDisplay,
    RocDisplay,
    figure_alt,
)
from mammomil.evaluation_figures import (
    QUESTIONS,
    ModelFigures,
    froc_images,
    level_scores,
    question_scores,
)
from mammomil.judging import ModelEvaluation
from mammomil.plots import save_figure
from mammomil.types import FINDINGS


class Shown(NamedTuple):
    """A picture of the page.

    Attributes:
        path: its file, relative to the page.
        size: width and height in pixels.
        alt: what it shows, in words.
        title: its title.
        kind: which part of the page tells how to read it: `roc`, `froc`, `plane` or `reliability`.
    """

    path: str
    size: tuple[int, int]
    alt: str
    title: str
    kind: str


def draw_model(evaluation: ModelEvaluation, figures: ModelFigures, out: str | Path, name: str) -> list[Shown]:
    """Draw ROC curves of images and breasts, FROC curves, the probability plane and reliability curves.

    What labels or regions do not define is left out.

    Args:
        evaluation: of one model.
        figures: its figures.
        out: folder of the page; the files are written to its `figures/`.
        name: start of their names.
    """
    label, prob, _ = image = level_scores(evaluation, "image")
    drawn: list[tuple[str, str, list[Any]]] = []  # title, kind, displays
    for level, here in (("image", image), ("breast", level_scores(evaluation, "breast"))):
        curves = []
        for ranks in figures.ranks:
            if ranks.level == level and ranks.auc is not None:
                scores = question_scores(here.label, here.prob, ranks.question)
                words = QUESTIONS[ranks.question]
                curves.append(RocDisplay.from_predictions(*scores, min_sensitivity=0.8, name=words))
                curves[-1].interval = ranks.auc_95ci
        drawn.append((f"ROC curves, {level} level", f"roc-{level}", curves))
    curves = [
        FrocDisplay.from_predictions(froc_images(evaluation, froc.question), name=QUESTIONS[froc.question])
        for froc in figures.froc
    ]
    drawn.append(("FROC curves", "froc", curves))
    if (~np.isnan(label).any(1)).any():
        tau = {q: _threshold(*question_scores(label, prob, q)) for q in ("malignant", "any")}
        tau = {question: value for question, value in tau.items() if value is not None}
        plane = ProbabilityPlaneDisplay.from_predictions(prob, label, thresholds=tau)
        drawn.append(("Probability plane", "plane", [plane]))
    curves = [
        ReliabilityDisplay.from_predictions(label[:, c], prob[:, c], name=finding)
        for c, finding in enumerate(FINDINGS)
        if not np.isnan(label[:, c]).all()
    ]
    drawn.append(("Reliability", "reliability", curves))
    return [_draw(curves, title, out, f"{name}-{kind}") for title, kind, curves in drawn if curves]


def draw_models(evaluations: Sequence[ModelEvaluation], out: str | Path) -> list[Shown]:
    """Draw the ROC curves of several models, at image level, together; see `draw_model`."""
    shown = []
    for question in ("malignant", "any"):
        curves = [
            RocDisplay.from_predictions(
                *question_scores(*level_scores(evaluation, "image")[:2], question), name=evaluation.model
            )
            for evaluation in evaluations
        ]
        shown.append(_draw(curves, f"{QUESTIONS[question]}, image level", out, f"models-roc-{question}"))
    return shown


def _draw(displays: Sequence[Any], title: str, out: str | Path, name: str) -> Shown:
    """Draw displays on the same axes and save them."""
    displays[0].plot()
    for display in displays[1:]:
        display.plot(displays[0].ax_)
    path = f"figures/{name}.png"
    size = save_figure(displays[0].figure_, Path(out, path))
    kind = next(part for part in name.split("-") if part in ("roc", "froc", "plane", "reliability"))
    return Shown(path, size, figure_alt(*displays, title=title), title, kind)


def _threshold(
    y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], sensitivity: float = 0.85
) -> float | None:
    """Return the largest threshold that calls this share of the positives positive (reading A26)."""
    found = np.sort(s[y == 1])[::-1]
    reached = np.arange(1, len(found) + 1) / max(len(found), 1)
    return float(found[np.argmax(reached >= sensitivity)]) if len(found) else None
