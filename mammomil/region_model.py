"""From pixels to the dual branch's answer: windows over the breast, a code for each, and the two branches."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mammomil.dual_branch import DualBranch, DualBranchConfig, DualBranchOutput, build_dual_branch
from mammomil.encoders import EncoderConfig, RegionEncoder, build_encoder
from mammomil.regions import WindowConfig, sliding_windows

CHUNK = 64  # windows that are coded at once: more of them leave the processor's cache, and are slower


@dataclass(frozen=True)
class RegionModelConfig:
    """All of the dual-branch network. The defaults are the paper's sizes, on our own codes."""

    encoder: EncoderConfig = EncoderConfig()
    """What turns windows into codes."""
    windows: WindowConfig = WindowConfig()
    """How images are cut."""
    head: DualBranchConfig = DualBranchConfig()
    """The layers that are learned."""

    @classmethod
    def quick(cls) -> "RegionModelConfig":
        """Windows of the same size in mm on canvases of 0.56 mm pixels."""
        return cls(windows=WindowConfig.quick())


class Pose(NamedTuple):
    """A way to hold an image before it is cut (checklist D21, reading A19).

    Attributes:
        turns: turns of 45 degrees, 0 to 7.
        mirrored: whether it is mirrored left and right, before it is turned.
        shift: 0, or which of six shifts the grid of windows makes, by thirds of its step.
    """

    turns: int = 0
    mirrored: bool = False
    shift: int = 0


SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2))  # (down, right), in thirds of a step
# The paper's 8 turns x (as it is, left-right, up-down): up-down is left-right after half a turn, so that
# these 16 are all there are.
POSES = tuple(Pose(t, m, s) for s in range(len(SHIFTS)) for m in (False, True) for t in range(8))


def hold(planes: Float[Tensor, "n H W"], pose: Pose, fill: float) -> Float[Tensor, "n h w"]:
    """Mirror and turn planes; quarter turns are exact, the eighth between them is bilinear.

    Args:
        planes: images or masks as numbers.
        pose: its shift is not used here.
        fill: what comes in at the corners.
    """
    if pose.mirrored:
        planes = planes.flip(-1)
    planes = torch.rot90(planes, pose.turns // 2, (-2, -1))
    if pose.turns % 2:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F  # six seconds: only where it is needed

        # Filling in 0 is exact, other values are blended wrongly at the border.
        planes = F.rotate(planes - fill, 45.0, InterpolationMode.BILINEAR, expand=True) + fill
    return planes


def image_windows(
    mask: Bool[Tensor, "H W"], config: WindowConfig, pose: Pose | None = None
) -> Float[Tensor, "m 4"]:
    """List the windows of all sizes over a breast.

    Args:
        mask: the breast without the muscle, turned as `pose` says.
        config: sizes and rules.
        pose: gives the shift of the grid; None is none.
    """
    down, right = SHIFTS[pose.shift if pose else 0]
    boxes = []
    for size in config.sizes:
        step = max(1, round(config.stride * size))
        boxes.append(
            sliding_windows(
                *mask.shape,
                size,
                step,
                mask,
                min_share=config.min_breast,
                shift_last=config.shift_last,
                offset=(down * step // 3, right * step // 3),
            )
        )
    return torch.cat(boxes)


def pad_regions(values: list[Tensor]) -> tuple[Tensor, Bool[Tensor, "b m"], Int[Tensor, "v"]]:
    """Stack lists of regions of different lengths.

    Args:
        values: per image (m_i, ...).

    Returns:
        (b, m, ...) with zeros as padding; which are none; and their places among the b * m.
    """
    padded = nn.utils.rnn.pad_sequence(values, batch_first=True)
    counts = torch.tensor([len(value) for value in values])
    valid = torch.arange(padded.shape[1]) < counts[:, None]
    return padded, valid, valid.flatten().nonzero().squeeze(1)


class RegionModel(nn.Module):
    """Encoder and dual branch as one network from pixels, to predict with or to train end to end.

    Attributes:
        encoder: windows to codes.
        head: codes to answers; alone it is trained on codes that are kept.
    """

    def __init__(self, encoder: RegionEncoder, head: DualBranch, config: RegionModelConfig):
        super().__init__()
        self.config, self.encoder, self.head = config, encoder, head

    def encode(
        self,
        image: Float[Tensor, "b 1 H W"],
        boxes: Float[Tensor, "b m 4"],
        places: Int[Tensor, "v"],
    ) -> Float[Tensor, "b m f"]:
        """Cut all windows of all images at once and code them.

        Args:
            image: standardised pixels.
            boxes: windows, xyxy in pixels of their image, with padding.
            places: numbers of the windows that are no padding, among the b * m.

        Returns:
            Codes; zeros at padding.
        """
        from torchvision.ops import roi_align

        b, m = boxes.shape[:2]
        grey = self.encoder.grey(image)
        number = torch.arange(b, device=boxes.device).repeat_interleave(m)
        rois = torch.cat([number[:, None], boxes.flatten(0, 1)], 1)[places]  # (v, 5)
        # Whole pixels when a window has the encoder's size already, averages of them when it is larger.
        codes = [
            self.encoder(roi_align(grey, part.to(grey.dtype), self.encoder.side, aligned=True))
            for part in rois.split(CHUNK)
        ]
        empty = codes[0].new_zeros(b * m, self.encoder.out_features)
        return empty.index_copy(0, places, torch.cat(codes)).unflatten(0, (b, m))

    def forward(
        self,
        image: Float[Tensor, "b 1 H W"],
        boxes: Float[Tensor, "b m 4"],
        valid: Bool[Tensor, "b m"],
        places: Int[Tensor, "v"],
    ) -> DualBranchOutput:
        """Answer for images that were cut into windows; see `encode` and `DualBranch`."""
        return self.head(self.encode(image, boxes, places), valid)


def build_region_model(config: RegionModelConfig, seed: int = 0) -> RegionModel:
    """Make the network with weights drawn from `seed`; see `weights.load_encoder` for trained encoders."""
    encoder = build_encoder(config.encoder, seed)
    return RegionModel(encoder, build_dual_branch(config.head, encoder.out_features, seed), config)


def without_weights(config: RegionModelConfig) -> RegionModelConfig:
    """Return the config with a random encoder: its weights are about to be filled in from elsewhere."""
    return dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, weights="none", mean="", md5="")
    )
