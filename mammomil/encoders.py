"""Encoders: networks that turn a window of a mammogram into a code, a short vector that says what it shows.

The dual-branch paper takes codes from a network that has learned from photographs (checklist D2). None of
its weights can be shipped, so that the default here is a small network that has learned from phantoms.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mammomil.backbones import ResNet22, ResNet22Config, fast_layout
from mammomil.cnn_m import CNNM128

# 128 numbers for a window, as many as the paper's codes have.
SMALL = ResNet22Config((16, 32, 64, 128), (1, 2, 2, 2), blocks=1, stem_pool=False)


@dataclass(frozen=True)
class EncoderConfig:
    """The network that codes windows. The default needs no download."""

    kind: Literal["small", "cnn-m-128", "resnet18", "resnet50"] = "small"
    """`small`: a narrow ResNet, 128 numbers. `cnn-m-128`: the paper's, 128 numbers. `resnet18`, `resnet50`:
    torchvision's, 512 and 2048 numbers."""
    weights: str = "default"
    """`default`: trained on phantoms for `small` (in data_samples), on ImageNet for torchvision's (downloaded
    on first use). `none`: random, from the seed. Else a path: a model folder for `small`, and for `cnn-m-128`
    imagenet-vgg-m-128.mat or VGG_CNN_M_128.caffemodel, which you get from their authors."""
    mean: str = ""
    """For a .caffemodel: the file VGG_mean.binaryproto. A .mat holds its mean itself."""
    md5: str = ""
    """Checksum of your file of CNN-M-128, in hexadecimal. Empty: the published one for a .mat, no check for
    a .caffemodel, for which none is published."""
    side: int = 28
    """Pixels to which `small` has windows resampled; the others take 224."""

    def __post_init__(self):
        if self.side < 8:
            raise ValueError(f"side is {self.side}; give 8 pixels or more.")
        if self.kind == "cnn-m-128" and self.weights == "default":
            raise ValueError(
                "no weights of cnn-m-128 come with mammomil (non-commercial licence): name your copy of "
                "imagenet-vgg-m-128.mat in weights, or none for random ones."
            )


class RegionEncoder(nn.Module):
    """Windows in, codes out; holds how the grey values of an image become the network's input.

    Attributes:
        side: pixels of the windows it takes.
        out_features: numbers in a code.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.side = config.side if config.kind == "small" else 224
        if config.kind == "small":
            self.net: nn.Module = ResNet22(SMALL)
            self.out_features = SMALL.widths[-1]
        elif config.kind == "cnn-m-128":
            self.net = CNNM128()
            self.out_features = 128
        else:
            from torchvision import models

            net = models.get_model(config.kind)
            self.out_features = net.fc.in_features
            net.fc = nn.Identity()
            self.net = net
            statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255  # ImageNet's
            self.register_buffer("statistics", statistics[..., None, None], persistent=False)

    def grey(self, image: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 1 H W"]:
        """Scale whole images: the networks of photographs take 0 (air) to 255 (reading A17)."""
        if self.config.kind == "small":
            return image
        low = image.amin((2, 3), keepdim=True)
        span = (image.amax((2, 3), keepdim=True) - low).clamp(min=1e-6)
        return 255 * (image - low) / span

    def forward(self, fields: Float[Tensor, "n 1 side side"]) -> Float[Tensor, "n f"]:
        """Return a code per window, none of its numbers negative.

        Args:
            fields: windows of images that `grey` has scaled, resampled to `side` pixels.
        """
        if self.config.kind == "small":
            return self.net(fields).mean((-2, -1))
        fields = fields.expand(-1, 3, -1, -1)
        if self.config.kind == "cnn-m-128":
            return self.net(fields)
        mean, deviation = self.statistics
        return self.net((fields - mean) / deviation)

    def train(self, mode: bool = True) -> "RegionEncoder":
        """Change nothing: windows of one image are no random batch, so batch norm keeps its statistics."""
        return super().train(False)


def build_encoder(config: EncoderConfig, seed: int = 0) -> RegionEncoder:
    """Make an encoder with random weights drawn from `seed`; `weights.load_encoder` fills in trained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = RegionEncoder(config).eval()
    return fast_layout(encoder, SMALL) if config.kind == "small" else encoder


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that tell a module's weights from any others."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
