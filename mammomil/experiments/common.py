"""What experiments share: settings, phantoms, training runs that are done once, and the form of a result."""

import csv
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mammomil.files import InputError, atomic_path, provenance, read_json, sha256, write_json
from mammomil.index import Index, read_index, split_patients, write_index
from mammomil.jobs import run_training
from mammomil.plots import save_figure
from mammomil.recipes import Run, Scale

PHANTOM_SEED = 5_000_000  # the demo's are 1,000,000 on, those of warm-start 2,000,000 to 4,000,000 on
_NOT_SETTINGS = ("out", "work", "workers", "cache", "codes", "memory_gb", "resume")


class Stopped(Exception):
    """Training was interrupted; everything is saved, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What every experiment on images needs to know."""

    out: Path
    """Folder of the table, the figures and their provenance."""
    scale: Scale = "quick"
    """Sets the defaults of everything else: `quick` takes minutes on two CPU cores, `full` is the paper's
    size, for a GPU."""
    data: Path | None = None
    """The index.csv of the images, or its folder; by default phantoms are drawn."""
    work: Path = Path("runs/work")
    """Folder of phantoms, codes and training runs; experiments that share it share what they have in
    common."""
    exams: int = 200
    """Phantoms drawn where no data are named, four images each."""
    seed: int = 0
    """Seed of phantoms, folds, weights and everything else that is drawn."""

    def __post_init__(self):
        if self.exams < 1 or self.seed < 0:
            raise ValueError("exams must be 1 or more and seed 0 or more.")


def keep_settings(config: Any) -> None:
    """Write the settings of a new experiment, or compare them with those of the one to go on with.

    Raises:
        InputError: `config.out` holds an experiment with other settings.
    """
    path = config.out / "config.json"
    settings = json.loads(json.dumps(settings_of(config)))
    if not path.exists():
        write_json(path, settings)
    known = read_json(path)
    other = [f"{name} {known.get(name)}" for name, value in settings.items() if known.get(name) != value]
    if other:
        raise InputError(
            f"{config.out}: holds an experiment with {', '.join(other)}. Give the same, or another --out."
        )


def settings_of(config: Any) -> dict[str, Any]:
    """Return the fields of a config that decide what comes out, as JSON can hold them: no place on a disk."""
    return {
        name: value.name if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in _NOT_SETTINGS
    }


def exam_index(config: Experiment, shares: Mapping[str, float] | None = None) -> Path:
    """Return the index an experiment works on: its data, or phantoms that are drawn if they are not there.

    Args:
        config: the experiment.
        shares: share of the patients of each split, for phantoms and where an index names none; None is 0.6
            train, 0.2 val and 0.2 test.
    """
    folder = config.data
    if folder is None:
        from mammomil.phantom_set import write_phantoms

        folder = config.work / f"phantoms-{config.scale}-{config.exams}-{config.seed}"
        if not (folder / "index.csv").exists():
            text = f"Drawing {config.exams} synthetic exams (phantoms: no patient is in them)"
            print(text, file=sys.stderr)  # as progress: a notebook prints the same when they are there
            write_phantoms(folder, config.exams, config.scale, PHANTOM_SEED + config.seed, workers=0)
    index = read_index(folder)
    if config.data is not None and (index.images["split"] != "").any():
        return folder
    shares = {"train": 0.6, "val": 0.2, "test": 0.2} if shares is None else dict(shares)
    name = "-".join(f"{round(100 * share)}" for share in shares.values())
    target = config.work / "splits" / f"{index_key(folder)[:8]}-{name}-{config.seed}"
    if not (target / "index.csv").exists():
        write_index(index._replace(images=split_patients(index.images, shares, config.seed)), target)
    return target


def train_once(run: Run, work: Path, label: str, progress: bool = True) -> Path:
    """Train a run unless one with the same settings and data is finished, and return its folder.

    The folder's name ends in a checksum of settings, tables and starting weights: what was trained for one
    experiment serves all others that would train the same.

    Args:
        run: its `out` does not count.
        work: the folder of all runs is in here.
        label: the beginning of the folder's name.
        progress: show bars and a line per epoch; else one line at the end.

    Raises:
        Stopped: by Ctrl-C; the next call goes on.
        InputError: see `run_training`.
    """
    settings = {k: v for k, v in dataclasses.asdict(run).items() if k not in (*_NOT_SETTINGS, "data")}
    settings["index"] = index_key(run.data)
    if (start := getattr(run, "warm_start", None)) is not None:
        settings["warm_start"] = read_json(start / "config.json").get("weights_sha256")
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    out = work / "runs" / f"{label}-{key[:10]}"
    if not (out / "result.json").exists():  # written last
        print(f"Training {out.name}", flush=True)
        result = run_training(dataclasses.replace(run, out=out, resume=True), progress)
        if result.interrupted:
            raise Stopped
        if not progress:
            seconds = sum(row["seconds"] for row in result.history)
            print(f"  {len(result.history)} epochs in {seconds:.0f} s", flush=True)
    return out


def trained(folders: Sequence[Path]) -> dict[str, str | None]:
    """Say at which commit models were trained, for the provenance of a result; of run or model folders."""
    commits = {}
    for folder in folders:
        path = (folder / "model" if (folder / "model").is_dir() else folder) / "provenance.json"
        commits[folder.name] = read_json(path).get("commit") if path.is_file() else None
    return commits


def index_key(folder: Path) -> str:
    """Checksum of the tables of an index."""
    folder = folder if folder.is_dir() else folder.parent
    tables = [folder / name for name in ("index.csv", "findings.csv")]
    return hashlib.sha256("".join(sha256(t) for t in tables if t.exists()).encode()).hexdigest()


def describe_data(index: Index, config: Experiment) -> str:
    """Say in a sentence what images a result is about, and whether they are phantoms."""
    images = index.images
    counts = ", ".join(f"{int((images[name] == 1).sum())} {name}" for name in ("malignant", "benign"))
    what = "phantom images" if set(images["source"]) == {"phantom"} else "images"
    drawn = "" if config.data is not None else f", drawn with seed {PHANTOM_SEED + config.seed}"
    text = f"{len(images)} {what} of {images['patient_id'].nunique()} patients ({counts}{drawn})."
    if what == "phantom images":
        text += " Phantoms only: this says nothing about real mammograms."
    return text


class Picture(NamedTuple):
    """A figure of a result: the name of its file without ending, and what it shows in words."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""


class Claim(NamedTuple):
    """An ordering of a paper, and what came out here.

    Attributes:
        text: the claim, such as "Cls-Det-RS above DB-Baseline, AUROC of M vs BN".
        difference: ours, positive when it goes the paper's way; None where it cannot be computed.
        interval: its 95 % interval over patients.
        paper: the paper's difference, or None.
    """

    text: str
    difference: float | None
    interval: tuple[float, float] | None
    paper: float | None = None

    def verdict(self) -> str:
        """Say whether the ordering holds: only an interval without 0 is called an answer."""
        paper = "" if self.paper is None else f" (paper {self.paper:+.3f})"
        if self.difference is None or self.interval is None:
            return f"{self.text}{paper}: cannot be computed here."
        low, high = self.interval
        found = f"{self.difference:+.3f}, 95 % {low:+.3f} to {high:+.3f}"
        if low > 0:
            word = "holds"
        elif high < 0:
            word = "is reversed"
        else:
            word = "cannot be told from no difference"
            word += ", same direction" if self.difference > 0 else ", other direction"
        return f"{self.text}{paper}: **{word}** ({found})."


def write_results(
    config: Any,
    name: str,
    title: str,
    intro: str,
    rows: Sequence[Mapping[str, Any]],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    pictures: Sequence[Picture],
    reading: Sequence[str],
    **facts: Any,
) -> Path:
    """Write an experiment's result: NAME.csv, pictures, provenance.json, and last NAME.md.

    Args:
        config: the experiment; `config.out` is the folder.
        name: name of the experiment.
        title: title of the page.
        intro: a paragraph: what was done on what.
        rows: every number in full, for machines; one key set.
        tables: heading to (column heads, rows of text), for people.
        pictures: figures with words for those who do not see them.
        reading: paragraphs that say what the numbers mean and do not mean.
        facts: what provenance should say beside versions, machine and settings.

    Returns:
        The path of NAME.md.
    """
    out = config.out
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_path(out / f"{name}.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for picture in pictures:
        save_figure(picture.figure, out / f"{picture.name}.png")
    where = provenance(command=f"experiment {name}", settings=settings_of(config), **facts)
    write_json(out / "provenance.json", where)
    lines = [f"# {title}", "", intro, ""]
    for heading, (heads, body) in tables.items():
        lines += [f"## {heading}", "", markdown_table(heads, body), ""]
    for picture in pictures:
        lines += [
            f"![{picture.alt}]({picture.name}.png)",
            "",
            *([f"*{picture.caption}*", ""] if picture.caption else []),
        ]
    lines += ["## Reading", "", *(f"- {text}" for text in reading), "", "## Where this comes from", ""]
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    settings = ", ".join(f"{k} {v}" for k, v in where["settings"].items() if not isinstance(v, dict))
    lines += [
        f"`mammomil experiment {name}` with {settings}.",
        f"Commit {where['commit']}; {versions}; {where['device']}, {where['threads']} threads; "
        f"{where['date']}.",
        "For teaching and research; not a medical device.",
    ]  # fmt: skip
    path = out / f"{name}.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; a bar in a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure for a table: a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
