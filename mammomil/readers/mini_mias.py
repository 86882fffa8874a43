"""mini-MIAS (Suckling 1994): 322 digitised films of 161 women, `Info.txt` and one PGM file per film."""

from pathlib import Path

import pandas as pd
from PIL import Image

from mammomil.files import InputError
from mammomil.index import Index, make_index, split_patients

SIDE = 1024  # pixels; every image is square
SPACING_MM = 0.2
_KINDS = {  # class of abnormality -> (kind, descriptor) of findings.csv
    "CALC": ("calcification", ""),
    "CIRC": ("mass", "circumscribed"),
    "SPIC": ("mass", "spiculated"),
    "MISC": ("mass", "ill-defined"),
    "ARCH": ("distortion", ""),
    "ASYM": ("asymmetry", ""),
}
_SEVERITY = {"B": "benign", "M": "malignant"}


def read(src: str | Path, seed: int = 0) -> Index:
    """Read the films that are there; those that `Info.txt` lists and the folder lacks are left out.

    What the columns hold, and why:

    * Patients are consecutive pairs of films: (1, 2), (3, 4) and so on. Whole patients are assigned to
      train, val and test (0.6, 0.2, 0.2) with `seed`, because the data set has no split of its own.
    * `laterality` is L for odd and R for even numbers. `Info.txt` says the opposite, but the letters that
      can be read on the films (005 and 209 are L, 028 is R) are mirrored like the films themselves, and the
      chest wall lies where the mirror puts it. The column only tells a woman's two breasts apart: where
      the chest wall is must be measured in the pixels (`preprocess.orient`).
    * NORM is (benign 0, malignant 0). Each other row sets its severity to 1, so that film 144, which has a
      row of each, is (1, 1).
    * Circles become boxes, cut at the border of the image. `Info.txt` counts y from the bottom. Findings
      without a circle (films 059, 216, 233 and 245) are listed without a box.
    * `tissue` keeps the letter F, G or D. BI-RADS `density` stays empty: three classes cannot be mapped to
      four. `birads` stays empty as well.

    Args:
        src: the folder with `Info.txt` and the PGM files as distributed.
        seed: seed of the split.

    Returns:
        The index with `src` as its root.

    Raises:
        InputError: no `Info.txt`, none of its films, a row or an image that is not as distributed.
    """
    src = Path(src)
    info = src / "Info.txt"
    try:
        lines = info.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise InputError(
            f"{info}: cannot read the list of films ({error.strerror}). Give the folder that holds "
            "Info.txt and the PGM files of mini-MIAS."
        ) from error
    images: dict[str, dict] = {}
    findings: list[dict] = []
    for number, line in enumerate(lines, start=1):
        if not line.startswith("mdb"):  # the letter in front of the table
            continue
        try:
            name, tissue, kind, severity, circle = _fields(line)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{info}, line {number}: {line!r} is no film, tissue, class, severity and circle as "
                "distributed. Restore Info.txt from the archive of the data set."
            ) from error
        if name not in images:
            images[name] = _image(src, name, tissue)
        if severity:
            images[name][severity] = 1.0
            kind, descriptor = _KINDS[kind]
            findings.append(
                {"image_id": name, "finding": severity, "kind": kind, "descriptor": descriptor, **circle}
            )
    present = {name for name in images if (src / f"{name}.pgm").is_file()}
    if not present:
        raise InputError(f"{src}: none of the {len(images)} films of Info.txt is here. Unpack the PGM files.")
    for name in present:
        _check_size(src / f"{name}.pgm")
    table = pd.DataFrame([row for name, row in images.items() if name in present])
    rows = [row for row in findings if row["image_id"] in present]
    return make_index(split_patients(table, seed=seed), pd.DataFrame(rows), src)


def _fields(line: str) -> tuple[str, str, str, str, dict[str, float]]:
    """Split a row such as `mdb005 F CIRC B 477 133 30` into names and a box."""
    name, tissue, kind, *rest = line.split()
    int(name.removeprefix("mdb"))
    if kind == "NORM":
        return name, tissue, kind, "", {}
    _ = _KINDS[kind]
    severity, rest = _SEVERITY[rest[0]], rest[1:]
    if not rest or rest[0].startswith("*"):  # "*NOTE 3*": spread over the whole breast
        return name, tissue, kind, severity, {}
    x, y, radius = (int(value) for value in rest)
    # (x, y) is the middle of a pixel, counted from the bottom left; half a pixel leads to its edges.
    centre_x, centre_y = x + 0.5, SIDE - 1 - y + 0.5
    box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
    cut = [min(max(edge, 0.0), float(SIDE)) for edge in box]
    return name, tissue, kind, severity, dict(zip(("x0", "y0", "x1", "y1"), cut, strict=True))


def _image(src: Path, name: str, tissue: str) -> dict:
    number = int(name.removeprefix("mdb"))
    return {
        "image_id": name,
        "patient_id": f"mias{(number + 1) // 2:03d}",
        "laterality": "L" if number % 2 else "R",
        "view": "MLO",
        "path": f"{name}.pgm",
        "benign": 0.0,
        "malignant": 0.0,
        "spacing_mm": SPACING_MM,
        "height": SIDE,
        "width": SIDE,
        "source": "mini-MIAS",
        "tissue": tissue,
    }


def _check_size(path: Path) -> None:
    try:
        with Image.open(path, formats=("PPM",)) as image:
            size = image.size
    except Exception as error:  # Pillow raises many kinds on damage
        raise InputError(f"{path}: this is no PGM image, or a damaged one. Unpack it again.") from error
    if size != (SIDE, SIDE):
        raise InputError(
            f"{path}: {size[0]} x {size[1]} pixels, but mini-MIAS has {SIDE} x {SIDE} and its circles count "
            "in those. Use the files as distributed."
        )
