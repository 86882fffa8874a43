import csv
import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mammomil import predict, predictor
from mammomil.backbones import ClassifierConfig, ResNet22Config, build_classifier
from mammomil.dual_branch import DualBranchConfig
from mammomil.encoders import EncoderConfig
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.index import make_index, write_index
from mammomil.predict import predict_to_folder
from mammomil.predictor import Predictor
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig
from mammomil.weights import save_model

QUICK = GMICConfig.quick()
SMALL = PreprocessConfig(184, 120, "fit")


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def picture(path, seed=0, side="L"):
    y, x = np.mgrid[:150, :100] + 0.5
    inside = (x / 80) ** 2 + ((y - 75) / 60) ** 2 < 1
    pixels = inside * np.random.default_rng(seed).uniform(8000, 12000, inside.shape)
    pixels[(x - 40) ** 2 + (y - 40 - 5 * seed) ** 2 < 64] = 50000
    pixels = pixels.astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.fliplr(pixels) if side == "R" else pixels).save(path)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "one", build_gmic(QUICK, 1), SMALL, {})
    save_model(folder / "two", build_gmic(QUICK, 2), PreprocessConfig(240, 160, "fit"), {})
    save_model(folder / "other" / "one", build_gmic(QUICK, 3), SMALL, {})
    config = ClassifierConfig(ResNet22Config((8, 16), (1, 2), stem_pool=False), target="findings")
    save_model(folder / "plain", build_classifier(config), SMALL, {})
    regions = RegionModelConfig(
        EncoderConfig(weights="none", side=16), WindowConfig((16,)), DualBranchConfig(branch_std=2.0)
    )
    save_model(folder / "dual", build_region_model(regions, 4), SMALL, {"codes": {"encoder": "small"}})
    return folder


@pytest.fixture
def exam(tmp_path):
    for k, name in enumerate(("L_CC", "L_MLO", "R_CC", "R_MLO")):
        picture(tmp_path / "exam" / f"p1_{name}.png", k, name[0])
    return tmp_path / "exam"


def test_a_folder_of_images_becomes_a_folder_of_results(models, exam, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert predict_to_folder(models / "one", exam, out, save_maps=True, progress=False) == 0
    ids = [f"p1_{name}" for name in ("L_CC", "L_MLO", "R_CC", "R_MLO")]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == sorted(
        ["predictions.csv", "regions.csv", "breasts.csv", "failures.csv", "report.html", "provenance.json"]
        + [f"panels/{i}.one.png" for i in ids]
        + [f"maps/{i}.npz" for i in ids]
    )
    expected = Predictor.from_pretrained(models / "one")(exam)
    rows = read(out / "predictions.csv")
    assert [r["image_id"] for r in rows] == ids
    for row, p in zip(rows, expected, strict=True):
        assert (row["path"], row["model"], row["laterality"], row["view"]) == p[1:5]
        told = [
            float(row[c]) for c in ("p_benign", "p_malignant", "p_normal", "p_loc_benign", "p_mil_malignant")
        ]
        known = [*p.prob, p.p_normal, p.parts["loc"][0], p.parts["mil"][1]]
        assert told == pytest.approx(known, rel=1e-5)
        maps = np.load(out / "maps" / f"{p.image_id}.npz")
        np.testing.assert_allclose(maps["benign"], p.saliency[0], rtol=1e-6)
        np.testing.assert_allclose(maps["malignant"], p.saliency[1], rtol=1e-6)
        np.testing.assert_allclose(maps["box"], p.map_box)
        regions = [r for r in read(out / "regions.csv") if r["image_id"] == p.image_id]
        assert len(regions) == 2 * 6
        first = next(r for r in regions if (r["finding"], r["rank"]) == ("malignant", "1"))
        best = p.scores[:, 1].argmax()
        told = [float(first[c]) for c in ("score", "x0", "y0", "x1", "y1")]
        assert told == pytest.approx([p.scores[best, 1], *p.boxes[best]], rel=1e-5)
    breasts = read(out / "breasts.csv")
    assert [(b["laterality"], b["views"]) for b in breasts] == [("L", "CC+MLO"), ("R", "CC+MLO")]
    mean = (expected[2].prob[1] + expected[3].prob[1]) / 2
    assert float(breasts[1]["p_malignant"]) == pytest.approx(mean, rel=1e-5)
    assert read(out / "failures.csv") == []
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["models"]["one"]["preprocess"]["height"] == 184
    checksum = json.loads((models / "one" / "config.json").read_text())["weights_sha256"]
    assert facts["models"]["one"]["weights_sha256"] == checksum
    assert (facts["images"], facts["failures"], facts["interrupted"]) == (4, 0, False)
    assert capsys.readouterr().err == ""


def test_both_models_stand_side_by_side(models, exam, tmp_path):
    out = tmp_path / "out"
    assert predict_to_folder([models / "one", models / "dual"], exam, out, progress=False) == 0
    names = sorted(p.name for p in (out / "panels").iterdir())
    assert names == sorted(f"{p.stem}.{model}.png" for p in exam.iterdir() for model in ("one", "dual"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 8
    assert page.index("p1_L_CC.one.png") < page.index("p1_L_CC.dual.png") < page.index("p1_L_MLO.one.png")
    expected = {p.image_id: p for p in Predictor.from_pretrained(models / "dual")(exam)}
    for image_id, p in expected.items():
        rows = [r for r in read(out / "regions.csv") if (r["image_id"], r["model"]) == (image_id, "dual")]
        for c, finding in enumerate(("benign", "malignant")):
            listed = [r for r in rows if r["finding"] == finding]
            assert [int(r["rank"]) for r in listed] == list(range(1, 21))  # of the hundreds, the first
            best = np.sort(p.scores[:, c])[::-1][:20]
            np.testing.assert_allclose([float(r["score"]) for r in listed], best, rtol=1e-5, atol=1e-12)
            assert sum(float(r["score"]) > 0 for r in listed) == 10  # k: the others were not ranked
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["models"]["dual"]["codes"] == {"encoder": "small"}
    assert facts["models"]["one"]["codes"] is None


def test_bad_files_are_named_and_the_rest_goes_on(models, exam, tmp_path, capsys):
    bad = exam / "p1_L_MLO_bad.png"
    bad.write_bytes(b"nothing")
    missing = tmp_path / "missing.dcm"
    out = tmp_path / "out"
    assert predict_to_folder([models / "one"], [missing, exam], out, panels=False, progress=False) == 1
    assert len(read(out / "predictions.csv")) == 4
    failures = read(out / "failures.csv")
    assert [f["path"] for f in failures] == [str(missing), str(bad)]
    assert [f["image_id"] for f in failures] == ["missing", "p1_L_MLO_bad"]
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{f['path']}: {f['reason']}" for f in failures]
    for failure in failures:
        assert len(failure["reason"]) > 20
        assert failure["path"] not in failure["reason"]
        assert failure["reason"] in (out / "report.html").read_text().replace("&#x27;", "'")
    assert not (out / "panels").exists()


def test_unexpected_errors_stop_one_image_only(models, exam, tmp_path, monkeypatch, capsys):
    real = predict.prediction_panel

    def fragile(pixels, prediction, truth):
        if "R_CC" in prediction.image_id:
            raise ZeroDivisionError("odd\nimage")
        return real(pixels, prediction, truth)

    monkeypatch.setattr(predict, "prediction_panel", fragile)
    assert predict_to_folder(models / "one", exam, tmp_path / "out", progress=False) == 1
    assert "p1_R_CC.png: unexpected ZeroDivisionError: odd image\n" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / "predictions.csv")) == 3


def test_each_image_is_read_once_and_prepared_once_per_way(models, exam, tmp_path, monkeypatch):
    reads, prepared = [], []
    real_read, real_prepare = predictor.read_image, predictor.prepare
    monkeypatch.setattr(predictor, "read_image", lambda path: reads.append(path) or real_read(path))
    monkeypatch.setattr(predictor, "prepare", lambda m, c: prepared.append(c) or real_prepare(m, c))
    folders = [models / "one", models / "two", models / "other" / "one", models / "plain"]
    out = tmp_path / "out"
    assert predict_to_folder(folders, exam, out, save_maps=True, panels=False, progress=False) == 0
    assert len(reads) == 4
    assert len(prepared) == 8
    rows = read(out / "predictions.csv")
    assert [r["model"] for r in rows] == ["one", "two", "other__one", "plain"] * 4
    assert all(r["p_loc_benign"] == "" for r in rows if r["model"] == "plain")
    assert len(list((out / "maps").glob("p1_L_CC.*.npz"))) == 3  # the classifier has no map
    for model, folder in zip(("one", "two", "other__one", "plain"), folders, strict=True):
        expected = Predictor.from_pretrained(folder)(exam / "p1_R_CC.png")[0].prob
        (row,) = [r for r in rows if r["model"] == model and r["image_id"] == "p1_R_CC"]
        assert float(row["p_malignant"]) == pytest.approx(expected[1], rel=1e-5)
    assert len(read(out / "breasts.csv")) == 8


def test_the_same_folder_twice_has_two_names(models, exam, tmp_path):
    folders = [models / "one"] * 3
    predict_to_folder(folders, exam / "p1_L_CC.png", tmp_path / "out", panels=False, progress=False)
    names = [r["model"] for r in read(tmp_path / "out" / "predictions.csv")]
    assert len(set(names)) == 3


def test_an_index_gives_exams_and_known_findings(models, tmp_path, monkeypatch):
    for k in range(2):
        picture(tmp_path / "data" / "images" / f"{k}.png", k)
    images = pd.DataFrame(
        {"image_id": ["a:1", "b"], "exam_id": ["e1", "e2"], "patient_id": "p", "laterality": "L",
         "view": "CC", "path": ["images/0.png", "images/1.png"], "benign": 0, "malignant": [1, 0],
         "spacing_mm": 0.5}
    )  # fmt: skip
    findings = pd.DataFrame(
        {"image_id": ["a:1"], "finding": "malignant", "x0": 32, "y0": 32, "x1": 48, "y1": 48}
    )
    write_index(make_index(images, findings, tmp_path / "data"), tmp_path / "data")
    drawn = {}
    real = predict.prediction_panel
    monkeypatch.setattr(
        predict,
        "prediction_panel",
        lambda x, p, truth: drawn.update({p.image_id: truth}) or real(x, p, truth),
    )
    out = tmp_path / "out"
    assert predict_to_folder(models / "one", tmp_path / "data", out, progress=False) == 0
    assert [r["image_id"] for r in read(out / "predictions.csv")] == ["a:1", "b"]
    assert [(b["patient_id"], b["exam_id"]) for b in read(out / "breasts.csv")] == [("p", "e1"), ("p", "e2")]
    np.testing.assert_array_equal(drawn["a:1"]["malignant"], [[32, 32, 48, 48]])
    assert drawn["b"] == {}
    names = sorted(p.name for p in (out / "panels").iterdir())
    assert names[1] == "b.one.png"
    assert names[0].startswith("a_1-")  # a colon is no part of a file name on every system


def test_images_without_a_pixel_size_are_counted_where_the_model_needs_one(models, tmp_path, capsys):
    """The bare file is scaled by the breast, so that the answer differs from that with an index."""
    metric = tmp_path / "metric"
    save_model(metric, build_gmic(QUICK, 1), PreprocessConfig(184, 120, "spacing", 1.0), {})
    for k in range(3):
        picture(tmp_path / "data" / f"{k}.png", k)
    images = pd.DataFrame(
        {"image_id": ["0", "1", "2"], "exam_id": "e", "patient_id": "p", "laterality": "L", "view": "CC",
         "path": ["0.png", "1.png", "2.png"], "benign": 0, "malignant": 0, "spacing_mm": [0.5, 0.5, np.nan]}
    )  # fmt: skip

    def told(model, paths):
        predict_to_folder(model, paths, tmp_path / "out", panels=False, progress=False)
        return float(read(tmp_path / "out" / "predictions.csv")[0]["p_malignant"]), capsys.readouterr().err

    bare, words = told([metric, models / "one"], tmp_path / "data")
    (line,) = words.splitlines()
    assert line.startswith("Pixel size unknown for 3 of 3 images: ")
    assert "Give an index.csv with spacing_mm" in line
    assert told(models / "one", tmp_path / "data")[1] == ""  # fit: the size in mm plays no part
    write_index(make_index(images, None, tmp_path / "data"), tmp_path / "data")
    known, words = told(metric, tmp_path / "data")
    assert words.startswith("Pixel size unknown for 1 of 3 images: ")
    assert abs(known - bare) > 1e-4


HOSTILE = ["<script>alert(1)<\"'><img src=x onerror=1>", "$x_{1}$ #?%20 &amp; 乳 房", "=1+1", "x" * 240]


def test_hostile_names_are_only_names(models, tmp_path, capsys):
    folder = tmp_path / "in"
    for k, name in enumerate(HOSTILE):
        picture(folder / f"{name}.png", k)
    with open(os.fsencode(folder) + b"/\xff\n.png", "wb") as file:
        file.write(b"broken")
    picture(folder / "ok.png")
    shutil.move(folder / "ok.png", os.fsdecode(os.fsencode(folder) + b"/\xfe\xfd.png"))
    out = tmp_path / "out"
    assert predict_to_folder(models / "one", folder, out, save_maps=True, progress=False) == 1
    rows = read(out / "predictions.csv")
    assert len(rows) == len(HOSTILE) + 1
    assert {r["path"] for r in rows} >= {str(folder / f"{name}.png") for name in HOSTILE}
    assert len({r["image_id"] for r in rows}) == len(rows)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    for row in rows:
        assert (out / "panels" / f"{row['image_id']}.one.png").is_file()
        assert (out / "maps" / f"{row['image_id']}.npz").is_file()
    assert sum(1 for _ in (out / "panels").iterdir()) == len(rows)
    assert len(read(out / "failures.csv")) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "\\udcff\\n.png: " in told


def test_ctrl_c_leaves_what_is_done(models, exam, tmp_path, monkeypatch, capsys):
    real = Predictor.predict
    seen = []

    def interrupted(self, images):
        seen.append(images[0].item.image_id)
        if len(seen) == 5:  # the first model of the third image
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    out = tmp_path / "out"
    folders = [models / "one", models / "other" / "one"]
    assert predict_to_folder(folders, exam, out, panels=False, progress=False) == 130
    assert [r["image_id"] for r in read(out / "predictions.csv")] == ["p1_L_CC"] * 2 + ["p1_L_MLO"] * 2
    assert json.loads((out / "provenance.json").read_text())["interrupted"] is True
    assert "2 of 4 images" in (out / "report.html").read_text()
    assert "Interrupted" in capsys.readouterr().err


def test_nothing_is_begun_where_nothing_can_be_written(models, exam, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(predict, "read_ahead", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(InputError, match="cannot write here"):
        predict_to_folder(models / "one", exam, tmp_path / "file" / "out", progress=False)


def test_a_full_disk_ends_the_run_with_a_sentence(models, exam, tmp_path, monkeypatch):
    def full(figure, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict, "save_figure", full)
    with pytest.raises(InputError, match=r"No space left on device.*Make room"):
        predict_to_folder(models / "one", exam, tmp_path / "out", progress=False)


def test_a_bad_model_or_an_empty_folder_leaves_no_trace(models, exam, tmp_path):
    config = ClassifierConfig(ResNet22Config((8,), (1,)), target="birads")
    save_model(tmp_path / "birads", build_classifier(config), SMALL, {})
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for folders, paths, match in (
        (tmp_path / "nowhere", exam, "not a model folder"),
        (tmp_path / "birads", exam, "birads: this classifier tells BI-RADS"),
        ([], exam, "no model"),
        (models / "one", tmp_path / "empty", "no image in this folder"),
    ):
        with pytest.raises(InputError, match=match):
            predict_to_folder(folders, paths, out, progress=False)
    assert not out.exists()


def test_running_it_again_on_its_own_folder_does_not_predict_its_panels(models, tmp_path):
    picture(tmp_path / "a.png")
    for _ in range(2):
        assert predict_to_folder(models / "one", tmp_path, tmp_path, progress=False) == 0
    assert [r["image_id"] for r in read(tmp_path / "predictions.csv")] == ["a"]
    assert (tmp_path / "panels" / "a.one.png").is_file()


def test_progress_and_messages_go_to_standard_error(models, exam, tmp_path, capsys):
    predict_to_folder(models / "one", exam, tmp_path / "out", panels=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4/4" in captured.err


@pytest.mark.slow
def test_one_full_size_image_stays_under_a_gigabyte(models, tmp_path):
    """Peak memory of the model on one 2944x1920 image, in a process of its own."""
    import subprocess

    code = """
import resource, torch
from mammomil.gmic import GMICConfig, build_gmic
torch.set_num_threads(1)
model = build_gmic(GMICConfig.full()).eval()
image = torch.randn(1, 1, 2944, 1920)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.inference_mode():
    model(image)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e6  # kilobytes
    assert torch.get_num_threads() == 1
