"""A path in place of a class: start a network from weights, or take an expert or a reward from a checkpoint.

`policy: outputs/answers/sft-seed0/checkpoints/last.ckpt` is short for the class that reads this path:

    policy:
      class_path: lightning_nlf.networks.TransformerPolicy
      init_args: {weights: outputs/answers/sft-seed0/checkpoints/last.ckpt}

If it has other arguments, the mapping of arguments alone is enough: `policy: {weights: my/model, lora: {r: 16}}`,
`policy: {shape: {layers: 2, heads: 2, width: 64}}`, or `imitation_weight: {over: 20000}` for a linear schedule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_nlf.cli.class_lookup import conforms, look_up
from lightning_nlf.cli.type_words import alternatives, classes

READERS = {  # classes that can be left out, with the argument for a path
    "lightning_nlf.scorers.CheckpointReward": "checkpoint",
    "lightning_nlf.experts.CheckpointExpert": "checkpoint",
    "lightning_nlf.experts.CheckpointTextExpert": "checkpoint",
    "lightning_nlf.networks.TransformerPolicy": "weights",
    "lightning_nlf.networks.TransformerValue": "weights",
    "lightning_nlf.networks.TransformerReward": "weights",
}
LEFT_OUT = READERS | {"lightning_nlf.maths.Linear": "over"}
QUOTED = re.compile(r"""^(["'])(.*)\1$""")  # a flag such as --model.policy='"a path"', which is a yaml of its own
KEYS = {*LEFT_OUT.values(), "shape"}  # arguments that show which class is left out


def is_path(value: object) -> bool:
    """Whether a value is a file, a folder, an id on the hub or a name in a registry, and not a class_path."""
    return isinstance(value, str) and ("/" in value or value.endswith(".ckpt"))


def in_full(value: Any, hint: Any) -> Any:
    """The class that reads a path and the path, if the type accepts one of READERS; else the value unchanged."""
    if not is_path(value) or str in alternatives(hint):
        return value
    reader = left_out(bases_of(hint), READERS)
    path = _deeper(QUOTED.sub(r"\2", value), 2)
    return {"class_path": reader, "init_args": {READERS[reader]: path}} if reader else value


def with_class(value: Any, bases: Sequence[type]) -> dict[str, Any] | None:
    """Arguments alone with their class, if it is one of LEFT_OUT; else None."""
    if not isinstance(value, dict) or "class_path" in value or not KEYS & value.keys():
        return None
    class_path = left_out(bases)
    return {"class_path": class_path, "init_args": _deeper(value, 1)} if class_path else None


def left_out(bases: Sequence[type], table: Mapping[str, str] = LEFT_OUT) -> str | None:
    """The class among LEFT_OUT that is one of these types."""
    concrete = [base for base in bases if base is not object]
    return next((path for path in table if any(conforms(look_up(path, ()), base) for base in concrete)), None)


def bases_of(hint: Any) -> list[type]:
    """The classes in a type whose objects a yaml describes."""
    return [base for base, late in classes(alternatives(hint)) if not late]


def _deeper(value: Any, levels: int) -> Any:
    """A value that moves down some levels, because jsonargparse counts `${..seed_everything}` from where it is."""
    if isinstance(value, dict):
        return {key: _deeper(inner, levels) for key, inner in value.items()}
    return value.replace("${.", "${." + "." * levels) if isinstance(value, str) else value


def is_about(message: str, class_name: str, value: str | None) -> bool:
    """Whether the error message of a reader is about this path. The path may contain `${…}`."""
    if value is None or not is_path(value) or class_name not in {path.rpartition(".")[2] for path in READERS}:
        return False
    return bool(re.search(r"\S*".join(map(re.escape, re.split(r"\$\{[^}]*\}", value))), message))
