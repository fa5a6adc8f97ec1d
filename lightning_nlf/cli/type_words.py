"""Describe type hints in error messages, and list the classes in them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch

_SCALARS = (int, float, str, bytes, complex, os.PathLike, Enum, timedelta, NoneType, torch.Tensor)
_LISTS = (list, tuple, set, frozenset)


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the type itself. Tensor is left out, because a yaml cannot contain a tensor."""
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for inner in get_args(hint) for kind in alternatives(inner)]
    return [hint] if hint is not torch.Tensor else []


def is_class(kind: Any) -> bool:
    """Whether a yaml gives values of this type by `class_path`."""
    return inspect.isclass(kind) and get_origin(kind) is None and not issubclass(kind, (*_SCALARS, *_LISTS, dict))


def classes(kinds: Sequence[Any]) -> list[tuple[type, int]]:
    """The classes among types, each with its number of late arguments, which the code passes later.

    For example, an optimizer has one late argument, the parameters.
    """
    expected = [(kind, 0) for kind in kinds if is_class(kind)]
    for kind in kinds:
        if callable_of(kind):
            parameters, result = get_args(kind)
            late = len(parameters) if isinstance(parameters, list) else 0
            expected += [(inner, late) for inner in alternatives(result) if is_class(inner)]
    return expected


def callable_of(kind: Any) -> bool:
    """Whether a type is `Callable[[…], result]`."""
    return get_origin(kind) is Callable and len(get_args(kind)) == 2


def element_types(kinds: Sequence[Any], length: int) -> list[Any] | None:
    """The types of the entries in a list of this length; None if none of the types is such a list."""
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if origin is tuple and inner[-1:] != (...,):
            if len(inner) == length:
                return list(inner)
        elif inner and _holds(list, origin):
            return [inner[0]] * length
    return None


def value_type(kinds: Sequence[Any]) -> Any:
    """The type of the values in a mapping; None if none of the types is a mapping."""
    mappings = [kind for kind in kinds if _holds(dict, get_origin(kind)) and not _holds(list, get_origin(kind))]
    return next((get_args(kind)[1] for kind in mappings if len(get_args(kind)) == 2), None)


def _holds(container: type, origin: Any) -> bool:
    """Whether a list (or dict) is a valid value of a generic type. `origin` is `typing.get_origin` of the type."""
    standard = inspect.isclass(origin) and origin.__module__ in ("builtins", "collections.abc", "collections")
    return standard and (issubclass(container, origin) or (container is list and issubclass(origin, _LISTS)))


def in_words(kinds: Sequence[Any]) -> str:
    """Describe types in words: `int or null`."""
    return " or ".join(dict.fromkeys(map(_in_words, kinds)))


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is NoneType:
        return "null"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple and inner[-1:] != (...,):
        return f"a list of {len(inner)}"
    if callable_of(kind):
        return in_words(alternatives(inner[1]))
    for container, words in ((list, "a list"), (dict, "a mapping")):
        if kind is container or _holds(container, origin):
            return words
    if is_class(kind):
        return article(kind.__name__)
    if inspect.isclass(kind) and kind.__module__ != "builtins":
        return kind.__doc__ if issubclass(kind, (int, float)) and kind.__doc__ else article(kind.__name__)
    if inspect.isclass(kind):
        return kind.__name__
    return str(kind)


def article(name: str) -> str:
    """A name with its article: `an Optimizer`."""
    return ("an " if name[0] in "AEIOU" else "a ") + name


def choices(kinds: Sequence[Any]) -> list[str]:
    return [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
