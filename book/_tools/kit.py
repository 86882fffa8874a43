"""Make the kit for instructors: notebooks for live coding, slides, and a page that links them.

python book/_tools/kit.py                          after the book is built, into book/_build/html/kit
python book/_tools/kit.py OUT                      elsewhere; formulas need the built book two folders up
python book/_tools/kit.py OUT book/chapters/04*    of these chapters
"""

import argparse
import html
import sys
from pathlib import Path
from string import Template

import nbformat
from live import CHAPTERS
from live import write as write_live
from slides import write as write_slides

from mammomil.files import atomic_path

OUT = CHAPTERS.parent / "_build" / "html" / "kit"
ROW = (
    '<tr><th scope="row"><a href="../chapters/{name}.html">{title}</a></th>'
    '<td><a href="slides/{name}.html" aria-label="Slides of {title}">slides</a></td>'
    '<td><a href="live/{name}.ipynb" download aria-label="To type: {title}">notebook</a></td>'
    '<td><a href="instructor/{name}.ipynb" download aria-label="To teach from: {title}">notebook</a></td>'
    "</tr>"
)


def make(out: Path, chapters: list[Path]) -> None:
    """Write the kit of some chapters into `out`; what an earlier kit had and this one has not goes."""
    rows = []
    for path in chapters:
        write_live(path, out)
        write_slides(path, out / "slides")
        first = nbformat.read(path, as_version=4).cells[0].source
        title = f"{path.stem[:2]} {first.splitlines()[0].removeprefix('# ')}"
        rows.append(ROW.format(name=path.stem, title=html.escape(title)))
    stems = {path.stem for path in chapters}
    for old in (*out.glob("live/*"), *out.glob("instructor/*"), *out.glob("slides/*")):
        if old.stem not in stems:
            old.unlink()
    template = Template(Path(__file__).with_name("kit.html").read_text("utf-8"))
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(template.substitute(rows="\n".join(rows)), encoding="utf-8")


def main() -> int:
    """Write the kit of all chapters."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=OUT, help="folder to write to (book/_build/html/kit)"
    )
    parser.add_argument("chapters", nargs="*", type=Path, help="notebooks; all chapters when none is given")
    options = parser.parse_args()
    chapters = options.chapters or sorted(CHAPTERS.glob("*.ipynb"))
    make(options.out, chapters)
    print(f"Kit of {len(chapters)} chapters: {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
