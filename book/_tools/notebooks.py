"""Run the chapters and store them as they are committed: executed, counted, small.

    python book/_tools/notebooks.py                  run all chapters, write outputs and times
    python book/_tools/notebooks.py 02 05            run these
    python book/_tools/notebooks.py --clean 02       only bring a notebook into the committed form
    python book/_tools/notebooks.py --readme         only write the list of chapters into the README

The committed form keeps pictures and text and drops what pages are built from (HTML of the explorers), so
that a notebook stays small and GitHub shows the pictures.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "book" / "chapters"
README = ROOT / "README.md"
TIMES = ROOT / "mammomil" / "static" / "chapter_times.json"
WORDS_PER_MINUTE = 150  # of technical text with formulas
CELL_TIMEOUT = 180
KEPT = {"tags", "mystnb", "jupyter", "cellView", "slideshow"}  # of a cell's metadata


def clean(notebook: nbformat.NotebookNode) -> None:
    """Bring a notebook into the committed form, in place."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    join = CoalesceStreamsPreprocessor()  # a kernel cuts the prints of a cell where it likes
    kept = {k: v for k, v in notebook.metadata.items() if k == "mammomil"}
    notebook.metadata = nbformat.from_dict(
        {
            **kept,
            "accelerator": "GPU",  # Colab then offers one; no chapter needs it
            "colab": {"gpuType": "T4"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},  # knows ! and %
        }
    )
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT})
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data and ("image/png" in data or "image/svg+xml" in data):
                del data["text/html"]
        if "outputs" in cell:
            cell.outputs = [  # without progress bars, as text or as widgets
                o
                for o in cell.outputs
                if o.get("name") != "stderr"
                and "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
            join.preprocess_cell(cell, {}, i)


def run(path: Path) -> float:
    """Execute a notebook where it lies and store it; return the seconds it took.

    Raises:
        CellExecutionError: a cell fails; the stored notebook is then untouched.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    begin = time.monotonic()
    client.execute()
    seconds = time.monotonic() - begin
    _write(path, notebook)
    return seconds


def reading_minutes(notebook: nbformat.NotebookNode) -> int:
    """Estimate the minutes to read the prose, and the code at the same pace."""
    words = sum(len(re.findall(r"\w+", cell.source)) for cell in notebook.cells)
    return max(1, round(words / WORDS_PER_MINUTE))


def _write(path: Path, notebook: nbformat.NotebookNode) -> None:
    from mammomil.files import atomic_path

    clean(notebook)
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8"
        )


def _store_time(path: Path, seconds: float) -> None:
    from mammomil.files import provenance, write_json

    facts = provenance()
    notebook = nbformat.read(path, as_version=4)
    times = json.loads(TIMES.read_text("utf-8"))
    times["chapters"][path.name[:2]] = {
        "notebook": path.name,
        "run_s": round(seconds),
        "read_min": reading_minutes(notebook),
        "exercise_min": notebook.metadata.get("mammomil", {}).get("exercise_min", 0),
        "device": f"{facts['device']}, {os.cpu_count()} cores",
        "date": facts["date"][:10],
        "versions": facts["versions"],
    }
    times["chapters"] = dict(sorted(times["chapters"].items()))
    write_json(TIMES, times)


def chapter_list() -> str:
    """Return the table of the README: each chapter with its first sentence and its times."""
    times = json.loads(TIMES.read_text("utf-8"))["chapters"]
    lines = ["| chapter | what it is about | read, exercises | cells run in |", "|---|---|---|---|"]
    for number, row in times.items():
        path = CHAPTERS / row["notebook"]
        title, about = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")[:2]
        link = f"[{int(number)} {title.removeprefix('# ')}](book/chapters/{path.name})"
        minutes = f"{row['read_min']} + {row['exercise_min']} min"
        lines.append(f"| {link} | {' '.join(about.split())} | {minutes} | {row['run_s']} s |")
    return "\n".join(lines)


def write_readme() -> None:
    """Put the list of chapters between its two marks in the README."""
    from mammomil.files import atomic_path

    text = README.read_text("utf-8")
    begin, end = (text.index(mark) for mark in ("<!-- chapters -->", "<!-- end of chapters -->"))
    text = f"{text[:begin]}<!-- chapters -->\n\n{chapter_list()}\n\n{text[end:]}"
    with atomic_path(README) as temporary:
        temporary.write_text(text, "utf-8")


def main() -> int:
    """Run or clean the chapters named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="beginnings of file names; all when none is given")
    parser.add_argument(
        "--clean", action="store_true", help="run nothing, only bring into the committed form"
    )
    parser.add_argument("--readme", action="store_true", help="run nothing, write the list of the README")
    options = parser.parse_args()
    if options.readme:
        write_readme()
        return 0
    os.environ |= {"MAMMOMIL_STATIC": "1", "TQDM_DISABLE": "1"}
    found = sorted(CHAPTERS.glob("*.ipynb"))
    chosen = [p for p in found if not options.chapters or p.name.startswith(tuple(options.chapters))]
    if not chosen:
        print(f"No chapter begins with {' or '.join(options.chapters)}.", file=sys.stderr)
        return 2
    for path in chosen:
        if options.clean:
            _write(path, nbformat.read(path, as_version=4))
            continue
        print(f"{path.name} ...", end=" ", flush=True)
        seconds = run(path)
        _store_time(path, seconds)
        print(f"{seconds:.0f} s")
    write_readme()
    return 0


if __name__ == "__main__":
    sys.exit(main())
