"""The explorer of chapter 15 against a FROC curve counted by hand."""

import itertools
import re

import numpy as np
import pytest

from mammomil.explorers.froc import ALPHAS, FIELD, LEFT, WIDTH, FrocPicture, froc_explorer
from mammomil.files import InputError
from mammomil.scenes import MALIGNANT, SKY

HEIGHT, BREADTH, SIDE = 120, 80, 20


@pytest.fixture(scope="module")
def images():
    """40 images of 12 regions; a third is positive with one or two lesions, one of them unplaced."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(40):
        label = float(i % 3 == 0)
        lesions = (1 + i % 2) * int(label) * (i != 3)
        score = rng.random() * 0.6 + 0.3 * label
        iom = rng.choice([0.0, 0.0, 0.0, 0.3, 0.6, 0.9], (12, lesions))
        found = rng.random(12) * (rng.random(12) < 0.8) * (0.5 + 0.5 * iom.max(1, initial=0))
        made.append({"label": label, "score": score, "region_score": found, "iom": iom})
    return made


def tau(images):
    positives = sorted((i["score"] for i in images if i["label"] == 1), reverse=True)
    return next(s for n, s in enumerate(positives, 1) if n / len(positives) >= 0.85)


@pytest.fixture(scope="module")
def pictures(images):
    y, x = np.mgrid[:HEIGHT, :BREADTH]
    boxes = np.array([[c, r, c + SIDE, r + SIDE] for r in (0, 25, 50, 75) for c in (0, 25, 50)], float)
    by_score = sorted((i for i in range(40) if images[i]["iom"].size), key=lambda i: images[i]["score"])
    shown = {"first": by_score[-1], "second": by_score[-2], "other": 1, "low": by_score[0]}
    assert images[by_score[0]]["score"] < tau(images)
    masks = np.array([(x - 30 - 20 * k) ** 2 + (y - 40) ** 2 < 100 for k in range(2)])
    pixels = (x + y).astype(float)
    return [
        FrocPicture(name, row, pixels, boxes, masks[: images[row]["iom"].shape[1]])
        for name, row in shown.items()
    ]


@pytest.fixture(scope="module")
def explorer(images, pictures):
    return froc_explorer(images, pictures)


def by_hand(images, threshold, gate, alpha, over):
    """Hits, positives, false positives, divisor, in loops."""
    judged = [i for i in images if i["label"] == 0 or i["iom"].shape[1]]
    called = [i for i in judged if not gate or i["score"] >= tau(images)]
    hits = false = 0
    for image in called:
        hit = False
        for d, row in zip(image["region_score"], image["iom"], strict=True):
            if d > 0 and d >= threshold:
                on = any(value >= alpha for value in row)
                hit, false = hit or on, false + (not on)
        hits += hit
    return hits, sum(i["label"] == 1 for i in called), false, len(called if over == "classified" else judged)


def boxes_of(scene):
    """Outlines drawn on the pictures, above the legend: hits and false alarms."""
    legend = min(m["y"] for kind, m in scene.marks if kind == "text" and m["words"] == "hit")
    rects = [m for kind, m in scene.marks if kind == "rect" and m["fill"] is None and m["y"] < legend - 20]
    return [sum(m["colour"] == colour for m in rects) for colour in (SKY, MALIGNANT)]


def test_words_point_and_boxes_are_what_is_counted_by_hand(images, pictures, explorer):
    thresholds = explorer.controls[0].values
    assert 10 <= len(thresholds) <= 16
    for threshold, gate, alpha, over in itertools.product(
        thresholds, (False, True), ALPHAS, ("classified", "all")
    ):
        scene = explorer.scene(threshold=threshold, gate=gate, alpha=alpha, over=over)
        hits, sick, false, divisor = by_hand(images, threshold, gate, alpha, over)
        assert f"{hits} of {sick} hit: sensitivity {hits / sick:.2f}" in scene.words
        assert f"{false} false over {divisor}: FPPI {false / divisor:.2f}" in scene.words
        expected = [0, 0]
        for picture in pictures:
            image = images[picture.row]
            if gate and image["score"] < tau(images):
                assert f"{picture.name}: not called" in scene.words
                continue
            counts = by_hand([image], threshold, False, alpha, "all")
            marked = sum(d > 0 and d >= threshold for d in image["region_score"])
            assert f"{picture.name}: {marked - counts[2]} hit, {counts[2]} false" in scene.words
            expected = [expected[0] + marked - counts[2], expected[1] + counts[2]]
        assert boxes_of(scene) == expected
        (dot,) = (m for kind, m in scene.marks if kind == "circle")
        (curve,) = (
            m for kind, m in scene.marks if kind == "line" and m["stroke"] == 2 and len(m["points"]) > 2
        )
        place = scene.height - 70 - FIELD * hits / sick
        assert dot["y"] == pytest.approx(place)
        ticks = [m["words"] for k, m in scene.marks if k == "text" and m["words"].isdigit()]
        widest = max(int(tick) for tick in ticks)
        assert dot["x"] == pytest.approx(LEFT + (WIDTH - 14 - LEFT) * false / divisor / widest)
        corners = np.array(curve["points"])
        low, high = np.minimum(corners[:-1], corners[1:]) - 1e-6, np.maximum(corners[:-1], corners[1:]) + 1e-6
        place = np.array([dot["x"], dot["y"]])
        assert ((low <= place) & (place <= high)).all(1).any()  # on a step: they are level or upright
        assert (np.diff(corners, axis=0) == 0).any(1).all()
        assert (np.diff(corners[:, 0]) >= 0).all()
        assert (np.diff(corners[:, 1]) <= 0).all()


def test_every_control_changes_the_picture_and_the_words(explorer):
    for control in explorer.controls:
        scenes = [explorer.scene(**{control.name: value}) for value in control.values]
        assert len({scene.words for scene in scenes}) == len(control.values), control.name
        assert len({scene.svg({}) for scene in scenes}) == len(control.values), control.name


def test_an_image_that_is_not_called_has_no_box_and_is_dimmed(explorer):
    last = explorer.controls[0].values[-1]
    gated, all_called = (explorer.scene(threshold=last, gate=gate) for gate in (True, False))
    assert "low: not called" in gated.words
    assert re.search(r"low: \d+ hit", all_called.words)
    dark = [sum(m.get("opacity") == 0.6 for _, m in scene.marks) for scene in (gated, all_called)]
    assert dark[0] > dark[1] == 0


def test_html_is_small_and_self_contained(explorer):
    page = explorer.html()
    assert len(page) < 400_000
    assert "http" not in page.replace("http://www.w3.org", "")
    assert explorer.scene().width <= 720


def test_what_cannot_be_drawn_is_refused(images, pictures):
    with pytest.raises(InputError, match="no FROC curve"):
        froc_explorer([image for image in images if image["label"] == 0], pictures)
    short = pictures[0]._replace(boxes=pictures[0].boxes[:3])
    with pytest.raises(InputError, match=r"'first': 3 boxes for 12 scores"):
        froc_explorer(images, [short])
