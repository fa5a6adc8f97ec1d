"""Damaged yamls and flags of experiments, given to `fit` without training."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from mutants import yaml_structure, yaml_values  # noqa: F401  # they fill MUTATIONS
from mutants.verdicts import Mutant
from mutants.yaml_damage import FILE, MUTATIONS, Spoilt, dump, nodes

from lightning_nlf.cli.command_line import main

CONF = Path(__file__).parents[2] / "conf"


def mutants(seed: int, count: int, folder: Path) -> Iterator[Mutant]:
    """`count` damaged yamls: all mutations in turn, each of a random experiment in conf/."""
    rng = random.Random(seed)
    bases = experiments()
    order = list(MUTATIONS)
    rng.shuffle(order)
    for number in range(count):
        name = order[number % len(order)]
        base, spoilt = _spoilt(rng, name, bases)
        description = f"{base} (seed {seed}, number {number}): {spoilt.description}"
        yield Mutant("yaml", name, description, spoilt.names, _attempt(spoilt, folder), may_be_accepted=spoilt.harmless)


def experiments() -> dict[str, dict[str, Any]]:
    """All experiments in conf/ that need no file of another run, except weights to start from."""
    parsed = {
        str(path.relative_to(CONF)): yaml.safe_load(path.read_text("utf-8")) for path in sorted(CONF.rglob("*.yaml"))
    }
    complete = {name: config for name, config in parsed.items() if {"model", "data"} <= set(config)}
    for config in complete.values():
        _in_full(config["model"].get("init_args", {}))
        for _, node in nodes(config):
            if isinstance(node, dict) and isinstance(node.get("init_args"), dict) and "weights" in node["init_args"]:
                del node["init_args"]["weights"]
                if "Transformer" in node["class_path"]:
                    node["init_args"]["shape"] = {"layers": 2, "heads": 2, "width": 64}
    whole = {name: config for name, config in complete.items() if ".ckpt" not in dump(config)}
    # The mazes need textworld, and chat/ needs the user's own model.
    return {name: config for name, config in whole.items() if not name.startswith(("mazes/", "chat/"))}


def _in_full(arguments: dict[str, Any]) -> None:
    """Name the classes that a yaml leaves out, since mutations look for them."""
    for role in ("policy", "value", "reward"):
        network = arguments.get(role)
        if isinstance(network, dict) and "class_path" not in network or isinstance(network, str) and "/" in network:
            init_args = network if isinstance(network, dict) else {"weights": network}
            class_path = f"lightning_nlf.networks.Transformer{role.capitalize()}"
            arguments[role] = {"class_path": class_path, "init_args": init_args}
    for name, schedule in arguments.items():
        if isinstance(schedule, dict) and "over" in schedule:
            arguments[name] = {"class_path": "lightning_nlf.maths.Linear", "init_args": schedule}


def _spoilt(rng: random.Random, name: str, bases: dict[str, dict[str, Any]]) -> tuple[str, Spoilt]:
    for _ in range(1000):
        base = rng.choice(list(bases))
        if spoilt := MUTATIONS[name](rng, bases[base]):
            return base, spoilt
    raise ValueError(f"{name} applies to no experiment")


def _attempt(spoilt: Spoilt, folder: Path) -> Callable[[], int]:
    def attempt() -> int:
        with untouched(folder):
            Path(FILE).write_text(spoilt.text, "utf-8", errors="surrogateescape")
            words = ["fit", "--config", FILE]
            if spoilt.overlay:
                Path("overlay.yaml").write_text(spoilt.overlay, "utf-8")
                words += ["--config", "overlay.yaml"]
            main([*words, *spoilt.words], run=False)
        return 0

    return attempt


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Context manager that changes to `folder`, and restores the state of the process at the end."""
    variables, modules_from, before = dict(os.environ), list(sys.path), os.getcwd()
    random_states, threads = _collect_rng_states(include_cuda=False), torch.get_num_threads()
    os.chdir(folder)
    try:
        with warnings.catch_warnings(), np.errstate():
            yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = modules_from
        _set_rng_states(random_states)
        torch.set_num_threads(threads)
