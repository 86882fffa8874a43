"""Pictures as a short list of marks, which become SVG for a page and PNG where scripts cannot run.

An explorer draws the same scene in a notebook, in the built book and on GitHub; only the last step differs.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from mammomil.marks import INK, MATPLOTLIB, SVG, Length, coloured

# Okabe-Ito: told apart by readers who do not see all colours; the same as in the panels.
BENIGN, MALIGNANT, YELLOW, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#F0E442", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#8a8a8a"


@dataclass
class Scene:
    """A picture of `width` x `height` units and the sentence that says what it shows.

    Origin top left, y down, one unit is one CSS pixel at full size. Marks are drawn in the order they come.
    """

    width: Length
    height: Length
    words: str = ""
    """What the picture shows, for readers who hear it; read out when a control moves."""
    marks: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def image(
        self,
        pixels: Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 4"],
        x: Length,
        y: Length,
        width: Length,
        height: Length,
        *,
        colours: str = "gray",
        low: Length | None = None,
        high: Length | None = None,
        alpha: Float[np.ndarray, "h w"] | Length = 1.0,
        smooth: bool = False,
    ) -> None:
        """Place an array as a picture.

        Args:
            pixels: values to be coloured, or colours as they are (RGB, RGBA).
            x: left edge.
            y: upper edge.
            width: size in the scene; the aspect ratio of `pixels` is not kept for you.
            height: likewise.
            colours: a matplotlib colour map; use ones that run evenly from dark to light.
            low: value at the dark end of the colour map; by default the array's least.
            high: value at the light end; by default the array's greatest.
            alpha: opacity in [0, 1], one number or one per pixel. Above 1x1 grids of cells it lets the
                mammogram below shine through.
            smooth: blend neighbouring pixels when enlarged; cells of a saliency map should stay cells.
        """
        self.marks.append(
            (
                "image",
                {
                    "rgba": coloured(np.asarray(pixels), colours, low, high, alpha),
                    "x": x,
                    "y": y,
                    "width": width,
                    "height": height,
                    "smooth": smooth,
                },
            )
        )

    def rect(
        self,
        x: Length,
        y: Length,
        width: Length,
        height: Length,
        colour: str = INK,
        *,
        fill: str | None = None,
        stroke: Length = 1.5,
        dashed: bool = False,
        opacity: Length = 1.0,
    ) -> None:
        """Draw a rectangle; `fill` is a colour, None leaves it empty, `stroke` 0 leaves out the outline."""
        self.marks.append(("rect", locals() | {"self": None}))

    def line(
        self,
        points: Sequence[tuple[Length, Length]] | Float[np.ndarray, "n 2"],
        colour: str = INK,
        *,
        stroke: Length = 1.5,
        dashed: bool = False,
        opacity: Length = 1.0,
    ) -> None:
        """Draw a line through `points`, given as (x, y)."""
        points = [(float(x), float(y)) for x, y in points]
        self.marks.append(("line", locals() | {"self": None}))

    def circle(
        self,
        x: Length,
        y: Length,
        radius: Length,
        colour: str = INK,
        *,
        fill: str | None = None,
        stroke: Length = 1.5,
        opacity: Length = 1.0,
    ) -> None:
        """Draw a circle around (x, y)."""
        self.marks.append(("circle", locals() | {"self": None}))

    def text(
        self,
        x: Length,
        y: Length,
        words: str,
        *,
        size: Length = 13,
        anchor: str = "start",
        bold: bool = False,
        colour: str = INK,
        halo: bool = False,
    ) -> None:
        """Write `words` on the baseline y; `anchor` is start, middle or end; `halo` is for text on images."""
        self.marks.append(("text", locals() | {"self": None}))

    def hot(self, x: Length, y: Length, radius: Length, words: str, /, **positions: int) -> None:
        """Make a place that can be clicked or reached by Tab, in pages; nothing is drawn.

        Args:
            x: its centre.
            y: its centre.
            radius: 8 or more can be hit with a finger.
            words: what happens there, read out.
            **positions: the position each named control moves to.
        """
        self.marks.append(("hot", locals() | {"self": None}))

    def handle(self, x: Length, y: Length, /, **drags: tuple[str, Length, Length]) -> None:
        """Draw a handle to be dragged, in pages; sliders do the same for the keyboard and with a kernel.

        Args:
            x: its centre.
            y: its centre.
            **drags: for each control it moves: ("x" or "y", coordinate of position 0, units per position).
        """
        self.marks.append(("handle", locals() | {"self": None}))

    def elements(self, images: dict[str, str], active: bool = True) -> list[str]:
        """Return the marks as SVG elements, without the `<svg>` around them.

        Pictures are put into `images` (key to data address) and named in the SVG as `@key`, so that a page
        with many frames holds each picture once. `inline` puts them back.

        Args:
            images: filled.
            active: False leaves out what only a page's script can move.
        """
        return [
            SVG[kind](mark, images) for kind, mark in self.marks if active or kind not in ("hot", "handle")
        ]

    def svg(self, images: dict[str, str], active: bool = True) -> str:
        """Return `elements` as one text."""
        return "".join(self.elements(images, active))

    @property
    def is_active(self) -> bool:
        """Whether something in it can be clicked."""
        return any(kind == "hot" for kind, _ in self.marks)

    def png(self, scale: Length = 1.5) -> bytes:
        """Return the picture as a PNG of `scale` pixels per unit, dark on white."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72 * scale, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        for layer, (kind, mark) in enumerate(self.marks):
            if kind in MATPLOTLIB:
                MATPLOTLIB[kind](axes, mark, layer)
        axes.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="auto")
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()
