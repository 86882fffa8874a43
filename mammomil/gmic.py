"""GMIC: a global network that says where to look, a local network that looks, and attention that weighs.

Shen et al. 2019, "Globally-Aware Multiple Instance Classifier for Breast Cancer Screening". The forward pass
follows the paper's section 2: localisation (saliency), detection (regions of interest), multiple instance
learning (attention over patches).
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mammomil.backbones import PatchNet, ResNet22, ResNet22Config, fast_layout
from mammomil.pooling import GatedAttention, Pooling, log_pool
from mammomil.regions import cells_to_pixels, crop_rois, retrieve_rois
from mammomil.types import FINDINGS


@dataclass(frozen=True)
class MILConfig:
    """The detection and multiple instance learning modules (paper sections 2.2 and 2.3)."""

    num_patches: int = 6
    """K, patches looked at in each image."""
    patch_size: int = 256
    """Side of a patch in pixels."""
    distinct: bool = True
    """Never choose a window twice. False is Algorithm 1 to the letter."""
    patches: Literal["saliency", "random"] = "saliency"
    """Where patches come from; `random` is the ablation GMIC-random."""
    arch: Literal["resnet18", "narrow"] = "resnet18"
    """Patch network; `narrow` is for the quick scale."""
    pretrained: bool = False
    """Start the ResNet-18 from ImageNet weights, as the paper does (downloads 45 MB on first use)."""
    instance_features: int = 128
    """L, length of a patch's feature vector. Other than the patch network's own, a linear layer projects."""
    attention_width: int = 128
    """Length of the attention gate."""
    attention: Literal["gated", "uniform"] = "gated"
    """`uniform` gives every patch the same weight: the ablation GMIC-noattn."""

    def __post_init__(self):
        if min(self.num_patches, self.patch_size, self.instance_features, self.attention_width) < 1:
            raise ValueError(
                "num_patches, patch_size, instance_features and attention_width must be 1 or more."
            )
        if self.arch == "narrow" and self.pretrained:
            raise ValueError("there are no ImageNet weights for the narrow patch network; use arch resnet18.")


@dataclass(frozen=True)
class GMICConfig:
    """All of GMIC. The defaults are the 2019 paper's, for 2944x1920 pixels."""

    backbone: ResNet22Config = ResNet22Config()
    """The global network f_d."""
    mil: MILConfig = MILConfig()
    """Patches, patch network f_t and attention."""
    pooling: Pooling = "top_t"
    """How the saliency map becomes y_loc."""
    top_t: float = 0.03
    """t, fraction of the map that counts in `top_t`; the paper searches 0.0067 to 0.22."""
    lse_sharpness: float = 5.0
    """r of `lse` pooling."""
    saliency_bias: bool = False
    """Give the saliency head a bias; the released model has none."""
    head: Literal["average", "fusion"] = "average"
    """`average`: y = (y_loc + y_mil) / 2, the 2019 paper. `fusion`: a third classifier, the 2020 paper."""
    predict_from: Literal["both", "loc", "mil"] = "both"
    """What y is made of; `loc` and `mil` are the ablations GMIC-loc and GMIC-mil."""

    def __post_init__(self):
        if not 0 < self.top_t <= 1:
            raise ValueError(f"top_t is a fraction in (0, 1], not {self.top_t}.")
        if self.lse_sharpness <= 0:
            raise ValueError(f"lse_sharpness must be larger than 0, not {self.lse_sharpness}.")

    @classmethod
    def full(cls) -> "GMICConfig":
        """The paper's model, for 2944x1920 pixels and a GPU."""
        return cls()

    @classmethod
    def quick(cls) -> "GMICConfig":
        """A narrow model for 368x240 pixels and a CPU: the same 46x30 map, the same 4x4 cells to a patch."""
        return cls(
            backbone=ResNet22Config((16, 32, 64), (1, 2, 2), stem_pool=False),
            mil=MILConfig(patch_size=32, arch="narrow", instance_features=64, attention_width=64),
            saliency_bias=True,
        )


# Table 1 of the paper (checklist G14): which switches make which row.
ABLATIONS: dict[str, dict[str, str]] = {
    "gmic": {},
    "loc": {"predict_from": "loc"},
    "mil": {"predict_from": "mil"},
    "noattn": {"predict_from": "mil", "attention": "uniform"},
    "random": {"predict_from": "mil", "patches": "random"},
    "loc-random": {"patches": "random"},
}


def ablate(config: GMICConfig, name: str) -> GMICConfig:
    """Return `config` turned into one of the `ABLATIONS` of the paper's Table 1.

    All have the same weights, so a trained model can be tested under each, and each can be trained anew: the
    paper does not say which it did (reading G-i).
    """
    if name not in ABLATIONS:
        raise ValueError(f"no ablation {name!r}; there are {', '.join(ABLATIONS)}.")
    switches = dict(ABLATIONS[name])
    predict_from = switches.pop("predict_from", config.predict_from)
    mil = dataclasses.replace(config.mil, **switches)
    return dataclasses.replace(config, mil=mil, predict_from=predict_from)


class GMICOutput(NamedTuple):
    """Everything GMIC computes for a batch; probabilities and maps are float32.

    Attributes:
        saliency: A, in [0, 1].
        rois: top-left (row, column) of each patch in pixels.
        attention: weight of each patch, summing to 1.
        y_loc: probability from the saliency map alone.
        y_mil: probability from the patches alone.
        y: the model's answer.
        y_fusion: probability from map and patches together, with the fusion head alone.
        saliency_logits: the map before the sigmoid; losses and rankings should use it where A saturates.
        log_loc: (log p(y=0), log p(y=1)) behind `y_loc`.
        log_mil: the same behind `y_mil`.
        log_fusion: the same behind `y_fusion`.
    """

    saliency: Float[Tensor, "b c h w"]
    rois: Int[Tensor, "b k 2"]
    attention: Float[Tensor, "b k"]
    y_loc: Float[Tensor, "b c"]
    y_mil: Float[Tensor, "b c"]
    y: Float[Tensor, "b c"]
    y_fusion: Float[Tensor, "b c"] | None
    saliency_logits: Float[Tensor, "b c h w"]
    log_loc: Float[Tensor, "b c 2"]
    log_mil: Float[Tensor, "b c 2"]
    log_fusion: Float[Tensor, "b c 2"] | None


def log_bernoulli(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c 2"]:
    """Turn logits into (log p(y=0), log p(y=1)), exact at any size of the logit."""
    return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)


class GMIC(nn.Module):
    """The Globally-Aware Multiple Instance Classifier (checklist G1-G9).

    Example:
        >>> model = build_gmic(GMICConfig.quick()).eval()
        >>> output = model(torch.zeros(2, 1, 368, 240))
        >>> output.saliency.shape, output.rois.shape
        (torch.Size([2, 2, 46, 30]), torch.Size([2, 6, 2]))
    """

    def __init__(self, backbone: ResNet22, patch_net: PatchNet, config: GMICConfig):
        super().__init__()
        self.config = config
        features, classes = config.mil.instance_features, len(FINDINGS)
        self.backbone = backbone
        self.saliency_head = nn.Conv2d(backbone.out_channels, classes, 1, bias=config.saliency_bias)
        self.patch_net = patch_net
        # The paper's h has L = 128 numbers, ResNet-18 gives 512 (reading G-f).
        same = features == patch_net.out_features
        self.projection = nn.Identity() if same else nn.Linear(patch_net.out_features, features)
        self.attention = GatedAttention(features, config.mil.attention_width)
        self.mil_classifier = nn.Linear(features, classes, bias=False)
        self.fusion = (
            nn.Linear(backbone.out_channels + features, classes) if config.head == "fusion" else None
        )

    def forward(
        self, image: Float[Tensor, "b 1 H W"], generator: torch.Generator | None = None
    ) -> GMICOutput:
        """Run localisation, detection and multiple instance learning.

        Args:
            image: standardised pixels, of any size; the map's size follows from the image's.
            generator: source of the random patches of the ablation GMIC-random; None is torch's own.
        """
        mil = self.config.mil
        features = self.backbone(image)
        # The map stays in float32 under autocast: in bfloat16 it moves by up to 0.16, and other patches
        # are chosen.
        with torch.autocast(image.device.type, enabled=False):
            features = features.to(self.saliency_head.weight.dtype)
            logits = self.saliency_head(features)  # (b, c, h, w)
            saliency = logits.sigmoid()
            log_loc = log_pool(logits, self.config.pooling, self.config.top_t, self.config.lse_sharpness)
            rois = self._choose_rois(saliency.detach(), image, generator)
        patches = crop_rois(image, rois, mil.patch_size)  # (b, k, 1, size, size)
        instances = self.projection(self.patch_net(patches.flatten(0, 1)))
        instances = instances.unflatten(0, (-1, mil.num_patches))  # (b, k, f)
        instances = instances.to(self.mil_classifier.weight.dtype)
        with torch.autocast(image.device.type, enabled=False):
            if mil.attention == "gated":
                attention, bag = self.attention(instances)
            else:
                attention = instances.new_full(instances.shape[:2], 1 / mil.num_patches)
                bag = instances.mean(1)
            log_mil = log_bernoulli(self.mil_classifier(bag))
            log_fusion = None
            if self.fusion is not None:
                both = torch.cat([features.amax((-2, -1)), bag], 1)
                log_fusion = log_bernoulli(self.fusion(both))
        y_loc, y_mil = log_loc[..., 1].exp(), log_mil[..., 1].exp()
        y_fusion = None if log_fusion is None else log_fusion[..., 1].exp()
        average = (y_loc + y_mil) / 2 if y_fusion is None else y_fusion
        y = {"both": average, "loc": y_loc, "mil": y_mil}[self.config.predict_from]
        return GMICOutput(
            saliency, rois, attention, y_loc, y_mil, y, y_fusion, logits, log_loc, log_mil, log_fusion
        )

    def _choose_rois(
        self,
        saliency: Float[Tensor, "b c h w"],
        image: Float[Tensor, "b 1 H W"],
        generator: torch.Generator | None,
    ) -> Int[Tensor, "b k 2"]:
        """Return the pixel corners of the patches: from the map, or at random for the ablation."""
        mil = self.config.mil
        cells, pixels = saliency.shape[-2:], image.shape[-2:]
        if mil.patches == "random":
            draw = torch.rand(image.shape[0], mil.num_patches, 2, generator=generator, device=image.device)
            axes = [draw[..., axis] * (max(pixels[axis] - mil.patch_size, 0) + 1) for axis in (0, 1)]
            return torch.stack(axes, -1).long()
        window = tuple(
            max(1, round(mil.patch_size * c / p)) for c, p in zip(cells, pixels, strict=True)
        )  # 4x4 at 46x30 cells
        corners = retrieve_rois(saliency, mil.num_patches, (window[0], window[1]), mil.distinct)
        return cells_to_pixels(corners, (cells[0], cells[1]), (pixels[0], pixels[1]), mil.patch_size)


def build_gmic(config: GMICConfig, seed: int = 0) -> GMIC:
    """Make a GMIC with weights drawn from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        patch_net = PatchNet(config.mil.arch, config.mil.pretrained)
        model = GMIC(ResNet22(config.backbone), patch_net, config)
        if model.saliency_head.bias is not None:
            # Most of an image holds no finding: start the map low (about 0.02) in place of at one half.
            nn.init.constant_(model.saliency_head.bias, -4.0)
    return fast_layout(model, config.backbone)
