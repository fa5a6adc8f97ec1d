"""Refuse values that jsonargparse accepts: numbers out of range for torch and Lightning, and `{}` for a class."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Mapping
from typing import Any

import lightning as L
from jsonargparse import Namespace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_nlf.numbers import BelowOne, Count, NonNegative, Positive, PositiveShare, Share, Size, number_type
from lightning_nlf.private_names import set_type, type_of, wants_class, yaml_resolvers

_Limit: Any = number_type("Limit", int, "a whole number from -1 (no limit)", -1)
# Ranges of arguments that Lightning and torch check late or not at all.
RANGES: dict[type, dict[str, Any]] = {
    L.Trainer: {
        "num_nodes": Size,
        "max_epochs": _Limit | None,
        "min_epochs": Count | None,
        "max_steps": _Limit,
        "min_steps": Count | None,
        "val_check_interval": Size | PositiveShare | str | dict[str, int] | None,
        "check_val_every_n_epoch": Size | None,
        "num_sanity_val_steps": _Limit | None,
        "log_every_n_steps": Count | None,
        "accumulate_grad_batches": Size,
        "gradient_clip_val": NonNegative | None,
        "reload_dataloaders_every_n_epochs": Count,
    },
    Optimizer: {
        "lr": Positive,
        "weight_decay": NonNegative,
        "eps": NonNegative,
        "momentum": BelowOne,
        "dampening": Share,
    },
    LRScheduler: {
        "gamma": Positive,
        "eta_min": NonNegative,
        "step_size": Size,
        "T_max": Size,
        "total_iters": Size,
    },
}
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def narrow(cls: type, prefix: str, actions: list[Action]) -> None:
    """Restrict the arguments of a class of Lightning or torch to their valid ranges."""
    ranges = next((ranges for base, ranges in RANGES.items() if issubclass(cls, base)), {})
    for action in actions:
        if action.dest.startswith(prefix) and action.dest.removeprefix(prefix) in ranges:
            set_type(action, ranges[action.dest.removeprefix(prefix)])


def refuse_empty_class(action: Action, value: Any) -> None:
    """Refuse an empty mapping if the type is a class.

    Raises:
        TypeError: The value, or an entry of the value, is an empty mapping.
    """
    values = value if isinstance(value, list) else [value]
    if any(map(_is_empty, values)) and wants_class(type_of(action)):
        raise TypeError(f'Parser key "{action.dest}":\n  Expected a class_path. Got value: {{}}')


def _is_empty(value: Any) -> bool:
    """Whether a value is `{}`, or has only an `init_args` that is empty."""
    if not isinstance(value, (Mapping, Namespace)):
        return False
    items = value.items() if isinstance(value, Mapping) else vars(value).items()
    return all(key == "init_args" and _is_empty(inside) for key, inside in items)


def keep_text_that_looks_like_numbers() -> None:
    """Read `1:30` and `010` in a yaml as text. In YAML 1.1 they would be the numbers 90 and 8."""
    for resolvers in yaml_resolvers().values():
        resolvers[:] = [
            (tag, re.compile(r"(?!.*:)(?![-+]?0\d+$)" + regex.pattern, regex.flags) if tag in (_INT, _FLOAT) else regex)
            for tag, regex in resolvers
        ]
