"""`python -m lightning_nlf describe --config YAML`: what the loss of an agent is, on one screen."""

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
from lightning_nlf.maths.schedules import Schedule
from lightning_nlf.modules import ObjectiveModule, PolicyModule
from lightning_nlf.networks import Network
from lightning_nlf.objective import PHASES, Objective, Term, hooks_of

MEANINGS = {
    "mask": "the learner's steps",
    "expert_mask": "steps where the expert's choice is known",
    "valid": "all steps, the learner's and the expert's",
    "replies": "whole replies of the learner",
    "pairs": "pairs of replies to one prompt, ties too",
    "strict_pairs": "pairs of replies to one prompt that do not tie",
    "rankings": "whole rankings of the replies to one prompt",
}


def describe(module: ObjectiveModule, console: Console) -> None:
    """Print the phases and who fills them, the terms with what they are means over, the knobs, and the networks.

    The terms are those that the module says of a small batch which it can read (`example_batch`).
    """
    sections = {
        "Phases of a collection": _phases(module),
        f"Loss: the sum of these {'sums' if module.reduce == 'sum' else 'means'}": _terms(module, logged_only=False),
        "Logged only": _terms(module, logged_only=True),
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


def _terms(module: ObjectiveModule, logged_only: bool) -> Iterator[tuple[str, ...]]:
    for mixin, term in terms_of(module):
        if term.logged_only == logged_only:
            over = "a number" if term.over is None else f"over {term.over}"
            over += f", divided by the count of {term.per}" if term.per else ""
            meaning = f" ({MEANINGS[term.over]})" if term.over in MEANINGS else ""
            weight = "" if logged_only else f"× {float(term.weight):g}"
            yield term.name, weight, mixin.__name__, over + meaning


def terms_of(module: ObjectiveModule) -> list[tuple[type, Term]]:
    """Each term, and the mixin that says it, of an example batch at the start of a run; the module stays as it is."""
    module = copy.deepcopy(module)
    if isinstance(module, PolicyModule):
        batch = example_batch(module.policy, module.policy)
    else:
        batch = example_batch(next(network for network in module.children() if isinstance(network, Network)))
    batch = module.prepare(batch)
    module.experience.zero_()
    with torch.no_grad():
        now = module.evaluate(batch)
        return [(cls, term) for cls, hook in hooks_of(type(module), "terms") for term in hook(module, batch, now)]


def _knobs(module: ObjectiveModule) -> Iterator[tuple[str, ...]]:
    for cls in reversed(type(module).__mro__):
        if issubclass(cls, Objective) and cls not in (Objective, ObjectiveModule):
            values = {knob: getattr(module, knob) for knob in _in_order(cls) if hasattr(module, knob)}
            plain = {knob: x for knob, x in values.items() if not isinstance(x, nn.Module)}
            if plain:
                yield cls.__name__, ", ".join(f"{knob}: {_shown(x)}" for knob, x in plain.items())


def _in_order(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters if name in knobs_of(cls)]


def _shown(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"{float(x):g}"
    if isinstance(x, Schedule):
        return f"{type(x).__name__}({', '.join(f'{name}={value}' for name, value in vars(x).items())})"
    return "null" if x is None else str(x)


def _networks(module: ObjectiveModule) -> Iterator[tuple[str, ...]]:
    for name, network in module.named_children():
        count = sum(p.numel() for p in network.parameters())
        if count:
            learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
            which = "" if learned == count else f", {learned:,} of them learned"
            yield name, type(network).__name__, f"{count:,} parameters{which}"


def _first_line(thing: Any) -> str:
    lines = (inspect.cleandoc(thing.__doc__ or "")).splitlines()
    return lines[0] if lines else ""


STAND_INS = {"policy": "GRUPolicy", "value": "GRUValue", "reward": "GRUReward"}


def as_built(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model's configuration with networks that are made and not read, and a sentence on each stand-in.

    `shape` says how large a network is; without it only its `weights` do. Where they are not there yet, a small network
    stands in for it.
    """
    networks = {name: spec for name, spec in model["init_args"].items() if name in STAND_INS and spec}
    sources = {name: (spec.get("init_args") or {}).get("weights") for name, spec in networks.items()}
    shaped = {name: (spec.get("init_args") or {}).get("shape") for name, spec in networks.items()}
    unread = [name for name, path in sources.items() if path and not shaped[name] and not Path(path).exists()]
    changed, notes = dict(model["init_args"]), []
    for name, spec in networks.items():
        if unread:  # all of them, as they must read the same tokens
            network = {"vocabulary": 16, "width": 8}
            changed[name] = {"class_path": f"lightning_nlf.networks.{STAND_INS[name]}", "init_args": network}
            why = f"{sources[name]} is not there" if name in unread else f"the {unread[0]} is not there"
            notes.append(f"{name}: {why}; a small network stands in for the {spec['class_path']}")
        elif sources[name] and shaped[name]:
            changed[name] = {**spec, "init_args": {**spec["init_args"], "weights": None}}
    return {**model, "init_args": changed}, notes
