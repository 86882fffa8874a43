"""The explorer of the reader study: its numbers, its curves and its frames."""

import io
import re

import numpy as np
import pytest
from controls import every_control_changes_the_words
from PIL import Image

from mammomil.explorers.readers import LEFT, SIDE, TOP, read_curves, readers_explorer
from mammomil.files import InputError, write_json


@pytest.fixture(scope="module")
def curves():
    return read_curves()


@pytest.fixture(scope="module")
def explorer(curves):
    return readers_explorer(curves)


def test_words_and_curves_are_those_of_the_file(curves, explorer):
    for reader in curves["curves"]:
        for weight in curves["weights"]:
            scene = explorer.scene(reader=reader, weight=weight)
            alone, both, model = (
                curves["curves"][reader][k] for k in (0, curves["weights"].index(weight), -1)
            )
            said = re.findall(r"(?<![\d.])([+-]?0\.\d{4})", scene.words)
            gains = both["auc"] - alone["auc"], both["auc"] - model["auc"]
            found = [float(text) for text in said]
            assert found == pytest.approx([alone["auc"], model["auc"], both["auc"], *gains], abs=1e-9)
            lines = [mark for kind, mark in scene.marks if kind == "line" and mark["stroke"] in (1.5, 2, 3)]
            areas = []
            for mark in lines[:3]:  # reader, model, hybrid, in this order
                x, y = np.array(mark["points"]).T
                areas.append(np.trapezoid(1 - (y - TOP) / SIDE, (x - LEFT) / SIDE))
            # Thinned and in whole units.
            assert areas == pytest.approx([alone["auc"], model["auc"], both["auc"]], abs=0.01)


def test_the_papers_figures_stand_where_the_paper_has_them(explorer):
    def printed(**values):
        marks = explorer.scene(**values).marks
        return [m["words"] for kind, m in marks if kind == "text" and m["words"].startswith("paper")]

    assert printed() == ["paper 0.778", "paper 0.876", "paper 0.883"]
    assert printed(weight=0.0) == ["paper 0.778", "paper 0.876", "paper 0.778"]
    assert printed(weight=1.0) == ["paper 0.778", "paper 0.876", "paper 0.876"]
    assert printed(weight=0.4) == ["paper 0.778", "paper 0.876"]
    assert printed(reader="reader 5") == ["paper 0.876"]
    assert explorer.scene().words.endswith("In the paper: 0.883.")


def test_every_move_changes_the_picture(curves, explorer):
    readers, weights = list(curves["curves"]), curves["weights"]
    for weight in weights:
        assert len({explorer.scene(reader=r, weight=weight).svg({}) for r in readers}) == len(readers)
    for reader in readers:
        assert len({explorer.scene(reader=reader, weight=w).svg({}) for w in weights}) == len(weights)


test_every_control_changes_the_words = every_control_changes_the_words


def test_the_page_is_small_and_loads_nothing(explorer):
    page = explorer.html()
    assert len(page) < 650_000
    assert "http" not in page
    assert np.asarray(Image.open(io.BytesIO(explorer.png()))).std() > 5


def test_other_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot read this file"):
        read_curves(tmp_path / "none.json")
    write_json(tmp_path / "other.json", [1, 2])
    with pytest.raises(InputError, match="holds no curves of readers"):
        read_curves(tmp_path / "other.json")


def test_the_dot_is_on_the_line_of_the_aucs_and_up_is_more(curves, explorer):
    for reader, entries in curves["curves"].items():
        aucs = [entry["auc"] for entry in entries]
        for at, weight in enumerate(curves["weights"]):
            marks = explorer.scene(reader=reader, weight=weight).marks
            (line,) = (m for kind, m in marks if kind == "line" and m["colour"] == "currentColor")
            (dot,) = (m for kind, m in marks if kind == "circle")
            assert (dot["x"], dot["y"]) == line["points"][at]
        assert np.corrcoef(aucs, np.array(line["points"])[:, 1])[0, 1] == pytest.approx(-1)
