"""The probability plane: Figure 6 of the dual-branch paper, and Table III, its confusion matrix."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mammomil.experiments.common import (
    Picture,
    describe_data,
    trained,
    write_results,
)
from mammomil.experiments.region_runs import (
    WEAK,
    RegionExperiment,
    run_methods,
    scaled,
)
from mammomil.files import InputError
from mammomil.recipes import Scale
from mammomil.types import REGION_CLASSES

NAME = "probability-plane"
PAPER = np.array([[60, 7, 3], [112, 304, 100], [5, 15, 23]])  # Table III: true N, B, M by predicted N, B, M


@dataclass(frozen=True, kw_only=True)
class Config(RegionExperiment):
    """Figure 6 and Table III of the dual-branch paper: images as points, and three classes told apart there.

    Every image is a point (p malignant, p benign) by Cls-Det-RS. A one-vs-rest kernel SVM learns the classes
    normal, benign and malignant (with or without a benign finding) from the training points of a fold and is
    tested on the fold's own patients. Shares training runs with dual-branch-weak.
    """

    out: Path = Path("runs/probability-plane")
    """Folder of the table, the figures and their provenance."""
    svm_c: float = 1.0
    """C of the SVM; the paper names neither C nor kernel (reading A20: RBF)."""
    balanced: bool = False
    """Weigh the three classes alike in the SVM."""


def defaults(scale: Scale) -> Config:
    """Return the defaults of a scale."""
    return scaled(Config, scale)


def three_classes(label: Float[np.ndarray, "n c"]) -> Int[np.ndarray, "n"]:
    """Class of each image in the order of `REGION_CLASSES`; malignant goes before benign; -1 where unknown.

    The paper brings M and MB together (checklist D28). An image whose malignant label is 1 needs no benign
    label; otherwise both must be known.
    """
    benign, malignant = label.T
    known = ~np.isnan(label).any(1)
    kind = np.where(known & (benign == 1), 1, np.where(known, 0, -1))
    return np.where(malignant == 1, 2, kind)


def fit_plane(prob: Float[np.ndarray, "n c"], kind: Int[np.ndarray, "n"], config: Config) -> Any:
    """Fit the one-vs-rest SVM with a radial kernel on points (p benign, p malignant); -1 is left out."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import SVC

    known = kind >= 0
    if len(np.unique(kind[known])) < 3:
        raise InputError("the training images of a fold lack one of the classes normal, benign, malignant.")
    svm = SVC(C=config.svm_c, class_weight="balanced" if config.balanced else None)
    return OneVsRestClassifier(svm).fit(prob[known], kind[known])


def neighbour_share(matrix: Int[np.ndarray, "3 3"]) -> tuple[float | None, float | None]:
    """Share of the errors on malignant, and on normal images, that went to benign (Table III)."""
    shares: list[float | None] = []
    for true in (2, 0):
        errors = matrix[true].sum() - matrix[true, true]
        shares.append(float(matrix[true, 1] / errors) if errors else None)
    return shares[0], shares[1]


def run(config: Config) -> int:
    """Run what is not done yet, and return an exit status.

    Raises:
        Stopped: by Ctrl-C; the same command goes on.
        InputError: the data or the folder cannot be used.
    """
    from sklearn.metrics import confusion_matrix

    regions, folders, found = run_methods(config, WEAK[-1:])
    (answers,) = found.values()
    kind, matrix, rows = three_classes(regions.label), np.zeros((3, 3), int), []
    planes = []
    for k in range(config.folds):
        prob, test = answers.every[k], answers.fold == k
        train = _training_rows(folders[k], regions.index.images["image_id"])
        plane = fit_plane(prob[train], kind[train], config)
        judged = test & (kind >= 0)
        called = plane.predict(prob[judged])
        matrix += confusion_matrix(kind[judged], called, labels=[0, 1, 2])
        planes.append((prob, train, test, plane))
        names = regions.index.images["image_id"].to_numpy()[judged]
        rows += [
            {"image_id": name, "fold": k + 1, "p_benign": p[0], "p_malignant": p[1]}
            | {"true": REGION_CLASSES[y], "called": REGION_CLASSES[c]}
            for name, p, y, c in zip(names, prob[judged], kind[judged], called, strict=True)
        ]
    path = write_results(
        config, NAME, "Dual branch: the probability plane, Figure 6 and Table III",
        f"{describe_data(regions.index, config)} Cls-Det-RS in {config.folds} folds of patients; the SVM "
        "of a "
        "fold has learned from its training points alone, all test images of all folds are counted.",
        rows, _tables(matrix), _pictures(planes[0], regions.label, matrix), _reading(matrix, kind),
        matrix=matrix.tolist(), paper=PAPER.tolist(), runs=trained(answers.runs),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))
    return 0


def _training_rows(folder: Path, names: Any) -> np.ndarray:
    from mammomil.index import read_index

    split = read_index(folder).images.set_index("image_id")["split"]
    return (split.reindex(names) == "train").to_numpy()


def _tables(matrix: np.ndarray) -> dict[str, tuple[list[str], list[list[str]]]]:
    heads = ["true", *(f"called {name}" for name in REGION_CLASSES)]
    tables = {}
    for title, counts in (("Ours", matrix), ("Table III of the paper", PAPER)):
        accuracy = np.trace(counts) / max(counts.sum(), 1)
        body = [
            [name, *(f"{n} ({n / max(row.sum(), 1):.0%})" for n in row)]
            for name, row in zip(REGION_CLASSES, counts, strict=True)
        ]
        tables[f"{title}: {counts.sum()} images, accuracy {accuracy:.3f}"] = (heads, body)
    return tables


def _pictures(plane: tuple[Any, ...], label: np.ndarray, matrix: np.ndarray) -> list[Picture]:
    from matplotlib.figure import Figure

    from mammomil.displays import ConfusionDisplay, ProbabilityPlaneDisplay, figure_alt

    prob, train, test, classifier = plane
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    displays = []
    for ax, (title, part) in zip(
        figure.subplots(1, 2), (("training images", train), ("test images", test)), strict=True
    ):
        display = ProbabilityPlaneDisplay.from_predictions(prob[part], label[part], classifier=classifier)
        displays.append(display.plot(ax, name=title))
    words = figure_alt(*displays, title="Probability plane of the first fold, training and test images")
    table = ConfusionDisplay.from_matrix(matrix, REGION_CLASSES, name="all folds").plot()
    return [
        Picture("probability-plane", figure, words, "First fold; tints: what the SVM calls a point there."),
        Picture("confusion", table.figure_, table.alt_text()),
    ]


def _reading(matrix: np.ndarray, kind: np.ndarray) -> list[str]:
    ours, paper = neighbour_share(matrix), neighbour_share(PAPER)
    share = [f"{100 * s:.0f} %" if s is not None else "none" for s in (*ours, *paper)]
    most = np.bincount(kind[kind >= 0], minlength=3).max() / max((kind >= 0).sum(), 1)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    return [
        f"Errors on malignant images that are called benign: {share[0]} here, {share[2]} in the paper; "
        "errors on "
        f"normal images that are called benign: {share[1]} here, {share[3]} in the paper.",
        f"Accuracy {accuracy:.3f}; calling every image by the most frequent class gives {most:.3f}. The "
        "classes "
        "are not equally frequent here and in the paper (most of its images are benign), so accuracies do "
        "not "
        "compare; the shares of rows do, with care.",
        "The SVM learns from points of images the network was trained on, as the paper's figure does. "
        "These lie "
        "farther apart than points of new images.",
    ]
