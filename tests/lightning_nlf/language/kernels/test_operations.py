"""The kernels against torch, and against hand-worked values."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_nlf.language import kernels
from lightning_nlf.language.kernels.build import library

needs_a_compiler = pytest.mark.skipif(library(torch.float32) is None, reason="no C++ compiler here")
pytestmark = needs_a_compiler

HALF = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # rounding errors of numbers near 1


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_what_fits():
    assert kernels.fit(torch.zeros(1), 64) and kernels.fit(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.fit(torch.zeros(1), 48) and not kernels.fit(torch.zeros(1, dtype=torch.float64))
    assert not kernels.fit(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("dtype", HALF)
def test_gelu_and_its_slope(dtype):
    x = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-1e4, 1e4, 0.0])]).to(dtype)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y, expected = kernels.gelu(ours), F.gelu(theirs.float(), approximate="tanh")
    torch.testing.assert_close(y.float(), expected.detach().to(dtype).float(), atol=HALF[dtype], rtol=HALF[dtype])
    slopes = torch.linspace(-1, 1, len(x)).to(dtype)
    y.backward(slopes)
    expected.backward(slopes.float())
    torch.testing.assert_close(ours.grad, theirs.grad, atol=HALF[dtype], rtol=HALF[dtype])
    with torch.no_grad():
        assert torch.equal(kernels.gelu(x), y) and kernels.gelu(torch.tensor([math.nan])).isnan()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("width", [16, 50, 384])
@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, torch.nn.RMSNorm])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_what_is_added_and_its_norm_on_the_way_there_and_back(dtype, width, norm, rows):
    torch.manual_seed(0)
    norm = norm(width, eps=1e-5)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x, y = 3 + torch.randn(width, rows).t(), torch.randn(rows, width).to(dtype)
    weights = torch.randn(rows, width), torch.randn(rows, width).to(dtype)

    def results(loss_of):
        inputs = [z.clone().requires_grad_() for z in (x, y)]
        norm.zero_grad()
        total, normed = loss_of(*inputs)
        (total * weights[0] + normed.float() * weights[1].float()).sum().backward()
        results_list = [total, normed, *(z.grad for z in (*inputs, *norm.parameters()))]
        return [z.detach().clone() for z in results_list]

    centred = isinstance(norm, torch.nn.LayerNorm)
    bias = norm.bias if centred else None
    ours = results(lambda x, y: kernels.add_norm(x, y, norm.weight, bias, norm.eps, centred))
    theirs = results(lambda x, y: (x + y.float(), norm(x + y.float()).to(dtype)))
    for ours_x, theirs_x in zip(ours, theirs, strict=True):
        assert ours_x.dtype == theirs_x.dtype
        torch.testing.assert_close(ours_x.float(), theirs_x.float(), atol=10 * HALF[dtype], rtol=HALF[dtype])
    with torch.no_grad():
        assert torch.equal(kernels.add_norm(x, y, norm.weight, bias, norm.eps, centred)[1], ours[1])


def test_a_norm_that_nobody_reads_has_no_part_in_the_slope():
    x, y = (torch.randn(3, 16, requires_grad=True) for _ in range(2))
    weight = torch.ones(16, requires_grad=True)
    kernels.add_norm(x, y, weight, None, 1e-5, False)[0].sum().backward()
    assert (x.grad == 1).all() and (y.grad == 1).all() and not weight.grad.any()


def test_shapes_and_dtypes_that_would_be_read_past_their_end_are_refused():
    x, weight = torch.zeros(3, 16), torch.ones(16)
    for wrong in ((x, x[:1], weight), (x, x, weight[:8]), (x.double(), x, weight)):
        with pytest.raises(AssertionError):
            kernels.add_norm(*wrong, None, 1e-5, True)
    with pytest.raises(AssertionError):
        kernels.draw(x, torch.zeros(3))


def test_a_norm_by_hand():
    """1, 2, 3, 6 has mean 3, variance 3.5 and mean square 12.5."""
    x, y = torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 1, 2, 5]])
    weight, bias = torch.tensor([1.0, 1, 2, 1]), torch.tensor([0.0, 0, 0, 10])
    total, normed = kernels.add_norm(x, y, weight, bias, 0.5, True)
    assert total.tolist() == [[1, 2, 3, 6]]
    torch.testing.assert_close(normed, torch.tensor([[-1, -0.5, 0, 11.5]]))
    torch.testing.assert_close(
        kernels.add_norm(x, y, weight, None, 3.5, False)[1], torch.tensor([[0.25, 0.5, 1.5, 1.5]])
    )


def dense(queries, keys, values, bias):
    """softmax(q kᵀ / √e + bias) v: queries (heads, S, e), keys and values (kv_heads, T, e), bias (S, T)."""
    keys, values = (x.repeat_interleave(len(queries) // len(keys), 0) for x in (keys, values))
    scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1]) + bias
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (4, 2, 16), (2, 1, 64), (3, 3, 128)])
def test_one_step_sees_the_columns_of_its_row_and_keeps_its_own(dtype, heads, kv_heads, width):
    torch.manual_seed(0)
    rows, capacity, columns = 5, 23, 18
    qkv = torch.randn(rows, heads + 2 * kv_heads, width).to(dtype)
    store = torch.randn(rows, 2 * kv_heads, capacity, width).to(dtype)
    behind = store[:, :, columns:].clone()
    bias = torch.zeros(rows, capacity)
    bias[1, :7] = bias[3, 2:17] = -math.inf
    out = kernels.attend_step(qkv, store, columns, bias)
    assert torch.equal(store[:, :, columns - 1], qkv[:, heads:]) and torch.equal(store[:, :, columns:], behind)
    for row in range(rows):
        keys, values = store[row, :, :columns].float().chunk(2)
        expected = dense(qkv[row, :heads, None].float(), keys, values, bias[row, None, :columns])[0]
        torch.testing.assert_close(out[row].float(), expected, atol=HALF[dtype], rtol=HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (4, 2, 16), (2, 1, 64), (2, 2, 128)])
def test_spans_see_their_prefix_and_what_came_before_on_the_way_there_and_back(dtype, heads, kv_heads, width):
    """Two stems and three leaves, which continue 9 and all 12 tokens of the first stem, and 1 of the second."""
    torch.manual_seed(0)
    spans = torch.tensor([[0, 12, 0, 0], [12, 33, 0, 0], [45, 1, 0, 9], [46, 20, 0, 12], [66, 17, 12, 1]])
    tokens = 83
    x = torch.randn(tokens, heads + 2 * kv_heads, width).to(dtype)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    out = kernels.attend_spans(ours, spans, heads)
    expected = []
    for first, count, prefix_first, prefix in spans.tolist():
        context = torch.cat([theirs[prefix_first : prefix_first + prefix], theirs[first : first + count]]).float()
        queries, keys, values = context.transpose(0, 1).split([heads, kv_heads, kv_heads])
        later = torch.full((count, prefix + count), -math.inf).triu(prefix + 1)
        expected.append(dense(queries[:, prefix:], keys, values, later))
    expected = torch.cat(expected)
    torch.testing.assert_close(out.float(), expected.detach(), atol=HALF[dtype], rtol=HALF[dtype])
    weights = torch.randn(tokens, heads * width).to(dtype)
    out.backward(weights)
    expected.backward(weights.float())
    torch.testing.assert_close(ours.grad.float(), theirs.grad.float(), atol=4 * HALF[dtype], rtol=HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_normaliser_and_gradient_of_log_probs(dtype):
    torch.manual_seed(0)
    scores = (20 * torch.randn(3, 7, 37)).to(dtype)
    scores[0, 0, 5:] = -math.inf
    torch.testing.assert_close(kernels.log_sums(scores), scores.float().logsumexp(-1))
    assert kernels.log_sums(torch.full((1, 5), -math.inf)) == -math.inf
    tokens, weights = torch.randint(5, (3, 7)), torch.randn(3, 7)
    theirs = scores.float().requires_grad_()
    (theirs.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * weights).sum().backward()
    ours = kernels.log_prob_back(scores, kernels.log_sums(scores), tokens, weights)
    torch.testing.assert_close(ours, theirs.grad.to(dtype), atol=HALF[dtype] / 10, rtol=HALF[dtype])


def test_draws_by_hand():
    """p = ¼, ½, 0, ¼: below ¼ the first token, from ¼ the second, from ¾ the last, and never the third."""
    scores = torch.tensor([0.25, 0.5, 0.0, 0.25]).log() + 3
    uniform = torch.tensor([0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    tokens, log_probs = kernels.draw(scores.expand(6, 4), uniform)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3]
    quarter, half = math.log(0.25), math.log(0.5)
    torch.testing.assert_close(log_probs, torch.tensor([quarter, quarter, half, half, quarter, quarter]))


def test_draws_of_a_large_vocabulary_are_where_the_cumulative_distribution_passes_them():
    torch.manual_seed(0)
    scores, uniform = 3 * torch.randn(400, 501), torch.rand(400, dtype=torch.float64)
    tokens, log_probs = kernels.draw(scores, uniform)
    p = scores.double().softmax(-1)
    upto = p.cumsum(-1).gather(-1, tokens[:, None])[:, 0]
    of_token = p.gather(-1, tokens[:, None])[:, 0]
    assert ((upto - of_token <= uniform + 1e-5) & (uniform <= upto + 1e-5)).all()
    torch.testing.assert_close(log_probs.double(), of_token.log(), atol=1e-5, rtol=1e-5)


def test_draws_from_scores_that_are_no_numbers_stay_inside_the_vocabulary():
    tokens, log_probs = kernels.draw(torch.full((2, 5), math.nan), torch.rand(2, dtype=torch.float64))
    assert tokens.tolist() == [0, 0] and log_probs.isnan().all()
