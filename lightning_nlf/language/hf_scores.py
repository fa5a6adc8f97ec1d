"""Logits of a transformers model from its last hidden states: by the head alone, or scaled or capped."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nlf.language.hf_probe import Unsuitable


class Said:
    """The output of a body of which nothing but the last hidden states is wanted."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        """Keys and values, attentions, what a router said: there are none."""


class _Repeats(nn.Module):
    """In the place of a body: has read already."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Said:
        return Said(self.states)


def scores_of(model: Any, states: Tensor, direct: bool) -> Tensor:
    """States (…, d) → scores (…, V), by the head if it is `direct`, else by all of the model but its body."""
    if direct:
        return model.get_output_embeddings()(states)
    rows = states.reshape(1, -1, states.shape[-1])
    twin = copy.copy(model)  # with the same head, and another dictionary of parts
    twin._modules = model._modules | {model.base_model_prefix: _Repeats(rows)}
    return twin(inputs_embeds=rows, use_cache=False).logits.view(*states.shape[:-1], -1)


@torch.no_grad()
def is_direct(model: Any) -> bool:
    """Whether the scores are the head times the last hidden states.

    Raises:
        ValueError: they are not made of these alone.
    """
    if model.device.type == "meta":  # there is nothing to try
        return True
    training, head = model.training, model.get_output_embeddings()
    model.eval()
    louder = None if head is None else head.register_forward_hook(lambda _, read, said: 100 * said)  # a cap is felt
    ids = torch.tensor([[0, 1]], device=model.device)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    scores = model(input_ids=ids, use_cache=False).logits
    ways = [False] if head is None else [True, False]
    same = partial(torch.allclose, scores, rtol=1e-4, atol=1e-5)
    found = next((way for way in ways if same(scores_of(model, states, way))), None)
    if louder is not None:
        louder.remove()
    model.train(training)
    if found is None:
        raise Unsuitable(
            f"weights: a {model.config.model_type} makes its scores of more than its last hidden states, which "
            "HuggingFacePolicy cannot: use a model of another architecture"
        )
    return found
