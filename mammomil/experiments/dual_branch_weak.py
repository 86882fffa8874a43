"""The weakly supervised half of Table II, the left plot of Figure 5, and the learning curves of Figure 3."""

from dataclasses import dataclass
from pathlib import Path

from mammomil.experiments.common import Picture, trained, write_results
from mammomil.experiments.region_runs import (
    TASKS,
    WEAK,
    RegionExperiment,
    run_methods,
    scaled,
    summarise,
)
from mammomil.experiments.region_tables import (
    CONTRADICTIONS,
    FROC_CAPTION,
    HEADS,
    claim,
    csv_rows,
    froc_figure,
    intro,
    table_rows,
)
from mammomil.recipes import Scale

NAME = "dual-branch-weak"


@dataclass(frozen=True, kw_only=True)
class Config(RegionExperiment):
    """Table II of the dual-branch paper, weakly supervised: four methods, two tasks, cross-validated.

    DB-Baseline, Max-Region, Cls-Det and Cls-Det-RS learn from image labels alone, on the same folds of
    patients. Leaves the table beside the paper's, FROC curves (Fig. 5) and learning curves (Fig. 3).
    """

    out: Path = Path("runs/dual-branch-weak")
    """Folder of the table, the figures and their provenance."""


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale."""
    return scaled(Config, scale)


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used.
    """
    regions, _, answers = run_methods(config, WEAK)
    names = list(answers)
    summaries = {
        (task, name): summarise(config, regions, answers[name], task) for task in TASKS for name in names
    }
    ours = answers["Cls-Det-RS"]
    claims = [
        claim(config, regions, task, figure, ours, answers[other])
        for task in TASKS
        for figure in ("AUROC", "pAUCR", "Sens@1FPPI")
        for other in names[:-1]
    ]
    pictures = []
    for task in TASKS:
        figure, alt = froc_figure(regions, list(answers.values()), task)
        pictures.append(Picture(f"froc-{task.replace(' ', '-').lower()}", figure, alt, FROC_CAPTION))
    pictures.append(_learning_curves(ours.runs[0]))
    path = write_results(
        config,
        NAME,
        "Dual branch, weakly supervised: Table II and Figures 3 and 5",
        intro(regions, config),
        [row for task in TASKS for row in csv_rows(task, summaries, names)],
        {task: (HEADS, table_rows(task, summaries, names)) for task in TASKS},
        pictures,
        [*(c.verdict() for c in claims), *CONTRADICTIONS],
        images=len(regions.label),
        runs=trained([run for one in answers.values() for run in one.runs]),
    )
    print(path.read_text(encoding="utf-8"))
    return 0


def _learning_curves(run_folder: Path) -> Picture:
    """Draw Figure 3: AUC per epoch of training and validation images, first fold, both tasks."""
    from matplotlib.figure import Figure

    from mammomil.displays import LearningCurveDisplay, figure_alt

    figure = Figure(figsize=(9, 4), layout="constrained")
    displays = []
    for ax, (task, name) in zip(
        figure.subplots(1, 2), (("M vs BN", "auc_malignant"), ("MB vs N", "auc_any")), strict=True
    ):
        display = LearningCurveDisplay.from_runs(run_folder / "metrics.jsonl", figure=name)
        displays.append(display.plot(ax))
        ax.set_title(task)
    return Picture(
        "learning-curves",
        figure,
        figure_alt(*displays, title="AUC per epoch of Cls-Det-RS in the first fold"),
        "Cls-Det-RS, first fold.",
    )
