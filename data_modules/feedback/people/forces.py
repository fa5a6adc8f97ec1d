"""What a person expects of a pendulum: an expert by name, or the force at some steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_nlf.batch import Expert

LIMIT = 3.0  # the strongest push either way
EXPERTS = ("LQRExpert", "WeakExpert")
_MODULE = "data_modules.pendulum.experts."
_PART = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?\s*:\s*([-+−]?\d*\.?\d+)")


def forces(text: str, steps: int) -> dict[int, float]:
    """The force at each step that is marked, from 0: "12-20: -1.5, 31: 0.4" counts steps from 1, as the GIF does.

    Raises:
        ValueError: it reads otherwise, a step that the episode has not or that is marked twice, too strong a force.
    """
    found: dict[int, float] = {}
    for part in re.split(r"[,;\n]+", text.strip(" ,;\n")):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is no expert ({', '.join(EXPERTS)}) and no force like 12-20: -1.5")
        first, last = int(match[1]), int(match[2] or match[1])
        force = float(match[3].replace("−", "-"))
        if not 1 <= first <= last <= steps:
            raise ValueError(f"{part.strip()!r} marks a step that is not there; the episode has steps 1 to {steps}")
        if abs(force) > LIMIT:
            raise ValueError(f"{part.strip()!r} is stronger than {LIMIT:g}, the strongest push either way")
        for step in range(first - 1, last):
            if step in found:
                raise ValueError(f"step {step + 1} is marked twice in {text!r}")
            found[step] = force
    return found


def expert_named(text: str) -> Callable[[], Expert] | None:
    """Makes the expert of this name, alone or with its module; None for a text that names none.

    A name is never imported: whoever can write a review could run code.
    """
    name = text.strip().removeprefix(_MODULE)
    if name not in EXPERTS:
        return None

    def make() -> Expert:
        from data_modules.pendulum import experts

        return getattr(experts, name)(std=0.0)  # what it would do, not what it would draw

    return make


def check(text: str, steps: int) -> None:
    """Raises ValueError: the text names no expert, and no forces at steps of the episode."""
    if expert_named(text) is None:
        forces(text, steps)
