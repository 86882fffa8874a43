"""How models are judged: patients in folds, and what is said of the figures of all folds together."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from mammomil.files import InputError
from mammomil.index import Index, split_patients, write_index
from mammomil.metrics import bootstrap_ci
from mammomil.types import FINDINGS


def patient_folds(images: pd.DataFrame, folds: int = 5, seed: int = 0) -> Int[np.ndarray, "n"]:
    """Deal patients into folds that are alike in labels and breast density (checklist D24).

    A patient's kind is her worst label (malignant, benign, none, unknown) and her densest image; a kind with
    fewer patients than folds is dealt by its label alone. Every image goes where its patient goes. Ids and
    seed decide, not the order of the rows.

    Args:
        images: a table of images as in `Index`.
        folds: how many, 2 or more.
        seed: 0 or more.

    Returns:
        Fold of each image, 0 to folds - 1.

    Raises:
        InputError: there are fewer patients than folds, or a fold would lack one of the two classes of a
            finding, so that no AUC could be computed in it.
    """
    from sklearn.model_selection import StratifiedKFold

    worst = images[list(FINDINGS)].eq(1).mul([1, 2]).max(axis=1)
    worst = worst.where(images[list(FINDINGS)].notna().any(axis=1), -1)
    patients = pd.DataFrame({"label": worst, "density": images["density"], "id": images["patient_id"]})
    patients = patients.groupby("id").max()  # sorted by id
    if not 2 <= folds <= len(patients):
        raise InputError(
            f"{folds} folds of {len(patients)} patients cannot be made; choose 2 or more, and less."
        )
    kind = patients["label"].astype(int).astype(str) + patients["density"]
    rare = kind.groupby(kind).transform("size") < folds
    kind = kind.where(~rare, patients["label"].astype(int).astype(str))
    fold_of: dict[str, int] = {}
    deal = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of kinds still rarer than folds; checked below
        for fold, (_, members) in enumerate(deal.split(kind, kind)):
            fold_of.update(dict.fromkeys(patients.index[members], fold))
    dealt = images["patient_id"].map(fold_of).to_numpy(int)
    _check_classes(images, dealt)
    return dealt


def _check_classes(images: pd.DataFrame, fold: np.ndarray) -> None:
    """Refuse folds in which a finding whose labels are known is always or never there."""
    for finding in FINDINGS:
        label = images[finding].to_numpy(float)
        for k in range(fold.max() + 1) if not np.isnan(label).all() else ():
            here = label[fold == k]
            if not ((here == 0).any() and (here == 1).any()):
                raise InputError(
                    f"fold {k + 1} of {fold.max() + 1}: {int((here == 1).sum())} images with and "
                    f"{int((here == 0).sum())} without a {finding} finding. Choose fewer folds, or more "
                    "patients."
                )


def write_folds(
    index: Index, out: str | Path, folds: int = 5, seed: int = 0, validation: float = 0.2
) -> list[Path]:
    """Write an index per fold: its patients are `test`, of the others a share is `val`, the rest `train`.

    The validation images choose the epoch, so that no test image has a say in anything (checklist D24).

    Args:
        index: the images; a split they have is ignored.
        out: the folder of the folders fold-1, fold-2 and so on.
        folds: see `patient_folds`.
        seed: of the folds and of the validation patients.
        validation: share of the patients outside a fold that choose the epoch.

    Returns:
        The folders.

    Raises:
        InputError: see `patient_folds`.
    """
    fold = patient_folds(index.images, folds, seed)
    folders = []
    for k in range(folds):
        others = split_patients(
            index.images[fold != k], {"train": 1 - validation, "val": validation}, seed + k
        )["split"]
        split = others.reindex(index.images.index, fill_value="test")
        folders.append(Path(out, f"fold-{k + 1}"))
        write_index(index._replace(images=index.images.assign(split=split)), folders[-1])
    return folders


class FoldSummary(NamedTuple):
    """A figure over folds, and once more over the answers of all folds together.

    Attributes:
        folds: the figure of each fold; NaN where it is not defined.
        mean: their mean, NaN left out.
        std: their sample standard deviation (ddof 1, reading A20).
        pooled: the figure of all images together, each answered by the model that has not seen her patient;
            None where it is not defined. Models of different folds need not be calibrated alike, which makes
            it lower than the mean when they are not.
        interval: its 95 % interval over patients.
    """

    folds: Float[np.ndarray, "k"]
    mean: float
    std: float
    pooled: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}"


def over_folds(
    metric: Callable[[np.ndarray, np.ndarray], float | None],
    y: Float[np.ndarray, "n"],
    s: Float[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"],
    patients: Shaped[np.ndarray, "n"],
    n_resamples: int = 1000,
    seed: int = 0,
) -> FoldSummary:
    """Summarise a figure of cross-validated answers: mean and deviation as the paper does, and an interval.

    Args:
        metric: (labels, scores) to a number or None.
        y: labels.
        s: scores of images by the model of their own fold.
        fold: fold of each image.
        patients: patient of each image.
        n_resamples: of the interval, see `bootstrap_ci`.
        seed: of the interval.
    """
    values = [metric(y[fold == k], s[fold == k]) for k in np.unique(fold)]
    interval = bootstrap_ci(metric, y, s, patients, n_resamples=n_resamples, seed=seed)
    return FoldSummary(*mean_std(values), metric(y, s), interval)


def mean_std(values: Sequence[float | None]) -> tuple[Float[np.ndarray, "k"], float, float]:
    """Return values with NaN for None, their mean, and their deviation (ddof 1; NaN of fewer than two)."""
    array = np.array(values, dtype=float)
    known = array[~np.isnan(array)]
    mean = float(known.mean()) if len(known) else float("nan")
    return array, mean, float(known.std(ddof=1)) if len(known) > 1 else float("nan")
