import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.backbones import ClassifierConfig, ClassifierOutput
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.losses import (
    ClassifierObjective,
    GMICObjective,
    bernoulli_nll,
    gmic_loss,
    saliency_penalty,
)
from mammomil.types import Batch


def naive_equation_1(y_loc, y_mil, saliency, label, weight, beta):
    """Eq. 1 of GMIC with loops, in Python floats: sum over classes, mean over images."""
    total = 0.0
    for b in range(len(label)):
        for c in range(2):
            if not math.isnan(label[b][c]):
                for y in (y_loc[b][c], y_mil[b][c]):
                    total -= label[b][c] * math.log(y) + (1 - label[b][c]) * math.log(1 - y)
            total += weight * math.fsum(abs(a) ** beta for row in saliency[b][c] for a in row)
    return total / len(label)


@given(
    seed=st.integers(0, 10_000),
    weight=st.floats(0, 1),
    beta=st.floats(0.2, 5),
    labels=st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=6, max_size=6),
)
def test_gmic_loss_is_equation_1(seed, weight, beta, labels):
    rng = np.random.default_rng(seed)
    y_loc, y_mil = rng.uniform(0.01, 0.99, (2, 3, 2))
    saliency = rng.uniform(0, 1, (3, 2, 4, 5))
    label = np.array(labels).reshape(3, 2)
    tensors = [torch.from_numpy(a) for a in (y_loc, y_mil, saliency, label)]
    terms = gmic_loss(*tensors, weight, beta)
    expected = naive_equation_1(y_loc, y_mil, saliency, label, weight, beta)
    assert sum(terms.values()).item() == pytest.approx(expected, rel=1e-9)


def batch_of(label: torch.Tensor, image: torch.Tensor | None = None) -> Batch:
    n = len(label)
    image = torch.randn(n, 1, 96, 96) if image is None else image
    return Batch(image, label, torch.full((n,), torch.nan), torch.arange(n))


@pytest.mark.parametrize("pooling", ["top_t", "gap", "gmp", "lse"])
def test_objective_equals_the_printed_equation_away_from_saturation(pooling):
    model = build_gmic(GMICConfig(**{**vars(GMICConfig.quick()), "pooling": pooling}))
    batch = batch_of(torch.tensor([[0.0, 1.0], [1.0, torch.nan], [0.0, 0.0]]))
    output = model(batch.image)
    terms = GMICObjective(0.01, 0.7)(output, batch)
    printed = gmic_loss(output.y_loc, output.y_mil, output.saliency, batch.label, 0.01, 0.7)
    assert terms.keys() == printed.keys()
    for name, term in terms.items():
        assert term.item() == pytest.approx(printed[name].item(), rel=1e-4)


def test_log_space_is_finite_where_probabilities_have_rounded_to_0_and_1():
    """With the logit at 80 sigmoid is exactly 1 in float32: Eq. 1 from probabilities is infinite."""
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    log_prob = torch.stack(
        [-torch.nn.functional.softplus(logits), -torch.nn.functional.softplus(-logits)], -1
    )
    label = torch.tensor([[0.0, 1.0]])
    nll = bernoulli_nll(log_prob, label)
    torch.testing.assert_close(nll, torch.tensor([[80.0, 80.0]]))
    nll.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0]]))
    y = logits.detach().sigmoid()
    assert gmic_loss(y, y, y[..., None, None], label, 0.0, 1.0)["loc"].isinf()


def test_unknown_labels_give_neither_loss_nor_gradient():
    log_prob = torch.tensor([[[-math.inf, 0.0]], [[-1.0, -0.5]]], requires_grad=True)
    nll = bernoulli_nll(log_prob, torch.tensor([[torch.nan], [torch.nan]]))
    nll.sum().backward()
    assert (nll == 0).all()
    assert (log_prob.grad == 0).all()


@pytest.mark.parametrize("beta", [0.2, 1.0, 4.9])
def test_saliency_penalty_has_a_finite_gradient_everywhere(beta):
    saliency = torch.tensor([0.0, 1e-30, 0.3, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2).requires_grad_()
    penalty = saliency_penalty(saliency, beta)
    assert penalty.item() == pytest.approx(sum(a**beta for a in (0.0, 1e-30, 0.3, 1.0)))
    penalty.sum().backward()
    assert saliency.grad is not None
    assert saliency.grad.isfinite().all()
    assert saliency.grad[0, 0, 1, 0].item() == pytest.approx(beta * 0.3 ** (beta - 1))


def test_fusion_head_adds_its_own_cross_entropy():
    config = GMICConfig(**{**vars(GMICConfig.quick()), "head": "fusion"})
    batch = batch_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    output = build_gmic(config)(batch.image)
    terms = GMICObjective()(output, batch)
    y = output.y_fusion.detach().numpy()
    expected = -np.mean(
        [math.log(1 - y[0, 0]) + math.log(y[0, 1]), math.log(y[1, 0]) + math.log(1 - y[1, 1])]
    )
    assert terms["fusion"].item() == pytest.approx(expected, rel=1e-5)


def test_birads_cross_entropy_skips_unknown_and_other_categories():
    logits = torch.randn(4, 5)
    birads = torch.tensor([2.0, torch.nan, 0.0, 5.0])
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.full((4, 2), torch.nan), birads, torch.arange(4))
    loss = ClassifierObjective(ClassifierConfig())(ClassifierOutput(logits, None), batch)["ce"]
    kept = torch.nn.functional.cross_entropy(logits[[0, 3]], torch.tensor([1, 4]))
    torch.testing.assert_close(loss, kept)


def test_findings_cross_entropy_skips_unknown_labels():
    logits = torch.randn(2, 2)
    label = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    batch = batch_of(label, torch.zeros(2, 1, 2, 2))
    loss = ClassifierObjective(ClassifierConfig(target="findings"))(ClassifierOutput(logits, None), batch)[
        "ce"
    ]
    p = logits.double().sigmoid()
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log() + p[1, 1].log()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
