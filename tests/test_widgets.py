"""Every explorer of the book, live, on the ipywidgets of this environment and on Colab's 7.7.1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDGETS7 = Path(sys.prefix) / "widgets7"
LIVE = """
import sys
import ipywidgets
assert ipywidgets.__version__.startswith(sys.argv[1]), ipywidgets.__version__
import torch
from mammomil import classroom, widgets
from mammomil.dataset import MammogramDataset
from mammomil.explorers.readers import read_curves
from mammomil.explorers.replay import record
from mammomil.index import select
from mammomil.phantom import render_exam

torch.set_num_threads(1)
model, preprocess, _ = classroom.shipped_model()
index = classroom.sample_index()
some = select(index, index.images["exam_id"].isin(index.images["exam_id"].unique()[:12]))
data = MammogramDataset(some, preprocess)
images = torch.stack([data[i].image for i in (0, 2)])
with torch.inference_mode():
    saliency = model(images).saliency
half = classroom.shipped_model("gmic-quick-half").model
explorers = {
    "views": widgets.views_explorer([render_exam(seed) for seed in (1, 2)]),
    "saliency": widgets.saliency_explorer(model, images),
    "retrieval": widgets.retrieval_explorer(saliency, images),
    "attention": widgets.attention_explorer(model, images),
    "replay": widgets.replay_explorer([record(half, images, 0.0), record(model, images, 1.0)], images),
    "ablation": widgets.ablation_explorer(model, data, n_resamples=50),
    "readers": widgets.readers_explorer(read_curves()),
}

def leaves(box):
    for child in getattr(box, "children", ()):
        yield from leaves(child) if hasattr(child, "children") else [child]

for name, explorer in explorers.items():
    parts = list(leaves(explorer.widget()))
    picture = next(p for p in parts if isinstance(p, ipywidgets.HTML) and "<svg" in p.value)
    moved = 0
    for part in parts:
        if isinstance(part, ipywidgets.Checkbox):
            start = part.value
            before = picture.value
            part.value = not start
            assert picture.value != before, (name, part.description)
            part.value = start
            moved += 1
        elif isinstance(part, (ipywidgets.SelectionSlider, ipywidgets.Dropdown)):
            start = part.index
            for index in range(len(part.options)):
                if index != part.index:
                    before = picture.value
                    part.index = index
                    assert picture.value != before, (name, part.description, index)
            part.index = start
            moved += 1
    assert moved == len(explorer.controls), name
print("live", *explorers)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["7.7.1", "8."])
def test_every_explorer_is_live_and_every_control_redraws_it(version):
    environment = dict(os.environ)
    environment.pop("MAMMOMIL_STATIC", None)
    if version == "7.7.1":
        if not WIDGETS7.is_dir():
            pytest.skip(f"no ipywidgets 7.7.1 at {WIDGETS7}; `make test` puts it there")
        environment["PYTHONPATH"] = str(WIDGETS7)
    done = subprocess.run(
        [sys.executable, "-c", LIVE, version], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "live views saliency retrieval attention replay ablation readers"


def test_widgets_names_every_explorer_module():
    from mammomil import explorers, widgets

    modules = {p.stem for p in Path(explorers.__file__).parent.glob("*.py")} - {"__init__"}
    assert {name.removesuffix("_explorer") for name in widgets.__all__} == modules
    for name in widgets.__all__:
        assert getattr(widgets, name).__module__.endswith(name.removesuffix("_explorer"))
