"""Fixtures every test may use: one thread, a fixed seed, and the folder of real mammograms if it is there."""

import os
import re
import shutil
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "mammomil", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")), database=None
)
hypothesis.settings.load_profile("mammomil")

REAL_DATA = Path(os.environ.get("MAMMOMIL_REAL_DATA", Path(__file__).parents[2] / "shared" / "data" / "real"))


@pytest.fixture(autouse=True)
def reproducible():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The private folder of real mammograms; tests that need it skip where it is not."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real mammograms at {REAL_DATA}; set MAMMOMIL_REAL_DATA to their folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def twelve_phantoms():
    """Twelve shipped phantom images, half of them with malignant lesions."""
    from mammomil.index import read_index, select
    from mammomil.weights import SHIPPED

    index = read_index(SHIPPED)
    sick = index.images["malignant"] == 1
    return select(index, (sick & (sick.cumsum() <= 6)) | (~sick & ((~sick).cumsum() <= 6)))


CHROMIUM_FLAGS = [
    "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium; tests that need one skip where there is none. Mark them `book`."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        flags = CHROMIUM_FLAGS
        running = playwright.chromium.launch(executable_path=found, args=flags, chromium_sandbox=False)
        yield running
        running.close()


@pytest.fixture
def explorer_page(chromium):
    """Open an explorer as a page of its own; give the page, and what went wrong in it so far."""
    contexts = []

    def open_explorer(explorer, width=800):
        context = chromium.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page, wrong = context.new_page(), []
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.set_content(f"<!doctype html><html lang=en><title>t</title><body>{explorer.html()}</body>")
        return page, wrong

    yield open_explorer
    for context in contexts:
        context.close()


@pytest.fixture
def assert_same_in_browser(explorer_page):
    """Compare what an explorer's script draws in a browser with what `draw` draws here, mark by mark."""

    def compare(explorer, settings):
        page, wrong = explorer_page(explorer)
        for values in settings:
            places = [c.values.index(values.get(c.name, c.values[c.start])) for c in explorer.controls]
            words, svg = page.evaluate(
                """places => {
                    const root = document.querySelector("figure.mm-explorer");
                    root.querySelectorAll("[data-mm]").forEach((control, i) => {
                        if (control.type === "checkbox") control.checked = Boolean(places[i]);
                        else control.value = places[i];
                    });
                    root.querySelector("[data-mm]").dispatchEvent(new Event("input"));
                    return [root.querySelector(".mm-words").textContent,
                            root.querySelector(".mm-picture svg").innerHTML];
                }""",
                places,
            )
            scene = explorer.scene(**values)
            assert words == scene.words, values
            here, there = (_marks(page, text) for text in (scene.svg({}), svg))
            assert [kind for kind, _ in here] == [kind for kind, _ in there], values
            for (kind, mine), (_, theirs) in zip(here, there, strict=True):
                assert _texts(mine) == _texts(theirs), (values, kind)
                # Halves are rounded differently by the two languages.
                assert _numbers(mine) == pytest.approx(_numbers(theirs), abs=0.11), (values, kind)
        assert wrong == []

    return compare


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _marks(page, svg):
    """Elements of a piece of SVG: (tag, its attributes and text), as the browser reads them."""
    return page.evaluate(
        """svg => { const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        box.innerHTML = svg;
        return Array.from(box.children).map(e => [e.tagName, Array.from(e.attributes)
            .map(a => a.name === "href" ? "href" : `${a.name}=${a.value}`).sort().join(" ")
            + "|" + e.textContent])
        }""",
        svg,
    )


def _texts(mark):
    return _NUMBER.sub("#", mark)


def _numbers(mark):
    return [float(number) for number in _NUMBER.findall(mark)]
