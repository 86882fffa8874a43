import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mammomil import classroom
from mammomil.files import InputError


@pytest.fixture
def shown(monkeypatch):
    import IPython.display

    seen = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **k: seen.append((data, k)))
    return seen


def test_the_scale_is_quick_without_a_gpu_and_says_so(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MAMMOMIL_SCALE", "full")
    room = classroom.start("99")
    said = capsys.readouterr().out
    assert (room.scale, room.device) == ("quick", "cpu")
    assert "needs a GPU and there is none" in said
    assert "not measured yet" in said


def test_the_scale_is_full_where_it_is_asked_for_and_a_gpu_is_there(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a T4")
    monkeypatch.setenv("MAMMOMIL_SCALE", "full")
    assert classroom.start("99").scale == "full"
    assert "Scale: full. Device: a T4." in capsys.readouterr().out
    monkeypatch.delenv("MAMMOMIL_SCALE")
    assert classroom.start("99").scale == "quick"


def test_another_scale_is_refused(monkeypatch):
    monkeypatch.setenv("MAMMOMIL_SCALE", "huge")
    with pytest.raises(InputError, match=r"'huge'\. Set it to quick or full"):
        classroom.start("00")


def test_a_chapter_gives_the_same_random_numbers_each_time():
    import torch

    classroom.start("99")
    first = torch.randn(3)
    classroom.start("99")
    assert torch.equal(torch.randn(3), first)


def test_times_come_from_the_table_of_measurements(monkeypatch):
    table = {"chapters": {"42": {"run_s": 44, "read_min": 12, "exercise_min": 30}}}
    monkeypatch.setattr(classroom, "_static", lambda name: json.dumps(table))
    said = classroom._duration("42", "quick", False)
    assert "12 minutes to read, 30 for the exercises" in said
    assert "40 s on 2 CPU cores" in said
    assert "The full scale was not timed" in classroom._duration("42", "full", True)


def test_a_missing_sample_folder_is_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr(classroom, "SHIPPED", tmp_path)
    with pytest.raises(InputError, match="Clone the repository"):
        classroom.samples()


def test_an_unknown_model_is_told_which_there_are():
    with pytest.raises(InputError, match="gmic-quick, gmic-quick-half, region-encoder"):
        classroom.shipped_model("gmic-huge")


def test_a_figure_is_shown_with_its_words_escaped_and_closed(shown):
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1])
    classroom.show(axes, 'A "line" <up>')
    (data, how) = shown[0]
    assert how == {"raw": True}
    assert 'alt="A &quot;line&quot; &lt;up&gt;"' in data["text/html"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))))
    assert pixels.std() > 0
    assert figure.number not in plt.get_fignums()


@pytest.mark.parametrize("name", ["gmic", "dual_branch"])
def test_drawings_are_xml_load_nothing_and_light_the_part_asked_for(name):
    plain = classroom.drawing(name)
    ElementTree.fromstring(plain)
    assert not re.search(r'(href|src)="(?!#)', plain)
    parts = re.findall(r'<g data-part="(\w+)"', plain)
    assert {"input", "regions", "loss"} <= set(parts)
    for part in set(parts):
        root = ElementTree.fromstring(classroom.drawing(name, part))
        groups = [g for g in root.iter() if g.get("data-part")]
        assert len(groups) == len(parts)
        for group in groups:
            assert (group.get("opacity") is None) == (group.get("data-part") == part)
    with pytest.raises(InputError, match=r"no part 'nose'\. It has: "):
        classroom.drawing(name, "nose")


def test_a_drawing_is_shown_with_words(shown):
    classroom.picture("gmic", alt="GMIC & co", highlight="saliency")
    assert 'role="img" aria-label="GMIC &amp; co"' in shown[0][0]["text/html"]


def test_glued_numbers_are_what_myst_reads(shown, monkeypatch):
    monkeypatch.setenv("MAMMOMIL_STATIC", "1")
    classroom.glue("42-auc", 0.8125, "{:.2f}")
    data, how = shown.pop()
    kind = "application/papermill.record/text/plain"
    assert data == {kind: "'0.81'"}
    assert how["metadata"]["scrapbook"] == {"name": "42-auc", "mime_prefix": "application/papermill.record/"}
    monkeypatch.delenv("MAMMOMIL_STATIC")
    classroom.glue("42-auc", 0.8125)
    assert shown == []
