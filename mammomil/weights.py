"""Models on disk: folders of safetensors and JSON, and weights that others have published.

Nothing here runs code from a file: tensors come from safetensors or from `torch.load(weights_only=True)`.
"""

import dataclasses
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mammomil.backbones import ClassifierConfig, ImageClassifier, build_classifier
from mammomil.cnn_m import load_cnn_m
from mammomil.encoders import RegionEncoder
from mammomil.files import InputError, atomic_path, dataclass_from_dict, read_json, sha256, write_json
from mammomil.gmic import GMIC, GMICConfig, MILConfig, build_gmic
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModel, RegionModelConfig, build_region_model, without_weights

SHIPPED = Path(__file__).resolve().parents[1] / "data_samples"  # not there in an installed package
Model = GMIC | ImageClassifier | RegionModel

# Name in config.json -> class, its config, and the one function that builds it.
MODELS = {
    "gmic": (GMIC, GMICConfig, build_gmic),
    "classifier": (ImageClassifier, ClassifierConfig, build_classifier),
    "dual-branch": (RegionModel, RegionModelConfig, build_region_model),
}

CARD = """# {title}

A `{kind}` trained with mammomil {version} on: {data}.

**For teaching and research only. Not a medical device: never use it to diagnose, screen or treat people.**

{note}{figures}

- Input: {height}x{width} pixels, preprocessed as `config.json` says.
- Parameters: {parameters:,}.
- Where it comes from (data, seed, commit, device, versions): `provenance.json`.

```python
{example}
```
"""
EXAMPLE = """from mammomil.predict import Predictor

predictions = Predictor.from_pretrained("{folder}")(["image.dcm"])"""


class LoadedModel(NamedTuple):
    """A model in evaluation mode, how its images are prepared, and what its folder says of it."""

    model: Model
    preprocess: PreprocessConfig
    card: dict[str, Any]


def save_model(
    folder: str | Path,
    model: Model,
    preprocess: PreprocessConfig,
    provenance: dict[str, Any],
    note: str = "",
    example: str = EXAMPLE,
) -> None:
    """Write a model folder: `weights.safetensors`, `provenance.json`, `README.md`, and `config.json` last.

    `config.json` holds the checksum of the weights, so that a folder whose writing was cut short between two
    files is noticed when it is read.

    Args:
        folder: made if it is not there.
        model: the model; its config is kept with it.
        preprocess: how its images are prepared.
        provenance: see `files.provenance`. The README tells its `data` and `figures` (name to value).
        note: a paragraph of the README, such as what the model is for.
        example: lines of Python for the README; `{folder}` becomes the folder's name.
    """
    from safetensors.torch import save_file

    from mammomil import __version__

    folder = Path(folder)
    kind = next(name for name, (cls, _, _) in MODELS.items() if isinstance(model, cls))
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
        checksum = sha256(temporary)
    write_json(folder / "provenance.json", provenance)
    figures = provenance.get("figures") or {}
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(
            CARD.format(
                title=folder.name,
                kind=kind,
                version=__version__,
                data=provenance.get("data", "data not stated"),
                note=f"{note}\n\n" if note else "",
                example=example.replace("{folder}", folder.name),
                figures="\n".join(f"- {name}: {value}" for name, value in figures.items()),
                height=preprocess.height,
                width=preprocess.width,
                parameters=sum(p.numel() for p in model.parameters()),
            ),
            encoding="utf-8",
        )
    write_json(
        folder / "config.json",
        {
            "model": kind,
            "config": dataclasses.asdict(model.config),
            "preprocess": dataclasses.asdict(preprocess),
            "weights_sha256": checksum,
        },
    )


def load_model(folder: str | Path) -> LoadedModel:
    """Read a model folder.

    Raises:
        InputError: the folder is no model folder, or its parts do not go together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: this is not a model folder, it has no config.json. Name the folder that "
            "`mammomil train` wrote, the one with config.json and weights.safetensors."
        )
    card = read_json(folder / "config.json")
    if not isinstance(card, dict) or card.get("model") not in MODELS:
        kind = card.get("model") if isinstance(card, dict) else card
        raise InputError(f"{folder / 'config.json'}: unknown model {kind!r}; known are {', '.join(MODELS)}.")
    _, config_class, build = MODELS[card["model"]]
    config = dataclass_from_dict(config_class, card.get("config"), f"{folder / 'config.json'}: config")
    preprocess = dataclass_from_dict(
        PreprocessConfig, card.get("preprocess"), f"{folder / 'config.json'}: preprocess"
    )
    path = folder / "weights.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as safetensors ({error}). Only safetensors are loaded, because other "
            "formats can run code. Copy the model folder again."
        ) from error
    model = build(_without_download(config))
    load_state(model, state, path)
    if (expected := card.get("weights_sha256")) and expected != sha256(path):
        raise InputError(
            f"{path}: these are not the weights config.json describes (their checksums differ). Copy the "
            "model folder again, or train again with --resume."
        )
    provenance = folder / "provenance.json"
    card["provenance"] = read_json(provenance) if provenance.is_file() else {}
    return LoadedModel(model.eval(), preprocess, card)


def codes_of(folder: str | Path) -> dict[str, Any] | None:
    """Say which codes a dual-branch model folder was trained on; None for other models."""
    path = Path(folder) / "provenance.json"
    return read_json(path).get("codes") if path.is_file() else None


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `state` into `model`, every tensor of the one into every tensor of the other.

    Raises:
        InputError: names and shapes do not agree: the weights are of another architecture.
    """
    own = model.state_dict()
    complaints = [f"{name} is missing" for name in own if name not in state]
    complaints += [f"{name} is not in the model" for name in state if name not in own]
    complaints += [
        f"{name} is {tuple(state[name].shape)} and should be {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if complaints:
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise InputError(
            f"{path}: the weights are of another architecture: {'; '.join(complaints[:3])}{more}. Use the "
            "config they were trained with."
        )
    model.load_state_dict(dict(state))


def load_backbone(model: GMIC | ImageClassifier, folder: str | Path) -> None:
    """Start a global network from a trained classifier's or GMIC's: the paper's BI-RADS warm start (G10).

    Raises:
        InputError: `folder` is no model folder, or its global network has another shape.
    """
    source = load_model(folder).model
    if isinstance(source, RegionModel):
        raise InputError(f"{folder}: a dual-branch network has no global network to start from.")
    load_state(model.backbone, source.backbone.state_dict(), Path(folder) / "weights.safetensors")


def load_encoder(encoder: RegionEncoder) -> None:
    """Fill in the weights that an encoder's config names; `none` leaves it as it is.

    Raises:
        InputError: there are no such weights, or they are of another network.
    """
    config = encoder.config
    if config.weights == "none":
        return
    if config.kind == "cnn-m-128":
        encoder.net = load_cnn_m(config.weights, config.mean or None, config.md5 or None)
    elif config.kind == "small":
        default = config.weights == "default"
        folder = SHIPPED / "weights" / "region-encoder" if default else Path(config.weights)
        if default and not folder.is_dir():
            raise InputError(
                f"{folder}: no trained encoder comes with this installation. Train one with `mammomil "
                "experiment warm-start` and name its folder, or give none for a random one."
            )
        source = load_model(folder).model
        if isinstance(source, RegionModel):
            load_state(encoder, source.encoder.state_dict(), folder / "weights.safetensors")
        else:
            load_state(encoder.net, source.backbone.state_dict(), folder / "weights.safetensors")
    else:
        state = _torchvision_state(config.kind, config.weights)
        load_state(encoder.net, {k: v for k, v in state.items() if not k.startswith("fc.")}, config.weights)


def _torchvision_state(kind: str, weights: str) -> Mapping[str, Tensor]:
    """Read ImageNet weights of torchvision from a file, or download them once into torch's own cache."""
    from torchvision.models import get_model_weights

    if weights != "default":
        return _plain_tensors(weights, "torchvision's weights")
    try:
        return get_model_weights(kind).DEFAULT.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # URLError is one
        raise InputError(
            f"the ImageNet weights of {kind} could not be downloaded ({error}). Connect once, or name a file "
            "that holds them in --model.encoder.weights, or use the encoder small."
        ) from error


def load_nyu_gmic(path: str | Path, top_t: float) -> GMIC:
    """Read a checkpoint of the GMIC release as a GMIC in the 2020 form, ready for evaluation.

    The 2020 form has the fusion head, takes windows by Algorithm 1 to the letter, and has 512 features a
    patch.
    The weights are AGPL-3.0 and not part of mammomil; the user gets them from their authors.

    Args:
        path: one of the released files `sample_model_1.p` to `sample_model_5.p`.
        top_t: fraction of the map that is pooled: 0.02, 0.03, 0.03, 0.05, 0.10 for models 1 to 5.

    Raises:
        InputError: no such checkpoint, or one that holds code or lacks tensors.
    """
    released = _plain_tensors(path, "the GMIC release")
    state, unknown = {}, []
    for name, value in released.items():
        ours = _nyu_name(name)
        if ours is None:
            unknown.append(name)
        elif ours == "patch_net.net.conv1.weight":
            state[ours] = value.sum(1, keepdim=True)  # the release repeats the grey patch over 3 channels
        else:
            state[ours] = value
    config = GMICConfig(mil=MILConfig(distinct=False, instance_features=512), top_t=top_t, head="fusion")
    model = build_gmic(config)
    load_state(model, state, path)
    if unknown:
        warnings.warn(f"{path}: not used by the model: {', '.join(unknown)}", stacklevel=2)
    return model.eval()


def _plain_tensors(path: str | Path, what: str) -> Mapping[str, Tensor]:
    """Read a file of `torch.save` that maps names to tensors and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle protocol, where the file is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror}).") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: not a checkpoint of plain tensors, so it is not opened (it may be damaged, or hold "
            "code). Download it again from where it was published."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: expected a mapping of names to tensors, as {what} has.")
    return state


# Prefixes of the release -> ours; see `load_nyu_gmic`.
_NYU_PREFIXES = {
    "ds_net.first_conv.": "backbone.stem.",
    "ds_net.layer_list.": "backbone.stages.",
    "ds_net.final_bn.": "backbone.norm.",
    "left_postprocess_net.gn_conv_last.": "saliency_head.",
    "dn_resnet.": "patch_net.net.",
    "mil_attn_V.": "attention.V.",
    "mil_attn_U.": "attention.U.",
    "mil_attn_w.": "attention.w.",
    "classifier_linear.": "mil_classifier.",
    "fusion_dnn.": "fusion.",
}


def _nyu_name(name: str) -> str | None:
    """Return our name for a tensor of the release, None for one we do not know."""
    for theirs, ours in _NYU_PREFIXES.items():
        if name.startswith(theirs):
            ours += name.removeprefix(theirs)
            if ours.startswith("backbone."):
                ours = re.sub(r"\.downsample\.0\.", ".shortcut.", ours)
            return ours
    return None


def _without_download(config: Any) -> Any:
    """Return the config with `pretrained` off: the weights are about to be replaced."""
    if isinstance(config, GMICConfig):
        return dataclasses.replace(config, mil=dataclasses.replace(config.mil, pretrained=False))
    return without_weights(config) if isinstance(config, RegionModelConfig) else config
