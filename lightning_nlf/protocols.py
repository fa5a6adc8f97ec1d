"""Explain why a user's class does not implement a protocol that is the type of an argument."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from lightning_nlf.private_names import is_protocol

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def methods_of(protocol: type) -> list[str]:
    """Names of the public methods of a protocol, in the order of their definitions."""
    names = [name for cls in reversed(protocol.__mro__) if is_protocol(cls) for name in vars(cls)]
    return [name for name in dict.fromkeys(names) if inspect.isfunction(getattr(protocol, name)) and name[0] != "_"]


def deviation(cls: type, protocol: type) -> str | None:
    """Explain why a class does not implement a protocol, in a sentence about "it". None if no deviation is found.

    jsonargparse requires all methods of the protocol, with the same parameters and the same annotations.
    """
    names = methods_of(protocol)
    if absent := [f"`{name}`" for name in names if not hasattr(cls, name)]:
        return f"it has no method{'s' * (len(absent) > 1)} {', '.join(absent)}"
    for name in names:
        signature, required = _signature(cls, name), _signature(protocol, name)
        if signature is None or required is None:
            return f"its attribute `{name}` must be a method"
        if not _accepts(signature, required):
            return f"its method `{name}` has parameters {_bare(signature)}, but needs {_bare(required)}"
    if wrong := [name for name in names if not _hints(protocol, name).items() <= _hints(cls, name).items()]:
        definitions = "; ".join(f"def {name}{_as_written(protocol, name)}" for name in wrong)
        return f"it needs the annotations of {protocol.__module__}: {definitions}"
    return None


def refuse_incomplete(class_type: type, arguments: Mapping[str, Any]) -> None:
    """Check the attributes of protocols, such as `turns` of a task, because jsonargparse checks only methods.

    Args:
        arguments: Arguments of a constructor, by name.

    Raises:
        ValueError: An argument has all methods of a protocol, but lacks one of its attributes.
    """
    hints = _of_arguments(class_type)
    for name, value in arguments.items():
        for protocol in _protocols(hints.get(name)):
            members = {
                member for cls in protocol.__mro__ if is_protocol(cls) for member in inspect.get_annotations(cls)
            }
            absent = sorted(member for member in members if not hasattr(value, member))
            if absent and all(hasattr(value, method) for method in methods_of(protocol)):
                kind = f"{type(value).__name__} is not a {protocol.__name__}"
                raise ValueError(f"{name}: {kind}: it has no attribute `{absent[0]}`")


def _of_arguments(class_type: type) -> dict[str, Any]:
    """Type hints of the arguments of a constructor and of the constructors of its base classes."""
    hints: dict[str, Any] = {}
    for cls in reversed(class_type.__mro__):
        constructor = vars(cls).get("__init__")
        if inspect.isfunction(constructor):
            try:
                hints |= get_type_hints(constructor)
            except (NameError, TypeError):  # a package may import the names in its hints only for type checking
                continue
    return hints


def _protocols(hint: Any) -> Iterator[type]:
    """The protocols in a type hint or union."""
    for kind in get_args(hint) or (hint,):
        if inspect.isclass(kind) and is_protocol(kind):
            yield kind


def _signature(cls: type, name: str) -> inspect.Signature | None:
    """Signature of the method `name`; None if `name` is not a function."""
    member = inspect.getattr_static(cls, name)
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    return inspect.signature(function) if inspect.isfunction(function) else None


def _accepts(signature: inspect.Signature, required: inspect.Signature) -> bool:
    """Whether a method can be called like the method of the protocol. Ignores annotations."""
    parameters = signature.parameters.values()
    if sum(parameter.kind in _VARIADIC for parameter in parameters) == len(_VARIADIC):
        return True
    names = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    return set(names) <= set(required.parameters) and list(required.parameters) == [
        parameter.name for parameter in parameters if parameter.name in required.parameters
    ]


def _bare(signature: inspect.Signature) -> str:
    """A signature as text, without annotations."""
    empty = inspect.Parameter.empty
    parameters = [parameter.replace(annotation=empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=empty))


def _hints(cls: type, name: str) -> dict[str, Any]:
    """Annotations of the method `name`; {} if they cannot be resolved."""
    try:
        return get_type_hints(getattr(cls, name))
    except (NameError, TypeError):
        return {}


class _Word(str):
    """An annotation that is printed without quotes."""

    __repr__ = str.__str__


def _as_written(protocol: type, name: str) -> str:
    """Signature of a method of a protocol, with annotations as in its source file."""

    def word(annotation: Any) -> Any:
        return _Word(annotation) if isinstance(annotation, str) else annotation

    signature = inspect.signature(getattr(protocol, name))
    parameters = [
        parameter.replace(annotation=word(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=word(signature.return_annotation)))
