"""The exam table: which images there are, what is known of them, and which patients train or test.

An index is a folder with `index.csv`, one row per image, and `findings.csv`, one row per finding. Both are
checked cell by cell on reading and on writing, and every cell that cannot be used is reported at once.
"""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import pandas as pd
import pandera.pandas as pa

from mammomil.files import InputError, atomic_path
from mammomil.types import FINDINGS

IMAGE_COLUMNS = (
    "image_id", "exam_id", "patient_id", "laterality", "view", "path", "benign", "malignant", "birads",
    "density", "spacing_mm", "height", "width", "source", "split",
)  # fmt: skip
FINDING_COLUMNS = ("image_id", "finding_id", "finding", "kind", "x0", "y0", "x1", "y1", "mask")
KINDS = ("mass", "calcification", "distortion", "asymmetry")
SPLITS = ("train", "val", "test")
BOX = ["x0", "y0", "x1", "y1"]

_NUMBERS = {"benign", "malignant", "spacing_mm", "height", "width", *BOX}
_LARGEST = 100_000  # pixels of a side; Pillow and memory give up far below
_SHOWN = 10  # complaints listed in full; a wrong column of a large table would fill the screen


class Index(NamedTuple):
    """The images of a data set and what is known of them.

    Attributes:
        images: one row per image, `IMAGE_COLUMNS` first. Labels, spacing (mm per pixel) and size are float64
            with NaN for unknown; all else is text, empty where unknown. Further columns are kept as text.
        findings: one row per finding, `FINDING_COLUMNS` first. Boxes are xyxy on pixel edges of the stored
            image; NaN where nobody noted the place of the finding.
        root: the folder that `path` and `mask` are relative to.
    """

    images: pd.DataFrame
    findings: pd.DataFrame
    root: Path


class Complaint(NamedTuple):
    """A cell that cannot be used: the line of the file, the column, what it holds and what to do."""

    line: int
    column: str
    value: str
    fix: str


def read_index(path: str | Path) -> Index:
    """Read and check an index.

    Args:
        path: an `index.csv`, or the folder that holds one. A `findings.csv` beside it is optional.

    Returns:
        The tables; images without `exam_id` have their patient's id, as if each patient came once.

    Raises:
        InputError: a table cannot be read; the message names line, column, value and fix of every bad cell.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "index.csv"
    images = read_table(path, ("image_id", "patient_id", "path", *FINDINGS))
    beside = path.with_name("findings.csv")
    findings = read_table(beside, ("image_id", "finding")) if beside.exists() else pd.DataFrame()
    return _checked(images, findings, path.parent, (path, beside))


def write_index(index: Index, folder: str | Path) -> None:
    """Check an index and write it to `folder`; paths are rewritten to lead to the same files from there.

    Raises:
        InputError: a value cannot be used (see `read_index`), or the folder cannot be written.
    """
    folder = Path(folder)
    files = (folder / "index.csv", folder / "findings.csv")
    tables = [_as_text(index.images), _as_text(index.findings)]
    here, there = index.root.resolve(), folder.resolve()
    if here != there:
        for table, column in zip(tables, ("path", "mask"), strict=True):
            names = table.get(column, pd.Series(dtype=str))
            table[column] = [Path(os.path.relpath(here / n, there)).as_posix() if n else "" for n in names]
    checked = _checked(*tables, folder, files)
    for table, path in zip(checked[:2], files, strict=True):
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.columns)
            writer.writerows(_as_text(table).itertuples(index=False))


def make_index(images: pd.DataFrame, findings: pd.DataFrame | None, root: str | Path) -> Index:
    """Complete and check tables made in memory; InputError names the lines they would have in a file."""
    findings = pd.DataFrame() if findings is None else findings
    return _checked(_as_text(images), _as_text(findings), Path(root), ("index.csv", "findings.csv"))


def select(index: Index, keep: Sequence[bool] | np.ndarray | pd.Series) -> Index:
    """Keep the images where `keep` is true, in order, and their findings."""
    images = index.images[np.asarray(keep, dtype=bool)].reset_index(drop=True)
    findings = index.findings[index.findings["image_id"].isin(images["image_id"])].reset_index(drop=True)
    return Index(images, findings, index.root)


def subset(index: Index, split: str) -> Index:
    """Keep the images of one split.

    Raises:
        InputError: the index has no image in that split.
    """
    keep = index.images["split"] == split
    if not keep.any():
        raise InputError(
            f"{index.root}: no image has split {split!r}. Fill the column, as by split_patients."
        )
    return select(index, keep)


def split_patients(
    images: pd.DataFrame, fractions: Mapping[str, float | int] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Assign whole patients at random to splits, each with its share of every kind of patient.

    A patient's kind is her worst label: malignant, benign, none, unknown. Where a kind has at least as many
    patients as there are splits, every split gets one. Ids and seed decide, not the order of the rows.

    Args:
        images: table with `patient_id`, `benign` and `malignant`.
        fractions: share of the patients per split, summing to 1; by default 0.6 train, 0.2 val, 0.2 test.
        seed: seed of the assignment.

    Returns:
        A copy of `images` with `split` filled, whatever it held.

    Raises:
        InputError: unknown names of splits, or fractions that are negative or do not sum to 1.
    """
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2} if fractions is None else dict(fractions)
    shares = list(fractions.values())
    if not set(fractions) <= set(SPLITS) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"fractions {fractions}: give shares of {', '.join(SPLITS)} that sum to 1.")
    labels = images[list(FINDINGS)]
    worst = labels.eq(1).mul([1, 2]).max(axis=1).where(labels.notna().any(axis=1), -1)
    kinds = worst.groupby(images["patient_id"]).max()  # sorted by patient, so row order does not matter
    random = np.random.default_rng(seed)
    # The largest split is served first, so that a kind with very few patients is at least trained on.
    order = sorted((s for s in fractions if fractions[s] > 0), key=fractions.__getitem__, reverse=True)
    split_of: dict[str, str] = {}
    for kind in sorted(kinds.unique(), reverse=True):
        patients = random.permutation(kinds.index[kinds == kind].to_numpy(dtype=object))
        counts = dict.fromkeys(order, int(len(patients) >= len(order)))
        ideal = {split: fractions[split] * len(patients) for split in order}
        for _ in range(len(patients) - sum(counts.values())):
            counts[max(order, key=lambda s, c=counts, i=ideal: i[s] - c[s])] += 1
        split_of.update(zip(patients, np.repeat(order, list(counts.values())), strict=True))
    return images.assign(split=images["patient_id"].map(split_of).astype(str))


def read_table(path: str | Path, required: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file in UTF-8 as stripped text, indexed by the line of each row (the header is line 1).

    Raises:
        InputError: the file is missing, empty, no CSV in UTF-8, has ragged rows or lacks a column.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read this table ({error.strerror}). Check the path.") from error
    text, bad = raw.decode("utf-8-sig", "replace"), raw.find(b"\0")  # spreadsheets put a mark first
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        line = raw[:bad].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: byte {raw[bad]:#04x} is no text. Save it as CSV UTF-8.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines, end = [], [], 0
    try:
        for row in reader:
            line, end = end + 1, reader.line_num  # a quoted cell may hold line breaks
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(line)
    except csv.Error as error:
        line = reader.line_num
        raise InputError(f"{path}, line {line}: not a CSV ({error}). Close every quote.") from error
    header = rows[0] if rows else []
    if missing := [name for name in required if name not in header]:
        found = f"found {', '.join(header)[:300]}" if rows else "the file is empty"
        raise InputError(
            f"{path}, line 1: column {', '.join(missing)} is missing; {found}. Separate columns by commas."
        )
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise InputError(f"{path}, line 1: column {min(twice)} is there twice. Remove one of them.")
    fix = f"the header has {len(header)} cells; put quotes around a cell that holds a comma"
    sizes = [(line, len(row)) for line, row in zip(lines, rows, strict=True) if len(row) != len(header)]
    raise_complaints([(path, [Complaint(line, "(all)", f"{n} cells", fix) for line, n in sizes])])
    table = pd.DataFrame(rows[1:], columns=header, index=pd.Index(lines[1:], dtype=int), dtype=str)
    return table.loc[:, [bool(name) for name in header]]  # row numbers that pandas wrote have no name


def check_images(text: pd.DataFrame) -> tuple[pd.DataFrame, list[Complaint]]:
    """Type the columns of an image table (text, indexed by line) and list the cells that cannot be used."""
    t, complaints = _typed(text, IMAGE_COLUMNS)
    t["exam_id"] = t["exam_id"].where(t["exam_id"] != "", t["patient_id"])
    splits = t["split"].where(t["split"] != "").groupby(t["patient_id"]).transform("nunique")
    patients = t["patient_id"].groupby(t["exam_id"]).transform("nunique")
    plain_id = t["image_id"].str.fullmatch(r"(?!\.)[^/\\\x00-\x1f\x7f]{1,150}")  # it becomes a file name
    spacing = t["spacing_mm"].isna() | t["spacing_mm"].between(0.005, 10)
    birads = t["birads"].str.fullmatch("|[0-6]|4[abcABC]")
    rules = [
        ("image_id", plain_id, "write 1 to 150 characters, no slash, no dot in front"),
        ("image_id", ~t["image_id"].duplicated(keep=False), "give each image its own image_id"),
        ("exam_id", patients <= 1, "an exam has one patient; make the exam_id unique"),
        ("patient_id", t["patient_id"] != "", "name the patient, or training and test may share her"),
        ("patient_id", splits <= 1, "she is in two splits; put all images of a patient in one"),
        ("split", t["split"].isin(["", *SPLITS]), f"write {', '.join(SPLITS)}, or nothing"),
        ("laterality", t["laterality"].isin(["", "L", "R"]), "write L, R, or nothing when unknown"),
        ("view", t["view"] == t["view"].str.upper(), "write the view in capitals, such as CC or MLO"),
        ("path", t["path"] != "", "name the image file"),
        ("path", _relative(t["path"]), "write the path relative to the folder of this table"),
        ("birads", birads, "write 0 to 6, 4a, 4b, 4c, or nothing when unknown"),
        ("density", t["density"].str.fullmatch("[A-D]?"), "write A, B, C, D, or nothing when unknown"),
        ("spacing_mm", spacing, "write millimetres per pixel, such as 0.07, or nothing when unknown"),
    ]
    binary = "write 0, 1, or nothing when unknown"
    rules += [(name, t[name].isna() | t[name].isin([0, 1]), binary) for name in FINDINGS]
    for name in ("height", "width"):
        whole = t[name].between(1, _LARGEST) & (t[name] % 1 == 0)
        rules += [(name, t[name].isna() | whole, "write a whole number of pixels, or nothing")]
    return t, complaints + _broken(rules, t, text)


def _check_findings(text: pd.DataFrame, images: pd.DataFrame) -> tuple[pd.DataFrame, list[Complaint]]:
    t, complaints = _typed(text, FINDING_COLUMNS)
    order = (t.groupby("image_id").cumcount() + 1).astype(str)
    t["finding_id"] = t["finding_id"].where(t["finding_id"] != "", order)
    image = images.drop_duplicates("image_id").set_index("image_id").reindex(t["image_id"])
    image.index = t.index
    denied = pd.concat([(t["finding"] == name) & (image[name] == 0) for name in FINDINGS], axis=1)
    unique = ~t.duplicated(["image_id", "finding_id"], keep=False)
    known = t["image_id"].isin(images["image_id"])
    placed = t[BOX].notna().sum(axis=1)
    border = "cut the box at the border of the image"
    rules = [
        ("image_id", known, "no such image in the table of images; correct or remove it"),
        ("finding_id", unique, "give each finding of an image its own finding_id"),
        ("finding", t["finding"].isin(FINDINGS), f"write {' or '.join(FINDINGS)}"),
        ("finding", ~denied.any(axis=1), "the image is labelled 0 for this finding; correct one of the two"),
        ("x0", placed.isin([0, 4]), "fill x0, y0, x1, y1, or leave all four empty"),
        ("kind", t["kind"].isin(["", *KINDS]), f"write {', '.join(KINDS)}, or nothing"),
        ("mask", _relative(t["mask"]), "write the path relative to the folder of this table"),
        ("mask", (t["mask"] == "") | (placed == 4), "give a finding with a mask its box"),
    ]
    for low, high, side in (("x0", "x1", "width"), ("y0", "y1", "height")):
        outside = t[high] > image[side].fillna(_LARGEST)
        rules += [
            (low, ~(t[low] < 0), border),
            (high, ~outside, f"the {side} of the image is less; {border}"),
            (high, ~(t[high] <= t[low]), f"{high} must be larger than {low}"),
        ]
    return t, complaints + _broken(rules, t, text)


def _checked(images: pd.DataFrame, findings: pd.DataFrame, root: Path, names: Sequence[str | Path]) -> Index:
    if images.empty:
        raise InputError(f"{names[0]}: the table holds no image. Write one row per image.")
    images, bad_images = check_images(images)
    findings, bad_findings = _check_findings(findings, images)
    raise_complaints([(names[0], bad_images), (names[1], bad_findings)])
    return Index(images.reset_index(drop=True), findings.reset_index(drop=True), root)


def raise_complaints(found: Sequence[tuple[str | Path, list[Complaint]]]) -> None:
    """Raise one InputError that lists the complaints about each file; do nothing when there are none."""
    parts = []
    for path, complaints in found:
        lines = [f"line {c.line}, column {c.column}, value {c.value!r}: {c.fix}." for c in sorted(complaints)]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"and {len(lines) - _SHOWN} more."]
        if lines:
            parts.append("\n  ".join([f"{path}: cells to correct: {len(complaints)}", *lines]))
    if parts:
        raise InputError("\n".join(parts))


def _relative(paths: pd.Series) -> pd.Series:
    return paths.map(lambda path: not PureWindowsPath(path).anchor).astype(bool)  # knows POSIX roots too


def _broken(rules: list[tuple[str, pd.Series, str]], table: pd.DataFrame, text: pd.DataFrame) -> list:
    """List the cells that break a rule; a rule is a column, where it is good, and the fix."""
    columns: dict[str, pa.Column] = {}
    for name, good, fix in rules:
        check = pa.Check(lambda _, good=good: good, error=fix, ignore_na=False)
        columns.setdefault(name, pa.Column(checks=[], nullable=True)).checks.append(check)
    try:
        pa.DataFrameSchema(columns).validate(table, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases[["index", "column", "check"]].itertuples(index=False)
        cells = text.reindex(columns=table.columns, fill_value="")
        return [Complaint(int(line), name, cells.at[line, name], fix) for line, name, fix in cases]
    return []


def _typed(text: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, list[Complaint]]:
    table = text.reindex(columns=[*columns, *text.columns.difference(columns, sort=False)], fill_value="")
    complaints = []

    def number(line: int, name: str, cell: str) -> float:
        try:
            return float(cell or "nan")
        except ValueError:
            complaints.append(Complaint(line, name, cell, "write a number, or nothing when unknown"))
            return math.nan

    for name in table.columns:
        if name in _NUMBERS:
            table[name] = [number(line, name, cell) for line, cell in table[name].items()]
        table[name] = table[name].astype(float if name in _NUMBERS else str)
    return table, complaints


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Write each cell as in a file; floats in full, so that reading gives back the same number."""

    def cell(value: object) -> str:
        if pd.isna(value):
            return ""
        if isinstance(value, float | np.floating):
            return repr(int(value)) if float(value).is_integer() else repr(float(value))
        return str(value).strip()

    cells = {name: [cell(value) for value in table[name]] for name in table.columns}
    return pd.DataFrame(cells, index=pd.RangeIndex(2, len(table) + 2), dtype=str)
