"""Classes that a yaml names, with the keys that they take."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from lightning_nlf.cli.errors import ConfigurationError, memory_is_short, nearest
from lightning_nlf.cli.valid_names import contents, import_hint, module_beside
from lightning_nlf.cli.yaml_places import Place, find
from lightning_nlf.private_names import arguments_of, is_protocol, type_of
from lightning_nlf.protocols import methods_of


class NoSuchClass(Exception):
    """A class_path that leads nowhere; the message says why, and what it could have meant."""


@dataclass(frozen=True)
class Parameter:
    hint: Any  # None if it takes everything
    required: bool
    default: Any = None


def look_up(path: Any, bases: Sequence[type]) -> Any:
    """What a class_path names: a class, or something that cannot stand there, such as a function.

    `path` may also be the last name of a subclass of one of `bases`.

    Raises:
        NoSuchClass: there is none.
        MemoryError: its module could not be imported for want of memory.
    """
    kind = " or ".join(base.__name__ for base in bases)
    if not isinstance(path, str) or not path.strip():
        raise NoSuchClass(f"expected the path of a class ({kind}), got {'null' if path is None else repr(path)}.")
    if "." not in path:
        by_name = {cls.__name__: cls for base in bases for cls in (base, *_below(base))}
        if path not in by_name:
            raise NoSuchClass(f"there is no {kind} called {path}. {nearest(path, by_name)}".strip())
        return by_name[path]
    if not all(part.isidentifier() for part in path.split(".")):
        raise NoSuchClass(f"expected the path of a class ({kind}), got {path!r}.")
    module, _, name = path.rpartition(".")
    try:
        holder = _holder(module)
    except ImportError as error:
        if memory_is_short(error):
            raise MemoryError(str(error)) from error
        raise NoSuchClass(import_hint(error)) from error
    if not hasattr(holder, name):
        hint = nearest(name, contents(module)) or module_beside(module, name)
        raise NoSuchClass(f"{module} has no {name}. {hint}".strip())
    return getattr(holder, name)


def _holder(module: str) -> Any:
    """A module, or a class that has the class inside."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        outer, _, name = module.rpartition(".")
        if error.name != module or not outer:
            raise
        holder = getattr(importlib.import_module(outer), name, None)
        if not inspect.isclass(holder):
            raise
        return holder


def _below(base: type) -> list[type]:
    direct: list[type] = type.__subclasses__(base)
    return [*direct, *(deeper for cls in direct for deeper in _below(cls))]


def conforms(thing: type, base: type) -> bool:
    """Whether a class is a subclass of `base` or has the methods of a protocol."""
    if not is_protocol(base):
        return issubclass(thing, base)
    return all(hasattr(thing, name) for name in methods_of(base))


def parameters(parser_class: Callable[..., ArgumentParser], thing: type, late: int = 0) -> dict[str, Parameter]:
    """What can stand below init_args of a class; of its arguments, the first `late` are given later, not by a yaml."""
    parser = parser_class(exit_on_error=False)
    later = list(inspect.signature(thing).parameters)[:late]
    parser.add_class_arguments(thing, fail_untyped=False, skip=set(later))
    return {
        action.dest: Parameter(type_of(action), action.required, action.default)
        for action in arguments_of(parser)
        if action.dest.split(".")[-1] != "help"
    }


def check_dict_kwargs(places: Sequence[Place]) -> None:
    """Of what stands below dict_kwargs, jsonargparse checks nothing, and an optimizer is built after all else.

    Raises:
        ConfigurationError: a class takes no such argument, and none that it does not name.
    """
    for place in places:
        *above, kind, name = place.shown.lstrip("-").split(".") if "." in place.shown else ("", "", "")
        owner = find(places, (*above, "class_path")) if kind == "dict_kwargs" else None
        if owner is None or owner.value is None:
            continue
        taken = inspect.signature(look_up(owner.value, ())).parameters
        if name not in taken and all(parameter.kind != parameter.VAR_KEYWORD for parameter in taken.values()):
            class_name = owner.value.rpartition(".")[2]
            raise ConfigurationError(f"{place}: {class_name} has no such key. {nearest(name, taken)}".strip())
