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
from mammomil.marks import coloured
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
    content = payload(example().html())
    frames, marks = content["frames"], content["marks"]
    assert len(frames) == 3 * 2 * 2
    assert len(marks) == len(set(marks)) == 2 * 5 + 2  # lit and dark dots, two texts: each kept once
    for (i, n), (j, kind), (k, lit) in itertools.product(
        enumerate((1, 2, 5)), enumerate(("a<b", "c")), enumerate((False, True))
    ):
        numbers, words = frames[f"{i},{j},{k}"]
        svg = "".join(marks[number] for number in numbers)
        assert svg == draw(n, kind, lit).svg({})
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
    controls = [slider(name, name, range(15)) for name in "abc"]
    explorer = Explorer("t", controls, lambda a, b, c: Scene(1, 1, ""))
    with pytest.raises(InputError, match=f"3375 frames, at most {MAX_FRAMES}"):
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


def pick(dot, size):
    """Three dots that can be chosen by a click, and one that can be dragged."""
    scene = Scene(300, 100, f"dot {dot} is chosen, the other is at {size}")
    for i in range(3):
        scene.circle(50 + 100 * i, 30, 10, fill="#000" if i == dot else None)
        scene.hot(50 + 100 * i, 30, 14, f"choose <dot> {i}", dot=i)
    scene.handle(20 + 10 * size, 80, size=("x", 20, 10))
    return scene


def active():
    return Explorer(
        "Pick", [choice("dot", "Dot", {"a": 0, "b": 1, "c": 2}), slider("size", "At", range(9))], pick
    )


def test_what_only_a_script_can_move_is_left_out_where_there_is_none():
    assert active().html().count("choose &lt;dot&gt;") >= 3
    assert "mm-hot" not in active().widget().children[3].value.split("</style>")[1]
    assert "mm-handle" not in active().widget().children[3].value.split("</style>")[1]
    assert pick(0, 0).png() != pick(1, 0).png()
    assert pick(0, 0).png() == pick(0, 1).png()  # nothing but the handle moves


@pytest.mark.book
def test_a_dot_is_chosen_by_click_and_by_key_and_keeps_the_focus(explorer_page):
    page, wrong = explorer_page(active())
    words = page.locator(".mm-words")
    page.locator('[aria-label="choose <dot> 2"]').click()
    assert words.inner_text() == "dot 2 is chosen, the other is at 0"
    assert page.locator("select").input_value() == "2"
    page.locator('[aria-label="choose <dot> 1"]').focus()
    page.keyboard.press("Enter")
    assert words.inner_text() == "dot 1 is chosen, the other is at 0"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "choose <dot> 1"
    page.keyboard.press("Tab")
    page.keyboard.press(" ")
    assert words.inner_text() == "dot 2 is chosen, the other is at 0"
    assert wrong == []


@pytest.mark.book
def test_a_handle_is_dragged_as_far_as_its_slider_goes(explorer_page):
    page, wrong = explorer_page(active())
    for to, size in ((20 + 10 * 5, 5), (20 + 10 * 3 + 4, 3), (299, 8), (-40, 0)):
        box = page.locator(".mm-handle").bounding_box()
        svg = page.locator(".mm-picture svg").bounding_box()
        scale = svg["width"] / 300
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(svg["x"] + scale * to, svg["y"] + scale * 80, steps=3)
        page.mouse.up()
        assert page.locator(".mm-words").inner_text() == f"dot 0 is chosen, the other is at {size}"
        assert page.locator("input[type=range]").input_value() == str(size)
    page.mouse.move(svg["x"] + scale * 60, svg["y"] + scale * 80)  # not held any more
    assert page.locator("input[type=range]").input_value() == "0"
    assert wrong == []


SCRIPT = r"""function (values, data, pen) {
  pen.image("grey", 1, 2, 30, 40, {smooth: true});
  pen.image("grey", 1, 2, 30, 40);
  pen.rect(1.26, 2, values.n, 4, "#0072B2", {
    fill: values.lit ? "#fff" : null, stroke: 0.5, dashed: true, opacity: 0.55});
  pen.rect(1, 2, 3, 4, undefined, {stroke: 0});
  pen.line([[0, 0.04], [values.n / 3, -2.51]], "#D55E00", {opacity: 0.5});
  pen.circle(values.n, 3, 4.55);
  pen.text(3, 4, data.said + "<&\"'", {size: 15, anchor: "middle", bold: true, halo: true});
  pen.text(3, 4, values.n.toFixed(2), {colour: "#009E73"});
  pen.hot(1, 2, 8, "it's <hot>", {n: 1});
  pen.handle(1, 2, {n: ["x", 0.5, 2]});
  return `n is ${values.n.toFixed(3)} and ${values.lit}`;
}
"""
GREY = coloured(np.linspace(0, 1, 100 * 80).reshape(100, 80))


def mirrored(n, lit):
    scene = Scene(100, 50, f"n is {n:.3f} and {str(lit).lower()}")
    scene.image(GREY, 1, 2, 30, 40, smooth=True)
    scene.image(GREY, 1, 2, 30, 40)
    scene.rect(1.26, 2, n, 4, "#0072B2", fill="#fff" if lit else None, stroke=0.5, dashed=True, opacity=0.55)
    scene.rect(1, 2, 3, 4, stroke=0)
    scene.line([(0, 0.04), (n / 3, -2.51)], "#D55E00", opacity=0.5)
    scene.circle(n, 3, 4.55)
    scene.text(3, 4, "said<&\"'", size=15, anchor="middle", bold=True, halo=True)
    scene.text(3, 4, f"{n:.2f}", colour="#009E73")
    scene.hot(1, 2, 8, "it's <hot>", n=1)
    scene.handle(1, 2, n=("x", 0.5, 2))
    return scene


@pytest.fixture
def scripted(monkeypatch):
    """An explorer whose script uses every mark there is."""
    from mammomil import explorer

    known = explorer._static
    monkeypatch.setattr(
        explorer, "_static", lambda name: SCRIPT if name == "explorers/mine.js" else known(name)
    )
    controls = [slider("n", "n", (0.5, 1.256, 7.0)), toggle("lit", "Lit")]
    return Explorer("t", controls, mirrored, script="mine", data={"said": "said"}, pictures={"grey": GREY})


@pytest.mark.book
def test_the_pen_of_a_script_draws_what_a_scene_draws(scripted, assert_same_in_browser):
    settings = [{"n": n, "lit": lit} for n in (0.5, 1.256, 7.0) for lit in (False, True)]
    assert_same_in_browser(scripted, settings)


@pytest.mark.book
def test_a_script_that_draws_something_else_is_found_out(scripted, assert_same_in_browser, monkeypatch):
    monkeypatch.setattr(scripted, "draw", lambda n, lit: mirrored(n + 1, lit) if lit else mirrored(n, lit))
    assert_same_in_browser(scripted, [{"lit": False}])
    with pytest.raises(AssertionError):
        assert_same_in_browser(scripted, [{"lit": True}])


def test_every_control_starts_where_it_was_told_with_and_without_a_kernel():
    controls = [
        choice("kind", "Kind", {"a": 1, "b": 2, "c": 3}, start=3),
        toggle("on", "On", start=True),
        toggle("off", "Off"),
        slider("n", "n", (1, 2, 5), start=5),
    ]
    explorer = Explorer("t", controls, lambda **values: Scene(10, 10, repr(tuple(values.values()))))
    page = explorer.html()
    options = re.findall(r'<option value="(\d)"( selected)?>(\w)</option>', page)
    assert options == [("0", "", "a"), ("1", "", "b"), ("2", " selected", "c")]
    ticks = re.findall(r'type="checkbox" id="[^"]*-(\w+)" data-mm( checked)?>', page)
    assert ticks == [("on", " checked"), ("off", "")]
    assert re.search(r'type="range"[^>]*value="2"[^>]*aria-valuetext="5"', page)
    assert 'aria-label="(3, True, False, 5)"' in page
    assert [part.value for part in explorer.widget().children[1:5]] == [3, True, False, 5]


def test_words_cannot_end_the_script_they_are_kept_in():
    words = "</script><script>alert(1)</script>"
    page = Explorer("t", [slider("n", "n", (1, 2))], lambda n: Scene(10, 10, words)).html()
    assert page.count("<script") == page.count("</script>") == 2
    assert payload(page)["frames"]["1"][1] == words
