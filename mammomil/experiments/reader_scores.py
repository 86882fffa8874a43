"""The scores of the reader study: what 14 radiologists and seven models said of 1,440 breasts, in figures.

A hybrid is a weighted mean of a reader's score and a model's (GMIC paper, Section 3.2, checklist G15).

    python -m mammomil.experiments.reader_scores --scores results.csv

writes the ROC curves that the book shows, `static/reader_curves.json`: no score of a breast is in them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from mammomil.downloads import REMOTE
from mammomil.files import InputError, atomic_path, provenance, sha256
from mammomil.metrics import auc_score

METRICS = ("AUC", "AP", "pAUCR", "Spec@.85", "Spec@.90", "Sens@Spec.90")
WEIGHTS = np.arange(21) / 20  # of the model in a hybrid
MODEL = "GMIC top-5"
MODELS = {
    "AI_GMIC_top5_POM": MODEL,
    "AI_GMIC_top1_POM": "GMIC top-1",
    "AI_GLAM_POM": "GLAM",
    "AI_DMVCNN_POM": "DMV-CNN",
    "AI_frcnn_POM": "Faster R-CNN",
    "AI_end2end_inbreast_POM": "End2end, INbreast",
    "AI_end2end_ddsm_POM": "End2end, DDSM",
}
TOGETHER = "mean score of all readers"
MEAN = "mean reader"
STEPS = tuple(step / 10 for step in range(11))  # weights of the model whose curves are kept
CURVES = Path(__file__).parents[1] / "static" / "reader_curves.json"
SOURCE = "nyukat/mammography_metarepository, reader_study/results.csv"
LICENCE = (
    "Made from scores under the BSD 2-Clause License. Copyright (c) 2022, Benjamin Stadnick, Jan Witowski, "
    "Vishwaesh Rajiv, Jakub Chłędowski, Farah E. Shamout, Kyunghyun Cho, Krzysztof J. Geras. All rights "
    "reserved. The conditions and the disclaimer are in the LICENSE of the source."
)

Key = tuple[str, str, str]  # who, kind, metric


class Study(NamedTuple):
    """Scores in [0, 1] of n breasts, larger where cancer is likelier, by reader and by model."""

    label: Float[np.ndarray, "n"]
    patient: Shaped[np.ndarray, "n"]
    readers: dict[str, Float[np.ndarray, "n"]]
    models: dict[str, Float[np.ndarray, "n"]]
    left_out: int
    """Breasts of the file that somebody gave no score."""

    @property
    def together(self) -> Float[np.ndarray, "n"]:
        """Mean score of all readers."""
        return np.round(np.mean(list(self.readers.values()), 0), 9)


def read_scores(path: Path) -> Study:
    """Read and check the scores; breasts that lack a score of anyone are left out, so that all are paired.

    Args:
        path: CSV with a row per breast: case_ID, side (L, R), label (1 malignant, 0 not), Reader01_POM and so
            on, AI_GMIC_top5_POM, and other AI_..._POM if there are any.

    Raises:
        InputError: the file is no such table, or shows one class only.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str)
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}).") from error
    except ValueError as error:  # pandas' ParserError and EmptyDataError, and UnicodeDecodeError
        raise InputError(f"{path}: this is not a table of comma-separated values ({error}).") from error
    columns = {c: f"reader {int(c[6:-4])}" for c in table if re.fullmatch(r"Reader\d+_POM", c)}
    columns |= {c: MODELS.get(c, c[3:-4]) for c in table if re.fullmatch(r"AI_\w+_POM", c)}
    needed = ["case_ID", "side", "label", "Reader01_POM", "AI_GMIC_top5_POM"]
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}. Use the reader study's results.csv.")
    for name, allowed in (("side", ["L", "R"]), ("label", ["0", "1"])):
        if not (good := table[name].isin(allowed)).all():
            _refuse(path, table, ~good, name, f"is to be {' or '.join(allowed)}")
    _refuse(path, table, table["case_ID"].isna(), "case_ID", "is to name the patient")
    _refuse(path, table, table.duplicated(["case_ID", "side"]), "side", "has this breast for the second time")
    scores = table[list(columns)].apply(pd.to_numeric, errors="coerce")
    for name in columns:
        bad = (scores[name].isna() & table[name].notna()) | (scores[name] < 0) | (scores[name] > 1)
        _refuse(path, table, bad, name, "is to be a probability, 0 to 1, or empty")
    whole = scores.notna().all(axis=1)
    label = table.loc[whole, "label"].to_numpy(float)
    if len(np.unique(label)) < 2:
        raise InputError(f"{path}: labels of breasts with all scores are of one class; both are needed.")
    by_name = {who: scores.loc[whole, name].to_numpy(float) for name, who in columns.items()}
    readers = {who: s for who, s in by_name.items() if who.startswith("reader ")}
    models = {who: s for who, s in by_name.items() if who not in readers}
    return Study(label, table.loc[whole, "case_ID"].to_numpy(str), readers, models, int((~whole).sum()))


def _refuse(path: Path, table: Any, bad: Any, name: str, rule: str) -> None:
    """Name the first bad row of a column, if there is one."""
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{path}: line {row + 2}, {name} {table[name].iloc[row]!r}: {rule}. Correct the line."
        )


class Ranks(NamedTuple):
    """The breasts of one class in the order of m scores, and the ROC points at the scores of p positives."""

    members: Int[np.ndarray, "n"]
    order: Int[np.ndarray, "n m"]
    """Members from the highest score down."""
    above: Int[np.ndarray, "p m"]
    """How many members score higher than each positive breast."""
    reached: Int[np.ndarray, "p m"]
    """How many score as high, or higher."""


def rank_scores(label: Float[np.ndarray, "n"], scores: Float[np.ndarray, "n m"]) -> tuple[Ranks, Ranks]:
    """Sort positive and negative breasts by each score once: weighted figures need no more sorting."""
    found, cases = [], -scores[label == 1]
    for value in (1, 0):
        members = np.flatnonzero(label == value)
        order = np.argsort(-scores[members], axis=0, kind="stable")
        falling = np.take_along_axis(-scores[members], order, 0)
        above, reached = (
            np.stack([np.searchsorted(a, at, side) for a, at in zip(falling.T, cases.T, strict=True)], 1)
            for side in ("left", "right")
        )
        found.append(Ranks(members, members[order], above, reached))
    return found[0], found[1]


def weighted_figures(ranks: tuple[Ranks, Ranks], weight: Float[np.ndarray, "n"]) -> Float[np.ndarray, "6 m"]:
    """Compute `METRICS` of m scores where each breast counts `weight` times.

    With whole weights this is what `metrics.auc_score`, `average_precision`, `partial_auc_ratio` and
    `specificity_at_sensitivity` say of breasts repeated so often, and last the ROC curve's sensitivity at a
    specificity of .9; but thousands of resamples of hundreds of scores take seconds. A ROC curve gains
    sensitivity only at the scores of positive breasts, so nothing else is looked at.

    Args:
        ranks: from `rank_scores`.
        weight: 0 or more.

    Returns:
        Figures in [0, 1]; NaN where only one class has weight.
    """
    positives, negatives = (weight[r.members].sum() for r in ranks)
    if not positives or not negatives:
        return np.full((len(METRICS), ranks[0].order.shape[1]), np.nan)
    curve = []
    for r, total in zip(ranks, (positives, negatives), strict=True):
        count = np.cumsum(np.pad(weight[r.order], ((1, 0), (0, 0))), 0) / total
        curve += [np.take_along_axis(count, at, 0) for at in (r.above, r.reached)]
    t0, t1, f0, f1 = curve  # (p, m): sensitivity and 1 - specificity just before and at each positive's score
    share = weight[ranks[0].members, None] / positives  # what a positive adds to sensitivity
    with np.errstate(invalid="ignore", divide="ignore"):  # at positives of weight 0, which count nothing
        precision = t1 * positives / (t1 * positives + f1 * negatives)
        low = np.clip(0.8, t0, t1)
        f_low = f0 + (f1 - f0) * (low - t0) / (t1 - t0)
        upper = (t1 - low) / (t1 - t0) * (1 - (f_low + f1) / 2) / 0.2
        rise = np.where((f0 <= 0.1) & (f1 > 0.1), (0.1 - f0) / (f1 - f0), 1)  # how far up a slope 0.1 lies
    values = [1 - (f0 + f1) / 2, *(np.where(share > 0, part, 0) for part in (precision, upper))]
    specificities = [1 - np.where(t1 >= at, f1, 1).min(0) for at in (0.85, 0.9)]
    sensitivity = np.where(f0 <= 0.1, t0 + (t1 - t0) * rise, 0).max(0)
    return np.stack([*((share * value).sum(0) for value in values), *specificities, sensitivity])


def mean_curve(
    curves: Sequence[tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]],
) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """Average ROC curves: at each 1 - specificity the mean sensitivity, so the area is the mean area.

    Args:
        curves: (fpr, tpr) of each, both never decreasing from 0 to 1, as scikit-learn gives them.
    """
    grid = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    # Curves may rise at one fpr: their lower end there, then their upper end.
    low = np.mean([np.interp(-grid, -fpr[::-1], tpr[::-1]) for fpr, tpr in curves], 0)
    high = np.mean([np.interp(grid, fpr, tpr) for fpr, tpr in curves], 0)
    return np.repeat(grid, 2), np.stack([low, high], 1).ravel()


def mix(
    reader: Float[np.ndarray, "n"], model: Float[np.ndarray, "n"], weight: float = 0.5
) -> Float[np.ndarray, "n"]:
    """Return the hybrid of two scores in [0, 1], `weight` of it the model's.

    Scores have few decimals, so that many hybrids are equal: rounding to 9 keeps them so, as 0.1 + 0.2 and
    0.3 are in decimals and not in binary.
    """
    return np.round((1 - weight) * reader + weight * model, 9)


def _columns(study: Study) -> dict[tuple[str, str], np.ndarray]:
    """Every score that is looked at, by (who, kind)."""
    readers, models = study.readers, study.models
    together = study.together
    columns = {(who, "reader"): s for who, s in readers.items()}
    columns |= {(who, "model"): s for who, s in models.items()}
    columns[TOGETHER, "readers together"] = together
    columns |= {(f"{TOGETHER} with {m}", "readers together"): mix(together, s) for m, s in models.items()}
    columns |= {
        (f"{who} with {m}", "hybrid"): mix(s, t) for m, t in models.items() for who, s in readers.items()
    }
    return columns | {
        (f"{who}, weight {w:.2f}", "weight"): mix(s, models[MODEL], w)
        for w in WEIGHTS
        for who, s in readers.items()
    }


def _summary(figures: np.ndarray, columns: Sequence[tuple[str, str]], study: Study) -> dict[Key, np.ndarray]:
    """Give every figure its name; (..., 6, m) to values (...), means and differences included."""
    at = {name: figures[..., i] for i, name in enumerate(columns)}  # (..., 6)

    def mean(kind: str, end: str) -> np.ndarray:
        return np.mean([at[who + end, kind] for who in study.readers], 0)

    average = {("mean reader", "mean"): mean("reader", "")}
    average |= {(f"mean hybrid with {m}", "mean"): mean("hybrid", f" with {m}") for m in study.models}
    shown = {name: value for name, value in at.items() if name[1] != "weight"} | average
    result = {(*name, m): value[..., k] for name, value in shown.items() for k, m in enumerate(METRICS)}
    for w in WEIGHTS:
        for who in study.readers:
            result[f"{who}, weight {w:.2f}", "weight", "AUC"] = at[f"{who}, weight {w:.2f}", "weight"][..., 0]
        value = mean("weight", f", weight {w:.2f}")[..., 0]
        result[f"mean hybrid, weight {w:.2f}", "weight", "AUC"] = value
    by_name = {who: value for (who, _), value in shown.items()}
    hybrid, both = f"mean hybrid with {MODEL}", f"{TOGETHER} with {MODEL}"
    pairs = [(MODEL, "mean reader"), (hybrid, "mean reader"), (hybrid, MODEL)]
    pairs += [(TOGETHER, "mean reader"), (both, TOGETHER), (both, MODEL)]
    pairs += [pair for who in study.readers for pair in ((MODEL, who), (f"{who} with {MODEL}", who))]
    for a, b in pairs:
        for k, m in enumerate(METRICS):
            result[f"{a} minus {b}", "difference", m] = (by_name[a] - by_name[b])[..., k]
    return result


def measure(study: Study, n_resamples: int, seed: int) -> dict[Key, tuple[float, float, float]]:
    """Compute every figure and its 95 % percentile interval over patients.

    All figures see the same draws, so differences are paired. A draw of one class alone is replaced.

    Returns:
        (who, kind, metric) to (value, low, high).
    """
    columns = _columns(study)
    ranks = rank_scores(study.label, np.stack(list(columns.values()), 1))
    names, patient = np.unique(study.patient, return_inverse=True)
    rng, drawn = np.random.default_rng(seed), []
    while len(drawn) < n_resamples:
        count = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        figures = weighted_figures(ranks, count[patient].astype(float))
        if np.isfinite(figures).all():
            drawn.append(figures)
    values = _summary(weighted_figures(ranks, np.ones(len(patient))), list(columns), study)
    samples = _summary(np.stack(drawn), list(columns), study)
    return {
        key: (float(value), *map(float, np.quantile(samples[key], [0.025, 0.975])))
        for key, value in values.items()
    }


def thin_curve(
    fpr: Float[np.ndarray, "_"], tpr: Float[np.ndarray, "_"], points: int = 40
) -> tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]:
    """Keep at most `points` corners of a curve, both ends among them.

    The corner that makes the smallest triangle with its neighbours goes first (Visvalingam's rule).
    """
    kept = np.stack([fpr, tpr], 1)
    while len(kept) > points:
        a, b, c = kept[:-2], kept[1:-1], kept[2:]
        twice = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]  # area of each triangle
        kept = np.delete(kept, 1 + int(np.argmin(np.abs(twice))), axis=0)
    return kept[:, 0], kept[:, 1]


def reader_curves(study: Study) -> dict[str, list[dict[str, Any]]]:
    """ROC curve and AUC of every reader mixed with `MODEL`, at each weight of `STEPS`; and their means.

    Returns:
        Reader, or `MEAN`, to one entry per weight: `auc` of the whole scores, `fpr` and `tpr` thinned to
        40 corners, all to four decimals. `MEAN` is the mean of the readers' curves, and of AUCs.
    """
    from sklearn.metrics import roc_curve

    def entry(auc: float, fpr: np.ndarray, tpr: np.ndarray) -> dict[str, Any]:
        x, y = (np.round(part, 4).tolist() for part in thin_curve(fpr, tpr))
        return {"auc": round(auc, 4), "fpr": x, "tpr": y}

    found: dict[str, list[dict[str, Any]]] = {who: [] for who in (MEAN, *study.readers)}
    for weight in STEPS:
        scores = {who: mix(s, study.models[MODEL], weight) for who, s in study.readers.items()}
        aucs = {who: auc_score(study.label, s) or 0.0 for who, s in scores.items()}  # both classes are there
        curves = {who: roc_curve(study.label, s)[:2] for who, s in scores.items()}
        for who in scores:
            found[who].append(entry(aucs[who], *curves[who]))
        found[MEAN].append(entry(float(np.mean(list(aucs.values()))), *mean_curve(list(curves.values()))))
    return found


def write_curves(scores: Path, out: Path = CURVES) -> None:
    """Write the ROC curves that the book shows, with where they come from; InputError for another table.

    Args:
        scores: results.csv of the meta-repository.
        out: the JSON file.
    """
    study, checksum = read_scores(scores), sha256(scores)
    value = {
        "what": "ROC curves of readers mixed with a model; no score of a breast is in here.",
        "source": SOURCE,
        "licence": LICENCE,
        "model": MODEL,
        "breasts": len(study.label),
        "malignant": int(study.label.sum()),
        "patients": len(np.unique(study.patient)),
        "weights": STEPS,
        "curves": reader_curves(study),
        "provenance": provenance(
            command="python -m mammomil.experiments.reader_scores --scores results.csv",
            scores_sha256=checksum,
            published=checksum == REMOTE["reader-study-scores"].sha256,
        ),
    }
    with atomic_path(out) as temporary:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        temporary.write_text(text.replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tyro

    tyro.cli(write_curves)
