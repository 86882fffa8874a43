"""The dual-branch network: every region is classified, regions are ranked, and both make the image's answer.

Bakalo, Goldberger and Ben-Ari, "A dual branch deep neural network for classification and detection in
mammograms". Regions arrive as codes (see `encoders`), so that this is all there is to learn. Everything is
computed in log space: the loss needs no clamp, and p(y=0) is as exact as p(y=1) (reading A1).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mammomil.pooling import masked_log_softmax, top_k_mask
from mammomil.types import FINDINGS, REGION_CLASSES

Method = Literal["cls-det-rs", "cls-det", "db-baseline", "max-region"]


@dataclass(frozen=True)
class DualBranchConfig:
    """The layers on top of the codes. The defaults are the paper's Cls-Det-RS (checklist D3-D8, D20)."""

    method: Method = "cls-det-rs"
    """`cls-det-rs` ranks the k most suspicious regions (Table I); `cls-det` ranks all; `db-baseline` has no
    normal class (Bilen and Vedaldi); `max-region` does not rank, its most suspicious region decides."""
    k: int = 10
    """Regions that `cls-det-rs` ranks for each finding."""
    hidden: int = 128
    """Features of FC3, which both branches share (reading A15)."""
    dropout: float = 0.5
    """Share of FC3's features that are dropped in training."""
    normalise: bool = False
    """Scale every code to length 1 (reading A16)."""
    branch_std: float = 1e-4
    """Standard deviation of the first weights of FC4 and FC5."""

    def __post_init__(self):
        if min(self.k, self.hidden) < 1:
            raise ValueError(f"k and hidden must be 1 or more, not {self.k} and {self.hidden}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share in [0, 1), not {self.dropout}.")
        if self.branch_std <= 0:
            raise ValueError(f"branch_std must be larger than 0, not {self.branch_std}.")


class DualBranchOutput(NamedTuple):
    """What the network says of some images and of each of their regions.

    Attributes:
        y: p(y_c = 1 | x), Eq. 3.
        log_prob: (log p(y_c = 0), log p(y_c = 1)) of each finding.
        log_normal: log p(normal): no finding at all (checklist D7, reading A23).
        scores: d^c, the evidence of each region for each finding, Eq. 13; 0 for padding. It uses the model's
            own ranking, so with region selection at most k regions of an image have any (reading A4).
        selected: regions that were ranked for each finding, Eq. 4's h; all of them without region selection.
        log_cls: log p_cls over `REGION_CLASSES`, Eq. 1; normal is -inf where a method has no such class.
        log_det: log of the model's own ranking over regions, Eq. 4 or Eq. 2; None where a method has none.
        log_det_all: the ranking over all regions, Eq. 2, which the semi-supervised loss needs (reading A5).
    """

    y: Float[Tensor, "b c"]
    log_prob: Float[Tensor, "b c 2"]
    log_normal: Float[Tensor, "b"]
    scores: Float[Tensor, "b m c"]
    selected: Bool[Tensor, "b m c"]
    log_cls: Float[Tensor, "b m r"]
    log_det: Float[Tensor, "b m c"] | None
    log_det_all: Float[Tensor, "b m c"] | None


def log_p_cls(cls_logits: Float[Tensor, "b m r"]) -> Float[Tensor, "b m r"]:
    """Log of p_cls(c | r_i): softmax over the classes of a region (Eq. 1; checklist D4)."""
    return cls_logits.log_softmax(-1)


def log_p_det(
    det_logits: Float[Tensor, "b m c"],
    select: Bool[Tensor, "b m c"] | None = None,
    valid: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b m c"]:
    """Log of p_det^c(i | x): softmax over the regions of an image (Eq. 2), or over selected ones (Eq. 4).

    Checklist D5 and D8.

    Args:
        det_logits: how strongly each region stands for each finding.
        select: h of Eq. 4; None is Eq. 2.
        valid: False for padding; None is all True.

    Returns:
        Log-probabilities that sum to 1 over regions; -inf, without a gradient, where not selected or padded.
    """
    mask = torch.ones_like(det_logits, dtype=torch.bool) if select is None else select
    if valid is not None:
        mask = mask & valid[..., None]
    return masked_log_softmax(det_logits, mask, 1)


def select_regions(
    log_cls: Float[Tensor, "b m r"], k: int, valid: Bool[Tensor, "b m"] | None = None
) -> Bool[Tensor, "b m c"]:
    """Choose the `k` regions that look most like each finding: h of Eq. 4 (checklist D8, readings A2, A3).

    Nothing here has a gradient. On an image without the finding these are the hard negatives.

    Args:
        log_cls: log p_cls over `REGION_CLASSES`.
        k: regions per finding; all where an image has fewer.
        valid: False for padding; None is all True.
    """
    scores = log_cls.detach()[..., 1:]
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None], -torch.inf)
    return top_k_mask(scores.mT, k).mT


def log_not_cls(log_cls: Float[Tensor, "b m r"]) -> Float[Tensor, "b m c"]:
    """Log of 1 - p_cls(c | r_i) for the findings: the other classes added up, not a difference from 1."""
    normal, benign, malignant = log_cls.unbind(-1)
    return torch.stack([torch.logaddexp(normal, malignant), torch.logaddexp(normal, benign)], -1)


def image_log_prob(
    log_cls: Float[Tensor, "b m r"], log_det: Float[Tensor, "b m c"]
) -> Float[Tensor, "b c 2"]:
    """Log of p(y_c | x): region decisions averaged by rank (Eq. 3; checklist D6, reading A1).

    Args:
        log_cls: log p_cls over `REGION_CLASSES`.
        log_det: log of the ranking, `log_p_det`.

    Returns:
        (log p(y_c = 0), log p(y_c = 1)) per finding; both finite for any finite logits.
    """
    both = torch.stack([log_not_cls(log_cls), log_cls[..., 1:]], -1)  # (b, m, c, 2)
    return (both + log_det[..., None]).logsumexp(1)


def region_scores(log_cls: Float[Tensor, "b m r"], log_det: Float[Tensor, "b m c"]) -> Float[Tensor, "b m c"]:
    """d^c = p_cls(c | r_i) p_det^c(i | x): evidence of each region (Eq. 13; checklist D17).

    They sum to p(y_c = 1 | x) over the regions of an image.
    """
    return (log_cls[..., 1:] + log_det).exp()


def max_region_log_prob(
    log_cls: Float[Tensor, "b m r"], valid: Bool[Tensor, "b m"] | None = None
) -> Float[Tensor, "b c 2"]:
    """Log of p(y_c | x) = max over i of p_cls(c | r_i): the baseline Max-Region (reading A22).

    Args:
        log_cls: log p_cls over `REGION_CLASSES`.
        valid: False for padding; None is all True.
    """
    log_yes = log_cls[..., 1:]
    ranked = log_yes if valid is None else log_yes.masked_fill(~valid[..., None], -torch.inf)
    best = ranked.argmax(1, keepdim=True)  # (b, 1, c), the first of equal ones
    both = torch.stack([log_not_cls(log_cls).gather(1, best), log_yes.gather(1, best)], -1)
    return both.squeeze(1)


def max_region_prob(
    cls_logits: Float[Tensor, "b m r"], valid: Bool[Tensor, "b m"] | None = None
) -> Float[Tensor, "b c"]:
    """p(y_c = 1 | x) of the baseline Max-Region, see `max_region_log_prob`."""
    return max_region_log_prob(log_p_cls(cls_logits), valid)[..., 1].exp()


def db_baseline_log_cls(cls_logits: Float[Tensor, "b m c"]) -> Float[Tensor, "b m 3"]:
    """Log p_cls of DB-Baseline: a softmax over benign and malignant alone (reading A21).

    Returns:
        Over `REGION_CLASSES` as everywhere; normal has probability 0.
    """
    return F.pad(cls_logits.log_softmax(-1), (1, 0), value=-torch.inf)


def db_baseline_prob(
    cls_logits: Float[Tensor, "b m c"],
    det_logits: Float[Tensor, "b m c"],
    valid: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b c"]:
    """p(y_c = 1 | x) of DB-Baseline: Eq. 3 without a normal class and without selection (reading A21)."""
    log_det = log_p_det(det_logits, valid=valid)
    return image_log_prob(db_baseline_log_cls(cls_logits), log_det)[..., 1].exp()


def drop_mask(like: Float[Tensor, "*n"], share: float) -> tuple[Bool[Tensor, "*n"], float]:
    """Draw what dropout drops from a random byte a feature, which is cheaper on a CPU than torch's own.

    Args:
        like: gives shape and device.
        share: probability to be dropped, rounded to a multiple of 1/256 and at most 255/256.

    Returns:
        True where dropped, and the exact probability to be kept.
    """
    count = min(round(256 * share), 255)
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None)  # all 64 bits
    drop = words.view(torch.uint8)[: like.numel()].view(like.shape) < count
    return drop, 1 - count / 256


class DualBranch(nn.Module):
    """FC3, FC4 and FC5 of the paper's Fig. 2 over the codes of regions (checklist D3-D8, D18).

    Example:
        >>> model = build_dual_branch(DualBranchConfig()).eval()
        >>> codes, valid = torch.rand(2, 30, 128), torch.ones(2, 30, dtype=torch.bool)
        >>> output = model(codes, valid)
        >>> bool(torch.allclose(output.scores.sum(1), output.y))
        True
    """

    def __init__(self, config: DualBranchConfig, in_features: int = 128):
        super().__init__()
        self.config, self.in_features = config, in_features
        classes = len(FINDINGS) if config.method == "db-baseline" else len(REGION_CLASSES)
        self.fc3 = nn.Linear(in_features, config.hidden)
        self.fc4 = nn.Linear(config.hidden, classes)  # classification
        # A bias of FC5 would add the same to every region, which a softmax over regions undoes (A14).
        ranks = config.method != "max-region"
        self.fc5 = nn.Linear(config.hidden, len(FINDINGS), bias=False) if ranks else None  # detection
        nn.init.xavier_normal_(self.fc3.weight)  # Glorot's normal distribution (checklist D20)
        nn.init.zeros_(self.fc3.bias)
        nn.init.normal_(self.fc4.weight, std=config.branch_std)
        nn.init.zeros_(self.fc4.bias)
        if self.fc5 is not None:
            nn.init.normal_(self.fc5.weight, std=config.branch_std)

    def forward(self, codes: Float[Tensor, "b m f"], valid: Bool[Tensor, "b m"]) -> DualBranchOutput:
        """Classify and rank the regions of images, of any number per image.

        Args:
            codes: a code per region; what padding holds does not matter, as long as it is finite.
            valid: False for padding; every image needs a region.
        """
        if self.config.normalise:
            codes = F.normalize(codes, dim=-1)
        cls_logits, det_logits = self._logits(self.fc3(codes))
        baseline = self.config.method == "db-baseline"
        log_cls = db_baseline_log_cls(cls_logits) if baseline else log_p_cls(cls_logits)
        every = valid[..., None].expand(-1, -1, len(FINDINGS))
        if det_logits is None:
            log_prob = max_region_log_prob(log_cls, valid)
            scores = log_cls[..., 1:].exp().masked_fill(~every, 0)
            return self._output(log_prob, scores, every, log_cls, None, None)
        log_det_all = log_p_det(det_logits, valid=valid)
        selected, log_det = every, log_det_all
        if self.config.method == "cls-det-rs":
            selected = select_regions(log_cls, self.config.k, valid)
            log_det = log_p_det(det_logits, selected)
        log_prob = image_log_prob(log_cls, log_det)
        return self._output(
            log_prob, region_scores(log_cls, log_det), selected, log_cls, log_det, log_det_all
        )

    def _logits(self, hidden: Float[Tensor, "b m h"]) -> tuple[Tensor, Tensor | None]:
        """ReLU, dropout, FC4 and FC5; the two layers are one matrix product, which reads phi once."""
        zero, scale = hidden <= 0, 1.0
        if self.training and self.config.dropout > 0:
            drop, kept = drop_mask(hidden, self.config.dropout)
            zero, scale = zero | drop, 1 / kept
        phi = torch.where(zero, 0.0, hidden)  # one pass, where relu and dropout take three
        weight, bias = self.fc4.weight, self.fc4.bias
        if self.fc5 is not None:
            weight = torch.cat([weight, self.fc5.weight])
            bias = F.pad(bias, (0, len(FINDINGS)))
        logits = F.linear(phi, scale * weight, bias).float()  # dropout's scale, on the smaller factor
        if self.fc5 is None:
            return logits, None
        return logits[..., : -len(FINDINGS)], logits[..., -len(FINDINGS) :]

    def _output(
        self,
        log_prob: Tensor,
        scores: Tensor,
        selected: Tensor,
        log_cls: Tensor,
        log_det: Tensor | None,
        log_det_all: Tensor | None,
    ) -> DualBranchOutput:
        y, log_normal = log_prob[..., 1].exp(), log_prob[..., 0].sum(-1)
        return DualBranchOutput(y, log_prob, log_normal, scores, selected, log_cls, log_det, log_det_all)


def build_dual_branch(config: DualBranchConfig, in_features: int = 128, seed: int = 0) -> DualBranch:
    """Make a head with weights drawn from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DualBranch(config, in_features)
