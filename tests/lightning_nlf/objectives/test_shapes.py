"""Losses refuse tensors that would broadcast: (B, 1) with (B, T), or (P, 1) with (P,), would give a wrong number."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch.distributions import Categorical

from lightning_nlf import objectives, rewards
from lightning_nlf.batch import Batch
from lightning_nlf.maths import preferences
from lightning_nlf.objective import Evaluation
from lightning_nlf.objectives.imitation import imitation_loss

MODULES = [
    preferences,
    *(
        importlib.import_module(module.name)
        for room in (objectives, rewards)
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    ),
]
LOSSES = {
    name: function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if name.endswith("_loss") and function.__module__ == module.__name__
}

STEPS = -torch.arange(1.0, 7).view(2, 3) / 7  # (B, T) = (2, 3), or (P, 3) for pairs
ROWS, GOOD = torch.tensor([0.3, -0.2]), torch.tensor([True, False])  # (B,) or (P,)

ARGUMENTS = {  # valid arguments of each loss
    "bradley_terry_loss": {"difference": ROWS, "tie": GOOD, "margin": ROWS},
    "clipped_policy_loss": {"ratio": -STEPS, "advantages": STEPS, "clip": 0.2},
    "conservative_dpo_loss": {"difference": ROWS, "beta": 0.1, "smoothing": 0.1},
    "distillation_loss": {"divergence": -STEPS, "ratio": -STEPS},
    "dpo_loss": {"difference": ROWS, "beta": 0.1},
    "first_turn_loss": {"log_probs": STEPS, "advantages": ROWS, "floor": -5.0},
    "hinge_loss": {"difference": ROWS, "beta": 0.1},
    "ipo_loss": {"difference": ROWS, "beta": 0.1},
    "kto_loss": {"log_ratios": ROWS, "desirable": GOOD, "baseline": torch.tensor(0.1), "beta": 0.1},
    "outcome_loss": {"log_probs": STEPS, "tie": GOOD},
    "plackett_luce_loss": {"scores": ROWS, "group": torch.tensor([0, 0]), "rank": torch.tensor([0, 1])},
    "policy_gradient_loss": {"log_probs": STEPS, "advantages": STEPS},
    "robust_dpo_loss": {"difference": ROWS, "beta": 0.1, "smoothing": 0.1},
    "shaped_injection_loss": {"x": -STEPS, "advantages": STEPS, "shape": 0.1},
    "simpo_loss": {"difference": ROWS, "beta": 2.0, "margin": 0.5},
    "slic_loss": {"difference": ROWS, "margin": 1.0},
    "soft_preference_loss": {"difference": ROWS, "probability": torch.tensor([0.9, 0.5])},
    "step_correctness_loss": {"rewards": STEPS, "labels": -STEPS},
    "step_value_loss": {"rewards": STEPS, "labels": -STEPS},
    "unlikelihood_loss": {"log_probs": STEPS},
    "value_loss": {"values": STEPS, "returns": STEPS, "old_values": STEPS, "clip": 0.2},
    "weighted_injection_loss": {"ratio": -STEPS, "advantages": STEPS, "clip": 0.2},
}
FREE = {  # arguments that may have one column: (B, 1) is a batch of T = 1, or another argument fixes the shape
    ("first_turn_loss", "log_probs"),
    ("outcome_loss", "log_probs"),
    ("unlikelihood_loss", "log_probs"),
}
NARROW = [
    (name, argument)
    for name, arguments in ARGUMENTS.items()
    for argument, x in arguments.items()
    if isinstance(x, torch.Tensor) and (name, argument) not in FREE
]


def narrowed(x):
    """(B, T) → (B, 1); (B,) → (B, 1); () → (1, 1)."""
    return x[:, :1] if x.ndim == 2 else x.view(-1, 1)


def test_no_loss_is_missing_here():
    assert LOSSES.keys() == ARGUMENTS.keys() | {"imitation_loss"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_loss_is_not_averaged(name):
    """A loss has one number for each step, row, pair or ranking."""
    loss = LOSSES[name](**ARGUMENTS[name])
    by_step = [x for x in ARGUMENTS[name].values() if isinstance(x, torch.Tensor) and x.ndim == 2]
    if name == "plackett_luce_loss":
        assert loss.shape == (1,)  # of one group
    else:
        assert loss.shape == ((2, 3) if by_step and name != "outcome_loss" else (2,))
    assert loss.isfinite().all()


@pytest.mark.parametrize(("name", "argument"), NARROW)
def test_one_column_is_not_spread_over_many(name, argument):
    arguments = ARGUMENTS[name]
    with pytest.raises(ValueError, match="shapes: "):
        LOSSES[name](**arguments | {argument: narrowed(arguments[argument])})


@pytest.mark.parametrize(
    ("name", "argument", "x"),
    [
        ("first_turn_loss", "log_probs", STEPS[:1]),
        ("outcome_loss", "log_probs", STEPS[:1]),
        ("unlikelihood_loss", "log_probs", ROWS),
    ],
)
def test_one_row_is_not_spread_over_many(name, argument, x):
    """Arguments with one column: one row instead of two, or rows instead of steps."""
    with pytest.raises(ValueError, match="shapes: "):
        LOSSES[name](**ARGUMENTS[name] | {argument: x})


def imitated(expert_mask, **fields):
    """A batch of two rows of two steps, evaluated with a policy over three tokens, with the expert known."""
    ids, mask = torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.bool)
    params = {"logits": torch.zeros(2, 2, 3)}
    batch = Batch(ids, ids, mask, mask, expert_actions=ids, expert_mask=expert_mask, expert_params=params, **fields)
    now = Evaluation(mask, Categorical(logits=torch.zeros(4, 3)), torch.zeros(2, 2), None)
    return batch, now


@pytest.mark.parametrize("divergence", ["nll", "forward"])
def test_imitation_is_of_each_step(divergence):
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert imitation_loss(*imitated(mask), divergence).shape == (2, 2)
    with pytest.raises(ValueError, match="expert_mask"):
        imitation_loss(*imitated(mask[:, :1]), divergence)
    for weights in (torch.ones(2), torch.ones(2, 1)):  # (B,) would be broadcast over columns
        with pytest.raises(ValueError, match="imitation_weights"):
            imitation_loss(*imitated(mask, extra={"imitation_weights": weights}), divergence)
