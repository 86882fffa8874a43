"""Tables of predictions, and one web page that shows them.

The page is a single file that asks nothing of the network; its panels lie beside it. Every text that comes
from a file, a name or a person is escaped.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from mammomil.files import atomic_path
from mammomil.types import FINDINGS, Prediction

PREDICTION_COLUMNS = (
    "image_id",
    "path",
    "model",
    "laterality",
    "view",
    "p_benign",
    "p_malignant",
    "p_normal",
)
REGION_COLUMNS = ("image_id", "model", "finding", "rank", "score", "x0", "y0", "x1", "y1")
BREAST_COLUMNS = (
    "model", "patient_id", "exam_id", "laterality", "views", "images", "p_benign", "p_malignant", "p_normal",
)  # fmt: skip
FAILURE_COLUMNS = ("path", "image_id", "reason")
PARTS = ("loc", "mil", "fusion")
REGIONS_LISTED = 20  # per image, model and finding; a dual-branch network ranks hundreds of windows


class Row(NamedTuple):
    """One image under one model, as tables and page show it.

    Attributes:
        prediction: what the model says; its map is not needed.
        exam_id: the image's exam in an index, else empty.
        patient_id: the image's patient in an index, else empty.
        panel: path of its picture, relative to the page, or empty.
        size: width and height of the picture in pixels.
        alt: what the picture shows, in words.
        notes: what a person should know about how the file was read.
    """

    prediction: Prediction
    exam_id: str = ""
    patient_id: str = ""
    panel: str = ""
    size: tuple[int, int] = (0, 0)
    alt: str = ""
    notes: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A file that could not be used, and why."""

    path: str
    image_id: str
    reason: str


def write_tables(out: str | Path, rows: Sequence[Row], failures: Sequence[Failure] = ()) -> None:
    """Write `predictions.csv`, `regions.csv`, `breasts.csv` and `failures.csv`; each has at least its header.

    Probabilities and scores are in [0, 1], boxes xyxy in pixels of the file. `rank` 1 is the region with the
    highest score for the finding; regions of equal score keep their order, and the first `REGIONS_LISTED`
    ranks are listed.
    """
    out = Path(out)
    parts = [name for name in PARTS if any(name in row.prediction.parts for row in rows)]
    columns = (*PREDICTION_COLUMNS, *(f"p_{name}_{finding}" for name in parts for finding in FINDINGS))
    _write_csv(out / "predictions.csv", columns, [_prediction_cells(row.prediction) for row in rows])
    regions = [cells for row in rows for cells in _region_cells(row.prediction)]
    _write_csv(out / "regions.csv", REGION_COLUMNS, regions)
    _write_csv(out / "breasts.csv", BREAST_COLUMNS, breast_table(rows))
    _write_csv(out / "failures.csv", FAILURE_COLUMNS, [failure._asdict() for failure in failures])


def breast_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Bring the views of each breast together, as the papers of the models do.

    GMIC's are averaged (checklist G12), first within and then over views; of the dual branch's the largest
    counts (D26).
    Only images of known laterality count. Without an index the folder of a file stands for its exam; where
    such a folder holds a view of one side twice, it mixes exams or patients, and that breast is left out.

    Returns:
        A row of `BREAST_COLUMNS` per model and breast; `p_normal` is the product of the complements.
    """
    breasts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        p = row.prediction
        if p.laterality in ("L", "R"):
            exam = row.exam_id or str(Path(p.path).parent)
            breasts.setdefault((p.model, row.patient_id, exam, p.laterality), []).append(row)
    table = []
    for key, images in breasts.items():
        views: dict[str, list[np.ndarray]] = {}
        for row in images:
            views.setdefault(row.prediction.view, []).append(row.prediction.prob)
        if not images[0].exam_id and len(views) < len(images):
            continue
        if images[0].prediction.ranks_regions:
            both = np.max([row.prediction.prob for row in images], 0)
        else:
            both = np.mean([np.mean(v, 0, dtype=float) for v in views.values()], 0)
        benign, malignant = both.astype(float).tolist()
        table.append(
            dict(zip(BREAST_COLUMNS[:4], key, strict=True))
            | {"views": "+".join(sorted(filter(None, views))), "images": len(images)}
            | {"p_benign": benign, "p_malignant": malignant, "p_normal": (1 - benign) * (1 - malignant)}
        )
    return table


def write_report(
    out: str | Path,
    rows: Sequence[Row],
    title: str,
    intro: str,
    provenance: Mapping[str, Any],
    failures: Sequence[Failure] = (),
) -> Path:
    """Write `report.html`: images, breasts, what failed, the panels, and where it all comes from.

    Args:
        out: the folder that holds the panels.
        rows: images to show, in order.
        title: title of the page.
        intro: a sentence under the title.
        provenance: what JSON can hold; shown as such.
        failures: files that could not be used.

    Returns:
        The path of the page.
    """
    path = Path(out) / "report.html"
    sections = [
        _failures(failures),
        _images(rows),
        _breasts(breast_table(rows)),
        _panels(rows),
        "<h2>Where this comes from</h2><details><summary>Versions, models and settings</summary><pre>"
        f"{_safe(json.dumps(provenance, indent=2, default=str))}</pre></details>",
    ]
    template = Template((Path(__file__).parent / "static" / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=_safe(title), intro=_safe(intro), body="\n".join(filter(None, sections)))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    def cell(value: Any) -> Any:
        return f"{value:.6g}" if isinstance(value, float | np.floating) else value

    # Names of files need not be valid text; what is not is written as \udc.. codes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row.get(column, "")) for column in columns] for row in rows)


def _prediction_cells(p: Prediction) -> dict[str, Any]:
    cells = {name: getattr(p, name) for name in PREDICTION_COLUMNS[:5]} | {"p_normal": p.p_normal}
    for c, finding in enumerate(FINDINGS):
        cells[f"p_{finding}"] = p.prob[c]
        cells |= {f"p_{name}_{finding}": values[c] for name, values in p.parts.items()}
    return cells


def _region_cells(p: Prediction) -> list[dict[str, Any]]:
    cells = []
    for c, finding in enumerate(FINDINGS):
        order = np.argsort(-p.scores[:, c], kind="stable")[:REGIONS_LISTED]
        for rank, k in enumerate(order, 1):
            values = (p.image_id, p.model, finding, rank, p.scores[k, c], *p.boxes[k])
            cells.append(dict(zip(REGION_COLUMNS, values, strict=True)))
    return cells


def _safe(text: Any) -> str:
    """Escape a text for HTML, in content and in attributes; what no page can hold becomes a visible code."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))
    return escape(plain, quote=True)


def _score(value: float, finding: str) -> str:
    """Return a table cell with a probability and a bar as long as it."""
    return f'<td class="p {finding}" style="--p:{100 * value:.1f}%">{value:.3f}</td>'


def _scores(p_benign: float, p_malignant: float, p_normal: float) -> str:
    return _score(p_benign, "benign") + _score(p_malignant, "malignant") + _score(p_normal, "normal")


def _table(caption: str, heads: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(f'<tr>{cells}</tr>' for cells in body)}</tbody></table></div>"
    )


_PATCHES_LEGEND = (
    "<p>Yellow squares are the patches the model looked at, numbered by attention: 1 weighs most in the "
    "answer. The maps show how strongly each place speaks for a finding; the bars under a patch are their "
    "mean over it.</p>"
)
_REGIONS_LEGEND = (
    "<p>Boxes marked B1 to B3 and M1 to M3 are the regions that speak most for a benign and for a malignant "
    "finding. In the next two pictures each place is coloured by the highest score of a region over it; what "
    "is dark was not ranked for that finding. A score is the probability that the region shows the finding, "
    "times the region's share in the image's answer. The probability plane shows the image as a point "
    "between the corners N (normal), B (benign), M (malignant) and MB (both).</p>"
)
_TRUTH_LEGEND = "<p>Dashed boxes, where there are any, are findings known from the data.</p>"
_P_HEADS = ("Benign", "Malignant", "Normal")


def _images(rows: Sequence[Row]) -> str:
    body = []
    for number, row in enumerate(rows, 1):
        p = row.prediction
        name = _safe(p.image_id)
        link = f'<a href="#panel-{number}">{name}</a>' if row.panel else name
        kind = _safe(f"{p.laterality} {p.view}".strip() or "unknown")
        body.append(
            f'<th scope="row">{link}</th><td>{kind}</td><td>{_safe(p.model)}</td>'
            + _scores(float(p.prob[0]), float(p.prob[1]), p.p_normal)
        )
    if not body:
        return "<h2>Images</h2><p>No image could be predicted.</p>"
    return "<h2>Images</h2><p>Probabilities from 0 to 1.</p>" + _table(
        "Images", ("Image", "View", "Model", *_P_HEADS), body
    )


def _breasts(table: Sequence[Mapping[str, Any]]) -> str:
    if not table:
        return ""
    body = [
        f'<th scope="row">{_safe(b["exam_id"])}</th>'
        f"<td>{_safe(b['laterality'])}</td><td>{_safe(b['views'])}</td>"
        f"<td>{_safe(b['model'])}</td>" + _scores(b["p_benign"], b["p_malignant"], b["p_normal"])
        for b in table
    ]
    return (
        "<h2>Breasts</h2><p>The mean of the views of each breast for GMIC, the largest for the dual-branch "
        "network, as their papers have it. An exam without an index is a folder.</p>"
        + _table("Breasts", ("Exam", "Side", "Views", "Model", *_P_HEADS), body)
    )


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    lines = "".join(f"<li><code>{_safe(f.path)}</code> {_safe(f.reason)}</li>" for f in failures)
    count = "1 file" if len(failures) == 1 else f"{len(failures)} files"
    return f'<section class="failed"><h2>{count} could not be used</h2><ul>{lines}</ul></section>'


def _panels(rows: Sequence[Row]) -> str:
    """Show the panels, those of one image by several models side by side."""
    images: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows, 1):
        if row.panel:
            images.setdefault(row.prediction.image_id, []).append((number, row))
    sections = []
    for image_id, panels in images.items():
        paths = dict.fromkeys(row.prediction.path for _, row in panels)
        notes = "".join(
            f"<li>{_safe(n)}</li>" for n in dict.fromkeys(n for _, row in panels for n in row.notes)
        )
        sections.append(
            f"<section><h3>{_safe(image_id)}</h3>"
            + "".join(f'<p class="path"><code>{_safe(path)}</code></p>' for path in paths)
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
            + f'<div class="panels">{"".join(_panel(number, row) for number, row in panels)}</div></section>'
        )
    predictions = [row.prediction for panels in images.values() for _, row in panels]
    return "<h2>Panels</h2>" + _legend(predictions) + "\n".join(sections) if sections else ""


def _panel(number: int, row: Row) -> str:
    (width, height), link = row.size, _safe(quote(row.panel))
    return (
        f'<figure id="panel-{number}"><a href="{link}"><img src="{link}" alt="{_safe(row.alt)}" '
        f'width="{width}" height="{height}" loading="lazy"></a>'
        f"<figcaption>Model {_safe(row.prediction.model)}</figcaption></figure>"
    )


def _legend(predictions: Sequence[Prediction]) -> str:
    """Explain the kinds of pictures that occur."""
    regions = [p.ranks_regions for p in predictions]
    patches = any(len(p.boxes) and not other for p, other in zip(predictions, regions, strict=True))
    return _PATCHES_LEGEND * patches + _REGIONS_LEGEND * any(regions) + _TRUTH_LEGEND
