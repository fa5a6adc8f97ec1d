"""Class paths and knobs that earlier versions had, so that their checkpoints still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED: dict[str, str] = {}  # old class path → where it is now
# A knob that is gone, and the value that it has now.
FIXED = {
    "length_normalized": False,
    "kl_horizon": 10_000.0,
    "weight_clip": 20.0,
    "mix": 0.5,
    "distillation_clip": 2.0,
}


def with_current_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module as a checkpoint has them, in the names of this version.

    A knob that is gone is left out where it had the value that is fixed now; another value stays, and is refused.
    """
    kept = {name: x for name, x in arguments.items() if name not in FIXED or x != FIXED[name]}
    return {name: _moved(x) for name, x in kept.items()}


def _moved(value: Any) -> Any:
    if isinstance(value, Mapping):
        changed = {name: _moved(x) for name, x in value.items()}
        path = changed.get("class_path")
        return changed | {"class_path": MOVED[path]} if isinstance(path, str) and path in MOVED else changed
    return value
