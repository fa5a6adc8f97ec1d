"""Values that jsonargparse would let through: numbers of torch and Lightning, null for a number, `{}` for a class."""

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
# What classes that are not ours take, where they check it late or not at all.
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
    """Gives the arguments of a class that is not ours the ranges they have."""
    ranges = next((ranges for base, ranges in RANGES.items() if issubclass(cls, base)), {})
    for action in actions:
        if action.dest.startswith(prefix) and action.dest.removeprefix(prefix) in ranges:
            set_type(action, ranges[action.dest.removeprefix(prefix)])


def refuse_nothing(action: Action, value: Any) -> None:
    """Raises TypeError: an empty mapping where a class is asked for."""
    values = value if isinstance(value, list) else [value]
    if any(map(_is_empty, values)) and wants_class(type_of(action)):
        raise TypeError(f'Parser key "{action.dest}":\n  Expected a class_path. Got value: {{}}')


def _is_empty(value: Any) -> bool:
    """Whether it is `{}`, or has nothing but an `init_args` that is so."""
    if not isinstance(value, (Mapping, Namespace)):
        return False
    items = value.items() if isinstance(value, Mapping) else vars(value).items()
    return all(key == "init_args" and _is_empty(inside) for key, inside in items)


def read_as_written() -> None:
    """`1:30` is text, not 90 as YAML 1.1 has it; and `010` is, not 8."""
    for resolvers in yaml_resolvers().values():
        resolvers[:] = [
            (tag, re.compile(r"(?!.*:)(?![-+]?0\d+$)" + known.pattern, known.flags) if tag in (_INT, _FLOAT) else known)
            for tag, known in resolvers
        ]
