"""Pictures as a short list of marks, which become SVG for a page and PNG where scripts cannot run.

An explorer draws the same scene in a notebook, in the built book and on GitHub; only the last step differs.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

from mammomil.files import InputError

# Okabe-Ito: told apart by readers who do not see all colours; the same as in the panels.
BENIGN, MALIGNANT, YELLOW, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#F0E442", "#009E73", "#CC79A7", "#56B4E9"
INK = "currentColor"  # dark on a light page, light on a dark one
GREY = "#8a8a8a"
JPEG_QUALITY = 82
Length = int | float | np.number  # units of a scene


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
            _SVG[kind](mark, images) for kind, mark in self.marks if active or kind not in ("hot", "handle")
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
            if kind in _MATPLOTLIB:
                _MATPLOTLIB[kind](axes, mark, layer)
        axes.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="auto")
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()


def inline(svg: str, images: dict[str, str]) -> str:
    """Put the pictures of `Scene.svg` back into its text."""
    for key, address in images.items():
        svg = svg.replace(f"@{key}", address)
    return svg


def coloured(
    pixels: np.ndarray,
    colours: str = "gray",
    low: Length | None = None,
    high: Length | None = None,
    alpha: Float[np.ndarray, "h w"] | Length = 1.0,
) -> UInt8[np.ndarray, "h w 4"]:
    """Return the colours of an array, see `Scene.image`.

    Raises:
        InputError: a value is NaN or infinite.
    """
    if pixels.ndim == 3:
        rgba = (
            pixels if pixels.shape[2] == 4 else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        )
        return np.ascontiguousarray(rgba.astype(np.uint8))
    from matplotlib import colormaps

    values = np.asarray(pixels, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError("A picture of an explorer holds NaN or infinity. Leave such values out.")
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    rgba = colormaps[colours](share, bytes=True)
    opacity = np.broadcast_to(np.asarray(alpha, dtype=np.float64), values.shape)
    rgba[..., 3] = np.round(np.clip(opacity, 0, 1) * 255)
    return rgba


def _address(rgba: np.ndarray) -> str:
    """Return a data address: JPEG for a large opaque grey picture, PNG for the rest."""
    from PIL import Image

    file = io.BytesIO()
    opaque = bool((rgba[..., 3] == 255).all())
    grey = opaque and bool((rgba[..., 0] == rgba[..., 1]).all() and (rgba[..., 1] == rgba[..., 2]).all())
    if grey and rgba.shape[0] * rgba.shape[1] > 4096:
        grey_levels = Image.fromarray(np.ascontiguousarray(rgba[..., 0]))
        grey_levels.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
        kind = "jpeg"
    else:
        picture = Image.fromarray(rgba)
        (picture.convert("RGB") if opaque else picture).save(file, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _n(value: Length) -> str:
    return f"{float(value):.1f}".removesuffix(".0")


def _style(mark: dict[str, Any]) -> str:
    fill = html.escape(mark.get("fill") or "none")
    words = f' fill="{fill}"'
    if mark["stroke"]:
        words += f' stroke="{html.escape(mark["colour"])}" stroke-width="{_n(mark["stroke"])}"'
        if mark.get("dashed"):
            words += ' stroke-dasharray="4 3"'
    if mark["opacity"] != 1:
        words += f' opacity="{mark["opacity"]:.2g}"'
    return words


def keep_picture(rgba: UInt8[np.ndarray, "h w 4"], images: dict[str, str]) -> str:
    """Put a picture into `images` and return its key."""
    address = _address(rgba)
    key = hashlib.sha256(address.encode()).hexdigest()[:10]
    images[key] = address
    return key


def _svg_image(mark: dict[str, Any], images: dict[str, str]) -> str:
    key = keep_picture(mark["rgba"], images)
    cells = "" if mark["smooth"] else ' class="mm-cells"'
    size = " ".join(f'{name}="{_n(mark[name])}"' for name in ("x", "y", "width", "height"))
    return f'<image href="@{key}" {size} preserveAspectRatio="none"{cells}/>'


def _svg_rect(mark: dict[str, Any], images: dict[str, str]) -> str:
    size = " ".join(f'{name}="{_n(mark[name])}"' for name in ("x", "y", "width", "height"))
    return f"<rect {size}{_style(mark)}/>"


def _svg_line(mark: dict[str, Any], images: dict[str, str]) -> str:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark["points"])
    return f'<polyline points="{points}"{_style(mark)}/>'


def _svg_circle(mark: dict[str, Any], images: dict[str, str]) -> str:
    return f'<circle cx="{_n(mark["x"])}" cy="{_n(mark["y"])}" r="{_n(mark["radius"])}"{_style(mark)}/>'


def _svg_text(mark: dict[str, Any], images: dict[str, str]) -> str:
    colour = "#fff" if mark["halo"] and mark["colour"] == INK else mark["colour"]
    extra = ' font-weight="bold"' if mark["bold"] else ""
    extra += ' class="mm-halo"' if mark["halo"] else ""
    if mark["anchor"] != "start":
        extra += f' text-anchor="{html.escape(mark["anchor"])}"'
    return (
        f'<text x="{_n(mark["x"])}" y="{_n(mark["y"])}" font-size="{_n(mark["size"])}" '
        f'fill="{html.escape(colour)}"{extra}>'
        f"{html.escape(mark['words'])}</text>"
    )


def _svg_hot(mark: dict[str, Any], images: dict[str, str]) -> str:
    positions = html.escape(json.dumps(mark["positions"], separators=(",", ":")))
    return (
        f'<circle class="mm-hot" cx="{_n(mark["x"])}" cy="{_n(mark["y"])}" r="{_n(mark["radius"])}" '
        f'tabindex="0" role="button" aria-label="{html.escape(mark["words"])}" data-set="{positions}"/>'
    )


def _svg_handle(mark: dict[str, Any], images: dict[str, str]) -> str:
    drags = html.escape(json.dumps(mark["drags"], separators=(",", ":")))
    return f'<circle class="mm-handle" cx="{_n(mark["x"])}" cy="{_n(mark["y"])}" r="9" data-drag="{drags}"/>'


_SVG = {
    "image": _svg_image,
    "rect": _svg_rect,
    "line": _svg_line,
    "circle": _svg_circle,
    "text": _svg_text,
    "hot": _svg_hot,
    "handle": _svg_handle,
}


def _ink(colour: str | None) -> str:
    return "none" if colour is None else "black" if colour == INK else colour


def _look(mark: dict[str, Any], layer: int) -> dict[str, Any]:
    return {
        "edgecolor": _ink(mark["colour"]) if mark["stroke"] else "none",
        "facecolor": _ink(mark["fill"]),
        "linewidth": mark["stroke"],
        "linestyle": "--" if mark.get("dashed") else "-",
        "alpha": mark["opacity"],
        "zorder": layer,
    }


def _plot_image(axes, mark, layer) -> None:
    extent = (mark["x"], mark["x"] + mark["width"], mark["y"] + mark["height"], mark["y"])
    how = "bilinear" if mark["smooth"] or mark["rgba"].shape[0] > mark["height"] else "nearest"
    axes.imshow(mark["rgba"], extent=extent, interpolation=how, zorder=layer, aspect="auto")


def _plot_rect(axes, mark, layer) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((mark["x"], mark["y"]), mark["width"], mark["height"], **_look(mark, layer)))


def _plot_line(axes, mark, layer) -> None:
    x, y = zip(*mark["points"], strict=True)
    style = "--" if mark["dashed"] else "-"
    axes.plot(
        x, y, style, color=_ink(mark["colour"]), linewidth=mark["stroke"], alpha=mark["opacity"], zorder=layer
    )


def _plot_circle(axes, mark, layer) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((mark["x"], mark["y"]), mark["radius"], **_look(mark, layer)))


def _plot_text(axes, mark, layer) -> None:
    from matplotlib.patheffects import withStroke

    colour = "white" if mark["halo"] and mark["colour"] == INK else _ink(mark["colour"])
    axes.text(
        mark["x"],
        mark["y"],
        mark["words"],
        fontsize=mark["size"],
        color=colour,
        ha={"start": "left", "middle": "center", "end": "right"}[mark["anchor"]],
        va="baseline",
        weight="bold" if mark["bold"] else "normal",
        path_effects=[withStroke(linewidth=2.5, foreground="black")] if mark["halo"] else None,
        zorder=layer,
        parse_math=False,
    )


_MATPLOTLIB = {
    "image": _plot_image,
    "rect": _plot_rect,
    "line": _plot_line,
    "circle": _plot_circle,
    "text": _plot_text,
}
