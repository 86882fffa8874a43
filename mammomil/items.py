"""Which images to predict: files, folders and indexes become one list of images with unique names."""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from mammomil.files import InputError
from mammomil.types import FINDINGS

if TYPE_CHECKING:
    from mammomil.index import Index

SUFFIXES = (".dcm", ".dicom", ".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg")
_LONGEST = 120  # bytes of a name; file systems allow 255, and the model's name and a suffix follow


class Item(NamedTuple):
    """An image to read, and what an index says of it; that goes before what the file says.

    Attributes:
        path: the file.
        image_id: name of the image, unique within a run.
        laterality: `L`, `R` or empty.
        view: `CC`, `MLO`, another view, or empty.
        spacing_mm: side of a pixel in mm, NaN where unknown.
        exam_id: its exam; empty without an index.
        patient_id: its patient; empty without an index.
        truth: boxes of known findings by finding, xyxy in pixels of the file.
    """

    path: Path
    image_id: str
    laterality: str = ""
    view: str = ""
    spacing_mm: float = math.nan
    exam_id: str = ""
    patient_id: str = ""
    truth: Mapping[str, Float[np.ndarray, "n 4"]] = {}


def collect(paths: str | Path | Iterable[str | Path], skip: str | Path | None = None) -> list[Item]:
    """List the images in files, folders and indexes, in the order given and each file once.

    Folders are searched with all their sub-folders, in alphabetical order; hidden files and files that are
    no images are passed over. A folder with an `index.csv` stands for the images of that index. Files that
    were named are never passed over: one that is no image fails when it is read.

    Args:
        paths: what a person named.
        skip: a folder to leave out, such as one the program itself writes pictures to.

    Returns:
        The images. Those of an index keep their ids; others are named after their files, with the parent
        folder in front where two would have the same name.

    Raises:
        InputError: a folder holds no image, or an index cannot be used.
    """
    items: list[Item] = []
    seen: set[Path] = set()
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        found = list(_expand(path, None if skip is None else Path(skip).resolve()))
        if not found:
            raise InputError(
                f"{path}: no image in this folder or below it (looked for {', '.join(SUFFIXES)}, and DICOM "
                "under any name). Name the folder that holds the images."
            )
        for item in found:
            if (place := item.path.resolve()) not in seen:
                seen.add(place)
                items.append(item)
    return _with_unique_ids(items)


def safe_name(text: str) -> str:
    """Turn any text into a file name for every system: no separators, no control characters, not too long.

    Text that is such a name stays as it is. A changed one gets a checksum of the original, so that two
    different texts do not become one name.
    """
    plain = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]', "_", text).lstrip(".").rstrip(". ")
    if plain == text and 0 < len(plain.encode()) <= _LONGEST:
        return text
    short = plain.encode()[: _LONGEST - 9].decode(errors="ignore").strip() or "image"
    return f"{short}-{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def _expand(path: Path, skip: Path | None) -> Iterator[Item]:
    if path.suffix.lower() == ".csv":
        yield from _from_index(path)
    elif not path.is_dir():
        yield _from_file(path)
    elif (path / "index.csv").is_file():
        yield from _from_index(path)
    elif path.resolve() != skip:
        for child in sorted(_children(path)):
            if child.is_dir() or _looks_like_image(child):
                yield from _expand(child, skip)


def _children(folder: Path) -> list[Path]:
    try:
        # Links to folders may lead in circles.
        return [
            child
            for child in folder.iterdir()
            if not child.name.startswith(".") and not (child.is_dir() and child.is_symlink())
        ]
    except OSError as error:
        raise InputError(f"{folder}: cannot read this folder ({error.strerror}).") from error


def _looks_like_image(path: Path) -> bool:
    """Guess by suffix; DICOM files often have none, or the end of their number in place of one."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR" or not path.is_file():  # a list of files; a pipe, which would wait
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _from_file(path: Path) -> Item:
    name = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return Item(path, safe_name(name or "image"))


def _from_index(path: Path) -> Iterator[Item]:
    from mammomil.index import read_index

    yield from index_items(read_index(path))


def index_items(index: "Index") -> Iterator[Item]:
    """List the images of an index that was read, in its order and under its ids."""
    from mammomil.index import BOX

    images, findings, root = index
    placed = findings[findings["x0"].notna()]
    boxes = {
        image_id: {f: rows.loc[rows["finding"] == f, BOX].to_numpy(float) for f in FINDINGS}
        for image_id, rows in placed.groupby("image_id")
    }
    for row in images.to_dict("records"):
        yield Item(
            root / row["path"], row["image_id"], row["laterality"], row["view"], float(row["spacing_mm"]),
            row["exam_id"], row["patient_id"], boxes.get(row["image_id"], {}),
        )  # fmt: skip


def failure_reason(item: Item, error: Exception) -> str:
    """Return why an image cannot be used, in one line without its path, which stands beside it."""
    text = str(error) if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {error}"
    return " ".join(text.removeprefix(f"{item.path}:").split())[:500]


def _with_unique_ids(items: list[Item]) -> list[Item]:
    """Rename images of equal names: the parent folder goes in front, then a number behind."""
    # Names that differ in case alone would be one file on many systems.
    count = Counter(item.image_id.casefold() for item in items)
    names: dict[int, str] = {}
    taken: set[str] = set()
    # Images of an index choose first: their ids lead back to the index.
    for place, item in sorted(enumerate(items), key=lambda entry: not entry[1].exam_id):
        name, number = item.image_id, 1
        if name.casefold() in taken or (count[name.casefold()] > 1 and not item.exam_id):
            name = safe_name(f"{item.path.resolve().parent.name}__{name}")
        base = name
        while name.casefold() in taken:
            number += 1
            name = f"{base}__{number}"
        taken.add(name.casefold())
        names[place] = name
    return [item._replace(image_id=names[place]) for place, item in enumerate(items)]
