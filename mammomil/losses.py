"""What training minimises: (output, batch) -> dict of named terms, in float32 and in log space."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mammomil.backbones import ClassifierConfig, ClassifierOutput
from mammomil.dual_branch import DualBranchOutput
from mammomil.gmic import GMICOutput
from mammomil.types import Batch, RegionBatch


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


def semi_supervised_objective(
    log_cls: Float[Tensor, "b m r"],
    log_det: Float[Tensor, "b m c"] | None,
    log_prob: Float[Tensor, "b c 2"],
    label: Float[Tensor, "b c"],
    region_label: Int[Tensor, "b m"],
    annotated: Bool[Tensor, "b"],
    valid: Bool[Tensor, "b m"],
    beta: float = 1.0,
    weak_weight: float = 1.0,
    detection: bool = True,
) -> dict[str, Float[Tensor, ""]]:
    """Return the objective of the dual-branch paper, to be maximised (Eq. 8-12; checklist D12-D16).

    F are the annotated images, W the others. An annotated image without a malignant region is taken for one
    of W: Eq. 9 would be -inf (reading A6; `regions` moves it there beforehand and says so). An empty set
    contributes 0 (reading A11). Without annotated images L is Eq. 5 as a mean (checklist D9, reading A12).

    Args:
        log_cls: log p_cls, Eq. 1.
        log_det: log p_det over all regions, Eq. 2, not the masked one (reading A5); None where a method has
            no ranking, when Eq. 9 is left out.
        log_prob: (log p(y=0), log p(y=1)) per finding, Eq. 3.
        label: 0, 1, or NaN where unknown, which counts neither as W nor among the n of the benign term. From
            the BI-RADS category of a malignant image alone its benign label is unknown (reading A13).
        region_label: 1 malignant, 0 benign or normal, -1 ignored, Eq. 7.
        annotated: images whose malignant findings were all placed.
        valid: False for padding.
        beta: lambda_1 is beta / m_f.
        weak_weight: lambda_2.
        detection: False leaves Eq. 9 out: the paper's SS-Baseline.

    Returns:
        `L_W` (Eq. 11), `L_F_cls` (the plain sum of Eq. 8), `L_F_det` (Eq. 9), `L_F` (Eq. 10), `L` (Eq. 12),
        and `m_f`, the number of labelled regions in the batch (reading A10).
    """
    malignant = (region_label == 1) & valid  # (b, m)
    full = annotated & malignant.any(1)  # F
    chosen = -bernoulli_nll(log_prob, label)  # log p(y_c(t) | x(t)), 0 where unknown
    known = ~label.isnan()
    weak = known[:, 1] & ~full  # W
    weak_m = torch.where(weak, chosen[:, 1], 0.0).sum() / weak.sum().clamp(min=1)
    weak_b = chosen[:, 0].sum() / known[:, 0].sum().clamp(min=1)
    labelled = full[:, None] & valid & (region_label >= 0)
    log_bn = torch.logaddexp(log_cls[..., 0], log_cls[..., 1])  # benign or normal
    log_region = torch.where(region_label == 1, log_cls[..., 2], log_bn)
    m_f = labelled.sum()
    cls = torch.where(labelled, log_region, 0.0).sum()
    det = cls.new_zeros(())
    if detection and log_det is not None:
        # Images without a malignant region get a harmless 0 before the logarithm, so that no NaN flows back.
        rows = torch.where(malignant, log_det[..., 1], -torch.inf)
        rows = torch.where(full[:, None], rows, 0.0).logsumexp(1)
        det = torch.where(full, rows, 0.0).sum() / full.sum().clamp(min=1)
    weak_part, full_part = weak_m + weak_b, beta * cls / m_f.clamp(min=1) + det
    return {
        "L_W": weak_part,
        "L_F_cls": cls,
        "L_F_det": det,
        "L_F": full_part,
        "L": weak_weight * weak_part + full_part,
        "m_f": m_f,
    }


@dataclass(frozen=True)
class DualBranchObjective:
    """Minus the objective of the dual-branch paper, Eq. 5 without and Eq. 12 with annotated images."""

    beta: float = 1.0
    """Weight of the region labels, Eq. 10: lambda_1 is beta over the number of labelled regions."""
    weak_weight: float = 1.0
    """lambda_2, weight of the image labels, Eq. 12."""
    detection: bool = True
    """Rank annotated regions first, Eq. 9. False is the paper's SS-Baseline."""

    def __post_init__(self):
        if self.beta < 0 or self.weak_weight < 0:
            raise ValueError(
                f"beta and weak_weight must be 0 or more, not {self.beta} and {self.weak_weight}."
            )

    def __call__(self, output: DualBranchOutput, batch: RegionBatch) -> dict[str, Float[Tensor, ""]]:
        """Return terms `weak`, `region` and `rank`; their sum is the loss."""
        terms = semi_supervised_objective(
            output.log_cls, output.log_det_all, output.log_prob, batch.label, batch.region_label,
            batch.annotated, batch.valid, self.beta, self.weak_weight, self.detection,
        )  # fmt: skip
        return {
            "weak": -self.weak_weight * terms["L_W"],
            "region": terms["L_F_det"] - terms["L_F"],
            "rank": -terms["L_F_det"],
        }
