"""The semi-supervised half of Table II and the right plot of Figure 5."""

from dataclasses import dataclass
from pathlib import Path

from mammomil.experiments.common import Picture, trained, write_results
from mammomil.experiments.region_runs import (
    SEMI,
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

NAME = "dual-branch-semi"
TASK = "M vs BN"
PAIRS = (  # what the paper says is better, and than what
    ("SS-Cls-Det-RS .5", "Cls-Det-RS"),
    ("SS-Cls-Det-RS .5", "SS-Baseline-RS .5"),
    ("SS-Cls-Det-RS .5", "Max-Region"),
    ("SS-Cls-Det-RS 1", "Cls-Det-RS"),
    ("SS-Cls-Det-RS 1", "SS-Cls-Det-RS .75"),
)


@dataclass(frozen=True, kw_only=True)
class Config(RegionExperiment):
    """Table II of the dual-branch paper, semi-supervised: some malignant images have their lesions marked.

    SS-Cls-Det-RS with a quarter, half, three quarters and all of the malignant training images annotated, and
    SS-Baseline-RS .5 without the detection loss (Eq. 9), beside the weakly supervised methods on the same
    folds. Leaves the table beside the paper's and the FROC curves (Fig. 5, right). With the --work folder of
    dual-branch-weak nothing of that is trained again.
    """

    out: Path = Path("runs/dual-branch-semi")
    """Folder of the table, the figures and their provenance."""


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale."""
    return scaled(Config, scale)


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used, or nothing in it is annotated.
    """
    regions, _, answers = run_methods(config, (*WEAK, *SEMI))
    names = list(answers)
    summaries = {(TASK, name): summarise(config, regions, answers[name], TASK) for name in names}
    claims = [
        claim(config, regions, TASK, figure, answers[better], answers[worse])
        for figure in ("AUROC", "pAUCR", "Sens@1FPPI")
        for better, worse in PAIRS
    ]
    figure, alt = froc_figure(regions, list(answers.values()), TASK)
    gain = claims[-len(PAIRS)].difference
    path = write_results(
        config,
        NAME,
        "Dual branch, semi-supervised: Table II and Figure 5",
        intro(regions, config),
        csv_rows(TASK, summaries, names),
        {TASK: (HEADS, table_rows(TASK, summaries, names))},
        [Picture("froc-m-vs-bn", figure, alt, FROC_CAPTION)],
        [
            *(c.verdict() for c in claims),
            "At 1 false positive per image the paper's half-annotated model finds 30 % more than its weak "
            f"one; here the difference is {'not defined' if gain is None else f'{gain:+.3f}'}.",
            *CONTRADICTIONS,
        ],
        images=len(regions.label),
        runs=trained([run for one in answers.values() for run in one.runs]),
    )
    print(path.read_text(encoding="utf-8"))
    return 0
