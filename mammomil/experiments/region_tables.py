"""Table II and Figure 5 out of cross-validated answers: rows, claims and curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mammomil.experiments.common import Claim, describe_data, number
from mammomil.experiments.region_runs import (
    METRICS,
    PAPER,
    Answers,
    RegionExperiment,
    Regions,
    Task,
    TaskSummary,
    froc_images,
    sensitivity_at_one,
)
from mammomil.metrics import bootstrap_rows
from mammomil.protocols import FoldSummary

Summaries = dict[tuple[Task, str], TaskSummary]
HEADS = (
    "method", "AUROC", "pooled, 95 %", "paper", "pAUCR", "paper", "Spec@.85", "paper", "Spec@.90", "paper",
    "Sens@1FPPI", "pooled, 95 %",
)  # fmt: skip
FROC_CAPTION = (
    "Regions with IoM of .5 or more hit a lesion; images called positive at a sensitivity of .85; all "
    "folds together."
)
# Where the paper contradicts itself (checklist 1b).
CONTRADICTIONS = (
    'The paper\'s "2-4 %", "10-17 %" and "8-11 %" are relative changes of its Table II, not points.',
    "Its text gives SS-Cls-Det-RS .5 over Cls-Det-RS 5.2 % in pAUC and 8.2 % in specificity; its own table "
    "gives +.038 (13.8 %) and +.06 (15 %).",
    'Its "10 % more specificity, 3.6 million fewer false positives" is +.10 of SS-Cls-Det-RS .5 over '
    "Max-Region, not over its own weak model.",
    "In its M vs BN, Cls-Det has a higher pAUCR and both specificities than Cls-Det-RS, and SS-Baseline-RS "
    ".5 a higher pAUCR than SS-Cls-Det-RS .5; the deviations over folds are larger than these gaps.",
)


def intro(regions: Regions, config: RegionExperiment) -> str:
    """Say what the figures are about and how they were come by."""
    return (
        f"{describe_data(regions.index, config)} {config.folds} folds of patients; mean ± deviation over "
        "folds; pooled: all images, each answered by the model that has not seen her patient, with the 95 % "
        "interval over patients. The encoder has learned from labelled fields of other phantoms, so that "
        "weak "
        "is weaker than it sounds. The paper's figures are of 2,967 real mammograms and stand beside ours "
        "for "
        "their order, not for their size."
    )


def table_rows(task: Task, summaries: Summaries, names: Sequence[str]) -> list[list[str]]:
    """Return the rows of Table II for a task as text, the paper's figures beside ours."""
    rows = []
    for name in names:
        summary, paper = summaries[task, name], PAPER[task, name]
        figures = summary.figures
        said = (f"{paper[0]:.3f} ± {paper[1]:.3f}", f"{paper[2]:.3f} ± {paper[3]:.3f}")
        cells = [name, str(figures["AUROC"]), pooled_text(figures["AUROC"]), said[0]]
        cells += [str(figures["pAUCR"]), said[1]]
        for column, value in (("Spec@.85", paper[4]), ("Spec@.90", paper[5])):
            cells += [number(figures[column].mean, 2), f"{value:.2f}"]
        rows.append([*cells, str(summary.froc), pooled_text(summary.froc)])
    return rows


def pooled_text(summary: FoldSummary) -> str:
    """Write a pooled figure with its interval."""
    if summary.pooled is None or summary.interval is None:
        return "-"
    return f"{summary.pooled:.3f} ({summary.interval[0]:.3f}-{summary.interval[1]:.3f})"


def csv_rows(task: Task, summaries: Summaries, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return every number of Table II in full, a row per method, task and figure."""
    rows = []
    for name in names:
        summary = summaries[task, name]
        paper = dict(zip(METRICS, (PAPER[task, name][i] for i in (0, 2, 4, 5)), strict=True))
        for figure, value in {**summary.figures, "Sens@1FPPI": summary.froc}.items():
            low, high = value.interval or (None, None)
            rows.append(
                {"task": task, "method": name, "figure": figure, "mean": value.mean, "std": value.std}
                | {"pooled": value.pooled, "low": low, "high": high, "paper": paper.get(figure)}
                | {f"fold_{k + 1}": v for k, v in enumerate(value.folds)}
            )
    return rows


def claim(
    config: RegionExperiment, regions: Regions, task: Task, figure: str, better: Answers, worse: Answers
) -> Claim:
    """Compare two methods on the same images: the difference of their means over folds, and its interval.

    Args:
        config: gives the number of resamples and the seed.
        regions: the images.
        task: the task.
        figure: a key of `METRICS`, or `Sens@1FPPI`.
        better: what the paper has in front.
        worse: the other one.
    """
    metric, resamples = METRICS.get(figure), config.resamples
    if metric is None:
        both = [froc_images(regions, answers, task) for answers in (better, worse)]
        resamples = max(resamples // 5, 1)

        def value(which: int, rows: np.ndarray) -> float | None:
            return sensitivity_at_one([both[which][i] for i in rows])
    else:
        y, *scores = regions.task_label(task), better.task_score(task), worse.task_score(task)

        def value(which: int, rows: np.ndarray) -> float | None:
            return metric(y[rows], scores[which][rows])

    def gap(rows: np.ndarray) -> float | None:
        folds = [rows[better.fold[rows] == k] for k in range(better.fold.max() + 1)]
        values = [(value(0, mine), value(1, mine)) for mine in folds]
        if any(None in pair for pair in values):
            return None
        return float(np.mean([first - second for first, second in values]))

    difference = gap(np.arange(len(regions.label)))
    interval = bootstrap_rows(gap, regions.patients, n_resamples=resamples, seed=config.seed)
    names, column = (better.method.name, worse.method.name), dict(zip(METRICS, (0, 2, 4, 5), strict=True))
    paper = None
    if figure in column and all((task, name) in PAPER for name in names):
        paper = PAPER[task, names[0]][column[figure]] - PAPER[task, names[1]][column[figure]]
    return Claim(f"{task}, {figure}: {names[0]} above {names[1]}", difference, interval, paper)


def froc_figure(regions: Regions, answers: Sequence[Answers], task: Task) -> tuple[Any, str]:
    """Draw one of the two plots of Figure 5; return the figure and what it shows in words."""
    from mammomil.displays import FrocDisplay, figure_alt

    displays, ax = [], None
    for one in answers:
        display = FrocDisplay.from_predictions(froc_images(regions, one, task), name=one.method.name)
        displays.append(display.plot(ax))
        ax = display.ax_
    ax.set_title(f"{task}: regions that hit a lesion", fontsize=11)
    return displays[0].figure_, figure_alt(*displays, title=f"FROC curves, {task}")
