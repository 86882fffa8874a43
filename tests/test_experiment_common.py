import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import mammomil.experiments.common as common
import mammomil.phantom_set as phantom_set
from mammomil.experiments.common import (
    Claim,
    Experiment,
    Picture,
    Stopped,
    exam_index,
    keep_settings,
    markdown_table,
    number,
    settings_of,
    train_once,
    write_results,
)
from mammomil.files import InputError, write_json
from mammomil.index import read_index, select, split_patients, write_index
from mammomil.recipes import preset
from mammomil.train import FitResult
from mammomil.weights import SHIPPED


@dataclass(frozen=True, kw_only=True)
class Config(Experiment):
    out: Path = Path("runs/test")


def test_settings_are_kept_and_other_ones_refused(tmp_path):
    config = Config(out=tmp_path, work=tmp_path / "work", seed=3)
    keep_settings(config)
    keep_settings(dataclasses.replace(config, work=tmp_path / "elsewhere"))  # a place is no setting
    with pytest.raises(InputError, match="holds an experiment with seed 3"):
        keep_settings(dataclasses.replace(config, seed=4))
    assert str(tmp_path) not in json.dumps(settings_of(dataclasses.replace(config, data=tmp_path / "x")))


def test_phantoms_are_drawn_once_and_split_by_patient(tmp_path, monkeypatch):
    def draw(out, exams, scale, seed, **_):
        drawn.append((exams, scale, seed))
        index = read_index(SHIPPED)
        write_index(
            select(index, index.images["exam_id"].isin(index.images["exam_id"].unique()[:exams])), out
        )

    drawn = []
    monkeypatch.setattr(phantom_set, "write_phantoms", draw)
    config = Config(out=tmp_path, work=tmp_path / "work", exams=10, seed=7)
    folder = exam_index(config, {"train": 0.5, "val": 0.2, "test": 0.3})
    images = read_index(folder).images
    assert (images.groupby("patient_id")["split"].nunique() == 1).all()
    expected = split_patients(images, {"train": 0.5, "val": 0.2, "test": 0.3}, 7)  # the experiment's seed
    assert images["split"].tolist() == expected["split"].tolist()
    assert images["split"].tolist() != split_patients(images, seed=7)["split"].tolist()
    first = (folder / "index.csv").read_bytes()
    assert exam_index(config, {"train": 0.5, "val": 0.2, "test": 0.3}) == folder
    assert (folder / "index.csv").read_bytes() == first
    assert exam_index(config) != folder  # other shares
    assert drawn == [(10, "quick", 5_000_007)]
    own = dataclasses.replace(config, data=folder)
    assert exam_index(own) == folder  # splits of one's own data stay


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def fake(run, progress=True):
        trained.append(run.out)
        write_json(run.out / "result.json", {})
        return FitResult([], interrupted=False)

    monkeypatch.setattr(common, "run_training", fake)
    index = tmp_path / "index"
    write_index(read_index(SHIPPED), index)
    run = preset("gmic", "quick", index, Path())
    first = train_once(run, tmp_path / "work", "gmic")
    assert first.name.startswith("gmic-")
    assert (
        train_once(dataclasses.replace(run, out=Path("x"), memory_gb=9.0), tmp_path / "work", "gmic") == first
    )
    assert trained == [first]
    train = dataclasses.replace(run.train, seed=1)
    assert train_once(dataclasses.replace(run, train=train), tmp_path / "work", "gmic") != first
    table = read_index(index)
    write_index(table._replace(images=table.images.assign(split="train")), index)  # the same path, other data
    assert train_once(run, tmp_path / "work", "gmic") != first
    warm = dataclasses.replace(run, warm_start=SHIPPED / "weights" / "gmic-quick")
    assert train_once(warm, tmp_path / "work", "gmic") not in trained[:3]
    assert len(set(trained)) == 4


def test_an_interrupted_run_stops_the_experiment_and_goes_on(tmp_path, monkeypatch):
    index = tmp_path / "index"
    write_index(read_index(SHIPPED), index)
    monkeypatch.setattr(common, "run_training", lambda run, progress: FitResult([], interrupted=True))
    with pytest.raises(Stopped):
        train_once(preset("gmic", "quick", index, Path()), tmp_path, "gmic")


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Claim("A above B", 0.1, (0.02, 0.2), 0.05), "A above B (paper +0.050): **holds** (+0.100"),
        (Claim("A above B", -0.1, (-0.2, -0.02)), "**is reversed**"),
        (Claim("A above B", 0.1, (-0.02, 0.2)), "**cannot be told from no difference, same direction**"),
        (Claim("A above B", -0.1, (-0.2, 0.02)), "other direction"),
        (Claim("A above B", None, None), "A above B: cannot be computed here."),
    ],
)
def test_only_an_interval_without_0_is_called_an_answer(claim, words):
    assert words in claim.verdict()


def test_results_are_a_table_pictures_provenance_and_a_page(tmp_path):
    config = Config(out=tmp_path / "out", data=tmp_path / "private" / "index.csv")
    rows = [{"model": "a|b", "value": 0.123456789, "low": None}, {"model": "c", "value": 1.0, "low": 0.5}]
    path = write_results(
        config, "trial", "A trial", "Phantoms.", rows, {"AUC": (("model", "AUC"), [["a|b", "0.12"]])},
        [Picture("curve", Figure(), "A curve that rises", "Caption.")], ["It means little."], runs=["gmic-1"],
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    for part in ("# A trial", "Phantoms.", "## AUC", "| a\\|b | 0.12 |", "![A curve that rises](curve.png)",
                 "*Caption.*", "- It means little.", "not a medical device"):  # fmt: skip
        assert part in text
    with (tmp_path / "out" / "trial.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"model": "a|b", "value": "0.123456789", "low": ""}, {"model": "c", "value": "1.0", "low": "0.5"}
        ]  # fmt: skip
    where = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert where["runs"] == ["gmic-1"]
    assert where["settings"]["seed"] == 0
    assert {"commit", "device", "versions", "date"} <= set(where)
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000


def test_numbers_and_cells():
    assert [number(v) for v in (None, float("nan"), 0.12345)] == ["-", "-", "0.123"]
    assert markdown_table(("a",), [["x"]]) == "| a |\n| --- |\n| x |"
