"""Module and data of a yaml, and the Trainer's training loop without the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_modules.pendulum.data_module import PendulumDataModule
from lightning_nlf.cli.parts import Parts
from lightning_nlf.modules import PolicyModule
from lightning_nlf.moved_yamls import arguments

CONF = Path(__file__).parents[2] / "conf"


def read(name: str, changes: dict[str, Any], seed: int) -> tuple[PolicyModule, PendulumDataModule, float | None]:
    """Module, data and gradient clip value of `conf/{name}.yaml` with some keys changed.

    Args: changes: values by dotted key below `model` or `data`, in the form of `fit`: {"data.episodes": 4}.
    """
    parts = Parts(arguments(CONF, name), changes | {"seed_everything": seed})
    parts.model.optimizer = partial(parts.model.optimizer, fused=True)  # one kernel instead of seven
    return parts.model, parts.datamodule, parts.options.trainer.gradient_clip_val


def stands(name: str, changes: dict[str, Any]) -> bool:
    """Whether `conf/{name}.yaml` has all these values already."""
    words = arguments(CONF, name)
    return Parts(words, changes, build=False).options == Parts(words, {}, build=False).options


@dataclass
class Alone:
    """The part of a Trainer that a DataModule uses, for one process."""

    lightning_module: PolicyModule
    current_epoch: int = 0
    world_size: int = 1
    global_rank: int = 0
    accumulate_grad_batches: int = 1


def iterations(module: PolicyModule, data: PendulumDataModule, clip: float | None) -> Iterator[int]:
    """`Trainer.fit` one iteration at a time: collect, then all optimizer steps.  Yields the number of iterations.

    The order of calls within a step is that of Lightning's automatic optimization.
    """
    optimizer = module.configure_optimizers()
    data.trainer = alone = Alone(module)  # type: ignore[assignment]
    networks = [network for network in module.children() if any(p.requires_grad for p in network.parameters())]
    parameters = [p for network in networks for p in network.parameters()]
    while True:
        for batch in data.iteration():
            module.train()
            terms = module.losses(batch, module.evaluate(batch))
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            norms = []
            for network in networks:
                gradients = [p.grad for p in network.parameters() if p.grad is not None]
                norms.append(nn.utils.get_total_norm(gradients))
                if not norms[-1]:
                    network.zero_grad(set_to_none=True)
            if clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, clip, torch.stack(norms).norm())
            optimizer.step()
            module.advance_all()
        alone.current_epoch += 1
        yield alone.current_epoch
