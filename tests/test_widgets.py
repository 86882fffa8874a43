"""Every explorer of the book, live, on the ipywidgets of this environment and on Colab's 7.7.1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WIDGETS7 = Path(sys.prefix) / "widgets7"
LIVE = '''
import sys
import ipywidgets
assert ipywidgets.__version__.startswith(sys.argv[1]), ipywidgets.__version__
import numpy as np
import torch
from mammomil import classroom, widgets
from mammomil.dataset import MammogramDataset
from mammomil.explorers.readers import read_curves
from mammomil.explorers.replay import record
from mammomil.index import select
from mammomil.phantom import render_exam

def dual_branch():
    """The explorers of the second half, on images of noise."""
    from mammomil.dual_branch import DualBranchConfig, build_dual_branch
    from mammomil.explorers.budget import read_budget
    from mammomil.explorers.froc import FrocPicture
    from mammomil.explorers.selection import Shown
    from mammomil.practice import practice, train_head

    rng = np.random.default_rng(0)
    pixels = rng.random((120, 110), np.float32)
    corner = torch.tensor([(10.0 * (i % 10), 10.0 * (i // 10)) for i in range(90)])
    boxes = torch.cat([corner, corner + 20], 1)
    lesion = torch.tensor([[20.0, 10, 45, 30]])
    mask = np.zeros((1, 120, 110), bool)
    mask[0, 10:30, 20:45] = True
    config = DualBranchConfig(hidden=16, branch_std=0.6)
    heads = {f"stage {seed}": build_dual_branch(config, 16, seed).eval() for seed in (0, 1)}
    hits = np.arange(90)[:, None] % 7 == np.array([2, 3])
    shown = [
        Shown(name, pixels, boxes, torch.randn(90, 16), hits, (lesion, lesion)) for name in ("one", "two")
    ]
    judged = []
    for i in range(40):
        label = float(i % 3 == 0)
        iom = rng.choice([0.0, 0.3, 0.6, 0.9], (90, int(label)))
        judged.append(
            {
                "label": label,
                "score": rng.random(),
                "region_score": rng.random(90) * (0.5 + 0.5 * iom.max(1, initial=0)),
                "iom": iom,
            }
        )
    pictures = [FrocPicture(f"image {i}", i, pixels, boxes.numpy(), mask) for i in (0, 3, 6)]
    exams = practice(12)
    trained = train_head(exams, epochs=4, learning_rate=2e-2, progress=False)
    crops, crop_masks = torch.rand(2, 60, 60), [torch.zeros(1, 60, 60, dtype=torch.bool) for _ in range(2)]
    for k, crop_mask in enumerate(crop_masks):
        crop_mask[0, 20 : 35 + 8 * k, 25:40] = True
        crop_mask[0, 20, 25:30] = False
    return {
        "ranking": widgets.ranking_explorer(
            rng.random((184, 120)), boxes[:40:7], 2 * torch.randn(6, 3), 2 * torch.randn(6, 2)
        ),
        "selection": widgets.selection_explorer(heads, shown),
        "iom": widgets.iom_explorer(crops, crop_masks),
        "froc": widgets.froc_explorer(judged, pictures),
        "plane": widgets.plane_explorer(exams, trained, (1, 2, 4), exams.rows("test")),
        "budget": widgets.budget_explorer(read_budget()),
    }


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
    **dual_branch(),
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
'''


@pytest.mark.slow
@pytest.mark.parametrize("version", ["7.7.1", "8."])
def test_every_explorer_is_live_and_every_control_redraws_it(version, tmp_path):
    environment = dict(os.environ) | {"MAMMOMIL_CACHE": str(tmp_path), "TQDM_DISABLE": "1"}
    environment.pop("MAMMOMIL_STATIC", None)
    if version == "7.7.1":
        if not WIDGETS7.is_dir():
            pytest.skip(f"no ipywidgets 7.7.1 at {WIDGETS7}; `make test` puts it there")
        environment["PYTHONPATH"] = str(WIDGETS7)
    done = subprocess.run(
        [sys.executable, "-c", LIVE, version], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = (
        "views saliency retrieval attention replay ablation readers ranking selection iom froc plane budget"
    )
    assert done.stdout.strip() == f"live {names}"


def test_widgets_names_every_explorer_module():
    from mammomil import explorers, widgets

    modules = {p.stem for p in Path(explorers.__file__).parent.glob("*.py")} - {"__init__"}
    assert {name.removesuffix("_explorer") for name in widgets.__all__} == modules
    for name in widgets.__all__:
        assert getattr(widgets, name).__module__.endswith(name.removesuffix("_explorer"))
