"""Language models on our own decoder: what they have in common, and the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nlf.networks import hf_layout
from lightning_nlf.networks.base import Network, Policy, checkpoint_at, under
from lightning_nlf.networks.cache import Cache
from lightning_nlf.networks.categorical import TokenDistribution
from lightning_nlf.networks.decoder import Decoder, DecoderShape
from lightning_nlf.networks.hf_config import shape_in
from lightning_nlf.networks.packing import pack
from lightning_nlf.numbers import BelowOne, Positive


class Transformer(Network):
    """A network with a decoder, whose shape is given or comes with its weights.

    Args:
        shape: of the decoder; left out, it is that of `weights`.
        weights: a checkpoint of ours, or a model in Hugging Face layout: its folder, or its id on the hub.
        dropout: in training, on the embedding and on what attention and MLP add.

    Raises:
        ValueError: neither shape nor weights, weights of another shape or architecture, or none at all.
    """

    decoder: Decoder

    def __init__(self, shape: DecoderShape | None = None, weights: str | None = None, dropout: BelowOne = 0.0) -> None:
        super().__init__()
        folder = hf_layout.folder_of(weights)
        found = shape_in(folder) if folder else shape or self._shape_in_checkpoint(weights)
        if shape is not None and found != shape:
            raise ValueError(f"shape: that of {weights} is another, {found}; leave it out")
        self.decoder = Decoder(found, dropout)
        self.vocabulary, self.context = found.vocabulary, found.context
        self.lm_head: nn.Linear | None = None  # that predicts tokens, where it is not the embedding

    def load_weights(self, weights: str | None) -> None:
        """As of `Network`, or from Hugging Face layout."""
        folder = hf_layout.folder_of(weights)
        if folder is None:
            super().load_weights(weights)
        else:
            hf_layout.load(folder, self.decoder, self.lm_head)

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint without this role gives the policy's decoder, below a fresh head."""
        own = super().own_weights(state)
        if own:
            return own
        fresh = {name: x for name, x in self.state_dict().items() if not name.startswith("decoder.")}
        return fresh | {f"decoder.{name}": x for name, x in under("policy.decoder", state).items()}

    def check_origin(self, networks: Mapping[str, Any], weights: str) -> None:
        """Heads, norms and frequencies are not seen in tensors. More context is no other shape, where none is learned;
        nor is what the weights started from.

        Raises:
            ValueError: the checkpoint says another shape.
        """
        saved = self._saved_shape(networks)
        if saved is None:
            return
        there, here = asdict(DecoderShape(**saved)), asdict(self.decoder.shape)
        free = ("init_std", "context") if self.decoder.places is None else ("init_std",)
        differs = [name for name, x in here.items() if there[name] != x and name not in free]
        if differs:
            name = differs[0]
            raise ValueError(
                f"shape.{name}: got {here[name]}, and {weights} has another shape, with {there[name]}; leave shape out"
            )

    def _saved_shape(self, networks: Mapping[str, Any]) -> dict[str, Any] | None:
        """Of the network of this role, or of the policy that it would start from."""
        spec = networks.get(self.role) or networks.get("policy") or {}
        return spec.get("init_args", {}).get("shape")

    def arguments(self) -> dict[str, Any]:
        return {"shape": asdict(self.decoder.shape)}

    def _shape_in_checkpoint(self, weights: str | None) -> DecoderShape:
        if weights is None:
            raise ValueError("shape: give one (vocabulary, layers, heads, width, context), or `weights` that bring it")
        shape = self._saved_shape(checkpoint_at(weights).get("hyper_parameters") or {})
        if shape is None:
            raise ValueError(f"shape: {weights} does not say it; give it (vocabulary, layers, heads, width, context)")
        return DecoderShape(**shape)

    def states(self, obs: Tensor, where: Tensor | None, exact: bool = True) -> Tensor:
        """obs (B, T) → (B, T, d), or (N, d) over the True steps of `where`. Nothing behind a row's last one is read.

        Args: exact: as of `Decoder.forward`.

        Raises:
            ValueError: a row longer than the context, or a token outside of the vocabulary.
        """
        decoder, shape = self.decoder, self.decoder.shape
        asked = torch.ones(obs.shape, dtype=torch.bool) if where is None else where.cpu()
        if not asked.any():
            return decoder.embed.weight.new_zeros(0, shape.width)
        packed = pack(obs.cpu(), asked, share=not (decoder.dropout and decoder.training))
        self.refuse_length(int(packed.positions.max()) + 1, 0)
        refuse_strangers(packed.ids, shape.vocabulary)
        packed = packed.to(obs.device)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return packed.attend(qkv, shape.heads)

        hidden = decoder(packed.ids, packed.positions, attend, packed.wanted, exact)
        return hidden.unflatten(0, obs.shape) if where is None else hidden

    def refuse_length(self, tokens: int, more: int) -> None:
        """Raises ValueError: `tokens` and so many more do not fit the context."""
        context = self.decoder.shape.context
        if tokens + more > context:
            read = f"{tokens} tokens and a reply of up to {more + 1}" if more else f"{tokens} tokens"
            raise ValueError(
                f"shape.context: a row of {read} is longer than the context of {context}: "
                f"shorten prompts or replies (max_new), or give the {self.role} a larger context"
            )


def refuse_strangers(ids: Tensor, vocabulary: int) -> None:
    """Raises ValueError: a token outside of the vocabulary."""
    if int(ids.max()) >= vocabulary:
        raise ValueError(
            f"shape.vocabulary: token {int(ids.max())} in a vocabulary of {vocabulary}: "
            "the network was made for another tokenizer"
        )


class TransformerPolicy(Transformer, Policy):
    """The next token's distribution.

    Args:
        temperature: what scores are divided by, in sampling and in learning alike.
    """

    CHUNK = 1024  # tokens of prompts that a CPU reads at a time: more take more memory, and no less time

    def __init__(
        self,
        shape: DecoderShape | None = None,
        weights: str | None = None,
        temperature: Positive = 1.0,
        dropout: BelowOne = 0.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0; for the likeliest token: deterministic")
        super().__init__(shape, weights, dropout)
        self.temperature = temperature
        own = self.decoder.shape
        if not own.tied:
            self.lm_head = nn.Linear(own.width, own.vocabulary, bias=False)
            nn.init.normal_(self.lm_head.weight, std=own.init_std)
        self.load_weights(weights)

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where, exact=self.shared)  # scores round them anyway, values must not

    def distribution(self, features: Tensor) -> TokenDistribution:
        return TokenDistribution(self._scores(features))

    def scores(self, features: Tensor) -> Tensor:
        """(…, d) → (…, V), float32, not normalised."""
        return self._scores(features).float()

    def _scores(self, features: Tensor) -> Tensor:
        """The same, in the precision of the product where nothing more is done to it."""
        weight = (self.lm_head or self.decoder.embed).weight
        scores = F.linear(features, weight)
        return scores if self.temperature == 1 else scores.float() / self.temperature

    @torch.no_grad()
    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Cache]:
        shape, (rows, width), device = self.decoder.shape, ids.shape, ids.device
        cache = self._empty_cache(rows) if state is None else state
        if cache.longest + width + max(room - 1, 0) > shape.context:  # perhaps: `longest` is a bound
            cache.longest = int(cache.lengths.max())
            self.refuse_length(int((cache.lengths + lengths).max()), max(room - 1, 0))
        if room or width > 1:  # not of every token that was sampled
            refuse_strangers(ids, shape.vocabulary)
        cache.reserve(cache.used + width + max(room - 1, 0))
        positions, seen = cache.add(lengths, width)
        last = torch.arange(0, rows * width, width, device=device) + (lengths - 1).clamp(min=0)
        positions = positions.clamp(max=shape.context - 1)  # of padding
        some = max(1, self.CHUNK // width) if width > 1 and device.type == "cpu" else max(1, rows)
        scores = []
        for first in range(0, rows, some):
            own = slice(first, first + some)
            wanted = None if width == 1 else last[own] - first * width
            attend = partial(cache.attend, heads=shape.heads, seen=seen[own], first=first)
            hidden = self.decoder(ids[own].flatten(), positions[own].flatten(), attend, wanted, exact=False)
            scores.append(self.scores(hidden))
        return scores[0] if len(scores) == 1 else torch.cat(scores), cache

    def _empty_cache(self, rows: int) -> Cache:
        shape, weight = self.decoder.shape, self.decoder.embed.weight
        device = weight.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        like = weight.new_empty(0, dtype=half)
        return Cache.empty(shape.layers, rows, shape.kv_heads, shape.head_width, like)

    def rows_of(self, state: Any, index: Tensor) -> Cache:
        return state.rows_of(index)

    def with_rows(self, state: Any, index: Tensor, part: Any) -> Cache:
        return state.with_rows(index, part)

    def export(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, for `AutoModelForCausalLM.from_pretrained`."""
        hf_layout.save(Path(folder), self.decoder, self.lm_head)
