"""Which mixins can be combined: what one needs must be there, and no two may give one name two meanings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import combinations, permutations
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def replaceable(function: Function) -> Function:
    """Mark a mixin's method as a default that one other mixin, to its left, may replace."""
    function.__dict__["replaceable"] = True
    return function


def knobs_of(mixin: type) -> set[str]:
    """The parameters of the mixin's own `__init__`, without those it hands on."""
    if "__init__" not in vars(mixin):
        return set()
    parameters = list(inspect.signature(vars(mixin)["__init__"]).parameters.values())[1:]
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}


def refuse_clashes(cls: type, mixins: Sequence[type], shared_names: Sequence[str]) -> None:
    """Refuse a class of two mixins that share the name of a knob, a method, an attribute or a term.

    Mixins of which one inherits from the other are variants of one formula. A `replaceable` method may be replaced by
    one mixin that stands to the left.

    Args: mixins: of the class, from left to right; shared_names: those that every mixin may define.
    Raises: TypeError: with the names of both mixins, and what they share.
    """
    for left, right in combinations(mixins, 2):
        if issubclass(left, right):
            continue
        shared = (_names(left) & _names(right)) - set(shared_names)
        shared = {name for name in shared if not _is_replaceable(right, name)}
        shared |= set(vars(left).get("reports", ())) & set(vars(right).get("reports", ()))
        if shared:
            names = ", ".join(f"`{name}`" for name in sorted(shared))
            raise TypeError(
                f"{cls.__name__}: {left.__name__} and {right.__name__} both have {names}, and mean different things"
            )


def refuse_excluded(cls: type, mixins: Sequence[type]) -> None:
    """Refuse a class of a mixin and another one that it `excludes`.

    Raises: TypeError: with the names of both.
    """
    for mixin, other in permutations(mixins, 2):
        if issubclass(other, vars(mixin).get("excludes", ())):
            raise TypeError(
                f"{cls.__name__}: {mixin.__name__} cannot be combined with {other.__name__}: see its docstring"
            )


def refuse_missing(cls: type, mixins: Sequence[type]) -> None:
    """Refuse a module without the classes that one of its mixins `needs`, or with them to the left of it.

    Raises: TypeError: with the name of the mixin, and what is missing; or with those of two mixins of which one needs
        a module of policies and the other one of rewards.
    """
    order = cls.__mro__
    modules: dict[type, type] = {}  # that are needed, and by which mixin
    for mixin in mixins:
        for needed in vars(mixin).get("needs", ()):
            if needed not in mixins:
                modules.setdefault(needed, mixin)
            if needed not in order:
                raise TypeError(
                    f"{cls.__name__}: {mixin.__name__} needs {needed.__name__}: "
                    f"class {cls.__name__}({mixin.__name__}, …, {needed.__name__}, …)"
                )
            if order.index(needed) < order.index(mixin):
                raise TypeError(f"{cls.__name__}: {needed.__name__} must stand to the right of {mixin.__name__}")
    for one, other in combinations(modules, 2):
        if not issubclass(one, other) and not issubclass(other, one):
            raise TypeError(
                f"{cls.__name__}: {modules[one].__name__} needs {one.__name__}, and {modules[other].__name__} needs "
                f"{other.__name__}, which is another kind of module"
            )


def refuse_misspelt(cls: type, base: type, hooks: Sequence[str]) -> None:
    """Refuse a method whose name is nearly that of a hook: nobody would call it.

    Raises: TypeError: with the name of the hook.
    """
    for name in (name for name, x in vars(cls).items() if inspect.isfunction(x) and not hasattr(base, name)):
        if near := get_close_matches(name, hooks, 1, cutoff=0.86):
            raise TypeError(f"{cls.__name__}.{name} is no hook; did you mean `{near[0]}`?")


def _names(mixin: type) -> set[str]:
    """What it defines, and its knobs."""
    return {name for name in vars(mixin) if not name.startswith(("__", "_abc"))} | knobs_of(mixin)


def _is_replaceable(mixin: type, name: str) -> bool:
    return getattr(vars(mixin).get(name), "__dict__", {}).get("replaceable", False)
