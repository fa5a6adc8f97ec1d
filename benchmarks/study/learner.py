"""A yaml as its module and its data, and the training loop that a Trainer would run on them, without the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from data_modules.label_buffer import LabelBuffer
from data_modules.pendulum.data_module import PendulumDataModule
from lightning_nlf.modules import PolicyModule

CONF = Path(__file__).parents[2] / "conf"


def read(name: str, changes: dict[str, Any], seed: int) -> tuple[PolicyModule, PendulumDataModule, float | None]:
    """The module and the data of `conf/{name}.yaml` with some keys changed, and its gradient clip.

    Args: changes: by dotted key below `model` or `data`, as `fit` takes them: {"data.episodes": 4}.
    """
    config = OmegaConf.load(CONF / f"{name}.yaml")
    for key, value in changes.items():
        section, rest = key.split(".", 1)
        OmegaConf.update(config, f"{section}.init_args.{rest}", value, force_add=True, merge=False)
    config.seed_everything = seed
    torch.manual_seed(seed)
    values: Any = OmegaConf.to_container(config, resolve=True)
    # A dataclass is known by its annotation and not by a class_path, an optimizer is made later.
    own = values["data"]["init_args"]
    if own.get("label_buffer") is not None:
        own["label_buffer"] = LabelBuffer(**own["label_buffer"])
    optimizer = values["model"]["init_args"].pop("optimizer")
    made = partial(_class(optimizer["class_path"]), **optimizer.get("init_args", {}), fused=True)  # one kernel, not 7
    module = _made(values["model"], optimizer=made)
    return module, _made(values["data"]), values["trainer"].get("gradient_clip_val")


def stands(name: str, changes: dict[str, Any]) -> bool:
    """Whether `conf/{name}.yaml` has all of the changes already."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    OmegaConf.resolve(config)
    places = [key if key.startswith("trainer.") else key.replace(".", ".init_args.", 1) for key in changes]
    there = [OmegaConf.select(config, place, default="absent") for place in places]
    return there == [OmegaConf.create({"x": value}).x for value in changes.values()]


def _made(node: Any, **more: Any) -> Any:
    if isinstance(node, dict) and "class_path" in node:
        return _class(node["class_path"])(**{k: _made(v) for k, v in node.get("init_args", {}).items()}, **more)
    return node


def _class(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


@dataclass
class Alone:
    """What a DataModule asks of its Trainer, in one process."""

    lightning_module: PolicyModule
    current_epoch: int = 0
    world_size: int = 1
    global_rank: int = 0
    accumulate_grad_batches: int = 1


def iterations(module: PolicyModule, data: PendulumDataModule, clip: float | None) -> Iterator[int]:
    """`Trainer.fit`, one iteration at a time: collects, and takes all optimizer steps.  Yields their number.

    The order within a step is Lightning's automatic optimization's.
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
