"""Find the wrong key of a configuration, by checking every value separately, from the top down.

The message of jsonargparse lists why each type of a union failed, and does not name one key. In this module,
jsonargparse checks the value of one key at a time. The wrong key is the deepest key whose value is refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightning_nlf.cli.class_lookup import NoSuchClass, Parameter, conforms, look_up, parameters
from lightning_nlf.cli.errors import nearest
from lightning_nlf.cli.given_config import OldClassArguments
from lightning_nlf.cli.shorthand import is_path, left_out, with_class
from lightning_nlf.cli.type_words import alternatives, article, choices, classes, element_types, in_words, value_type
from lightning_nlf.cli.valid_names import options
from lightning_nlf.private_names import arguments_of, is_protocol, type_of
from lightning_nlf.protocols import deviation

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
FEW = 6  # a message lists at most this many keys
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class Fault:
    """A wrong key, the message about it, and a hint."""

    keys: tuple[str, ...]
    text: str
    hint: str = ""


class Examiner:
    """Finds the wrong key of a configuration that a parser refused.

    Args:
        parser: Parser of a stage, which has the top-level keys. Parsers for nested classes are of the same class as
            this parser.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser

    def examine(self, config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Fault | None:
        """Find the first fault. Unknown keys come before wrong values."""
        names = options(self.parser, above)
        for key in config:
            if str(key).removesuffix("+") not in names:  # `callbacks+` appends to a list
                return Fault((*above, str(key)), "no such key.", nearest(str(key), names))
        actions = {action.dest: action for action in arguments_of(self.parser)}
        for key, value in config.items():
            keys = (*above, str(key))
            action = actions.get(".".join(keys))
            fault = None
            if options(self.parser, keys):  # trainer
                if isinstance(value, dict):
                    fault = self.examine(value, keys)
                elif value is not None:
                    fault = Fault(keys, f"expected keys with values, got {as_yaml(value)}.")
            elif action is not None:
                fault = self.argument(value, Parameter(type_of(action), False, action.default), keys)
            if fault:
                return fault
        return None

    def argument(self, value: Any, parameter: Parameter, keys: tuple[str, ...]) -> Fault | None:
        """Like `value`, but accepts null for an argument whose default is null, whatever its type."""
        if value is None and not parameter.required and parameter.default is None:
            return None
        return self.value(value, parameter.hint, keys)

    def value(self, value: Any, hint: Any, keys: tuple[str, ...]) -> Fault | None:
        """Find the deepest fault in a value with this type hint."""
        if hint is None or (isinstance(value, str) and "${" in value):
            return None
        kinds = alternatives(hint)
        refusal = self.refusal(value, hint)
        if NoneType in kinds or object in kinds or Any in kinds if value is None else refusal is None:
            return None
        expected = classes(kinds)
        as_class = isinstance(value, dict) or (isinstance(value, str) and (str not in kinds) and _names_class(value))
        if expected and as_class:
            return self.instance(value, expected, keys) or Fault(keys, _reason(refusal))
        if isinstance(value, list) and (inner := element_types(kinds, len(value))):
            for index, (entry, kind) in enumerate(zip(value, inner, strict=True)):
                if fault := self.value(entry, kind, (*keys, str(index))):
                    deeper = len(fault.keys) > len(keys) + 1
                    return fault if deeper else Fault(keys, f"entry {index + 1}: {fault.text}", fault.hint)
        if isinstance(value, dict) and (kind := value_type(kinds)):
            for key, entry in value.items():
                if fault := self.value(entry, kind, (*keys, str(key))):
                    return fault
        hint_at = nearest(str(value), choices(kinds)) if isinstance(value, str) else ""
        return Fault(keys, f"expected {in_words(kinds)}, got {as_yaml(value)}.", hint_at)

    def instance(self, value: Any, expected: Sequence[tuple[type, int]], keys: tuple[str, ...]) -> Fault | None:
        """Find the fault in an object's class_path or in one of its arguments."""
        bases = [base for base, _ in expected]
        spec = (with_class(value, bases) or value) if isinstance(value, dict) else {"class_path": value}
        class_keys = (*keys, "class_path") if isinstance(value, dict) else keys
        if "class_path" not in spec:
            return self._without_class_path(spec, bases, keys)
        for key in spec:
            if key not in _OF_A_CLASS:
                hint = nearest(key, _OF_A_CLASS) or "Put arguments of the class below init_args."
                return Fault((*keys, key), "no such key beside class_path.", hint)
        path = spec["class_path"]
        try:
            cls = look_up((left_out(bases) or path) if is_path(path) else path, bases)
        except NoSuchClass as error:
            return Fault(class_keys, str(error))
        if not inspect.isclass(cls):
            return Fault(class_keys, f"{spec['class_path']} is a function; give a class")
        late = next((late for base, late in expected if conforms(cls, base)), None)
        name = cls.__name__
        if late is None:
            return Fault(class_keys, _unlike(spec["class_path"], cls, bases))
        if inspect.isabstract(cls):
            return Fault(class_keys, f"{name} is abstract; give a subclass of it")
        if not isinstance(spec.get("dict_kwargs", {}), dict):
            return Fault((*keys, "dict_kwargs"), f"expected keys with values, got {as_yaml(spec['dict_kwargs'])}.")
        fault = self._arguments(cls, late, spec.get("init_args", {}), (*keys, "init_args"), class_keys)
        methods_alike = [base for base in bases if conforms(cls, base)]
        if fault is None and all(is_protocol(base) and deviation(cls, base) for base in methods_alike):
            return Fault(class_keys, _unlike(spec["class_path"], cls, methods_alike))
        return fault

    def _without_class_path(self, spec: dict[str, Any], bases: Sequence[type], keys: tuple[str, ...]) -> Fault | None:
        expected = " or ".join(base.__name__ for base in bases)
        if not any(spec.values()):
            return Fault(keys, f"expected class_path, the import path of a class ({expected}).")
        plain = [base for base in bases if not inspect.isabstract(base) and not is_protocol(base)]
        right = {*_OF_A_CLASS, *(name for base in plain for name in parameters(type(self.parser), base))}
        for key in spec:
            if key not in right and (hint := nearest(key, _OF_A_CLASS)):
                return Fault((*keys, key), "no such key.", hint)
        if plain and "init_args" not in spec:
            candidates = [base for base in plain if set(spec) <= set(parameters(type(self.parser), base))] or plain
            fault = self._arguments(candidates[0], 0, spec, keys, keys)
            if fault and fault.text.endswith("no such key.") and not fault.hint:
                return Fault(fault.keys, fault.text, "Is the class_path above it missing?")
            return fault
        if spec and "init_args" not in spec:
            return Fault((*keys, next(iter(spec))), f"no such key: a {expected} has class_path and init_args.")
        return Fault(keys, f"expected class_path, the import path of a class ({expected}).")

    def _arguments(
        self, cls: type, late: int, arguments: Any, keys: tuple[str, ...], class_keys: tuple[str, ...]
    ) -> Fault | None:
        """Find the fault in one argument, reported at `keys`.

        Missing required arguments are reported at `class_keys`.
        """
        if not isinstance(arguments, dict):
            return Fault(keys, f"expected keys with values, got {as_yaml(arguments)}.")
        accepted = parameters(type(self.parser), cls, late)
        for key in arguments:
            if key not in accepted and not isinstance(arguments, OldClassArguments):
                hint = nearest(str(key), accepted) or _all_of_few(accepted)
                return Fault((*keys, str(key)), f"{cls.__name__} has no such key.", hint)
        for key, value in arguments.items():
            if key in accepted and (fault := self.argument(value, accepted[key], (*keys, key))):
                return fault
        missing = [name for name, parameter in accepted.items() if parameter.required and name not in arguments]
        return Fault(class_keys, f"{cls.__name__} needs {' and '.join(missing)}") if missing else None

    def refusal(self, value: Any, hint: Any) -> str | None:
        """The message with which jsonargparse refuses a single value; None if it accepts it."""
        parser = type(self.parser)(exit_on_error=False, parser_mode=self.parser.parser_mode)
        parser.add_argument("--value", type=hint)
        try:
            parser.parse_object({"value": copy.deepcopy(value)})
        except (ArgumentError, TypeError, ValueError, OverflowError, IndexError) as error:
            return str(error)
        return None


def _all_of_few(names: Iterable[str]) -> str:
    """A hint with all valid names, if there are at most FEW."""
    listed = sorted(names)
    return f"Valid keys: {', '.join(listed)}." if 0 < len(listed) <= FEW else ""


def _names_class(word: str) -> bool:
    return all(part.isidentifier() for part in word.split(".")) and ("." in word or word[0].isupper())


def _unlike(path: str, cls: type, bases: Sequence[type]) -> str:
    """Message for a class that is not one of the expected bases, with the reason for a protocol."""
    text = f"{path} is not {' or '.join(article(base.__name__) for base in bases)}"
    reasons = [deviation(cls, base) for base in bases if is_protocol(base)]
    return f"{text}: {reasons[0]}" if len(bases) == 1 and reasons and reasons[0] else text


def _reason(refusal: str | None) -> str:
    lines = [line.strip(" -") for line in (refusal or "").splitlines() if line.strip(" -")]
    return lines[-1][:300] if lines else "is not accepted"


def as_yaml(value: Any) -> str:
    """A value as it would be written in a yaml, shortened for a message."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(str(value)[:_LONGEST])
