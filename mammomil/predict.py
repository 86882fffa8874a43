"""From model folders and image files to a folder of tables, pictures and a report."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mammomil.files import InputError, atomic_path, provenance, read_json, write_json
from mammomil.items import Item, collect, failure_reason, safe_name
from mammomil.plots import alt_text, prediction_panel, save_figure
from mammomil.predictor import Loaded, Precision, Predictor, fault, read_ahead
from mammomil.region_plots import region_panel
from mammomil.report import Failure, Row, write_report, write_tables
from mammomil.types import FINDINGS, Prediction
from mammomil.weights import codes_of


def predict_to_folder(
    model_dirs: str | Path | Iterable[str | Path],
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    save_maps: bool = False,
    panels: bool = True,
    progress: bool = True,
    device: str = "auto",
    precision: Precision = "float32",
) -> int:
    """Predict images with one or more models and leave tables, pictures and a report in a folder.

    Writes `predictions.csv`, `regions.csv`, `breasts.csv`, `failures.csv`, `report.html`, `provenance.json`,
    a panel per image and model under `panels/`, and maps under `maps/` if asked for (`<image_id>.npz`, or
    `<image_id>.<model>.npz` with several models: an array per finding, and `box`, the rectangle of the file
    that they cover, xyxy). An image counts when all models have answered; one that cannot be used is named on
    standard error and in `failures.csv`, and the rest goes on. Ctrl-C writes the tables of the images done.
    Where a model resamples to a pixel size in mm, standard error says how many images have no pixel size.

    Args:
        model_dirs: model folders.
        paths: files, folders and indexes, see `items.collect`.
        out: the folder; made if it is not there. Files of an earlier run are replaced.
        save_maps: write the maps.
        panels: draw the panels.
        progress: show a bar.
        device: see `Predictor`.
        precision: see `Predictor`.

    Returns:
        The exit status of a program: 0; 1 if an image failed; 130 if interrupted.

    Raises:
        InputError: a model or an index cannot be used, a folder holds no image, or `out` cannot be written.
    """
    out = Path(out)
    folders = [Path(d) for d in ([model_dirs] if isinstance(model_dirs, str | Path) else model_dirs)]
    predictors = _load_all(folders, device, precision)
    items = collect(paths, skip=out / "panels")
    probe = out / ".writable"  # says now, and not after an hour, whether the folder can be written
    with atomic_path(probe):
        pass
    probe.unlink()
    rows: list[Row] = []
    failures: list[Failure] = []
    unsized = 0

    def fail(item: Item, error: Exception) -> None:
        failures.append(Failure(str(item.path), item.image_id, failure_reason(item, error)))
        line = f"{item.path}: {failures[-1].reason}"  # a file's name need not be printable
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        tqdm.write(line, file=sys.stderr)

    images = read_ahead(items, {predictor.preprocess for predictor in predictors})
    bar = tqdm(images, total=len(items), desc="Predicting", unit="image", disable=not progress)
    interrupted = False
    try:
        with closing(images), bar:
            for item, image in bar:
                if isinstance(image, Exception):
                    fail(item, image)
                    continue
                unsized += not image.mammogram.spacing_mm > 0  # True for NaN
                try:
                    found = [predictor.predict([image])[0] for predictor in predictors]
                    if problem := next(filter(None, map(fault, found)), None):
                        raise problem
                    rows += [_write_pictures(out, image, p, panels, save_maps, len(found)) for p in found]
                except OSError as error:  # of writing, as reading is over
                    raise InputError(
                        f"{out}: cannot write here ({error.strerror or error}). Make room, or choose another "
                        "folder."
                    ) from error
                except Exception as error:
                    fail(item, error)
    except KeyboardInterrupt:
        interrupted = True
        print("Interrupted: the tables hold the images done so far.", file=sys.stderr)
    if unsized and any(predictor.preprocess.resize == "spacing" for predictor in predictors):
        print(
            f"Pixel size unknown for {unsized} of {len(items)} images: the model's canvas has pixels of a "
            "fixed size in mm, and such images are scaled by the breast's size instead, which can change the "
            "answer. Give an index.csv with spacing_mm, or DICOM files that hold it.",
            file=sys.stderr,
        )
    facts = provenance(
        command="predict",
        models={
            predictor.name: {
                "folder": str(folder),
                "weights_sha256": read_json(folder / "config.json").get("weights_sha256"),
                "preprocess": dataclasses.asdict(predictor.preprocess),
                "codes": codes_of(folder),
            }
            for predictor, folder in zip(predictors, folders, strict=True)
        },
        precision=precision,
        images=len(items),
        failures=len(failures),
        interrupted=interrupted,
    )
    write_tables(out, rows, failures)
    write_report(
        out,
        rows,
        "Predictions of mammomil",
        f"{len({row.prediction.image_id for row in rows})} of {len(items)} images, "
        f"{len(predictors)} model{'s' * (len(predictors) > 1)}.",
        facts,
        failures,
    )
    write_json(out / "provenance.json", facts)
    return 130 if interrupted else int(bool(failures))


def _load_all(folders: Sequence[Path], device: str, precision: Precision) -> list[Predictor]:
    """Load models under names that differ and can be part of a file name."""
    predictors: list[Predictor] = []
    for folder in folders:
        predictor = Predictor.from_pretrained(folder, device, precision=precision)
        names = [predictor.name, f"{folder.resolve().parent.name}__{folder.resolve().name}"]
        names += [f"{predictor.name}__{number}" for number in range(2, len(folders) + 1)]
        taken = {other.name.casefold() for other in predictors}
        predictor.name = next(n for n in map(safe_name, names) if n.casefold() not in taken)
        predictors.append(predictor)
    if not predictors:
        raise InputError("no model: name at least one model folder.")
    return predictors


def _write_pictures(
    out: Path, image: Loaded, prediction: Prediction, panels: bool, save_maps: bool, models: int
) -> Row:
    """Write panel and maps of an image; return its row of the report, without the map."""
    name = safe_name(prediction.image_id)
    panel, size = "", (0, 0)
    if panels:
        panel = f"panels/{name}.{prediction.model}.png"
        draw = region_panel if prediction.ranks_regions else prediction_panel
        size = save_figure(draw(image.mammogram.pixels, prediction, image.item.truth), out / panel)
    if save_maps and prediction.saliency is not None:
        path = out / "maps" / (f"{name}.npz" if models == 1 else f"{name}.{prediction.model}.npz")
        maps = dict(zip(FINDINGS, prediction.saliency, strict=True))
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **maps, box=prediction.map_box)
    return Row(
        prediction._replace(saliency=None),
        image.item.exam_id,
        image.item.patient_id,
        panel,
        size,
        alt_text(prediction) if panels else "",
        image.mammogram.notes,
    )
