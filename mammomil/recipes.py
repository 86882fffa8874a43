"""The settings of training runs: what `mammomil train` takes, and the presets that chapters call."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mammomil.augment import AugmentConfig
from mammomil.backbones import ClassifierConfig
from mammomil.codes import PoseConfig
from mammomil.gmic import GMICConfig
from mammomil.losses import DualBranchObjective, GMICObjective
from mammomil.preprocess import PreprocessConfig
from mammomil.region_model import RegionModelConfig
from mammomil.train import TrainConfig

Kind = Literal["gmic", "dual-branch", "classifier"]
Scale = Literal["quick", "full"]
FIELD = 64  # pixels: small fields of view learn in minutes what whole images learn in hours


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every kind of training needs to know."""

    data: Path
    """The index.csv of the images, or its folder."""
    out: Path
    """The run folder; the trained model will be in OUT/model."""
    scale: Scale = "quick"
    """Sets the defaults of everything below: `quick` fits two CPU cores; `full` is the paper's size, for a
    GPU."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    preprocess: PreprocessConfig = PreprocessConfig()
    """How files become images of one size."""
    cache: Path | None = None
    """Folder for prepared images. By default memory at the quick scale, OUT/cache at the full one."""
    memory_gb: float = 1.0
    """Memory in GiB that each split's prepared images may take where there is no cache; 1 holds about 8,000
    of the quick scale. Images beyond it are prepared anew each time they are drawn, which is slow."""
    resume: bool = False
    """Continue the run in OUT, if it has begun."""


@dataclass(frozen=True, kw_only=True)
class ImageRun(Run):
    """What training on whole images needs to know."""

    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training images."""
    fields: int = 0
    """Train on labelled fields of this many pixels around findings, not on whole images; 0 is off. A warm
    start for phantoms, whose findings have boxes: it uses more than image labels."""


@dataclass(frozen=True, kw_only=True)
class GMICRun(ImageRun):
    """Train a GMIC from image labels."""

    model: GMICConfig = GMICConfig()
    """The network."""
    objective: GMICObjective = GMICObjective()
    """The loss, Eq. 1 of the paper."""
    warm_start: Path | None = None
    """A model folder to start from: all weights of a GMIC, or the global network of a classifier."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRun(ImageRun):
    """Train a plain classifier: the BI-RADS pre-training of GMIC's global network, or Table 1's baseline."""

    model: ClassifierConfig = ClassifierConfig()
    """The network."""
    warm_start: Path | None = None
    """A model folder whose global network is started from: of a GMIC or of another classifier."""


@dataclass(frozen=True, kw_only=True)
class DualBranchRun(Run):
    """Train the dual-branch network: from image labels, or with some malignant images annotated.

    Every window of an image becomes a code once, kept in a cache; training goes through codes and is fast.
    """

    model: RegionModelConfig = RegionModelConfig()
    """Encoder, windows, and the layers that are learned."""
    objective: DualBranchObjective = DualBranchObjective()
    """The loss: Eq. 5, with annotated images Eq. 12."""
    annotated: float = 0.0
    """Share of the malignant training images whose boxes or masks are learned from; chosen by the seed. The
    paper has 0, .25, .5, .75 and 1; 0 is weak supervision."""
    poses: PoseConfig = PoseConfig()
    """The paper's augmentation: turned, mirrored and shifted copies of the training images."""
    end_to_end: bool = False
    """Train the encoder too, on pixels in random poses: the paper's future work. Slow without a GPU."""
    warm_start: Path | None = None
    """A dual-branch model folder to start all weights from."""
    codes: Path | None = None
    """Folder for codes, OUT/codes by default. Runs on the same images and encoder may share one."""


RUNS: dict[str, type[Run]] = {"gmic": GMICRun, "dual-branch": DualBranchRun, "classifier": ClassifierRun}


def preset(kind: Kind, scale: Scale, data: Path, out: Path) -> Any:
    """Return a run with the settings of a scale: `full` is the paper's, `quick` fits two CPU cores."""
    quick = scale == "quick"
    shared = {
        "data": data,
        "out": out,
        "scale": scale,
        "preprocess": PreprocessConfig.quick() if quick else PreprocessConfig(),
    }
    if kind == "dual-branch":
        # The paper's: 256 images with all their regions, Adam, 1e-4, l2; stopped early (checklist D20, A20).
        # Phantoms are fewer than its mammograms with copies, hence the larger steps at the quick scale.
        train = TrainConfig(epochs=100, batch_size=256, learning_rate=1e-4, weight_decay=1e-4, patience=10)
        if quick:
            train = dataclasses.replace(train, batch_size=64, learning_rate=1e-3)
        model = RegionModelConfig.quick() if quick else RegionModelConfig()
        poses = PoseConfig() if quick else PoseConfig(copies=8, balance=True)
        return DualBranchRun(**shared, model=model, train=train, poses=poses)
    train = TrainConfig(epochs=30, learning_rate=5e-4) if quick else TrainConfig(batch_size=4, workers=4)
    model = GMICConfig.quick() if quick else GMICConfig.full()
    if kind == "gmic":
        return GMICRun(**shared, model=model, train=train)
    train = dataclasses.replace(train, monitor="loss")
    return ClassifierRun(**shared, model=ClassifierConfig(model.backbone), train=train)


def fields_stage(index: Path, out: Path, seed: int, epochs: int = 4) -> GMICRun:
    """Return the first of two stages on phantoms at the quick scale: fields of view with a label each.

    Phantoms can label fields, screening data cannot: there BI-RADS pre-training takes the place of this.
    """
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(run.train, epochs=epochs, batch_size=32, learning_rate=1e-3, seed=seed)
    # A field's map has a seventeenth of the cells of an image's: a larger share of it is lesion, and one
    # patch covers a quarter of it.
    mil = dataclasses.replace(run.model.mil, num_patches=1)
    model = dataclasses.replace(run.model, top_t=0.1, mil=mil)
    objective = GMICObjective(weight=1e-6)
    return dataclasses.replace(run, fields=FIELD, model=model, objective=objective, train=train, resume=True)


def whole_stage(index: Path, out: Path, warm_start: Path, seed: int, epochs: int = 3) -> GMICRun:
    """Return the second stage, from the first one's model: whole images and their image labels alone."""
    run = preset("gmic", "quick", index, out)
    train = dataclasses.replace(run.train, epochs=epochs, learning_rate=2e-4, seed=seed)
    model = dataclasses.replace(run.model, top_t=0.02)
    objective = GMICObjective(weight=1e-5)
    return dataclasses.replace(
        run, warm_start=warm_start, model=model, objective=objective, train=train, resume=True
    )
