"""Estimate of the memory for training: hand-worked for one layer, with a warning if memory is short."""

import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch

from lightning_nlf.language.shape import kept_per_layer
from lightning_nlf.modules.memory_estimate import TrainingMemory, check_memory
from lightning_nlf.networks import DecoderShape, TransformerPolicy

CPU = torch.device("cpu")


def network(**how):
    return TransformerPolicy(DecoderShape(10, 1, 2, 8, 16, "llama", hidden=32), **how)


def source(**knobs):
    return SimpleNamespace(**{"longest_row": 12, "rows_per_batch": None, "tokens_per_batch": None} | knobs)


def test_gradients_moments_and_activations_are_counted():
    """Weights 10·8 + 8·24 + 8·8 + 8·64 + 32·8 + 3 norms of 8 = 1,128; a token keeps 4·8 + 32 + 4·32 = 192 numbers."""
    assert kept_per_layer(8, 32, 2 * (2 + 2) * 4, checkpoint_activations=False) == 192
    assert TrainingMemory.of([network()], rows=2, tokens=12) == TrainingMemory(0, 4 * 3 * 1128, 4 * 192 * 24)
    checkpointed = TrainingMemory.of([network(checkpoint_activations=True)], 2, 12)
    assert checkpointed == TrainingMemory(0, 4 * 3 * 1128, 4 * 16 * 24)
    frozen = network().requires_grad_(False)
    assert TrainingMemory.of([frozen], 1, 12).trained == 0


def test_weights_that_are_not_read_yet_are_counted():
    with torch.device("meta"):
        sketch = network()
    assert TrainingMemory.of([sketch], 1, 12).total == 4 * 4 * 1128 + 4 * 192 * 12


def warnings_of(monkeypatch, available, total=2**40, swap=0, **knobs):
    module = network()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=total))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=swap))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_memory([module], source(**knobs), CPU)
    return [str(warning.message) for warning in caught]


def test_too_little_memory_is_said_with_the_knobs_that_help(monkeypatch):
    needed = 4 * 3 * 1128 + 4 * 192 * 12
    assert warnings_of(monkeypatch, needed) == []
    (message,) = warnings_of(monkeypatch, needed - 1)
    for knob in ("rows_per_batch", "checkpoint_activations", "lora"):
        assert knob in message
    assert "1 row of up to 12 tokens" in message
    assert warnings_of(monkeypatch, needed, rows_per_batch=2) != []
    assert warnings_of(monkeypatch, needed, tokens_per_batch=36) != []


def test_more_than_the_machine_has_is_refused(monkeypatch):
    needed = 4 * 3 * 1128 + 4 * 192 * 12
    with pytest.raises(ValueError, match="^memory: training needs about"):
        warnings_of(monkeypatch, 0, total=needed - 1)
    assert warnings_of(monkeypatch, 0, total=needed - 1, swap=1) != []  # slow because of swap, but possible


def test_without_rows_of_a_length_nothing_is_said(monkeypatch):
    assert warnings_of(monkeypatch, 0, longest_row=None) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_more_rows_need_more(rows):
    single = TrainingMemory.of([network()], 1, 12).activations
    assert TrainingMemory.of([network()], rows, 12).activations == rows * single
