"""Is this machine ready for the book? One line for each thing a workshop has failed at.

    python -m mammomil.preflight

Imports nothing at first, as what it looks for may be broken. Nothing here raises: what goes wrong is a line.
"""

import html
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mammomil.downloads import cache_folder

MEMORY, DISK = 4.0, 2.0  # GB that have to be free
PRACTICE_S = 120  # to draw and code the phantoms of the dual-branch chapters, on the machine of the times
FORWARD_S = 0.07  # what `_seconds` gives there, on 2 idle cores of an x86 server
CGROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may use
SLOW = 4.0  # times the book's times; beyond it a workshop has to be planned otherwise


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it will do, and what was found."""

    name: str
    ok: bool
    words: str
    """What was found; if it will not do, also the fix."""


class Preflight(tuple[Check, ...]):
    """All checks in order; a notebook shows them as a table, a terminal as lines."""

    @property
    def ok(self) -> bool:
        """Whether everything will do."""
        return all(check.ok for check in self)

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self)
        lines = [f"{_mark(check.ok):6}  {check.name:{width}}  {check.words}" for check in self]
        return "\n".join([*lines, "", self.summary])

    @property
    def summary(self) -> str:
        """One sentence."""
        wrong = [check.name for check in self if not check.ok]
        return f"NOT OK: {', '.join(wrong)}." if wrong else "OK: this machine is ready for the book."

    def _repr_html_(self) -> str:
        rows = "".join(_row(check) for check in self)
        scripts = _row(Check("scripts", False, NO_SCRIPTS)).replace("<tr", "<tr data-scripts", 1)
        return (
            f'<div class="mm-preflight"><style>{STYLE}</style><table>{rows}{scripts}</table>'
            f"<p><strong>{html.escape(self.summary)}</strong></p><script>{SCRIPT}</script></div>"
        )


NO_SCRIPTS = (
    "This page runs no scripts: trust the notebook, or run the cell again. Else explorers stand still."
)
# The line above is shown until a script puts it right.
SCRIPT = (
    "document.querySelectorAll('tr[data-scripts]').forEach(function (row) {"
    "row.className = 'mm-ok'; row.cells[0].textContent = 'OK';"
    "row.cells[2].textContent = 'This page runs scripts, as the explorers need.'; });"
)
STYLE = (
    ".mm-preflight table{border-collapse:collapse}"
    ".mm-preflight :is(th,td){text-align:left;padding:.2em .6em;vertical-align:top;font-weight:400}"
    ".mm-preflight td:first-child{color:#fff;background:#a3201a;font-weight:600;white-space:nowrap}"
    ".mm-preflight .mm-ok td:first-child{background:#0b6b3a}"
)


def _mark(ok: bool) -> str:
    return "OK" if ok else "NOT OK"


def _row(check: Check) -> str:
    name, words = html.escape(check.name), html.escape(check.words)
    look = ' class="mm-ok"' if check.ok else ""
    return f'<tr{look}><td>{_mark(check.ok)}</td><th scope="row">{name}</th><td>{words}</td></tr>'


def run() -> Preflight:
    """Look at everything the book needs; some seconds. Nothing raises."""
    done = []
    for name, look, fix in CHECKS:
        try:
            ok, words = look()
        except Exception as error:  # a broken install raises whatever it likes
            said = " ".join(str(error).split())[:200].rstrip(".")
            ok, words = False, f"{type(error).__name__}: {said}. {fix}"
        done.append(Check(name, ok, words))
    return Preflight(done)


Found = tuple[bool, str]
INSTALL = "Install the library anew, as its README says."


def _python() -> Found:
    found = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return True, found
    return False, f"{found}. The book needs Python 3.11 to 3.13: make an environment with one of them."


def _library() -> Found:
    import mammomil

    # Stored pages name no folder of the machine that made them.
    where = "" if _stored() else f", {Path(mammomil.__file__).parent}"
    return True, f"{mammomil.__version__}{where}"


def _torch() -> Found:
    import torch
    import torchvision

    # The operator is there only if the two were built for each other.
    kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5)
    words = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if kept.tolist() == [0]:
        return True, words
    return False, f"{words} do not work together. {PAIR}"


PAIR = "Install the pair anew, together: `pip install --upgrade torch torchvision`."


def _numpy() -> Found:
    import numpy as np
    import torch

    torch.from_numpy(np.ones(1))  # fails if torch was built for the other series of numpy
    if int(np.__version__.split(".")[0]) >= 2:
        return True, np.__version__
    return False, f"{np.__version__}. The book needs numpy 2: `pip install --upgrade numpy`."


def _widgets() -> Found:
    from mammomil.explorer import Explorer, slider
    from mammomil.scenes import Scene

    def draw(n: int) -> Scene:
        scene = Scene(40, 20, f"{n}")
        scene.text(5, 15, str(n))
        return scene

    explorer = Explorer("Preflight", [slider("n", "n", (1, 2))], draw)
    explorer.widget()
    return True, f"ipywidgets {metadata.version('ipywidgets')}, a live explorer was made"


def _memory() -> Found:
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":  # of a container
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    words = f"{free / 1e9:.1f} GB free"
    if free / 1e9 >= MEMORY:
        return True, words
    return False, f"{words}, {MEMORY:g} are needed: close other programs, or take a larger machine."


def _disk() -> Found:
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    words = f"{free:.1f} GB free"
    if free >= DISK:
        return True, words
    return (
        False,
        f"{words}, {DISK:g} are needed: make room, or set MAMMOMIL_CACHE to a folder on another disk.",
    )


def _writable() -> Found:
    folder = cache_folder()
    where = "the cache folder" if _stored() else str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"mammomil")
    except OSError as error:
        return False, f"{where}: {error.strerror}. Set MAMMOMIL_CACHE to a folder that can be written."
    return True, f"{where} can be written"


def _phantoms() -> Found:
    from mammomil import classroom
    from mammomil.dataset import MammogramDataset

    index = classroom.sample_index()
    names = ("gmic-quick", "gmic-quick-half", "region-encoder")
    models = [classroom.shipped_model(name) for name in names]
    image = MammogramDataset(index, models[0].preprocess)[0].image
    return True, f"{len(index.images)} images, {len(models)} models; the first image is {tuple(image.shape)}"


def _forward() -> Found:
    seconds = _seconds()
    factor = seconds / FORWARD_S
    run_s = [chapter["run_s"] for chapter in _times().values()]
    minutes = max(1, round(sum(run_s) * factor / 60))
    words = (
        f"both models give finite numbers, in {seconds:.2f} s. Expect about {factor:.1f} times the book's "
        f"times: all {len(run_s)} chapters in {minutes} minutes, the longest in {max(run_s) * factor:.0f} s"
    )
    if factor <= SLOW:
        return True, words
    return False, f"{words}. That is slow: run the chapters before the lesson, or take a faster machine."


def _seconds() -> float:
    """Run both models on two images, and return the seconds of the fastest of ten turns.

    Raises:
        ArithmeticError: a result is not finite.
    """
    import torch

    from mammomil import classroom
    from mammomil.region_model import RegionModelConfig, build_region_model
    from mammomil.weights import load_encoder

    gmic = classroom.shipped_model("gmic-quick")
    images = torch.randn(2, 1, gmic.preprocess.height, gmic.preprocess.width, generator=torch.Generator())
    regions = build_region_model(RegionModelConfig.quick()).eval()
    load_encoder(regions.encoder)
    left, top = torch.meshgrid(torch.arange(0, 200, 14.0), torch.arange(0, 330, 14.0), indexing="ij")
    corners = torch.stack([left, top], -1).flatten(0, 1)
    boxes = torch.cat([corners, corners + 28], 1).expand(2, -1, -1)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    places, turns = torch.arange(valid.numel()), []
    with torch.inference_mode():
        for _ in range(10):
            begin = time.perf_counter()
            y = torch.stack([gmic.model(images).y, regions(images, boxes, valid, places).y])
            turns.append(time.perf_counter() - begin)
    if not y.isfinite().all():
        raise ArithmeticError("a model gave a number that is not finite")
    return min(turns)


def _practice() -> Found:
    from mammomil import __version__

    folder = cache_folder() / f"practice-{__version__}"
    if any(folder.glob("overlaps/*.npz")):  # what is written last
        return True, "drawn and coded"
    return True, (
        f"not made yet. The first dual-branch chapter makes it, in about {PRACTICE_S / 60:.0f} minutes times "
        "the factor above; to make it now: `from mammomil.practice import practice; practice()`"
    )


def _gpu() -> Found:
    import torch

    if torch.cuda.is_available():
        return True, f"{torch.cuda.get_device_name()} (not needed)"
    return True, "none, and none is needed"


def _times() -> dict[str, Any]:
    from importlib.resources import files

    text = files("mammomil").joinpath("static", "chapter_times.json").read_text(encoding="utf-8")
    return json.loads(text)["chapters"]


def _stored() -> bool:
    return os.environ.get("MAMMOMIL_STATIC", "") not in ("", "0")


CHECKS: Sequence[tuple[str, Callable[[], Found], str]] = (
    ("Python", _python, INSTALL),
    ("mammomil", _library, INSTALL),
    ("torch", _torch, PAIR),
    ("numpy", _numpy, PAIR),
    ("widgets", _widgets, "Install ipywidgets 7.7 or newer and start the kernel again."),
    ("memory", _memory, "Install psutil to measure it: `pip install psutil`."),
    ("disk", _disk, INSTALL),
    ("cache", _writable, "Set MAMMOMIL_CACHE to a folder that can be written."),
    ("phantoms", _phantoms, "Clone the repository again: its folder data_samples is not whole."),
    ("models", _forward, PAIR),
    ("practice set", _practice, INSTALL),
    ("GPU", _gpu, PAIR),
)
"""Name, what looks, and the fix if it raises."""


if __name__ == "__main__":
    found = run()
    print(found)
    sys.exit(not found.ok)
