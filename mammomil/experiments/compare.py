"""GMIC against the dual branch: the same exams and lesions, paired tests."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from mammomil.experiments.common import (
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
from mammomil.experiments.gmic_runs import SHARES, gmic_run
from mammomil.index import BOX, Index, read_index, subset
from mammomil.items import Item, index_items
from mammomil.metrics import any_finding, auc_score, bootstrap_rows, delong_test, group_scores
from mammomil.predictor import Predictor
from mammomil.recipes import DualBranchRun, Scale
from mammomil.recipes import preset as run_preset
from mammomil.regions import iom
from mammomil.types import FINDINGS, Prediction

NAME = "compare"
MODELS = ("GMIC", "dual branch")
ALPHA = 0.5  # IoM of a hit (checklist D27)
RANKS = 6  # GMIC looks at six patches


@dataclass(frozen=True, kw_only=True)
class Config(Experiment):
    """GMIC against the dual branch, from the same image labels, on the same exams and lesions.

    Both learn from the same training patients; DeLong's paired test and a bootstrap over patients compare who
    has a finding, and the share of lesions hit by the first one to six regions compares where. Shares the
    training of GMIC with gmic-ablation.
    """

    out: Path = Path("runs/compare")
    """Folder of the table, the figures and their provenance."""
    epochs: int = 3
    """Epochs of GMIC."""
    dual_epochs: int = 40
    """Epochs of the dual branch, a second each on codes."""
    warm_start: Path | None = None
    """Model that GMIC starts from; None is the shipped one at the quick scale and nothing at full."""
    resamples: int = 1000
    """Of the bootstrap over patients."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.epochs, self.dual_epochs, self.resamples) < 1:
            raise ValueError("epochs, dual_epochs and resamples must be 1 or more.")


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale."""
    if scale == "quick":
        return Config()
    return Config(scale=scale, exams=2000, epochs=40, dual_epochs=100, resamples=2000)


def dual_run(config: Config, index: Path) -> DualBranchRun:
    """Return the training run of the dual branch, Cls-Det-RS from image labels."""
    run = run_preset("dual-branch", config.scale, index, Path())
    train = dataclasses.replace(run.train, epochs=config.dual_epochs, seed=config.seed)
    return dataclasses.replace(run, train=train, codes=config.work / "codes")


class Answers(NamedTuple):
    """What both models say of the images they both could answer.

    Attributes:
        images: ids.
        patients: patient of each image.
        breasts: breast of each image; an image of unknown side is its own.
        label: 0, 1, or NaN.
        prob: of both models (2, n, c).
        lesions: patient of each placed lesion.
        kind: 0 benign, 1 malignant, of each lesion.
        rank: rank of the first region that hits each lesion, by both models (2, l); larger than `RANKS` where
            none of the first does.
    """

    images: np.ndarray
    patients: np.ndarray
    breasts: np.ndarray
    label: Float[np.ndarray, "n c"]
    prob: Float[np.ndarray, "2 n c"]
    lesions: np.ndarray
    kind: Int[np.ndarray, "l"]
    rank: Int[np.ndarray, "2 l"]


def first_hit(prediction: Prediction, c: int, boxes: Float[np.ndarray, "l 4"]) -> Int[np.ndarray, "l"]:
    """Rank of the first region by score for finding `c` that hits each lesion; `RANKS` + 1 where none does.

    A region of score 0 is no detection (reading A4).
    """
    order = np.argsort(-prediction.scores[:, c], kind="stable")[:RANKS]
    order = order[prediction.scores[order, c] > 0]
    regions = torch.from_numpy(prediction.boxes[order]).double()
    hit = iom(regions, torch.from_numpy(boxes).double()).numpy() >= ALPHA
    return (
        np.where(hit.any(0), hit.argmax(0) + 1, RANKS + 1) if len(order) else np.full(len(boxes), RANKS + 1)
    )


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used.
    """
    keep_settings(config)
    index_folder = exam_index(config, SHARES)
    runs = [
        train_once(gmic_run(config, index_folder, config.seed), config.work, "gmic"),
        train_once(dual_run(config, index_folder), config.work, "cls-det-rs"),
    ]
    index = subset(read_index(index_folder), "test")
    found = _answers([folder / "model" for folder in runs], index)
    rows, body = _figures(config, found)
    places, place_body = _places(config, found)
    heads = ("figure", *MODELS, "difference, 95 %", "DeLong p")
    lesion_heads = ("lesions", "first regions", *MODELS, "both", "only GMIC", "only dual branch", "neither")
    path = write_results(
        config, NAME, "GMIC against the dual branch",
        f"{describe_data(index, config)} Both models learned from the image labels of the same "
        f"{len(subset(read_index(index_folder), 'train').images)} images; differences are GMIC minus dual "
        "branch, in brackets 95 % intervals over patients.",
        rows + places,
        {"Who has a finding: AUC": (heads, body), "Where: lesions hit": (lesion_heads, place_body)},
        _pictures(found), [*map(ahead, rows + places), *READING],
        runs=trained(runs),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    return 0


READING = (
    "Neither paper compared the two, so that no ordering is expected.",
    "DeLong's test takes images for independent, which the views of a patient are not: where it disagrees "
    "with "
    "the interval over patients, believe the interval.",
    "The two start from different places: GMIC from a model that has seen labelled fields of 64 pixels, the "
    "dual branch from an encoder that has seen labelled fields of 28. A region of GMIC is a little larger "
    "(32 "
    "against 28 pixels at the quick scale), which makes hits a little easier.",
)


def ahead(row: dict[str, Any]) -> str:
    """Say which model a row of the table has in front: only an interval without 0 is called an answer."""
    if row["difference"] is None or row["low"] is None:
        return f"{row['figure']}: cannot be computed here."
    word = "the two cannot be told apart"
    if row["low"] > 0 or row["high"] < 0:
        word = f"{MODELS[0] if row['low'] > 0 else 'the ' + MODELS[1]} is ahead"
    interval = f"95 % {row['low']:+.3f} to {row['high']:+.3f}"
    return f"{row['figure']}: **{word}** ({row['difference']:+.3f}, {interval})."


def _answers(folders: Sequence[Path], index: Index) -> Answers:
    """Let both models answer the images; one that either cannot use is left out."""
    predictors = [Predictor.from_pretrained(folder) for folder in folders]
    items = list(index_items(index))
    said: list[dict[str, Prediction]] = []
    for predictor, name in zip(predictors, MODELS, strict=True):
        stream = predictor.stream(items, _tell)
        said.append({p.image_id: p for p in tqdm(stream, f"{name} looks", len(items), unit="image")})
    images = index.images[index.images["image_id"].isin([name for name in said[0] if name in said[1]])]
    lesions: list[Any] = []
    placed = index.findings[index.findings["x0"].notna()]
    groups = {(str(i), str(f)): rows for (i, f), rows in placed.groupby(["image_id", "finding"])}
    for name, patient in images[["image_id", "patient_id"]].to_numpy():
        for c, finding in enumerate(FINDINGS):
            boxes = groups.get((name, finding), placed[:0])[BOX].to_numpy(float)
            ranks = np.stack([first_hit(one[name], c, boxes) for one in said], 1)
            lesions += [(patient, c, *pair) for pair in ranks]
    who, kind, *rank = zip(*lesions, strict=True) if lesions else ((), (), (), ())
    side = images["laterality"].where(images["laterality"] != "", images["image_id"])
    return Answers(
        images["image_id"].to_numpy(str), images["patient_id"].to_numpy(str),
        (images["exam_id"] + " " + side).to_numpy(str), images[list(FINDINGS)].to_numpy(float),
        np.array([[one[name].prob for name in images["image_id"]] for one in said], float),
        np.array(who, str), np.array(kind, int), np.array(rank, int).reshape(2, -1),
    )  # fmt: skip


def _tell(item: Item, error: Exception) -> None:
    print(f"left out: {item.path}: {error}")


def _targets(found: Answers) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Name -> labels, scores of both models, patients: images and breasts, each finding and any."""
    targets = {}
    label = {name: found.label[:, c] for c, name in enumerate(FINDINGS)} | {"any": any_finding(found.label)}
    for name in ("malignant", "benign", "any"):
        s = found.prob.max(2) if name == "any" else found.prob[:, :, FINDINGS.index(name)]
        targets[f"{name}, images"] = (label[name], s, found.patients)
        both, names = [], None
        for one, how in zip(s, ("mean", "max"), strict=True):  # as each model's paper has it (G12, D26)
            y, grouped, names = group_scores(label[name], one, found.breasts, how)
            both.append(grouped)
        of = dict(zip(found.breasts, found.patients, strict=True))
        targets[f"{name}, breasts"] = (y, np.array(both), np.array([of[breast] for breast in names]))
    return targets


def _figures(config: Config, found: Answers) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """AUCs of both, their difference with an interval, DeLong's p."""
    rows, body = [], []
    for name, (y, s, patients) in _targets(found).items():

        def gap(at: np.ndarray, y: np.ndarray = y, s: np.ndarray = s) -> float | None:
            values = [auc_score(y[at], one[at]) for one in s]
            return None if None in values else values[0] - values[1]

        aucs, difference = [auc_score(y, one) for one in s], gap(np.arange(len(y)))
        interval = bootstrap_rows(gap, patients, n_resamples=config.resamples, seed=config.seed)
        test = delong_test(y, *s)
        low, high = interval or (None, None)
        row = {"figure": f"AUC {name}", "gmic": aucs[0], "dual_branch": aucs[1], "difference": difference}
        rows.append(row | {"low": low, "high": high, "delong_p": test and test.p, "count": len(y)})
        brackets = f" ({low:+.3f} to {high:+.3f})" if interval else ""
        body.append([name, *map(number, aucs), f"{number(difference)}{brackets}", number(test and test.p)])
    return rows, body


def _places(config: Config, found: Answers) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Shares of lesions that the first regions hit, of both models, and who hits what the other does not."""
    rows, body = [], []
    for c in (1, 0):
        mine = found.kind == c
        for first in (1, 3, RANKS):
            hit = found.rank[:, mine] <= first
            shares = [float(one.mean()) if mine.any() else None for one in hit]
            table = [int((hit[0] & hit[1]).sum()), int((hit[0] & ~hit[1]).sum())]
            table += [int((~hit[0] & hit[1]).sum()), int((~hit[0] & ~hit[1]).sum())]

            def gap(at: np.ndarray, hit: np.ndarray = hit) -> float | None:
                return float(hit[0, at].mean() - hit[1, at].mean()) if len(at) else None

            patients, interval = found.lesions[mine], None
            if mine.any():
                interval = bootstrap_rows(gap, patients, n_resamples=config.resamples, seed=config.seed)
            difference = gap(np.arange(int(mine.sum())))
            regions = "first region" if first == 1 else f"first {first} regions"
            low, high = interval or (None, None)
            row = {"figure": f"{FINDINGS[c]} lesions hit by the {regions}", "gmic": shares[0]}
            row |= {"dual_branch": shares[1], "difference": difference, "low": low, "high": high}
            rows.append(row | {"count": int(mine.sum())})
            body.append(
                [f"{int(mine.sum())} {FINDINGS[c]}", str(first), *map(number, shares), *map(str, table)]
            )
    return rows, body


def _pictures(found: Answers) -> list[Picture]:
    """Draw both ROC curves per finding, and the share of lesions hit over the number of regions."""
    from matplotlib.figure import Figure

    from mammomil.displays import RocDisplay, figure_alt

    figure, displays = Figure(figsize=(10.5, 5), layout="constrained"), []
    for ax, name in zip(figure.subplots(1, 2), ("malignant", "benign"), strict=True):
        c = FINDINGS.index(name)
        for model, prob in zip(MODELS, found.prob, strict=True):
            display = RocDisplay.from_predictions(
                found.label[:, c], prob[:, c], groups=found.patients, name=model
            )
            displays.append(display.plot(ax))
        ax.set_title(f"{name}, images")
    words = figure_alt(*displays, title="ROC curves of both models, malignant then benign")
    places, said = Figure(figsize=(9.5, 4), layout="constrained"), []
    ranks = np.arange(1, RANKS + 1)
    for ax, name in zip(places.subplots(1, 2, sharey=True), ("malignant", "benign"), strict=True):
        mine = found.kind == FINDINGS.index(name)
        for model, rank, style in zip(MODELS, found.rank, ("o-", "s--"), strict=True):
            share = [(rank[mine] <= first).mean() if mine.any() else np.nan for first in ranks]
            ax.plot(ranks, share, style, color={"o-": "#0072B2", "s--": "#D55E00"}[style], label=model)
            said.append(f"{name}, {model}: {number(share[0], 2)} by the first, {number(share[-1], 2)} by six")
        ax.set(title=f"{int(mine.sum())} {name} lesions", xlabel="first regions", xticks=ranks, ylim=(0, 1))
        ax.grid(color="0.9")
        ax.legend(loc="upper left", fontsize=9)
    places.axes[0].set_ylabel("share hit (IoM 0.5)")
    alt = f"Share of lesions hit over the number of regions. {'; '.join(said)}."
    return [Picture("compare-roc", figure, words), Picture("compare-places", places, alt)]
