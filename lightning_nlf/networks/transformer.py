"""Language models on our own decoder: the base class, and the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lightning_nlf.language import hf_folder, hf_layout
from lightning_nlf.language.additions import ADDITION, add_lora, layers_with_additions, without_additions
from lightning_nlf.language.decoder import Block, Decoder
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
    """Base of networks with our own decoder. Its shape is given, or comes from the weights.

    Args:
        shape: shape of the decoder; by default the shape of `weights`.
        weights: one of our checkpoints, or a model in the Hugging Face layout (its folder, or its id on the hub).
        dropout: dropout rate in training, for the embedding and for the outputs of attention and MLP.
        checkpoint_activations: save memory in training by activation checkpointing (https://arxiv.org/abs/1604.06174).
            Only the input of each layer is kept, and the backward pass recomputes the layer. Training takes about a
            third longer.

    Raises:
        ValueError: neither shape nor weights are given; the weights do not exist, or have a different shape or
            architecture.
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
        decoder_shape = shape_in(folder) if folder else shape or self._shape_in_checkpoint(weights)
        if shape is not None and decoder_shape != shape:
            raise ValueError(f"shape: {weights} has another shape, {decoder_shape}; remove `shape`")
        if decoder_shape.layers > hf_folder.MOST_LAYERS:
            raise ValueError(f"shape.layers: got {decoder_shape.layers}, must be at most {hf_folder.MOST_LAYERS}")
        hf_folder.refuse_memory(lambda: Decoder(decoder_shape, dropout), "shape")
        self.decoder = Decoder(decoder_shape, dropout, checkpoint_activations)
        self.generation = {} if folder is None else generation_in(folder)
        self.start_dtype = torch.float32 if folder is None else hf_folder.dtype_in(folder)
        self.vocabulary, self.context = decoder_shape.vocabulary, decoder_shape.context
        self.lm_head: nn.Linear | None = None  # output layer; None if it is tied to the embedding

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
        """See `Network`. Also loads weights in the Hugging Face layout."""
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
        """The weights of this network's role. If the checkpoint has none, the decoder of its policy with a new head."""
        weights = super().own_weights(state)
        if weights:
            return weights
        fresh = {name: x for name, x in self.state_dict().items() if not name.startswith("decoder.")}
        return fresh | {f"decoder.{name}": x for name, x in under("policy.decoder", state).items()}

    def check_origin(self, networks: Mapping[str, Any], weights: str) -> None:
        """Compare the recorded shape with this network's, because tensors do not show heads, norms and frequencies.

        `init_std` may differ, and so may `context` if positions are not learned.

        Raises:
            ValueError: the checkpoint records a different shape.
        """
        recorded = self._saved_shape(networks)
        if recorded is None:
            return
        theirs, ours = asdict(DecoderShape(**recorded)), asdict(self.decoder.shape)
        free = ("init_std", "context") if self.decoder.places is None else ("init_std",)
        differs = [name for name, x in ours.items() if theirs[name] != x and name not in free]
        if differs:
            name = differs[0]
            raise ValueError(f"shape.{name}: got {ours[name]}, but {weights} has {theirs[name]}; remove `shape`")

    def _saved_shape(self, networks: Mapping[str, Any]) -> dict[str, Any] | None:
        """Shape of this network's role in the checkpoint or, if missing, of the checkpoint's policy."""
        spec = networks.get(self.role) or networks.get("policy") or {}
        return spec.get("init_args", {}).get("shape")

    @property
    def kept_per_token(self) -> int:
        return self.decoder.kept_per_token

    def arguments(self) -> dict[str, Any]:
        return {"shape": asdict(self.decoder.shape)}

    def _shape_in_checkpoint(self, weights: str | None) -> DecoderShape:
        if weights is None:
            raise ValueError("shape: set it (vocabulary, layers, heads, width, context), or set `weights`")
        shape = self._saved_shape(checkpoint_at(weights).get("hyper_parameters") or {})
        if shape is None:
            raise ValueError(f"shape: {weights} does not record it; set it (vocabulary, layers, heads, width, context)")
        return DecoderShape(**shape)

    def shard(self, mesh: DeviceMesh) -> None:
        """See `Network`. Each block is gathered when it is read; embedding, norms and head stay gathered until then.

        The norms of a block are not among its layers, because the block before it, or the decoder, applies them.
        """
        if layers_with_additions(self.decoder):
            raise ValueError("trainer.strategy: a LoRA adapter is too small to be divided; use ddp")
        for block in cast("list[Block]", list(self.decoder.blocks)):
            fully_shard([block.qkv, block.out, block.up, block.down], mesh=mesh)
        self.sharded = True
        fully_shard(self, mesh=mesh, reshard_after_forward=False)

    def states(self, obs: Tensor, where: Tensor | None, exact: bool = True) -> Tensor:
        """Hidden states: obs (B, T) → (B, T, d), or (N, d) at the True steps of `where`.

        Tokens after the last True step are not read.

        Args: exact: see `Decoder.forward`.

        Raises:
            ValueError: a row is longer than the context, or a token id is outside the vocabulary.
        """
        decoder, shape = self.decoder, self.decoder.shape
        outputs = torch.ones(obs.shape, dtype=torch.bool) if where is None else where.cpu()
        if not outputs.any():
            return decoder.embed.weight.new_zeros(0, shape.width)
        packed = pack(obs.cpu(), outputs, share=not (decoder.dropout and decoder.training))
        refuse_length(int(packed.positions.max()) + 1, shape.context, self.role)
        refuse_strangers(packed.ids, shape.vocabulary)
        packed = packed.to(obs.device)
        attend = partial(packed.attend, heads=shape.heads)
        hidden = decoder(packed.ids, packed.positions, attend, packed.outputs, exact)
        return hidden.unflatten(0, obs.shape) if where is None else hidden


class TransformerPolicy(Transformer, DecoderReader, Policy):
    """Language model policy on our own decoder.

    Args:
        temperature: the scores are divided by it, both in sampling and in learning.
        lora: train only a LoRA adapter of layers of the decoder. `target_modules` are names in the Hugging Face layout
            (q_proj, …, down_proj). The embedding and the head cannot be targets.

    Raises:
        ValueError: a knob is out of its range; a target is not a layer of the decoder.
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
            raise ValueError(f"temperature: got {temperature}, must be above 0; for greedy replies, set deterministic")
        super().__init__(shape, weights, dropout, checkpoint_activations)
        self.temperature = temperature
        sizes = self.decoder.shape
        if not sizes.tied:
            self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
            nn.init.normal_(self.lm_head.weight, std=sizes.init_std)
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
        """See `Transformer`. If the checkpoint has no LoRA adapter, the new adapter is kept."""
        weights = super().own_weights(state)
        is_new = weights and self.lora is not None and not any(ADDITION in name for name in weights)
        return {name: x for name, x in self.state_dict().items() if is_new and ADDITION in name} | weights

    @property
    def width(self) -> int:
        return self.decoder.shape.width

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where, exact=self.shared)  # scores may be rounded, but values must not be

    def shard(self, mesh: DeviceMesh) -> None:
        super().shard(mesh)
        for name in ("features", "read"):
            register_fsdp_forward_method(self, name)

    def distribution(self, features: Tensor) -> TokenDistribution:
        return token_distribution(features, self.head, self.decoder.shape.vocabulary)

    def frozen(self) -> Policy:
        """See `Policy`. With `lora`, the copy is the decoder without its adapter, and shares the policy's memory."""
        return super().frozen() if self.lora is None else WithoutAdapter(self, partial(without_additions, self.decoder))

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, for `AutoModelForCausalLM.from_pretrained`.

        The LoRA adapter is merged. If the weights came with a generation_config.json, it is written too.

        Args: dtype: dtype of the written weights; by default the dtype in the folder that the weights came from.
        """
        with self.merged():
            hf_layout.save(Path(folder), self.decoder, self.lm_head, dtype or self.start_dtype)
        write_generation(Path(folder), self.generation)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights without a LoRA adapter, by their names in the Hugging Face layout."""
        return hf_layout.named_weights(self.decoder, self.lm_head)

    def export_adapter(self, folder: str | Path) -> None:
        """Write the LoRA adapter for PEFT and vLLM. The network needs a `base`."""
        assert self.base is not None and self.lora is not None
        write_adapter(Path(folder), self.decoder, self.lora, self.targets, self.base.name)
