import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammomil.pooling import (
    GatedAttention,
    log_pool,
    log_sum_exp_pool,
    masked_log_softmax,
    top_k_mask,
    top_t_count,
    top_t_pool,
)

maps = hnp.arrays(
    np.float64, st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 7)] * 2), elements=st.floats(0, 1)
)


def naive_top_t(values: np.ndarray, t: float) -> float:
    """Sort in plain Python and average; t is a fraction, at least one cell."""
    ordered = sorted((float(v) for v in values.ravel()), reverse=True)
    count = max(1, round(t * len(ordered)))
    return math.fsum(ordered[:count]) / count


@given(maps, st.floats(0.001, 1))
def test_top_t_pool_equals_sorting(saliency, t):
    pooled = top_t_pool(torch.from_numpy(saliency), t)
    for image, row in zip(saliency, pooled, strict=True):
        for channel, value in zip(image, row, strict=True):
            assert value.item() == pytest.approx(naive_top_t(channel, t), abs=1e-12)


@given(maps, st.floats(0.001, 1), st.floats(0.001, 1))
def test_top_t_pool_falls_as_t_grows(saliency, t, u):
    saliency = torch.from_numpy(saliency)
    small, large = sorted((t, u))
    assert (top_t_pool(saliency, small) >= top_t_pool(saliency, large) - 1e-12).all()


@pytest.mark.parametrize(
    ("t", "count"), [(0.02, 28), (0.03, 41), (0.05, 69), (0.1, 138), (1e-9, 1), (1.0, 1380)]
)
def test_top_t_count_of_the_papers_map(t, count):
    """28, 41, 69 and 138 are what the released models pool on 46x30 cells (checklist G-c)."""
    assert top_t_count(46, 30, t) == count


def test_top_t_count_rounds_halves_to_even():
    assert [top_t_count(1, 10, t) for t in (0.25, 0.35)] == [2, 4]


@pytest.mark.parametrize("pooling", ["gap", "gmp", "top_t", "lse"])
@given(
    logits=hnp.arrays(np.float64, (2, 2, 3, 5), elements=st.floats(-30, 30)),
    t=st.floats(0.01, 1),
    r=st.floats(0.1, 20),
)
@example(logits=np.full((2, 2, 3, 5), -8.27496122), t=1.0, r=19.0)
def test_log_pool_is_the_logarithm_of_the_pooled_probability(pooling, logits, t, r):
    wide = logits.astype(np.longdouble)  # exp(-20) leaves too few of float64's digits beside 1
    saliency = 1 / (1 + np.exp(-wide))
    complement = 1 / (1 + np.exp(wide))
    result = log_pool(torch.from_numpy(logits), pooling, t, r)
    for b in range(2):
        for c in range(2):
            a, not_a = saliency[b, c].ravel(), complement[b, c].ravel()
            order = np.argsort(-logits[b, c].ravel(), kind="stable")
            top = order[: max(1, round(t * a.size))]
            y, not_y = {
                "gap": (a.mean(), not_a.mean()),
                "gmp": (a[order[0]], not_a[order[0]]),
                "top_t": (a[top].mean(), not_a[top].mean()),
                "lse": (
                    np.log1p(np.expm1(r * a).mean()) / r,
                    -np.log1p(np.expm1(-r * not_a).mean()) / r,
                ),
            }[pooling]
            np.testing.assert_allclose(
                result[b, c].numpy(), np.log([not_y, y]).astype(float), rtol=1e-9, atol=1e-10
            )
            assert float(y + not_y) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("pooling", ["gap", "gmp", "top_t", "lse"])
@pytest.mark.parametrize("size", [80.0, -80.0])
def test_log_pool_is_finite_with_useful_gradients_where_sigmoid_saturates(pooling, size):
    logits = torch.full((1, 1, 4, 4), size, requires_grad=True)
    log_prob = log_pool(logits, pooling, 0.3)
    wrong = 0 if size > 0 else 1
    assert log_prob.isfinite().all()
    assert log_prob[0, 0, wrong].item() == pytest.approx(-80, rel=1e-4)
    log_prob[0, 0, wrong].backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == pytest.approx(1, rel=1e-3)


@given(maps)
def test_log_sum_exp_lies_between_mean_and_maximum(saliency):
    saliency = torch.from_numpy(saliency)
    mean, high = saliency.mean((-2, -1)), saliency.amax((-2, -1))
    pooled = log_sum_exp_pool(saliency, 5.0)
    assert (pooled >= mean - 1e-12).all()
    assert (pooled <= high + 1e-12).all()
    torch.testing.assert_close(log_sum_exp_pool(saliency, 1e-6), mean, rtol=0, atol=1e-5)
    # At sharpness r the maximum is missed by at most log(number of cells) / r.
    assert (log_sum_exp_pool(saliency, 500.0) >= high - math.log(saliency[0, 0].numel()) / 500 - 1e-9).all()


@pytest.mark.parametrize("high", [0.02, 0.3, 0.6, 1.0])
def test_log_sum_exp_of_a_large_sharpness_is_finite_and_right(high):
    """exp(200) is infinity in float32. Reference in float64; slopes by A are shares, which sum to 1."""
    generator = torch.Generator().manual_seed(1)
    saliency = torch.rand(3, 2, 46, 30, generator=generator) * high
    saliency[0, 0], saliency[1, 1, 0, 0] = 0.0, high
    saliency.requires_grad_()
    pooled = log_sum_exp_pool(saliency, 200.0)
    cells = saliency.detach().double().flatten(2).numpy()
    top = cells.max(2, keepdims=True)
    want = top[..., 0] + np.log(np.exp(200 * (cells - top)).mean(2)) / 200
    np.testing.assert_allclose(pooled.detach().numpy(), want, rtol=1e-5, atol=1e-8)
    pooled.sum().backward()
    shares = np.exp(200 * (cells - top))
    shares /= shares.sum(2, keepdims=True)
    np.testing.assert_allclose(saliency.grad.flatten(2).numpy(), shares, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("sharpness", [88.0, 200.0, 1000.0])
def test_log_pool_of_a_large_sharpness_is_finite_and_right(sharpness):
    """Low maps, maps whose highest cell is a little above one half, and saturated ones."""
    levels = torch.tensor([-9.0, -2.0, 0.2, 3.0, 40.0]).view(5, 1, 1, 1)
    logits = levels - torch.rand(5, 1, 6, 5, generator=torch.Generator().manual_seed(2)) * 4
    logits.requires_grad_()
    found = log_pool(logits, "lse", sharpness=sharpness)
    wide = logits.detach().double().flatten(1).numpy()
    cells, rest = 1 / (1 + np.exp(-wide)), 1 / (1 + np.exp(wide))
    high, low = cells.max(1, keepdims=True), rest.min(1, keepdims=True)
    y = high[:, 0] + np.log1p(np.expm1(sharpness * (cells - high)).mean(1)) / sharpness
    not_y = low[:, 0] - np.log1p(np.expm1(sharpness * (low - rest)).mean(1)) / sharpness
    np.testing.assert_allclose(found[:, 0].detach().numpy(), np.log([not_y, y]).T, rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0, 30.0])
def test_log_sum_exp_of_a_small_sharpness_is_the_plain_formula_to_the_bit(sharpness):
    saliency = torch.rand(2, 2, 46, 30, generator=torch.Generator().manual_seed(3)) ** 4
    plain = torch.expm1(sharpness * saliency).mean((-2, -1)).log1p() / sharpness
    assert torch.equal(log_sum_exp_pool(saliency, sharpness), plain)


def test_gated_attention_equals_loops():
    torch.manual_seed(1)
    attention = GatedAttention(5, 4, bias=True).double()
    h = torch.randn(3, 6, 5, dtype=torch.float64)
    weights, bag = attention(h)
    V, U, w = (layer.weight.detach().numpy() for layer in (attention.V, attention.U, attention.w))
    bV, bU, bw = (layer.bias.detach().numpy() for layer in (attention.V, attention.U, attention.w))
    for b in range(3):
        scores = []
        for k in range(6):
            x = h[b, k].numpy()
            gate = [math.tanh(V[i] @ x + bV[i]) / (1 + math.exp(-(U[i] @ x + bU[i]))) for i in range(4)]
            scores.append(math.exp(float(w[0] @ np.array(gate) + bw[0])))
        expected = np.array(scores) / math.fsum(scores)
        np.testing.assert_allclose(weights[b].detach().numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(
            bag[b].detach().numpy(), sum(a * h[b, k].numpy() for k, a in enumerate(expected)), rtol=1e-9
        )


@given(st.permutations(range(6)))
def test_gated_attention_follows_a_permutation_and_the_bag_ignores_it(order):
    torch.manual_seed(2)
    attention = GatedAttention(5, 4).double()
    h = torch.randn(2, 6, 5, dtype=torch.float64)
    weights, bag = attention(h)
    permuted_weights, permuted_bag = attention(h[:, list(order)])
    torch.testing.assert_close(permuted_weights, weights[:, list(order)])
    torch.testing.assert_close(permuted_bag, bag)


@given(hnp.arrays(np.float64, (2, 3, 7), elements=st.floats(-90, 90)), st.integers(0, 2**32))
def test_masked_log_softmax_equals_a_softmax_of_what_is_marked(logits, bits):
    mask = np.random.default_rng(bits).random(logits.shape) < 0.6
    found = masked_log_softmax(torch.from_numpy(logits), torch.from_numpy(mask), 1).numpy()
    for b in range(2):
        for column in range(7):
            rows = np.flatnonzero(mask[b, :, column])
            assert (found[b, ~mask[b, :, column], column] == -np.inf).all()
            if len(rows):
                kept = logits[b, rows, column].astype(np.longdouble)
                expected = kept - np.logaddexp.reduce(kept)
                np.testing.assert_allclose(found[b, rows, column], expected.astype(float), atol=1e-12)


def test_masked_log_softmax_of_nothing_has_no_nan_and_no_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    result = masked_log_softmax(logits, mask, 1)
    assert (result[1] == -torch.inf).all()
    result[0, [0, 2]].sum().backward()
    assert (logits.grad[~mask] == 0).all()


@given(
    hnp.arrays(np.float64, (3, 9), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])),
    st.integers(1, 12),
)
def test_top_k_mask_equals_a_stable_sort(scores, k):
    found = top_k_mask(torch.from_numpy(scores), k)
    for row, marks in zip(scores, found, strict=True):
        order = [i for i in np.argsort(-row, kind="stable") if row[i] > -np.inf][:k]
        assert marks.nonzero().flatten().tolist() == sorted(order)
