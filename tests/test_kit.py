"""The kit for instructors: live-coding variants, slides, grades."""

import ast
import copy
import csv
import json
import re
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))

import grade  # noqa: E402
import kit  # noqa: E402
import live  # noqa: E402
import slides  # noqa: E402

CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.ipynb"))
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def sources(notebook, kind="code"):
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == kind}


# Live coding.


@every_chapter
def test_a_fifth_of_what_is_written_from_scratch_is_left_to_type(path):
    notebook = read(path)
    before = copy.deepcopy(notebook)
    made = live.make(notebook)
    assert notebook == before
    assert live.make(notebook).blanks == made.blanks

    # Counted here anew: lines with code of the cells that lost something or define something.
    whole, blank = 0, sum(len(b.source.splitlines()) for b in made.blanks)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "## Exercises" in cell.source.splitlines():
            break
        if cell.cell_type == "code" and re.search(r"^(def|class) ", cell.source, re.M):
            if {"setup", "hide-cell"} & set(cell.metadata.get("tags", [])):
                continue
            whole += sum(bool(re.match(r"\s*[^\s#]", line)) for line in cell.source.splitlines())
    assert blank / whole == pytest.approx(made.share)
    assert 0.10 <= made.share <= 0.30


@every_chapter
def test_blanks_are_statements_of_the_chapter_and_filling_them_in_gives_it_back(path):
    notebook = read(path)
    made = live.make(notebook)
    there, left = sources(notebook), sources(made.students)
    for source in left.values():
        ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.M))
    removed = {b.cell for b in made.blanks}
    for identity, source in left.items():
        if identity not in removed:
            assert source == there[identity]
            continue
        kept = [line for line in source.splitlines() if "...  # live: " not in line]
        wanted = iter(there[identity].splitlines())
        assert all(line in wanted for line in kept), "a line that is not the chapter's, or another order"
    for blank in made.blanks:
        inside = textwrap.indent(textwrap.dedent(blank.source), "    ")
        (statement,) = ast.parse(f"def f():\n{inside}").body[0].body
        assert isinstance(statement, ast.Return | ast.Assign | ast.AugAssign | ast.Expr)
        line = left[blank.cell].splitlines()[blank.line]
        assert re.match(r"\s*\.\.\.  # live: .*\?", line), line
        assert len(line) <= 110
        indent = len(line) - len(line.lstrip())
        assert indent == len(blank.source) - len(blank.source.lstrip())
    filled = sources(live.fill(made.students, made.blanks))
    assert filled == {identity: there[identity] for identity in left}


@every_chapter
def test_the_rooms_copy_has_no_outputs_solutions_or_notes_and_the_instructors_has(path):
    notebook = read(path)
    made = live.make(notebook)
    for variant in (made.students, made.instructor):
        nbformat.validate(variant)
        for cell in variant.cells:
            assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
    text, told = ("\n".join(sources(v, "markdown").values()) for v in (made.students, made.instructor))
    assert "instructor" not in text.lower()
    assert '<details class="instructor">' in told
    assert sources(made.instructor, "markdown") == sources(notebook, "markdown")
    code = "\n".join(sources(made.students).values())
    assert "A solution" not in code
    assert not re.search(r"\bassert check\.", code)
    exercises = len(re.findall(r"^### Exercise ", text, re.M))
    assert len(re.findall(r"^check\.\w+\(", code, re.M)) == exercises
    # The instructor's code is the chapter's, with a mark behind each statement that the room types.
    marked = sources(made.instructor)
    assert {i: re.sub(r"  # live$", "", s, flags=re.M) for i, s in marked.items()} == sources(notebook)
    assert sum(s.count("  # live") for s in marked.values()) == len(made.blanks)


def test_what_is_blanked_in_a_small_cell():
    source = '''def mean(values, weights):
    """Weighted."""
    import math
    total = 0.0
    for value, weight in zip(values, weights):
        total += (
            value * weight  # not normalised yet
        )
    if not values: return math.nan
    return total / sum(weights)  # now it is
'''.rstrip()
    notebook = new_notebook(cells=[new_code_cell(source, id="one"), new_markdown_cell("## Exercises")])
    made = live.make(notebook)
    assert made.blanks == [live.Blank("one", 9, "    return total / sum(weights)  # now it is")]
    assert made.students.cells[0].source.endswith("\n    ...  # live: return ? (from total, weights)")
    assert made.share == pytest.approx(1 / 10)


# Slides.


class Deck(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sections, self.addresses, self.pictures, self.headings = 0, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.sections += tag == "section"
        self.addresses += [(tag, given[name]) for name in ("src", "href") if name in given]
        if tag == "img":
            self.pictures.append(given)
        if tag in ("h1", "h2"):
            self.headings.append(tag)


@every_chapter
def test_slides_are_few_complete_and_load_nothing(path):
    notebook = read(path)
    chosen = slides.slides(notebook, path.stem)
    text = slides.page(notebook, path.stem)
    deck = Deck(text)
    assert 8 <= len(chosen) == deck.sections <= 16
    assert deck.headings == ["h1"] + ["h2"] * (len(chosen) - 1)
    assert "What you will learn" in chosen[0].shown
    assert chosen[-1].title == "Key points"
    assert chosen[-2].title.startswith("In the paper, in this book")
    explorers = [c for c in notebook.cells if c.cell_type == "code" and "_explorer(" in c.source]
    assert sum("Move it yourself" in s.shown + s.second for s in chosen) == len(explorers)
    assert any(s.hides and s.second and "Predict, then run" in s.shown for s in chosen)
    for tag, address in deck.addresses:
        assert not address.startswith(("http", "//")) or tag == "a", address
        if tag in ("img", "script"):
            assert address.startswith(("data:image/", "../../_static/mathjax/")), address[:60]
    assert len([t for t, _ in deck.addresses if t == "script"]) == 1
    assert not re.search(r"url\((?!#)|@import", text)
    assert all(len(picture["alt"]) > 20 for picture in deck.pictures)
    assert not re.search(r"\{(glue|cite|term)", text)
    assert "(?)" not in text
    assert len(text) < 3_000_000


def test_numbers_terms_and_links_of_the_text_are_resolved():
    glued = new_output(
        "display_data",
        data={"application/papermill.record/text/plain": "'.75'"},
        metadata={"scrapbook": {"name": "02-auc", "mime_prefix": "application/papermill.record/"}},
    )
    say = slides.Words(new_notebook(cells=[new_code_cell("", outputs=[glued])]))
    made = say.html(
        "AUC {glue:text}`02-auc` of a {term}`Bag <bag>` {cite:p}`ilse2018attention`, $a<b$, "
        "see [1](01_mammograms.ipynb) and [words](../glossary.md#bag). <script>x</script>"
    )
    assert "AUC .75 of a Bag (Ilse et al. 2018)" in made
    assert r"\(a&lt;b\)" in made
    assert 'href="../../chapters/01_mammograms.html"' in made
    assert 'href="../../glossary.html"' in made
    assert "<script>" not in made


def test_a_tag_puts_a_cell_on_the_slides_or_keeps_it_away():
    path = CHAPTERS[4]
    notebook = read(path)
    figures = [
        c for c in notebook.cells[5:] if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))
    ]
    address = slides._pictures(figures[0])[0][0]
    quiet = next(
        c for c in notebook.cells[5:]
        if c.cell_type == "code" and {o.output_type for o in c.outputs} == {"stream"}
    )  # fmt: skip
    quiet.outputs[0].text = "seen because of its tag"
    before = slides.page(notebook, path.stem)
    assert address in before
    figures[0].metadata["tags"], quiet.metadata["tags"] = ["no-slide"], ["slide"]
    after = slides.page(notebook, path.stem)
    assert address not in after
    assert "seen because of its tag" in after


def test_the_kit_links_what_it_holds_and_forgets_what_is_gone(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "99_gone.html").write_text("")
    kit.make(tmp_path, CHAPTERS[:2])
    hrefs = [a for tag, a in Deck((tmp_path / "index.html").read_text("utf-8")).addresses if tag == "a"]
    inside = {a for a in hrefs if not a.startswith("../")}
    assert (
        inside
        == {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")}
        == {
            f"{folder}/{p.stem}.{kind}"
            for p in CHAPTERS[:2]
            for folder, kind in (("slides", "html"), ("live", "ipynb"), ("instructor", "ipynb"))
        }
    )
    assert {a for a in hrefs if a.startswith("../")} == {
        "../intro.html",
        *(f"../chapters/{p.stem}.html" for p in CHAPTERS[:2]),
    }


def test_links_to_explorers_lead_to_their_place_in_the_built_chapter(tmp_path):
    path = CHAPTERS[1]
    slides.write(path, tmp_path / "kit" / "slides")
    found = [a for t, a in Deck((tmp_path / "kit" / "slides" / f"{path.stem}.html").read_text()).addresses]
    assert f"../../chapters/{path.stem}.html" in found
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / f"{path.stem}.html").write_text('<figure class="mm-explorer" id="mm-1a2b">')
    slides.write(path, tmp_path / "kit" / "slides")
    found = [a for t, a in Deck((tmp_path / "kit" / "slides" / f"{path.stem}.html").read_text()).addresses]
    assert f"../../chapters/{path.stem}.html#mm-1a2b" in found


@pytest.fixture
def deck(chromium, tmp_path):
    """The slides of a chapter in a browser, with what went wrong; formulas stay as they are."""
    contexts = []

    def open_deck(path, width=1280, height=720):
        slides.write(path, tmp_path / "kit" / "slides")
        script = tmp_path / "_static" / "mathjax" / "tex-mml-chtml.js"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.symlink_to(ROOT / "book" / "vendor" / "mathjax" / "tex-mml-chtml.js")
        (script.parent / "output").symlink_to(ROOT / "book" / "vendor" / "mathjax" / "output")
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda r: wrong.append(r.url))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(r.url))
        page.goto((tmp_path / "kit" / "slides" / f"{path.stem}.html").as_uri())
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise")
        return page, wrong

    yield open_deck
    for context in contexts:
        context.close()


def steps(page):
    """Go through a deck with the arrow key; give the number of the slide at each step."""
    yield page.locator("nav output").inner_text()
    while page.locator("nav [data-go='1']").is_enabled():
        page.keyboard.press("ArrowRight")
        yield page.locator("nav output").inner_text()


FITS = """() => { const slide = document.querySelector("section.now"), page = document.documentElement;
    const low = Array.from(slide.querySelectorAll(".body *"))
        .filter(e => e.getClientRects().length && !e.closest("mjx-assistive-mml"))
        .map(e => e.getBoundingClientRect().bottom);
    return [page.scrollWidth - innerWidth, Math.max(...low) - (innerHeight - 51)] }"""


@pytest.mark.book
@every_chapter
def test_each_slide_fits_a_projector_and_is_as_wide_as_a_phone(deck, path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, wrong = deck(path)
    seen, found = [], []
    for number in steps(page):
        seen.append(number)
        wide, low = page.evaluate(FITS)
        assert wide <= 0, f"{number}: {wide} pixels too wide"
        assert low <= 1, f"{number}: {low} pixels too tall"
        for violation in axe.Axe().run(page, context={"include": [["main"], ["nav"]]}).response["violations"]:
            found += [f"{number} {violation['id']}: {n['html'][:200]}" for n in violation["nodes"][:2]]
    assert found == []
    total = page.locator("section").count()
    assert seen[0] == f"1 / {total}"
    assert seen[-1] == f"{total} / {total}"
    assert len(seen) == total + page.locator(".later").count()
    page.set_viewport_size({"width": 375, "height": 700})
    page.keyboard.press("Home")
    for number in steps(page):
        wide, _ = page.evaluate(FITS)
        assert wide <= 1, f"{number}: {wide} pixels too wide for a phone"
    assert wrong == []


@pytest.mark.book
def test_a_result_waits_for_its_key_and_keys_buttons_and_notes_work(deck):
    page, _ = deck(CHAPTERS[4])
    while not page.locator("section.now .later").count():
        page.keyboard.press("PageDown")
    later, number = page.locator("section.now .later"), page.locator("nav output").inner_text()
    assert not later.is_visible()
    assert page.locator("nav [data-go='1']").inner_text() == "Show"
    page.keyboard.press(" ")
    assert later.is_visible()
    assert page.locator("nav output").inner_text() == number
    page.locator("nav [data-go='1']").click()
    assert page.locator("nav output").inner_text() != number
    page.keyboard.press("ArrowLeft")
    assert page.locator("nav output").inner_text() == number
    assert page.url.endswith(f"#{number.split(' ')[0]}")
    notes = page.locator("section.now .notes")
    assert not notes.is_visible()
    page.keyboard.press("n")
    assert notes.is_visible()
    assert page.locator("nav [data-notes]").get_attribute("aria-pressed") == "true"
    page.reload()
    assert page.locator("nav output").inner_text() == number


@pytest.mark.book
def test_printing_gives_one_slide_a_page_with_all_results(deck, tmp_path):
    page, _ = deck(CHAPTERS[4])
    count = page.locator("section").count()
    made = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", made)) == count
    page.emulate_media(media="print")
    assert all(page.locator(".later").nth(i).is_visible() for i in range(page.locator(".later").count()))


# Grades.

ANSWERS = {
    "right": "return scores.squeeze(-1).softmax(dim=1)",
    "wrong": "return scores.squeeze(-1).softmax(dim=0)",
    "unwritten": "raise NotImplementedError",
}


def submission(answer, chapter="04", outputs=(), tail="check.attention_weights(attention_weights)"):
    """A small notebook: the setup of chapter 4, its first exercise with an answer, and its solution."""
    source = f"def attention_weights(scores):\n    {answer}\n\n\n{tail}"
    solution = new_code_cell("# @title A solution\nassert False", metadata={"tags": ["solution"]})
    return new_notebook(
        cells=[
            new_code_cell("import torch\nfrom mammomil.check import attention as check"),
            new_markdown_cell(f"## Exercises\n\n### Exercise {chapter}.1 ★\n\nTask."),
            new_code_cell(source, outputs=list(outputs)),
            solution,
            new_markdown_cell("## Quiz"),
            new_code_cell("check.gated_pool(print)"),
        ]
    )


def verdict(words):
    return new_output("execute_result", data={"text/plain": words}, execution_count=1)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_stored_verdicts_are_read_and_others_are_not():
    printed = new_output("stream", name="stdout", text="Right. I say so.")
    cases = {
        "yes": [verdict("Right. Well done.")],
        "no": [verdict("Not yet. Softmax runs over the bags.")],
    }
    for right, outputs in cases.items():
        found = grade.grade(submission("return scores", outputs=outputs), "a.ipynb")[0]
        assert found[:5] == ("a.ipynb", "04", "04.1", 1, right)
    assert found.words == "Softmax runs over the bags."
    for outputs in (
        [],
        [printed],
        [verdict("'Right. '")],
        [new_output("display_data", {"text/plain": "Right. "})],
    ):
        assert grade.grade(submission("return scores", outputs=outputs), "a")[0].right == "no"
    failed = new_output("error", ename="NameError", evalue="name 'x'\nis \x1b[31mnot", traceback=[])
    found = grade.grade(submission("return x", outputs=[failed]), "a")[0]
    assert found[4:] == ("no", "The cell raised NameError: name 'x' is [31mnot")


def test_all_exercises_of_the_chapter_are_in_the_table_and_a_changed_check_is_told():
    rows = grade.grade(submission("return scores", outputs=[verdict("Right. Good.")]), "a")
    assert [(row.exercise, row.stars, row.right) for row in rows] == [
        ("04.1", 1, "yes"),
        ("04.2", 2, "look"),
        ("04.3", 3, "look"),
    ]
    assert rows[1].words == "The exercise is not in this notebook."
    easy = submission("return 1", outputs=[verdict("Right. Good.")], tail="check.attention_weights(solved)")
    assert grade.grade(easy, "a")[0].right == "look"
    assert "was changed" in grade.grade(easy, "a")[0].words
    other = grade.grade(submission("return 1", chapter="77", outputs=[verdict("Right. Good.")]), "a")
    assert [(row.exercise, row.right) for row in other] == [("77.1", "yes")]


@every_chapter
def test_every_exercise_of_the_book_is_found_unwritten(path):
    notebook = read(path)
    rows = grade.grade(notebook, path.name)
    text = "\n".join(sources(notebook, "markdown").values())
    told = re.findall(r"^### Exercise (\d\d\.\d+) (★+)", text, re.M)
    assert [(row.exercise, "★" * row.stars) for row in rows] == told
    assert {row.right for row in rows} == {"no"}
    assert all("is not written yet" in row.words for row in rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's own machinery
def test_running_judges_anew_and_goes_on_after_errors(tmp_path, capsys):
    tampered = submission(ANSWERS["wrong"], outputs=[verdict("Right. Edited by hand.")])
    for name, answer in ANSWERS.items():
        nbformat.write(submission(answer), tmp_path / f"{name}.ipynb")
    nbformat.write(tampered, tmp_path / "tampered.ipynb")
    (tmp_path / "broken.ipynb").write_text('{"cells": [', "utf-8")
    (tmp_path / "other.ipynb").write_text(json.dumps(new_notebook()), "utf-8")
    out = tmp_path / "grades.csv"
    files = [str(tmp_path / f"{n}.ipynb") for n in (*ANSWERS, "broken", "tampered", "other")]
    assert grade.main([*files, "--out", str(out), "--run"]) == 1
    said = capsys.readouterr()
    assert "other people's code" in said.err
    assert "broken.ipynb: not a notebook" in said.err
    assert "other.ipynb: no heading" in said.err
    rows = {row["file"]: row for row in table(out) if row["exercise"] == "04.1"}
    assert {name: row["right"] for name, row in rows.items()} == {
        "right.ipynb": "yes",
        "wrong.ipynb": "no",
        "unwritten.ipynb": "no",
        "tampered.ipynb": "no",
    }
    assert "not written yet" in rows["unwritten.ipynb"]["words"]
    assert rows["tampered.ipynb"]["words"] == rows["wrong.ipynb"]["words"]
    assert read(tmp_path / "tampered.ipynb").cells[2].outputs, "a submission stays as it was"
    # Without --run the edited verdict counts, and the reader is told that it may be edited.
    assert grade.main([str(tmp_path / "tampered.ipynb"), "--out", str(out)]) == 0
    assert "can be edited" in capsys.readouterr().err
    assert table(out)[0]["right"] == "yes"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_endless_cell_is_stopped_and_the_next_exercise_judged():
    checks = """class Said:
    def __repr__(self):
        return "Right. Fine."


class check:
    one = staticmethod(lambda wait: [None for _ in iter(int, 1)] if wait else Said())"""
    exercises = [
        cell
        for number, wait in ((1, True), (2, False))
        for cell in (
            new_markdown_cell(f"### Exercise 77.{number} ★"),
            new_code_cell(f"check.one({wait})", outputs=[verdict("Right. Stored.")]),
        )
    ]
    notebook = grade.run(new_notebook(cells=[new_code_cell(checks), *exercises]), seconds=3)
    rows = grade.grade(notebook, "a")
    assert [row.right for row in rows] == ["no", "yes"]
    assert "took too long" in rows[0].words or "KeyboardInterrupt" in rows[0].words
    assert rows[1].words == "Fine."


def test_no_text_of_a_student_becomes_a_formula_or_steers_a_terminal(tmp_path, capsys):
    said = '=HYPERLINK("http://x")\x1b[2J\r\n@SUM(1)'
    notebook = submission("return 1", outputs=[new_output("error", ename="E", evalue=said, traceback=[])])
    path = tmp_path / "=cmd|' -C calc'!A1.ipynb"
    nbformat.write(notebook, path)
    wrong = submission("return 1", outputs=[verdict("Not yet. -1+cmd|' /C calc'!A0")])
    nbformat.write(wrong, tmp_path / "+plus.ipynb")
    out = tmp_path / "grades.csv"
    assert grade.main([str(path), str(tmp_path / "+plus.ipynb"), "--out", str(out)]) == 0
    rows = table(out)
    assert rows[0]["file"] == "'=cmd|' -C calc'!A1.ipynb"
    assert rows[3]["file"] == "'+plus.ipynb"
    assert rows[3]["words"] == "'-1+cmd|' /C calc'!A0"
    for row in rows:
        assert not any(value.startswith(("=", "+", "-", "@")) for value in row.values())
    shown = capsys.readouterr().out
    assert "\x1b" not in out.read_text("utf-8") + shown
    assert len(shown.splitlines()) == len(rows) + 1


def test_links_of_slides_lead_to_pages_of_the_book():
    """Pages are made from these sources; the built site's own test opens them."""
    pages = {f"chapters/{p.stem}" for p in CHAPTERS} | {p.stem for p in (ROOT / "book").glob("*.md")}
    contents = (ROOT / "book" / "_toc.yml").read_text("utf-8")
    planned = set(re.findall(r"(?:file|root): (\S+)", contents))
    for path in CHAPTERS:
        for tag, address in Deck(slides.page(read(path), path.stem)).addresses:
            parts = urlsplit(address)
            if tag == "a" and not parts.scheme and parts.path:
                assert unquote(parts.path).removeprefix("../../").removesuffix(".html") in pages | planned
