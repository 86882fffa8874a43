"""What `mammomil predict` wrote, read back as predictions, so that it can be judged without the model.

The tables hold six digits and the first `REGIONS_LISTED` regions of each finding. A cell that cannot be used
costs its image, and no other.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mammomil.files import InputError
from mammomil.index import BOX, read_table
from mammomil.items import safe_name
from mammomil.report import FAILURE_COLUMNS, PARTS, REGION_COLUMNS
from mammomil.types import FINDINGS, Prediction

_PROB = [f"p_{finding}" for finding in FINDINGS]
_KEY = ["model", "image_id"]
_Places = tuple[Float[np.ndarray, "k 4"], Float[np.ndarray, "k c"]]


class Predicted(NamedTuple):
    """A folder of predictions.

    Attributes:
        models: predictions by model and image, without their maps.
        faults: by model and image, what is wrong with a row that cannot be used.
        reasons: by image, why it could not be predicted, as `failures.csv` has it.
    """

    models: dict[str, dict[str, Prediction]]
    faults: dict[str, dict[str, str]]
    reasons: dict[str, str]


def read_predictions(folder: str | Path) -> Predicted:
    """Read `predictions.csv` and, where they are, `regions.csv` and `failures.csv`.

    Args:
        folder: what `mammomil predict` wrote; or a `predictions.csv` of any program with the columns
            `image_id, model, p_benign, p_malignant`.

    Returns:
        The predictions. A region listed for one finding alone has score -inf for the other. Attention is
        not in the tables: NaN where a model has parts, as GMIC does, which says that it has attention.

    Raises:
        InputError: a table cannot be read, or holds no prediction.
    """
    folder = Path(folder)
    path = folder / "predictions.csv"
    if not path.is_file():
        raise InputError(f"{folder}: no predictions.csv here. Give the folder that `mammomil predict` wrote.")
    table = read_table(path, (*_KEY, *_PROB))
    if table.empty:
        raise InputError(f"{path}: holds no prediction. Give a folder in which images were predicted.")
    places, bad = _read_regions(folder / "regions.csv")
    names = table["model"].unique()
    models: dict[str, dict[str, Prediction]] = {name: {} for name in names}
    faults: dict[str, dict[str, str]] = {name: {} for name in names}
    parts = [part for part in PARTS if {f"p_{part}_{finding}" for finding in FINDINGS} <= set(table)]
    columns = [*_PROB, *(f"p_{part}_{finding}" for part in parts for finding in FINDINGS)]
    values = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    values = values.reshape(len(table), -1, len(FINDINGS))  # (rows, 1 + parts, c)
    twice = table.duplicated(_KEY, keep=False)
    for line, row, value, again in zip(table.index, table.to_dict("records"), values, twice, strict=True):
        model, image_id = key = row["model"], row["image_id"]
        prob, where = value[0], f"predictions.csv, line {line}"
        if again:
            faults[model][image_id] = f"{where}: this image has several rows of one model; keep one of them."
        elif not ((prob >= 0) & (prob <= 1)).all():
            cells = " and ".join(f"{name} {row[name]!r}" for name in _PROB)
            faults[model][image_id] = f"{where}: {cells} must both be numbers from 0 to 1."
        elif key in bad:
            faults[model][image_id] = bad[key]
        else:
            told = {part: v for part, v in zip(parts, value[1:], strict=True) if np.isfinite(v).all()}
            boxes, scores = places.get(key, (np.zeros((0, 4)), np.zeros((0, len(FINDINGS)))))
            models[model][image_id] = Prediction(
                image_id, row.get("path", ""), model, row.get("laterality", ""), row.get("view", ""), prob,
                float(np.prod(1 - prob)), told, None, None, boxes, scores,
                np.full(len(boxes), np.nan) if told else None,
            )  # fmt: skip
    for model, image_id in {**places, **bad}.keys() - set(table[_KEY].itertuples(index=False, name=None)):
        if model not in models:
            raise InputError(
                f"{folder / 'regions.csv'}: model {model!r} is not in predictions.csv, so the two are not of "
                "one run. Predict again."
            )
        faults[model][image_id] = "regions.csv has this image, predictions.csv has not."
    beside = folder / "failures.csv"
    failed = read_table(beside, FAILURE_COLUMNS) if beside.exists() else pd.DataFrame(columns=FAILURE_COLUMNS)
    return Predicted(models, faults, dict(zip(failed["image_id"], failed["reason"], strict=True)))


def with_map(prediction: Prediction, folder: str | Path, models: int) -> Prediction:
    """Add the maps of a prediction where its folder has them.

    Args:
        prediction: from `read_predictions`.
        folder: its folder.
        models: how many models the folder has; of several, the name of a file tells which it is of.

    Raises:
        InputError: the file of the maps cannot be used.
    """
    name = safe_name(prediction.image_id)
    name += ".npz" if models == 1 else f".{safe_name(prediction.model)}.npz"
    path = Path(folder) / "maps" / name
    if not path.is_file():
        return prediction
    try:
        with np.load(path, allow_pickle=False) as file:
            saliency = np.stack([file[finding] for finding in FINDINGS]).astype(float)
            box = file["box"].astype(float)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot read these maps. Predict the image again.") from error
    usable = saliency.ndim == 3 and saliency.size and ((saliency >= 0) & (saliency <= 1)).all()
    if not usable or box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
        raise InputError(f"{path}: these are no maps from 0 to 1 over a box. Predict the image again.")
    return prediction._replace(saliency=saliency, map_box=box)


def _read_regions(path: Path) -> tuple[dict[tuple[str, str], _Places], dict[tuple[str, str], str]]:
    """Return boxes and scores by model and image, and what is wrong with those that cannot be used."""
    if not path.exists():
        return {}, {}
    table = read_table(path, REGION_COLUMNS)[list(REGION_COLUMNS)]
    numbers = ["rank", "score", *BOX]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    good = np.isfinite(table[numbers]).all(axis=1) & table["finding"].isin(FINDINGS)
    good &= (table["x1"] >= table["x0"]) & (table["y1"] >= table["y0"])
    good &= ~table.duplicated([*_KEY, "finding", "rank"], keep=False)
    advice = "give a finding, a rank of its own, a score and a box x0 <= x1, y0 <= y1."
    bad = {
        (row.model, row.image_id): f"regions.csv, line {row.Index}: no region; {advice}"
        for row in table[~good].itertuples()
    }
    table = table[good].sort_values("rank", kind="stable")
    if table.empty:
        return {}, bad
    # A region is known by its box. Of regions with the same box, the better ranks belong together.
    table["copy"] = table.groupby([*_KEY, "finding", *BOX]).cumcount()
    wide = table.set_index([*_KEY, *BOX, "copy", "finding"])[["score", "rank"]].unstack("finding")
    wide = wide.reindex(columns=pd.MultiIndex.from_product([["score", "rank"], FINDINGS]))
    places = {}
    for key, rows in wide.groupby(level=_KEY):
        score = rows["score"].fillna(-np.inf).to_numpy(float)
        order = _first_ranks_first(score, rows["rank"].fillna(np.inf).to_numpy(float))
        boxes = rows.index.to_frame()[BOX].to_numpy(float)
        places[key] = boxes[order], score[order]
    return places, bad


def _first_ranks_first(
    score: Float[np.ndarray, "k c"], rank: Float[np.ndarray, "k c"]
) -> Int[np.ndarray, "k"]:
    """Order regions so that of equal scores for a finding the one of rank 1 comes first.

    Equal scores go to the first region, so the order decides which region a model trusts most.
    """
    order = np.lexsort(rank.T)  # by the last finding's rank
    for c in range(score.shape[1] - 1):
        first = order[rank[order, c].argmin()]
        tied = np.flatnonzero(score[order, c] == score[first, c])[0]
        rest = order[order != first]
        order = np.insert(rest, tied, first) if tied < np.flatnonzero(order == first)[0] else order
    return order
