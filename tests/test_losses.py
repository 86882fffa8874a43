import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.backbones import ClassifierConfig, ClassifierOutput
from mammomil.dual_branch import (
    DualBranchConfig,
    build_dual_branch,
    image_log_prob,
    log_p_cls,
    log_p_det,
    select_regions,
)
from mammomil.gmic import GMICConfig, build_gmic
from mammomil.losses import (
    ClassifierObjective,
    DualBranchObjective,
    GMICObjective,
    bernoulli_nll,
    gmic_loss,
    saliency_penalty,
    semi_supervised_objective,
)
from mammomil.types import Batch, RegionBatch


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


def naive_equation_12(p_cls, p_det, p, label, region_label, annotated, valid, beta, weak_weight, detection):
    """Eq. 8-12 with loops, in Python floats, from probabilities; labels and sets see readings A6-A11."""
    n, m = len(label), len(region_label[0])
    full = [
        t for t in range(n) if annotated[t] and any(valid[t][i] and region_label[t][i] == 1 for i in range(m))
    ]
    weak = [t for t in range(n) if t not in full and not math.isnan(label[t][1])]
    known = [t for t in range(n) if not math.isnan(label[t][0])]
    weak_sum = 0.0
    for images, c in ((weak, 1), (known, 0)):
        terms = [math.log(p[t][c] if label[t][c] == 1 else 1 - p[t][c]) for t in images]
        weak_sum += math.fsum(terms) / max(len(terms), 1)
    cls, det, m_f = 0.0, 0.0, 0
    for t in full:
        for i in range(m):
            if valid[t][i] and region_label[t][i] >= 0:
                m_f += 1
                malignant = p_cls[t][i][2]
                cls += math.log(malignant if region_label[t][i] == 1 else 1 - malignant)
        inside = [p_det[t][i][1] for i in range(m) if valid[t][i] and region_label[t][i] == 1]
        det += math.log(math.fsum(inside)) / len(full)
    det = det if detection else 0.0
    both = (beta / m_f if m_f else 0.0) * cls + det
    return {"L_W": weak_sum, "L_F_cls": cls, "L_F_det": det, "L_F": both, "L": weak_weight * weak_sum + both,
            "m_f": m_f}  # fmt: skip


@given(
    seed=st.integers(0, 10_000),
    beta=st.floats(0, 3),
    weak_weight=st.floats(0, 3),
    detection=st.booleans(),
    rs=st.booleans(),
)
def test_semi_supervised_objective_is_equations_8_to_12(seed, beta, weak_weight, detection, rs):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 6)), int(rng.integers(1, 9))
    cls, det = (torch.from_numpy(2 * rng.normal(size=(n, m, c))) for c in (3, 2))
    valid = torch.from_numpy(rng.random((n, m)) < 0.8)
    valid[:, 0] = True
    label = torch.from_numpy(rng.choice([0.0, 1.0, math.nan], (n, 2)))
    region_label = torch.from_numpy(rng.choice([-1, 0, 1], (n, m)))
    annotated = torch.from_numpy(rng.random(n) < 0.5)
    log_cls = log_p_cls(cls)
    log_all = log_p_det(det, valid=valid)
    log_det = log_p_det(det, select_regions(log_cls, 3, valid)) if rs else log_all
    log_prob = image_log_prob(log_cls, log_det)
    found = semi_supervised_objective(
        log_cls, log_all, log_prob, label, region_label, annotated, valid, beta, weak_weight, detection
    )
    expected = naive_equation_12(
        *(v.exp().tolist() for v in (log_cls, log_all)), log_prob[..., 1].exp().tolist(), label.tolist(),
        region_label.tolist(), annotated.tolist(), valid.tolist(), beta, weak_weight, detection,
    )  # fmt: skip
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-9), name


def region_case(seed=0, n=6, m=12, annotated=True):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(n, m, 8, generator=generator)
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).repeat(n // 3, 1)
    region_label = torch.randint(-1, 2, (n, m), generator=generator)
    region_label[:, 0] = 1
    return RegionBatch(
        valid=torch.ones(n, m, dtype=torch.bool),
        label=label,
        region_label=region_label,
        annotated=(label[:, 1] == 1) & annotated,
        row=torch.arange(n),
        codes=codes,
    )


@pytest.mark.parametrize("method", ["cls-det-rs", "cls-det", "db-baseline", "max-region"])
def test_without_annotations_the_loss_is_equation_5_as_means(method):
    batch = region_case(annotated=False)
    output = build_dual_branch(DualBranchConfig(method=method, branch_std=1.0), 8).eval()(*batch.inputs)
    terms = DualBranchObjective()(output, batch)
    likelihood = bernoulli_nll(output.log_prob, batch.label).mean(0).sum()  # Eq. 5 over n (reading A12)
    torch.testing.assert_close(sum(terms.values()), likelihood)
    assert terms["region"] == terms["rank"] == 0


def test_the_loss_is_minus_equation_12_and_its_terms_add_up():
    batch = region_case()
    output = build_dual_branch(DualBranchConfig(branch_std=1.0, k=3), 8).eval()(*batch.inputs)
    terms = DualBranchObjective(beta=2.0, weak_weight=0.5)(output, batch)
    whole = semi_supervised_objective(
        output.log_cls, output.log_det_all, output.log_prob, batch.label, batch.region_label, batch.annotated,
        batch.valid, 2.0, 0.5,
    )  # fmt: skip
    torch.testing.assert_close(sum(terms.values()), -whole["L"])
    torch.testing.assert_close(terms["weak"], -0.5 * whole["L_W"])
    torch.testing.assert_close(terms["region"], -2 / whole["m_f"] * whole["L_F_cls"])
    torch.testing.assert_close(terms["rank"], -whole["L_F_det"])
    baseline = DualBranchObjective(detection=False)(output, batch)  # SS-Baseline
    assert baseline["rank"] == 0


def test_equation_9_uses_the_ranking_over_all_regions():
    """Reading A5: with the masked one, an image whose malignant regions are not selected would cost inf."""
    batch = region_case(n=3)
    batch = batch._replace(region_label=torch.zeros_like(batch.region_label))
    batch.region_label[:, -1] = 1
    model = build_dual_branch(DualBranchConfig(branch_std=1.0, k=1), 8, seed=1).eval()
    output = model(*batch.inputs)
    assert not output.selected[0, -1, 1]
    terms = DualBranchObjective()(output, batch)
    assert terms["rank"].isfinite()
    assert terms["rank"].item() == pytest.approx(-output.log_det_all[0, -1, 1].item(), rel=1e-6)


def test_ignored_regions_have_no_part_in_equation_8():
    """Reading A7, and the paper: ignoring them did better than calling them benign or normal."""
    batch = region_case(n=3)
    model = build_dual_branch(DualBranchConfig(branch_std=1.0), 8).eval()
    log_cls = model(*batch.inputs).log_cls.detach().requires_grad_()
    output = model(*batch.inputs)._replace(log_cls=log_cls)
    DualBranchObjective()(output, batch)["region"].backward()
    grad = log_cls.grad[0].abs().sum(-1)
    assert (grad[batch.region_label[0] == -1] == 0).all()
    assert (grad[batch.region_label[0] >= 0] > 0).all()


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_the_semi_supervised_loss_survives_hard_logits(size):
    batch = region_case()
    cls = (size * torch.sign(torch.randn(6, 12, 3))).requires_grad_()
    det = (size * torch.sign(torch.randn(6, 12, 2))).requires_grad_()
    log_cls = log_p_cls(cls)
    log_prob = image_log_prob(log_cls, log_p_det(det, select_regions(log_cls, 3)))
    terms = semi_supervised_objective(
        log_cls, log_p_det(det), log_prob, batch.label, batch.region_label, batch.annotated, batch.valid
    )
    terms["L"].backward()
    assert terms["L"].isfinite()
    assert cls.grad.isfinite().all()
    assert det.grad.isfinite().all()


def test_an_annotated_image_without_a_malignant_region_counts_as_weak():
    batch = region_case(n=3)
    none = batch._replace(region_label=torch.zeros_like(batch.region_label))
    output = build_dual_branch(DualBranchConfig(branch_std=1.0), 8).eval()(*batch.inputs)
    moved = DualBranchObjective()(output, none)
    weak = DualBranchObjective()(output, none._replace(annotated=torch.zeros(3, dtype=torch.bool)))
    for name, value in weak.items():
        torch.testing.assert_close(moved[name], value)
    assert all(value.isfinite() for value in moved.values())


def test_the_dual_branch_learns_a_batch_by_heart():
    """Overfitting one batch with bags told apart by one region in each."""
    generator = torch.Generator().manual_seed(0)
    codes = 0.3 * torch.randn(32, 20, 8, generator=generator)
    label = torch.randint(0, 2, (32, 2), generator=generator).float()
    codes[:, 3, 0] += 3 * label[:, 0]
    codes[:, 7, 1] += 3 * label[:, 1]
    batch = region_case(n=3)._replace(
        codes=codes, label=label, valid=torch.ones(32, 20, dtype=torch.bool), row=torch.arange(32),
        region_label=torch.full((32, 20), -1), annotated=torch.zeros(32, dtype=torch.bool),
    )  # fmt: skip
    model = build_dual_branch(DualBranchConfig(dropout=0.0, k=3), 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        sum(DualBranchObjective()(model(*batch.inputs), batch).values()).backward()
        optimizer.step()
    output = model.eval()(*batch.inputs)
    assert ((output.y > 0.5) == (label == 1)).all()
    ranked_first = output.scores.argmax(1)
    assert (ranked_first[label[:, 0] == 1, 0] == 3).float().mean() > 0.9  # nobody told it which region
    assert (ranked_first[label[:, 1] == 1, 1] == 7).float().mean() > 0.9


@pytest.mark.parametrize("change", [{"beta": -1.0}, {"weak_weight": -1.0}])
def test_wrong_weights_of_the_dual_objective_are_refused(change):
    with pytest.raises(ValueError, match="must be 0 or more"):
        DualBranchObjective(**change)


def bags(count, seed, regions=60, features=16):
    """Bags half of which hold one malignant region, a little apart from the others: codes, label, place."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(count, regions, features, generator=generator)
    label = torch.stack([torch.zeros(count), torch.arange(count) % 2.0], 1)
    place = torch.randint(regions, (count,), generator=generator)
    sick = torch.arange(1, count, 2)
    codes[sick, place[sick], :3] += 1.6
    return codes, label, place


def share_of_first_regions_that_are_right(fraction, detection, seed):
    codes, label, place = bags(60, seed)
    annotated = (label[:, 1] == 1) & (torch.arange(60) < 60 * fraction)
    region_label = torch.zeros(60, 60, dtype=torch.long).scatter(1, place[:, None], 1)
    batch = RegionBatch(
        valid=torch.ones(60, 60, dtype=torch.bool), label=label, row=torch.arange(60), codes=codes,
        region_label=region_label.where(annotated[:, None], -1), annotated=annotated,
    )  # fmt: skip
    model = build_dual_branch(DualBranchConfig(), 16, seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    torch.manual_seed(seed)
    for _ in range(300):
        optimizer.zero_grad()
        sum(DualBranchObjective(detection=detection)(model(*batch.inputs), batch).values()).backward()
        optimizer.step()
    codes, label, place = bags(400, 99)
    first = model.eval()(codes, torch.ones(400, 60, dtype=torch.bool)).scores[..., 1].argmax(1)
    return (first == place)[label[:, 1] == 1].float().mean().item()


@pytest.mark.slow
def test_annotations_help_to_find_and_the_ranking_loss_is_what_helps():
    """The paper's claims of Fig. 5, where region labels are right: on phantoms they are only nearly so."""
    weak, half, baseline = (
        np.mean([share_of_first_regions_that_are_right(*setting, seed) for seed in range(4)])
        for setting in ((0.0, True), (0.5, True), (0.5, False))
    )
    assert weak > 5 / 60  # chance is 1 in 60
    assert half > weak
    assert half > baseline + 0.1  # SS-Baseline: the same annotations without Eq. 9
