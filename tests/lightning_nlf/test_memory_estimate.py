"""What a training needs, before it starts: counted by hand for one layer, and said where it is not there."""

import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch

from lightning_nlf.language.shape import kept_per_layer
from lightning_nlf.modules.memory_estimate import training_bytes, warn_of_memory
from lightning_nlf.networks import DecoderShape, TransformerPolicy

CPU = torch.device("cpu")


def network(**how):
    return TransformerPolicy(DecoderShape(10, 1, 2, 8, 16, "llama", hidden=32), **how)


def source(**knobs):
    return SimpleNamespace(**{"longest_row": 12, "rows_per_batch": None, "tokens_per_batch": None} | knobs)


def test_gradients_moments_and_activations_are_counted():
    """Weights 10·8 + 8·24 + 8·8 + 8·64 + 32·8 + 3 norms of 8 = 1,128; a token keeps 4·8 + 32 + 4·32 = 192 numbers."""
    assert kept_per_layer(8, 32, 2 * (2 + 2) * 4, checkpoint_activations=False) == 192
    assert training_bytes([network()], rows=2, tokens=12) == (4 * 3 * 1128, 4 * 192 * 24)
    assert training_bytes([network(checkpoint_activations=True)], 2, 12) == (4 * 3 * 1128, 4 * 16 * 24)
    frozen = network().requires_grad_(False)
    assert training_bytes([frozen], 1, 12)[0] == 0


def said(monkeypatch, available, **knobs):
    made = network()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=2**40))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_memory([made], source(**knobs), CPU)
    return [str(each.message) for each in caught]


def test_too_little_memory_is_said_with_the_knobs_that_help(monkeypatch):
    needed = 4 * 3 * 1128 + 4 * 192 * 12
    assert said(monkeypatch, needed) == []
    (message,) = said(monkeypatch, needed - 1)
    for knob in ("rows_per_batch", "checkpoint_activations", "lora"):
        assert knob in message
    assert "1 row of up to 12 tokens" in message
    assert said(monkeypatch, needed, rows_per_batch=2) != []
    assert said(monkeypatch, needed, tokens_per_batch=36) != []


def test_without_rows_of_a_length_nothing_is_said(monkeypatch):
    assert said(monkeypatch, 0, longest_row=None) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_more_rows_need_more(rows):
    assert training_bytes([network()], rows, 12)[1] == rows * training_bytes([network()], 1, 12)[1]
