"""What every chapter has in common, read off its file; and that nbval's gate bites."""

import ast
import copy
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))

from notebooks import chapter_list, clean  # noqa: E402

CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.ipynb"))
SECTIONS = ["Exercises", "Quiz", "In the paper, in this book", "Key points", "Further"]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def prose(notebook):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def test_all_chapters_are_there_and_in_the_contents():
    assert [p.name[:2] for p in CHAPTERS] == [f"{n:02d}" for n in range(20)]
    contents = (ROOT / "book" / "_toc.yml").read_text("utf-8")
    assert re.findall(r"file: chapters/(\w+)", contents) == [p.stem for p in CHAPTERS]


def test_the_readme_lists_the_chapters_with_their_times():
    assert chapter_list() in (ROOT / "README.md").read_text("utf-8"), "run `make notebooks`"


@every_chapter
def test_a_chapter_was_executed_from_top_to_bottom(path):
    """nbval compares nothing in a notebook that was never run; such a notebook must not pass."""
    cells = code(read(path))
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(o.output_type != "error" for o in cell.outputs), cell.source


@every_chapter
def test_a_chapter_is_stored_in_the_committed_form(path):
    notebook = read(path)
    again = copy.deepcopy(notebook)
    clean(again)
    assert again == notebook, "run `make notebooks` or `python book/_tools/notebooks.py --clean`"
    assert path.stat().st_size < 4_000_000


@every_chapter
def test_a_chapter_has_the_parts_of_a_chapter(path):
    notebook = read(path)
    text = prose(notebook)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    for part in ("What you will learn", "You need", "Predict, then run"):
        assert part in text, part
    headings = re.findall(r"^## (.+?)\s*$", text, re.M)
    assert [h for h in headings if h in SECTIONS] == SECTIONS
    assert '<details class="instructor">' in text
    levels = [len(h) for h in re.findall(r"^(#+) ", text, re.M)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    sources = "\n".join(c.source for c in code(notebook))
    assert f'classroom.start("{path.name[:2]}")' in sources
    assert "classroom.picture(" in sources


@every_chapter
def test_the_setup_cell_is_the_same_everywhere_and_names_the_release(path):
    first = code(read(path))[0]
    assert tags(first) == {"setup", "hide-cell"}
    assert first.source == code(read(CHAPTERS[0]))[0].source
    assert first.outputs == []
    assert "--no-deps" in first.source
    assert not re.search(r"\b(torch|numpy)\b(?! alone)(?! and)", first.source.split("\n", 1)[1])
    config = (ROOT / "book" / "_config.yml").read_text("utf-8")
    release = re.search(r"branch: (\S+)", config)[1]
    address = re.search(r"url: (\S+)", config)[1]
    assert f"--branch {release} {address} " in first.source
    version = re.search(r'__version__ = "(.+)"', (ROOT / "mammomil" / "__init__.py").read_text())[1]
    assert release == f"v{version}"


@every_chapter
def test_exercises_have_stars_a_check_that_says_not_yet_and_a_tested_solution(path):
    notebook = read(path)
    stars = re.findall(rf"^### Exercise {path.name[:2]}\.\d (★+)", prose(notebook), re.M)
    assert len(stars) >= 3
    assert set(stars) >= {"★", "★★", "★★★"}
    solutions = [c for c in code(notebook) if "solution" in tags(c)]
    assert len(solutions) == len(stars)
    for cell in solutions:
        assert "hide-cell" in tags(cell)
        assert re.search(r"^assert check\.\w+\(.*\)\.right", cell.source.strip().splitlines()[-1])
    asked = [c for c in code(notebook) if c.source.strip().splitlines()[-1].startswith("check.")]
    assert len(asked) == len(stars)
    for cell in asked:
        said = "".join(o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result")
        assert said.startswith("Not yet."), cell.source


@every_chapter
def test_a_quiz_gives_reasons_for_right_and_wrong_answers(path):
    quiz = prose(read(path)).split("## Quiz")[1].split("\n## ")[0]
    answers = re.findall(r'<details class="quiz"><summary>(.+?)</summary>\s+(.+?)\s+</details>', quiz, re.S)
    questions = re.split(r"^\*\*\d+\. ", quiz, flags=re.M)[1:]
    assert len(questions) >= 3
    assert len(answers) == quiz.count("<details")
    for question in questions:
        reasons = re.findall(r"</summary>\s+(.+?)\s+</details>", question, re.S)
        assert sum(r.startswith("Right") for r in reasons) == 1, question
        assert len(reasons) >= 2
        assert all(len(r.split()) >= 6 for r in reasons), question


@every_chapter
def test_headline_cells_are_compared_and_say_something(path):
    headline = [c for c in code(read(path)) if "nbval-check-output" in tags(c)]
    assert headline
    for cell in headline:
        assert re.search(r"\d", printed(cell)), cell.source
        assert "practice()" not in cell.source, "its progress bar is an output that nbval does not expect"


@every_chapter
def test_numbers_in_the_text_are_glued_under_this_chapters_name(path):
    notebook = read(path)
    used = set(re.findall(r"\{glue:text\}`([^`]+)`", prose(notebook)))
    made = [
        o.metadata["scrapbook"]["name"]
        for c in code(notebook)
        for o in c.outputs
        if o.output_type == "display_data" and "scrapbook" in o.metadata
    ]
    assert used <= set(made)
    assert len(made) == len(set(made))
    assert all(name.startswith(path.name[:3].replace("_", "-")) for name in made)


@every_chapter
def test_figures_are_shown_with_words_and_no_other_way(path):
    for cell in code(read(path)):
        assert "plt.show(" not in cell.source, cell.source
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data or "image/svg+xml" in data:
                assert len(data.get("text/plain", "")) > 20, cell.source
                assert "<Figure" not in data["text/plain"]


@every_chapter
def test_no_path_of_a_machine_and_no_warning_is_stored(path):
    for cell in code(read(path)):
        said = printed(cell)
        assert not re.search(r"(/home/|/root/|/work/|/tmp/|Warning)", said), said


def test_solutions_are_tested_and_code_from_scratch_is_short():
    """A model part written out in a chapter stays within 30 lines, as its heading promises."""
    for path in CHAPTERS:
        for cell in code(read(path)):
            if cell.source.lstrip().startswith(("!", "%")) or "setup" in tags(cell):
                continue
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    assert node.end_lineno - node.lineno < 30, f"{path.stem}: {node.name}"


def nbval(notebook, folder):
    path = folder / "chapter.ipynb"
    nbformat.write(notebook, path)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env",
        "--nbval-cell-timeout=180", "-c", str(ROOT / "pyproject.toml"), str(path),
    ]  # fmt: skip
    environment = dict(os.environ) | {
        "MAMMOMIL_STATIC": "1",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.book
def test_a_tampered_number_fails_and_the_stored_one_passes(tmp_path):
    """Change a digit of a compared output: nbval must fail on that cell, and pass without the change."""
    path = next(p for p in CHAPTERS if p.name.startswith("02"))
    notebook = read(path)
    last = next(i for i, c in enumerate(notebook.cells) if "nbval-check-output" in tags(c))
    notebook.cells = notebook.cells[: last + 1]
    status, said = nbval(notebook, tmp_path)
    assert status == 0, said
    stream = next(o for o in notebook.cells[last].outputs if o.output_type == "stream")
    digits = list(re.finditer(r"\d", stream.text))
    at = digits[-1].start()
    stream.text = stream.text[:at] + str((int(stream.text[at]) + 1) % 10) + stream.text[at + 1 :]
    status, said = nbval(notebook, tmp_path)
    assert status == 1, said
    assert "1 failed" in said
