"""The explorer of chapter 6 against the library's own ablations, and its frames."""

import io
import itertools
import re

import numpy as np
import pytest
import torch
from controls import every_control_changes_the_words
from PIL import Image
from sklearn.metrics import roc_auc_score

from mammomil.dataset import MammogramDataset
from mammomil.experiments.gmic_ablation import PAPER
from mammomil.experiments.gmic_runs import answers
from mammomil.explorers.ablation import LEFT, ROWS, SIDE, TOP, ablation_explorer
from mammomil.index import read_index, select
from mammomil.preprocess import PreprocessConfig
from mammomil.weights import SHIPPED, load_model

NAMES = ("saliency", "patches", "attention", "retrieved")


@pytest.fixture(scope="module")
def model():
    return load_model(SHIPPED / "weights" / "gmic-quick").model


@pytest.fixture(scope="module")
def data():
    """Twelve exams of the shipped phantoms, with both findings."""
    index = read_index(SHIPPED)
    exams = index.images["exam_id"].unique()[:12]
    return MammogramDataset(select(index, index.images["exam_id"].isin(exams)), PreprocessConfig.quick())


@pytest.fixture(scope="module")
def explorer(model, data):
    return ablation_explorer(model, data, seed=3, n_resamples=50)


def by_hand(data, prob):
    """AUC of breasts, from a table and scikit-learn."""
    images = data.images.assign(p=prob)
    breasts = images.groupby(["exam_id", "laterality"]).agg(p=("p", "mean"), y=("malignant", "max"))
    return roc_auc_score(breasts["y"], breasts["p"])


def test_rows_of_table_1_have_the_librarys_auc(model, data, explorer):
    rows = {name: dict(zip(NAMES, switches, strict=True)) for switches, name in ROWS.items()}
    rows["GMIC-loc"] = {"patches": False}
    found = answers(model, data, seed=3)
    assert set(rows) == set(found)
    whole = by_hand(data, found["GMIC"][:, 1])
    for name, switches in rows.items():
        auc = by_hand(data, found[name][:, 1])
        words = explorer.scene(**switches).words
        assert words.startswith(f"{name}: AUC of malignant breasts {auc:.3f}")
        assert f"has {PAPER[name][0]:.3f}" in words
        if name != "GMIC":
            # Adding 0 makes -0 a 0, as it is written.
            assert f"Difference to GMIC {auc - whole:+.3f}" in words


def test_ways_outside_table_1_are_named_and_an_empty_model_answers_nothing(model, data, explorer):
    words = explorer.scene(attention=False).words
    assert words.startswith("not in Table 1: AUC")
    assert "paper" not in words
    with torch.no_grad():  # equal weights with the map: by hand
        prob = []
        for row in range(len(data)):
            image = data[row].image[None]
            output = model(image)
            crops = torch.stack([image[0, 0, r : r + 32, c : c + 32] for r, c in output.rois[0].tolist()])
            bag = model.projection(model.patch_net(crops[:, None])).mean(0)
            prob.append((output.y_loc[0, 1] + model.mil_classifier(bag).sigmoid()[1]).item() / 2)
    assert f"malignant breasts {by_hand(data, np.array(prob)):.3f}" in words
    for attention, retrieved in itertools.product((False, True), repeat=2):
        nothing = explorer.scene(saliency=False, patches=False, attention=attention, retrieved=retrieved)
        assert nothing.words.startswith("Both branches are off")
        without = explorer.scene(patches=False, attention=attention, retrieved=retrieved).words
        assert without == explorer.scene(patches=False).words
        assert "make no difference here" in without


def test_the_interval_in_the_words_holds_the_area_and_leaves_the_model_as_it_was(model, explorer):
    assert model.config == load_model(SHIPPED / "weights" / "gmic-quick").model.config
    for switches in itertools.product((False, True), repeat=4):
        words = explorer.scene(**dict(zip(NAMES, switches, strict=True))).words
        found = re.search(r"breasts ([\d.]+) \(95 % interval over patients ([\d.]+) to ([\d.]+)\)", words)
        assert bool(found) == any(switches[:2])
        if found:
            value, low, high = map(float, found.groups())
            assert low - 0.005 <= value <= high + 0.005
        told = re.search(r"\(([+-][\d.]+) to ([+-][\d.]+)\), which (is told|cannot)", words)
        if told and abs(float(told[1])) > 0.005 and abs(float(told[2])) > 0.005:
            assert (float(told[1]) * float(told[2]) > 0) == (told[3] == "is told")


def test_every_switch_changes_the_picture_wherever_the_others_stand(explorer):
    def picture(switches):
        return explorer.scene(**dict(zip(NAMES, switches, strict=True))).svg({})

    for switches in itertools.product((False, True), repeat=4):
        for n in range(4):
            other = tuple(on != (k == n) for k, on in enumerate(switches))
            assert picture(switches) != picture(other)


test_every_control_changes_the_words = every_control_changes_the_words


def test_the_page_is_small_and_loads_nothing(explorer):
    page = explorer.html()
    assert len(page) < 300_000
    assert "http" not in page
    assert page.count('type="checkbox"') == 4
    assert np.asarray(Image.open(io.BytesIO(explorer.png()))).std() > 5


def test_curves_have_the_area_of_the_answer_and_grey_is_the_whole_model(model, data, explorer):
    found = answers(model, data, seed=3)

    def area(mark):
        x, y = np.array(mark["points"]).T
        return np.trapezoid(1 - (y - TOP) / SIDE, (x - LEFT) / SIDE)

    for name, switches in (("GMIC", {}), ("GMIC-mil", {"saliency": False}), ("GMIC-loc", {"patches": False})):
        lines = [m for kind, m in explorer.scene(**switches).marks if kind == "line" and not m["dashed"]]
        (grey,) = (m for m in lines if m["colour"] == "#8a8a8a")
        (own,) = (m for m in lines if m["colour"] == "#D55E00")
        assert area(grey) == pytest.approx(by_hand(data, found["GMIC"][:, 1]))
        assert area(own) == pytest.approx(by_hand(data, found[name][:, 1]))


def test_benign_breasts_have_their_own_area_and_the_papers_figure_for_them(model, data):
    words = ablation_explorer(model, data, "benign", n_resamples=10).scene().words
    images = data.images.assign(p=answers(model, data, seed=0)["GMIC"][:, 0])
    breasts = images.groupby(["exam_id", "laterality"]).agg(p=("p", "mean"), y=("benign", "max"))
    assert words.startswith(f"GMIC: AUC of benign breasts {roc_auc_score(breasts['y'], breasts['p']):.3f}")
    assert f"has {PAPER['GMIC'][1]:.3f}" in words
