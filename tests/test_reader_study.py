"""The reader study: known figures of the published scores, and naive counts on small tables."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import REAL_DATA
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from mammomil.downloads import REMOTE, fetch
from mammomil.experiments.reader_scores import (
    CURVES,
    MEAN,
    METRICS,
    MODEL,
    TOGETHER,
    mean_curve,
    measure,
    rank_scores,
    read_scores,
    reader_curves,
    thin_curve,
    weighted_figures,
    write_curves,
)
from mammomil.experiments.reader_study import Config, run
from mammomil.files import InputError, sha256
from mammomil.metrics import (
    auc_score,
    average_precision,
    delong_test,
    partial_auc_ratio,
    specificity_at_sensitivity,
)

SCORES = REAL_DATA.parent / "reader_study" / "results.csv"


@pytest.fixture(scope="module")
def published():
    if not SCORES.exists():
        pytest.skip(f"no scores of the reader study at {SCORES}; fetch them with mammomil.downloads.fetch")
    return SCORES


@pytest.fixture
def table(tmp_path):
    """Twenty patients, three coarse readers and two models; every fourth left breast has cancer."""
    rng, rows = np.random.default_rng(1), []
    for k in range(20):
        for side in "LR":
            label = int(side == "L" and k % 4 == 0)
            readers = np.clip(np.round(rng.normal(0.2 + 0.3 * label, 0.2, 3), 1), 0, 1)
            models = np.clip(rng.normal(0.3 + 0.3 * label, 0.2, 2), 0, 1).round(4)
            rows.append([f"p{k}", side, label, *readers, *models])
    heads = "case_ID,side,label,Reader01_POM,Reader02_POM,Reader03_POM,AI_GMIC_top5_POM,AI_other_POM"
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([heads, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def pair_auc(y, s):
    s = np.rint(s * 1e8)  # as decimals: equal means equal
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in s[y == 1] for b in s[y == 0]]
    return sum(wins) / len(wins)


def test_the_published_scores_give_the_known_figures(published):
    study = read_scores(published)
    found = measure(study, 2, 0)
    assert (len(study.label), study.label.sum(), len(set(study.patient)), study.left_out) == (
        1440,
        61,
        720,
        0,
    )
    assert (len(study.readers), len(study.models)) == (14, 7)
    known = {  # of an earlier analysis, last digits .8567 and .8871 are .85665 and .88704 by pairs counted
        ("mean reader", "mean"): 0.7788,
        (MODEL, "model"): 0.8812,
        ("GMIC top-1", "model"): 0.8567,
        ("GLAM", "model"): 0.8532,
        ("DMV-CNN", "model"): 0.7788,
        ("Faster R-CNN", "model"): 0.7145,
        (TOGETHER, "readers together"): 0.8946,
        (f"mean hybrid with {MODEL}", "mean"): 0.8871,
        ("mean hybrid, weight 0.50", "weight"): 0.8871,
        ("mean hybrid, weight 0.00", "weight"): 0.7788,
        ("mean hybrid, weight 1.00", "weight"): 0.8812,
        (f"{TOGETHER} with {MODEL}", "readers together"): 0.9082,
    }
    for (who, kind), auc in known.items():
        assert found[who, kind, "AUC"][0] == pytest.approx(auc, abs=1e-4), who
    readers = [found[who, "reader", "AUC"][0] for who in study.readers]
    assert [round(min(readers), 4), round(max(readers), 4)] == [0.7045, 0.8598]
    assert found[MODEL, "model", "AP"][0] == pytest.approx(0.407, abs=5e-4)
    scores = {(who, "reader"): s for who, s in study.readers.items()}
    scores |= {(who, "model"): s for who, s in study.models.items()}
    gmic = study.models[MODEL]
    scores |= {(f"{who} with {MODEL}", "hybrid"): (s + gmic) / 2 for who, s in study.readers.items()}
    for name, s in scores.items():
        assert found[*name, "AUC"][0] == pytest.approx(pair_auc(study.label, s), abs=1e-12), name


def test_the_published_scores_are_the_download(published, tmp_path):
    entry = REMOTE["reader-study-scores"]
    assert (sha256(published), published.stat().st_size) == (entry.sha256, entry.bytes)
    shutil.copy(published, tmp_path / "reader-study-scores.csv")
    assert fetch("reader-study-scores", tmp_path) == tmp_path / "reader-study-scores.csv"


@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 12))
def test_weighted_figures_are_those_of_repeated_breasts(seed, n, levels):
    """Any whole weights, many ties: as the library's metrics on the repeated rows, and as pairs counted."""
    rng = np.random.default_rng(seed)
    y, weight = (rng.random(n) < 0.4).astype(float), rng.integers(0, 4, n).astype(float)
    y[:2], weight[:2] = (0, 1), (1, 2)
    s = rng.integers(0, levels, (n, 3)) / levels
    found = weighted_figures(rank_scores(y, s), weight)
    rows = np.repeat(np.arange(n), weight.astype(int))
    for k in range(3):
        a, b = y[rows], s[rows, k]
        fpr, tpr, _ = roc_curve(a, b, drop_intermediate=False)
        expected = [
            pair_auc(a, b),
            average_precision(a, b),
            partial_auc_ratio(a, b),
            specificity_at_sensitivity(a, b, 0.85),
            specificity_at_sensitivity(a, b, 0.9),
            np.interp(0.1, fpr, tpr),
        ]
        assert found[:, k] == pytest.approx(expected, abs=1e-12)


def test_one_class_alone_has_no_figures():
    y, s = np.array([0.0, 1, 1]), np.array([[0.1], [0.2], [0.3]])
    assert np.isnan(weighted_figures(rank_scores(y, s), np.array([0.0, 1, 2]))).all()
    assert np.isnan(weighted_figures(rank_scores(y, s), np.array([2.0, 0, 0]))).all()


def test_the_mean_curve_averages_sensitivities_and_areas():
    rng = np.random.default_rng(3)
    y = (rng.random(60) < 0.3).astype(float)
    scores = [np.round(y * 0.3 + rng.random(60), digits) for digits in (0, 1, 1, 2, 6)]
    curves = [roc_curve(y, s)[:2] for s in scores]
    fpr, tpr = mean_curve(curves)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= -1e-12).all()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(np.mean([pair_auc(y, s) for s in scores]), abs=1e-12)
    for at in (0.0001, 0.123, 0.5, 0.77):  # between grid points
        values = []
        for f, t in curves:
            right = next(i for i in range(len(f)) if f[i] > at)
            part = (at - f[right - 1]) / (f[right] - f[right - 1])
            values.append(t[right - 1] + part * (t[right] - t[right - 1]))
        assert np.interp(at, fpr, tpr) == pytest.approx(np.mean(values), abs=1e-12)


def test_intervals_draw_patients_with_both_breasts(table):
    study, seed, n = read_scores(table), 7, 50
    found = measure(study, n, seed)
    names, rng, values = np.unique(study.patient), np.random.default_rng(seed), []
    while len(values) < n:
        drawn = names[rng.integers(len(names), size=len(names))]
        rows = [i for name in drawn for i in np.flatnonzero(study.patient == name)]
        y = study.label[rows]
        if 0 < y.sum() < len(y):
            reader, model = study.readers["reader 2"][rows], study.models[MODEL][rows]
            values.append([auc_score(y, reader), auc_score(y, model) - auc_score(y, reader)])
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    assert found["reader 2", "reader", "AUC"][1:] == pytest.approx((low[0], high[0]), abs=1e-12)
    assert found[f"{MODEL} minus reader 2", "difference", "AUC"][1:] == pytest.approx((low[1], high[1]))


def test_the_experiment_writes_what_pairs_counted_by_hand_say(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(Config(out=out, scores=table, resamples=20)) == 0
    with (out / "reader-study.csv").open() as file:
        rows = {(r["who"], r["kind"], r["metric"]): r for r in csv.DictReader(file)}
    study = read_scores(table)
    y, readers, models = study.label, study.readers, study.models
    assert list(models) == [MODEL, "other"]
    everyone = sum(readers.values()) / 3

    def value(who, kind, metric="AUC"):
        return float(rows[who, kind, metric]["value"])

    for model, s in models.items():
        hybrids = [pair_auc(y, (r + s) / 2) for r in readers.values()]
        assert value(f"mean hybrid with {model}", "mean") == pytest.approx(np.mean(hybrids))
        both = pair_auc(y, (everyone + s) / 2)
        assert value(f"{TOGETHER} with {model}", "readers together") == pytest.approx(both)
    for w in (0, 0.05, 0.35, 1):
        mixed = [pair_auc(y, (1 - w) * r + w * models[MODEL]) for r in readers.values()]
        assert value(f"mean hybrid, weight {w:.2f}", "weight") == pytest.approx(np.mean(mixed))
        assert value(f"reader 3, weight {w:.2f}", "weight") == pytest.approx(mixed[2])
    mean_reader = np.mean([pair_auc(y, r) for r in readers.values()])
    gap = value(f"{MODEL} minus mean reader", "difference")
    assert gap == pytest.approx(pair_auc(y, models[MODEL]) - mean_reader)
    hybrid = np.round((readers["reader 1"] + models[MODEL]) / 2, 6)
    name = f"reader 1 with {MODEL} minus reader 1"
    assert value(name, "difference", "DeLong p") == delong_test(y, hybrid, readers["reader 1"]).p
    assert {metric for *_, metric in rows} == {*METRICS, "DeLong p"}
    assert all(float(r["low"]) <= float(r["high"]) for k, r in rows.items() if k[2] != "DeLong p")

    page = (out / "reader-study.md").read_text()
    assert page == capsys.readouterr().out.split("\n", 1)[1][: len(page)]
    assert "3 readers and 2 models on 40 breasts of 20 patients, 5 breasts with cancer" in page
    assert "other scores than the published ones" in page
    assert f"{gap:+.3f}" in page.split("## Reading")[1]
    for picture in ("reader-study", "reader-study-weights"):
        assert (out / f"{picture}.png").stat().st_size > 20_000
        assert f"]({picture}.png)" in page
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["scores"]["sha256"] == sha256(table)
    assert not facts["scores"]["published"]
    with pytest.raises(InputError, match="holds an experiment with resamples 20"):
        run(Config(out=out, scores=table, resamples=21))


def test_breasts_without_a_score_are_left_out_and_counted(table):
    whole, lines = read_scores(table), table.read_text().splitlines()
    lines[2] = ",".join([*lines[2].split(",")[:4], "", *lines[2].split(",")[5:]])
    table.write_text("\n".join(lines))
    study = read_scores(table)
    assert study.left_out == 1
    assert len(study.label) == 39
    assert (study.readers["reader 1"] == np.delete(whole.readers["reader 1"], 1)).all()


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("label", "2", r"line 5, label '2': is to be 0 or 1"),
        ("label", "", r"line 5, label nan: is to be 0 or 1"),
        ("side", "left", r"line 5, side 'left': is to be L or R"),
        ("side", "L", r"line 5, side 'L': has this breast for the second time"),
        ("case_ID", "", r"line 5, case_ID nan: is to name the patient"),
        ("Reader02_POM", "1.5", r"line 5, Reader02_POM '1.5': is to be a probability"),
        ("Reader02_POM", "-0.1", r"line 5, Reader02_POM '-0.1': is to be a probability"),
        ("AI_other_POM", "inf", r"line 5, AI_other_POM 'inf': is to be a probability"),
        ("AI_GMIC_top5_POM", "high", r"line 5, AI_GMIC_top5_POM 'high': is to be a probability"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(table, column, value, said):
    lines = table.read_text().splitlines()
    cells = lines[4].split(",")
    cells[lines[0].split(",").index(column)] = value
    table.write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]))
    with pytest.raises(InputError, match=said):
        read_scores(table)


def test_a_file_that_is_no_such_table_is_refused_in_a_sentence(table, tmp_path):
    good = table.read_text()
    for content, said in (
        (good.replace("label", "truth"), "has no column label"),
        (good.replace("AI_GMIC_top5_POM", "AI_GMIC"), "has no column AI_GMIC_top5_POM"),
        ("", "not a table"),
        ('a,b\n"1,2\n', "not a table"),
        (good.splitlines()[0] + "\n", "of one class; both are needed"),
        ("\n".join(line for line in good.splitlines() if ",L,1," not in line), "of one class"),
    ):
        table.write_text(content)
        with pytest.raises(InputError, match=said):
            read_scores(table)
    table.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"not a table|has no column"):
        read_scores(table)
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(InputError, match="cannot read this file"):
            read_scores(path)


def test_the_shipped_curves_are_those_of_the_published_scores(published):
    shipped, study = json.loads(CURVES.read_text(encoding="utf-8")), read_scores(published)
    assert CURVES.stat().st_size < 150_000
    assert shipped["provenance"]["published"]
    assert shipped["provenance"]["scores_sha256"] == sha256(published)
    assert [shipped[k] for k in ("breasts", "malignant", "patients")] == [1440, 61, 720]
    assert shipped["weights"] == [k / 10 for k in range(11)]
    assert list(shipped["curves"]) == [MEAN, *study.readers]
    means = [entry["auc"] for entry in shipped["curves"][MEAN]]
    assert (means[0], means[-1]) == (0.7788, 0.8812)
    for k, weight in enumerate(shipped["weights"]):
        aucs = []
        for who, s in study.readers.items():
            entry = shipped["curves"][who][k]
            aucs.append(pair_auc(study.label, (1 - weight) * s + weight * study.models[MODEL]))
            assert entry["auc"] == pytest.approx(aucs[-1], abs=5.1e-5)
            assert np.trapezoid(entry["tpr"], entry["fpr"]) == pytest.approx(aucs[-1], abs=0.003)
        assert means[k] == pytest.approx(np.mean(aucs), abs=5.1e-5)


def test_the_shipped_curves_name_their_source_and_hold_no_scores():
    text = CURVES.read_text(encoding="utf-8")
    shipped = json.loads(text)
    assert "BSD 2-Clause License. Copyright (c) 2022, Benjamin Stadnick" in shipped["licence"]
    assert shipped["source"].startswith("nyukat/mammography_metarepository")
    assert {"commit", "date", "command"} <= set(shipped["provenance"])
    assert not {"case_ID", "label", "POM"} & set(text.split('"'))
    for entries in shipped["curves"].values():
        assert len(entries) == 11
        for entry in entries:  # a thinned curve is a ROC curve: from (0, 0) to (1, 1), never down
            assert set(entry) == {"auc", "fpr", "tpr"}
            assert 2 <= len(entry["fpr"]) == len(entry["tpr"]) <= 40
            assert [entry["fpr"][k] for k in (0, -1)] == [entry["tpr"][k] for k in (0, -1)] == [0, 1]
            assert min(np.diff(entry["fpr"]).min(), np.diff(entry["tpr"]).min()) >= 0
            assert np.trapezoid(entry["tpr"], entry["fpr"]) == pytest.approx(entry["auc"], abs=0.003)


def test_curves_of_a_made_up_table_are_pairs_counted_by_hand(table, tmp_path):
    out = tmp_path / "curves.json"
    write_curves(table, out)
    written, study = json.loads(out.read_text(encoding="utf-8")), read_scores(table)
    assert not written["provenance"]["published"]
    curves = json.loads(json.dumps(reader_curves(study)))
    assert written["curves"] == curves
    assert list(curves) == [MEAN, "reader 1", "reader 2", "reader 3"]
    for k, weight in enumerate(written["weights"]):
        aucs = [
            pair_auc(study.label, (1 - weight) * s + weight * study.models[MODEL])
            for s in study.readers.values()
        ]
        assert [curves[who][k]["auc"] for who in study.readers] == pytest.approx(aucs, abs=5.1e-5)
        assert curves[MEAN][k]["auc"] == pytest.approx(np.mean(aucs), abs=5.1e-5)
    fpr, tpr, _ = roc_curve(study.label, study.readers["reader 2"])  # few corners: nothing is thinned
    assert curves["reader 2"][0]["fpr"] == pytest.approx(fpr, abs=5.1e-5)
    assert curves["reader 2"][0]["tpr"] == pytest.approx(tpr, abs=5.1e-5)


def test_thinning_removes_the_smallest_triangle_first():
    fpr, tpr = np.array([0, 0, 0.1, 0.5, 1]), np.array([0, 0.5, 0.6, 0.9, 1])
    # Areas by hand, twice: at (0, .5) .05, at (.1, .6) .01, at (.5, .9) .11.
    assert [list(part) for part in thin_curve(fpr, tpr, 4)] == [[0, 0, 0.5, 1], [0, 0.5, 0.9, 1]]
    assert [list(part) for part in thin_curve(fpr, tpr, 5)] == [list(fpr), list(tpr)]
    assert [list(part) for part in thin_curve(fpr, tpr, 2)] == [[0, 1], [0, 1]]


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="resamples must be 1 or more"):
        Config(out=tmp_path, resamples=0)
