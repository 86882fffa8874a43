"""Slides of the chapters, one self-contained page each, made from what the chapters hold anyway.

`kit.py` writes them, with the notebooks for live coding. The parts of a chapter are the same everywhere, so a
rule picks the slides: title and what will be learned, the drawing, explorers, predict-then-run questions with
their results one key later, figures, formulas, what the paper says, the key points; MOST at most. A cell
tagged `slide` is always there, one tagged `no-slide` never. The text between them, and the note for
instructors, are notes that the key n shows. Pictures are the stored ones. Formulas need MathJax, which is
taken from the built book (OUT is `kit/slides` in it).
"""

import ast
import html
import itertools
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template

import nbformat
from live import CHAPTERS, NOTE, is_solution
from nbformat import NotebookNode

MOST = 16
SITE = "../.."  # from a page of slides to the root of the built book
LINES = 16  # a printed result is cut after these
COLUMNS, WRAP = 60, 110  # the letters of a printed result shrink between these widths, then lines are broken
QUESTION = re.compile(r"(?:^>.*\n?)+", re.M)
FORMULA = re.compile(r"\$\$.+?\$\$", re.S)
MOVE = "Move it yourself"
ALWAYS, EXPLORER, RESULT, FORMULAS, FIGURE, PRINT = range(6)  # worth: the first are kept longest


@dataclass
class Slide:
    """One slide, in HTML: what is seen at once, and a second part."""

    title: str
    worth: int
    shown: str = ""
    second: str = ""
    hides: bool = True
    """Whether the second part comes with the next key."""
    look: str = ""
    """Classes of its layout: `beside` puts the two parts next to each other, `middle`, `big`."""
    notes: list[str] = field(default_factory=list)
    """Markdown."""


def slides(notebook: NotebookNode, name: str) -> list[Slide]:
    """Choose and make the slides of a chapter.

    Args:
        notebook: an executed chapter, as `nbformat.read` gives it.
        name: its file name without ending, for links.
    """
    say = Words(notebook)
    cells = notebook.cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    first, end = cells[0].source, _start_of(cells, "Exercises")
    opening, _, need = first.partition("**You need**")
    title = re.search(r"^# (.+)$", opening, re.M)[1]
    note = NOTE.search(text)
    notes = re.sub(r"</?(details|summary)[^>]*>", "", note[0]) if note else ""
    opening = re.sub(r"^# .+$", "", opening, flags=re.M)
    made = [
        Slide(title, ALWAYS, say.html(opening), notes=[f"**You need**{need}", notes]),
        *_body(cells[1:end], say, name),
        *_tables(_section(text, "In the paper, in this book"), say),
        Slide("Key points", ALWAYS, say.html(_section(text, "Key points")), look="big"),
    ]
    while len(made) > MOST:
        worst = max(slide.worth for slide in made)
        crowd = [slide.title for slide in made]
        index = max(
            (i for i, slide in enumerate(made) if slide.worth == worst),
            key=lambda i: (crowd.count(made[i].title), i),
        )
        if worst == ALWAYS:
            break
        out = made.pop(index)
        made[index - 1].notes += out.notes
    return made


def page(notebook: NotebookNode, name: str) -> str:
    """Return a chapter's slides as a page of HTML."""
    say, parts = Words(notebook), []
    chosen = slides(notebook, name)
    for i, slide in enumerate(chosen):
        level = "h2" if i else "h1"
        second = (
            f'<div class="{"later" if slide.hides else "shown"}">{slide.second}</div>' if slide.second else ""
        )
        told = say.html("\n\n".join(slide.notes)).strip()
        notes = f'<aside class="notes" aria-label="Notes"><h3>Notes</h3>{told}</aside>' if told else ""
        shown = f'<div class="shown">{slide.shown}</div>' if slide.shown else ""
        parts.append(
            f'<section tabindex="-1" aria-label="Slide {i + 1}"><{level}>{say.inline(slide.title)}</{level}>'
            f'<div class="body {slide.look}">{shown}{second}</div>{notes}</section>'
        )
    template = Template(Path(__file__).with_name("deck.html").read_text("utf-8"))
    return template.substitute(
        title=html.escape(f"{name[:2]} {chosen[0].title}"),
        slides="\n".join(parts),
        mathjax=f"{SITE}/_static/mathjax/tex-mml-chtml.js",
        chapter=f"{SITE}/chapters/{name}.html",
    )


class Words:
    """Turns a chapter's markdown into HTML: formulas for MathJax, roles as text, links to the built pages."""

    def __init__(self, notebook: NotebookNode) -> None:
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin

        def formula(content: str, options: dict[str, bool]) -> str:
            left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
            return f"{left}{html.escape(content)}{right}"

        self._render = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._render.use(dollarmath_plugin, renderer=formula, allow_space=True)
        self._numbers = {}
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "scrapbook" in output.get("metadata", {}):
                    value = next(iter(output.data.values()))
                    self._numbers[output.metadata.scrapbook.name] = ast.literal_eval(value)

    def html(self, text: str) -> str:
        """Return markdown as HTML."""
        made = self._render.render(self._plain(text)).replace("<hr />", "")
        # A formula may be wider than a phone; what scrolls has to be reached by keys.
        made = made.replace('<div class="math block">', '<div class="math block" tabindex="0">')
        made = made.replace("<th></th>", "<td></td>")  # the corner of a table heads nothing
        # Headings of the notes stand below that of the slide.
        return re.sub(r"<(/?)h[1-3]>", r"<\1h4>", made)

    def inline(self, text: str) -> str:
        """Return a line of markdown as HTML, without a paragraph around it."""
        return self._render.renderInline(self._plain(text))

    def _plain(self, text: str) -> str:
        text = re.sub(r"\{glue:text\}`([^`]+)`", lambda m: self._numbers.get(m[1], "?"), text)
        text = re.sub(r"\{term\}`([^`<]+?)\s*(?:<[^>]*>)?`", r"\1", text)
        text = re.sub(r"\{cite:\w\}`([^`]+)`", lambda m: f"({_cited(m[1])})", text)
        text = re.sub(r"\]\((\w+)\.ipynb(#[^)]*)?\)", rf"]({SITE}/chapters/\1.html)", text)
        return re.sub(r"\]\(\.\./(\w+)\.md(#[^)]*)?\)", rf"]({SITE}/\1.html)", text)


@cache
def _bibliography() -> dict[str, str]:
    from pybtex.database import parse_file

    names = {}
    for key, entry in parse_file(CHAPTERS.parent / "references.bib").entries.items():
        people = [" ".join(person.last_names) for person in entry.persons["author"]]
        others = len(people) > 2 or "others" in people
        who = f"{people[0]} et al." if others else " and ".join(people)
        names[key] = f"{who} {entry.fields.get('year', '')}".strip().replace("{", "").replace("}", "")
    return names


def _cited(keys: str) -> str:
    return "; ".join(_bibliography().get(key.strip(), key.strip()) for key in keys.split(","))


def _start_of(cells: list[NotebookNode], heading: str) -> int:
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown" and re.search(rf"^## {heading}\s*$", cell.source, re.M):
            return i
    return len(cells)


def _section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\s*$(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found[1].strip() if found else ""


def _body(cells: list[NotebookNode], say: Words, name: str) -> Iterator[Slide]:
    """Slides of the chapter's own sections, in order."""
    heading, notes, question, formulas = "", [], "", []
    for at, cell in enumerate(cells):
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            for part in re.split(r"^(?=#{2,3} )", cell.source, flags=re.M):
                if found := re.match(r"#{2,3} (.+)\n?", part):
                    if formulas:
                        yield _formulas(heading, formulas, say)
                    heading, formulas, part = found[1], [], part[found.end() :]
                for asked in QUESTION.findall(part):
                    question = asked
                part = QUESTION.sub("", part).strip()
                notes += [part] if part else []
                if FORMULA.search(part):
                    formulas.append(part)
            if "slide" in tags:
                yield Slide(heading, ALWAYS, say.html(notes.pop() if notes else ""), look="big")
            continue
        pictures, printed = _pictures(cell), _printed(cell)
        # A figure that comes before any more text is the better answer to a question.
        following = itertools.takewhile(lambda c: c.cell_type == "code", cells[at + 1 :])
        asked = question and not any(map(_pictures, following))
        wanted = pictures or (printed and (asked or "slide" in tags))
        if {"setup", "no-slide"} & tags or is_solution(cell) or not wanted:
            continue
        if formulas:
            yield _formulas(heading, formulas, say)
        explorer = "_explorer(" in cell.source
        drawing = "classroom.picture(" in cell.source
        worth = EXPLORER if explorer else RESULT if question and pictures else FIGURE if pictures else PRINT
        worth = ALWAYS if drawing or "slide" in tags else worth
        results = [_figure(*picture) for picture in pictures] or [printed]
        ratio = pictures[0][2] / pictures[0][3] if pictures else 0
        if explorer:
            place = f"{SITE}/chapters/{name}.html"
            results[0] += f'<p class="live"><a href="{place}">{MOVE} in the chapter</a></p>'
        asked = say.html(question) if question else ""
        for i, result in enumerate(results):
            if not asked or i:
                slide = Slide(heading, worth, result, look="" if pictures else "middle")
            else:
                look = "middle" if not pictures else "beside" if ratio < 1.6 else ""
                slide = Slide(heading, worth, asked, result, not explorer, look)  # an explorer is what to ask
            slide.notes, notes = notes, []
            yield slide
        question, formulas = "", []
    if formulas:
        yield _formulas(heading, formulas, say)


def _formulas(heading: str, parts: list[str], say: Words) -> Slide:
    """Slide of a section's formulas, each with the words that lead to it."""
    said = []
    for part in parts:
        at = 0
        for found in FORMULA.finditer(part):
            before = part[at : found.start()].strip().split("\n\n")[-1].strip()
            if before.startswith(("|", "```", "-")):
                before = ""
            elif len(before.split()) > 45:
                before = re.split(r"(?<!Eq)(?<=[.?])\s+(?=[A-Z$*])", before)[-1]
            said += [before, found[0]]
            at = found.end()
    return Slide(heading, FORMULAS, say.html("\n\n".join(said)), look="middle big")


def _tables(text: str, say: Words) -> Iterator[Slide]:
    """Slides of what the paper says and what the book does; a long table is cut between rows."""
    title, size = "In the paper, in this book", 330
    rows = [line for line in text.splitlines() if line.startswith("|")]
    head, blocks = (rows[:2], rows[2:]) if rows else ([], re.split(r"\n(?=[-*] |\n)", text))
    pages = -(-sum(len(block.split()) for block in blocks) // size) or 1
    each = -(-len(blocks) // pages)
    for i in range(0, len(blocks), each):
        number = f" ({i // each + 1} of {-(-len(blocks) // each)})" if pages > 1 else ""
        yield Slide(title + number, ALWAYS, say.html("\n".join([*head, *blocks[i : i + each]])))


def _pictures(cell: NotebookNode) -> list[tuple[str, str, float, float]]:
    """Stored pictures of a cell: address, words, width, height."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        words = data.get("text/plain", "")
        if "image/png" in data:
            raw = b64decode(data["image/png"])
            width, height = struct.unpack(">II", raw[16:24])
            found.append((f"data:image/png;base64,{b64encode(raw).decode()}", words, width, height))
        elif "image/svg+xml" in data:
            svg = data["image/svg+xml"]
            _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
            coded = b64encode(svg.encode()).decode()
            found.append((f"data:image/svg+xml;base64,{coded}", words, 2 * width, 2 * height))
    return found


def _figure(address: str, words: str, width: float, height: float) -> str:
    wide = ' class="wide" tabindex="0"' if width / height > 2 else ""
    alt = html.escape(words)
    return f'<figure{wide}><img alt="{alt}" style="width:{1.5 * width:.0f}px" src="{address}"></figure>'


def _printed(cell: NotebookNode) -> str:
    text = "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream").strip("\n")
    if not text:
        return ""
    lines = text.splitlines()
    lines = lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."]
    columns = min(max(COLUMNS, *map(len, lines)), WRAP)
    return f'<pre tabindex="0" style="--columns:{columns}">{html.escape(chr(10).join(lines))}</pre>'


def write(path: Path, out: Path) -> None:
    """Write the slides of a chapter into the folder `out`."""
    from mammomil.files import atomic_path

    text = page(nbformat.read(path, as_version=4), path.stem)
    built = out.resolve().parents[1] / "chapters" / f"{path.stem}.html"
    if built.is_file():  # then links to explorers can lead to their place in it
        places = iter(re.findall(r'class="mm-explorer" id="([\w-]+)"', built.read_text("utf-8")))
        text = re.sub(
            rf'{path.stem}\.html(?=">{MOVE})', lambda m: f"{m[0]}#{next(places, '')}".rstrip("#"), text
        )
    with atomic_path(out / f"{path.stem}.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
