"""Which key of a configuration is wrong: every value is checked by itself, from the top down.

jsonargparse tells all the reasons why each type of a union was not met, in prose. Here each key is asked in turn
whether jsonargparse takes its value alone, and the deepest that it does not take is the wrong one.
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
from lightning_nlf.cli.given_config import OfAnotherClass
from lightning_nlf.cli.type_words import alternatives, choices, classes, element_types, in_words, value_type
from lightning_nlf.cli.valid_names import options
from lightning_nlf.private_names import arguments_of, is_protocol, type_of
from lightning_nlf.protocols import deviation

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
FEW = 6  # keys that a message lists
_LONGEST = 60  # characters of a value


@dataclass(frozen=True)
class Fault:
    """A key and what is wrong with it."""

    keys: tuple[str, ...]
    text: str
    hint: str = ""


class Examiner:
    """Looks for the wrong key of what a parser has refused.

    Args:
        parser: of a stage; it has the keys of the top level, and inner parsers are of its class.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser

    def examine(self, config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Fault | None:
        """The first fault, unknown keys before wrong values."""
        names = options(self.parser, above)
        for key in config:
            if str(key) not in names:
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
                    fault = Fault(keys, f"expected keys with values, got {shown(value)}.")
            elif action is not None:
                fault = self.argument(value, Parameter(type_of(action), False, action.default), keys)
            if fault:
                return fault
        return None

    def argument(self, value: Any, parameter: Parameter, keys: tuple[str, ...]) -> Fault | None:
        """As `value`; null stands for what was not given where that is the default, whatever the type."""
        if value is None and not parameter.required and parameter.default is None:
            return None
        return self.value(value, parameter.hint, keys)

    def value(self, value: Any, hint: Any, keys: tuple[str, ...]) -> Fault | None:
        """The deepest fault of a value that should be of a type."""
        if hint is None or (isinstance(value, str) and "${" in value):
            return None
        kinds = alternatives(hint)
        refusal = self.refusal(value, hint)
        if NoneType in kinds or object in kinds or Any in kinds if value is None else refusal is None:
            return None
        wanted = classes(kinds)
        as_class = isinstance(value, dict) or (isinstance(value, str) and (str not in kinds) and _names_class(value))
        if wanted and as_class:
            return self.instance(value, wanted, keys) or Fault(keys, _reason(refusal))
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
        return Fault(keys, f"expected {in_words(kinds)}, got {shown(value)}.", hint_at)

    def instance(self, value: Any, wanted: Sequence[tuple[type, int]], keys: tuple[str, ...]) -> Fault | None:
        """The fault of an object's class_path or of one of its arguments."""
        bases = [base for base, _ in wanted]
        spec = value if isinstance(value, dict) else {"class_path": value}
        named = (*keys, "class_path") if isinstance(value, dict) else keys
        if "class_path" not in spec:
            return self._without_class_path(spec, bases, keys)
        for key in spec:
            if key not in _OF_A_CLASS:
                hint = nearest(key, _OF_A_CLASS) or "Arguments of the class belong below init_args."
                return Fault((*keys, key), "no such key beside class_path.", hint)
        try:
            thing = look_up(spec["class_path"], bases)
        except NoSuchClass as error:
            return Fault(named, str(error))
        if not inspect.isclass(thing):
            return Fault(named, f"{spec['class_path']} is a function; a class must stand there")
        late = next((late for base, late in wanted if conforms(thing, base)), None)
        name = thing.__name__
        if late is None:
            return Fault(named, _unlike(spec["class_path"], thing, bases))
        if inspect.isabstract(thing):
            return Fault(named, f"{name} is abstract; name a class below it")
        if not isinstance(spec.get("dict_kwargs", {}), dict):
            return Fault((*keys, "dict_kwargs"), f"expected keys with values, got {shown(spec['dict_kwargs'])}.")
        fault = self._arguments(thing, late, spec.get("init_args", {}), (*keys, "init_args"), named)
        methods_alike = [base for base in bases if conforms(thing, base)]
        if fault is None and all(is_protocol(base) and deviation(thing, base) for base in methods_alike):
            return Fault(named, _unlike(spec["class_path"], thing, methods_alike))
        return fault

    def _without_class_path(self, spec: dict[str, Any], bases: Sequence[type], keys: tuple[str, ...]) -> Fault | None:
        wanted = " or ".join(base.__name__ for base in bases)
        if not any(spec.values()):
            return Fault(keys, f"expected class_path, the path of a class ({wanted}).")
        plain = [base for base in bases if not inspect.isabstract(base) and not is_protocol(base)]
        right = {*_OF_A_CLASS, *(name for base in plain for name in parameters(type(self.parser), base))}
        for key in spec:
            if key not in right and (hint := nearest(key, _OF_A_CLASS)):
                return Fault((*keys, key), "no such key.", hint)
        if plain and "init_args" not in spec:
            candidates = [base for base in plain if set(spec) <= set(parameters(type(self.parser), base))] or plain
            fault = self._arguments(candidates[0], 0, spec, keys, keys)
            if fault and fault.text.endswith("no such key.") and not fault.hint:
                return Fault(fault.keys, fault.text, "Is a class_path missing above?")
            return fault
        if spec and "init_args" not in spec:
            return Fault((*keys, next(iter(spec))), f"no such key: a {wanted} has class_path and init_args.")
        return Fault(keys, f"expected class_path, the path of a class ({wanted}).")

    def _arguments(
        self, thing: type, late: int, given: Any, keys: tuple[str, ...], named: tuple[str, ...]
    ) -> Fault | None:
        """The fault of one of the arguments, at `keys`, or at `named` that some are missing."""
        if not isinstance(given, dict):
            return Fault(keys, f"expected keys with values, got {shown(given)}.")
        taken = parameters(type(self.parser), thing, late)
        for key in given:
            if key not in taken and not isinstance(given, OfAnotherClass):
                hint = nearest(str(key), taken) or _all_of_few(taken)
                return Fault((*keys, str(key)), f"{thing.__name__} has no such key.", hint)
        for key, value in given.items():
            if key in taken and (fault := self.argument(value, taken[key], (*keys, key))):
                return fault
        missing = [name for name, parameter in taken.items() if parameter.required and name not in given]
        return Fault(named, f"{thing.__name__} needs {' and '.join(missing)}") if missing else None

    def refusal(self, value: Any, hint: Any) -> str | None:
        """What jsonargparse says to a value by itself; None if it takes it."""
        parser = type(self.parser)(exit_on_error=False, parser_mode=self.parser.parser_mode)
        parser.add_argument("--value", type=hint)
        try:
            parser.parse_object({"value": copy.deepcopy(value)})
        except (ArgumentError, TypeError, ValueError, OverflowError, IndexError) as error:
            return str(error)
        return None


def _all_of_few(names: Iterable[str]) -> str:
    """The names, where they are few enough to be read."""
    listed = sorted(names)
    return f"There are {', '.join(listed)}." if 0 < len(listed) <= FEW else ""


def _names_class(word: str) -> bool:
    return all(part.isidentifier() for part in word.split(".")) and ("." in word or word[0].isupper())


def _unlike(path: str, thing: type, bases: Sequence[type]) -> str:
    """Why a class is none of what is wanted."""
    text = f"{path} is no {' or '.join(base.__name__ for base in bases)}"
    reasons = [deviation(thing, base) for base in bases if is_protocol(base)]
    return f"{text}: {reasons[0]}" if len(bases) == 1 and reasons and reasons[0] else text


def _reason(refusal: str | None) -> str:
    lines = [line.strip(" -") for line in (refusal or "").splitlines() if line.strip(" -")]
    return lines[-1][:300] if lines else "is not accepted"


def shown(value: Any) -> str:
    """As a yaml has it, cut short."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(str(value)[:_LONGEST])
