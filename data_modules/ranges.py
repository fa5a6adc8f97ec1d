"""Arguments of constructors that are out of range: refused by name."""

from __future__ import annotations


def at_least(least: int, **amounts: float | None) -> None:
    """Raises ValueError naming the first that is below; None stands for no limit."""
    for name, amount in amounts.items():
        if amount is not None and amount < least:
            raise ValueError(f"{name}: got {amount}, must be at least {least}")


def shares(**values: float) -> None:
    """Raises ValueError naming the first outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, must be in [0, 1]")


def sampling(top_k: int, top_p: float, temperature: float) -> None:
    """Raises ValueError naming the knob of sampling that is out of range."""
    at_least(0, top_k=top_k)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, must be in (0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, must be above 0; for the likeliest token: greedy")
