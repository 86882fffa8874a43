"""Phantoms as an index folder: pictures, truth, tables and a data card; a seed makes them again."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from mammomil.files import InputError, atomic_path, read_json, write_json
from mammomil.phantom import SCALES, Exam, Scale, render_exam

PER_SEED = 100_000  # exams of one seed; exam i is render_exam(PER_SEED * seed + i)
IMAGE_COLUMNS = (
    "image_id", "exam_id", "patient_id", "laterality", "view", "path", "benign", "malignant", "birads",
    "density", "spacing_mm", "height", "width", "source", "split",
)  # fmt: skip
FINDING_COLUMNS = ("image_id", "finding_id", "finding", "kind", "x0", "y0", "x1", "y1", "mask", "descriptor")
FINDING_COLUMNS += ("size_mm",)
# What `mammomil phantom --samples` draws: folder, scale, exams, seed.
SAMPLES = (("", "quick", 40, 2037), ("half", "half", 4, 2038), ("full", "full", 1, 2044))
CARD = """# Phantom mammograms: synthetic, not patients

{exams} exams of four views (CC and MLO of both breasts), drawn by `mammomil/phantom.py` with

    {command}

Licence: CC0 1.0 (public domain). No picture or model of a patient went into them.
{grid}
- `index.csv`: one row per image: labels, BI-RADS, density, pixel size, split (by patient).
- `findings.csv`: one row per lesion and view: class, descriptor, size, mask, box (xyxy on pixel edges).
- `images/`: 12-bit values in 16-bit PNG, {rows} x {columns} pixels of {pixel} mm; air is exactly 0
  except for labels and tape; right breasts have the chest wall on the right.
- `masks/`: 1-bit PNG per lesion: the pixels a mass adds signal to, or the convex hull of a group of
  calcifications.
- `truth/`: per image `_breast.png` and `_pectoral.png` (1 bit) and the density map `_gland.png` (8 bits:
  share of gland in the thickness, 0 to 255).

An image is benign or malignant when such a lesion shows in it. The BI-RADS category was drawn from the
descriptors as a reader sees them, not from the truth. Contrast of lesions and look-alikes: {conspicuity:g}
times the physical one (0.5 subtle, 1 physics, 3 trivial).

Seed {seed}: the same command writes the same bytes with the same library versions on the same machine.

How: log signal of fat, gland (power-law texture, clustered lumps, strands towards the nipple), muscle, skin,
vessels, folds and lesions; blur, Poisson-like noise, a vendor's tone curve. Classes are drawn by the
descriptors' malignancy rates in CBIS-DDSM, so the best possible reader makes mistakes too. Every breast also
holds look-alikes without a label: islands of gland, lymph nodes, single calcifications.

Limits: lesions are drawn on the tissue, they do not pull at it; no implants, scars, clips or thickened skin.
A woman's two views share the lesions' place but not the texture. Calcifications under half a millimetre all
but vanish in quick pixels. Nothing measured here holds for real screening.
"""

SHIPPED = """
## The whole folder

`mammomil phantom --samples --out data_samples` draws it: the set above, 4 exams of 1472 x 960 pixels in
`half/` and one of 2944 x 1920 in `full/`, each with tables and a card of its own. `weights/` holds models
trained on other phantoms, by `mammomil experiment warm-start`.
"""


def write_phantoms(
    out: str | Path,
    exams: int,
    scale: Scale = "quick",
    seed: int = 0,
    conspicuity: float = 1.0,
    progress: bool = True,
    force: bool = False,
    workers: int = 1,
    crowd: int = 0,
) -> Path:
    """Write exams as an index folder: index.csv, findings.csv, images/, masks/, truth/ and a README.

    A run that was interrupted goes on where it stopped: exams already on disk are not drawn again. The same
    arguments write the same bytes on the same machine and library versions, whatever the number of workers.

    Args:
        out: the folder.
        exams: number of exams, 1 to 100000; exam i is `render_exam(100000 * seed + i)`.
        scale: see `render_exam`.
        seed: 0 or larger.
        conspicuity: see `render_exam`.
        progress: show a bar.
        force: replace the phantoms that `out` holds.
        workers: processes that draw; 0 is one per core.
        crowd: see `render_exam`; for sets to train fields of view on.

    Returns:
        The path of index.csv.

    Raises:
        InputError: an argument is out of range, or `out` holds a finished set or an unfinished other one.
    """
    out, limits = Path(out), {"exams": (exams, 1, PER_SEED), "seed": (seed, 0, 10**9)}
    for name, (value, low, high) in (
        limits | {"conspicuity": (conspicuity, 0.1, 10), "crowd": (crowd, 0, 8)}
    ).items():
        if not low <= value <= high:
            raise InputError(f"{name} {value} cannot be used: give {low} to {high}.")
    if scale not in SCALES:
        raise InputError(f"scale {scale!r} is not known: give {', '.join(SCALES)}.")
    settings = {"scale": scale, "seed": seed, "conspicuity": float(conspicuity), "crowd": crowd}
    work = out / "unfinished"
    _make_room(out, work, settings, force)
    write_json(work / "settings.json", settings)
    missing = [number for number in range(exams) if not (work / f"{number}.json").exists()]
    draw = partial(_draw_exam, out=out, **settings)
    with _mapper(workers, len(missing)) as spread:
        for _ in tqdm(
            spread(draw, missing), desc="phantoms", unit="exam", initial=exams - len(missing), total=exams,
            disable=not progress,
        ):  # fmt: skip
            pass
    images, findings = [], []
    for number in range(exams):
        for table, rows in zip((images, findings), read_json(work / f"{number}.json"), strict=True):
            table += rows
    rows, columns, pixel = SCALES[scale]
    command = f"mammomil phantom --exams {exams} --scale {scale} --seed {seed} --out {out.name}"
    command += f" --conspicuity {conspicuity:g}" if conspicuity != 1 else ""
    command += f" --crowd {crowd}" if crowd else ""
    grid = _write_grid(out, images)
    card = CARD.format(
        command=command, exams=exams, rows=rows, columns=columns, pixel=pixel, grid=grid, **settings
    )
    texts = {"README.md": card}
    texts["findings.csv"] = pd.DataFrame(findings, columns=FINDING_COLUMNS).to_csv(index=False)
    texts["index.csv"] = _with_splits(pd.DataFrame(images), seed)[list(IMAGE_COLUMNS)].to_csv(index=False)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    shutil.rmtree(work)
    return out / "index.csv"


def write_samples(out: str | Path, progress: bool = True, force: bool = False, workers: int = 1) -> Path:
    """Write the shipped phantoms: 40 exams at quick scale, 4 at half in OUT/half, 1 at full in OUT/full.

    Raises:
        InputError: `out` holds them already, all of them; what is missing is drawn.
    """
    tables = [Path(out) / folder / "index.csv" for folder, *_ in SAMPLES]
    if not force and all(table.exists() for table in tables):
        raise InputError(f"{tables[0]}: exists. Replace the samples with --force, or choose another --out.")
    for table, (_, scale, exams, seed) in zip(tables, SAMPLES, strict=True):
        if force or not table.exists():
            write_phantoms(table.parent, exams, scale, seed, 1.0, progress, force, workers)
    card = Path(out) / "README.md"
    if SHIPPED not in (text := card.read_text(encoding="utf-8")):
        with atomic_path(card) as temporary:
            temporary.write_text(text + SHIPPED, encoding="utf-8")
    return tables[0]


def _make_room(out: Path, work: Path, settings: dict, force: bool) -> None:
    """Delete what `force` allows; refuse to mix two sets."""
    if force:
        shutil.rmtree(work, ignore_errors=True)
        old = [
            out / "index.csv",
            *(f for part in ("images", "masks", "truth") for f in out.glob(f"{part}/phantom-*.png")),
        ]
        for path in old:
            path.unlink(missing_ok=True)
    elif (work / "settings.json").exists():
        if (other := read_json(work / "settings.json")) != settings:
            raise InputError(f"{out}: holds an unfinished run with {other}. Finish it, or use --force.")
    elif there := [name for name in ("index.csv", "findings.csv", "README.md") if (out / name).exists()]:
        raise InputError(f"{out / there[0]}: exists. Replace it with --force, or choose another --out.")


@contextmanager
def _mapper(workers: int, jobs: int) -> Iterator:
    """Yield a map over this process, or over several; leaving early drops what has not begun."""
    workers = min(workers or os.cpu_count() or 1, jobs)
    if workers < 2:
        yield map
        return
    # spawn: a forked copy of a process that has used torch's threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)
    try:
        yield lambda function, items: pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)


def _draw_exam(number: int, out: Path, seed: int, scale: Scale, conspicuity: float, crowd: int) -> None:
    exam = render_exam(PER_SEED * seed + number, scale, conspicuity, crowd=crowd)
    rows = _write_exam(out, exam, scale)
    write_json(out / "unfinished" / f"{number}.json", rows)  # after the exam's images


def _write_grid(out: Path, images: list[dict]) -> str:
    """Write a picture of the first 24 images for the card; return its line of Markdown."""
    tiles = []
    for row in images[:24]:
        with Image.open(out / row["path"]) as image:
            pixels = np.asarray(image, np.float32) / 4095 * 255
        tile = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((120, 184), Image.Resampling.BOX)
        tiles.append(np.asarray(tile))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 8)
    picture = np.concatenate([np.concatenate(tiles[i : i + 8], 1) for i in range(0, len(tiles), 8)])
    with atomic_path(out / "phantoms.png") as temporary:
        Image.fromarray(picture).save(temporary)
    return "\n![Synthetic mammograms: L-CC, L-MLO, R-CC and R-MLO of the first exams.](phantoms.png)\n"


def _with_splits(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Deal whole patients 60/20/20 after sorting by label, so that each split gets its share of each."""
    worst = table.assign(worst=table.benign + 2 * table.malignant).groupby("patient_id").worst.max()
    dealt = worst.sample(frac=1, random_state=seed % 2**32).sort_values(kind="stable").index
    deal = {patient: ("train", "val", "train", "test", "train")[i % 5] for i, patient in enumerate(dealt)}
    return table.assign(split=table.patient_id.map(deal))


def _write_exam(out: Path, exam: Exam, scale: Scale) -> tuple[list[dict], list[dict]]:
    """Write the PNG files of one exam; give its rows of index.csv and of findings.csv."""
    images, findings, exam_id = [], [], f"phantom-{exam.seed:09d}"
    height, width, spacing = SCALES[scale]
    for view in exam.views:
        image_id = f"{exam_id}_{view.laterality}-{view.view}"
        files = {
            f"images/{image_id}.png": view.pixels,
            f"truth/{image_id}_breast.png": view.breast,
            f"truth/{image_id}_pectoral.png": view.pectoral,
            f"truth/{image_id}_gland.png": (view.gland * 255).round().astype(np.uint8),
        }
        row = (image_id, exam_id, exam_id, view.laterality, view.view, f"images/{image_id}.png", *view.label)
        row += (exam.birads[view.laterality], exam.density, spacing, height, width, "phantom", "")
        images.append(dict(zip(IMAGE_COLUMNS, row, strict=True)))
        for f in view.findings:
            mask = f"masks/{image_id}_{f.lesion}.png"
            files[mask] = f.mask
            row = (image_id, f.lesion, f.finding, f.kind, *f.box, mask, f.descriptor, round(f.size_mm, 1))
            findings.append(dict(zip(FINDING_COLUMNS, row, strict=True)))
        for name, pixels in files.items():
            with atomic_path(out / name) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=9)
    return images, findings
