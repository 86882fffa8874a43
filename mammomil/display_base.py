"""What all displays have in common: axes, looks that differ without colour, legends and words."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

from mammomil.panels import DPI
from mammomil.plots import CYCLE

DASHES = ("-", "--", ":", "-.", (0, (7, 1.5, 1, 1.5, 1, 1.5)), (0, (10, 3)), (0, (3, 4)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_Kind = TypeVar("_Kind", bound="Display")  # beartype knows no `Self` in methods


@dataclass(eq=False)
class Display(ABC):
    """Axes, looks and words that all displays share."""

    name: str = field(default="", kw_only=True)
    ax_: Axes = field(init=False, repr=False)
    figure_: Figure = field(init=False, repr=False)
    _what: ClassVar[str]
    _size: ClassVar[tuple[float, float]] = (5.2, 5.0)  # inches of a figure of its own
    # Place in the axes, and inches from their lower end where the legend does not fit in.
    _legend_at: ClassVar[tuple[str, float]] = "lower right", -0.45

    def plot(self: _Kind, ax: Axes | None = None, *, name: str | None = None, **line_style: Any) -> _Kind:
        """Draw, on axes `ax_` of a new `figure_` where no axes are given.

        Args:
            ax: may hold other displays of the same kind; the new curve then takes the next look.
            name: in place of the display's own: of a curve in the legend, of other displays the title.
            line_style: properties of the lines, such as `color` or `linewidth`, in place of the usual ones.
        """
        if ax is None:
            ax = Figure(self._size, dpi=DPI, facecolor="white", layout="constrained").subplots()
        self.ax_, self.figure_ = ax, ax.figure
        ax.spines[["top", "right"]].set_visible(False)
        self._paint(ax, self.name if name is None else name, line_style)
        self._explain()
        return self

    def alt_text(self) -> str:
        """Say the numbers in one to three plain sentences, for people who do not see the figure."""
        return f"{self._what}{' of ' * bool(self.name)}{self.name}{self._say()}."

    @abstractmethod
    def _paint(self, ax: Axes, name: str, style: dict[str, Any]) -> None:
        """Draw on axes; the legend is written afterwards."""

    @abstractmethod
    def _say(self) -> str:
        """Say the numbers, to follow what is shown and its name."""

    def _drawn(self, kind: str = "curve") -> list[Line2D]:
        return [line for line in self.ax_.lines if (line.get_gid() or "").startswith(kind)]

    def _curve(self, x: Any, y: Any, words: str, style: dict[str, Any], **look: Any) -> Line2D:
        """Draw a curve with the next colour and dashes of the axes; without x, only write its legend."""
        if x is None:
            return self.ax_.plot([], [], linestyle="none", label=words)[0]
        n = len(self._drawn())
        look = {"color": CYCLE[n % 6], "linestyle": DASHES[n % 7], "linewidth": 1.8, "markersize": 5, **look}
        line = self.ax_.plot(x, y, label=words, gid=f"curve-{n}", **look)[0]
        line.set(**style)
        return line

    def _guide(self, gid: str, x: Any, y: Any) -> None:
        """Draw a grey line that helps to read the figure, once on axes."""
        if not self._drawn(gid):
            self.ax_.plot(x, y, gid=gid, color="0.6", linewidth=1, zorder=0)

    def _below(self) -> Transform:
        """Across in parts of the axes, up in inches from their lower end, which layouts can reckon with."""
        end = ScaledTranslation(0, 0, self.ax_.transAxes)
        return blended_transform_factory(self.ax_.transAxes, self.ax_.figure.dpi_scale_trans + end)

    def _explain(self) -> None:
        """Write the legend: in the axes where that is little text, else below them."""
        words, (place, low) = self.ax_.get_legend_handles_labels()[1], self._legend_at
        if not words:
            return
        longest = max(map(len, words))
        where: dict[str, Any] = {"loc": place, "framealpha": 0.9}
        if len(words) > 4 or longest > 42 or not place:
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, low), "bbox_transform": self._below()}
            where["ncols"] = 2 if longest < 30 else 1
        for text in self.ax_.legend(fontsize=8, edgecolor="none", handlelength=3.2, **where).get_texts():
            text.set_parse_math(False)  # a dollar sign in a name starts no formula

    def _square(self, xlabel: str, ylabel: str) -> None:
        self.ax_.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=xlabel, ylabel=ylabel)


def join(name: str, words: str) -> str:
    """Put a name before words, if there is one."""
    return f"{name}, {words}" if name else words


def figure_alt(*displays: Display, title: str) -> str:
    """Join the alternative texts of a figure's displays under its title."""
    return " ".join([f"{title.rstrip('.')}.", *(display.alt_text() for display in displays)])
