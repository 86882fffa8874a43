"""Table 1 of the GMIC paper: what each module buys; and Section 3.3: how well the saliency map localises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammomil.dataset import MammogramDataset
from mammomil.experiments.common import (
    Claim,
    Experiment,
    Picture,
    describe_data,
    exam_index,
    keep_settings,
    number,
    train_once,
    trained,
    write_results,
)
from mammomil.experiments.gmic_runs import (
    SHARES,
    Breasts,
    answers,
    baseline_run,
    breasts_of,
    gmic_run,
    map_overlap,
    start_of,
)
from mammomil.index import Index, read_index, subset
from mammomil.metrics import auc_score, bootstrap_rows, mean_prf
from mammomil.predictor import model_name
from mammomil.recipes import Scale
from mammomil.types import FINDINGS
from mammomil.weights import SHIPPED, load_model

NAME = "gmic-ablation"
# Table 1: AUC of malignant, of benign.
PAPER = {
    "ResNet-22": (0.827, 0.731), "GMIC-loc": (0.885, 0.777), "GMIC-mil": (0.878, 0.766),
    "GMIC-noattn": (0.823, 0.726), "GMIC-random": (0.757, 0.692), "GMIC-loc-random": (0.889, 0.776),
    "GMIC": (0.900, 0.784),
}  # fmt: skip
PAPER_PRF = {"malignant": (0.288, 0.254, 0.207), "benign": (0.135, 0.224, 0.133)}  # Section 3.3: P, R, F1
RETRAINED = {"GMIC-noattn": "noattn", "GMIC-random": "random", "GMIC-loc-random": "random"}
CLAIMS = (  # better, worse
    ("GMIC", "ResNet-22"), ("GMIC-loc", "ResNet-22"), ("GMIC", "GMIC-loc"), ("GMIC", "GMIC-mil"),
    ("GMIC-mil", "GMIC-noattn"), ("GMIC-mil", "GMIC-random"), ("GMIC-loc", "GMIC-random"),
    ("GMIC", "GMIC-loc-random"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(Experiment):
    """Table 1 of the GMIC paper: seven models beside the paper's AUCs, and the map's continuous F1.

    GMIC is trained once and judged with parts of it switched off at test time; what changes training is also
    trained anew, because the paper does not say which it did (reading G-i). AUCs are of breasts, the mean of
    their views. At the quick scale all networks start from the half-trained model in data_samples/weights.
    """

    out: Path = Path("runs/gmic-ablation")
    """Folder of the table, the figure and their provenance."""
    epochs: int = 3
    """Epochs of each training run."""
    models: int = 1
    """Trainings with other seeds; figures are means over them. The paper reports the mean of five models."""
    retrain: bool = True
    """Also train GMIC-noattn and GMIC-random anew."""
    tested: tuple[Path, ...] = ()
    """Model folders to judge in place of training GMIC, such as the best five of a search."""
    warm_start: Path | None = None
    """Model that training starts from; None is the shipped one at the quick scale and nothing at full."""
    resamples: int = 1000
    """Of the bootstrap over patients."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.epochs, self.models, self.resamples) < 1:
            raise ValueError("epochs, models and resamples must be 1 or more.")


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale; `full` has the paper's 40 epochs and five models (checklist G10)."""
    return (
        Config() if scale == "quick" else Config(scale=scale, exams=2000, epochs=40, models=5, resamples=2000)
    )


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used.
    """
    keep_settings(config)
    index_folder = exam_index(config, SHARES)
    seeds = [config.seed + n for n in range(config.models)]
    folders = _train(config, index_folder, seeds)
    index = read_index(index_folder)
    preprocess = load_model(folders["GMIC"][0]).preprocess
    test, valid = (
        MammogramDataset(subset(index, split), preprocess, memory_limit=4 * 2**30, cache=_cache(config))
        for split in ("test", "val")
    )
    for data in (test, valid):
        for name, reason in data.prepare_all():
            print(f"left out: {name}: {reason}")
    at_test, anew = _answers(folders, test, config.seed)
    breasts = {finding: breasts_of(test, finding) for finding in FINDINGS}
    result = _Result(config, breasts, at_test, anew)
    best, chosen = _best_map(folders["GMIC"], valid)
    prf = {finding: map_overlap(best, test, finding) for finding in FINDINGS}
    claims = [result.claim(finding, *pair) for finding in ("malignant", "benign") for pair in CLAIMS]
    path = write_results(
        config, NAME, "GMIC: what each module buys (Table 1) and where its map looks (Section 3.3)",
        f"{describe_data(subset(index, 'test'), config)} {len(breasts['malignant'].label)} breasts were "
        "judged, "
        f"{len(subset(index, 'train').images)} images trained on. AUC of breasts, the mean of their views; "
        f"mean of {len(folders['GMIC'])} model(s); in brackets 95 % intervals over patients. The paper's "
        "figures are of 14,148 real exams and stand beside ours for their order, not for their size.",
        result.rows(prf), result.tables(prf), result.pictures(),
        [*(one.verdict() for one in claims), *_reading(config, best, chosen, index)],
        runs=trained([_run_of(folder) for group in folders.values() for folder in group]),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    return 0


def _train(config: Config, index: Path, seeds: Sequence[int]) -> dict[str, list[Path]]:
    """Train what Table 1 needs; return model folders by row."""
    tested, work = list(config.tested), config.work
    ours = tested or [train_once(gmic_run(config, index, s), work, "gmic") / "model" for s in seeds]
    folders = {"GMIC": ours}
    folders["ResNet-22"] = [
        train_once(baseline_run(config, index, s), work, "resnet-22") / "model" for s in seeds
    ]
    for name in ("noattn", "random") if config.retrain else ():
        runs = [gmic_run(config, index, s, name) for s in seeds]
        folders[name] = [train_once(run, work, f"gmic-{name}") / "model" for run in runs]
    return folders


def _run_of(folder: Path) -> Path:
    return folder.parent if folder.name == "model" else folder


def _answers(
    folders: dict[str, list[Path]], test: MammogramDataset, seed: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]]:
    """Answers by row of Table 1, one per model: switched off at test time, and trained anew."""
    at_test: dict[str, list[np.ndarray]] = {}
    for group in ("ResNet-22", "GMIC"):
        for folder in folders[group]:
            for name, prob in answers(load_model(folder).model, test, seed).items():
                at_test.setdefault(name, []).append(prob)
    anew: dict[str, list[np.ndarray]] = {}
    for name, group in RETRAINED.items():
        for folder in folders.get(group, ()):
            model = load_model(folder).model
            # Trained with random patches, judged with them; trained without attention, judged without.
            anew.setdefault(name, []).append(answers(model, test, seed)[name])
    return at_test, anew


def _best_map(folders: Sequence[Path], valid: MammogramDataset) -> tuple[Path, float | None]:
    """Choose the model with the highest validation F1 of malignant maps, as Section 3.3 does."""
    if len(folders) == 1:
        return folders[0], None
    scores = []
    for folder in folders:
        found, _ = _mean_prf(map_overlap(folder, valid, "malignant"))
        scores.append(-1.0 if found is None else found[2])
    return folders[int(np.argmax(scores))], max(scores)


def _mean_prf(rows: Sequence[Any]) -> tuple[tuple[float, float, float] | None, int]:
    found = mean_prf(rows)
    return (None, 0) if found is None else (found[:3], found[3])


class _Result(NamedTuple):
    """Answers of all rows, and what the result says of them."""

    config: Config
    breasts: dict[str, Breasts]
    at_test: dict[str, list[np.ndarray]]
    anew: dict[str, list[np.ndarray]]

    def mean_auc(self, finding: str, *groups: Sequence[np.ndarray]) -> Callable[[np.ndarray], float | None]:
        """Return rows of breasts -> mean AUC over models; with two groups of models, the difference."""
        breasts, c = self.breasts[finding], FINDINGS.index(finding)
        scores = [[breasts.scores(p[:, c]) for p in group] for group in groups]

        def statistic(rows: np.ndarray) -> float | None:
            values = [[auc_score(breasts.label[rows], s[rows]) for s in group] for group in scores]
            if any(None in group for group in values):
                return None
            first, *second = (float(np.mean(group)) for group in values)
            return first - sum(second)

        return statistic

    def judged(self, finding: str, *groups: Sequence[np.ndarray]) -> tuple[float | None, Any]:
        """A figure and its 95 % interval over patients, see `mean_auc`."""
        statistic, patients = self.mean_auc(finding, *groups), self.breasts[finding].patients
        resamples, seed = self.config.resamples, self.config.seed
        interval = bootstrap_rows(statistic, patients, n_resamples=resamples, seed=seed)
        return statistic(np.arange(len(patients))), interval

    def claim(self, finding: str, better: str, worse: str) -> Claim:
        """Compare two rows of Table 1 on the same breasts."""
        benign = finding == "benign"
        found = self.judged(finding, self.at_test[better], self.at_test[worse])
        return Claim(
            f"{finding}: {better} above {worse}", *found, PAPER[better][benign] - PAPER[worse][benign]
        )

    def rows(self, prf: dict[str, list]) -> list[dict[str, Any]]:
        """Every number in full."""
        rows = []
        for how, group in (("test time", self.at_test), ("trained anew", self.anew)):
            for name, prob in group.items():
                for c, finding in enumerate(FINDINGS):
                    value, interval = self.judged(finding, prob)
                    low, high = interval or (None, None)
                    rows.append(
                        {"model": name, "how": how, "finding": finding, "figure": "AUC of breasts"}
                        | {"value": value, "low": low, "high": high, "paper": PAPER[name][1 - c]}
                    )
        for finding, found in prf.items():
            means, count = _mean_prf(found)
            for k, figure in enumerate(("precision", "recall", "F1")):
                rows.append(
                    {"model": "GMIC", "how": f"{count} images", "finding": finding, "figure": figure}
                    | {"value": means and means[k], "paper": PAPER_PRF[finding][k]}
                )
        return rows

    def tables(self, prf: dict[str, list]) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
        """Table 1 and Section 3.3 as text."""
        body = []
        for name in PAPER:
            cells = [name]
            for finding in ("malignant", "benign"):
                value, interval = self.judged(finding, self.at_test[name])
                brackets = f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""
                again = self.judged(finding, self.anew[name])[0] if name in self.anew else None
                paper = PAPER[name][finding == "benign"]
                cells += [number(value) + brackets, number(again), f"{paper:.3f}"]
            body.append(cells)
        heads = ("model", "malignant", "trained anew", "paper", "benign", "trained anew", "paper")
        maps = []
        for finding in ("malignant", "benign"):
            means, count = _mean_prf(prf[finding])
            ours = [number(value) for value in means] if means else ["-"] * 3
            paper = [f"{value:.3f}" for value in PAPER_PRF[finding]]
            maps.append([finding, str(count), *(c for pair in zip(ours, paper, strict=True) for c in pair)])
        head = ("finding", "images", "precision", "paper", "recall", "paper", "F1", "paper")
        return {"Table 1: AUC of breasts": (heads, body), "Section 3.3: continuous figures": (head, maps)}

    def pictures(self) -> list[Picture]:
        """Draw Table 1 with intervals, both findings side by side."""
        from matplotlib.figure import Figure

        from mammomil.displays import BarsDisplay, figure_alt

        figure, displays = Figure(figsize=(11, 4), layout="constrained"), []
        for ax, finding in zip(figure.subplots(1, 2), ("malignant", "benign"), strict=True):
            found = [self.judged(finding, self.at_test[name]) for name in PAPER]
            display = BarsDisplay.from_table(
                list(PAPER), [value for value, _ in found], [interval for _, interval in found],
                [paper[finding == "benign"] for paper in PAPER.values()], value_name="AUC of breasts",
                name=finding,
            )  # fmt: skip
            displays.append(display.plot(ax))
        words = figure_alt(*displays, title="Table 1: ours with 95 % intervals, and the paper's figures")
        return [Picture("gmic-ablation", figure, words)]


def _cache(config: Config) -> Path | None:
    return config.work / "canvases" if config.scale == "full" else None


def _reading(config: Config, best: Path, f1: float | None, index: Index) -> list[str]:
    start = start_of(config)
    if start is not None and start.parent == SHIPPED / "weights":
        begin = (
            f"All networks start from {start.name}, which has learned from labelled fields of phantoms; the "
        )
        begin += "paper starts from BI-RADS categories. ResNet-22 starts from the same global network."
    else:
        begin = (
            "All networks start from nothing." if start is None else f"All networks start from {start.name}."
        )
    texts = [
        begin,
        "Switched off at test time: the weights are GMIC's. Trained anew: the part was off in training "
        "too. The "
        "paper does not say which of the two its rows are (reading G-i).",
        "The paper's precision, recall and F1 cannot come from one pair of means: its F1 are below the "
        "harmonic "
        "means of its P and R, so that F1 must be a mean over images (reading G-g), as it is here.",
    ]
    if f1 is not None:
        texts.append(f"The map is {model_name(best)}'s, whose validation F1 is the highest ({f1:.3f}).")
    if (index.findings["mask"] == "").all():
        texts.append("Findings have no masks here: boxes stand for them, which makes recall smaller.")
    return texts
