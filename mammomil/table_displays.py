"""Displays that are no curves: the probability plane, tables of models as dots, confusion matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from mammomil.display_base import Display
from mammomil.panels import COLOURS
from mammomil.plots import CYCLE

CLASSES = {"normal (N)": ("0.6", "o"), "benign (B)": (COLOURS["benign"], "s"),
           "malignant (M)": (COLOURS["malignant"], "^"), "both (MB)": ("black", "D")}  # fmt: skip


@dataclass(eq=False)
class ProbabilityPlaneDisplay(Display):
    """Both probabilities of every image, by true class (dual-branch paper Fig. 6, checklist D28).

    The paper has N blue, B green, M red and MB black; red and green look alike to many people. Here N are
    grey circles, B blue squares, M vermillion triangles, MB black diamonds, as elsewhere in this project.
    """

    prob: Float[np.ndarray, "n 2"]  # (benign, malignant), of the images with known labels
    true: Int[np.ndarray, "n"]  # place of the class in CLASSES
    n_unknown: int = 0
    regions: Shaped[np.ndarray, "g g"] | None = None  # class by [row of p(benign), column of p(malignant)]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    _what: ClassVar = "Plane of p(malignant) and p(benign)"
    _size: ClassVar = (5.2, 5.6)
    _legend_at: ClassVar = "", -0.45

    @classmethod
    def from_predictions(
        cls, prob: Float[np.ndarray, "n 2"], label: Float[np.ndarray, "n 2"], *, classifier: Any = None,
        thresholds: Mapping[str, float] | None = None, grid: int = 200, name: str = "",
    ) -> "ProbabilityPlaneDisplay":  # fmt: skip
        """Sort images by class; those with an unknown label are left out and counted.

        Both tables have columns (benign, malignant), labels being 0, 1 or NaN. A fitted `classifier` takes
        rows of `prob` and predicts 0 normal, 1 benign, 2 malignant; it is asked on `grid` x `grid` cells.
        Thresholds are "malignant", on p(malignant), and "any", on the larger of both.
        """
        known, regions = ~np.isnan(label).any(1), None
        if classifier is not None:
            malignant, benign = np.meshgrid(*[(np.arange(grid) + 0.5) / grid] * 2)
            regions = classifier.predict(np.stack([benign.ravel(), malignant.ravel()], 1)).reshape(grid, grid)
        true = (label[known] @ [1, 2]).astype(int)
        return cls(prob[known], true, int((~known).sum()), regions, thresholds or {}, name=name)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        for k, (words, (colour, marker)) in enumerate(CLASSES.items()):
            benign, malignant = self.prob[self.true == k].T
            look = {"color": colour, "marker": marker, "markersize": 5.5, "alpha": 0.85, "gid": f"class-{k}"}
            look |= {"markeredgecolor": "white", "markeredgewidth": 0.5, "label": f"{words}: {len(benign)}"}
            ax.plot(malignant, benign, linestyle="none", zorder=3, **look)[0].set(**style)
        if (tau := self.thresholds.get("malignant")) is not None:
            ax.plot([tau, tau], [0, 1], "k--", label=f"p(malignant) = {tau:.2f}")
        if (tau := self.thresholds.get("any")) is not None:
            ax.plot([0, tau, tau], [tau, tau, 0], "k:", label=f"larger of both = {tau:.2f}")
        if self.regions is not None:
            self._paint_regions(ax)
        self._square("p(malignant)", "p(benign)")
        ax.set_title(name, parse_math=False)

    def _paint_regions(self, ax: Axes) -> None:
        from scipy.ndimage import distance_transform_edt

        tints = ListedColormap([colour for colour, _ in CLASSES.values()][:3])
        look = {"extent": (0, 1, 0, 1), "origin": "lower", "interpolation": "nearest", "alpha": 0.22}
        ax.imshow(self.regions, cmap=tints, vmin=0, vmax=2, **look)
        for k, words in enumerate(("normal", "benign", "malignant")):
            depth = distance_transform_edt(np.pad(self.regions == k, 1))[1:-1, 1:-1]
            if depth.any():  # the name stands where the region is widest
                y, x = (np.array(np.unravel_index(depth.argmax(), depth.shape)) + 0.5) / len(depth)
                box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
                ax.text(x, y, words, ha="center", va="center", bbox=box, zorder=4)

    def _say(self) -> str:
        parts = []
        for k, words in enumerate(CLASSES):
            at = self.prob[self.true == k]
            middle = ", medians {1:.2f} and {0:.2f}".format(*np.median(at, 0)) if len(at) else ""
            parts.append(f"{len(at)} {words}{middle}")
        text = f": {'; '.join(parts)}"
        text += f". Left out with an unknown label: {self.n_unknown}" if self.n_unknown else ""
        if self.regions is not None:
            words = ". The classifier calls {:.0f} % of the plane normal, {:.0f} % benign, {:.0f} % malignant"
            text += words.format(*[100 * (self.regions == k).mean() for k in range(3)])
        return text


@dataclass(eq=False)
class BarsDisplay(Display):
    """Models as dots with their intervals, one row each, beside the numbers of a paper as hollow diamonds."""

    names: Sequence[str]
    values: Float[np.ndarray, "n"]
    intervals: Float[np.ndarray, "n 2"]
    reference: Float[np.ndarray, "n"]
    series: tuple[str, str] = ("ours", "paper")
    value_name: str = "AUC"
    _what: ClassVar = "Comparison"
    _legend_at: ClassVar = "", -0.45

    @classmethod
    def from_table(
        cls, names: Sequence[str], values: Any, intervals: Any = None, reference: Any = None, *,
        series: tuple[str, str] = ("ours", "paper"), value_name: str = "AUC", name: str = "",
    ) -> "BarsDisplay":  # fmt: skip
        """Take one value of each model, its (low, high), and the paper's value; None is a missing number."""
        none = [None] * len(names)
        pairs = [
            (None, None) if pair is None else pair for pair in (none if intervals is None else intervals)
        ]
        table = [np.array(list(c), float) for c in (values, pairs, none if reference is None else reference)]
        if any(len(column) != len(names) for column in table):
            raise ValueError(f"{len(names)} names need as many values, intervals and references.")
        return cls(names, *table, series, value_name, name=name)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        rows = np.arange(len(self.names))
        ax.hlines(rows, *self.intervals.T, color=CYCLE[0], linewidth=2)
        ax.plot(self.values, rows, "o", color=CYCLE[0], markersize=7, label=self.series[0])[0].set(**style)
        if np.isfinite(self.reference).any():
            ax.plot(self.reference, rows, "kD", mfc="none", markersize=7, label=self.series[1])
        ax.set_yticks(rows, self.names, parse_math=False)
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=self.value_name, axisbelow=True)
        ax.set_title(name, parse_math=False)
        ax.grid(color="0.9")

    def _say(self) -> str:
        parts, table = [], zip(self.names, self.values, self.intervals, self.reference, strict=True)
        for name, value, ends, other in table:
            text = f"{name} {value:.3f}" if np.isfinite(value) else f"{name} not measured"
            text += " ({:.2f} to {:.2f})".format(*ends) if np.isfinite(ends).all() else ""
            parts.append(text + (f", {self.series[1]} {other:.3f}" if np.isfinite(other) else ""))
        return f", {self.value_name}, {self.series[0]}: {'; '.join(parts)}"


@dataclass(eq=False)
class ConfusionDisplay(Display):
    """Confusion matrix (dual-branch paper Table III), rows true, with counts and shares of rows."""

    matrix: Int[np.ndarray, "c c"]
    classes: Sequence[str]
    _what: ClassVar = "Confusion matrix"
    _size: ClassVar = (4.6, 4.4)

    @classmethod
    def from_matrix(cls, matrix: Any, classes: Sequence[str], name: str = "") -> "ConfusionDisplay":
        """Take counts, [true, predicted], of classes in the order of their names."""
        matrix = np.asarray(matrix, int)
        if matrix.shape != (len(classes),) * 2:
            raise ValueError(f"{len(classes)} classes need a square matrix of that size, not {matrix.shape}.")
        return cls(matrix, classes, name=name)

    @property
    def share(self) -> Float[np.ndarray, "c c"]:
        """Counts divided by the count of their row, 0 in rows without images."""
        return self.matrix / np.maximum(self.matrix.sum(1, keepdims=True), 1)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        ax.imshow(self.share, cmap="Greys", vmin=0, vmax=1).set(**style)
        for (row, column), share in np.ndenumerate(self.share):
            look = {"ha": "center", "va": "center", "color": "white" if share > 0.62 else "black"}
            ax.text(column, row, f"{self.matrix[row, column]}\n{100 * share:.0f} %", **look)
        ax.set_xticks(range(len(self.classes)), self.classes, parse_math=False)
        ax.set_yticks(range(len(self.classes)), self.classes, parse_math=False)
        ax.set(xlabel="predicted", ylabel="true")
        ax.set_title(name, parse_math=False)

    def _say(self) -> str:
        parts = []
        for true, row in zip(self.classes, self.matrix, strict=True):
            calls = [f"{count} {called}" for count, called in zip(row, self.classes, strict=True)]
            parts.append(f"of {row.sum()} {true} are called {', '.join(calls)}")
        return f", {np.trace(self.matrix)} of {self.matrix.sum()} right: {'; '.join(parts)}"
