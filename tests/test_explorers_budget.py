"""The explorer of chapter 14 and its file, against the recorded experiment and plain arithmetic."""

import csv
import io
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammomil.experiments.region_runs import PAPER
from mammomil.explorers.budget import (
    ACROSS,
    EDGE,
    LEFT,
    RANGES,
    SPANS,
    TALL,
    TOP,
    budget_explorer,
    read_budget,
)
from mammomil.files import InputError
from mammomil.scenes import GREEN, MALIGNANT, SKY, YELLOW

RECORDED = Path(__file__).parents[1] / "benchmarks" / "experiments" / "annotation-budget"
recorded = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="only the repository has the recorded experiments"
)


@pytest.fixture(scope="module")
def budget():
    return read_budget()


@pytest.fixture(scope="module")
def explorer(budget):
    return budget_explorer(budget)


def at_start(explorer):
    return {control.name: control.values[control.start] for control in explorer.controls}


def everything(explorer):
    names = [control.name for control in explorer.controls]
    for values in itertools.product(*(control.values for control in explorer.controls)):
        yield dict(zip(names, values, strict=True))


@recorded
def test_our_numbers_are_those_of_the_recorded_table(budget):
    rows = list(csv.DictReader((RECORDED / "annotation-budget.csv").read_text().splitlines()))
    for name in rows[0]:
        if name in budget["ours"]:
            np.testing.assert_allclose(budget["ours"][name], [float(row[name]) for row in rows], atol=1e-6)
    wanted = {"fraction", "images", "lesions", "share_of_lesions", "auroc", "auroc_std", "sens_at_1_fppi"}
    assert wanted | {"sens_at_1_fppi_std"} <= set(rows[0]) & set(budget["ours"])
    facts = json.loads((RECORDED / "provenance.json").read_text())
    assert [budget["ours"][key] for key in ("commit", "date")] == [facts["commit"], facts["date"]]
    assert "phantoms" in budget["ours"]["data"]


@recorded
def test_the_steps_are_those_of_the_recorded_page(budget):
    page = (RECORDED / "annotation-budget.md").read_text(encoding="utf-8")
    for figure, key in (("AUROC", "auroc"), ("Sens@1FPPI", "sens_at_1_fppi")):
        found = re.findall(rf"- M vs BN, {figure}: SS.*\((\S+), 95 % (\S+) to (\S+)\)\.", page)
        assert budget["ours"]["steps"][key] == [[float(n) for n in line] for line in found]
        gaps = np.diff(budget["ours"][key])
        np.testing.assert_allclose([step[0] for step in budget["ours"]["steps"][key]], gaps, atol=6e-4)


def test_the_papers_numbers_are_those_of_table_2_and_its_text(budget):
    names = ["Cls-Det-RS", *(f"SS-Cls-Det-RS {share}" for share in (".25", ".5", ".75", "1"))]
    table = [PAPER["M vs BN", name][:2] for name in names]
    paper = budget["paper"]
    assert list(zip(paper["auroc"], paper["auroc_std"], strict=True)) == table
    assert paper["lesions"][2] == 175
    assert paper["images"][-1] == pytest.approx((146 + 107) * 4 / 5)
    assert paper["share_of_lesions"] == [0, 0.025, 0.05, 0.075, 0.1]


def test_costs_bars_and_words_are_plain_arithmetic(budget, explorer):
    for values in everything(explorer):
        table = budget["paper" if values["paper"] else "ours"]
        k, scene = values["fraction"], explorer.scene(**values)
        a, b = values["per_image"] / 60, values["per_lesion"] / 60
        opened, marked = a * table["images"][k], b * table["lesions"][k]
        whole = a * table["images"][-1] + b * table["lesions"][-1]
        assert f"{opened:.1f} h opening and {marked:.1f} h marking: {opened + marked:.1f} h." in scene.words
        assert scene.words.endswith(f"all: {whole:.1f} h.")
        span = min(s for s in SPANS if s >= whole)
        bars = {m["fill"]: m["width"] for kind, m in scene.marks if kind == "rect" and m["height"] == 20}
        assert bars[SKY] == pytest.approx(ACROSS * opened / span)
        assert bars[YELLOW] == pytest.approx(ACROSS * marked / span)
        value = table[values["figure"]]
        if value is None:
            assert "No numbers are printed" in scene.words
            continue
        assert f"{value[k]:.3f} ± {table[values['figure'] + '_std'][k]:.3f}" in scene.words
        if k:
            gain = value[k] - value[0]
            assert f"{gain:+.3f} against none, {gain / (opened + marked):+.4f} an hour" in scene.words
        curve = next(m for kind, m in scene.marks if kind == "line" and m["colour"] in (GREEN, MALIGNANT))
        x, y = np.array(curve["points"]).T
        hours = a * np.array(table["images"]) + b * np.array(table["lesions"])
        np.testing.assert_allclose((x - LEFT) / ACROSS * span, hours, atol=1e-9)
        low, high = RANGES[values["figure"]]
        np.testing.assert_allclose(low + (TOP + TALL - y) / TALL * (high - low), value, atol=1e-9)


def test_a_step_is_told_only_if_its_interval_leaves_0_out(budget, explorer):
    for figure in RANGES:
        for k in range(1, 5):
            _, low, high = budget["ours"]["steps"][figure][k - 1]
            words = explorer.scene(fraction=k, figure=figure).words
            assert ("cannot be told" in words) == (low <= 0 <= high)
    changed = json.loads(json.dumps(budget))
    changed["ours"]["steps"]["auroc"][1] = [0.01, 0.002, 0.018]
    words = budget_explorer(changed).scene().words
    assert "+0.010 to 0.25 (+0.002 to +0.018): told from 0" in words


def test_everything_stays_inside_the_picture(explorer):
    for values in everything(explorer):
        scene = explorer.scene(**values)
        assert (scene.width, scene.height) == (440, 446)
        for kind, mark in scene.marks:
            if kind == "line":
                x, y = np.array(mark["points"]).T
                assert x.min() >= LEFT - EDGE
                assert x.max() <= LEFT + ACROSS
                assert y.min() >= TOP
                assert y.max() <= TOP + TALL


def test_every_step_of_a_control_changes_picture_and_words(explorer):
    for values in [at_start(explorer), *random.Random(14).sample([*everything(explorer)], 40)]:
        here = explorer.scene(**values)
        for control in explorer.controls:
            place = control.values.index(values[control.name])
            if place + 1 < len(control.values):
                there = explorer.scene(**values | {control.name: control.values[place + 1]})
                assert here.words != there.words, control.name
                if values["fraction"] or control.name in ("fraction", "figure", "paper"):
                    assert here.svg({}) != there.svg({}), (control.name, values)


def test_points_can_be_clicked(explorer):
    hot = [m for kind, m in explorer.scene().marks if kind == "hot"]
    assert [m["positions"] for m in hot] == [{"fraction": k} for k in range(5)]
    assert min(b["x"] - a["x"] for a, b in itertools.pairwise(hot)) > 26  # they do not overlap


def test_the_page_is_small_and_loads_nothing(explorer):
    page = explorer.html()
    assert len(page) < 500_000
    assert "http" not in page.replace("http://www.w3.org", "")
    assert np.asarray(Image.open(io.BytesIO(explorer.png()))).std() > 5


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"ours": {}}')
    with pytest.raises(InputError, match="no annotation budget"):
        read_budget(tmp_path / "other.json")
