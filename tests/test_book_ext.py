"""The hooks of the book's own Sphinx extension, on a small project."""

import re
import sys
from pathlib import Path

import pytest

EXT = Path(__file__).parents[1] / "book" / "_ext"
GLOSSARY = """Glossary
========

.. glossary::

   bag
      Patches of one image.
"""
INDEX = """Start
=====

A :term:`bag` is in [One]_ and [Two]_.

.. [One] First source.
.. [Two] Second source.

.. toctree::

   glossary
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    sphinx = pytest.importorskip("sphinx.application")
    source = tmp_path_factory.mktemp("book")
    (source / "glossary.rst").write_text(GLOSSARY, encoding="utf-8")
    (source / "index.rst").write_text(INDEX, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXT), *sys.path])
        app = sphinx.Sphinx(
            source, None, source / "html", source / "trees", "html",
            confoverrides={"extensions": ["mammomil_book"], "html_theme": "basic"}, status=None,
            warningiserror=True,
        )  # fmt: skip
        app.build()
    return (source / "html" / "index.html").read_text("utf-8")


def test_entries_of_a_bibliography_are_items_of_a_list(page):
    """A list holds items; docutils' own role for them is deprecated, and browsers' checkers object."""
    entries = re.search(r'<div role="list" class="citation-list">(.*?)</div>\s*</div>\s', page, re.S)[1]
    assert re.findall(r'<div class="citation" id="\w+" role="(.*?)"', entries) == ["listitem", "listitem"]
    assert "doc-biblioentry" not in page
    assert page.count("<div") == page.count("</div>")


def test_a_term_has_its_definition_as_a_title(page):
    assert re.search(r'<a class="[^"]*" href="glossary.html#term-bag" title="Patches of one image."', page)
