"""Eq. 1-4 and 13 of the dual-branch paper against loops, and the properties the paper and checklist name."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mammomil.dual_branch import (
    DualBranchConfig,
    build_dual_branch,
    db_baseline_log_cls,
    db_baseline_prob,
    drop_mask,
    image_log_prob,
    log_not_cls,
    log_p_cls,
    log_p_det,
    max_region_prob,
    region_scores,
    select_regions,
)

METHODS = ("cls-det-rs", "cls-det", "db-baseline", "max-region")


def softmax(values):
    """In Python floats, shifted, so that +-80 do not overflow."""
    top = max(values)
    parts = [math.exp(v - top) for v in values]
    return [p / math.fsum(parts) for p in parts]


def naive_image(cls, det, k=None):
    """Eq. 1-4 and 13 for one image (m, 3), (m, 2), as the paper's Table I reads."""
    p_cls = [softmax(row) for row in cls]
    y, scores, chosen = [], [], []
    for c in (1, 2):
        ranked = sorted(range(len(cls)), key=lambda i: (-p_cls[i][c], i))
        h = set(ranked if k is None else ranked[:k])
        inside = softmax([det[i][c - 1] for i in sorted(h)])
        p_det = dict(zip(sorted(h), inside, strict=True))
        d = [p_det.get(i, 0.0) * p_cls[i][c] for i in range(len(cls))]
        y.append(math.fsum(d))
        scores.append(d)
        chosen.append([i in h for i in range(len(cls))])
    return np.array(y), np.array(scores).T, np.array(chosen).T


def logits(seed, m, scale=3.0, b=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = scale * torch.randn(b, m, 5, generator=generator, dtype=dtype)
    return draw[..., :3], draw[..., 3:]


@given(seed=st.integers(0, 10_000), m=st.integers(1, 25), k=st.one_of(st.none(), st.integers(1, 30)))
def test_equations_1_to_4_and_13_equal_loops(seed, m, k):
    cls, det = logits(seed, m)
    log_cls = log_p_cls(cls)
    select = None if k is None else select_regions(log_cls, k)
    log_det = log_p_det(det, select)
    log_prob, scores = image_log_prob(log_cls, log_det), region_scores(log_cls, log_det)
    for b in range(2):
        y, d, chosen = naive_image(cls[b].tolist(), det[b].tolist(), k)
        np.testing.assert_allclose(log_prob[b, :, 1].exp(), y, rtol=1e-12)
        np.testing.assert_allclose(log_prob[b, :, 0].exp(), 1 - y, rtol=1e-9)
        np.testing.assert_allclose(scores[b], d, rtol=1e-12, atol=1e-300)
        if select is not None:
            np.testing.assert_array_equal(select[b], chosen)


@given(seed=st.integers(0, 10_000), m=st.integers(1, 12))
def test_baselines_equal_loops(seed, m):
    cls, det = logits(seed, m)
    y_max, y_db = max_region_prob(cls), db_baseline_prob(cls[..., 1:], det)
    for b in range(2):
        p3 = [softmax(row) for row in cls[b].tolist()]
        p2 = [softmax(row) for row in cls[b, :, 1:].tolist()]
        rank = [softmax(column) for column in det[b].T.tolist()]
        for c in range(2):
            assert y_max[b, c] == pytest.approx(max(p[c + 1] for p in p3), rel=1e-12)
            expected = math.fsum(r * p[c] for r, p in zip(rank[c], p2, strict=True))
            assert y_db[b, c] == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 10_000), m=st.integers(1, 12), extra=st.integers(0, 9))
def test_k_from_the_number_of_regions_on_selects_nothing_away(seed, m, extra):
    cls, det = logits(seed, m)
    log_cls = log_p_cls(cls)
    log_det = log_p_det(det, select_regions(log_cls, m + extra))
    torch.testing.assert_close(log_det, log_p_det(det), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 1000), m=st.integers(1, 20), padding=st.integers(0, 7))
def test_order_and_padding_of_regions_do_not_matter(method, seed, m, padding):
    model = build_dual_branch(DualBranchConfig(method=method, k=4, branch_std=1.0), 8).double().eval()
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(1, m, 8, generator=generator, dtype=torch.float64)
    order = torch.randperm(m, generator=generator)
    plain = model(codes, torch.ones(1, m, dtype=torch.bool))
    padded = torch.cat([codes[:, order], torch.full((1, padding, 8), 1e3, dtype=torch.float64)], 1)
    valid = torch.arange(m + padding)[None] < m
    moved = model(padded, valid)
    torch.testing.assert_close(moved.log_prob, plain.log_prob)
    torch.testing.assert_close(moved.log_normal, plain.log_normal)
    torch.testing.assert_close(moved.scores[:, :m], plain.scores[:, order])
    assert (moved.scores[:, m:] == 0).all()
    assert not moved.selected[:, m:].any()
    torch.testing.assert_close(moved.selected[:, :m], plain.selected[:, order])


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_its_three_layers_and_the_equations(method):
    config = DualBranchConfig(method=method, k=3, branch_std=1.0, hidden=6)
    model = build_dual_branch(config, 5, seed=3).double().eval()
    codes = torch.randn(2, 7, 5, dtype=torch.float64)
    output = model(codes, torch.ones(2, 7, dtype=torch.bool))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for b in range(2):
        phi = np.maximum(codes[b].numpy() @ weights["fc3.weight"].T + weights["fc3.bias"], 0)
        cls = phi @ weights["fc4.weight"].T + weights["fc4.bias"]
        if method == "max-region":
            p = np.array([softmax(row) for row in cls])[:, 1:]
            y, scores, chosen = p.max(0), p, np.ones((7, 2), bool)  # reading A22: d = p_cls
        else:
            det = phi @ weights["fc5.weight"].T
            if method == "db-baseline":
                cls = np.column_stack([np.full(7, -np.inf), cls])
            y, scores, chosen = naive_image(cls, det, 3 if method == "cls-det-rs" else None)
        np.testing.assert_allclose(output.y[b].detach(), y, rtol=1e-6)
        np.testing.assert_allclose(output.scores[b].detach(), scores, rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(output.selected[b], chosen)
        assert output.log_normal[b].exp().item() == pytest.approx(np.prod(1 - y), rel=1e-5)


@given(seed=st.integers(0, 10_000), m=st.integers(1, 30), scale=st.sampled_from([1.0, 80.0, 1e4]))
def test_probabilities_and_complements_sum_to_one_in_log_space(seed, m, scale):
    cls, det = logits(seed, m, scale, dtype=torch.float32)
    log_cls = log_p_cls(cls)
    log_prob = image_log_prob(log_cls, log_p_det(det, select_regions(log_cls, 10)))
    assert log_prob.isfinite().all()
    torch.testing.assert_close(log_prob.logsumexp(-1), torch.zeros(2, 2), rtol=0, atol=2e-6)
    scores = region_scores(log_cls, log_p_det(det))
    torch.testing.assert_close(scores.sum(1), image_log_prob(log_cls, log_p_det(det))[..., 1].exp())


def naive_log_prob(cls, det, select, c):
    """(log p(y_c=0), log p(y_c=1)) in extended precision."""
    cls, det = (np.asarray(v, np.longdouble) for v in (cls, det))
    log_cls = cls - np.logaddexp.reduce(cls, axis=1)[:, None]
    rank = det[:, c - 1][select]
    rank = rank - np.logaddexp.reduce(rank)
    others = np.logaddexp.reduce(np.delete(log_cls, c, 1)[select], axis=1)
    return np.logaddexp.reduce(rank + others), np.logaddexp.reduce(rank + log_cls[select, c])


HARD = {
    "saturated": ([[80, -80, -80], [-80, 80, -80], [-80, -80, 80]], [[80, -80], [-80, 80], [0, 0]]),
    "one region": ([[-80.0, 0.0, 80.0]], [[-80.0, 80.0]]),
    "all ties": ([[0.0, 0.0, 0.0]] * 5, [[0.0, 0.0]] * 5),
    "an unselected region dominates": (
        [[0, 5, 5], [0, 4, 4], [80, 0, 0]],
        [[-80, -80], [-79, -79], [80, 80]],
    ),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("k", [1, 2, 10])
def test_hard_numbers_are_finite_and_right_with_right_gradients(name, k):
    rows = [torch.tensor(v, dtype=torch.float32)[None] for v in HARD[name]]
    cls, det = (v.clone().requires_grad_() for v in rows)
    log_cls = log_p_cls(cls)
    select = select_regions(log_cls, k)
    log_prob = image_log_prob(log_cls, log_p_det(det, select))
    for c in (1, 2):
        expected = naive_log_prob(HARD[name][0], HARD[name][1], select[0, :, c - 1].numpy(), c)
        np.testing.assert_allclose(
            log_prob[0, c - 1].detach(), np.array(expected, float), rtol=1e-5, atol=1e-6
        )
    for c in range(2):
        for value in range(2):
            grads = torch.autograd.grad(log_prob[0, c, value], (cls, det), retain_graph=True)
            double = [v.double().requires_grad_() for v in rows]
            log64 = log_p_cls(double[0])
            again = image_log_prob(log64, log_p_det(double[1], select))[0, c, value]
            for grad, right in zip(grads, torch.autograd.grad(again, double), strict=True):
                assert grad.isfinite().all()
                torch.testing.assert_close(grad.double(), right, rtol=1e-4, atol=1e-6)


def test_gradients_equal_finite_differences():
    cls, det = logits(1, 6, b=1)

    def function(cls, det):
        log_cls = log_p_cls(cls)
        return image_log_prob(log_cls, log_p_det(det, select_regions(log_cls, 3)))

    assert torch.autograd.gradcheck(function, (cls.requires_grad_(), det.requires_grad_()))


def test_no_gradient_reaches_unselected_detection_logits_or_padding():
    cls, det = logits(5, 12)
    det.requires_grad_()
    valid = torch.arange(12)[None] < torch.tensor([[12], [7]])
    log_cls = log_p_cls(cls)
    select = select_regions(log_cls, 4, valid)
    assert not select[1, 7:].any()
    assert (select.sum(1) == 4).all()
    image_log_prob(log_cls, log_p_det(det, select)).sum().backward()
    assert (det.grad[~select] == 0).all()
    assert (det.grad[select] != 0).all()


def test_padded_regions_have_no_gradient_whatever_they_hold():
    model = build_dual_branch(DualBranchConfig(branch_std=1.0, dropout=0.0), 8)
    codes = torch.randn(2, 9, 8).requires_grad_()
    valid = torch.arange(9)[None] < torch.tensor([[9], [5]])
    model(codes, valid).log_prob.sum().backward()
    assert (codes.grad[~valid] == 0).all()
    assert (codes.grad[valid] != 0).any(-1).sum() >= 10  # the selected ones at least


def test_ties_go_to_the_lowest_index():
    log_cls = log_p_cls(torch.zeros(1, 8, 3))
    assert select_regions(log_cls, 3)[0, :, 0].tolist() == [True] * 3 + [False] * 5
    valid = torch.tensor([[False, True, False, True, True, True, True, True]])
    assert select_regions(log_cls, 3, valid)[0, :, 1].nonzero().flatten().tolist() == [1, 3, 4]


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20),
    k=st.integers(1, 25),
    data=st.data(),
)
def test_selection_equals_a_stable_sort(values, k, data):
    valid = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    log_cls = torch.tensor(values)[None, :, None].expand(1, -1, 3).log()
    if 0.0 in values:  # log 0 is never selected
        valid = [v and x > 0 for v, x in zip(valid, values, strict=True)]
    expected = sorted((i for i in range(len(values)) if valid[i]), key=lambda i: (-values[i], i))[:k]
    found = select_regions(log_cls, k, torch.tensor(valid)[None])
    for c in range(2):
        assert found[0, :, c].nonzero().flatten().tolist() == sorted(expected)


def test_normal_images_of_the_baseline_cannot_be_told():
    """Without a normal class p_B + p_M = 1 in every region: the reason for the paper's third class."""
    log_cls = db_baseline_log_cls(torch.randn(2, 5, 2, dtype=torch.float64))
    assert (log_cls[..., 0] == -torch.inf).all()
    torch.testing.assert_close(log_not_cls(log_cls), log_cls[..., [2, 1]])


def test_the_first_weights_are_the_papers():
    model = build_dual_branch(DualBranchConfig(hidden=2000), 1000, seed=1)
    assert model.fc3.weight.std().item() == pytest.approx(math.sqrt(2 / 3000), rel=0.01)  # Glorot normal
    for layer in (model.fc4, model.fc5):
        assert layer.weight.std().item() == pytest.approx(1e-4, rel=0.05)
    assert model.fc5.bias is None
    again = build_dual_branch(DualBranchConfig(hidden=2000), 1000, seed=1)
    torch.testing.assert_close(again.fc5.weight, model.fc5.weight, rtol=0, atol=0)
    codes, valid = torch.rand(1, 40, 1000), torch.ones(1, 40, dtype=torch.bool)
    output = model.eval()(codes, valid)
    torch.testing.assert_close(output.y, torch.full((1, 2), 1 / 3), atol=0.02, rtol=0)  # it knows nothing yet


def test_dropout_is_on_fc3_alone_and_in_training_alone():
    model = build_dual_branch(DualBranchConfig(method="cls-det", branch_std=1.0, dropout=0.5), 8)
    codes, valid = torch.rand(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    first, second = model.train()(codes, valid), model(codes, valid)
    assert not torch.equal(first.y, second.y)
    torch.testing.assert_close(model.eval()(codes, valid).y, model(codes, valid).y, rtol=0, atol=0)
    # In the mean over draws, a layer after dropout gives what it gives without: torch's own scaling.
    hidden = torch.randn(1, 1, 128)
    plain = model._logits(hidden)
    draws = torch.stack([torch.cat(model.train()._logits(hidden), -1) for _ in range(4000)])
    spread = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - torch.cat(plain, -1)).abs() < 5 * spread).all()
    reference = torch.stack([
        model.fc4(torch.nn.functional.dropout(hidden.relu(), 0.5))
        for _ in range(4000)
    ])  # fmt: skip
    torch.testing.assert_close(draws[..., :3].std(0), reference.std(0), rtol=0.08, atol=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_dropped_features_are_as_many_as_asked_and_independent(share):
    drop, kept = drop_mask(torch.empty(1000, 257), share)
    assert kept == pytest.approx(1 - share, abs=1 / 256)
    share = 1 - kept
    assert drop.float().mean().item() == pytest.approx(
        1 - kept, abs=5 * (share * (1 - share) / 257_000) ** 0.5
    )
    columns = drop.float() - drop.float().mean()
    neighbours = (columns[:, 1:] * columns[:, :-1]).mean().item()
    assert abs(neighbours) < 5 * share * (1 - share) / 257_000**0.5
    torch.manual_seed(5)
    again = drop_mask(torch.empty(1000, 257), share)[0]
    torch.manual_seed(5)
    assert torch.equal(drop_mask(torch.empty(1000, 257), share)[0], again)


def test_normalised_codes_do_not_feel_their_length():
    model = build_dual_branch(DualBranchConfig(normalise=True, branch_std=1.0), 8).eval()
    codes, valid = torch.rand(1, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(model(5 * codes, valid).y, model(codes, valid).y)


def test_the_model_exports_with_any_number_of_images_and_regions():
    model = build_dual_branch(DualBranchConfig(branch_std=1.0), 8).eval()
    inputs = torch.rand(3, 20, 8), torch.ones(3, 20, dtype=torch.bool)
    b, m = torch.export.Dim("b"), torch.export.Dim("m", min=11)
    exported = torch.export.export(model, inputs, dynamic_shapes=({0: b, 1: m}, {0: b, 1: m})).module()
    other = torch.rand(2, 33, 8), torch.arange(33)[None] < torch.tensor([[33], [15]])
    torch.testing.assert_close(exported(*other).log_prob, model(*other).log_prob)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"k": 0}, "k and hidden"), ({"dropout": 1.0}, "dropout"), ({"branch_std": 0.0}, "branch_std")],
)
def test_wrong_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(DualBranchConfig(), **change)
