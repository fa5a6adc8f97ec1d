"""Range checks for constructor arguments. The error message names the argument."""

from __future__ import annotations


def at_least(least: int, **amounts: float | None) -> None:
    """Check that no amount is below `least`; None is allowed.  Raises ValueError: an amount is too low."""
    for name, amount in amounts.items():
        if amount is not None and amount < least:
            raise ValueError(f"{name}: got {amount}, must be at least {least}")


def shares(**values: float) -> None:
    """Check that all values are in [0, 1].  Raises ValueError: a value is outside."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, must be in [0, 1]")


def sampling(top_k: int, top_p: float, temperature: float) -> None:
    """Check the sampling arguments.  Raises ValueError: one of them is out of range."""
    at_least(0, top_k=top_k)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}, must be in (0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, must be above 0; for the most likely token use greedy")
