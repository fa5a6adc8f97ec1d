"""Logits of a transformers model from its last hidden states, by the head or by everything that follows the body."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nlf.language.hf_probe import Unsuitable


class LastStates:
    """Output of a model body that contains only the last hidden states."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        """None for every other output, such as keys and values, attentions or router outputs."""


class _Repeats(nn.Module):
    """Replaces the body of a model, and returns given hidden states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> LastStates:
        return LastStates(self.states)


def scores_of(model: Any, states: Tensor, direct: bool) -> Tensor:
    """States (…, d) → scores (…, V): by the head if `direct`, else by the whole model with its body replaced."""
    if direct:
        return model.get_output_embeddings()(states)
    rows = states.reshape(1, -1, states.shape[-1])
    twin = copy.copy(model)  # a shallow copy with its own dictionary of modules, but the same head
    twin._modules = model._modules | {model.base_model_prefix: _Repeats(rows)}
    return twin(inputs_embeds=rows, use_cache=False).logits.view(*states.shape[:-1], -1)


@torch.no_grad()
def is_direct(model: Any) -> bool:
    """Whether the scores are exactly the head applied to the last hidden states.

    Raises:
        ValueError: the scores depend on more than the last hidden states.
    """
    if model.device.type == "meta":  # a model without weights cannot be tested
        return True
    training, head = model.training, model.get_output_embeddings()
    model.eval()
    louder = None if head is None else head.register_forward_hook(lambda _, read, output: 100 * output)  # shows a cap
    ids = torch.tensor([[0, 1]], device=model.device)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    scores = model(input_ids=ids, use_cache=False).logits
    ways = [False] if head is None else [True, False]
    equal = partial(torch.allclose, scores, rtol=1e-4, atol=1e-5)
    direct = next((way for way in ways if equal(scores_of(model, states, way))), None)
    if louder is not None:
        louder.remove()
    model.train(training)
    if direct is None:
        raise Unsuitable(
            f"weights: the scores of a {model.config.model_type} depend on more than its last hidden states, which "
            "HuggingFacePolicy does not support; use a model of another architecture"
        )
    return direct
