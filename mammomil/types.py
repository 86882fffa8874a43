"""Names and shapes that every room of the library shares.

Class order is the same everywhere: findings are (benign, malignant), region classes are (normal, benign,
malignant). Boxes are `xyxy` floats on pixel edges with the origin at the top left; a box covering the first
pixel alone is (0, 0, 1, 1). Unknown labels are NaN and are never treated as 0.

Axis names in shapes: b images, c findings, h w cells of a map, H W pixels, k patches, m regions, n lesions,
f features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

FINDINGS = ("benign", "malignant")
REGION_CLASSES = ("normal", "benign", "malignant")


class Batch(NamedTuple):
    """What a model and its losses see of some images.

    Attributes:
        image: standardised pixels (zero mean, unit standard deviation per image).
        label: 0, 1, or NaN where unknown, in the order of `FINDINGS`.
        birads: BI-RADS category 0 to 6, NaN where unknown.
        row: row number of each image in the table it came from.
    """

    image: Float[Tensor, "b 1 H W"]
    label: Float[Tensor, "b c"]
    birads: Float[Tensor, "b"]
    row: Int[Tensor, "b"]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model is called with."""
        return (self.image,)


class RegionBatch(NamedTuple):
    """What the dual-branch network and its loss see of some images: codes of regions, or pixels and windows.

    Attributes:
        valid: False for padding; every image has a region.
        label: 0, 1, or NaN where unknown, in the order of `FINDINGS`.
        region_label: 1 malignant, 0 benign or normal, -1 ignored or not annotated.
        annotated: images whose malignant findings were placed and are learned from.
        row: row number of each image in the table it came from.
        codes: a code per region; None when the encoder is trained too.
        image: standardised pixels, to train the encoder on; else None.
        boxes: windows on `image`, xyxy; else None.
        places: number of each valid region in the flattened (b m) regions, which only the host can count
            without waiting for the device; else None.
    """

    valid: Bool[Tensor, "b m"]
    label: Float[Tensor, "b c"]
    region_label: Int[Tensor, "b m"]
    annotated: Bool[Tensor, "b"]
    row: Int[Tensor, "b"]
    codes: Float[Tensor, "b m f"] | None = None
    image: Float[Tensor, "b 1 H W"] | None = None
    boxes: Float[Tensor, "b m 4"] | None = None
    places: Int[Tensor, "v"] | None = None

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What the model is called with: codes, or pixels and windows."""
        if self.codes is not None:
            return self.codes, self.valid
        return self.image, self.boxes, self.valid, self.places


class Prediction(NamedTuple):
    """What a model says of one image, in the pixels of the file it was read from.

    Attributes:
        image_id: name of the image, unique within a run.
        path: the file.
        model: name of the model.
        laterality: `L`, `R` or empty.
        view: `CC`, `MLO`, another view, or empty.
        prob: probability of each finding in [0, 1], in the order of `FINDINGS`.
        p_normal: probability of no finding (reading A23: the product of the complements).
        parts: probabilities of the model's parts, such as `loc` and `mil`, each of shape (c,).
        saliency: map of each finding in [0, 1], oriented as the file is; None where the model has none.
        map_box: the rectangle of the file that `saliency` covers, xyxy; it may reach past the image.
        boxes: regions the model looked at, xyxy.
        scores: evidence of each region for each finding, larger is more suspicious.
        attention: weight of each region in the image's prediction, summing to 1; None where there is none.
        selected: regions that the ranking for each finding was made of (the dual-branch paper's Eq. 4); None
            where a model selects none.
    """

    image_id: str
    path: str
    model: str
    laterality: str
    view: str
    prob: Float[np.ndarray, "c"]
    p_normal: float
    parts: dict[str, Float[np.ndarray, "c"]]
    saliency: Float[np.ndarray, "c h w"] | None
    map_box: Float[np.ndarray, "4"] | None
    boxes: Float[np.ndarray, "k 4"]
    scores: Float[np.ndarray, "k c"]
    attention: Float[np.ndarray, "k"] | None
    selected: Bool[np.ndarray, "k c"] | None = None

    @property
    def ranks_regions(self) -> bool:
        """Whether the model ranks regions without attention, as the dual-branch network does."""
        if self.selected is not None:
            return True
        return self.saliency is None and self.attention is None and len(self.boxes) > 0
