"""What the book needs from Sphinx beyond Jupyter Book: generated pages, hover terms, two fixes of HTML."""

import json
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

BOOK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BOOK / "_tools"))

from equations import as_markdown, equation_map  # noqa: E402 (beside the book, not a package)
from plans import plan_table  # noqa: E402

TIMES = BOOK.parent / "mammomil" / "static" / "chapter_times.json"


class Generated(SphinxDirective):
    """A directive whose Markdown is made while building."""

    def markdown(self) -> str:
        """Return the Markdown in place of the directive."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown as if it stood on the page."""
        part = nodes.section()
        lines = StringList(self.markdown().splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(lines, self.content_offset, part, match_titles=True)
        return part.children


class EquationMap(Generated):
    """Equations, the code that holds them, the tests, the chapters."""

    def markdown(self) -> str:
        """Return both papers' tables."""
        options = self.config.html_theme_options
        return as_markdown(equation_map(), f"{options['repository_url']}/blob/{options['repository_branch']}")


class ChapterTimes(Generated):
    """How long each chapter took where its committed outputs come from."""

    def markdown(self) -> str:
        """Return the table, and the versions it was measured with."""
        times = json.loads(TIMES.read_text("utf-8"))["chapters"]
        lines = ["| chapter | run | read | exercises | device | date |", "|---|---|---|---|---|---|"]
        for row in times.values():
            link = f"[{row['notebook'].removesuffix('.ipynb')}](chapters/{row['notebook']})"
            lines.append(
                f"| {link} | {row['run_s']} s | {row['read_min']} min | {row['exercise_min']} min | "
                f"{row['device']} | {row['date']} |"
            )
        versions = {name: version for row in times.values() for name, version in row["versions"].items()}
        words = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        return "\n".join([*lines, "", f"Measured with {words}."])


class WorkshopPlan(Generated):
    """A timetable: lines of `minutes | what happens | chapters`."""

    has_content = True

    def markdown(self) -> str:
        """Return the table."""
        try:
            return plan_table(self.content, json.loads(TIMES.read_text("utf-8"))["chapters"])
        except ValueError as error:
            raise self.error(str(error)) from error


def describe_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give every reference to a glossary term its definition as a title, which browsers show on hovering."""
    definitions = {}
    for item in app.env.get_doctree("glossary").findall(nodes.definition_list_item):
        text = item[-1].astext().replace("\n", " ")
        for term in item.findall(nodes.term):
            definitions |= dict.fromkeys(term["ids"], text)
    for reference in doctree.findall(nodes.reference):
        anchor = reference.get("refuri", "").rpartition("#")[2] or reference.get("refid", "")
        if anchor in definitions:
            reference["reftitle"] = definitions[anchor]


def drop_repeated_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Jupyter Book and its theme both register thebe's settings, and the second copy is a script error."""
    seen = set()
    kept = []
    for script in context.get("script_files", []):
        key = (
            getattr(script, "filename", script) or "",
            (getattr(script, "attributes", None) or {}).get("body"),
        )
        if key not in seen:
            kept.append(script)
        seen.add(key)
    context["script_files"] = kept


def visit_citation(translator: HTML5Translator, node: nodes.citation) -> None:
    """Make an entry of the bibliography an item of its list; docutils' role for it is deprecated."""
    type(translator).visit_citation(translator, node)
    translator.body[-1] = translator.body[-1].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict:
    """Register all of it."""
    app.add_directive("equation-map", EquationMap)
    app.add_directive("chapter-times", ChapterTimes)
    app.add_directive("workshop-plan", WorkshopPlan)
    app.add_node(nodes.citation, override=True, html=(visit_citation, None))
    app.connect("doctree-resolved", describe_terms)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
