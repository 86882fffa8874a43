"""The built book in a real browser: nothing loaded from elsewhere, no script errors, no dead control.

Built by `make book`; without the built pages or without Chromium these tests skip and say so.
"""

import itertools
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.book
ROOT = Path(__file__).parents[1]
SITE = Path(os.environ.get("MAMMOMIL_SITE", ROOT / "book" / "_build" / "html"))
PAGES = sorted(
    str(p.relative_to(SITE))
    for p in SITE.rglob("*.html")
    if not {"_static", "slides"} & set(p.parts) and p.name not in ("genindex.html", "search.html")  # test_kit
)
# The text of the book, without what the theme puts around it.
TEXT = {"include": [["main .bd-article"]]}


@pytest.fixture(scope="module")
def browser(chromium):
    if not PAGES:
        pytest.skip(f"no built book at {SITE}; run `make book`")
    return chromium


@pytest.fixture
def opened(browser):
    """Open a page of the book; give it with what it asked for from outside and what went wrong."""
    contexts = []

    def open_page(name, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        outside, wrong = [], []
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else outside.append(r.url),
        )
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda r: wrong.append(f"{r.url} {r.failure}"))
        page.goto(f"file://{SITE / name}", wait_until="load")
        page.wait_for_timeout(300)
        return page, outside, wrong

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_logs_no_error(opened, name):
    _, outside, wrong = opened(name)
    assert outside == []
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_every_control_changes_its_picture_and_its_words(opened, name):
    page, _, wrong = opened(name)
    for explorer in page.query_selector_all("figure.mm-explorer"):
        picture = explorer.query_selector(".mm-picture svg")
        words = explorer.query_selector(".mm-words")
        for control in explorer.query_selector_all("[data-mm]"):
            title = f"{explorer.get_attribute('aria-label')}: {control.get_attribute('id')}"
            start = control.evaluate("c => c.type === 'checkbox' ? String(c.checked) : c.value")
            seen = [(picture.inner_html(), words.inner_text())]
            if control.get_attribute("type") == "range":
                control.focus()
                page.keyboard.press("Home")
                seen = [(picture.inner_html(), words.inner_text())]
                for _ in range(int(control.get_attribute("max"))):
                    page.keyboard.press("ArrowRight")
                    seen.append((picture.inner_html(), words.inner_text()))
                    assert control.get_attribute("aria-valuetext"), title
            elif control.get_attribute("type") == "checkbox":
                control.focus()
                page.keyboard.press("Space")
                seen.append((picture.inner_html(), words.inner_text()))
            else:
                options = control.query_selector_all("option")
                seen = []
                for option in options:
                    control.select_option(option.get_attribute("value"))
                    seen.append((picture.inner_html(), words.inner_text()))
            for before, after in itertools.pairwise(seen):
                assert before[0] != after[0], f"{title}: the picture did not change"
                assert before[1] != after[1], f"{title}: the words did not change"
            assert "NaN" not in "".join(words for _, words in seen), title
            control.evaluate(
                "(c, v) => { if (c.type === 'checkbox') c.checked = v === 'true'; else c.value = v;"
                " c.dispatchEvent(new Event('input', {bubbles: true})) }",
                start,
            )
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_in_the_text_of_the_book(opened, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = []
    for scheme in ("light", "dark"):
        page, _, _ = opened(name, scheme=scheme)
        result = axe.Axe().run(page, context=TEXT).response
        for violation in result["violations"]:
            found += [
                f"{scheme} {violation['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:200]}"
                for node in violation["nodes"][:3]
            ]
    assert found == []


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_has_words(opened, name):
    page, _, _ = opened(name)
    silent = page.evaluate(
        """() => Array.from(document.querySelectorAll(".bd-article img")).filter(i => !(i.alt || "").trim()
        || i.alt.startsWith("../_images") || i.alt.startsWith("_images")).map(i => i.src.slice(0, 80))
        .concat(Array.from(document.querySelectorAll(".bd-article svg[role=img]")).filter(s =>
        !s.getAttribute("aria-label")).map(s => s.outerHTML.slice(0, 80)))"""
    )
    assert silent == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(opened, name):
    page, _, _ = opened(name, width=375)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 376, f"{wide} pixels wide on a phone of 375"


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_book_lead_somewhere(opened, name):
    page, _, _ = opened(name)
    broken = []
    for href in set(page.evaluate("Array.from(document.querySelectorAll('main a[href]')).map(a => a.href)")):
        parts = urlsplit(href)
        if parts.scheme != "file":
            continue
        target = Path(unquote(parts.path))
        if not target.is_file():
            broken.append(href)
        elif parts.fragment and target.suffix == ".html":
            text = target.read_text("utf-8")
            if not re.search(rf'id="{re.escape(unquote(parts.fragment))}"', text):
                broken.append(href)
    assert broken == []


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("chapters/")])
def test_a_chapter_has_colab_and_download_buttons_and_is_light(opened, name):
    page, _, _ = opened(name)
    hrefs = page.evaluate("Array.from(document.querySelectorAll('a[href]')).map(a => a.href)")
    notebook = Path(name).with_suffix(".ipynb")
    assert any(
        h.startswith("https://colab.research.google.com/") and h.endswith(str(notebook)) for h in hrefs
    )
    assert any(h.endswith(f"_sources/{notebook}") for h in hrefs)
    assert (SITE / name).stat().st_size < 3_000_000
    script = page.evaluate(
        "Array.from(document.querySelectorAll('figure.mm-explorer')).map(f => f.outerHTML.length)"
    )
    assert sum(script) <= 1_048_576 * 1.0, f"{sum(script)} characters of explorers; a page may have 1 MiB"
