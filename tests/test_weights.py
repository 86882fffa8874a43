import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mammomil.backbones import ClassifierConfig, build_classifier
from mammomil.files import InputError
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.preprocess import PreprocessConfig
from mammomil.weights import load_backbone, load_model, load_nyu_gmic, save_model

QUICK = GMICConfig.quick()


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(tmp_path / "m", build_gmic(QUICK), PreprocessConfig.quick(), {"data": "none", "seed": 0})
    return tmp_path / "m"


def test_a_saved_model_comes_back_whole(folder):
    loaded = load_model(folder)
    model = build_gmic(QUICK).eval()
    image = torch.randn(1, 1, 96, 96)
    assert torch.equal(loaded.model(image).y, model(image).y)
    assert loaded.model.config == QUICK
    assert loaded.preprocess == PreprocessConfig.quick()
    assert loaded.card["provenance"]["data"] == "none"
    assert not loaded.model.training
    assert "Not a medical device" in (folder / "README.md").read_text()
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.json", "provenance.json", "weights.safetensors",
    ]  # fmt: skip


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: this is not a model folder"):
        load_model(tmp_path / "nowhere")


def test_weights_of_another_architecture_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["config"]["backbone"]["widths"] = [8, 16, 32]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"weights.safetensors: .*another architecture: .*should be"):
        load_model(folder)


def test_unknown_fields_and_models_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "config": {"wings": 2}}))
    with pytest.raises(InputError, match="unknown field wings"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model": "oracle"}))
    with pytest.raises(InputError, match="unknown model 'oracle'"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_model(folder)


def test_weights_mixed_up_between_folders_are_noticed(folder, tmp_path):
    save_model(tmp_path / "other", build_gmic(QUICK, seed=1), PreprocessConfig.quick(), {})
    (tmp_path / "other" / "weights.safetensors").replace(folder / "weights.safetensors")
    with pytest.raises(InputError, match="checksums differ"):
        load_model(folder)


class Bomb:
    """What a hostile checkpoint does when it is unpickled without care."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch", "cut", "empty"])
def test_files_with_code_or_damage_are_not_opened(folder, tmp_path, kind):
    trap = tmp_path / "sprung"
    file = tmp_path / "model.p"
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"a": Bomb(str(trap))}))
    elif kind == "torch":
        torch.save({"a": Bomb(str(trap))}, file)
    else:
        file.write_bytes((folder / "weights.safetensors").read_bytes()[:100] if kind == "cut" else b"")
    with pytest.raises(InputError, match=r"model\.p: not a checkpoint of plain tensors"):
        load_nyu_gmic(file, 0.02)
    (folder / "weights.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"weights\.safetensors: cannot be read as safetensors"):
        load_model(folder)
    assert not trap.exists()


def test_warm_start_copies_the_global_network_alone(tmp_path):
    """G10: f_d is pre-trained on BI-RADS."""
    classifier = build_classifier(ClassifierConfig(backbone=QUICK.backbone), seed=5)
    save_model(tmp_path / "birads", classifier, PreprocessConfig.quick(), {})
    model, fresh = build_gmic(QUICK), build_gmic(QUICK)
    load_backbone(model, tmp_path / "birads")
    for name, value in model.state_dict().items():
        source = classifier.state_dict() if name.startswith("backbone.") else fresh.state_dict()
        assert torch.equal(value, source[name])
    with pytest.raises(InputError, match="another architecture"):
        load_backbone(build_gmic(GMICConfig()), tmp_path / "birads")


# --- the released checkpoints -------------------------------------------------------------------------------

STAGES = [(16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 128, 2), (128, 256, 2)]


def released_state(seed: int) -> dict[str, torch.Tensor]:
    """Random tensors under the 258 names of the release, with values that keep activations alive."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def conv(name, out, into, size):
        scale = math.sqrt(2 / (into * size * size))
        state[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) * scale

    def bn(name, n):
        state[f"{name}.weight"] = torch.rand(n, generator=generator) * 0.5 + 0.75
        state[f"{name}.bias"] = torch.randn(n, generator=generator) * 0.1
        state[f"{name}.running_mean"] = torch.randn(n, generator=generator) * 0.1
        state[f"{name}.running_var"] = torch.rand(n, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("ds_net.first_conv", 16, 1, 7)
    for s, (into, out, _) in enumerate(STAGES):
        for b in range(2):
            name, width = f"ds_net.layer_list.{s}.{b}", into if b == 0 else out
            bn(f"{name}.bn1", width)
            conv(f"{name}.conv1", out, width, 3)
            bn(f"{name}.bn2", out)
            conv(f"{name}.conv2", out, out, 3)
            if b == 0:
                conv(f"{name}.downsample.0", out, into, 1)
    bn("ds_net.final_bn", 256)
    conv("left_postprocess_net.gn_conv_last", 2, 256, 1)
    conv("dn_resnet.conv1", 64, 3, 7)
    bn("dn_resnet.bn1", 64)
    into = 64
    for layer, out in enumerate((64, 128, 256, 512), 1):
        for b in range(2):
            name, width = f"dn_resnet.layer{layer}.{b}", into if b == 0 else out
            conv(f"{name}.conv1", out, width, 3)
            bn(f"{name}.bn1", out)
            conv(f"{name}.conv2", out, out, 3)
            bn(f"{name}.bn2", out)
            if b == 0 and into != out:
                conv(f"{name}.downsample.0", out, into, 1)
                bn(f"{name}.downsample.1", out)
        into = out
    for name, shape in {
        "mil_attn_V": (128, 512), "mil_attn_U": (128, 512), "mil_attn_w": (1, 128),
        "classifier_linear": (2, 512), "fusion_dnn": (2, 768),
    }.items():  # fmt: skip
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    state["fusion_dnn.bias"] = torch.randn(2, generator=generator)
    return state


def released_forward(state: dict, image: torch.Tensor, t: float, dtype=torch.float64):
    """What the release computes for one image, from the facts on it and its own names, in plain functions.

    Nothing of mammomil is used: row and column loops for the retrieval, slices for the crops, the grey patch
    repeated over three channels.
    """
    w = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    image = image.to(dtype)

    def bn(name, x):
        return F.batch_norm(
            x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"]
        )

    x = F.max_pool2d(F.conv2d(image, w["ds_net.first_conv.weight"], stride=2, padding=3), 3, 2)
    for s, (_, _, stride) in enumerate(STAGES):
        for b in range(2):
            name, step = f"ds_net.layer_list.{s}.{b}", stride if b == 0 else 1
            active = F.relu(bn(f"{name}.bn1", x))
            shortcut = F.conv2d(active, w[f"{name}.downsample.0.weight"], stride=step) if b == 0 else x
            out = F.conv2d(active, w[f"{name}.conv1.weight"], stride=step, padding=1)
            x = F.conv2d(F.relu(bn(f"{name}.bn2", out)), w[f"{name}.conv2.weight"], padding=1) + shortcut
    h_g = F.relu(bn("ds_net.final_bn", x))
    saliency = torch.sigmoid(F.conv2d(h_g, w["left_postprocess_net.gn_conv_last.weight"]))[0]
    (cells_h, cells_w), (height, width) = saliency.shape[1:], image.shape[-2:]
    y_global = saliency.flatten(1).sort(descending=True).values[:, : round(cells_h * cells_w * t)].mean(1)

    total = sum((one - one.min()) / (one.max() - one.min()) for one in saliency).numpy().copy()
    rows, columns = round(256 * cells_h / height), round(256 * cells_w / width)
    corners = []
    for _ in range(6):
        scores = np.array(
            [
                [total[r : r + rows, c : c + columns].mean() for c in range(cells_w - columns + 1)]
                for r in range(cells_h - rows + 1)
            ]
        )
        r, c = np.unravel_index(scores.argmax(), scores.shape)
        total[r : r + rows, c : c + columns] = 0
        corners.append((round(r / cells_h * height), round(c / cells_w * width)))
    patches = torch.stack([image[0, :, r : r + 256, c : c + 256] for r, c in corners])

    x = F.conv2d(patches.expand(-1, 3, -1, -1), w["dn_resnet.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(bn("dn_resnet.bn1", x)), 3, 2, 1)
    for layer in range(1, 5):
        for b in range(2):
            name, step = f"dn_resnet.layer{layer}.{b}", 2 if b == 0 and layer > 1 else 1
            out = F.relu(bn(f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], stride=step, padding=1)))
            out = bn(f"{name}.bn2", F.conv2d(out, w[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in w:
                x = bn(f"{name}.downsample.1", F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=step))
            x = F.relu(out + x)
    h = x.mean((-2, -1))
    gate = torch.sigmoid(h @ w["mil_attn_U.weight"].T) * torch.tanh(h @ w["mil_attn_V.weight"].T)
    attention = torch.softmax((gate @ w["mil_attn_w.weight"].T)[:, 0], 0)
    z = (attention[:, None] * h).sum(0)
    y_local = torch.sigmoid(w["classifier_linear.weight"] @ z)
    joint = torch.cat([h_g.amax((-2, -1))[0], z])  # the global vector first
    y_fusion = torch.sigmoid(w["fusion_dnn.weight"] @ joint + w["fusion_dnn.bias"])
    return saliency, corners, attention, y_global, y_local, y_fusion


def blobs(height: int, width: int) -> torch.Tensor:
    """An image with structure at the size of a cell, as a breast has, over fine noise."""
    generator = torch.Generator().manual_seed(8)
    coarse = torch.randn(1, 1, height // 64, width // 64, generator=generator)
    fine = torch.randn(1, 1, height, width, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic") + 0.3 * fine


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.02, 0.05])
def test_a_released_checkpoint_gives_the_releases_outputs(tmp_path, t):
    """In float64, where random weights amplify no rounding: maps, corners, attention, all three answers."""
    state = released_state(int(1000 * t))
    torch.save(state, tmp_path / "sample_model.p")
    model = load_nyu_gmic(tmp_path / "sample_model.p", t).double()
    image = blobs(1024, 768).double()
    with torch.inference_mode():
        ours = model(image)
        saliency, corners, attention, y_global, y_local, y_fusion = released_forward(state, image, t)
    assert saliency.max() - saliency.min() > 0.05  # a map worth comparing
    assert ours.rois[0].tolist() == [list(corner) for corner in corners]
    for value, expected in (
        (ours.saliency, saliency),
        (ours.attention, attention),
        (ours.y_loc, y_global),
        (ours.y_mil, y_local),
        (ours.y, y_fusion),
    ):
        torch.testing.assert_close(value[0], expected, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_released_checkpoint_at_the_papers_size_and_precision(tmp_path):
    """Saliency within 1e-4 at 2944x1920 in float32, in our memory layout against the plain one."""
    torch.set_num_threads(2)
    state = {k: v * 0.7 if "conv2" in k else v for k, v in released_state(3).items()}  # tamer residuals
    torch.save(state, tmp_path / "sample_model.p")
    model = load_nyu_gmic(tmp_path / "sample_model.p", 0.03)
    image = blobs(2944, 1920)
    with torch.inference_mode():
        ours = model(image)
        saliency, *_ = released_forward(state, image, 0.03, torch.float32)
    assert ours.saliency.shape == (1, 2, 46, 30)
    assert saliency.max() - saliency.min() > 0.05
    torch.testing.assert_close(ours.saliency[0], saliency, rtol=0, atol=1e-4)


def test_all_258_tensors_of_a_release_are_used_and_others_are_named(tmp_path):
    state = released_state(0)
    assert len(state) == 258
    state["shared_rep_filter.weight"] = torch.zeros(2, 2)  # the official files hold it and do not use it
    torch.save(state, tmp_path / "m.p")
    with pytest.warns(UserWarning, match=r"not used by the model: shared_rep_filter\.weight"):
        load_nyu_gmic(tmp_path / "m.p", 0.02)
    del state["mil_attn_U.weight"], state["shared_rep_filter.weight"]
    torch.save(state, tmp_path / "m.p")
    with pytest.raises(InputError, match=r"attention\.U\.weight is missing"):
        load_nyu_gmic(tmp_path / "m.p", 0.02)


def test_released_names_are_those_of_the_reference_list(real_data):
    reference = json.loads((real_data.parents[1] / "reference" / "gmic_state_dict_keys.json").read_text())
    ours = {name: list(value.shape) for name, value in released_state(0).items()}
    assert ours == {name: shape for name, shape, _ in reference}
