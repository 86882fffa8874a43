"""How the marks of a scene are written: as SVG for a page, with matplotlib where scripts cannot run."""

import base64
import hashlib
import html
import io
import json
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mammomil.files import InputError

INK = "currentColor"  # dark on a light page, light on a dark one
JPEG_QUALITY = 82
Length = int | float | np.number  # units of a scene


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


SVG = {
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


MATPLOTLIB = {
    "image": _plot_image,
    "rect": _plot_rect,
    "line": _plot_line,
    "circle": _plot_circle,
    "text": _plot_text,
}
