"""Class paths and knobs of earlier versions, so that checkpoints of those versions still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED: dict[str, str] = {}  # old class path → new class path
# Knobs that were removed, with their fixed values.
FIXED = {
    "length_normalized": False,
    "kl_horizon": 10_000.0,
    "weight_clip": 20.0,
    "mix": 0.5,
    "distillation_clip": 2.0,
}


def with_current_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the arguments of a module in a checkpoint to the names of this version.

    A removed knob is dropped if it has the value that is now fixed. Any other value is kept, so that the module refuses
    it.
    """
    current = {name: x for name, x in arguments.items() if name not in FIXED or x != FIXED[name]}
    return {name: _moved(x) for name, x in current.items()}


def _moved(value: Any) -> Any:
    if isinstance(value, Mapping):
        changed = {name: _moved(x) for name, x in value.items()}
        path = changed.get("class_path")
        return changed | {"class_path": MOVED[path]} if isinstance(path, str) and path in MOVED else changed
    return value
