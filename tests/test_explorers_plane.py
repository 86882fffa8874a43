"""The probability plane against the chapter's parts, asked again and counted by hand."""

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

from mammomil import classroom
from mammomil.experiments.region_runs import Regions
from mammomil.explorers.plane import SIDE, _choose_rows, plane_explorer
from mammomil.files import InputError
from mammomil.index import select
from mammomil.practice import Practice, train_head
from mammomil.recipes import preset
from mammomil.region_data import RegionCanvases

EPOCHS = (1, 3, 6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve shipped phantoms to learn from and twelve to judge, with codes that know the label."""
    index = classroom.sample_index()
    label = index.images[["benign", "malignant"]].to_numpy(float)
    kinds = label @ [1, 2]
    rows = np.sort(np.concatenate([np.flatnonzero(kinds == k)[:8] for k in range(4)]))
    index = select(index, np.isin(np.arange(len(label)), rows))
    label = index.images[["benign", "malignant"]].to_numpy(float)
    index.images["split"] = np.where(np.arange(len(label)) % 2, "test", "train")
    run = preset("dual-branch", "quick", tmp_path_factory.mktemp("index"), tmp_path_factory.mktemp("out"))
    canvases = RegionCanvases(index, run.preprocess, run.model.windows)
    random = torch.Generator().manual_seed(0)
    codes = []
    for row, y in enumerate(torch.from_numpy(label)):
        some = torch.randn(len(canvases.look(row).boxes), 16, generator=random)
        some[5, :2] += 6 * y.float()
        codes.append(some)
    nothing = [np.zeros((len(c), 0), np.float32) for c in codes]
    return Practice(index.root, index.root, Regions(index, label, codes, nothing, nothing)), canvases


@pytest.fixture(scope="module")
def trained(data):
    return train_head(data[0], epochs=6, learning_rate=2e-2, progress=False)


@pytest.fixture(scope="module")
def explorer(data, trained):
    return plane_explorer(data[0], trained, EPOCHS, data[0].rows("test"))


def numbers(words):
    told = re.fullmatch(
        r"Epoch (\d+)\. Image (\d+), (.+): p\(malignant\) (\S+), p\(benign\) (\S+)\. The SVM.* calls it "
        r"(\w+), (\w+); it is right in (\d+) of (\d+) images"
        r"(?: and in (\d+) of the (\d+) it has learned from)?\. "
        r"(MB vs N|M vs BN), called where .* is (\S+) or more: sensitivity (\d+) of (\d+), "
        r"specificity (\d+) of (\d+), AUROC (\S+)\.",
        words,
    )
    assert told, words
    return told.groups()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("epoch", [0, 2])
def test_words_tell_what_is_counted_by_hand(data, trained, explorer, epoch, task, balanced):
    data, image, tau = data[0], 7, 0.4
    rows, learned = data.rows("test"), data.rows("train")
    scene = explorer.scene(
        epoch=epoch, image=image, task=task, threshold=tau, balanced=balanced, training=True
    )
    told = numbers(scene.words)
    benign, malignant = trained.prob[EPOCHS[epoch] - 1][rows].round(4).T
    b, m = data.regions.label[rows].T
    score, y = (malignant, m) if task == 0 else (np.maximum(benign, malignant), np.maximum(b, m))
    hits = sum(s >= tau and t == 1 for s, t in zip(score, y, strict=True))
    passed = sum(s < tau and t == 0 for s, t in zip(score, y, strict=True))
    assert [int(v) for v in told[13:17]] == [hits, y.sum(), passed, (y == 0).sum()]
    assert float(told[17]) == pytest.approx(roc_auc_score(y, score), abs=0.0051)
    assert told[0] == str(EPOCHS[epoch])
    assert [float(v) for v in told[3:5]] == pytest.approx([malignant[image], benign[image]], abs=0.0051)

    svm = OneVsRestClassifier(SVC(class_weight="balanced" if balanced else None))
    kind = np.where(data.regions.label[:, 1] == 1, 2, data.regions.label[:, 0])
    svm.fit(trained.prob[EPOCHS[epoch] - 1][learned].round(4), kind[learned])
    called = svm.predict(np.stack([benign, malignant], 1))
    names = ["normal", "benign", "malignant"]
    right = called == kind[rows]
    assert told[5:7] == (names[int(called[image])], "right" if right[image] else "wrong")
    assert [int(v) for v in told[7:9]] == [right.sum(), len(rows)]
    lessons = svm.predict(trained.prob[EPOCHS[epoch] - 1][learned].round(4)) == kind[learned]
    assert [int(v) for v in told[9:11]] == [lessons.sum(), len(learned)]
    assert ("classes weighed alike" in scene.words) == balanced
    # Tints: the picture's cells are what the SVM calls a point there, benign upwards.
    tint = next(mark for kind, mark in scene.marks if kind == "image")
    for row, column in ((3, 40), (24, 24), (44, 2), (5, 5)):
        p = [[1 - (row + 0.5) / 48, (column + 0.5) / 48]]
        colour = [(0x8A,) * 3, (0, 0x72, 0xB2), (0xD5, 0x5E, 0)][int(svm.predict(p)[0])]
        assert tuple(tint["rgba"][row, column, :3]) == colour


def test_points_stand_where_the_paper_has_them(data, trained, explorer):
    """Malignant to the right, benign upwards; every image has a place to click that chooses it."""
    scene = explorer.scene()
    hot = [mark for kind, mark in scene.marks if kind == "hot"]
    prob = trained.prob[-1][data[0].rows("test")]
    frame = next(m for kind, m in scene.marks if kind == "rect" and m["width"] == m["height"] == SIDE)
    at = np.array([[(m["x"] - frame["x"]) / SIDE, 1 - (m["y"] - frame["y"]) / SIDE] for m in hot])
    np.testing.assert_allclose(at, prob[:, ::-1], atol=1e-4)
    assert [m["positions"] for m in hot] == [{"image": i} for i in range(len(hot))]
    places = np.array([[m["x"], m["y"]] for m in hot])
    for i, mark in enumerate(hot):
        nearest = min(np.hypot(*(places[i] - places[j])) for j in range(len(hot)) if j != i)
        assert mark["radius"] == pytest.approx(min(13, max(6, 0.7 * nearest)), abs=0.051)


def test_frames_are_the_findings_and_the_best_regions(data, trained, explorer):
    data, canvases = data
    rows = data.rows("test")
    for image in (1, 9, 15):
        marks = [m for kind, m in explorer.scene(image=image).marks if kind == "rect" and not m["fill"]]
        row = int(rows[image])
        truth = canvases.findings_on_canvas(row)
        shown = [m for m in marks if m["dashed"]]
        assert len(shown) == len(truth.boxes)
        for mark, box, malignant in zip(shown, truth.boxes.tolist(), truth.malignant, strict=True):
            assert mark["colour"] == ("#D55E00" if malignant else "#0072B2")
            assert mark["width"] == pytest.approx((box[2] - box[0]) * 250 / 368, abs=0.06)
        with torch.inference_mode():
            codes = data.regions.codes[row][None]
            scores = trained.head(codes, torch.ones(codes.shape[:2], dtype=torch.bool)).scores[0]
        boxes = canvases.look(row).boxes[scores.argmax(0)]
        found = [m for m in marks if m["stroke"] == 2 and not m["dashed"]]
        assert [m["x"] for m in found] == pytest.approx((boxes[:, 0] * 250 / 368).tolist(), abs=0.06)
        best = {f"{'BM'[c]} {scores[:, c].max():.2f}" for c in (0, 1)}
        assert best <= {m["words"] for kind, m in explorer.scene(image=image).marks if kind == "text"}


def test_every_control_changes_picture_and_words(explorer):
    for control in explorer.controls:
        scenes = [explorer.scene(**{control.name: value}) for value in control.values]
        assert len({scene.words for scene in scenes}) == len(scenes), control.name
        assert len({scene.svg({}) for scene in scenes}) == len(scenes), control.name


def test_html_is_self_contained(explorer):
    page = explorer.html()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert explorer.scene().width <= 720
    assert explorer.png()[:4] == b"\x89PNG"


def test_default_images_are_of_all_classes_and_spread(data, trained):
    explorer = plane_explorer(data[0], trained)
    images = next(c for c in explorer.controls if c.name == "image")
    assert len(images.values) == len(data[0].rows("test"))  # fewer than 60: all of them
    epoch = next(c for c in explorer.controls if c.name == "epoch")
    assert epoch.texts == ("1", "2", "3", "4", "5", "6")


def test_a_choice_keeps_shares_and_the_spread_of_probabilities(data):
    practice = data[0]
    prob = np.random.default_rng(0).random(practice.regions.label.shape)
    test = practice.rows("test")
    rows = _choose_rows(practice, prob, len(test) // 2)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(test)
    true = practice.regions.label @ [1, 2]
    for k in range(4):
        ranked = sorted(test[true[test] == k], key=lambda row: prob[row, 1])
        mine = [ranked.index(row) for row in rows if true[row] == k]
        assert len(mine) == len(ranked) // 2
        assert sorted(mine) == [2 * i + 1 for i in range(len(mine))]  # every second


def test_unusable_requests_are_told(data, trained):
    with pytest.raises(InputError, match="between 1 and 6"):
        plane_explorer(data[0], trained, [1, 7])
    regions = data[0].regions
    label = regions.label.copy()
    label[data[0].rows("test")[0], 0] = np.nan
    hole = data[0]._replace(regions=regions._replace(label=label))
    with pytest.raises(InputError, match="unknown"):
        plane_explorer(hole, trained, EPOCHS, hole.rows("test"))


@pytest.mark.book
def test_the_page_draws_the_same(explorer, assert_same_in_browser):
    random = np.random.default_rng(0)
    settings = [
        {control.name: control.values[random.integers(len(control.values))] for control in explorer.controls}
        for _ in range(40)
    ]
    assert_same_in_browser(explorer, settings)


@pytest.mark.book
def test_points_can_be_clicked_on_a_telephone(data, trained, explorer_page):
    spread = trained._replace(prob=np.random.default_rng(0).random(trained.prob.shape))
    explorer = plane_explorer(data[0], spread, EPOCHS, data[0].rows("test"))
    page, wrong = explorer_page(explorer, width=375)
    marks = [mark for kind, mark in explorer.scene().marks if kind == "hot"]
    places = np.array([[mark["x"], mark["y"]] for mark in marks])
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag(np.full(len(places), np.inf))
    clear = np.flatnonzero(apart.min(1) >= 6.5)
    assert len(clear) >= 14
    for i in clear:
        box = page.locator(".mm-hot").nth(int(i)).bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert f"Image {i + 1}," in page.locator(".mm-words").text_content()
    assert wrong == []
