"""Token loop on a GPU with a CUDA graph: every token after the first one is one replay.

One step of a small model consists of hundreds of kernels, and launching them from Python takes longer than running
them. A graph launches all kernels at once. In return, shapes, addresses and the order of work must not change after the
capture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lightning_nlf.language.attention import attention
from lightning_nlf.language.cache import Cache
from lightning_nlf.language.reader import DecoderReader

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # scores (B, V), uniform (B,) → tokens, log-probabilities
COLUMNS = 64  # the width of a cache is a multiple of this number, so that replies of similar length share a graph
CHECK = 16  # steps between two checks that all rows have finished; each check waits for the GPU
KEPT = 4  # graphs per policy; each one holds a cache

_graphs: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def fits(policy: Any, logits: Tensor) -> TypeGuard[DecoderReader]:
    """Whether a graph can be captured. The weights of a policy that is divided among ranks have no fixed addresses."""
    return isinstance(policy, DecoderReader) and logits.device.type == "cuda" and not getattr(policy, "sharded", False)


class DecodeStep:
    """One step of decoding: the next token of every row. Uses tensors at fixed addresses, and never waits for the GPU.

    Finished rows stay in the batch. Their results are written, but never used.

    Args:
        columns, steps: width of the cache, and the maximum number of tokens in a reply.
        dtype: dtype of the cache. If the weights have a different dtype, autocast rounds to the dtype of the cache.
        stop: see `generation.reply`.
        draw: function that samples one token per row, and also returns the log-probabilities.
    """

    def __init__(
        self,
        policy: DecoderReader,
        rows: int,
        columns: int,
        steps: int,
        dtype: torch.dtype,
        stop: tuple[int, ...],
        draw: Draw,
    ) -> None:
        shape, weight = policy.decoder.shape, policy.decoder.embed.weight
        device = weight.device
        self.context, self.heads, self.draw = shape.context, shape.heads, draw
        self.half = None if dtype == weight.dtype else dtype
        self.policy = ref(policy)  # a weak reference, so that the step does not keep its policy in memory
        linear = {id(x) for module in policy.modules() if isinstance(module, nn.Linear) for x in module.parameters()}
        linear.add(id(policy.head.weight))  # also if it is the weight of the embedding, which is not a linear layer
        # In a graph, autocast would round all weights for every token. These copies are rounded once per reply.
        rounded = {name: x for name, x in _DecoderWithHead(policy).named_parameters() if id(x) in linear and self.half}
        self.originals = [x.detach() for x in rounded.values()]
        self.rounded = {name: x.detach().to(dtype) for name, x in rounded.items()}
        long: dict[str, Any] = {"dtype": torch.long, "device": device}
        store_shape = (shape.layers, rows, 2 * shape.kv_heads, columns, shape.head_width)
        self.store = torch.zeros(store_shape, dtype=dtype, device=device)  # zeros, because 0 · NaN would be NaN
        # in the cache's dtype, because autocast would round it again for every layer and token
        self.bias = torch.full((rows, columns), -torch.inf, dtype=dtype, device=device)
        self.lengths, self.column, self.at = torch.zeros(rows, **long), torch.zeros(1, **long), torch.zeros(1, **long)
        self.stops = torch.tensor(stop, **long)
        self.token, self.ends, self.limits = (torch.zeros(rows, **long) for _ in range(3))
        self.running = torch.zeros(rows, dtype=torch.bool, device=device)
        self.uniform = torch.zeros(rows, steps, dtype=torch.float64, device=device)
        self.tokens, self.log_probs = torch.zeros(rows, steps, **long), torch.zeros(rows, steps, device=device)
        self.replay: Callable[[], None] = self.step

    def load(self, state: Cache, uniform: Tensor, limits: Tensor) -> None:
        """Start new replies, which continue the tokens that `state` has read."""
        if self.rounded:
            torch._foreach_copy_(list(self.rounded.values()), self.originals)
        self.store[:, :, :, : state.used] = state.store[:, :, :, : state.used]
        self.bias.fill_(-torch.inf)[:, : state.used] = state.bias[:, : state.used]
        self.lengths.copy_(state.lengths)
        self.column.fill_(state.used)
        self.at.zero_()
        self.ends.zero_()
        self.uniform.copy_(uniform)
        self.limits.copy_(limits)
        self.running.copy_(limits > 0)
        self.tokens.copy_(self.stops[0].expand_as(self.tokens))
        self.log_probs.zero_()

    def step(self) -> None:
        """Read the last token, and sample the next one."""
        policy = self.policy()
        assert policy is not None
        bias = torch.where(self.running, 0.0, -torch.inf).to(self.bias.dtype)
        self.bias.index_copy_(1, self.column, bias[:, None])
        arguments = (self.token, self.lengths.clamp(max=self.context - 1), self.attend)
        kind = self.token.device.type
        with torch.autocast(kind, self.half, cache_enabled=False) if self.half else nullcontext():
            # untied, because the embedding must not be rounded with the head
            scores = torch.func.functional_call(_DecoderWithHead(policy), self.rounded, arguments, tie_weights=False)
        self.lengths += self.running
        self.column += 1
        self.choose(scores)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(B, heads + 2 · kv_heads, e) → (B, heads · e), over all columns.

        The bias masks columns that hold no token of the row.
        """
        queries, new = qkv[:, :, None].split([self.heads, qkv.shape[1] - self.heads], 1)
        columns = self.store[layer]
        columns.index_copy_(2, self.column, new)
        keys, values = columns.chunk(2, 1)
        return attention(queries, keys, values, self.bias[:, None, None]).flatten(0, 1)

    def choose(self, scores: Tensor) -> None:
        token, log_prob = self.draw(scores, self.uniform.index_select(1, self.at)[:, 0])
        self.tokens.index_copy_(1, self.at, torch.where(self.running, token, self.stops[0])[:, None])
        self.log_probs.index_copy_(1, self.at, torch.where(self.running, log_prob, 0)[:, None])
        self.ends += self.running
        self.at += 1
        self.running &= (token[:, None] != self.stops).all(1) & (self.at < self.limits)
        self.token.copy_(token)

    def capture(self) -> None:
        """Capture `step` as a CUDA graph for `replay`.

        Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
        """
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # warm-up: libraries choose algorithms and allocate memory
            for _ in range(3):
                self.column.zero_()
                self.at.zero_()
                self.running.fill_(True)  # a row without any columns would give NaN
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # On the stream of the warm-up: torch's own stream for captures stays on the GPU of the first one.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            self.step()
        self.replay = graph.replay


class _DecoderWithHead(nn.Module):
    """A decoder and its head as one module, whose weights `functional_call` can replace.

    `output` is the weight of the head under a name of its own, so that it can be replaced without a tied embedding.
    """

    def __init__(self, policy: DecoderReader) -> None:
        super().__init__()
        self.output = policy.head.weight
        self.policy = policy

    def forward(self, ids: Tensor, positions: Tensor, attend: Any) -> Tensor:
        head = replace(self.policy.head, weight=self.output)
        return head(self.policy.decoder(ids, positions, attend)).float()


def decode(
    policy: DecoderReader,
    logits: Tensor,
    state: Cache,
    uniform: Tensor,
    limits: Tensor,
    stop: tuple[int, ...],
    draw: Draw,
    resume: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Cache | None]:
    """Sample replies from the first token's logits (B, V).

    Returns tokens and log_probs (B, steps), lengths (B,), and the state, or None without `resume`.

    Args: uniform (B, steps): random numbers of each row; limits (B,): maximum number of tokens of each row; draw: must
        compare by value, because it is a part of a graph's key.
    """
    rows, steps = uniform.shape
    used = state.used
    # Normal tensors, because both validation and collection write to them. The device need not be the current one.
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(logits):
        decoding = _step_of(policy, rows, -(-(used + steps) // COLUMNS) * COLUMNS, steps, state.store.dtype, stop, draw)
        decoding.load(state, uniform, limits)
        decoding.choose(logits)
        for step in range(1, steps):
            if step % CHECK == 1 and not decoding.running.any():
                break
            decoding.replay()
            used += 1
        after = None
        if resume:
            bias = decoding.bias[:, :used].to(state.bias.dtype, copy=True)
            read = decoding.store[:, :, :, :used].clone(), bias, decoding.lengths.clone()
            after = Cache(*read, used, state.longest + used - state.used)
        return decoding.tokens.clone(), decoding.log_probs.clone(), decoding.ends.clone(), after


def _step_of(policy: DecoderReader, *how: Any) -> DecodeStep:
    """The `DecodeStep` for these arguments. An earlier step is used again if the weights have the same addresses."""
    key = (*how, *(x.data_ptr() for x in policy.parameters()))
    steps = _graphs.setdefault(policy, {})
    if key not in steps:
        if len(steps) == KEPT:
            del steps[next(iter(steps))]
        steps[key] = DecodeStep(policy, *how)
        if steps[key].token.is_cuda:
            steps[key].capture()
    return steps[key]
