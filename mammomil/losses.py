"""What training minimises: (output, batch) -> dict of named terms, in float32 and in log space."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mammomil.backbones import ClassifierConfig, ClassifierOutput
from mammomil.gmic import GMICOutput
from mammomil.types import Batch


def bernoulli_nll(log_prob: Float[Tensor, "b c 2"], label: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Binary cross-entropy from log-probabilities; 0, with no gradient, where the label is NaN.

    Args:
        log_prob: (log p(y=0), log p(y=1)).
        label: 0, 1 or NaN.
    """
    chosen = torch.where(label > 0.5, log_prob[..., 1], log_prob[..., 0])
    return torch.where(label.isnan(), 0.0, -chosen)


def saliency_penalty(saliency: Float[Tensor, "b c h w"], beta: float) -> Float[Tensor, "b c"]:
    """L_reg = sum over all cells of |A|^beta (GMIC section 2.4; checklist G4, reading G-a).

    Args:
        saliency: A, in [0, 1].
        beta: exponent, larger than 0. Below 1 the slope at A = 0 is infinite; a cell at exactly 0 gets
            gradient 0, the limit it has behind a sigmoid (reading G-b).
    """
    positive = saliency > 0
    return saliency.masked_fill(~positive, 1).pow(beta).masked_fill(~positive, 0).sum((-2, -1))


def gmic_loss(
    y_loc: Float[Tensor, "b c"],
    y_mil: Float[Tensor, "b c"],
    saliency: Float[Tensor, "b c h w"],
    label: Float[Tensor, "b c"],
    weight: float,
    beta: float,
) -> dict[str, Float[Tensor, ""]]:
    """Eq. 1 of GMIC from probabilities, as printed (checklist G5).

    Probabilities that have rounded to exactly 0 or 1 give an infinite loss; training uses `GMICObjective`,
    the same sum from log-probabilities.

    Args:
        y_loc: probabilities from the saliency map, in (0, 1).
        y_mil: probabilities from the patches, in (0, 1).
        saliency: A, in [0, 1].
        label: 0, 1 or NaN.
        weight: lambda.
        beta: exponent of the regulariser.

    Returns:
        Terms `loc`, `mil` and `reg`, summed over findings and averaged over images. Their sum is Eq. 1.
    """
    log_loc, log_mil = (torch.stack([torch.log1p(-y), torch.log(y)], -1) for y in (y_loc, y_mil))
    return _gmic_terms(log_loc, log_mil, None, saliency, label, weight, beta)


@dataclass(frozen=True)
class GMICObjective:
    """Eq. 1 of GMIC in log space; with the fusion head also the 2020 paper's third cross-entropy."""

    weight: float = 1e-4
    """lambda, weight of the regulariser; the paper searches 1e-5 to 1.6e-3."""
    beta: float = 1.0
    """Exponent of the regulariser; the paper searches 0.2 to 5."""

    def __post_init__(self):
        if self.weight < 0 or self.beta <= 0:
            raise ValueError(
                f"weight must be 0 or more and beta larger than 0, not {self.weight}, {self.beta}."
            )

    def __call__(self, output: GMICOutput, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return terms `loc`, `mil`, `reg` and, with the fusion head, `fusion`; their sum is the loss."""
        return _gmic_terms(
            output.log_loc,
            output.log_mil,
            output.log_fusion,
            output.saliency,
            batch.label,
            self.weight,
            self.beta,
        )


def _gmic_terms(log_loc, log_mil, log_fusion, saliency, label, weight, beta) -> dict[str, Tensor]:
    terms = {
        "loc": bernoulli_nll(log_loc, label),
        "mil": bernoulli_nll(log_mil, label),
        "reg": weight * saliency_penalty(saliency, beta),
    }
    if log_fusion is not None:
        terms["fusion"] = bernoulli_nll(log_fusion, label)
    return {name: term.sum(1).mean() for name, term in terms.items()}


@dataclass(frozen=True)
class ClassifierObjective:
    """Cross-entropy of an `ImageClassifier`, over BI-RADS categories or per finding."""

    config: ClassifierConfig

    def __call__(self, output: ClassifierOutput, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the term `ce`, averaged over the images whose category or findings are known."""
        if self.config.target == "findings":
            nll = F.binary_cross_entropy_with_logits(
                output.logits, batch.label.nan_to_num(), reduction="none"
            )
            return {"ce": torch.where(batch.label.isnan(), 0.0, nll).sum(1).mean()}
        match = torch.stack([batch.birads == c for c in self.config.birads], 1)  # NaN matches none
        nll = -(output.logits.log_softmax(1) * match).sum(1)
        return {"ce": nll.sum() / match.any(1).sum().clamp(min=1)}
