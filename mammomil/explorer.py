"""Explorers: one cell that is live ipywidgets with a kernel and a self-contained HTML component without.

An explorer is a function from the values of its controls to a `Scene`. With a kernel every move of a control
calls the function, so what is seen is the model at work. In a built page (`MAMMOMIL_STATIC=1`) all scenes are
drawn once and put into the page with a few lines of script: nothing is loaded, and no slider is dead.
"""

import hashlib
import html
import itertools
import json
import os
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from mammomil.files import InputError
from mammomil.marks import inline, keep_picture
from mammomil.scenes import Scene

MAX_FRAMES = 3000


@dataclass(frozen=True)
class Control:
    """Something a reader can move: a named list of values."""

    name: str
    """Keyword of the drawing function."""
    label: str
    """What stands beside it on the page."""
    values: tuple[Any, ...]
    """What it can be set to, in order."""
    texts: tuple[str, ...]
    """The values in words, for eyes and for screen readers."""
    kind: Literal["slider", "choice", "toggle"]
    """`slider` for ordered values, `choice` for named ones, `toggle` for off and on."""
    start: int = 0
    """Position at first."""
    play: bool = False
    """A slider that can also run by itself, for time."""

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(self.texts) != len(self.values):
            raise InputError(
                f"control {self.name!r}: {len(self.values)} values and {len(self.texts)} texts. It needs two "
                "values or more, and a text for each."
            )
        if not 0 <= self.start < len(self.values):
            raise InputError(
                f"control {self.name!r}: start {self.start} is none of its {len(self.values)} positions."
            )


def slider(
    name: str,
    label: str,
    values: Sequence[Any],
    texts: Sequence[str] | None = None,
    *,
    start: Any = None,
    play: bool = False,
) -> Control:
    """Return a slider over ordered `values`; `start` is one of them."""
    values = tuple(values)
    words = tuple(texts) if texts is not None else tuple(f"{v:g}" for v in values)
    return Control(name, label, values, words, "slider", 0 if start is None else values.index(start), play)


def choice(name: str, label: str, options: dict[str, Any] | Sequence[str], *, start: Any = None) -> Control:
    """Return a drop-down list; `options` are texts, or text -> value; `start` is a value."""
    pairs = dict(options) if isinstance(options, dict) else {text: text for text in options}
    values = tuple(pairs.values())
    return Control(name, label, values, tuple(pairs), "choice", 0 if start is None else values.index(start))


def toggle(name: str, label: str, *, start: bool = False) -> Control:
    """Return a tick box."""
    return Control(name, label, (False, True), ("off", "on"), "toggle", int(start))


class Explorer:
    """A picture with controls.

    Args:
        title: what it is, in a few words.
        controls: what can be moved.
        draw: called with the value of every control by name, returns a `Scene`; all scenes of an explorer
            have one size. It must not depend on anything else, so that frames drawn before equal frames
            drawn live.
        note: a sentence under the controls: what to try.
        script: name of a file of `static/explorers/`, for controls with too many combinations to be drawn
            before: a JavaScript function `(values, data, pen)` that does in the reader's browser what `draw`
            does here. It draws with `pen`, whose methods are those of `Scene` (options in an object), and
            returns the words. A test compares the two in a browser.
        data: what `script` is given, JSON-able.
        pictures: by name, what `pen.image(name, x, y, width, height, {smooth})` can show: colours as
            `scenes.coloured` gives them.

    Example:
        >>> def draw(n):
        ...     return Scene(100, 40, f"{n} dots")
        >>> Explorer("Dots", [slider("n", "Dots", (1, 2, 3))], draw).scene(n=2).words
        '2 dots'
    """

    def __init__(
        self,
        title: str,
        controls: Sequence[Control],
        draw: Callable[..., Scene],
        note: str = "",
        script: str | None = None,
        data: Any = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        names = [control.name for control in controls]
        if not controls or len(set(names)) != len(names):
            raise InputError(f"explorer {title!r}: it needs controls with different names, found {names}.")
        self.title = title
        self.controls = tuple(controls)
        self.draw = draw
        self.note = note
        self.script, self.data, self.pictures = script, data, dict(pictures or {})

    def scene(self, **values: Any) -> Scene:
        """Return the picture for `values`; controls not named stand at their start."""
        start = {control.name: control.values[control.start] for control in self.controls}
        if unknown := sorted(set(values) - set(start)):
            raise InputError(
                f"explorer {self.title!r}: no control {unknown[0]!r}. There are: {', '.join(start)}."
            )
        return self.draw(**start | values)

    def png(self) -> bytes:
        """Return the picture at the start as PNG, for pages where scripts cannot run."""
        return self.scene().png()

    def html(self) -> str:
        """Return the whole explorer as one self-contained piece of HTML: frames, controls and script.

        Raises:
            InputError: too many frames. Give the controls fewer values.
        """
        scene, images = self.scene(), {}
        inside = inline(scene.svg(images), images)
        if self.script is None:
            content = self._frames()
        else:
            images = {}
            pictures = {name: keep_picture(rgba, images) for name, rgba in self.pictures.items()}
            values = [c.values for c in self.controls]
            content = {"images": images, "pictures": pictures, "values": values, "data": self.data}
        payload = json.dumps(content, separators=(",", ":"))
        payload = payload.replace("<", "\\u003c")  # no text in it can end the script element
        role = "group" if scene.is_active else "img"  # what is in an image cannot be reached
        own = "" if self.script is None else f",({_function(f'explorers/{self.script}.js')})"
        root = "mm-" + hashlib.sha256((self.title + payload).encode()).hexdigest()[:10]
        return (
            f'<figure class="mm-explorer" id="{root}" aria-label="{html.escape(self.title)}">'
            f"<style>{_static('explorer.css')}</style>"
            f'<div class="mm-title">{html.escape(self.title)}</div>'
            f'<div class="mm-controls">{"".join(_control(c, root) for c in self.controls)}</div>'
            f'<div class="mm-picture">{_svg(scene, inside, scene.words, role)}</div>'
            f'<figcaption><output class="mm-words" aria-live="polite">{html.escape(scene.words)}</output>'
            f"{f'<p>{html.escape(self.note)}</p>' if self.note else ''}</figcaption>"
            f'<script type="application/json">{payload}</script>'
            f"<script>({_function('explorer.js')})({json.dumps(root)}{own});</script></figure>"
        )

    def _frames(self) -> dict[str, Any]:
        """Draw every combination of the controls; a mark that is in several frames is kept once."""
        positions = list(itertools.product(*(range(len(c.values)) for c in self.controls)))
        if len(positions) > MAX_FRAMES:
            raise InputError(
                f"explorer {self.title!r}: {len(positions)} frames, at most {MAX_FRAMES} fit a page. Give "
                "its controls fewer values."
            )
        images: dict[str, str] = {}
        marks: dict[str, int] = {}
        frames: dict[str, tuple[list[int], str]] = {}
        for place in positions:
            values = {c.name: c.values[i] for c, i in zip(self.controls, place, strict=True)}
            scene = self.draw(**values)
            numbers = [marks.setdefault(mark, len(marks)) for mark in scene.elements(images)]
            frames[",".join(map(str, place))] = (numbers, scene.words)
        return {"images": images, "marks": list(marks), "frames": frames}

    def widget(self) -> Any:
        """Return the live explorer, an ipywidgets box whose picture is drawn anew at every move."""
        import ipywidgets

        parts = {control.name: _live_control(control) for control in self.controls}
        picture = ipywidgets.HTML()

        def redraw(_: Any = None) -> None:
            scene = self.draw(**{name: part.value for name, part in parts.items()})
            images: dict[str, str] = {}
            svg = inline(scene.svg(images, active=False), images)
            picture.value = (
                f'<div class="mm-explorer"><style>{_static("explorer.css")}</style>'
                f'<div class="mm-picture">{_svg(scene, svg, scene.words, "img")}</div>'
                f'<p class="mm-words">{html.escape(scene.words)}</p></div>'
            )

        rows = []
        for control in self.controls:
            part = parts[control.name]
            part.observe(redraw, names="value")
            rows.append(ipywidgets.HBox([_player(control, part), part]) if control.play else part)
        redraw()
        note = [ipywidgets.HTML(f"<em>{html.escape(self.note)}</em>")] if self.note else []
        title = ipywidgets.HTML(f"<strong>{html.escape(self.title)}</strong>")
        return ipywidgets.VBox([title, *rows, picture, *note])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not is_static():
            display(self.widget())
            return
        scene = self.scene()
        bundle = {
            "text/html": self.html(),
            "image/png": b64encode(scene.png()).decode(),
            "text/plain": f"{self.title}. {scene.words}",
        }
        display(bundle, raw=True)


def _plain_bars() -> None:
    """Have tqdm draw text, not widgets: a page has no kernel to move them, and they would load scripts."""
    import tqdm.auto
    import tqdm.std

    tqdm.auto.tqdm = tqdm.std.tqdm


def is_static() -> bool:
    """Say whether pages are being built, for readers without a kernel (`MAMMOMIL_STATIC=1`)."""
    return os.environ.get("MAMMOMIL_STATIC", "") not in ("", "0")


def _function(name: str) -> str:
    """Return a script that is one function expression."""
    return _static(name).strip().removesuffix(";")


def _static(name: str) -> str:
    return files("mammomil").joinpath("static", name).read_text(encoding="utf-8").strip()


def _svg(scene: Scene, inside: str, words: str, role: str) -> str:
    """Return a whole picture; every frame of an explorer has this size."""
    box = f'viewBox="0 0 {scene.width:g} {scene.height:g}" style="max-width:{scene.width:g}px"'
    return f'<svg {box} role="{role}" aria-label="{html.escape(words)}">{inside}</svg>'


def _control(control: Control, root: str) -> str:
    """Return a control as HTML with its own label."""
    identity = f"{root}-{html.escape(control.name)}"
    label = f'<label for="{identity}">{html.escape(control.label)}</label>'
    last = len(control.values) - 1
    text = html.escape(control.texts[control.start])
    if control.kind == "toggle":
        ticked = " checked" if control.start else ""
        return f'<div><input type="checkbox" id="{identity}" data-mm{ticked}>{label}</div>'
    if control.kind == "choice":
        options = "".join(
            f'<option value="{i}"{" selected" if i == control.start else ""}>{html.escape(words)}</option>'
            for i, words in enumerate(control.texts)
        )
        return f'<div>{label}<select id="{identity}" data-mm>{options}</select></div>'
    texts = html.escape(json.dumps(control.texts))
    play = f'<button type="button" data-play="{identity}">Play</button>' if control.play else ""
    return (
        f'<div>{label}{play}<input type="range" id="{identity}" min="0" max="{last}" step="1" '
        f'value="{control.start}" data-mm data-texts="{texts}" aria-valuetext="{text}">'
        f'<span class="mm-value" aria-hidden="true">{text}</span></div>'
    )


def _live_control(control: Control) -> Any:
    """Return a control as a widget that ipywidgets 7.7 and 8 both have."""
    import ipywidgets

    look = {"description": control.label, "style": {"description_width": "initial"}}
    if control.kind == "toggle":
        return ipywidgets.Checkbox(value=bool(control.start), indent=False, **look)
    options = list(zip(control.texts, control.values, strict=True))
    kind = ipywidgets.Dropdown if control.kind == "choice" else ipywidgets.SelectionSlider
    extra = {} if control.kind == "choice" else {"continuous_update": False}
    wide = ipywidgets.Layout(width="min(100%, 32em)")
    return kind(options=options, value=control.values[control.start], layout=wide, **look, **extra)


def _player(control: Control, part: Any) -> Any:
    """Return play buttons that move a selection slider, position by position."""
    import ipywidgets

    player = ipywidgets.Play(min=0, max=len(control.values) - 1, value=control.start, interval=600)
    player.observe(lambda change: setattr(part, "index", change["new"]), names="value")
    return player


if is_static():  # at once, before a module that shows progress takes its bar from tqdm
    _plain_bars()
