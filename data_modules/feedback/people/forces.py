"""Parse expected actions for a pendulum: the name of an expert, or forces at some steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_nlf.batch import Expert

LIMIT = 3.0  # largest force in either direction
EXPERTS = ("LQRExpert", "WeakExpert")
_MODULE = "data_modules.pendulum.experts."
_PART = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?\s*:\s*([-+−]?\d*\.?\d+)")


def forces(text: str, steps: int) -> dict[int, float]:
    """Step index (from 0) → force, from a text such as "12-20: -1.5, 31: 0.4", which counts from 1 like the GIF.

    Raises:
        ValueError: the text has a different form, a step is not in the episode or is given twice, or a force is too
            strong.
    """
    force_at: dict[int, float] = {}
    for part in re.split(r"[,;\n]+", text.strip(" ,;\n")):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"got {part.strip()!r}, must be an expert ({', '.join(EXPERTS)}) or forces (12-20: -1.5)")
        first, last = int(match[1]), int(match[2] or match[1])
        force = float(match[3].replace("−", "-"))
        if not 1 <= first <= last <= steps:
            raise ValueError(f"{part.strip()!r} is outside the episode, which has the steps 1 to {steps}")
        if abs(force) > LIMIT:
            raise ValueError(f"{part.strip()!r} is too strong: each force must be between -{LIMIT:g} and {LIMIT:g}")
        for step in range(first - 1, last):
            if step in force_at:
                raise ValueError(f"step {step + 1} has two forces in {text!r}")
            force_at[step] = force
    return force_at


def expert_named(text: str) -> Callable[[], Expert] | None:
    """The constructor of the expert with this name, with or without module; None if the text names no expert.

    A name is never imported, because otherwise anybody who can write a review could run code.
    """
    name = text.strip().removeprefix(_MODULE)
    if name not in EXPERTS:
        return None

    def make() -> Expert:
        from data_modules.pendulum import experts

        return getattr(experts, name)(std=0.0)  # no noise: the mean action

    return make


def check(text: str, steps: int) -> None:
    """Check a text.  Raises ValueError: the text is neither an expert's name nor forces at steps of the episode."""
    if expert_named(text) is None:
        forces(text, steps)
