"""Look up the class of a `class_path`, and the arguments that the class accepts."""

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
    """No class exists at a class_path. The message gives the reason, and suggests a similar name."""


@dataclass(frozen=True)
class Parameter:
    """Type hint and default of one argument of a class."""

    hint: Any  # None if any value is accepted
    required: bool
    default: Any = None


def look_up(path: Any, bases: Sequence[type]) -> Any:
    """Import the object at a class_path.

    The object can be a function, for example, so the caller checks that it is a class.

    `path` is a dotted path, or just the name of one of `bases` or of one of their subclasses.

    Raises:
        NoSuchClass: The module or the name does not exist.
        MemoryError: The module could not be imported because memory ran out.
    """
    kind = " or ".join(base.__name__ for base in bases)
    if not isinstance(path, str) or not path.strip():
        raise NoSuchClass(
            f"expected the import path of a class ({kind}), got {'null' if path is None else repr(path)}."
        )
    if "." not in path:
        by_name = {cls.__name__: cls for base in bases for cls in (base, *_below(base))}
        if path not in by_name:
            raise NoSuchClass(f"no {kind} is called {path}. {nearest(path, by_name)}".strip())
        return by_name[path]
    if not all(part.isidentifier() for part in path.split(".")):
        raise NoSuchClass(f"expected the import path of a class ({kind}), got {path!r}.")
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
    """The module at a dotted path.

    If the requested class is nested in another class, the outer class at this path.
    """
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


def conforms(cls: type, base: type) -> bool:
    """Whether a class is a subclass of `base` or, if `base` is a protocol, has its methods."""
    if not is_protocol(base):
        return issubclass(cls, base)
    return all(hasattr(cls, name) for name in methods_of(base))


def parameters(parser_class: Callable[..., ArgumentParser], cls: type, late: int = 0) -> dict[str, Parameter]:
    """The keys that `init_args` of a class may have.

    Args:
        late: Number of leading arguments to leave out, because the code passes them later (such as an optimizer's
            parameters).
    """
    parser = parser_class(exit_on_error=False)
    later = list(inspect.signature(cls).parameters)[:late]
    parser.add_class_arguments(cls, fail_untyped=False, skip=set(later))
    return {
        action.dest: Parameter(type_of(action), action.required, action.default)
        for action in arguments_of(parser)
        if action.dest.split(".")[-1] != "help"
    }


def check_dict_kwargs(places: Sequence[Place]) -> None:
    """Check the keys below every `dict_kwargs` against the signature of its class.

    jsonargparse does not check these keys, and an optimizer would fail only after everything else is built.

    Raises:
        ConfigurationError: A class does not accept a key and has no `**kwargs`.
    """
    for place in places:
        *above, kind, name = place.name.lstrip("-").split(".") if "." in place.name else ("", "", "")
        owner = find(places, (*above, "class_path")) if kind == "dict_kwargs" else None
        if owner is None or owner.value is None:
            continue
        accepted = inspect.signature(look_up(owner.value, ())).parameters
        if name not in accepted and all(parameter.kind != parameter.VAR_KEYWORD for parameter in accepted.values()):
            class_name = owner.value.rpartition(".")[2]
            raise ConfigurationError(f"{place}: {class_name} has no such key. {nearest(name, accepted)}".strip())
