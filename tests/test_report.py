import csv
import json
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest

from mammomil import report
from mammomil.report import Failure, Row, breast_table, write_report, write_tables
from mammomil.types import Prediction

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & $title {0} %s\n\x07\udcff"


def prediction(image_id="a", prob=(0.25, 0.75), **changes):
    prob = np.array(prob, np.float32)
    base = Prediction(
        image_id=image_id, path=f"folder/{image_id}.png", model="m", laterality="L", view="CC", prob=prob,
        p_normal=float(np.prod(1 - prob)), parts={}, saliency=None, map_box=None, boxes=np.zeros((0, 4)),
        scores=np.zeros((0, 2)), attention=None,
    )  # fmt: skip
    return base._replace(**changes)


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, and text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []  # every tag is closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_columns_are_the_contract(tmp_path):
    parts = {"loc": np.array([0.1, 0.2]), "mil": np.array([0.3, 0.4])}
    write_tables(tmp_path, [Row(prediction(parts=parts))], [Failure("x.dcm", "x", "broken")])
    header = {p.name: p.read_text().splitlines()[0] for p in tmp_path.iterdir()}
    assert header == {
        "predictions.csv": "image_id,path,model,laterality,view,p_benign,p_malignant,p_normal,"
        "p_loc_benign,p_loc_malignant,p_mil_benign,p_mil_malignant",
        "regions.csv": "image_id,model,finding,rank,score,x0,y0,x1,y1",
        "breasts.csv": "model,patient_id,exam_id,laterality,views,images,p_benign,p_malignant,p_normal",
        "failures.csv": "path,image_id,reason",
    }
    assert (tmp_path / "predictions.csv").read_text().splitlines()[1] == (
        "a,folder/a.png,m,L,CC,0.25,0.75,0.1875,0.1,0.2,0.3,0.4"
    )


def test_tables_without_rows_have_their_header(tmp_path):
    write_tables(tmp_path, [])
    assert (tmp_path / "predictions.csv").read_text() == (
        "image_id,path,model,laterality,view,p_benign,p_malignant,p_normal\n"
    )
    for name in ("regions", "breasts", "failures"):
        assert len((tmp_path / f"{name}.csv").read_text().splitlines()) == 1


def test_models_with_other_parts_share_a_table(tmp_path):
    one = prediction(parts={"loc": np.array([0.1, 0.2])})
    two = prediction(model="n", parts={"fusion": np.array([0.3, 0.4])})
    write_tables(tmp_path, [Row(one), Row(two), Row(prediction(model="o"))])
    found = [(r["p_loc_malignant"], r["p_fusion_benign"]) for r in read(tmp_path / "predictions.csv")]
    assert found == [("0.2", ""), ("", "0.3"), ("", "")]


def test_regions_are_ranked_per_finding(tmp_path):
    scores = np.array([[0.1, 0.9], [0.5, 0.2], [0.5, 0.3]])
    boxes = np.arange(12.0).reshape(3, 4) + 0.5
    write_tables(tmp_path, [Row(prediction(scores=scores, boxes=boxes, attention=np.ones(3) / 3))])
    rows = read(tmp_path / "regions.csv")
    assert len(rows) == 6
    ranked = {
        (r["finding"], int(r["rank"])): (float(r["score"]), float(r["x0"]), float(r["y1"])) for r in rows
    }
    assert ranked["benign", 1] == (0.5, 4.5, 7.5)  # of equal scores, the patch chosen first
    assert ranked["benign", 2] == (0.5, 8.5, 11.5)
    assert ranked["benign", 3] == (0.1, 0.5, 3.5)
    assert [ranked["malignant", rank][0] for rank in (1, 2, 3)] == [0.9, 0.3, 0.2]


def test_breasts_are_means_of_views():
    rows = [
        Row(prediction("1", (0.1, 0.2), view="CC"), "e1", "p1"),
        Row(prediction("2", (0.3, 0.4), view="MLO"), "e1", "p1"),
        Row(prediction("3", (0.5, 0.6), view="MLO"), "e1", "p1"),  # a second MLO is no third view
        Row(prediction("4", (0.9, 0.9), view="CC", laterality="R"), "e1", "p1"),
        Row(prediction("5", (0.7, 0.7), view="CC"), "e2", "p1"),
        Row(prediction("6", (0.7, 0.7), laterality=""), "e2", "p1"),  # nobody knows which breast
        Row(prediction("1", (0.8, 0.8), model="n"), "e1", "p1"),
    ]
    table = {(b["model"], b["exam_id"], b["laterality"]): b for b in breast_table(rows)}
    assert set(table) == {("m", "e1", "L"), ("m", "e1", "R"), ("m", "e2", "L"), ("n", "e1", "L")}
    left = table["m", "e1", "L"]
    assert (left["patient_id"], left["views"], left["images"]) == ("p1", "CC+MLO", 3)
    assert (left["p_benign"], left["p_malignant"]) == pytest.approx(((0.1 + 0.4) / 2, (0.2 + 0.5) / 2))
    assert left["p_normal"] == pytest.approx((1 - 0.25) * (1 - 0.35))


def test_a_folder_stands_for_an_exam_unless_it_mixes_several():
    one = [prediction("a", path="p1/L_CC.png"), prediction("b", path="p1/L_MLO.png", view="MLO")]
    mixed = [prediction("c", path="all/x_L_CC.png"), prediction("d", path="all/y_L_CC.png")]
    table = breast_table([Row(p) for p in one + mixed])
    assert [(b["exam_id"], b["images"]) for b in table] == [("p1", 2)]


def test_a_breast_of_the_dual_branch_is_its_most_suspicious_view():
    """Checklist D26; GMIC averages, G12."""
    views = [("CC", (0.2, 0.9)), ("MLO", (0.6, 0.1)), ("MLO", (0.3, 0.2))]
    for regions, expected in ((True, (0.6, 0.9)), (False, (0.325, 0.525))):
        places = {"boxes": np.zeros((3, 4)), "scores": np.zeros((3, 2))} if regions else {}
        rows = [
            Row(prediction(f"i{n}", prob, view=view, **places), "exam", "patient")
            for n, (view, prob) in enumerate(views)
        ]
        (breast,) = breast_table(rows)
        assert (breast["p_benign"], breast["p_malignant"]) == pytest.approx(expected, abs=1e-6)


def test_the_page_shows_what_was_given(tmp_path):
    rows = [
        Row(
            prediction("a", (0.123, 0.456)),
            panel="panels/a b#1.m.png",
            size=(1536, 1212),
            alt="words",
            notes=("N",),
        ),
        Row(prediction("b", (0.5, 0.875), laterality="", view="")),
    ]
    path = write_report(
        tmp_path, rows, "Title", "Intro.", {"seed": 7}, [Failure("x/y.dcm", "y", "Broken file.")]
    )
    page = Page(path)
    for words in (
        "Title",
        "Intro.",
        "0.123",
        "0.456",
        "0.875",
        "x/y.dcm Broken file.",
        '"seed": 7',
        "unknown",
    ):
        assert words in page.text
    assert "not a medical device" in page.text
    (image,) = page.all("img")
    assert unquote(image["src"]) == "panels/a b#1.m.png"
    assert "#" not in image["src"]
    assert (image["width"], image["height"], image["alt"], image["loading"]) == (
        "1536",
        "1212",
        "words",
        "lazy",
    )
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = [attrs["href"] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert links
    assert {link[1:] for link in links} <= targets
    breasts = page.text.split("The mean of the views")[1]
    assert "folder L CC m 0.123" in breasts


def gmic(image_id="a", **changes):
    """A GMIC's answer as a row holds it: without its map."""
    changes = {"model": "gmic"} | changes
    boxes = np.tile([0, 0, 9, 9.0], (6, 1))
    return prediction(
        image_id, boxes=boxes, scores=np.ones((6, 2)) / 2, attention=np.full(6, 1 / 6), **changes
    )


def dual(image_id="a", m=40, **changes):
    """A dual-branch network's answer: region k begins at column k, and no two scores are equal."""
    places = {
        "scores": np.random.default_rng(0).permutation(2 * m).reshape(m, 2) / (2 * m),
        "boxes": np.arange(m)[:, None] + np.array([0, 0, 28, 28.0]),
        "selected": np.ones((m, 2), bool),
    }
    return prediction(image_id, **({"model": "dual"} | places | changes))


def test_regions_are_listed_down_to_the_last_rank_listed(tmp_path):
    hundreds, tied = (
        dual(m=300),
        dual("b", m=300, scores=np.tile([[0, 0.5], [0.5, 0], [0.25, 0.0]], (100, 1))),
    )
    write_tables(tmp_path, [Row(hundreds), Row(gmic()), Row(tied)])
    rows = read(tmp_path / "regions.csv")
    for c, finding in enumerate(("benign", "malignant")):
        mine = [r for r in rows if (r["image_id"], r["model"], r["finding"]) == ("a", "dual", finding)]
        assert [int(r["rank"]) for r in mine] == list(range(1, report.REGIONS_LISTED + 1))
        highest = sorted(range(300), key=lambda k: -hundreds.scores[k, c])[:20]
        assert [float(r["x0"]) for r in mine] == highest
        assert [float(r["score"]) for r in mine] == pytest.approx(hundreds.scores[highest, c], abs=1e-6)
        assert len([r for r in rows if (r["model"], r["finding"]) == ("gmic", finding)]) == 6
        tied_rows = [r for r in rows if (r["image_id"], r["finding"]) == ("b", finding)]
        assert [float(r["x0"]) for r in tied_rows] == [3 * n + 1 - c for n in range(20)]


class Sections(HTMLParser):
    """Collects, for each section of the page, its heading, links of its pictures, and captions."""

    def __init__(self, path):
        super().__init__()
        self.found, self.within = [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.found.append({"h3": "", "figcaption": [], "code": [], "li": [], "ids": [], "src": []})
        if tag == "figure":
            self.found[-1]["ids"].append(dict(attrs)["id"])
        if tag == "img":
            self.found[-1]["src"].append(unquote(dict(attrs)["src"]))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = None

    def handle_data(self, data):
        if self.found and self.within in ("h3", "figcaption", "code", "li"):
            self.found[-1][self.within] += data if self.within == "h3" else [data]


def test_panels_of_one_image_stand_side_by_side_under_one_heading(tmp_path):
    rows = [
        Row(p, panel=f"panels/{p.image_id}.{p.model}.png", size=(1536, 1216), alt="x", notes=("Note.",))
        for p in (gmic("a"), dual("a"), gmic("b"), dual("b"), dual("a", model="third"))
    ]
    rows.insert(2, Row(dual("c")))  # without a picture
    path = write_report(tmp_path, rows, "T", "I", {})
    first, second = Sections(path).found
    assert (first["h3"], second["h3"]) == ("a", "b")
    assert first["figcaption"] == ["Model gmic", "Model dual", "Model third"]
    assert first["src"] == ["panels/a.gmic.png", "panels/a.dual.png", "panels/a.third.png"]
    assert second["src"] == ["panels/b.gmic.png", "panels/b.dual.png"]
    assert (first["code"], first["li"]) == (["folder/a.png"], ["Note."])  # said once
    assert (first["ids"], second["ids"]) == (["panel-1", "panel-2", "panel-6"], ["panel-4", "panel-5"])
    links = [attrs["href"] for attrs in Page(path).all("a") if attrs["href"].startswith("#")]
    assert links == ["#panel-1", "#panel-2", "#panel-4", "#panel-5", "#panel-6"]


@pytest.mark.parametrize(
    ("predictions", "patches", "regions"),
    [
        ([gmic()], True, False),
        ([dual()], False, True),
        ([dual(selected=None)], False, True),
        ([gmic(), dual()], True, True),
        ([prediction()], False, False),  # a classifier shows no places
    ],
)
def test_the_legend_explains_the_kinds_of_pictures_that_occur(tmp_path, predictions, patches, regions):
    rows = [Row(p, panel=f"panels/{p.model}.png", size=(1, 1), alt="") for p in predictions]
    text = Page(write_report(tmp_path, rows, "T", "I", {})).text
    assert ("Yellow squares" in text) == patches
    assert ("probability plane" in text) == regions
    assert "Dashed boxes" in text
    unseen = [row._replace(panel="") for row in rows]
    text = Page(write_report(tmp_path, unseen, "T", "I", {})).text
    assert not any(words in text for words in ("Panels", "Yellow squares", "probability plane", "Dashed"))


def test_hostile_text_stays_text(tmp_path):
    hostile = prediction(HOSTILE, path=HOSTILE, model=HOSTILE, laterality="L", view=HOSTILE)
    row = Row(hostile, HOSTILE, HOSTILE, "panels/x.png", (1, 1), HOSTILE, (HOSTILE,))
    failure = Failure(HOSTILE, HOSTILE, HOSTILE)
    path = write_report(tmp_path, [row], HOSTILE, HOSTILE, {HOSTILE: [HOSTILE]}, [failure])
    page = Page(path)
    assert page.all("script") == []
    assert len(page.all("img")) == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    plain = HOSTILE.split("\n")[0]
    assert page.text.count(plain) >= 10
    (section,) = [part for part in Sections(path).found if part["h3"]]
    assert section["h3"].startswith(plain)
    assert section["figcaption"][0].startswith(f"Model {plain}")
    assert page.all("img")[0]["alt"].startswith(plain)
    write_tables(tmp_path, [row], [failure])
    (cells,) = read(tmp_path / "predictions.csv")
    assert cells["image_id"] == HOSTILE.replace("\udcff", "\\udcff")


def test_the_page_asks_nothing_of_the_network(tmp_path):
    rows = [Row(prediction(), panel="panels/a.png", size=(1, 1), alt="")]
    path = write_report(tmp_path, rows, "T", "I", {})
    text = path.read_text()
    for word in ("http:", "https:", "@import", "url(", "<script", "<link", "//"):
        assert word not in text
    for tag, attrs in Page(path).tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "panels/")), tag


def test_both_files_are_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(report.csv, "writer", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_tables(tmp_path, [])
    with pytest.raises(TypeError):
        write_report(tmp_path, [], "T", "I", {("no", "key"): 1})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_report_says_so(tmp_path):
    page = Page(write_report(tmp_path, [], "T", "I", {}))
    assert "No image could be predicted" in page.text
    json.loads(page.text.split("settings")[1])
