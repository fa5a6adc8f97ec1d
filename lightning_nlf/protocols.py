"""Protocols as types of arguments: what a class of one's own lacks, or writes otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from lightning_nlf.private_names import is_protocol

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def methods_of(protocol: type) -> list[str]:
    """Names of the public methods that a protocol asks for, in the order in which they are written."""
    written = [name for cls in reversed(protocol.__mro__) if is_protocol(cls) for name in vars(cls)]
    return [name for name in dict.fromkeys(written) if inspect.isfunction(getattr(protocol, name)) and name[0] != "_"]


def deviation(thing: type, protocol: type) -> str | None:
    """Why a class does not fit a protocol, as a sentence about "it"; None where no reason is known.

    jsonargparse wants the methods of a protocol under the same parameters with the same annotations.
    """
    names = methods_of(protocol)
    if absent := [f"`{name}`" for name in names if not hasattr(thing, name)]:
        return f"it has no member{'s' * (len(absent) > 1)} {', '.join(absent)}"
    for name in names:
        given, wanted = _signature(thing, name), _signature(protocol, name)
        if given is None or wanted is None:
            return f"its member `{name}` must be a method"
        if not _accepts(given, wanted):
            return f"its method `{name}` takes {_bare(given)}, and must take {_bare(wanted)}"
    if wrong := [name for name in names if not _hints(protocol, name).items() <= _hints(thing, name).items()]:
        written = "; ".join(f"def {name}{_as_written(protocol, name)}" for name in wrong)
        return f"it needs these annotations, as in {protocol.__module__}: {written}"
    return None


def refuse_incomplete(class_type: type, given: Mapping[str, Any]) -> None:
    """Check attributes, such as `turns` of a task: jsonargparse looks at methods alone.

    Args: given: arguments of a constructor, by name.
    Raises:
        ValueError: an argument has the methods of a protocol, and lacks one of its attributes.
    """
    hints = _of_arguments(class_type)
    for name, value in given.items():
        for protocol in _protocols(hints.get(name)):
            members = {
                member for cls in protocol.__mro__ if is_protocol(cls) for member in inspect.get_annotations(cls)
            }
            absent = sorted(member for member in members if not hasattr(value, member))
            if absent and all(hasattr(value, method) for method in methods_of(protocol)):
                kind = f"{type(value).__name__} is no {protocol.__name__}"
                raise ValueError(f"{name}: {kind}: it has no member `{absent[0]}`")


def _of_arguments(class_type: type) -> dict[str, Any]:
    """Type hints of the arguments of a constructor, and of those above it that get the rest."""
    hints: dict[str, Any] = {}
    for cls in reversed(class_type.__mro__):
        constructor = vars(cls).get("__init__")
        if inspect.isfunction(constructor):
            try:
                hints |= get_type_hints(constructor)
            except (NameError, TypeError):  # of a package that hides what its hints are made of
                continue
    return hints


def _protocols(hint: Any) -> Iterator[type]:
    """The protocols in a type or a union."""
    for kind in get_args(hint) or (hint,):
        if inspect.isclass(kind) and is_protocol(kind):
            yield kind


def _signature(thing: type, name: str) -> inspect.Signature | None:
    """Of a method; None of what is no function."""
    member = inspect.getattr_static(thing, name)
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    return inspect.signature(function) if inspect.isfunction(function) else None


def _accepts(given: inspect.Signature, wanted: inspect.Signature) -> bool:
    """Whether a method can be called as the protocol's is; annotations aside."""
    parameters = given.parameters.values()
    if sum(parameter.kind in _VARIADIC for parameter in parameters) == len(_VARIADIC):
        return True
    names = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    return set(names) <= set(wanted.parameters) and list(wanted.parameters) == [
        parameter.name for parameter in parameters if parameter.name in wanted.parameters
    ]


def _bare(signature: inspect.Signature) -> str:
    """Without annotations."""
    empty = inspect.Parameter.empty
    parameters = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=empty))


def _hints(thing: type, name: str) -> dict[str, Any]:
    """Annotations of a method; none where they cannot be read."""
    try:
        return get_type_hints(getattr(thing, name))
    except (NameError, TypeError):
        return {}


class _Word(str):
    """An annotation that is shown without quotes."""

    __repr__ = str.__str__


def _as_written(protocol: type, name: str) -> str:
    """The signature of a method with its annotations as the protocol's file has them."""

    def word(annotation: Any) -> Any:
        return _Word(annotation) if isinstance(annotation, str) else annotation

    signature = inspect.signature(getattr(protocol, name))
    parameters = [each.replace(annotation=word(each.annotation)) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=word(signature.return_annotation)))
