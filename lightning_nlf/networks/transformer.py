"""Language models on our own decoder: what they have in common, and the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_nlf.language import hf_folder, hf_layout
from lightning_nlf.language.additions import ADDITION, add_lora, layers_with_additions, without_additions
from lightning_nlf.language.decoder import Decoder
from lightning_nlf.language.head_distribution import token_distribution
from lightning_nlf.language.hf_config import shape_in
from lightning_nlf.language.hf_generation import generation_in, write_generation
from lightning_nlf.language.limits import refuse_length, refuse_strangers
from lightning_nlf.language.packing import pack
from lightning_nlf.language.reader import DecoderReader
from lightning_nlf.language.shape import DecoderShape
from lightning_nlf.language.token_distribution import TokenDistribution
from lightning_nlf.networks.base import Network, Policy, checkpoint_at, under
from lightning_nlf.networks.bases import Base
from lightning_nlf.networks.lora import LoRA, WithoutAdapter, write_adapter
from lightning_nlf.numbers import BelowOne, Positive


class Transformer(Network):
    """A network with a decoder, whose shape is given or comes with its weights.

    Args:
        shape: of the decoder; left out, it is that of `weights`.
        weights: a checkpoint of ours, or a model in Hugging Face layout: its folder, or its id on the hub.
        dropout: in training, on the embedding and on what attention and MLP add.
        checkpoint_activations: for less memory in training: of each layer its input alone is kept, and the layer is
            computed again on the way back, https://arxiv.org/abs/1604.06174. About a third more time.

    Raises:
        ValueError: neither shape nor weights, weights of another shape or architecture, or none at all.
    """

    decoder: Decoder

    def __init__(
        self,
        shape: DecoderShape | None = None,
        weights: str | None = None,
        dropout: BelowOne = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
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
        self.decoder = Decoder(found, dropout, checkpoint_activations)
        self.generation = {} if folder is None else generation_in(folder)
        self.start_dtype = torch.float32 if folder is None else hf_folder.dtype_in(folder)
        self.vocabulary, self.context = found.vocabulary, found.context
        self.lm_head: nn.Linear | None = None  # that predicts tokens, where it is not the embedding

    @classmethod
    def sketch(cls, weights: str | None = None, **arguments: Any) -> Self:
        folder = hf_layout.folder_of(weights)
        if folder is None:
            return cls(weights=weights, **arguments)
        hf_folder.checked(folder)
        with torch.device("meta"):
            network = cls(**arguments | {"shape": shape_in(folder)})
        network.start_dtype = hf_folder.dtype_in(folder)
        if layers_with_additions(network.decoder):
            network.base = Base.unread(str(weights), folder)
        return network

    def load_weights(self, weights: str | None) -> None:
        """As of `Network`, or from Hugging Face layout."""
        folder = hf_layout.folder_of(weights)
        if folder is None:
            super().load_weights(weights)
        else:
            hf_layout.load(folder, self.decoder, self.lm_head)

    def stand_on(self, base: Base, weights: str) -> None:
        if not layers_with_additions(self.decoder):
            super().stand_on(base, weights)
        folder = base.locate()
        hf_layout.load(folder, self.decoder, self.lm_head)
        self.base, self.start_dtype, self.generation = base, hf_folder.dtype_in(folder), generation_in(folder)

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

    @property
    def kept_per_token(self) -> int:
        return self.decoder.kept_per_token

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
        lora: train additions of low rank to layers of the decoder, and nothing else; `target_modules` are names as in
            Hugging Face's layout (q_proj, …, down_proj), neither the embedding nor the head.

    Raises:
        ValueError: a knob out of range; a target that is not a layer of the decoder.
    """

    def __init__(
        self,
        shape: DecoderShape | None = None,
        weights: str | None = None,
        temperature: Positive = 1.0,
        dropout: BelowOne = 0.0,
        lora: LoRA | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0; for the likeliest token: deterministic")
        super().__init__(shape, weights, dropout, checkpoint_activations)
        self.temperature = temperature
        own = self.decoder.shape
        if not own.tied:
            self.lm_head = nn.Linear(own.width, own.vocabulary, bias=False)
            nn.init.normal_(self.lm_head.weight, std=own.init_std)
        self.lora = lora
        if lora is not None:
            self.requires_grad_(False)
            self.targets = add_lora(self.decoder, lora.r, lora.alpha, lora.target_modules)
        self.load_weights(weights)
        folder = hf_layout.folder_of(weights)
        if folder is not None and lora is None:
            self.origin = folder.resolve()
        elif folder is not None:
            self.base = Base.of(str(weights), folder)

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As of `Transformer`; below additions that begin anew, where the checkpoint has none."""
        saved = super().own_weights(state)
        begun = saved and self.lora is not None and not any(ADDITION in name for name in saved)
        return {name: x for name, x in self.state_dict().items() if begun and ADDITION in name} | saved

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where, exact=self.shared)  # scores round them anyway, values must not

    def distribution(self, features: Tensor) -> TokenDistribution:
        return token_distribution(features, self.head, self.decoder.shape.vocabulary)

    def frozen(self) -> Policy:
        """As of `Policy`; with `lora` the decoder without its additions, in the same memory."""
        return super().frozen() if self.lora is None else WithoutAdapter(self, partial(without_additions, self.decoder))

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, for `AutoModelForCausalLM.from_pretrained`.

        Also generation_config.json, if the weights came with an end. LoRA's additions are in.

        Args: dtype: by default that of the folder that the weights came from.
        """
        with self.merged():
            hf_layout.save(Path(folder), self.decoder, self.lm_head, dtype or self.start_dtype)
        write_generation(Path(folder), self.generation)

    def export_adapter(self, folder: str | Path) -> None:
        """Write LoRA's additions, where there is a `base` that others can find, for PEFT and vLLM."""
        assert self.base is not None and self.lora is not None
        write_adapter(Path(folder), self.decoder, self.lora, self.targets, self.base.name)
