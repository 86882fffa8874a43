"""What every chapter starts with: scale, device, samples, figures with words, numbers for the text."""

import html
import io
import json
import os
import re
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mammomil.explorer import is_static
from mammomil.files import InputError
from mammomil.index import Index, read_index
from mammomil.weights import SHIPPED, LoadedModel, load_model

TIMES = "chapter_times.json"  # written by `make notebooks`, beside the other static files
PARTS = ("input", "saliency", "regions", "attention", "fusion", "loss")  # of the figures of both models


class Room(NamedTuple):
    """Where a chapter runs."""

    scale: Literal["quick", "full"]
    """`quick` is 368 x 240 pixels, for two CPU cores; `full` is the paper's 2944 x 1920, for a GPU."""
    device: str
    """`cpu` or `cuda`."""
    data: Path
    """Folder of the shipped phantoms."""


def start(chapter: str, seed: int = 0) -> Room:
    """Begin a chapter: seed torch, choose the scale and say how long the chapter takes here.

    The scale is `quick` unless the environment variable MAMMOMIL_SCALE says `full` and a GPU is there.

    Args:
        chapter: two digits, as in the name of the notebook.
        seed: for torch's global generator, so that a chapter gives the same numbers each time on one machine.

    Raises:
        InputError: MAMMOMIL_SCALE is neither quick nor full, or the samples are not there.
    """
    import torch

    wanted = os.environ.get("MAMMOMIL_SCALE", "quick")
    if wanted not in ("quick", "full"):
        raise InputError(f"MAMMOMIL_SCALE is {wanted!r}. Set it to quick or full.")
    torch.manual_seed(seed)
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    scale: Literal["quick", "full"] = "full" if wanted == "full" and gpu else "quick"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"Scale: {scale}. Device: {name}.")
    if wanted == "full" and not gpu:
        print("MAMMOMIL_SCALE=full needs a GPU and there is none: this chapter runs at the quick scale.")
    print(_duration(chapter, scale, gpu))
    return Room(scale, device, samples())


def _duration(chapter: str, scale: str, gpu: bool) -> str:
    """Say how long the chapter ran where it was measured, and be plain about where it was not."""
    times = json.loads(_static(TIMES))["chapters"].get(chapter)
    if times is None:
        return "How long this chapter runs was not measured yet."
    run = f"{max(1, round(times['run_s'] / 10) * 10)} s"
    words = f"{times['read_min']} minutes to read, {times['exercise_min']} for the exercises (estimates)"
    if scale == "full":
        return (
            f"Times: {words}.\n"
            f"The full scale was not timed; the quick one runs in about {run} on 2 CPU cores."
        )
    place = "about that or less here" if gpu else "the fewer the cores, the longer"
    return f"Times: {words}.\nAll cells run in about {run} on 2 CPU cores ({place})."


def samples() -> Path:
    """Return the folder of the shipped phantoms and models.

    Raises:
        InputError: it is not there, as in a package installed without its repository.
    """
    if not (SHIPPED / "index.csv").is_file():
        raise InputError(
            f"{SHIPPED}: the shipped phantoms are not here. Clone the repository and install it with "
            "`pip install -e .`, as the first cell of every chapter does on Colab."
        )
    return SHIPPED


def sample_index() -> Index:
    """Return the table of the 40 shipped quick exams, 160 images, which no shipped model has seen."""
    return read_index(samples())


def shipped_model(name: str = "gmic-quick") -> LoadedModel:
    """Load a model of `data_samples/weights`: gmic-quick, gmic-quick-half or region-encoder. Phantoms only.

    Raises:
        InputError: there is no such model.
    """
    folder = samples() / "weights" / name
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in folder.parent.iterdir()))
        raise InputError(f"{folder}: no such model. There are: {there}.")
    return load_model(folder)


def show(figure: Any, alt: str) -> None:
    """Show a matplotlib figure with words for readers who cannot see it, and close it.

    Args:
        figure: a Figure, or an Axes of one.
        alt: what the figure shows, in one or two sentences; a number in it should come from the data.
    """
    from IPython.display import display
    from matplotlib import pyplot as plt

    figure = getattr(figure, "figure", figure)
    file = io.BytesIO()
    figure.savefig(
        file, format="png", dpi=110, bbox_inches="tight", facecolor="white", metadata={"Software": None}
    )
    plt.close(figure)
    picture = b64encode(file.getvalue()).decode()
    image = f'<img class="mm-figure" alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">'
    display({"text/html": image, "image/png": picture, "text/plain": alt}, raw=True)


def picture(name: Literal["gmic", "dual_branch"], alt: str, highlight: str | None = None) -> None:
    """Show the drawing of a model, with one of its `PARTS` lit and the rest pale.

    Raises:
        InputError: the drawing has no such part.
    """
    from IPython.display import display

    svg = drawing(name, highlight)
    label = f'<div class="mm-drawing" role="img" aria-label="{html.escape(alt)}">{svg}</div>'
    display({"text/html": label, "image/svg+xml": svg, "text/plain": alt}, raw=True)


def drawing(name: str, highlight: str | None = None) -> str:
    """Return the drawing of a model as SVG; groups are marked `data-part`, those not lit become pale.

    Raises:
        InputError: the drawing has no such part.
    """
    svg = _static(f"{name}.svg")
    parts = re.findall(r'<g data-part="(\w+)"', svg)
    if highlight is None:
        return svg
    if highlight not in parts:
        raise InputError(f"the drawing of {name} has no part {highlight!r}. It has: {', '.join(parts)}.")
    return re.sub(
        r'<g data-part="(\w+)"', lambda m: m[0] + ("" if m[1] == highlight else ' opacity="0.45"'), svg
    )


def glue(name: str, value: Any, words: str = "{}") -> None:
    """Keep a number for the text of the chapter, which names it as {glue:text}`name`.

    Args:
        name: unique in the whole book: start it with the number of the chapter, as in `02-auc`.
        value: the number or text.
        words: how it is written, as for `str.format`: `{:.2f}`.
    """
    text = words.format(value)
    if is_static():
        from IPython.display import display

        # What myst_nb.glue stores, without needing myst_nb where notebooks are run (Colab).
        kind = "application/papermill.record/"
        data = {f"{kind}text/plain": repr(text)}
        display(data, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": kind}})


def _static(name: str) -> str:
    return files("mammomil").joinpath("static", name).read_text(encoding="utf-8")
