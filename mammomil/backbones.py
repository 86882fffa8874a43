"""Networks that turn pixels into features: ResNet-22 for whole images, ResNet-18 for patches."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ResNet22Config:
    """Shape of the global network. The defaults are the paper's: 46x30 cells from 2944x1920 pixels."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Channels of each stage."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    """Stride of each stage."""
    blocks: int = 2
    """Residual blocks per stage."""
    stem_pool: bool = True
    """Max-pool after the first convolution. With it the stem divides the image by 4, without it by 2."""
    checkpoint_stages: int = 0
    """Recompute the first N stages in the backward pass: less memory, about a third more time."""

    def __post_init__(self):
        if len(self.widths) != len(self.strides) or not self.widths:
            raise ValueError(
                f"widths {self.widths} and strides {self.strides} must name the same number of stages."
            )
        if min(*self.widths, *self.strides, self.blocks) < 1:
            raise ValueError("widths, strides and blocks must be 1 or more.")
        if not 0 <= self.checkpoint_stages <= len(self.widths):
            raise ValueError(f"checkpoint_stages must be 0 to {len(self.widths)}.")


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut, without biases.

    The first block of a stage has a 1x1 convolution as its shortcut, fed by the activated input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, first: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if first else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Map features to features, smaller by the stride."""
        active = F.relu(self.bn1(x), inplace=True)
        residual = x if self.shortcut is None else self.shortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return out.add_(residual)


class ResNet22(nn.Module):
    """Narrow pre-activation ResNet for whole mammograms (Wu et al. 2019; checklist G1).

    The stem is a bare 7x7 convolution and an unpadded max-pool. The default config has 2,799,536 parameters
    and (b, 256, 46, 30) features from
    (b, 1, 2944, 1920) pixels.
    """

    def __init__(self, config: ResNet22Config):
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(1, config.widths[0], 7, 2, 3, bias=False)
        self.stages = nn.ModuleList()
        channels = config.widths[0]
        for width, stride in zip(config.widths, config.strides, strict=True):
            blocks = [PreActivationBlock(channels, width, stride, first=True)]
            blocks += [PreActivationBlock(width, width, 1, first=False) for _ in range(config.blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
            channels = width
        self.norm = nn.BatchNorm2d(channels)
        self.out_channels = channels

    def forward(self, image: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b f h w"]:
        """Map standardised pixels to non-negative features."""
        x = self.stem(image)
        if self.config.stem_pool:
            x = F.max_pool2d(x, 3, 2)
        for number, stage in enumerate(self.stages):
            if number < self.config.checkpoint_stages and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
        return F.relu(self.norm(x), inplace=True)


class PatchNet(nn.Module):
    """A ResNet without its classifier: patches in, one feature vector each out (checklist G7).

    `resnet18` is torchvision's, with a first convolution of one channel. The paper repeats a grey patch
    three times; convolving one channel with the sum of the kernels gives the same numbers for less work.

    Args:
        arch: `resnet18` (the paper) or `narrow`, a small pre-activation network for the quick scale.
        pretrained: start `resnet18` from torchvision's ImageNet weights (downloaded on first use).
    """

    def __init__(self, arch: Literal["resnet18", "narrow"] = "resnet18", pretrained: bool = False):
        super().__init__()
        self.arch = arch
        if arch == "narrow":
            if pretrained:
                raise ValueError("there are no ImageNet weights for the narrow patch network; use resnet18.")
            self.net: nn.Module = ResNet22(ResNet22Config((16, 32, 64), (1, 2, 2), 1, stem_pool=False))
            self.out_features = 64
            return
        from torchvision.models import ResNet18_Weights, resnet18

        net = resnet18(weights=ResNet18_Weights.IMAGENET1K_V1 if pretrained else None)
        net.conv1 = grey_convolution(net.conv1)
        net.fc = nn.Identity()
        self.net = net
        self.out_features = 512

    def forward(self, patches: Float[Tensor, "n 1 size size"]) -> Float[Tensor, "n f"]:
        """Return the spatial mean of the last feature map."""
        features = self.net(patches)
        return features.mean((-2, -1)) if self.arch == "narrow" else features


def grey_convolution(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return a one-channel convolution equal to `convolution` on a grey image repeated over its channels."""
    weight = convolution.weight.detach()
    grey = nn.Conv2d(
        1,
        convolution.out_channels,
        weight.shape[-2:],  # ty: ignore[invalid-argument-type]
        convolution.stride,
        convolution.padding,
        bias=False,
    )
    grey.weight = nn.Parameter(weight.sum(1, keepdim=True))
    return grey


@dataclass(frozen=True)
class ClassifierConfig:
    """A plain classifier: the ResNet-22 baseline, and the BI-RADS pre-training of GMIC's global network."""

    backbone: ResNet22Config = ResNet22Config()
    """The network under the classifier; GMIC's must be the same for a warm start."""
    target: Literal["birads", "findings"] = "birads"
    """`birads`: one of the categories below. `findings`: benign and malignant, the baseline of Table 1."""
    birads: tuple[int, ...] = (1, 2, 3, 4, 5)
    """BI-RADS categories told apart; images of other categories do not count."""

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return len(self.birads) if self.target == "birads" else 2


class ClassifierOutput(NamedTuple):
    """Logits of an `ImageClassifier`, and the probability of each finding where findings are its target."""

    logits: Float[Tensor, "b o"]
    y: Float[Tensor, "b c"] | None


class ImageClassifier(nn.Module):
    """Backbone, global average pooling and one linear layer (checklist G10, G14)."""

    def __init__(self, backbone: ResNet22, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.out_channels, config.outputs)

    def forward(self, image: Float[Tensor, "b 1 H W"]) -> ClassifierOutput:
        """Classify standardised images."""
        logits = self.classifier(self.backbone(image).mean((-2, -1))).float()
        return ClassifierOutput(logits, logits.sigmoid() if self.config.target == "findings" else None)


def fast_layout(model: Model, config: ResNet22Config) -> Model:
    """Put a model's weights in channels-last order, which a CPU convolves in about two thirds of the time.

    Only where every width is a multiple of 16: with others, the gradient of a strided 1x1 convolution in this
    order corrupts memory on CPUs (torch 2.15.0, oneDNN, seen with 2 to 12 input channels).
    """
    safe = all(width % 16 == 0 for width in config.widths)
    return model.to(memory_format=torch.channels_last) if safe else model


def build_classifier(config: ClassifierConfig, seed: int = 0) -> ImageClassifier:
    """Make a classifier with weights drawn from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(ResNet22(config.backbone), config)
    return fast_layout(model, config.backbone)
