import csv
import functools
import html
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import mammomil.evaluate as evaluate
import mammomil.evaluation_figures as evaluation_figures
from mammomil.cli import main
from mammomil.evaluation_report import evaluate_to_folder
from mammomil.files import InputError
from mammomil.index import BOX, Index, read_index, select, write_index
from mammomil.metrics import bootstrap_ci, bootstrap_rows
from mammomil.report import Row, write_tables
from mammomil.types import FINDINGS, Prediction
from mammomil.weights import SHIPPED

HOSTILE = '<script>alert("x")</script> & $body {0} \'"'


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    fewer = functools.partial(bootstrap_ci, n_resamples=20)
    for module in (evaluate, evaluation_figures):
        monkeypatch.setattr(module, "bootstrap_ci", fewer)
    monkeypatch.setattr(
        evaluation_figures, "bootstrap_rows", functools.partial(bootstrap_rows, n_resamples=20)
    )
    monkeypatch.setattr(evaluation_figures, "FROC_RESAMPLES", 5)


@pytest.fixture
def index(tmp_path) -> Index:
    """Twenty shipped phantoms; one image and its patient have hostile names."""
    whole = read_index(SHIPPED)
    shown = whole.images.groupby("exam_id")[["benign", "malignant"]].max().sum(axis=1)
    exams = [*sorted(shown.index[shown == 2])[:3], *sorted(shown.index[shown == 0])[:2]]
    kept = select(whole, whole.images["exam_id"].isin(exams))
    write_index(kept, tmp_path / "index")
    index = read_index(tmp_path / "index")
    first = index.images["image_id"].iloc[0]
    for table in (index.images, index.findings):
        table["image_id"] = table["image_id"].replace(first, HOSTILE.replace("/", "-"))
    write_index(index, tmp_path / "index")
    return read_index(tmp_path / "index")


def forge(index: Index, folder: Path, models=("m",), regions=24, panels=False, skip=()) -> Path:
    """A folder of predictions that know a little: the first regions are lesions of every second image."""
    rng = np.random.default_rng(0)
    rows = []
    for model in models:
        for n, image in enumerate(index.images.to_dict("records")):
            if image["image_id"] in skip:
                continue
            found = index.findings[index.findings["image_id"] == image["image_id"]]
            corners = rng.random((regions, 2)) * 200
            boxes = np.concatenate([corners, corners + 20], 1)
            if n % 2:
                boxes[: len(found)] = found[BOX].to_numpy(float)
            scores = np.sort(rng.random((regions, 2)), 0)[::-1] * 0.9
            y = np.nan_to_num([image[name] for name in FINDINGS])
            prob = 0.4 * y + 0.6 * rng.random(2)
            prediction = Prediction(
                image["image_id"], image["path"], model, "", "", prob, float(np.prod(1 - prob)), {}, None,
                None, boxes, np.ascontiguousarray(scores), None,
            )  # fmt: skip
            rows.append(Row(prediction))
            if panels:
                from mammomil.items import safe_name

                path = folder / "panels" / f"{safe_name(image['image_id'])}.{safe_name(model)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4)).save(path)
    write_tables(folder, rows)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def evaluated(*args) -> int:
    return main(["evaluate", *map(str, args)])


def test_the_page_shows_every_figure_says_what_it_shows_and_escapes_names(index, tmp_path, capsys):
    folder = forge(index, tmp_path / "predicted", (HOSTILE, "plain"), panels=True)
    out = tmp_path / "out"
    assert evaluated("--predictions", folder, "--data", index.root, "--out", out) == 0
    page = Page(out / "report.html")
    images = page.all("img")
    assert {unquote(img["src"]) for img in images} == {
        path.relative_to(out).as_posix() for path in out.rglob("*.png")
    }
    assert len(images) == 2 * 5 + 2
    for img in images:
        assert len(img["alt"]) > 40
        with Image.open(out / img["src"]) as picture:
            assert picture.size == (int(img["width"]), int(img["height"]))
    assert len(page.all("script")) == 1  # the page's own
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    assert html.escape(HOSTILE, quote=True) in (out / "report.html").read_text()
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [a["href"] for a in page.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    panels = [link for link in links if not link.startswith("#")]
    assert len(panels) > 40
    assert all((out / unquote(link)).is_file() for link in panels)
    assert "All images are phantoms" in page.text
    assert "not a medical device" in page.text
    assert "Models compared" in page.text
    assert "regions.csv lists 20 regions per image and finding" in page.text
    assert not any("http" in str(value) for _, attrs in page.tags for value in attrs.values())
    assert "report.html" in capsys.readouterr().out
    content = json.loads((out / "evaluation.json").read_text())
    assert [model["model"] for model in content["models"]] == [HOSTILE, "plain"]
    assert len(content["pairs"]) == 3
    assert len(content["provenance"]["predictions_sha256"]) == 64
    assert {"ranks", "froc", "maps", "left_out", "findings", "failures"} <= set(content["models"][0])
    with (out / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(index.images)
    one = content["models"][1]
    shown = [row for row in rows if row["model"] == "plain" and row["region_hit_malignant"]]
    hits = [int(row["region_hit_malignant"]) for row in shown]
    assert one["findings"]["malignant"]["region_hit"] == np.mean(hits)


def test_the_largest_errors_are_those_farthest_from_the_truth(index, tmp_path):
    folder = forge(index, tmp_path / "predicted")
    evaluate_to_folder(index.root, predictions=folder, out=tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    table = text[text.index('class="sortable"') :]
    lines = table[table.index("<tbody>") : table.index("</tbody>")].split("<tr>")[1:]
    told = [tuple(cell.split("</")[0] for cell in line.split("<td>")[1:7]) for line in lines]
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    distances = [float(cells[4]) for cells in told]
    assert distances == sorted(distances, reverse=True)
    for finding in FINDINGS:
        for kind, truth in (("missed", "1"), ("false alarm", "0")):
            off = [abs(float(r[f"p_{finding}"]) - int(truth)) for r in rows if r[finding] == truth]
            wanted = [f"{value:.3f}" for value in sorted(off, reverse=True)[:10]]
            assert [cells[4] for cells in told if cells[1:3] == (finding, kind)] == wanted


def test_what_does_not_fit_together_is_listed_and_the_rest_counts(index, tmp_path, capsys):
    ids = index.images["image_id"].to_list()
    folder = forge(index, tmp_path / "predicted", skip=ids[1:2])
    lines = (folder / "predictions.csv").read_text().splitlines()
    strange = lines[3].replace(ids[3], "stranger")
    twice = lines[4]
    spoilt = lines[5].split(",")
    spoilt[5] = "nan"
    (folder / "predictions.csv").write_text(
        "\n".join([*lines[:5], ",".join(spoilt), *lines[6:], strange, twice])
    )
    (folder / "failures.csv").write_text(f'path,image_id,reason\nx,{ids[1]},"the scanner was off"\n')
    assert evaluated("--predictions", folder, "--data", index.root, "--out", tmp_path / "out") == 1
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]
    reasons = {failure["image_id"]: failure["reason"] for failure in content["failures"]}
    assert reasons.keys() == {ids[1], ids[4], ids[5], "stranger"}
    assert reasons[ids[1]] == "the scanner was off"
    assert "several rows" in reasons[ids[4]]
    assert "'nan'" in reasons[ids[5]]
    assert "not in the index" in reasons["stranger"]
    assert content["images"] == len(ids) - 3
    text = Page(tmp_path / "out" / "report.html").text
    assert all(reason in text for reason in reasons.values())
    assert "the scanner was off" in capsys.readouterr().err


def test_predictions_of_other_splits_are_no_failures(index, tmp_path):
    folder = forge(index, tmp_path / "predicted")
    split = index.images["split"].iloc[0]
    assert (
        evaluated("--predictions", folder, "--data", index.root, "--split", split, "--out", tmp_path / "o")
        == 0
    )
    content = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert content["models"][0]["images"] == (index.images["split"] == split).sum()
    assert content["provenance"]["split"] == split


def test_what_was_left_out_is_said(index, tmp_path):
    images, findings = index.images, index.findings
    images.loc[0, "laterality"] = ""
    images.loc[images["malignant"] == 0, "malignant"] = np.nan
    findings.loc[0, BOX] = np.nan
    findings.loc[0, "mask"] = ""
    write_index(index, index.root)
    folder = forge(index, tmp_path / "predicted", regions=3)
    evaluate_to_folder(index.root, predictions=folder, out=tmp_path / "out")
    unknown = int(images["malignant"].isna().sum())
    text = Page(tmp_path / "out" / "report.html").text
    assert f"{unknown} images have no known label for malignant." in text
    assert "1 images of unknown side" in text
    assert f"1 {findings['finding'].iloc[0]} lesions have no box" in text
    assert "No map is judged" in text
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]
    of_malignant = [ranks for ranks in content["ranks"] if ranks["question"] == "malignant"]
    assert {ranks["auc"] for ranks in of_malignant} == {None}  # of one class there is no curve
    assert {ranks["level"] for ranks in of_malignant} == {"image", "breast", "exam"}


def test_orders_that_cannot_be_carried_out_get_a_sentence(index, tmp_path, capsys):
    folder = forge(index, tmp_path / "predicted")
    data = ("--data", index.root)
    for args, words in (
        (data, "either a model folder"),
        ((*data, "--predictions", folder, "--model", folder), "either a model folder"),
        ((*data, "--predictions", folder, "--out", folder), "the predictions' own report"),
        ((*data, "--predictions", tmp_path), "no predictions.csv here"),
        ((*data, "--predictions", folder, "--out", index.root / "index.csv" / "no"), "cannot write here"),
    ):
        assert evaluated(*args) == 1
        assert words in capsys.readouterr().err
    text = (folder / "predictions.csv").read_text()
    for name in index.images["image_id"]:
        text = text.replace(name.replace('"', '""'), f"other {name}".replace('"', '""'))
    (folder / "predictions.csv").write_text(text)
    with pytest.raises(InputError, match="no prediction could be judged"):
        evaluate_to_folder(index.root, predictions=folder)


def same(a, b, where=""):
    """Compare nested figures up to the six digits of a CSV."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for n, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{where}[{n}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=2e-6), where
    else:
        assert a == b, where


@pytest.mark.slow
def test_a_model_and_its_stored_predictions_have_the_same_figures(index, tmp_path):
    model = SHIPPED / "weights" / "gmic-quick"
    data = ("--data", index.root, "--mask-iom")
    assert main(["predict", "--model", str(model), "--out", str(tmp_path / "predicted"), "--save-maps",
                 "--no-panels", str(index.root)]) == 0  # fmt: skip
    assert evaluated("--model", model, *data, "--out", tmp_path / "live") == 0
    assert evaluated("--predictions", tmp_path / "predicted", *data, "--out", tmp_path / "stored") == 0
    live, stored = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("live", "stored"))
    same(live["models"], stored["models"])
    found = live["models"][0]
    assert all(maps["images"] and 0 < maps["f1"] < 1 for maps in found["maps"])
    assert all(froc["at_one_fppi"]["image, of classified"][0] > 0 for froc in found["froc"])
    tables = []
    for name in ("live", "stored"):
        with (tmp_path / name / "evaluation.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    for a, b in zip(*tables, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == b[key] or float(a[key]) == pytest.approx(float(b[key]), abs=2e-6), key


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium")
def test_in_a_browser_the_table_of_errors_can_be_sorted_and_nothing_is_wider_than_a_phone(index, tmp_path):
    out = tmp_path / "out"
    evaluate_to_folder(index.root, predictions=forge(index, tmp_path / "predicted", (HOSTILE, "m")), out=out)
    page = (out / "report.html").read_text()
    probe = """<iframe src="probed.html" width="390" height="900"></iframe><script>onload = () => {
      const doc = document.querySelector("iframe").contentDocument;
      document.body.dataset.wide = doc.documentElement.scrollWidth;
      doc.querySelector(".sortable button").click();
      const names = [...doc.querySelectorAll(".sortable tbody")[0].rows].map(row => row.cells[0].textContent);
      document.body.dataset.sorted = String(names.every((n, k) => !k || names[k - 1].localeCompare(n, "en",
        { numeric: true }) >= 0));
    };</script>"""
    (out / "probed.html").write_text(page)
    (out / "probe.html").write_text(probe)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--allow-file-access-from-files",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]  # fmt: skip
    done = subprocess.run(
        ["chromium", *flags, "--dump-dom", (out / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert 'data-sorted="true"' in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split('data-wide="')[1].split('"')[0]) <= 390
