"""Spoilt yamls and flags of experiments, handed to `fit` up to where the training would begin."""

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
    """`count` spoilt yamls: the mutations in turn, each on an experiment drawn from all of conf/."""
    rng = random.Random(seed)
    bases = experiments()
    order = list(MUTATIONS)
    rng.shuffle(order)
    for number in range(count):
        name = order[number % len(order)]
        base, spoilt = _spoilt(rng, name, bases)
        what = f"{base} (seed {seed}, number {number}): {spoilt.what}"
        yield Mutant("yaml", name, what, spoilt.names, _attempt(spoilt, folder), may_be_accepted=spoilt.harmless)


def experiments() -> dict[str, dict[str, Any]]:
    """Every experiment of conf/ that needs no file of another run, or none but weights to start from."""
    parsed = {
        str(path.relative_to(CONF)): yaml.safe_load(path.read_text("utf-8")) for path in sorted(CONF.rglob("*.yaml"))
    }
    complete = {name: config for name, config in parsed.items() if {"model", "data"} <= set(config)}
    for config in complete.values():
        for _, node in nodes(config):
            if isinstance(node, dict):
                node.pop("weights", None)
    whole = {name: config for name, config in complete.items() if "checkpoint:" not in dump(config)}
    # these need textworld, and a model of the team's own
    return {name: config for name, config in whole.items() if not name.startswith(("lmrl/", "chat/"))}


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
    """Inside, `folder` is the working folder; afterwards the process is as it was."""
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
