"""Tools to damage the yaml of an experiment, and to know which key is then wrong."""

from __future__ import annotations

import copy
import importlib
import inspect
import random
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

FILE = "wrong.yaml"
Path = tuple[str | int, ...]
_LONG = "x" * 5000
# Invalid numbers by name of the key.
_COUNTS = (-1, 0, 1.5, 10**30)
_AMOUNTS = (-0.5, float("nan"), float("inf"))
OUT_OF_RANGE: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("obs_dim", "action_dim", "minibatches", "passes", "replies", "prompts", "max_new"), _COUNTS),
    **dict.fromkeys(("vocabulary", "layers", "heads", "width", "context", "episodes", "horizon", "rows"), _COUNTS),
    **dict.fromkeys(("gamma", "lam", "probability", "label_share", "val_share"), (-1, 1.5, 1e308, float("nan"))),
    **dict.fromkeys(("lr", "clip", "std", "imitation_weight", "gradient_clip_val", "value_weight"), _AMOUNTS),
    "max_epochs": (-2, 1.5, 10**30),
    "check_val_every_n_epoch": (0, -1, 1.5),
    "seed_everything": (-1, 1.5, 10**30),
    "min_steps": (-1, 1.5),
}


@dataclass(frozen=True)
class Spoilt:
    """A yaml after one mutation.

    Attributes:
        description: The damage, for a person.
        text: Text of the yaml.
        names: Words of which a clear message has at least one.
        words: Arguments of the command line after the yaml.
        overlay: Text of a second yaml.
        harmless: Whether the yaml may still be valid.
    """

    description: str
    text: str
    names: tuple[str, ...]
    words: tuple[str, ...] = ()
    overlay: str = ""
    harmless: bool = False


Mutation = Callable[[random.Random, dict[str, Any]], Spoilt | None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(damage: Mutation) -> Mutation:
    MUTATIONS[damage.__name__.replace("_", " ")] = damage
    return damage


# ---- a configuration as a tree


def nodes(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values of a configuration with their paths, depth first."""
    yield path, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from nodes(child, (*path, key))


def at(config: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        config = config[key]
    return config


def put(config: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def without(config: dict[str, Any], path: Path) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    del at(changed, path[:-1])[path[-1]]
    return changed


def dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def at_key(path: Sequence[str | int]) -> tuple[str, ...]:
    """How messages can name a key of the file. A list entry that is not a mapping is named by its number."""
    names = (f"{dotted(path)} ({FILE}",)
    return (*names, f"entry {path[-1] + 1}: ") if isinstance(path[-1], int) else names


def dump(config: Any, **raw: str) -> str:
    """Dump a configuration as yaml. Each name in `raw` is replaced by its text, without quotes."""
    text = yaml.safe_dump(config, sort_keys=False, width=1000)
    for word, replacement in raw.items():
        text = text.replace(word, replacement)
    return text


def numbers(config: dict[str, Any]) -> list[Path]:
    return [
        p for p, v in nodes(config) if isinstance(v, (int, float)) and not isinstance(v, bool) and type(p[-1]) is str
    ]


def classes(config: dict[str, Any]) -> list[Path]:
    return [path for path, value in nodes(config) if isinstance(value, dict) and "class_path" in value]


def keys(config: dict[str, Any]) -> list[Path]:
    """Paths of all keys except class_path and init_args."""
    fixed = {"class_path", "init_args"}
    return [path for path, _ in nodes(config) if path and isinstance(path[-1], str) and path[-1] not in fixed]


def annotation(config: dict[str, Any], path: Path) -> Any:
    """The annotation of an init_arg; None if it is unknown."""
    if len(path) < 3 or path[-2] != "init_args":
        return None
    return parameter(at(config, path[:-2])["class_path"], path[-1])[0]


def parameter(class_path: str, name: Any) -> tuple[Any, bool]:
    """Annotation of an argument of a class, and whether it is required."""
    module, _, last = class_path.rpartition(".")
    for base in getattr(importlib.import_module(module), last).__mro__:
        init = vars(base).get("__init__")
        if inspect.isfunction(init) and name in (parameters := inspect.signature(init).parameters):
            required = parameters[name].default is inspect.Parameter.empty
            try:
                return typing.get_type_hints(init).get(name), required
            except NameError:
                return None, required
    return None, False


def misspelt(rng: random.Random, word: str) -> str:
    """Drop, swap, insert or replace one letter of a word."""
    place = rng.randrange(1, max(2, len(word) - 1))
    left, right = word[:place], word[place:]
    changed = rng.choice(
        [left + right[1:], left + right[1:2] + right[:1] + right[2:], left + "x" + right, left + "z" + right[1:]]
    )
    return changed if changed != word and changed else word + "q"


def pick(rng: random.Random, paths: list[Path]) -> Path | None:
    return rng.choice(paths) if paths else None


def replaced(config: dict[str, Any], path: Path | None, value: Any, *names: str, **raw: str) -> Spoilt | None:
    if path is None:
        return None
    abbreviated = raw.get("RAW", repr(value))[:60]
    return Spoilt(f"{dotted(path)} = {abbreviated}", dump(put(config, path, value), **raw), (*at_key(path), *names))
