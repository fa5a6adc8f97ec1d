"""Language models of the transformers library, optionally with LoRA: the base class, and the policy.

These networks are slower than our own decoder, but support more architectures.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_nlf.language import hf_folder, hf_layout
from lightning_nlf.language.head_distribution import LinearHead, Scores, token_distribution
from lightning_nlf.language.hf_cache import Memory
from lightning_nlf.language.hf_generation import generation_in, write_generation
from lightning_nlf.language.hf_model import built, empty_cache, recompute_layers
from lightning_nlf.language.hf_probe import refuse_other_distances, refused_if_it_fails
from lightning_nlf.language.hf_scores import is_direct, scores_of
from lightning_nlf.language.limits import refuse_strangers
from lightning_nlf.language.shape import kept_per_layer
from lightning_nlf.language.token_distribution import TokenDistribution
from lightning_nlf.networks.base import Network, Policy, checkpoint_at, under
from lightning_nlf.networks.bases import Base, bases_in
from lightning_nlf.networks.lora import LoRA, WithoutAdapter, save_adapter, with_lora
from lightning_nlf.numbers import BelowOne, Positive


class HuggingFace(Network):
    """Base of networks that use a model of transformers, built from a config or loaded with weights.

    Args:
        weights: a folder in the Hugging Face layout, an id on the hub, or one of our checkpoints.
        lora: train only a LoRA adapter.
        config: content of config.json, for a model that starts from random weights instead of `weights`.
        dropout: dropout rate in training, at every place where the model has dropout. The rate in the model's config is
            ignored, because with dropout the learner differs from the policy that acted.
        checkpoint_activations: save memory in training by activation checkpointing (https://arxiv.org/abs/1604.06174).
            Only the input of each layer is kept, and the backward pass recomputes the layer. Training takes about a
            third longer.

    Raises:
        ValueError: transformers is not installed (or peft, with `lora`); neither weights nor config are given; the
            model does not exist; a knob is out of its range.
    """

    auto = "AutoModel"  # class of transformers that builds the model
    model: Any
    vocabulary: int

    def __init__(
        self,
        weights: str | None = None,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: got {dropout}, must be at least 0 and below 1")
        self.adapted = lora is not None
        folder = None if is_checkpoint(weights) else hf_layout.folder_of(weights)
        if is_checkpoint(weights):
            checkpoint = checkpoint_at(str(weights))
            config = config or self._config_in(checkpoint, str(weights))
            if (base := bases_in(checkpoint).get(self.role)) is not None:
                self.stand_on(base, str(weights))
                folder = base.locate()
        elif folder is not None and self.adapted:
            self.base = Base.of(str(weights), folder)
        if weights is not None and folder is None and not is_checkpoint(weights):
            raise ValueError(f"weights: there is no folder {weights}; check the path")
        self.generation = {} if folder is None else generation_in(folder)
        model = built(self.auto, config, folder, dropout)
        self.start_dtype = torch.float32 if folder is None else hf_folder.dtype_in(folder)
        self.config = model.config.to_dict()
        self.checkpoint_activations = checkpoint_activations
        if checkpoint_activations:
            recompute_layers(model)
        text = model.config.get_text_config()  # also works for multimodal models
        self.vocabulary = text.vocab_size
        self.context = getattr(text, "max_position_embeddings", None)
        self.model = model if lora is None else with_lora(model, lora)

    @classmethod
    def sketch(cls, weights: str | None = None, lora: LoRA | None = None, **arguments: Any) -> Self:
        folder = None if is_checkpoint(weights) else hf_layout.folder_of(weights)
        if folder is None:
            return cls(weights=weights, lora=lora, **arguments)
        config = hf_folder.checked(folder)
        with torch.device("meta"):
            network = cls(lora=lora, **arguments | {"config": config})
        network.start_dtype = hf_folder.dtype_in(folder)
        if lora is not None:
            network.base = Base.unread(str(weights), folder)
        return network

    def load_weights(self, weights: str | None) -> None:
        """See `Network`. Weights in the Hugging Face layout are already in the model."""
        super().load_weights(weights if is_checkpoint(weights) else None)

    def stand_on(self, base: Base, weights: str) -> None:
        if not self.adapted:
            super().stand_on(base, weights)
        self.base = base

    def own_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of this network's role. If the checkpoint has none, the body of its policy with a new head."""
        weights, body = super().own_weights(state), under(f"policy.model.{self.bare.base_model_prefix}", state)
        if weights or not body:
            return weights
        fresh = {name: x for name, x in self.state_dict().items() if not name.startswith("model.")}
        return fresh | {f"model.{name}": x for name, x in body.items()}

    @property
    def kept_per_token(self) -> int:
        text = self.bare.config.get_text_config()
        names = ("num_hidden_layers", "hidden_size", "intermediate_size")
        layers, width, hidden = (getattr(text, name, 0) or 0 for name in names)
        return layers * kept_per_layer(width, hidden, 4 * width, self.checkpoint_activations)

    def arguments(self) -> dict[str, Any]:
        return {"config": self.config}

    def _config_in(self, checkpoint: Mapping[str, Any], weights: str) -> dict[str, Any]:
        """Config of this network's role in the checkpoint or, if missing, of the checkpoint's policy."""
        networks = checkpoint.get("hyper_parameters") or {}
        config = (networks.get(self.role) or networks.get("policy") or {}).get("init_args", {}).get("config")
        if config is None:
            raise ValueError(f"config: {weights} has no model of transformers, or no config of it; set `config`")
        return config

    @property
    def bare(self) -> Any:
        """The model of transformers, including the LoRA adapter, if any."""
        return self.model.get_base_model() if self.adapted else self.model

    def states(self, obs: Tensor, where: Tensor | None) -> Tensor:
        """Hidden states: obs (B, T) → (B, T, d), or (N, d) at the True steps of `where`.

        Tokens after the last True step are not read.

        Raises:
            ValueError: a row is longer than the context, or a token id is outside the vocabulary.
        """
        outputs = torch.ones_like(obs, dtype=torch.bool) if where is None else where
        steps = torch.arange(1, obs.shape[1] + 1, device=obs.device)
        lengths = (outputs * steps).amax(1)  # tokens after the last requested step count as padding
        width = max(int(lengths.max()), 1)
        self.refuse_length(width)
        refuse_strangers(obs[:, :width], self.vocabulary)
        attention_mask = (steps[:width] <= lengths[:, None]).long()
        states = self.run(obs[:, :width], attention_mask, (steps[:width] - 1).expand(len(obs), -1))
        return states if where is None else states[where[:, :width]]

    def run(self, ids: Tensor, attention_mask: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Hidden states (B, L, d) of new ids (B, L), given the attention mask (B, C) and positions (B, L).

        `cache` is the key-value cache of `read`; new tokens are appended to it.
        """
        body = self.bare.base_model
        takes = inspect.signature(body.forward).parameters
        inputs = {"input_ids": ids, "attention_mask": attention_mask}
        if "position_ids" in takes:
            inputs["position_ids"] = positions
        if cache is not None:
            inputs["cache" if "cache" in takes else "past_key_values"] = cache  # newer or older name
        return body(**inputs, use_cache=cache is not None).last_hidden_state

    def refuse_length(self, tokens: int) -> None:
        if self.context is not None and tokens > self.context:
            raise ValueError(
                f"weights: a row of {tokens} tokens is longer than the model's context of {self.context}; shorten it"
            )


def is_checkpoint(weights: str | None) -> bool:
    """Whether `weights` is one of our checkpoints, not a model in the Hugging Face layout."""
    return weights is not None and (weights.endswith(".ckpt") or Path(weights).is_file())


class HuggingFacePolicy(HuggingFace, Policy):
    """Language model policy on any `AutoModelForCausalLM`.

    A new model is tested: reading a few tokens one part after another must give the same scores as reading them at
    once. Sliding windows of more than 64 tokens are not tested. Recurrent models (mamba, lfm2, qwen3_next, …) are
    refused.

    Args:
        temperature: the scores are divided by it, both in sampling and in learning.

    Raises:
        ValueError: the scores depend on more than the last hidden states, or change if a row is read in parts; the
            model has no key-value cache.
    """

    auto = "AutoModelForCausalLM"

    def __init__(
        self,
        weights: str | None = None,
        temperature: Positive = 1.0,
        lora: LoRA | None = None,
        config: dict[str, Any] | None = None,
        dropout: BelowOne = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: got {temperature}, must be above 0; for greedy replies, set deterministic")
        super().__init__(weights, lora, config, dropout, checkpoint_activations)
        self.temperature = temperature
        with refused_if_it_fails(self.bare.config):
            self.direct = is_direct(self.bare)
        self.load_weights(weights)
        with refused_if_it_fails(self.bare.config, "in turns, by the keys and values of every token"):
            refuse_other_distances(self)
        folder = hf_layout.folder_of(weights)
        if folder is not None and lora is None:
            self.origin = folder.resolve()

    @property
    def width(self) -> int:
        return self.bare.config.get_text_config().hidden_size

    def features(self, obs: Tensor, where: Tensor | None = None) -> Tensor:
        return self.states(obs, where)

    def distribution(self, features: Tensor) -> TokenDistribution:
        return token_distribution(features, self.head, self.vocabulary)

    @property
    def head(self) -> Scores:
        """The function from features to scores.

        This is a linear layer if the model applies nothing else to the features.
        """
        layer = self.bare.get_output_embeddings() if self.direct else None
        if type(layer) is not nn.Linear:  # for example with a LoRA adapter
            return self.scores
        return LinearHead(layer.weight, layer.bias, self.temperature, wide=True)

    def scores(self, features: Tensor) -> Tensor:
        """Scores (logits): (…, d) → (…, V), float32."""
        scores = scores_of(self.bare, features, self.direct).float()
        return scores if self.temperature == 1 else scores / self.temperature

    def read(self, ids: Tensor, lengths: Tensor, state: Any = None, room: int = 0) -> tuple[Tensor, Memory]:
        rows, width = ids.shape
        state = Memory.empty(empty_cache(), lengths) if state is None else state
        if room or width > 1:  # a single sampled token is not checked again
            self.refuse_length(int((state.lengths + lengths).max()) + max(room - 1, 0))
            refuse_strangers(ids, self.vocabulary)
        state = state.closed(lengths)
        steps = torch.arange(width, device=ids.device)
        used = torch.cat([state.used, (steps < lengths[:, None]).long()], 1)
        positions = state.lengths[:, None] + steps.minimum((lengths - 1).clamp(min=0)[:, None])
        states = self.run(ids, used, positions, state.cache)
        last = states[torch.arange(rows, device=ids.device), (lengths - 1).clamp(min=0)]
        return self.scores(last), Memory(state.cache, used, state.lengths + lengths)

    def frozen(self) -> Policy:
        return WithoutAdapter(self, self.model.disable_adapter) if self.adapted else super().frozen()

    def read_again(self, folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):  # building a model must not change the random state
            model = built(self.auto, None, folder, 0.0)
        for x, read in zip(self.model.parameters(), model.parameters(), strict=True):
            x.data = read.data

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model, with its LoRA adapter merged, for `AutoModelForCausalLM.from_pretrained`.

        Args: dtype: dtype of the written weights; by default the dtype in the folder that the weights came from.
        """
        dtype = dtype or self.start_dtype
        model = copy.deepcopy(self.model) if self.adapted or dtype != torch.float32 else self.model
        if self.adapted:
            model = model.merge_and_unload()
        (model if dtype == torch.float32 else model.to(dtype)).save_pretrained(folder)
        write_generation(Path(folder), self.generation)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of a model without a LoRA adapter, by their names in the Hugging Face layout."""
        return self.model.named_parameters()

    def export_adapter(self, folder: str | Path) -> None:
        """Write the LoRA adapter for PEFT and vLLM. The network needs a `base`."""
        assert self.base is not None
        save_adapter(Path(folder), self.model, self.base.name)
