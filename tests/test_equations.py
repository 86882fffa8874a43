import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))

import equations  # noqa: E402


@pytest.fixture(scope="module")
def rows():
    return {row.number: row for row in equations.equation_map()}


@pytest.mark.parametrize("number", equations.EQUATIONS)
def test_every_equation_has_code_and_a_test(rows, number):
    assert rows[number].code, f"no docstring cites {number}"
    assert rows[number].tests, f"no test calls what holds {number}"


def test_places_are_where_they_say(rows):
    for row in rows.values():
        for place in [*row.code, *row.tests]:
            line = (ROOT / place.file).read_text("utf-8").splitlines()[place.line - 1]
            name = place.name.rsplit(".", 1)[-1]
            assert f"def {name}(" in line or f"class {name}" in line


@pytest.mark.parametrize(
    ("number", "name"),
    [
        ("G3", "pooling.top_t_pool"),
        ("G6", "regions.retrieve_rois"),
        ("G8", "pooling.GatedAttention"),
        ("D5", "dual_branch.log_p_det"),
        ("D10", "regions.iom"),
        ("D17", "dual_branch.region_scores"),
    ],
)
def test_known_equations_are_found(rows, number, name):
    assert name in [place.name for place in rows[number].code]


def test_numbers_are_read_from_words():
    assert equations.cited("Eq. 8 (checklist D12-D14, G3; reading A6, G-c).") == {"D12", "D13", "D14", "G3"}
    assert equations.cited(None) == set()


def test_a_page_follows_a_new_function(tmp_path):
    """The page is read off the sources: a function that cites a number appears, with its test and chapter."""
    (tmp_path / "mammomil").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    (tmp_path / "mammomil" / "new.py").write_text(
        'def fresh(x):\n    """A mean (checklist G3)."""\n    return x\n'
    )
    (tmp_path / "tests" / "test_new.py").write_text("def test_it():\n    assert fresh(1) == 1\n")
    (tmp_path / "book" / "chapters" / "02_x.ipynb").write_text(
        '{"cells": [{"cell_type": "code", "source": ["fresh(2)"]}]}'
    )
    rows = {row.number: row for row in equations.equation_map(tmp_path)}
    assert [p.name for p in rows["G3"].code] == ["new.fresh"]
    assert [p.name for p in rows["G3"].tests] == ["test_it"]
    assert rows["G3"].chapters == ["02_x"]
    page = equations.as_markdown(list(rows.values()), "https://example.org/blob/v1")
    assert "[`new.fresh`](https://example.org/blob/v1/mammomil/new.py#L1)" in page
    assert "[02](chapters/02_x.ipynb)" in page


def test_every_number_in_a_docstring_of_the_models_is_one_of_the_list():
    """A number that the list does not know would vanish from the page without a word."""
    known = set(equations.EQUATIONS) | {"G1", "G7", "G10", "G11", "G14", "G15"}
    known |= {f"D{n}" for n in (1, 2, 3, 7, 18, 20, 21, 22, 23, 24, 25, 28, 29)}
    for path in (ROOT / "mammomil").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                assert equations.cited(ast.get_docstring(node)) <= known, path
