"""The GMIC paper's random search: its draws, the best five models, their ensemble, and where they look."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammomil.dataset import MammogramDataset
from mammomil.experiments.common import (
    Claim,
    Experiment,
    Picture,
    Stopped,
    describe_data,
    exam_index,
    index_key,
    keep_settings,
    number,
    write_results,
)
from mammomil.experiments.gmic_runs import SHARES, Breasts, breasts_of, gmic_run, map_overlap
from mammomil.index import Index, read_index, subset
from mammomil.metrics import auc_score, bootstrap_rows, mean_prf
from mammomil.recipes import Scale
from mammomil.search import (
    SearchConfig,
    ensemble_predictions,
    run_search,
    search_preset,
    top_trials,
    trial_folder,
)
from mammomil.types import FINDINGS
from mammomil.weights import load_model

NAME = "gmic-search"
BEST = 5  # models that the paper reports
PAPER_AUC = {"malignant": 0.900, "benign": 0.784}  # Table 1: mean of the best five
PAPER_MAP_AUC = {"malignant": 0.886, "benign": 0.78}  # Section 3.3: the model whose maps are best
PAPER_PRF = {"malignant": (0.288, 0.254, 0.207), "benign": (0.135, 0.224, 0.133)}  # Section 3.3: P, R, F1
WORDS = {"learning_rate": "learning rate", "weight": "lambda", "beta": "beta", "top_t": "t"}


@dataclass(frozen=True, kw_only=True)
class Config(Experiment):
    """The random search of the GMIC paper: its draws, the best five models and their ensemble.

    Trains a GMIC with each draw of learning rate, lambda, beta and t, judges all on the test exams, and puts
    the mean of the best five by validation AUC beside the paper's Table 1, their ensemble, and the model with
    the best validation maps beside Section 3.3. AUCs are of breasts, the mean of their views. At the quick
    scale training starts from the half-trained model in data_samples/weights.
    """

    out: Path = Path("runs/gmic-search")
    """Folder of the tables, the figure and their provenance."""
    exams: int = 200
    """Phantoms drawn where no data are named, four images each."""
    trials: int = 8
    """Draws, and models trained."""
    epochs: int = 1
    """Epochs of each trial."""
    prune: bool = False
    """End trials early whose figures are below the median, see `mammomil search gmic --help`."""
    workers: int = 1
    """Processes that train trials; more of them may be started on other machines by the same command."""
    warm_start: Path | None = None
    """Model that training starts from; None is the shipped one at the quick scale and nothing at full."""
    resamples: int = 1000
    """Of the bootstrap over patients."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.trials, self.epochs, self.workers, self.resamples) < 1:
            raise ValueError("trials, epochs, workers and resamples must be 1 or more.")


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale; `full` has the paper's 100 models of 40 epochs (checklist G10)."""
    if scale == "quick":
        return Config()
    return Config(scale=scale, exams=2000, trials=100, epochs=40, resamples=2000)


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used, or the first three trials all failed.
    """
    keep_settings(config)
    folder = exam_index(config, SHARES)
    index = read_index(folder)
    search = search_config(config, folder, index)
    if (status := run_search(search)) == 130:
        raise Stopped
    if status:
        return status
    result = _judge(config, search, index)
    counts = {split: len(subset(index, split).images) for split in ("train", "val")}
    intro = (
        f"{describe_data(subset(index, 'test'), config)} {len(result.breasts['malignant'].label)} breasts "
        f"were judged; trained on {counts['train']} images, chosen by {counts['val']}. AUC of breasts, the "
        "mean of their views; in brackets 95 % intervals over patients. The paper's figures are of 14,148 "
        "real exams and stand beside ours for their order, not for their size."
    )
    claims = [result.claim("malignant"), result.claim("benign"), result.ensemble_claim()]
    path = write_results(
        config, NAME, "GMIC: random search, the best five and their ensemble", intro,
        result.rows(), result.tables(), [_picture(result.trials, result.top, search)],
        [*(claim.verdict() for claim in claims), *_reading(config, search, result)],
        search=search.run.out.name, best=result.top, best_maps=result.mapper,
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    return 0


def search_config(config: Config, folder: Path, index: Index) -> SearchConfig:
    """Return the search; trials are ranked by AUC of breasts where all sides are known, else of images."""
    run = gmic_run(config, folder, config.seed)
    known = (index.images["laterality"] != "").all()
    train = replace(run.train, monitor="auc_breast_malignant" if known else "auc_malignant")
    out = config.work / f"{NAME}-{config.scale}-{index_key(folder)[:8]}-{config.epochs}-{config.seed}"
    space = search_preset(config.scale, folder, out).space
    return SearchConfig(
        run=replace(run, out=out, train=train), trials=config.trials, prune=config.prune, space=space,
        workers=config.workers,
    )  # fmt: skip


class _Result(NamedTuple):
    """What the search found, and what its models say of the test images.

    Attributes:
        trials: trials.csv with columns of test AUC, `test_malignant` and `test_benign`.
        top: numbers of the best trials, best first.
        prob: probabilities of each trial that has a model.
        ensemble: mean probabilities of the best.
        mapper: the trial whose maps have the highest validation F1 of malignant findings; None without masks.
        f1: that F1.
        prf: its (precision, recall, F1, images) on test images, None without images.
    """

    config: Config
    breasts: dict[str, Breasts]
    trials: pd.DataFrame
    top: list[int]
    prob: dict[int, np.ndarray]
    ensemble: np.ndarray
    mapper: int | None
    f1: float | None
    prf: dict[str, tuple[float, float, float, int] | None]

    def judged(
        self, finding: str, ours: Sequence[np.ndarray], less: Sequence[np.ndarray] = ()
    ) -> tuple[float | None, tuple[float, float] | None]:
        """Mean AUC of some models, less that of others, and its 95 % interval over patients."""
        breasts, c = self.breasts[finding], FINDINGS.index(finding)
        scores = [[breasts.scores(prob[:, c]) for prob in group] for group in (ours, less)]

        def statistic(rows: np.ndarray) -> float | None:
            values = [[auc_score(breasts.label[rows], s[rows]) for s in group] for group in scores]
            if any(None in group for group in values):
                return None
            plus, minus = (float(np.mean(group)) if group else 0.0 for group in values)
            return plus - minus

        resamples, seed = self.config.resamples, self.config.seed
        interval = bootstrap_rows(statistic, breasts.patients, n_resamples=resamples, seed=seed)
        return statistic(np.arange(len(breasts.patients))), interval

    def best(self) -> list[np.ndarray]:
        """Probabilities of the best trials."""
        return [self.prob[trial] for trial in self.top]

    def claim(self, finding: str) -> Claim:
        """Compare the best five with the model whose maps are best."""
        text = f"{finding}: mean of the best {len(self.top)} above the model with the best maps"
        if self.mapper is None:
            return Claim(text, None, None)
        found = self.judged(finding, self.best(), [self.prob[self.mapper]])
        return Claim(text, *found, round(PAPER_AUC[finding] - PAPER_MAP_AUC[finding], 3))

    def ensemble_claim(self) -> Claim:
        """Compare the ensemble with its members."""
        found = self.judged("malignant", [self.ensemble], self.best())
        return Claim("malignant: the ensemble above the mean of its models", *found)

    def groups(self) -> list[tuple[str, list[np.ndarray], dict[str, float]]]:
        """Rows of the summary: name, probabilities, the paper's AUCs."""
        best = f"best {len(self.top)}"
        rows = [
            (f"mean of the {best}", self.best(), PAPER_AUC),
            (f"ensemble of the {best}", [self.ensemble], {}),
        ]
        if self.mapper is not None:
            rows.append((f"best maps (trial {self.mapper})", [self.prob[self.mapper]], PAPER_MAP_AUC))
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """Every number in full."""
        trials = self.trials.astype(object).where(self.trials.notna(), None)
        rows = [{"row": f"trial {one['trial']}", **one} for one in trials.to_dict("records")]
        for name, prob, paper in self.groups():
            for finding in FINDINGS:
                value, interval = self.judged(finding, prob)
                low, high = interval or (None, None)
                rows.append({"row": name, "finding": finding, "figure": "AUC of breasts", "value": value}
                            | {"low": low, "high": high, "paper": paper.get(finding)})  # fmt: skip
        for finding, found in self.prf.items():
            for k, figure in enumerate(("precision", "recall", "F1")):
                rows.append({"row": f"best maps (trial {self.mapper})", "finding": finding, "figure": figure}
                            | {"value": found and found[k], "paper": PAPER_PRF[finding][k]})  # fmt: skip
        return rows

    def tables(self) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
        """The same as text."""
        body = []
        for name, prob, paper in self.groups():
            cells = [name]
            for finding in ("malignant", "benign"):
                value, interval = self.judged(finding, prob)
                brackets = f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else ""
                cells += [number(value) + brackets, number(paper.get(finding))]
            body.append(cells)
        tables = {"Test AUC": (("models", "malignant", "paper", "benign", "paper"), body)}
        maps = []
        for finding, found in self.prf.items():
            ours, paper = found or (None,) * 3 + (0,), PAPER_PRF[finding]
            cells = [(number(ours[k]), number(paper[k])) for k in range(3)]
            maps.append([finding, str(ours[3]), *(cell for pair in cells for cell in pair)])
        heads = ("finding", "images", "precision", "paper", "recall", "paper", "F1", "paper")
        if maps:
            tables["Section 3.3: maps of the model with the best validation F1"] = (heads, maps)
        figures = ("val malignant", "test malignant", "test benign")
        heads = ("trial", "", *WORDS.values(), "epochs", *figures)
        lines = []
        for one in self.trials.itertuples():
            place = f"best {self.top.index(one.trial) + 1}" if one.trial in self.top else ""
            drawn = [f"{getattr(one, name):.3g}" for name in WORDS]
            figures = [number(getattr(one, name)) for name in ("val", "test_malignant", "test_benign")]
            lines.append([str(one.trial), place or one.state, *drawn, number(float(one.epochs), 0), *figures])
        return tables | {"Trials": (heads, lines)}


def _judge(config: Config, search: SearchConfig, index: Index) -> _Result:
    """Judge all trials on the test images, and choose by the validation images."""
    out, monitor = search.run.out, search.run.train.monitor
    trials = pd.read_csv(out / "trials.csv")
    trials = trials.assign(val=trials[monitor])
    finished = trials.loc[trials["val"].notna() & trials["state"].isin(["complete", "pruned"]), "trial"]
    folders = {int(trial): trial_folder(out, trial) for trial in finished}
    best = top_trials(out, BEST, monitor)
    preprocess = load_model(best[0]).preprocess
    cache = search.run.cache or out / "cache"
    test, valid = (
        MammogramDataset(subset(index, split), preprocess, cache=cache) for split in ("test", "val")
    )
    for data in (test, valid):
        data.prepare_all(progress=False)
    breasts = {finding: breasts_of(test, finding) for finding in FINDINGS}
    columns, names = [f"p_{finding}" for finding in FINDINGS], test.images["image_id"]
    prob = {
        trial: pd.read_csv(folder / "predictions.csv", dtype={"image_id": str})
        .set_index("image_id").loc[names, columns].to_numpy(float)
        for trial, folder in folders.items()
    }  # fmt: skip
    for c, finding in enumerate(FINDINGS):
        aucs = {
            t: auc_score(breasts[finding].label, breasts[finding].scores(p[:, c])) for t, p in prob.items()
        }
        trials[f"test_{finding}"] = trials["trial"].map(aucs).astype(float)
    together = ensemble_predictions(best, index, "test", cache).set_index("image_id").loc[names, columns]
    found = {t: mean_prf(map_overlap(f / "model", valid, "malignant")) for t, f in folders.items()}
    f1 = {trial: prf[2] for trial, prf in found.items() if prf is not None}
    mapper = max(f1, key=lambda trial: f1[trial], default=None)
    prf = {}
    if mapper is not None:
        model = folders[mapper] / "model"
        prf = {finding: mean_prf(map_overlap(model, test, finding)) for finding in ("malignant", "benign")}
    top = [int(folder.parent.name) for folder in best]
    return _Result(
        config, breasts, trials, top, prob, together.to_numpy(float), mapper, f1.get(mapper), prf
    )  # fmt: skip


def _picture(trials: pd.DataFrame, top: Sequence[int], search: SearchConfig) -> Picture:
    """Draw the validation figure against each hyper-parameter; the best marked, pruned trials hollow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from mammomil.panels import COLOURS

    figure = Figure(figsize=(10, 7), layout="constrained")
    shown = trials[trials["val"].notna()]
    best, pruned = shown["trial"].isin(top), shown["state"] == "pruned"
    looks = (  # who, colour, marker, area, words
        (~best & ~pruned, "0.45", "o", 36, "complete"), (~best & pruned, "0.45", "o", 36, "pruned"),
        (best, COLOURS["malignant"], "*", 140, f"best {len(top)}"),
    )  # fmt: skip
    space = search.space
    for ax, (name, words) in zip(figure.subplots(2, 2, sharey=True).flat, WORDS.items(), strict=True):
        for who, colour, marker, area, label in looks:
            faces = ["none" if hollow else colour for hollow in pruned[who]]
            ax.scatter(
                shown.loc[who, name], shown.loc[who, "val"], area, marker=marker, facecolors=faces,
                edgecolors=colour, label=label,
            )  # fmt: skip
        ax.axhline(0.5, color="0.8", linewidth=1, zorder=0, label="chance")
        low, high = getattr(space, name)
        ax.set(xscale="log", xlabel=f"{words} (log scale)", xlim=(low / 1.15, high * 1.15))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("validation AUC, malignant")
    some = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    some = {label: some[label] for who, *_, label in looks if who.any()} | {"chance": some["chance"]}
    figure.legend(some.values(), some.keys(), loc="outside upper right", ncols=4, frameon=False)
    first, values = shown.set_index("trial").loc[top[0]], shown["val"]
    drawn = ", ".join(f"{words} {first[name]:.2g}" for name, words in WORDS.items())
    alt = (
        f"Four panels: validation AUC of malignant findings against {', '.join(WORDS.values())} of "
        f"{len(shown)} trials, {int(pruned.sum())} of them pruned. It lies between {values.min():.3f} and "
        f"{values.max():.3f}; the best, trial {top[0]}, has {drawn}."
    )
    return Picture(NAME, figure, alt, "Stars: the best by validation AUC; hollow: pruned.")


def _reading(config: Config, search: SearchConfig, result: _Result) -> list[str]:
    low, high = search.space.learning_rate
    start = "nothing" if search.run.warm_start is None else search.run.warm_start.name
    why = "the paper's range" if config.scale == "full" else "ten times the paper's, for few epochs"
    texts = [
        f"Learning rates are drawn from {low:.2g} to {high:.2g}, {why}. All trials start from {start}.",
        "Trials are chosen by the validation exams and judged on the test exams: the largest of many "
        "validation figures is partly luck; on other exams the same model is likely to do less well.",
        "The paper gives the AUC of its ensemble of five, .876, for the exams of its reader study alone: "
        "there is no figure to put beside ours here.",
    ]
    if len(result.prob) <= BEST:
        texts.append(f"Of {len(result.prob)} models, the best {len(result.top)} are no choice.")
    if result.mapper is not None:
        texts.append(
            f"The maps are those of trial {result.mapper}, whose validation F1 of malignant findings is the "
            f"highest ({result.f1:.3f}). F1 is a mean over images (reading G-g)."
        )
    return texts
