"""Which function holds which equation of the papers, which tests test it, which chapters teach it.

Read off the docstrings (they cite the numbers of the list below), the tests and the chapters, so that the
page cannot drift from the code. Nothing is imported; the sources are parsed.
"""

import ast
import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# Number in docstrings -> where it stands in the paper, what it is, its formula. G: GMIC; D: dual branch.
EQUATIONS = {
    "G2": ("Section 2.1", "saliency map", r"A = \sigma(\mathrm{conv}_{1\times1}(f_d(x)))"),
    "G3": ("Section 2.4", "image probability from the map: mean of the top t", r"y^c_{loc} = f_{agg}(A^c)"),
    "G4": ("Section 2.4", "sparsity of the map", r"L_{reg}(A^c) = \sum |A^c_{i,j}|^\beta"),
    "G5": ("Eq. 1", "the training objective", ""),
    "G6": ("Algorithm 1", "greedy retrieval of regions", ""),
    "G8": ("Section 2.3", "gated attention", r"\alpha_k \propto \exp w^T(\tanh V h_k \odot \sigma(U h_k))"),
    "G9": ("Section 2.4", "both parts together", r"y = (y_{loc} + y_{mil}) / 2"),
    "G12": ("Section 3.1", "a breast from its views", ""),
    "G13": ("Section 3.3", "continuous precision, recall and F1", ""),
    "D4": ("Eq. 1", "classes of a region", r"p_{cls}(c|r_i)"),
    "D5": ("Eq. 2", "rank of a region", r"p^c_{det}(i|x)"),
    "D6": ("Eq. 3", "probability of an image", r"p(y_c=1|x) = \sum_i p^c_{det}(i|x)\, p_{cls}(c|r_i)"),
    "D8": ("Eq. 4", "ranking among selected regions", ""),
    "D9": ("Eq. 5", "weak likelihood", ""),
    "D10": ("Eq. 6", "intersection over the smaller area", r"\mathrm{IoM} = |r \cap c| / \min(|r|, |c|)"),
    "D11": ("Eq. 7", "labels of regions", ""),
    "D12": ("Eq. 8", "classes of annotated regions", ""),
    "D13": ("Eq. 9", "rank of annotated regions", ""),
    "D14": ("Eq. 10", "annotated images", ""),
    "D15": ("Eq. 11", "images with labels alone", ""),
    "D16": ("Eq. 12", "the whole objective", ""),
    "D17": ("Eq. 13", "evidence of a region", r"d^c_i = p_{cls}(c|r_i)\, p^c_{det}(i|x)"),
    "D26": ("Section V", "partial AUC ratio, specificity at a sensitivity", ""),
    "D27": ("Section V", "FROC", ""),
}  # fmt: skip


class Place(NamedTuple):
    """A function, class or test in the sources."""

    file: str
    """Path from the root of the repository."""
    name: str
    """As it is called: `regions.iom`, or the test's own name."""
    line: int


class Row(NamedTuple):
    """What is known of an equation."""

    number: str
    code: list[Place]
    tests: list[Place]
    chapters: list[str]


def cited(docstring: str | None) -> set[str]:
    """Return the numbers a docstring cites; D12-D16 are five."""
    found = set()
    for letter, first, last in re.findall(r"\b([GD])(\d{1,2})(?:-\1(\d{1,2}))?\b", docstring or ""):
        found |= {f"{letter}{n}" for n in range(int(first), int(last or first) + 1)}
    return found


def equation_map(root: Path = ROOT) -> list[Row]:
    """Return a row for every equation: code by docstring, tests and chapters by what they call.

    Tests of the module itself come first, and of those the ones of a function that few tests call.
    """
    code: dict[str, list[Place]] = {number: [] for number in EQUATIONS}
    builders: dict[str, list[str]] = {}  # of a class: the functions of its module that return one
    for path in sorted((root / "mammomil").rglob("*.py")):
        module = ".".join(path.relative_to(root / "mammomil").with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name):
                builders.setdefault(f"{module}.{node.returns.id}", []).append(node.name)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                for number in cited(_docstrings(node)) & code.keys():
                    name = f"{module}.{node.name}"
                    code[number].append(Place(str(path.relative_to(root)), name, node.lineno))
    tests = _tests(root)
    used_by = dict(tests)
    cells = _cells(root)
    rows = []
    for number, places in code.items():
        names = {
            name for place in places for name in (place.name.rsplit(".", 1)[1], *builders.get(place.name, ()))
        }
        count = {name: sum(name in used for _, used in tests) for name in names}
        homes = {f"tests/test_{place.name.split('.')[-2]}.py" for place in places}
        calls = sorted(
            (test for test, used in tests if used & names),
            key=lambda test: (test.file not in homes, min(count[n] for n in names & used_by[test])),
        )
        chapters = [name for name, source in cells if any(re.search(rf"\b{n}\b", source) for n in names)]
        rows.append(Row(number, places, calls, chapters))
    return rows


def _docstrings(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the docstring of a function, or those of a class and its methods and fields."""
    words = [ast.get_docstring(node) or ""]
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                words.append(ast.get_docstring(part) or "")
            elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                words.append(str(part.value.value))
    return "\n".join(words)


def _tests(root: Path) -> list[tuple[Place, set[str]]]:
    """Return every test with the names it uses, itself or through helpers of its file."""
    found = []
    for path in sorted((root / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        used = {name: _names(node) for name, node in functions.items()}
        for name, node in functions.items():
            if name.startswith("test_"):
                names = set(used[name])
                for helper in used[name] & functions.keys():
                    names |= used[helper]
                found.append((Place(str(path.relative_to(root)), name, node.lineno), names))
    return found


def _names(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _cells(root: Path) -> list[tuple[str, str]]:
    """Return the code of every chapter by name, without its solutions and setup."""
    found = []
    for path in sorted((root / "book" / "chapters").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found.append((path.stem, "\n".join(code)))
    return found


def _title(test: Place) -> str:
    return test.name.removeprefix("test_").replace("_", " ")


def as_markdown(rows: list[Row], blob: str) -> str:
    """Return the page's tables; `blob` is the address that paths in the repository follow."""
    lines = []
    for letter, paper in (("G", "GMIC"), ("D", "The dual-branch network")):
        lines += [f"## {paper}", "", "| number | in the paper | code | tests | chapters |"]
        lines.append("|---|---|---|---|---|")
        for row in rows:
            if row.number[0] != letter:
                continue
            where, what, formula = EQUATIONS[row.number]
            shown = f"{where}: {what}" + (f" ${formula.replace('|', chr(92) + 'vert ')}$" if formula else "")
            code = ", ".join(f"[`{p.name}`]({blob}/{p.file}#L{p.line})" for p in row.code)
            first = [
                f"[{p.name.removeprefix('test_').replace('_', ' ')}]({blob}/{p.file}#L{p.line})"
                for p in row.tests[:3]
            ]
            more = f" and {len(row.tests) - 3} more" if len(row.tests) > 3 else ""
            chapters = ", ".join(f"[{name[:2]}](chapters/{name}.ipynb)" for name in row.chapters)
            lines.append(f"| {row.number} | {shown} | {code} | {', '.join(first)}{more} | {chapters} |")
        lines.append("")
    return "\n".join(lines)
