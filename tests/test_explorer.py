import html
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammomil.explorer import MAX_FRAMES, Control, Explorer, choice, is_static, slider, toggle
from mammomil.files import InputError
from mammomil.scenes import Scene

WIDGETS7 = Path(sys.prefix) / "widgets7"


def draw(n, kind, lit):
    scene = Scene(100, 50, f"{n} {kind} {'lit' if lit else 'dark'}")
    for i in range(n):
        scene.circle(10 * i + 5, 20, 4, fill="#E69F00" if lit else None)
    scene.text(5, 45, kind)
    return scene


def example():
    controls = [
        slider("n", "How many", (1, 2, 5), start=2, play=True),
        choice("kind", "Kind", {"one & all": "a<b", "two": "c"}),
        toggle("lit", "Lit", start=True),
    ]
    return Explorer("Dots </script><b>", controls, draw, "Try <it>.")


def payload(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_every_combination_of_the_controls_has_its_own_frame():
    frames = payload(example().html())["frames"]
    assert len(frames) == 3 * 2 * 2
    for (i, n), (j, kind), (k, lit) in itertools.product(
        enumerate((1, 2, 5)), enumerate(("a<b", "c")), enumerate((False, True))
    ):
        svg, words = frames[f"{i},{j},{k}"]
        assert svg.count("<circle") == n
        assert words == draw(n, kind, lit).words


def test_the_page_shows_the_start_without_any_script():
    page = example().html()
    shown = re.search(r'<div class="mm-picture"><svg (.*?)</svg>', page, re.DOTALL)[1]
    assert shown.count("<circle") == 2
    assert 'aria-label="2 a&lt;b lit"' in shown
    assert re.search(r'type="range"[^>]*value="1"[^>]*aria-valuetext="2"', page)


def test_every_control_has_a_label_of_its_own():
    page = example().html()
    identities = re.findall(r'id="(mm-[^"]+)"[^>]*data-mm', page)
    assert len(identities) == 3
    assert all(f'<label for="{i}">' in page for i in identities)
    assert len(set(identities)) == 3


def test_nothing_a_title_or_a_value_holds_becomes_markup():
    page = example().html()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page
    assert "<it>" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


@given(st.text(max_size=40))
def test_frames_survive_any_words(words):
    def speak(n):
        return Scene(10, 10, words + str(n))

    page = Explorer("t", [slider("n", "n", (1, 2))], speak).html()
    assert payload(page)["frames"]["1"][1] == words + "2"


def test_pages_of_the_same_explorer_are_equal_to_the_byte():
    assert example().html() == example().html()


def test_too_many_frames_are_refused():
    controls = [slider(name, name, range(9)) for name in "abc"]
    explorer = Explorer("t", controls, lambda a, b, c: Scene(1, 1, ""))
    with pytest.raises(InputError, match=f"729 frames, at most {MAX_FRAMES}"):
        explorer.html()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: slider("a", "A", (1,)), "two values"),
        (lambda: Control("a", "A", (1, 2), ("x",), "slider"), "2 values and 1 texts"),
        (lambda: Control("a", "A", (1, 2), ("x", "y"), "slider", 2), "start 2"),
        (lambda: Explorer("t", [], draw), "needs controls"),
        (lambda: Explorer("t", [toggle("a", "A"), toggle("a", "B")], draw), "different names"),
        (lambda: example().scene(m=3), "no control 'm'. There are: n, kind, lit"),
    ],
)
def test_mistakes_of_an_author_are_named(make, match):
    with pytest.raises(InputError, match=re.escape(match) if "'" in match else match):
        make()


def test_static_is_what_the_environment_says(monkeypatch):
    for value, want in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("MAMMOMIL_STATIC", value)
        assert is_static() is want
    monkeypatch.delenv("MAMMOMIL_STATIC")
    assert not is_static()


LIVE = """
import html, itertools, sys
import ipywidgets
from tests.test_explorer import draw, example
assert ipywidgets.__version__.startswith(sys.argv[1]), ipywidgets.__version__
box = example().widget()
title, row, kind, lit, picture, note = box.children
player, n = row.children
for count, what, on in itertools.product((1, 2, 5), ("a<b", "c"), (False, True)):
    n.value, kind.value, lit.value = count, what, on
    assert picture.value.count("<circle") == count, (count, picture.value)
    assert html.escape(draw(count, what, on).words) in picture.value
player.value = 0
assert n.value == 1 and picture.value.count("<circle") == 1
assert "<b>" not in title.value.replace("<strong>", "") and "<it>" not in note.value
print("live")
"""


@pytest.mark.parametrize("version", ["7.7.1", "8."])
def test_live_controls_draw_anew_on_both_versions_of_ipywidgets(version):
    environment = dict(os.environ)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    if version == "7.7.1":
        if not WIDGETS7.is_dir():
            pytest.skip(f"no ipywidgets 7.7.1 at {WIDGETS7}; `make test` puts it there")
        environment["PYTHONPATH"] = f"{WIDGETS7}{os.pathsep}{environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", LIVE, version], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "live\n", done.stderr


def test_a_built_page_gets_html_and_a_png_and_a_kernel_gets_widgets(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *a, **k: shown.append((a[0], k)))
    monkeypatch.setenv("MAMMOMIL_STATIC", "1")
    example()._ipython_display_()
    bundle, how = shown.pop()
    assert how == {"raw": True}
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert bundle["text/html"] == example().html()
    assert bundle["image/png"].startswith("iVBOR")
    monkeypatch.delenv("MAMMOMIL_STATIC")
    example()._ipython_display_()
    assert type(shown.pop()[0]).__name__ == "VBox"


def test_a_mammogram_is_in_a_page_once_however_many_frames_show_it():
    pixels = np.random.default_rng(0).random((100, 80))

    def mammogram(n):
        scene = Scene(100, 100, str(n))
        scene.image(pixels, 0, 0, 80, 100)
        scene.text(5, 5, str(n))
        return scene

    page = Explorer("t", [slider("n", "n", range(20))], mammogram).html()
    assert page.count("data:image/jpeg") == 2  # in the payload, and in the picture shown at first
    assert html.escape("19") in page
