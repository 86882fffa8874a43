import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mammomil.files import InputError
from mammomil.marks import inline
from mammomil.scenes import BENIGN, MALIGNANT, Scene


def decode(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))))


def test_a_small_picture_arrives_to_the_grey_level_it_was_given():
    values = np.linspace(-1, 3, 12).reshape(3, 4)
    scene = Scene(100, 80)
    scene.image(values, 0, 0, 40, 30, low=-1, high=3)
    images = {}
    scene.svg(images)
    (address,) = images.values()
    want = np.floor((values + 1) / 4 * 256).clip(0, 255)  # a colour map has 256 entries
    got = decode(address)
    assert np.array_equal(got[..., 0], want)
    assert np.array_equal(got[..., 0], got[..., 2])


def test_opacity_of_every_cell_is_kept():
    alpha = np.array([[0.0, 0.25], [0.5, 1.0]])
    scene = Scene(10, 10)
    scene.image(np.ones((2, 2)), 0, 0, 10, 10, low=0, high=1, alpha=alpha)
    images = {}
    scene.svg(images)
    assert decode(next(iter(images.values())))[..., 3].tolist() == [[0, 64], [128, 255]]


def test_frames_share_a_picture_they_both_show():
    pixels = np.random.default_rng(0).random((80, 80))
    images = {}
    svgs = []
    for x in (0, 7):
        scene = Scene(200, 100)
        scene.image(pixels, x, 0, 80, 80)
        svgs.append(scene.svg(images))
    assert len(images) == 1
    assert svgs[0] != svgs[1]
    assert all("data:" not in svg for svg in svgs)
    assert inline(svgs[0], images).count("data:image/jpeg;base64,") == 1


@given(st.text(max_size=30))
def test_no_text_becomes_markup(words):
    scene = Scene(10, 10)
    scene.text(1, 2, words)
    svg = scene.svg({})
    inside = re.fullmatch(r"<text [^<>]*>([^<>]*)</text>", svg, re.DOTALL)
    assert inside, svg
    assert "<script" not in svg


def test_a_colour_cannot_end_its_attribute():
    scene = Scene(10, 10)
    scene.rect(0, 0, 1, 1, '"><script>')
    assert "<script>" not in scene.svg({})


def test_infinite_values_are_refused():
    scene = Scene(10, 10)
    with pytest.raises(InputError, match="NaN or infinity"):
        scene.image(np.array([[0.0, np.nan]]), 0, 0, 1, 1)


def test_the_png_shows_every_kind_of_mark_where_it_was_put():
    scene = Scene(120, 90)
    scene.image(np.full((2, 2), 1.0), 0, 0, 20, 20, low=0, high=2)  # grey in the upper left corner
    scene.rect(30, 0, 20, 20, BENIGN, fill=BENIGN)
    scene.circle(70, 10, 9, MALIGNANT, fill=MALIGNANT)
    scene.line([(90, 10), (120, 10)], "#000000", stroke=6)
    scene.text(10, 80, "MMMM", size=30, bold=True)
    pixels = np.asarray(Image.open(io.BytesIO(scene.png(scale=1))).convert("RGB"))
    assert pixels.shape == (90, 120, 3)
    assert abs(int(pixels[10, 10, 0]) - 128) <= 2
    assert tuple(pixels[10, 40]) == (0x00, 0x72, 0xB2)
    assert tuple(pixels[10, 70]) == (0xD5, 0x5E, 0x00)
    assert pixels[10, 105].max() < 40
    assert pixels[60:80, 10:80].min() < 60  # ink
    assert tuple(pixels[45, 60]) == (255, 255, 255)


def test_svg_marks_stand_where_they_were_put_and_look_as_asked():
    scene = Scene(100, 80)
    scene.image(np.eye(2), 1, 2, 30, 40)
    scene.image(np.eye(2), 1, 2, 30, 40, smooth=True)
    scene.rect(3, 4, 5, 6, dashed=True)
    scene.line([(1, 2), (30, 4)])
    scene.circle(7, 8, 9)
    scene.text(10, 11, "w", anchor="end")
    cells, smooth, rect, line, circle, text = ElementTree.fromstring(f"<svg>{scene.svg({})}</svg>")

    def values(element, names):
        return [element.get(name) for name in names.split()]

    assert values(cells, "x y width height class") == ["1", "2", "30", "40", "mm-cells"]
    assert values(smooth, "x y width height class") == ["1", "2", "30", "40", None]
    assert values(rect, "x y width height stroke-dasharray") == ["3", "4", "5", "6", "4 3"]
    assert values(line, "points stroke-dasharray") == ["1,2 30,4", None]
    assert values(circle, "cx cy r") == ["7", "8", "9"]
    assert values(text, "x y text-anchor") == ["10", "11", "end"]


def test_a_picture_is_the_right_way_up_and_keeps_its_colours():
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    scene = Scene(40, 40)
    scene.image(colours, 0, 0, 40, 40)
    pixels = np.asarray(Image.open(io.BytesIO(scene.png(scale=1))).convert("RGB"))
    assert np.array_equal(pixels[10::20, 10::20], colours)
    images = {}
    scene.svg(images)
    assert np.array_equal(decode(next(iter(images.values()))), colours)


def test_without_limits_the_least_value_is_dark_and_the_greatest_light():
    scene = Scene(10, 10)
    scene.image(np.array([[2.0, 3.5], [3.0, 5.0]]), 0, 0, 10, 10)
    images = {}
    scene.svg(images)
    assert decode(next(iter(images.values())))[..., 0].tolist() == [[0, 128], [85, 255]]
