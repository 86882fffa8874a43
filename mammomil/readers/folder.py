"""Any folder of mammograms, with a table of labels if there is one."""

import hashlib
import math
import os
import re
import warnings
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from mammomil.dicom import Mammogram, read_image
from mammomil.files import InputError
from mammomil.index import (
    FINDINGS,
    IMAGE_COLUMNS,
    Complaint,
    Index,
    check_images,
    make_index,
    raise_complaints,
    read_table,
)

SUFFIXES = {".dcm", ".dicom", ".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg"}
_VIEW_TOKEN = re.compile(r"(L|R|LEFT|RIGHT)?(CC|MLO|ML|LM|LMO|XCC[LM]?|AT|FB)?", re.IGNORECASE)


def read(
    src: str | Path, labels: str | Path | None = None, progress: bool = True
) -> tuple[Index, list[tuple[str, str]]]:
    """Read every image below a folder: DICOM (files without an ending too), PNG, PGM, TIFF and JPEG.

    Each value comes from the table of labels, else from the file, else from its name. Labels that nobody
    gave are unknown (NaN), never 0. A patient without a `patient_id` is, in this order:

    * a hash of the PatientID of her DICOM files; the identifier itself is not copied, nor is any other;
    * the subfolder that holds the images, because mistaking two women for one only wastes data, while
      mistaking one for two lets training see the patients of the test;
    * for images directly in `src`, the file name without laterality and view.

    Args:
        src: the folder; subfolders are searched, hidden files and folders are not.
        labels: CSV with a column `path` (relative to `src`) and any other column of an index, such as
            `benign`, `malignant` and `patient_id`.
        progress: show a bar.

    Returns:
        The index with `src` as its root, and (path relative to `src`, reason) for each file that cannot be
        read.

    Raises:
        InputError: no readable image at all, or a table of labels that cannot be used.
    """
    src = Path(src)
    if not src.is_dir():
        raise InputError(f"{src}: this is no folder. Give the folder that holds the images.")
    paths = sorted(_images_below(src))
    if not paths:
        raise InputError(f"{src}: no image here or below. Give a folder with {', '.join(sorted(SUFFIXES))}.")
    known = {} if labels is None else _read_labels(Path(labels), src, set(paths))
    rows, failures, ids = [], [], set()
    for path in tqdm(paths, desc="Reading images", unit="image", disable=not progress):
        try:
            path.encode()
            row = _row(src, path, read_image(src / path), known.get(path, {}), ids)
        except UnicodeEncodeError:
            shown = path.encode(errors="backslashreplace").decode()
            failures.append((shown, "the name of the file is not UTF-8. Rename it."))
        except InputError as error:
            failures.append((path, str(error)))
        else:
            rows.append(row)
    if not rows:
        raise InputError(f"{src}: none of {len(paths)} files can be read. The first: {failures[0][1]}")
    return make_index(pd.DataFrame(rows), None, src), failures


def _images_below(src: Path) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(src):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            suffix = path.suffix.lower()
            if not name.startswith(".") and (suffix in SUFFIXES or _is_dicom(path)):
                found.append(path.relative_to(src).as_posix())
    return found


def _is_dicom(path: Path) -> bool:
    """Whether the file says so itself; series from a PACS are often named by a UID alone."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read_labels(labels: Path, src: Path, paths: set[str]) -> dict[str, dict[str, object]]:
    """What a person says of each image: path -> columns of the index that are not empty."""
    text = read_table(labels, ["path"])
    text["path"] = text["path"].str.replace("\\", "/").str.removeprefix("./")
    # Ids are optional here; stand-ins let the other rules of an index apply.
    blank = pd.Series([f"line {line}" for line in text.index], text.index, dtype=str)
    asked = text.assign(
        **{
            name: text[name].where(text[name] != "", blank) if name in text else blank
            for name in ("image_id", "patient_id")
        }
    )
    table, complaints = check_images(asked)
    absent = ~text["path"].isin(paths)
    complaints += [
        Complaint(line, "path", path, f"no such image below {src}; write the path relative to that folder")
        for line, path in text.loc[absent, "path"].items()
    ]
    complaints += [
        Complaint(line, "path", path, "each image may have one row; remove the others")
        for line, path in text.loc[text["path"].duplicated(), "path"].items()
    ]
    raise_complaints([(labels, complaints)])
    given = text.columns.difference(["path"])
    return {
        path: {name: table.at[line, name] for name in given if text.at[line, name] != ""}
        for line, path in text["path"].items()
    }


def _row(src: Path, path: str, image: Mammogram, given: dict[str, object], ids: set[str]) -> dict:
    file = src / path
    patient, exam = _hashed_ids(file)
    if not patient:
        folder = os.path.dirname(path)
        tokens = [token for token in re.split(r"[\s_.-]+", file.stem) if not _VIEW_TOKEN.fullmatch(token)]
        patient = folder or "_".join(tokens) or src.resolve().name
    patient = str(given.get("patient_id", patient))
    image_id = name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", os.path.splitext(path)[0]).lstrip(".")[-140:]
    number = 1
    while image_id in ids:  # 1.dcm beside 1.png
        number += 1
        image_id = f"{name}-{number}"
    image_id = str(given.get("image_id", image_id))
    ids.add(image_id)
    row = dict.fromkeys(IMAGE_COLUMNS, "") | dict.fromkeys(FINDINGS, math.nan)
    row |= {
        "image_id": image_id,
        "exam_id": exam if exam and "patient_id" not in given else patient,
        "patient_id": patient,
        "laterality": image.laterality,
        "view": image.view,
        "path": path,
        "spacing_mm": image.spacing_mm,
        "height": image.pixels.shape[0],
        "width": image.pixels.shape[1],
        "source": src.resolve().name,
    }
    return row | given


def _hashed_ids(file: Path) -> tuple[str, str]:
    """Stand-ins for PatientID and StudyInstanceUID of a DICOM file; empty where there are none."""
    if not _is_dicom(file):
        return "", ""
    import pydicom

    tags = ["PatientID", "StudyInstanceUID"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # irregular values; read_image has told of them
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        patient, study = (str(header.get(tag) or "").strip() for tag in tags)
    if not patient:
        return "", ""
    return _hash("p", patient), _hash("e", patient + "\0" + study) if study else ""


def _hash(letter: str, text: str) -> str:
    return letter + hashlib.sha256(text.encode()).hexdigest()[:12]
