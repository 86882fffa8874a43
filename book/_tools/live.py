"""Variants of the chapters for live coding: blanks for students, the whole text for the instructor.

`kit.py` writes them, with the slides. OUT/live/ gets the students' copy: no outputs, no solutions, no notes
for instructors, and in the parts written from scratch one statement in five is left to type, marked
`...  # live: what goes here`. OUT/instructor/ gets the instructor's: everything is there, what students type
ends in `# live`.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
MOST, ENOUGH = 0.28, 0.17  # share of the lines: never above the first, and no further blank above the second
HARD = 110  # columns a hint may reach
NOTE = re.compile(r'\s*<details class="instructor">.*?</details>\s*', re.S)
DRAWS = re.compile(r"\b(plt|fig|axes|axis|ax)\.|\bclassroom\.|imshow|Rectangle")


class Blank(NamedTuple):
    """A statement that was taken out of a cell."""

    cell: str
    """The cell's id, the same in all variants."""
    line: int
    """Line of the students' cell that stands for it, from 0."""
    source: str
    """The lines that were there."""


class Live(NamedTuple):
    """A chapter for live coding."""

    students: NotebookNode
    instructor: NotebookNode
    blanks: list[Blank]
    share: float
    """Blank lines among the code lines of the cells that define something."""


class _Choice(NamedTuple):
    """A statement that may become a blank; choices are ordered, the first goes first."""

    turn: int
    """Every function gives its best statement before any gives its second."""
    at: int
    first: int
    last: int
    hint: str


def make(notebook: NotebookNode) -> Live:
    """Return a chapter's variants; the same chapter gives the same blanks.

    Args:
        notebook: a chapter, as `nbformat.read` gives it; it stays as it is.
    """
    students, instructor = copy.deepcopy(notebook), copy.deepcopy(notebook)
    cells = [i for i in range(_body(notebook)) if _defines(notebook.cells[i])]
    lines = {i: notebook.cells[i].source.split("\n") for i in cells}
    total = sum(_is_code(line) for i in cells for line in lines[i])
    chosen: list[_Choice] = []
    for choice in sorted(c for i in cells for c in _choices(notebook.cells[i].source, i)):
        removed = sum(c.last - c.first + 1 for c in chosen)
        if removed >= ENOUGH * total:
            break
        if removed + choice.last - choice.first + 1 <= MOST * total:
            chosen.append(choice)
    blanks = []
    for i in cells:
        mine = sorted((c for c in chosen if c.at == i), key=lambda c: c.first)
        blanks += _blank(students.cells[i], mine)
        marked = instructor.cells[i].source.split("\n")
        for choice in mine:
            marked[choice.last] += "  # live"
        instructor.cells[i].source = "\n".join(marked)
    for variant in (students, instructor):
        for cell in variant.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
    students.cells = [cell for cell in students.cells if not is_solution(cell)]
    for cell in students.cells:
        if cell.cell_type == "markdown":
            cell.source = NOTE.sub("\n", cell.source).rstrip("\n")
    removed = sum(blank.source.count("\n") + 1 for blank in blanks)
    return Live(students, instructor, blanks, removed / total if total else 0.0)


def fill(notebook: NotebookNode, blanks: list[Blank]) -> NotebookNode:
    """Return a students' copy with its blanks filled in, as the chapter has them."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        lines = cell.source.split("\n")
        for blank in blanks:
            if blank.cell == cell.id:
                lines[blank.line] = blank.source
        cell.source = "\n".join(lines)
    return notebook


def is_solution(cell: NotebookNode) -> bool:
    """Say whether a cell is a solution of an exercise, by its tag or, if that was lost, by its title."""
    title = cell.cell_type == "code" and cell.source.startswith("# @title A solution")
    return title or "solution" in cell.metadata.get("tags", [])


def _body(notebook: NotebookNode) -> int:
    """Number of cells before the exercises."""
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and re.search(r"^## Exercises\s*$", cell.source, re.M):
            return i
    return len(notebook.cells)


def _defines(cell: NotebookNode) -> bool:
    if cell.cell_type != "code" or {"setup", "hide-cell"} & set(cell.metadata.get("tags", [])):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in _parse(cell.source))


def _parse(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell with commands of the notebook
        return []


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def _choices(source: str, at: int) -> Iterator[_Choice]:
    """Statements of a cell that may become blanks.

    Functions give up to two thirds of their statements first, then those that draw, then all of them, and
    what the cell does besides comes last.
    """
    lines, body = source.split("\n"), _parse(source)
    parts = [part for node in body for part in (node, *getattr(node, "body", ()))]
    functions = [part for part in parts if isinstance(part, ast.FunctionDef)]
    for function in (*functions, ast.Module(body, [])):
        outside = isinstance(function, ast.Module)
        names = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)} | {
            n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        found = [s for s in _statements(function.body) if _stands_alone(s, lines)]
        # The result first, then what takes most thought: the statements with the largest expressions.
        found.sort(key=lambda s: (not isinstance(s, ast.Return), -len(list(ast.walk(s))), s.lineno))
        text = source if outside else ast.get_source_segment(source, function)
        late = 300 * outside + 100 * bool(DRAWS.search(text))
        for turn, s in enumerate(found):
            late_turn = 200 * (turn >= max(1, 2 * len(found) // 3))
            yield _Choice(late + late_turn + turn, at, s.lineno - 1, s.end_lineno - 1, _hint(s, names))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What a function computes, gives or gathers, within loops and conditions too."""
    for statement in body:
        if isinstance(statement, ast.Return | ast.Assign | ast.AugAssign) or _appends(statement):
            if any(isinstance(n, _WORK) for n in ast.walk(statement.value or ast.Constant(None))):
                yield statement
        elif isinstance(statement, ast.For | ast.While | ast.If | ast.With):
            yield from _statements(statement.body)
            yield from _statements(getattr(statement, "orelse", []))


_WORK = ast.Call | ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp | ast.Subscript | ast.comprehension


def _appends(statement: ast.stmt) -> bool:
    call = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"


def _stands_alone(statement: ast.stmt, lines: list[str]) -> bool:
    """Say whether nothing else stands on a statement's lines, besides a comment."""
    before = lines[statement.lineno - 1].encode()[: statement.col_offset]
    after = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].strip()
    return not before.strip() and (not after or after.startswith(b"#"))


def _hint(statement: ast.stmt, names: set[str]) -> str:
    """Say what a blank stands for: what it gives, and which names of the function it is made of."""
    if isinstance(statement, ast.Return):
        gives = "return ?"
    elif isinstance(statement, ast.Expr):
        gives = f"{ast.unparse(statement.value.func)}(?)"
    elif isinstance(statement, ast.AugAssign):
        sign = ast.unparse(ast.BinOp(ast.Name("a"), statement.op, ast.Name("b")))[2:-2]
        gives = f"{ast.unparse(statement.target)} {sign}= ?"
    else:
        gives = f"{', '.join(ast.unparse(t).strip('()') for t in statement.targets)} = ?"
    value = statement.value.args[0] if isinstance(statement, ast.Expr) else statement.value
    inside = [n for n in ast.walk(value) if isinstance(n, ast.Name)]
    names = names - {"self"} - {n.id for n in inside if isinstance(n.ctx, ast.Store)}
    names -= {n.arg for n in ast.walk(value) if isinstance(n, ast.arg)}
    used = sorted((n.lineno, n.col_offset, n.id) for n in inside if n.id in names)
    made_of = ", ".join(dict.fromkeys(name for *_, name in used))
    return f"{gives} (from {made_of})" if made_of else gives


def _blank(cell: NotebookNode, chosen: list[_Choice]) -> list[Blank]:
    """Take statements, in order, out of a cell, and return what was there."""
    lines, blanks, shift = cell.source.split("\n"), [], 0
    for choice in chosen:
        first, last = choice.first - shift, choice.last - shift
        there = lines[first : last + 1]
        indent = there[0][: len(there[0]) - len(there[0].lstrip())]
        line = f"{indent}...  # live: {choice.hint}"
        lines[first : last + 1] = [line if len(line) <= HARD else line.split(" (from ")[0]]
        blanks.append(Blank(cell.id, first, "\n".join(there)))
        shift += len(there) - 1
    cell.source = "\n".join(lines)
    return blanks


def write(path: Path, out: Path) -> None:
    """Write both variants of a chapter below `out`."""
    from mammomil.files import atomic_path

    live = make(nbformat.read(path, as_version=4))
    for folder, notebook in (("live", live.students), ("instructor", live.instructor)):
        nbformat.validate(notebook)
        with atomic_path(out / folder / path.name) as temporary:
            temporary.write_text(nbformat.writes(notebook), encoding="utf-8")
