"""Read the verdicts on exercises out of students' notebooks, into a table.

    python book/_tools/grade.py notebooks/*.ipynb --out grades.csv
    python book/_tools/grade.py notebooks/*.ipynb --out grades.csv --run

Without --run the verdicts are those stored in the notebooks: anybody can edit stored outputs. With --run each
notebook is executed in a fresh kernel and judged anew: THAT RUNS OTHER PEOPLE'S CODE with your rights, so do
it in a container or on a machine that has nothing to lose. The checks give feedback; they are no protection
against somebody who wants to fool them.

The table has one line for each exercise of each chapter found. A notebook that cannot be read is named at
the end, the others are done all the same, and the exit status is 1.
"""

import argparse
import csv
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from live import CHAPTERS, is_solution
from nbformat import NotebookNode

from mammomil.files import InputError, atomic_path

HEADING = re.compile(r"^### Exercise (\d\d)\.(\d+) (★+)\s*$")
CHECK = re.compile(r"^check\.\w+\(.*\)$")
LONG = 300  # characters of a verdict


class Grade(NamedTuple):
    """What is said of one exercise in one notebook; the fields are the columns of the table."""

    file: str
    chapter: str
    exercise: str
    stars: int
    right: str
    """`yes`, `no`, or `look`: the exercise or the line that asks for the verdict is not the chapter's."""
    words: str


def read(path: Path) -> NotebookNode:
    """Read a notebook.

    Raises:
        InputError: it cannot be read, or has no exercise of the book.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises what its parsers raise
        raise InputError(f"{path}: not a notebook ({_line(error)}). Ask for the file again.") from error
    if not _exercises(notebook):
        raise InputError(f"{path}: no heading `### Exercise NN.n ★` in it. Is it a chapter of the book?")
    return notebook


def grade(notebook: NotebookNode, file: str, chapters: Path = CHAPTERS) -> list[Grade]:
    """Return the verdicts that a notebook holds; an exercise of its chapters that is not there is told.

    Args:
        notebook: a student's notebook.
        file: its name, for the table.
        chapters: the chapters as they should be, to know all exercises and how their verdict is asked for.
    """
    found, grades = _exercises(notebook), []
    for chapter in sorted({name[:2] for name in found}):
        original = next(iter(sorted(chapters.glob(f"{chapter}_*.ipynb"))), None)
        expected = _exercises(nbformat.read(original, as_version=4)) if original else {}
        for name in sorted({n for n in (*expected, *found) if n[:2] == chapter}, key=_order):
            stars = (expected.get(name) or found[name])[0]
            cell = found[name][1] if name in found else None
            right, words = _verdict(cell)
            asked = _asks(expected[name][1]) if name in expected else ""
            if name not in found:
                right, words = "look", "The exercise is not in this notebook."
            elif asked and cell is not None and _asks(cell) != asked:
                right, words = "look", f"The line `{asked}` was changed to `{_asks(cell)}`."
            grades.append(Grade(file, chapter, name, stars, right, _line(words)))
    return grades


def run(notebook: NotebookNode, seconds: int = 180) -> NotebookNode:
    """Execute a notebook in a fresh kernel and return it: errors stay in it, solutions are not run.

    It runs in an empty folder. A cell that takes too long is interrupted.

    Args:
        notebook: a student's notebook; it is changed.
        seconds: time limit of a cell.

    Raises:
        InputError: the kernel died.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook.cells = [cell for cell in notebook.cells if not is_solution(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":  # nothing of what the student's kernel said counts
            cell.outputs, cell.execution_count = [], None
    environment = {"MAMMOMIL_STATIC": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=seconds, interrupt_on_timeout=True, allow_errors=True,
            error_on_timeout={"ename": "Timeout", "evalue": f"more than {seconds} s", "traceback": []},
            kernel_name="python3", resources={"metadata": {"path": folder}},
        )  # fmt: skip
        try:
            client.execute(env=dict(os.environ) | environment)
        except DeadKernelError as error:
            raise InputError(f"its kernel died: out of memory, or a crash ({_line(error)}).") from error
    return notebook


def _exercises(notebook: NotebookNode) -> dict[str, tuple[int, NotebookNode | None]]:
    """Exercises of a notebook: name -> stars, and the cell that asks for the verdict if there is one."""
    found, name = {}, None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#{1,3} .*$", cell.source, re.M):
                exercise = HEADING.match(heading)
                name = f"{exercise[1]}.{exercise[2]}" if exercise else None
                if exercise:
                    found[name] = (len(exercise[3]), None)
        elif name and cell.cell_type == "code" and not is_solution(cell) and CHECK.match(_asks(cell)):
            found[name] = (found[name][0], cell)
    return found


def _asks(cell: NotebookNode) -> str:
    """Last line of a cell, the one that asks for the verdict."""
    return (cell.source.strip().splitlines() or [""])[-1].strip()


def _verdict(cell: NotebookNode | None) -> tuple[str, str]:
    """Read a verdict off a cell's result; what the cell prints is not one."""
    if cell is None:
        return "no", "No cell ends in a line `check.name(answer)`."
    for output in cell.outputs:
        if output.output_type == "execute_result":
            said = output.get("data", {}).get("text/plain", "")
            if said.startswith("Right. "):
                return "yes", said.removeprefix("Right. ")
            if said.startswith("Not yet. "):
                return "no", said.removeprefix("Not yet. ")
        if output.output_type == "error":
            return "no", f"The cell raised {output.ename}: {output.evalue}"
    return "no", "The cell has no verdict: it was not run, or it took too long."


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def _line(words: object) -> str:
    """One line without control characters: nothing in a notebook may steer a terminal."""
    text = " ".join(str(words).split())
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def _safe(value: object) -> str:
    """Text for a cell of a spreadsheet: one that would be taken for a formula gets an apostrophe."""
    text = _line(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def write_table(path: Path, grades: Sequence[Grade]) -> None:
    """Write grades as csv; a reader sees the old file or the whole new one."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Grade._fields)
        writer.writerows([_safe(value) for value in row] for row in grades)


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade the notebooks named on the command line; return 1 if one of them could not be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("grades.csv"), help="the table (grades.csv)")
    parser.add_argument("--run", action="store_true", help="execute them first: other people's code!")
    parser.add_argument("--seconds", type=int, default=180, help="time limit of a cell with --run (180)")
    options = parser.parse_args(arguments)
    if options.run:
        print("--run executes these notebooks: other people's code, with your rights.", file=sys.stderr)
    else:
        print("These are the stored verdicts, which can be edited; --run judges anew.", file=sys.stderr)
    grades, broken = [], []
    for path in options.notebooks:
        try:
            notebook = read(path)
            if options.run:
                print(f"{_line(path)} ...", file=sys.stderr)
                notebook = run(notebook, options.seconds)
            grades += grade(notebook, path.name)
        except InputError as error:
            broken.append(_line(error if str(path) in str(error) else f"{path}: {error}"))
    write_table(options.out, grades)
    width = max([len(_line(row.file)) for row in grades], default=4)
    for row in grades:
        stars = "★" * row.stars
        print(f"{_line(row.file):{width}}  {row.exercise}  {stars:3}  {row.right:4}  {row.words[:90]}")
    right = sum(row.right == "yes" for row in grades)
    done = len(options.notebooks) - len(broken)
    print(f"{right} of {len(grades)} right, {done} notebooks. Table: {options.out}")
    for words in broken:
        print(f"left out: {words}", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
