import csv
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from mammomil.cli import main
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.metrics import bootstrap_ci
from mammomil.preprocess import PreprocessConfig
from mammomil.weights import save_model

SAMPLES = Path(__file__).parents[1] / "data_samples"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """2000 resamples take most of a small run's time; test_metrics tests the intervals themselves."""
    plain = inspect.unwrap(bootstrap_ci)
    monkeypatch.setattr(plain, "__defaults__", tuple(20 if n == 2000 else n for n in plain.__defaults__))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, build_gmic(GMICConfig.quick()), PreprocessConfig.quick(), {"data": "nothing"})
    return folder


def run(capsys, *args: str | Path) -> tuple[int, str, str]:
    status = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_lists_every_command_and_no_arguments_is_a_wrong_command_line(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in ("demo", "phantom", "index", "train", "predict", "evaluate", "experiment"):
        assert f"\n  {command} " in out
    assert "Not a medical device" in out
    assert run(capsys)[0] == 2
    assert run(capsys, "--version")[1].startswith("mammomil ")


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    status, _, err = run(capsys, "pedict")
    assert status == 2
    assert "no command 'pedict'. Did you mean 'predict'?" in err


@pytest.mark.parametrize(
    "args",
    [["demo"], ["phantom"], ["index"], ["index", "mini-mias"], ["index", "folder"],
     ["train", "gmic"], ["train", "dual-branch"], ["train", "classifier"], ["predict"],
     ["evaluate"], ["experiment", "warm-start"]],
)  # fmt: skip
def test_every_command_explains_every_option(args, capsys):
    with pytest.raises(SystemExit) as done:
        main([*args, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert "usage: mammomil" in text
    merged = " ".join(text.replace("│", " ").split())
    bare = re.findall(r"--[\w.-]+ (?:[A-Z]+|\{[^}]*\}(?:\|PATH)?) \((?:default|required)", merged)
    assert bare == []


def test_the_scale_sets_the_defaults(capsys):
    for scale, height in (("quick", "368"), ("full", "2944")):
        with pytest.raises(SystemExit):
            main(["train", "gmic", "--scale", scale, "--help"])
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"Rows of the canvas. (default: {height})" in text


def test_index_train_predict_as_a_person_would(tmp_path, capsys):
    """The three commands of the README on the shipped phantoms, with a small budget."""
    labels = tmp_path / "labels.csv"
    folder = tmp_path / "images"
    folder.mkdir()
    for image in sorted((SAMPLES / "images").glob("*.png"))[:20]:
        shutil.copy(image, folder)
    images = sorted(folder.glob("*.png"))
    with (SAMPLES / "index.csv").open() as file:
        known = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    with labels.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "benign", "malignant", "patient_id"])
        for image in images:
            row = known[image.name]
            table.writerow([image.name, row["benign"], row["malignant"], row["patient_id"]])
    status, out, _ = run(capsys, "index", "folder", folder, "--labels", labels, "--out", tmp_path / "index")
    assert status == 0
    assert f"{len(images)} images of 5 patients" in out
    index = tmp_path / "index" / "index.csv"
    before = index.read_bytes()
    status, _, err = run(capsys, "index", "folder", folder, "--out", tmp_path / "index")
    assert status == 1
    assert "exists already. Replace it with --force" in err
    assert index.read_bytes() == before
    train = ["train", "gmic", "--data", index, "--out", tmp_path / "run", "--train.epochs", "1",
             "--model.backbone.widths", "4", "8", "--model.backbone.strides", "2", "2"]  # fmt: skip
    status, out, _ = run(capsys, *train)
    assert status == 0
    assert "epoch 1/1" in out
    status, _, err = run(capsys, *train)
    assert status == 1
    assert "holds a run already. Continue it with --resume" in err
    few = images[:2]
    status, _, _ = run(
        capsys, "predict", "--model", tmp_path / "run" / "model", "--out", tmp_path / "p", *few
    )
    assert status == 0
    with (tmp_path / "p" / "predictions.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == [image.name for image in few]
    assert (tmp_path / "p" / "report.html").exists()


def mammogram(path: Path, **changes) -> None:
    """Write a small mammogram as uncompressed DICOM."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = np.zeros((200, 140), np.uint16)
    pixels[30:170, :90] = np.linspace(900, 1500, 90).astype(np.uint16)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PresentationIntentType = "MG", "FOR PRESENTATION"
    data.ImageLaterality, data.ViewPosition = "L", "CC"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def test_every_kind_of_bad_file_is_named_and_the_rest_is_done(tmp_path, capsys, model):
    folder = tmp_path / "in"
    folder.mkdir()
    mammogram(folder / "good.dcm")
    mammogram(folder / "good2.dcm")
    whole = (folder / "good.dcm").read_bytes()
    (folder / "truncated.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "text.dcm").write_text("Dear radiologist, the image is attached.")
    mammogram(folder / "many.dcm", NumberOfFrames=3, PixelData=bytes(3 * 200 * 140 * 2))
    mammogram(folder / "black.dcm", PixelData=bytes(200 * 140 * 2))
    mammogram(folder / "raw.dcm", PresentationIntentType="FOR PROCESSING")
    Image.fromarray(np.full((100, 80), np.nan, np.float32)).save(folder / "nan.tif")
    Image.fromarray(np.full((1, 1), 7, np.uint8)).save(folder / "pixel.png")
    shutil.copy(folder / "good2.dcm", folder / "wrong_extension.png")  # content decides: this one can be read
    bad = ["truncated", "empty", "text", "many", "black", "raw", "nan", "pixel"]
    status, _, err = run(capsys, "predict", "--model", model, "--out", tmp_path / "out", folder)
    assert status == 1
    with (tmp_path / "out" / "predictions.csv").open() as file:
        done = {Path(row["path"]).stem for row in csv.DictReader(file)}
    assert done == {"good", "good2", "wrong_extension"}
    with (tmp_path / "out" / "failures.csv").open() as file:
        reasons = {Path(row["path"]).stem: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == set(bad)
    for name in bad:
        assert f"{name}." in err
        assert len(reasons[name]) > 20
        assert "unexpected" not in reasons[name], reasons[name]
    assert "Traceback" not in err


def index_of(tmp_path: Path, change) -> Path:
    with (SAMPLES / "index.csv").open() as file:
        rows = list(csv.DictReader(file))[:6]
    for row in rows:
        row["path"] = os.path.relpath(SAMPLES / row["path"], tmp_path)
    columns = change(rows) or list(rows[0])
    with (tmp_path / "index.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return tmp_path / "index.csv"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: [c for c in rows[0] if c != "malignant"], "malignant"),
        (lambda rows: rows[2].update(benign="2"), "line 4"),
        (lambda rows: rows[3].update(image_id=rows[0]["image_id"]), "line 5"),
        (
            lambda rows: [r.update(split=s) for r, s in zip(rows, ("train", "val"), strict=False)] and None,
            "split",
        ),
        (lambda rows: rows[1].update(laterality="left"), "laterality"),
    ],
    ids=["missing column", "label 2", "duplicate id", "patient in two splits", "laterality"],
)
def test_a_bad_index_is_refused_with_line_and_column(tmp_path, capsys, change, sentence):
    path = index_of(tmp_path, change)
    status, _, err = run(capsys, "train", "gmic", "--data", path, "--out", tmp_path / "run")
    assert status == 1
    assert "index.csv" in err
    assert sentence in err
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_said_before_any_work(tmp_path, capsys, model):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    image = next((SAMPLES / "images").glob("*.png"))
    for args in (
        ["predict", "--model", model, "--out", blocked / "out", image],
        ["train", "gmic", "--data", SAMPLES, "--out", blocked / "run"],
        ["phantom", "--out", blocked / "set", "--exams", "1"],
    ):
        status, _, err = run(capsys, *args)
        assert status == 1, args
        assert str(blocked) in err
    assert blocked.read_text() == "in the way"


def test_models_that_do_not_fit_or_hold_code_are_refused(tmp_path, capsys, model):
    image = next((SAMPLES / "images").glob("*.png"))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config["config"]["mil"]["attention_width"] = 3
    (other / "config.json").write_text(json.dumps(config))
    status, _, err = run(capsys, "predict", "--model", other, "--out", tmp_path / "o", image)
    assert (status, "of another architecture" in err) == (1, True)
    (other / "weights.safetensors").write_bytes(pickle.dumps({"a": 1}))
    status, _, err = run(capsys, "predict", "--model", other, "--out", tmp_path / "o", image)
    assert (status, "cannot be read as safetensors" in err) == (1, True)
    status, _, err = run(capsys, "predict", "--model", tmp_path, "--out", tmp_path / "o", image)
    assert (status, "not a model folder" in err) == (1, True)
    assert not (tmp_path / "o").exists()
    status, _, err = run(
        capsys, "predict", "--model", model, "--out", tmp_path / "o", tmp_path / "nowhere.png", image
    )
    assert (status, "nowhere.png" in err) == (1, True)


def test_a_wrong_value_of_an_option_is_explained(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["train", "gmic", "--data", str(SAMPLES), "--out", str(tmp_path / "r"), "--model.top-t", "20"])
    assert done.value.code == 2
    assert "top_t is a fraction in (0, 1], not 20.0" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_real_films_become_an_index(tmp_path, capsys, real_data):
    status, out, _ = run(
        capsys, "index", "mini-mias", real_data / "mini-mias" / "all-mias", "--out", tmp_path / "mias"
    )
    assert status == 0
    assert "204 images of 102 patients" in out


@pytest.mark.slow
def test_a_real_ge_file_a_png_exam_and_a_film_are_predicted(tmp_path, capsys, real_data, model):
    paths = [
        real_data / "dicom" / "GH133.dcm",
        real_data / "nyu-gmic-sample" / "images",
        real_data / "mini-mias" / "all-mias" / "mdb001.pgm",
    ]
    status, _, err = run(capsys, "predict", "--model", model, "--out", tmp_path / "out", *paths)
    assert status == 0, err
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert (rows["GH133.dcm"]["laterality"], rows["GH133.dcm"]["view"]) == ("R", "MLO")
    assert (rows["0_L-CC.png"]["laterality"], rows["0_L-CC.png"]["view"]) == ("L", "CC")
    with (tmp_path / "out" / "breasts.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 3


@pytest.mark.slow
def test_the_demo_runs_to_its_report_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    import mammomil.demo as demo
    import mammomil.evaluate as evaluate

    monkeypatch.setattr(demo, "EXAMS", 6)
    monkeypatch.setattr(demo, "SHOWN", 2)
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "nothing")  # as in an installed package
    monkeypatch.setattr(demo, "SAMPLES", (("", "quick", 4, 2037),))
    monkeypatch.setattr(evaluate, "bootstrap_ci", lambda *args, **kwargs: None)
    monkeypatch.setattr(demo, "DUAL_EPOCHS", 1)
    for name in ("fields_stage", "whole_stage"):
        whole = getattr(demo, name)

        def short(*args, whole=whole):
            import dataclasses

            stage = whole(*args)
            return dataclasses.replace(stage, train=dataclasses.replace(stage.train, epochs=1))

        monkeypatch.setattr(demo, name, short)
    status, _, err = run(capsys, "demo", "--out", tmp_path / "demo")
    assert status == 0, err[-2000:]
    report = tmp_path / "demo" / "report" / "report.html"
    assert report.read_text(encoding="utf-8").count("<img") == 16  # two exams, two models
    status, out, _ = run(capsys, "demo", "--out", tmp_path / "demo")
    assert status == 0
    assert "epoch 1/1" not in out  # all stages were finished


def test_a_command_in_its_own_process_ends_with_its_status():
    done = subprocess.run(
        [sys.executable, "-m", "mammomil.cli", "predict", "--model", "x", "--out", "y", "z"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("mammomil: ")
    assert "Traceback" not in done.stderr
