"""Token loop on a GPU by CUDA graph: every token but the first is one replay.

A small model's step is hundreds of kernels, and starting them from Python takes longer than they run. In a graph they
are started at once; in turn nothing may move: shapes, addresses and the order of work are those of the capture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lightning_nlf.language.attention import attention
from lightning_nlf.language.cache import Cache
from lightning_nlf.language.reader import DecoderReader

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # scores (B, V), uniform (B,) → tokens, log-probabilities
COLUMNS = 64  # caches are a multiple of it wide, so that replies of other lengths find their graph
CHECK = 16  # steps between two looks whether all rows are finished: looking waits for the GPU
KEPT = 4  # graphs of a policy; each holds a cache

_graphs: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def fits(policy: Any, logits: Tensor) -> TypeGuard[DecoderReader]:
    return isinstance(policy, DecoderReader) and logits.device.type == "cuda"


class DecodeStep:
    """The next token of every row, in tensors that stay where they are; nothing that a number says is asked for.

    Rows stay in the batch when they are finished: their numbers are written where nobody looks.

    Args:
        columns, steps: of the cache, and tokens of a reply, at most.
        dtype: of the cache; another than that of the weights is what autocast rounds to.
        stop: as of `generation.reply`; draw: a token a row, and its log-probability.
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
        self.policy = ref(policy)  # whoever keeps a step does not keep its policy alive
        linear = {id(x) for module in policy.modules() if isinstance(module, nn.Linear) for x in module.parameters()}
        # Under autocast a graph would round all weights for every token; these are rounded once for every reply.
        rounded = {name: x for name, x in _DecoderWithHead(policy).named_parameters() if id(x) in linear and self.half}
        self.originals = [x.detach() for x in rounded.values()]
        self.rounded = {name: x.detach().to(dtype) for name, x in rounded.items()}
        long: dict[str, Any] = {"dtype": torch.long, "device": device}
        kept = (shape.layers, rows, 2 * shape.kv_heads, columns, shape.head_width)
        self.store = torch.zeros(kept, dtype=dtype, device=device)  # 0 · NaN would be NaN
        self.bias = torch.full((rows, columns), -torch.inf, device=device)
        self.lengths, self.column, self.at = torch.zeros(rows, **long), torch.zeros(1, **long), torch.zeros(1, **long)
        self.stops = torch.tensor(stop, **long)
        self.token, self.ends, self.limits = (torch.zeros(rows, **long) for _ in range(3))
        self.running = torch.zeros(rows, dtype=torch.bool, device=device)
        self.uniform = torch.zeros(rows, steps, dtype=torch.float64, device=device)
        self.tokens, self.log_probs = torch.zeros(rows, steps, **long), torch.zeros(rows, steps, device=device)
        self.replay: Callable[[], None] = self.step

    def load(self, state: Cache, uniform: Tensor, limits: Tensor) -> None:
        """Begin replies behind what `state` has read."""
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
        """Read the last token, and choose the next."""
        policy = self.policy()
        assert policy is not None
        self.bias.index_copy_(1, self.column, torch.where(self.running, 0.0, -torch.inf)[:, None])
        arguments = (self.token, self.lengths.clamp(max=self.context - 1), self.attend)
        kind = self.token.device.type
        with torch.autocast(kind, self.half, cache_enabled=False) if self.half else nullcontext():
            scores = torch.func.functional_call(_DecoderWithHead(policy), self.rounded, arguments)
        self.lengths += self.running
        self.column += 1
        self.choose(scores)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """(B, heads + 2 · kv_heads, e) → (B, heads · e), over all columns: the bias says which are a row's own."""
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
        """Have `replay` be a CUDA graph of `step`, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs"""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose and allocate before
            for _ in range(3):
                self.column.zero_()
                self.at.zero_()
                self.running.fill_(True)  # who sees no column computes what is no number
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.step()
        self.replay = graph.replay


class _DecoderWithHead(nn.Module):
    """A decoder and its head in one call, whose weights `functional_call` can exchange."""

    def __init__(self, policy: DecoderReader) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, ids: Tensor, positions: Tensor, attend: Any) -> Tensor:
        return self.policy.scores(self.policy.decoder(ids, positions, attend))


def decode(
    policy: DecoderReader,
    logits: Tensor,
    state: Cache,
    uniform: Tensor,
    limits: Tensor,
    stop: tuple[int, ...],
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor, Cache]:
    """Replies from the first token's logits (B, V) on: tokens and log_probs (B, steps), lengths (B,), and the state.

    Args: uniform (B, steps), limits (B,): what each row draws by, and its tokens at most; draw: compares by value.
    """
    rows, steps = uniform.shape
    used = state.used
    # tensors that both validation and collection write to, on a device that need not be the current one
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(logits):
        own = _step_of(policy, rows, -(-(used + steps) // COLUMNS) * COLUMNS, steps, state.store.dtype, stop, draw)
        own.load(state, uniform, limits)
        own.choose(logits)
        for step in range(1, steps):
            if step % CHECK == 1 and not own.running.any():
                break
            own.replay()
            used += 1
        read = own.store[:, :, :, :used].clone(), own.bias[:, :used].clone(), own.lengths.clone()
        after = Cache(*read, used, state.longest + used - state.used)
        return own.tokens.clone(), own.log_probs.clone(), own.ends.clone(), after


def _step_of(policy: DecoderReader, *how: Any) -> DecodeStep:
    """The one made before for the same, if the weights are still where they were."""
    key = (*how, *(x.data_ptr() for x in policy.parameters()))
    own = _graphs.setdefault(policy, {})
    if key not in own:
        if len(own) == KEPT:
            del own[next(iter(own))]
        own[key] = DecodeStep(policy, *how)
        if own[key].token.is_cuda:
            own[key].capture()
    return own[key]
