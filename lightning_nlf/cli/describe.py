"""`python -m lightning_nlf describe --config YAML`: print the loss, phases, knobs and networks of an objective."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import nn

from lightning_nlf.compatibility import knobs_of
from lightning_nlf.example_batch import example_batch
from lightning_nlf.maths.schedules import Linear, Schedule
from lightning_nlf.modules import ObjectiveModule, PolicyModule
from lightning_nlf.networks import Network
from lightning_nlf.objective import PHASES, Objective, Term, hooks_of

MEANINGS = {
    "mask": "the learner's steps",
    "expert_mask": "steps with a known expert action",
    "valid": "all steps of the learner and the expert",
    "replies": "whole replies of the learner",
    "pairs": "pairs of replies to one prompt, ties included",
    "strict_pairs": "pairs of replies to one prompt, ties excluded",
    "rankings": "full rankings of the replies to one prompt",
}


def describe(module: ObjectiveModule, console: Console) -> None:
    """Print the phases, the loss terms and their masks, the knobs, and the networks of a module.

    The terms come from one forward pass over a small synthetic batch (`example_batch`).
    Raises:
        ValueError: A term names a mask that does not exist.
    """
    terms = terms_of(module)
    sections = {
        "Phases of a collection": _phases(module),
        f"Loss: the sum of these {'sums' if module.reduce == 'sum' else 'means'}": _terms(
            module, terms, logged_only=False
        ),
        "Logged only": _terms(module, terms, logged_only=True),
        "After each optimizer step": _filled(module, "advance"),
        "Knobs": _knobs(module),
        "Networks": _networks(module),
    }
    console.print(Text(f"{type(module).__name__}: {_first_line(type(module))}"))
    for title, rows in sections.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*map(Text, row))
        if table.row_count:
            console.print(Text(f"\n{title}", style="bold"))
            console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _phases(module: ObjectiveModule) -> Iterator[tuple[str, ...]]:
    for phase in PHASES:
        for _, *row in _filled(module, phase):
            yield (phase, *row)


def _filled(module: ObjectiveModule, hook: str) -> Iterator[tuple[str, ...]]:
    for cls, function in hooks_of(type(module), hook):
        yield hook, cls.__name__, _first_line(function)


def _terms(module: ObjectiveModule, terms: list[tuple[type, Term]], logged_only: bool) -> Iterator[tuple[str, ...]]:
    for mixin, term in terms:
        if term.logged_only == logged_only:
            over = "a number" if term.over is None else f"over {term.over}"
            over += f", divided by the count of {term.per}" if term.per else ""
            meaning = f" ({MEANINGS[term.over]})" if term.over in MEANINGS else ""
            weight = "" if logged_only else f"× {_weight(module, term)}"
            yield term.name, weight, mixin.__name__, over + meaning


def _weight(module: ObjectiveModule, term: Term) -> str:
    """Weight of a term, or its schedule if the knob `<term>_weight` is one."""
    schedule = getattr(module, f"{term.name}_weight", None)
    if isinstance(schedule, Linear):
        return f"{schedule.start:g} → {schedule.end:g} over {schedule.over:,} steps"
    return f"{float(term.weight):g}"


def terms_of(module: ObjectiveModule) -> list[tuple[type, Term]]:
    """The terms of an example batch at the start of training, each with the mixin that defines it.

    Copies the module.

    Raises:
        ValueError: A term names a mask that does not exist, or its values do not have the shape of the mask.
    """
    module = copy.deepcopy(module)
    if isinstance(module, PolicyModule):
        batch = example_batch(module.policy, module.policy)
    else:
        batch = example_batch(next(network for network in module.children() if isinstance(network, Network)))
    batch = module.prepare(batch)
    module.experience.zero_()
    with torch.no_grad():
        now = module.evaluate(batch)
        terms = [(cls, term) for cls, hook in hooks_of(type(module), "terms") for term in hook(module, batch, now)]
        for _, term in terms:
            module.mean(term, batch)
    return terms


def _knobs(module: ObjectiveModule) -> Iterator[tuple[str, ...]]:
    for cls in reversed(type(module).__mro__):
        if issubclass(cls, Objective) and cls not in (Objective, ObjectiveModule):
            values = {knob: getattr(module, knob) for knob in _in_order(cls) if hasattr(module, knob)}
            plain = {knob: x for knob, x in values.items() if not isinstance(x, nn.Module)}
            if plain:
                yield cls.__name__, ", ".join(f"{knob}: {_knob_text(x)}" for knob, x in plain.items())


def _in_order(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters if name in knobs_of(cls)]


def _knob_text(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"{float(x):g}"
    if isinstance(x, Schedule):
        return f"{type(x).__name__}({', '.join(f'{name}={value}' for name, value in vars(x).items())})"
    return "null" if x is None else str(x)


def _networks(module: ObjectiveModule) -> Iterator[tuple[str, ...]]:
    for name, network in module.named_children():
        count = sum(p.numel() for p in network.parameters())
        if count:
            trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
            suffix = "" if trainable == count else f", {trainable:,} of them trainable"
            yield name, type(network).__name__, f"{count:,} parameters{suffix}"


def _first_line(documented: Any) -> str:
    lines = (inspect.cleandoc(documented.__doc__ or "")).splitlines()
    return lines[0] if lines else ""


class StandIn:
    """Small sizes for networks, used instead of the sizes of a DataModule that cannot be built.

    Args:
        model: Configuration of the model. If a network has an `obs_mean`, it gives the size of an observation.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        networks = [spec for name, spec in model["init_args"].items() if name in STAND_INS and spec]
        means = [(spec.get("init_args") or {}).get("obs_mean") for spec in networks]
        obs_dim = next((len(mean) for mean in means if mean), 4)
        self.sizes = {"obs_dim": obs_dim, "action_dim": 1, "vocabulary": 16, "context": 256}


STAND_INS = {"policy": "GRUPolicy", "value": "GRUValue", "reward": "GRUReward"}


def as_built(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Change a model's configuration so that its networks can be built without reading weights.

    A network with a `shape` is built from this shape alone. Without a `shape`, the size of a network is known only from
    its `weights`. If these do not exist yet, small networks replace all networks of the model.

    Returns:
        The new configuration, and one sentence for each network that was replaced.
    """
    networks = {name: spec for name, spec in model["init_args"].items() if name in STAND_INS and spec}
    sources = {name: (spec.get("init_args") or {}).get("weights") for name, spec in networks.items()}
    shaped = {name: (spec.get("init_args") or {}).get("shape") for name, spec in networks.items()}
    unread = [name for name, path in sources.items() if path and not shaped[name] and not Path(path).exists()]
    changed, notes = dict(model["init_args"]), []
    for name, spec in networks.items():
        if unread:  # replace all networks, because they must share one vocabulary
            network = {"vocabulary": 16, "width": 8}
            changed[name] = {"class_path": f"lightning_nlf.networks.{STAND_INS[name]}", "init_args": network}
            why = f"{sources[name]} does not exist" if name in unread else f"the weights of {unread[0]} do not exist"
            notes.append(f"{name}: {why} yet; a small network is described instead of {spec['class_path']}")
        elif sources[name] and shaped[name]:
            changed[name] = {**spec, "init_args": {**spec["init_args"], "weights": None}}
    return {**model, "init_args": changed}, notes
