"""Default optimizer (Adam or AdamW) and learning rate schedule of a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR


def adam(lr: float | None, eps: float | None, weight_decay: float | None) -> Callable[..., Optimizer]:
    """Adam, or AdamW if there is a weight decay. An argument of None means torch's default, or no weight decay."""
    settings: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay or None}
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    return partial(kind, **{name: value for name, value in settings.items() if value is not None})


def straight_line(optimizer: Optimizer, end: float, epochs: int | None) -> LinearLR:
    """Linear schedule that takes all learning rates from their initial values to `end` times these values over the fit.

    Raises:
        ValueError: the number of epochs of the fit is unknown.
    """
    if epochs is None or epochs < 1:
        raise ValueError("lr_end: the fit has no end; set trainer.max_epochs, or an lr_scheduler of your own")
    return LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=epochs)


def refuse_both(knobs: Mapping[str, Any], name: str, value: object) -> None:
    """Refuse unused knobs. Raises ValueError: some of the `knobs` are set, and also `name`, which replaces them."""
    used = [knob for knob, setting in knobs.items() if setting is not None]
    if value is not None and used:
        raise ValueError(f"{used[0]}: it has no effect with {name}, which is set too; remove one of them")
