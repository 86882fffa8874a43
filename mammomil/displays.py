"""Figures of both papers as Display objects, in the manner of scikit-learn's.

A display is made from predictions, holds the numbers it shows, draws them with `plot`, on axes of its own or
on given ones, and says them in words with `alt_text`. Curves that share axes differ in colour and in dashes,
so that they can be told apart without colour. `plots.save_figure` writes `figure_`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes

from mammomil.display_base import DASHES, MARKERS, Display, figure_alt, join
from mammomil.files import InputError
from mammomil.plots import epoch_series, read_epochs
from mammomil.table_displays import CLASSES, BarsDisplay, ConfusionDisplay, ProbabilityPlaneDisplay

__all__ = [
    "CLASSES",
    "DASHES",
    "MARKERS",
    "BarsDisplay",
    "ConfusionDisplay",
    "FrocDisplay",
    "LearningCurveDisplay",
    "ProbabilityPlaneDisplay",
    "ReliabilityDisplay",
    "RocDisplay",
    "figure_alt",
]
_Curve = Float[np.ndarray, "t"] | None


@dataclass(eq=False)
class RocDisplay(Display):
    """ROC curve (GMIC paper Fig. 3); its numbers are None where only one class is known."""

    fpr: _Curve
    tpr: _Curve
    auc: float | None
    interval: tuple[float, float] | None = None
    min_sensitivity: float | None = None
    partial_auc: float | None = None
    counts: tuple[int, int] = (0, 0)  # negatives and positives
    marks: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # (fpr, tpr) by name
    _what: ClassVar = "ROC curve"

    @classmethod
    def from_predictions(
        cls, y: Float[np.ndarray, "n"], s: Float[np.ndarray, "n"], *, name: str = "", n_resamples: int = 2000,
        groups: Shaped[np.ndarray, "n"] | None = None, min_sensitivity: float | None = None,
    ) -> "RocDisplay":  # fmt: skip
        """Compute the curve over the known labels: y is 0, 1, or NaN where unknown; s is larger for 1.

        With `groups`, patients, the area gets the 95 % interval of `metrics.bootstrap_ci`. With
        `min_sensitivity` the sensitivities above are shaded and `metrics.partial_auc_ratio` is given.
        """
        from sklearn.metrics import roc_curve

        from mammomil.metrics import auc_score, bootstrap_ci, partial_auc_ratio

        known, auc = ~np.isnan(y), auc_score(y, s)
        fpr, tpr, _ = (None, None, None) if auc is None else roc_curve(y[known], s[known])
        ends = None if groups is None else bootstrap_ci(auc_score, y, s, groups, n_resamples=n_resamples)
        partial = None if min_sensitivity is None else partial_auc_ratio(y, s, min_sensitivity)
        counts = int((y == 0).sum()), int((y == 1).sum())
        return cls(fpr, tpr, auc, ends, min_sensitivity, partial, counts, name=name)

    def mark(self, fpr: Any, tpr: Any, name: str) -> "RocDisplay":
        """Mark one or more single points, such as human readers, on the axes of the last `plot`."""
        self.marks[name] = fpr, tpr = np.atleast_1d(np.array(fpr, float)), np.atleast_1d(np.array(tpr, float))
        n = len(self._drawn("point"))
        look = {"color": "black", "markerfacecolor": "white", "marker": MARKERS[n % 7], "gid": f"point-{n}"}
        self.ax_.plot(fpr, tpr, linestyle="none", label=name, zorder=3, **look)
        self._explain()
        return self

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        self._guide("chance", [0, 1], [0, 1])
        if self.min_sensitivity is not None and not ax.patches:
            ax.axhspan(self.min_sensitivity, 1, color="0.93", zorder=-1, linewidth=0)
        words = "only one class, no curve" if self.auc is None else f"AUC {self.auc:.3f}"
        words += f" ({self.interval[0]:.2f}-{self.interval[1]:.2f})" if self.interval else ""
        words += f", pAUCR {self.partial_auc:.3f}" if self.partial_auc is not None else ""
        self._curve(self.fpr, self.tpr, join(name, words), style)
        self._square("1 - specificity", "sensitivity")

    def _say(self) -> str:
        over = f"{self.counts[1]} positives and {self.counts[0]} negatives"
        if self.auc is None:
            return f": not drawn, because only one class is known, {over}"
        low_high = " (95 % interval {:.2f} to {:.2f})".format(*self.interval) if self.interval else ""
        text = f": AUC {self.auc:.3f}{low_high} over {over}"
        if self.partial_auc is not None:
            text += (
                f". Mean specificity at sensitivities from {self.min_sensitivity:g}: {self.partial_auc:.3f}"
            )
        for name, (x, y) in self.marks.items():
            mean = f", the mean of {len(x)} points" if len(x) > 1 else ""
            text += f"; {name}: sensitivity {y.mean():.2f} at specificity {1 - x.mean():.2f}{mean}"
        return text


@dataclass(eq=False)
class FrocDisplay(Display):
    """FROC curve (dual-branch paper Fig. 5), with a dot at 1 FPPI: the best sensitivity at no more than each.

    A curve that ends before 1 FPPI is drawn on to it: by reading A30 it is level there. The numbers are None
    where no positive image can be judged.
    """

    sensitivity: _Curve
    fppi: _Curve
    at_one: float | None  # sensitivity at 1 FPPI
    alpha: float = 0.5
    units: tuple[str, str] = ("positive images", "image called positive")  # of sensitivity and of FPPI
    max_fppi: float = 8.0
    _what: ClassVar = "FROC curve"

    @classmethod
    def from_predictions(
        cls, images: Sequence[Mapping[str, Any]], *, alpha: float = 0.5, operating_sensitivity: float = 0.85,
        gate: bool = True, fppi_over: Literal["classified", "all"] = "classified",
        per: Literal["image", "lesion"] = "image", max_fppi: float = 8.0, name: str = "",
    ) -> "FrocDisplay":  # fmt: skip
        """Compute the curve as `metrics.froc_curve` does; at most `max_fppi` of it is shown."""
        from mammomil.metrics import froc_curve, sensitivity_at_fppi

        curve = froc_curve(images, alpha, operating_sensitivity, gate, fppi_over, per)
        sensitivity, fppi, _ = curve or (None, None, None)
        at_one = sensitivity_at_fppi(sensitivity, fppi, 1.0) if curve else None
        called = "image called positive" if gate and fppi_over == "classified" else "image"
        units = {"image": "positive images", "lesion": "lesions"}[per], called
        return cls(sensitivity, fppi, at_one, alpha, units, max_fppi, name=name)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        self._guide("one", [1, 1], [0, 1.02])
        if self.at_one is None:
            self._curve(None, None, join(name, "no positive image to judge"), style)
        else:
            x, words = (
                np.append(self.fppi, max(1, self.fppi[-1])),
                join(name, f"{self.at_one:.3f} at 1 FPPI"),
            )
            y = np.append(self.sensitivity, self.sensitivity[-1])
            line = self._curve(x, y, words, style, drawstyle="steps-post")
            ax.plot([1], [self.at_one], "o", color=line.get_color(), markersize=5, clip_on=False)
        longest = max((line.get_xdata().max() for line in self._drawn()), default=1.0)
        ax.set(xlim=(0, min(self.max_fppi, max(1.5, 1.03 * longest))), ylim=(0, 1.02))
        ax.set(xlabel=f"false positives per {self.units[1]} (FPPI)", ylabel=f"share of {self.units[0]} hit")

    def _say(self) -> str:
        if self.at_one is None:
            return ": not drawn, because there is no positive image to judge"
        share, per = self.units
        text = f": at 1 false positive per {per}, {self.at_one:.3f} of the {share} are hit, with an IoM of "
        text += f"{self.alpha:g} or more. The curve ends at {self.fppi[-1]:.2f} with "
        return text + f"{self.sensitivity[-1]:.3f}"


@dataclass(eq=False)
class ReliabilityDisplay(Display):
    """How often a finding is there, against its probability; every bin that holds images is a point."""

    mean_predicted: Float[np.ndarray, "k"]
    observed: Float[np.ndarray, "k"]
    count: Int[np.ndarray, "k"]
    interval: Float[np.ndarray, "k 2"]  # Wilson, 95 %
    brier: float | None
    histogram: Shaped[np.ndarray, "h"]  # predictions in equal parts of [0, 1]
    _what: ClassVar = "Reliability curve"
    _legend_at: ClassVar = "best", -1.6

    @classmethod
    def from_predictions(
        cls, y: Float[np.ndarray, "n"], p: Float[np.ndarray, "n"], *, n_bins: int = 10,
        strategy: Literal["uniform", "quantile"] = "uniform", name: str = "",
    ) -> "ReliabilityDisplay":  # fmt: skip
        """Compute the points as `metrics.reliability_curve` does: y is 0, 1, or NaN where unknown."""
        from scipy.stats import binomtest

        from mammomil.metrics import brier_score, reliability_curve

        points = np.array(reliability_curve(y, p, n_bins=n_bins, strategy=strategy), float)
        mean, share, count = points[:, points[2] > 0]
        tests = [binomtest(round(s * c), int(c)) for s, c in zip(share, count, strict=True)]
        bars = np.array([tuple(test.proportion_ci(method="wilson")) for test in tests]).reshape(-1, 2)
        inner = np.linspace(0, 1, n_bins + 1)[1:-1]  # edges belong to the bin below, as in the curve
        histogram = np.bincount(np.searchsorted(inner, p[~np.isnan(y)]), minlength=n_bins)
        return cls(mean, share, count.astype(int), bars, brier_score(y, p), histogram, name=name)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        self._guide("diagonal", [0, 1], [0, 1])
        words = join(name, "no known label" if self.brier is None else f"Brier {self.brier:.3f}")
        marker = MARKERS[len(self._drawn()) % 7]
        line = self._curve(self.mean_predicted, self.observed, words, style, marker=marker)
        ax.vlines(self.mean_predicted, *self.interval.T, color=line.get_color(), linewidth=1.3)
        self._square("", "observed share")
        ax.tick_params(labelbottom=False)
        below = (
            ax.child_axes[0]
            if ax.child_axes
            else ax.inset_axes((0, -1.1, 1, 0.9), transform=self._below(), sharex=ax)
        )
        look = {"color": line.get_color(), "linestyle": line.get_linestyle(), "linewidth": 1.3}
        below.stairs(self.histogram, np.linspace(0, 1, len(self.histogram) + 1), **look)
        below.set(xlabel="predicted probability", ylabel="images")
        below.locator_params("y", nbins=3, integer=True)
        below.spines[["top", "right"]].set_visible(False)

    def _say(self) -> str:
        if self.brier is None:
            return ": not drawn, because no label is known"
        at = [f"{self.observed[k]:.2f} where {self.mean_predicted[k]:.2f} is predicted" for k in (0, -1)]
        text = f": Brier score {self.brier:.3f} over {self.count.sum()} images."
        return f"{text} The observed share is {at[0]}, and {at[1]}"


@dataclass(eq=False)
class LearningCurveDisplay(Display):
    """A figure by epoch (dual-branch paper Fig. 3): validation bold, training thin, the best epoch ringed."""

    runs: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int | None]]
    """By name: epochs from 1, training, validation, and the epoch that the run marked as best."""
    figure: str = "auc_malignant"
    _what: ClassVar = "Learning curve"
    _size: ClassVar = (6.2, 4.2)
    _legend_at: ClassVar = "best", -0.45

    @classmethod
    def from_runs(
        cls, runs: str | Path | Mapping[str, str | Path], *, figure: str = "auc_malignant"
    ) -> "LearningCurveDisplay":
        """Read `metrics.jsonl` of a run, or of several by name; InputError where one lacks the figure."""
        found = {}
        for name, path in (runs if isinstance(runs, Mapping) else {"": runs}).items():
            epochs = read_epochs(Path(path))
            keys = sorted({key for row in epochs for key in [*row["val"], *row["train_figures"]]})
            if figure not in keys:
                raise InputError(f"{path}: no epoch has {figure!r}. Choose one of: {', '.join(keys) or '-'}.")
            number = np.array([row["epoch"] + 1 for row in epochs])
            best = [row["epoch"] + 1 for row in epochs if row.get("best")]
            train, val = (epoch_series(epochs, part, figure) for part in ("train_figures", "val"))
            found[name] = number, train, val, best[-1] if best else None
        return cls(found, figure)

    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        for run, (epoch, train, val, best) in self.runs.items():
            words = "no validation figure" if np.isnan(val).all() else "validation"
            words += "" if best is None else f", best epoch {best}"
            look = {"marker": MARKERS[len(self._drawn()) % 7], "markevery": max(1, len(epoch) // 10)}
            line = self._curve(epoch, val, join(run, words), style, **look)
            ax.plot(epoch[epoch == best], val[epoch == best], "ko", mfc="none", markersize=12, zorder=3)
            if np.isfinite(train).any():
                look |= {"color": line.get_color(), "linestyle": line.get_linestyle(), "linewidth": 0.9}
                ax.plot(
                    epoch, train, label=join(run, "training"), mfc="white", markersize=4, zorder=1.5, **look
                )
        ax.set(xlabel="epoch", ylabel=self.figure.replace("auc_", "AUC, "))
        ax.set_title(name, parse_math=False)
        ax.locator_params("x", integer=True, min_n_ticks=1)
        ax.grid(color="0.92")

    def _say(self) -> str:
        parts = []
        for run, (epoch, train, val, best) in self.runs.items():
            k = -1 if best is None else int(np.argmax(epoch == best))
            text = f"{'last' if best is None else 'best'} epoch {epoch[k]} of {len(epoch)}"
            for words, value in (("validation", val[k]), ("training", train[k])):
                text += f", {words} {value:.3f}" if np.isfinite(value) else f", no {words} figure"
            parts.append(join(run, text))
        return f", {self.figure.replace('auc_', 'AUC, ')}: {'; '.join(parts)}"
