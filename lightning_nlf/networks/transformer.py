"""Language models on our own decoder: what they have in common, and the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nlf.language import hf_folder, hf_layout
from lightning_nlf.language.decoder import Decoder
from lightning_nlf.language.hf_config import shape_in
from lightning_nlf.language.hf_generation import generation_in, write_generation
from lightning_nlf.language.limits import refuse_length, refuse_strangers
from lightning_nlf.language.packing import pack
from lightning_nlf.language.reader import DecoderReader
from lightning_nlf.language.shape import DecoderShape
from lightning_nlf.language.token_distribution import TokenDistribution
from lightning_nlf.networks.base import Network, Policy, checkpoint_at, under
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
        if folder is not None:
            hf_folder.checked(folder)
        found = shape_in(folder) if folder else shape or self._shape_in_checkpoint(weights)
        if shape is not None and found != shape:
            raise ValueError(f"shape: that of {weights} is another, {found}; leave it out")
        if found.layers > hf_folder.MOST_LAYERS:
            raise ValueError(f"shape.layers: got {found.layers}, must be at most {hf_folder.MOST_LAYERS}")
        hf_folder.refuse_memory(lambda: Decoder(found, dropout), "shape")
        self.decoder = Decoder(found, dropout)
        self.generation = {} if folder is None else generation_in(folder)
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
        refuse_length(int(packed.positions.max()) + 1, shape.context, self.role)
        refuse_strangers(packed.ids, shape.vocabulary)
        packed = packed.to(obs.device)
        attend = partial(packed.attend, heads=shape.heads)
        hidden = decoder(packed.ids, packed.positions, attend, packed.wanted, exact)
        return hidden.unflatten(0, obs.shape) if where is None else hidden


class TransformerPolicy(Transformer, DecoderReader, Policy):
    """The next token's distribution.

    Args:
        temperature: what scores are divided by, in sampling and in learning alike.
    """

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
        return TokenDistribution(self.raw_scores(features))

    def export(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, for `AutoModelForCausalLM.from_pretrained`.

        Also generation_config.json, if the weights came with an end.
        """
        hf_layout.save(Path(folder), self.decoder, self.lm_head)
        write_generation(Path(folder), self.generation)
