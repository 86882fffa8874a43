"""From predictions and an index to a page that says how well models do, in one call.

The page asks nothing of the network; its figures lie beside it. Every text that comes from a file, a name or
a person is escaped.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from mammomil.evaluate import (
    Split,
    evaluate_model,
    evaluate_predictions,
    evaluation_content,
    evaluation_text,
    write_rows,
)
from mammomil.evaluation_figures import (
    FROC_RESAMPLES,
    QUESTIONS,
    ModelFigures,
    PairFigures,
    model_figures,
    pair_figures,
    sided,
)
from mammomil.evaluation_plots import Shown, draw_model, draw_models
from mammomil.files import InputError, atomic_path, provenance, read_json, sha256, write_json
from mammomil.items import safe_name
from mammomil.judging import Interval, ModelEvaluation
from mammomil.report import REGIONS_LISTED, _safe, _table
from mammomil.types import FINDINGS
from mammomil.weights import codes_of

ERRORS_SHOWN = 10  # of each kind and finding


def evaluate_to_folder(
    index_path: str | Path,
    model: str | Path | None = None,
    predictions: str | Path | None = None,
    split: Split | None = None,
    out: str | Path | None = None,
    mask_iom: bool = False,
) -> int:
    """Print the figures of a model, or of predictions made before, and write a report to `out` if given.

    Args:
        index_path: an index.csv or its folder.
        model: a model folder, see `evaluate_model`; or
        predictions: a folder that `mammomil predict` wrote, see `evaluate_predictions`.
        split: judge the images of this split only; None is all.
        out: folder of the report, see `write_evaluation_report`; made if it is not there.
        mask_iom: see `evaluate_model`.

    Returns:
        The exit status of a program: 0; 1 if an image failed.

    Raises:
        InputError: not exactly one of `model` and `predictions` is given, one of them or the index cannot be
            used, or `out` cannot be written or holds the predictions.
    """
    if (model is None) == (predictions is None):
        raise InputError("give either a model folder (--model) or a folder of predictions (--predictions).")
    if out is not None:
        if predictions is not None and Path(out).resolve() == Path(predictions).resolve():
            raise InputError(f"{out}: this folder holds the predictions' own report. Choose another --out.")
        with atomic_path(probe := Path(out, ".writable")):  # says so now, and not after an hour
            pass
        probe.unlink()
    path = Path(index_path)
    facts = {"split": split, "mask_iom": mask_iom}
    if model is not None:
        evaluations = [evaluate_model(model, index_path, split, mask_iom)]
        facts["weights_sha256"] = read_json(Path(model, "config.json")).get("weights_sha256")
        facts["codes"] = codes_of(model)
    else:
        evaluations = evaluate_predictions(predictions, index_path, split, mask_iom)
        files = [Path(predictions, name) for name in ("predictions.csv", "regions.csv")]
        facts |= {f"{file.stem}_sha256": sha256(file) for file in files if file.exists()}
        beside = Path(predictions, "provenance.json")
        facts["predicted"] = read_json(beside) if beside.exists() else None
    print("\n\n".join(map(evaluation_text, evaluations)))
    if out is not None:
        facts["index_sha256"] = sha256(path / "index.csv" if path.is_dir() else path)
        whence = provenance(command="evaluate", **facts)
        print(f"report: {write_evaluation_report(evaluations, out, whence, predictions)}")
    return int(any(evaluation.failures for evaluation in evaluations))


def write_evaluation_report(
    evaluations: Sequence[ModelEvaluation],
    out: str | Path,
    facts: Mapping[str, Any],
    predictions: str | Path | None = None,
) -> Path:
    """Compute the figures of evaluations, draw them, and write page, JSON and CSV.

    Writes `report.html` with its `figures/`, `evaluation.json` (all figures, failures, provenance) and
    `evaluation.csv` (a row per model and image).

    Args:
        evaluations: of one or more models on the same images.
        out: the folder.
        facts: provenance, as JSON can hold it.
        predictions: the folder they were read from; its `panels/` are linked to.

    Returns:
        The path of the page.
    """
    out = Path(out)
    pairs = [pair for two in combinations(evaluations, 2) for pair in pair_figures(*two)]
    parts, content, all_figures = [], [], []
    for number, evaluation in enumerate(evaluations, 1):
        figures = model_figures(evaluation)
        notes = left_out(evaluation, figures, stored=predictions is not None)
        lists = {name: [dataclasses.asdict(one) for one in part] for name, part in figures._asdict().items()}
        content.append({**evaluation_content(evaluation), **lists, "left_out": notes})
        all_figures.append(figures)
        parts += [
            f'<h2 id="model-{number}">{_safe(evaluation.model)}</h2>',
            _ranks(figures), _places(evaluation, figures),
            _gallery(draw_model(evaluation, figures, out, f"model-{number}")),
            _errors(evaluation, out, predictions), _left_out(notes), _failures(evaluation),
        ]  # fmt: skip
    whole = {"models": content, "pairs": [dataclasses.asdict(pair) for pair in pairs], "provenance": facts}
    write_json(out / "evaluation.json", whole)
    write_rows([{"model": e.model, **row} for e in evaluations for row in e.rows], out / "evaluation.csv")
    start = [_intro(evaluations, facts), _summary(evaluations, all_figures)]
    if pairs:
        start += [_compared(pairs), _gallery(draw_models(evaluations, out))]
    template = Template((Path(__file__).parent / "static" / "evaluation.html").read_text(encoding="utf-8"))
    page = template.substitute(
        body="\n".join(filter(None, start + parts)),
        froc_resamples=FROC_RESAMPLES,
        provenance=_safe(json.dumps(facts, indent=2, default=str)),
    )
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / "report.html"


def left_out(evaluation: ModelEvaluation, figures: ModelFigures, stored: bool) -> list[str]:
    """Say in sentences what figures do not rest on, and why.

    Args:
        evaluation: of one model.
        figures: its figures.
        stored: the predictions were read from a folder.
    """
    rows, notes = evaluation.rows, []
    for maps in figures.maps:
        name, f = maps.finding, evaluation.findings[maps.finding]
        seen = sum(row.get(f"peak_hit_{name}") is not None for row in rows)
        for count, words in (
            (evaluation.images - f.known, f"images have no known label for {name}."),
            (f.unplaced, f"{name} lesions have no box: they can be neither hit nor missed."),
            (f.tied_peaks, f"maps of {name} have tied peaks; the mean of the tied cells is taken."),
            (seen - maps.images, f"maps of {name} are not compared with masks: a lesion there has none."),
        ):
            notes += [f"{count} {words}"] * (count > 0)
    if lacking := len(rows) - len(sided(evaluation)):
        notes.append(f"{lacking} images of unknown side are in no breast and no exam.")
    if all(row.get(f"peak_hit_{name}") is None for row in rows for name in FINDINGS):
        if evaluation.ranks_regions or not stored:
            notes.append("No map is judged: the model has none, or no lesion has a place.")
        else:
            notes.append("No map is judged. To have them, predict again with mammomil predict --save-maps.")
    if not figures.froc:
        notes.append("There are no regions, so there is no FROC curve.")
    for froc in figures.froc:
        if froc.whole_to_fppi is not None:
            exact = "" if froc.whole_to_fppi > 1 else ", so sensitivity at 1 FPPI is not exact"
            notes.append(
                f"FROC of {QUESTIONS[froc.question]}: regions.csv lists {REGIONS_LISTED} regions per image "
                f"and finding. Below a region score of {froc.cut_below:.3g} the curve misses others; it is "
                f"whole up to {froc.whole_to_fppi:.2f} FPPI{exact}. The option --model gives the whole curve."
            )
    return notes


def _figure(value: float | None = None, interval: Interval | None = None) -> str:
    if value is None:
        return "-"
    span = f' <span class="ci">({interval[0]:.3f} to {interval[1]:.3f})</span>' if interval else ""
    return f"{value:.3f}{span}"


def _row(head: str, *cells: Any) -> str:
    return f'<th scope="row">{head}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)


def _read(part: str) -> str:
    return f'<small><a href="#read-{part}">How to read it</a></small>'


def _intro(evaluations: Sequence[ModelEvaluation], facts: Mapping[str, Any]) -> str:
    phantoms = (
        "<p><strong>All images are phantoms</strong> (synthetic, no patient is in them): these figures say "
        "nothing about real mammograms.</p>"
    )
    only = {row.get("source") for e in evaluations for row in e.rows} == {"phantom"}
    split = f"split {facts['split']}" if facts.get("split") else "all splits"
    count = f"{len(evaluations)} model{'s' * (len(evaluations) > 1)}"
    return phantoms * only + f"<p>{count}, {_safe(split)}. In brackets are 95 % intervals over patients.</p>"


def _summary(evaluations: Sequence[ModelEvaluation], all_figures: Sequence[ModelFigures]) -> str:
    body = []
    for number, (e, figures) in enumerate(zip(evaluations, all_figures, strict=True), 1):
        areas = {r.question: _figure(r.auc, r.auc_95ci) for r in figures.ranks if r.level == "image"}
        froc = {f.question: f.at_one_fppi["image, of classified"] or () for f in figures.froc}
        hits = [_figure(*froc.get(question, ())) for question in ("malignant", "any")]
        m = e.findings["malignant"]
        body.append(
            _row(
                f'<a href="#model-{number}">{_safe(e.model)}</a>', e.images, e.patients, len(e.failures),
                areas["malignant"], areas["any"], _figure(m.region_hit, m.region_hit_95ci), *hits,
            )
        )  # fmt: skip
    heads = ("Model", "Images", "Patients", "Failed", "AUC, M vs BN", "AUC, MB vs N", "Top region hits M",
             "At 1 FPPI, M vs BN", "At 1 FPPI, MB vs N")  # fmt: skip
    return _table("Summary", heads, body)


def _compared(pairs: Sequence[PairFigures]) -> str:
    body = [
        _row(
            f"{_safe(p.first)} less {_safe(p.second)}", QUESTIONS[p.question], p.known, _figure(p.auc_first),
            _figure(p.auc_second), _figure(p.difference, p.difference_95ci),
            "-" if p.p is None else f"{p.p:.3g}",
        )
        for p in pairs
    ]  # fmt: skip
    heads = ("Models", "Question", "Images", "AUC, first", "AUC, second", "Difference", "p (DeLong)")
    return f"<h2>Models compared {_read('pairs')}</h2>" + _table("Models compared", heads, body)


def _ranks(figures: ModelFigures) -> str:
    body = [
        _row(
            r.level, QUESTIONS[r.question], f"{r.positive} of {r.known}", _figure(r.auc, r.auc_95ci),
            *map(_figure, dataclasses.astuple(r)[6:]),
        )
        for r in figures.ranks
    ]  # fmt: skip
    heads = ("Level", "Question", "Positive", "AUC", "AP", "pAUC ratio", "Spec. at sens. .85",
             "Spec. at sens. .90", "Brier", "Calibration error")  # fmt: skip
    return f"<h3>Who has a finding {_read('ranks')}</h3>" + _table("Who has a finding", heads, body)


def _places(evaluation: ModelEvaluation, figures: ModelFigures) -> str:
    body = []
    for maps in figures.maps:
        f, shares = evaluation.findings[maps.finding], (maps.precision, maps.recall)
        hits = _figure(f.region_hit, f.region_hit_95ci), _figure(f.peak_hit, f.peak_hit_95ci)
        area = _figure(maps.f1, maps.f1_95ci), *map(_figure, shares)
        body.append(_row(maps.finding, f.located, *hits, maps.images, *area))
    heads = ("Finding", "Images with lesion", "Top region hits", "Map peaks in box", "Images with mask",
             "F1", "Precision", "Recall")  # fmt: skip
    text = f"<h3>Where it is {_read('places')}</h3>" + _table("Where it is", heads, body)
    if not figures.froc:
        return text
    body = [
        _row(QUESTIONS[f.question], f.placed, *(_figure(*(value or ())) for value in f.at_one_fppi.values()))
        for f in figures.froc
    ]
    variants = [f"Per {name}" for name in figures.froc[0].at_one_fppi]
    heads = ("Question", "Positive images with lesion", *variants)
    return text + "<h4>Sensitivity at 1 FPPI</h4>" + _table("Sensitivity at 1 FPPI", heads, body)


def _gallery(shown: Sequence[Shown]) -> str:
    cards = [
        f'<figure><img src="{_safe(quote(one.path))}" alt="{_safe(one.alt)}" width="{one.size[0]}" '
        f'height="{one.size[1]}" loading="lazy"><figcaption><b>{_safe(one.title)}.</b> {_read(one.kind)}'
        "</figcaption></figure>"
        for one in shown
    ]
    return f'<div class="figures">{"".join(cards)}</div>' if cards else ""


def _errors(evaluation: ModelEvaluation, out: Path, predictions: str | Path | None) -> str:
    """List the images that a model is most wrong about, with links to their panels."""
    found = []
    for finding in FINDINGS:
        for truth, kind in ((1, "missed"), (0, "false alarm")):
            off = [(abs(truth - r[f"p_{finding}"]), r) for r in evaluation.rows if r[finding] == truth]
            worst = sorted(off, key=lambda one: -one[0])[:ERRORS_SHOWN]
            found += [(distance, finding, kind, row) for distance, row in worst]
    body = []
    for distance, finding, kind, row in sorted(found, key=lambda one: -one[0]):
        name = _safe(row["image_id"])
        panel = f"{safe_name(row['image_id'])}.{safe_name(evaluation.model)}.png"
        if predictions is not None and (path := Path(predictions, "panels", panel)).is_file():
            link = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
            name = f'<a href="{_safe(quote(link))}">{name}</a>'
        hits = [row.get(f"{part}_hit_{finding}") for part in ("region", "peak")]
        words = ["-" if hit is None else ("misses", "hits")[hit] for hit in hits]
        view = _safe(f"{row['laterality']} {row['view']}".strip() or "unknown")
        numbers = f"{row[f'p_{finding}']:.3f}", f"{distance:.3f}"
        body.append(_row(name, view, finding, kind, *numbers, *words))
    if not body:
        return ""
    heads = ("Image", "View", "Finding", "Kind", "Probability", "Distance", "Top region", "Map peak")
    table = _table("Largest errors", heads, body).replace("<table>", '<table class="sortable">')
    return (
        f"<h3>Largest errors {_read('errors')}</h3><details><summary>The {len(body)} answers farthest "
        f"from the truth, at most {ERRORS_SHOWN} of each kind and finding</summary>{table}</details>"
    )


def _left_out(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{_safe(note)}</li>" for note in notes) or "<li>Nothing.</li>"
    return f"<h3>What was left out</h3><ul>{lines}</ul>"


def _failures(evaluation: ModelEvaluation) -> str:
    if not (failures := evaluation.failures):
        return ""
    lines = "".join(f"<li><code>{_safe(f.path)}</code> {_safe(f.reason)}</li>" for f in failures)
    opened = " open" * (len(failures) <= ERRORS_SHOWN)
    return (
        f'<section class="failed"><h3>Could not be used: {len(failures)}</h3><details{opened}><summary>'
        f"Which, and why</summary><ul>{lines}</ul></details></section>"
    )
