"""Checks that mixins can be combined: required classes are present, and no name has two meanings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import combinations, permutations
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def replaceable(function: Function) -> Function:
    """Mark a method of a mixin as a default. One other mixin may replace it, if that mixin is to the left."""
    function.__dict__["replaceable"] = True
    return function


def knobs_of(mixin: type) -> set[str]:
    """The knobs of a mixin: the parameters that its `__init__` names, without `**kwargs`."""
    if "__init__" not in vars(mixin):
        return set()
    parameters = list(inspect.signature(vars(mixin)["__init__"]).parameters.values())[1:]
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}


def refuse_clashes(cls: type, mixins: Sequence[type], shared_names: Sequence[str]) -> None:
    """Refuse a class if two of its mixins share the name of a knob, a method, an attribute or a term.

    A mixin and its subclass may share names, because they are variants of one formula. One mixin may replace a
    `replaceable` method of a mixin to its right.

    Args: mixins: the mixins of the class, from left to right; shared_names: names that every mixin may define.
    Raises: TypeError: two mixins share a name; the message names both.
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
                f"{cls.__name__}: cannot combine {left.__name__} and {right.__name__}: both define {names}, with "
                "different meanings"
            )


def refuse_excluded(cls: type, mixins: Sequence[type]) -> None:
    """Refuse a class if one of its mixins `excludes` another.

    Raises: TypeError: the class has such a pair; the message names both.
    """
    for mixin, partner in permutations(mixins, 2):
        if issubclass(partner, vars(mixin).get("excludes", ())):
            raise TypeError(
                f"{cls.__name__}: {mixin.__name__} cannot be combined with {partner.__name__}; its docstring says why"
            )


def refuse_missing(cls: type, mixins: Sequence[type]) -> None:
    """Refuse a module if a class that one of its mixins `needs` is missing, or is to the left of that mixin.

    Raises: TypeError: a class is missing or in the wrong order. Also if one mixin needs a policy module and another
        needs a reward module.
    """
    order = cls.__mro__
    modules: dict[type, type] = {}  # needed class → the mixin that needs it
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
                raise TypeError(f"{cls.__name__}: put {needed.__name__} to the right of {mixin.__name__}")
    for first, second in combinations(modules, 2):
        if not issubclass(first, second) and not issubclass(second, first):
            raise TypeError(
                f"{cls.__name__}: {modules[first].__name__} needs {first.__name__}, but {modules[second].__name__} "
                f"needs {second.__name__}, a different kind of module"
            )


def refuse_misspelt(cls: type, base: type, hooks: Sequence[str]) -> None:
    """Refuse a method whose name is almost the name of a hook, because nothing would call this method.

    Raises: TypeError: a method has such a name; the message names the hook.
    """
    for name in (name for name, x in vars(cls).items() if inspect.isfunction(x) and not hasattr(base, name)):
        if near := get_close_matches(name, hooks, 1, cutoff=0.86):
            raise TypeError(f"{cls.__name__}.{name} is not a hook; did you mean `{near[0]}`?")


def _names(mixin: type) -> set[str]:
    """All names that a mixin defines, including the names of its knobs."""
    return {name for name in vars(mixin) if not name.startswith(("__", "_abc"))} | knobs_of(mixin)


def _is_replaceable(mixin: type, name: str) -> bool:
    return getattr(vars(mixin).get(name), "__dict__", {}).get("replaceable", False)
