"""Random changes of a training image together with the masks and boxes of its findings.

Parameters are drawn first, from a generator of their own, and applied second. So the same seed gives the
same result in every process and whatever the number of workers, and the global random state is untouched.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mammomil.files import InputError


@dataclass(frozen=True)
class AugmentConfig:
    """How far images are changed. Every field at 0 is the identity, see `AugmentConfig.off`."""

    horizontal_flip: float = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.5
    """Probability of mirroring up and down."""
    rotation: float = 10.0
    """Largest rotation to either side, in degrees."""
    translation: float = 0.05
    """Largest shift in either direction, as a fraction of the image's side."""
    scale: float = 0.1
    """Largest magnification minus 1; shrinking goes down to the inverse."""
    gamma: float = 0.1
    """Largest gamma minus 1 on grey values stretched to [0, 1]; gamma goes down to the inverse."""
    contrast: float = 0.1
    """Largest factor on standardised grey values minus 1; the factor goes down to the inverse."""
    noise: float = 0.02
    """Largest standard deviation of Gaussian noise, in standard deviations of the image; air stays air."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            InputError: a field is negative, or a probability, a shift or a rotation too large.
        """
        most = {"horizontal_flip": 1, "vertical_flip": 1, "rotation": 180, "translation": 1}
        for field in fields(self):
            value, limit = getattr(self, field.name), most.get(field.name, 10)
            if not 0 <= value <= limit:
                raise InputError(f"AugmentConfig: {field.name} is {value}; choose between 0 and {limit}.")

    @classmethod
    def off(cls) -> "AugmentConfig":
        """Change nothing at all."""
        return cls(*(0.0 for _ in fields(cls)))


class Augmented(NamedTuple):
    """An image, its boxes and its masks after the same change; boxes and masks keep their order."""

    image: Float[Tensor, "1 H W"]
    boxes: Float[Tensor, "n 4"]
    masks: Bool[Tensor, "m H W"]


class _Parameters(NamedTuple):
    mirror: bool
    turn_over: bool
    angle: float
    shift: tuple[float, float]
    scale: float
    gamma: float
    contrast: float
    noise: float


def augment(
    image: Float[Tensor, "1 H W"],
    boxes: Float[Tensor, "n 4"],
    masks: Bool[Tensor, "m H W"],
    config: AugmentConfig,
    seed: int,
) -> Augmented:
    """Mirror, rotate, shift and scale image, boxes and masks as one; then change the image's grey values.

    What comes in from outside is filled with the image's minimum, which is the air of a standardised image.
    The grey values are no longer exactly standardised afterwards: that is what gamma and contrast are for.

    Args:
        image: standardised pixels.
        boxes: xyxy on pixel edges of `image`.
        masks: one per finding; their number may differ from that of the boxes.
        config: how far to go.
        seed: 0 or more; decides everything.

    Returns:
        The changed copies. A rotated box is the smallest upright box around the rotated one; a box is cut
        at the border, and one that left the image has no area.
    """
    generator = torch.Generator().manual_seed(seed)
    p = _draw(config, generator)
    if p[:5] != (False, False, 0, (0, 0), 1):
        image, boxes, masks = _move(image, boxes, masks, p)
    air = image.min()
    if p.gamma != 1:
        span = (image.max() - air).clamp(min=1e-6)
        image = ((image - air) / span).pow(p.gamma) * span + air
    if p.contrast != 1:
        image, air = image * p.contrast, air * p.contrast
    if p.noise > 0:
        noisy = image + p.noise * torch.randn(image.shape, generator=generator)
        image = torch.where(image > air, noisy, image).clamp(min=float(air))
    return Augmented(image, boxes, masks)


def _draw(config: AugmentConfig, generator: torch.Generator) -> _Parameters:
    """Draw every parameter, used or not, so that changing one field leaves the others' values alone."""
    u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()

    def around_one(value: float, most: float) -> float:
        return math.exp((2 * value - 1) * math.log1p(most))

    return _Parameters(
        mirror=u[0] < config.horizontal_flip,
        turn_over=u[1] < config.vertical_flip,
        angle=(2 * u[2] - 1) * config.rotation,
        shift=((2 * u[3] - 1) * config.translation, (2 * u[4] - 1) * config.translation),
        scale=around_one(u[5], config.scale),
        gamma=around_one(u[6], config.gamma),
        contrast=around_one(u[7], config.contrast),
        noise=u[8] * config.noise,
    )


def _move(image: Tensor, boxes: Tensor, masks: Tensor, p: _Parameters) -> tuple[Tensor, Tensor, Tensor]:
    from torchvision import tv_tensors  # five seconds on two cores: only where something moves
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    height, width = image.shape[-2:]
    parts = [
        tv_tensors.Image(image),
        tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        tv_tensors.Mask(masks.to(torch.uint8)),
    ]
    if p.mirror:
        parts = [F.horizontal_flip(part) for part in parts]
    if p.turn_over:
        parts = [F.vertical_flip(part) for part in parts]
    image, boxes, masks = (part.as_subclass(Tensor) for part in parts)
    if (p.angle, p.shift, p.scale) != (0, (0, 0), 1):
        change = {
            "angle": p.angle,
            # Whole pixels: torchvision truncates shifts for images and would not for boxes.
            "translate": [round(p.shift[0] * width), round(p.shift[1] * height)],
            "scale": p.scale,
            "shear": [0.0, 0.0],
        }
        # With air at 0 nothing has to be filled in: torchvision blends other fill values wrongly into the
        # border.
        air = image.min()
        image = (
            F.affine(tv_tensors.Image(image - air), interpolation=InterpolationMode.BILINEAR, **change) + air
        )
        boxes, masks = (F.affine(part, **change) if len(part) else part for part in parts[1:])
    return tuple(part.as_subclass(Tensor) for part in (image, boxes, masks.bool()))
