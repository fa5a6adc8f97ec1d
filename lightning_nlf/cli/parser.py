"""The parser of a configuration: mistakes are one sentence, and a null is checked as any value is."""

from __future__ import annotations

import contextlib
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args

from lightning_nlf.cli import messages, values
from lightning_nlf.cli.errors import OUT_OF_MEMORY, ConfigurationError, RunFailure, memory_is_short
from lightning_nlf.cli.yaml_places import Place
from lightning_nlf.construction import surfacing
from lightning_nlf.private_names import CheckedParser, arguments_of, lenient, type_of
from lightning_nlf.trust import FunctionNamed

values.read_as_written()


class Parser(CheckedParser):
    """Raises ConfigurationError with one sentence, instead of printing its usage and exiting."""

    places: Sequence[Place] = ()
    words: Sequence[str] = ()  # of the command line
    folder: str = "."  # in which the command was given

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # one that jsonargparse made for a class, and whose errors it collects
            super().error(message, ex)
        if ex is not None and memory_is_short(ex):
            raise RunFailure(OUT_OF_MEMORY) from ex
        with contextlib.chdir(self.folder):  # jsonargparse is in the yaml's own while it reads one
            text = messages.translate(message, self, self.places, self.words)
        raise ConfigurationError(text) from ex

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        """A function by `class_path` would be called while the yaml is read: an optimizer is none before training."""
        raise FunctionNamed(function)

    def add_class_arguments(
        self, class_type: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        added = super().add_class_arguments(class_type, nested_key, *args, **kwargs)
        if isinstance(class_type, type):
            values.narrow(class_type, f"{nested_key}." if nested_key else "", arguments_of(self))
        return added

    def check_value(self, action: Action, value: Any, check: Callable[[Any], Any]) -> Any:
        """As jsonargparse, but a null is checked as any value is, and an empty mapping is no class.

        For the arguments of classes: one with a `${…}`, which is resolved only later, is kept when another class takes
        the place. And the word None is null where null is accepted: as that, jsonargparse hands on the null of
        `--model.policy.weights null`.
        """
        values.refuse_nothing(action, value)
        # Without a default, null means that the argument was not given.
        if value is None and action.default is not None and type_of(action) is not None:
            with lenient(False):
                return check(value)
        if self.exit_on_error:
            return check(value)
        if value == "None" and type(None) in get_args(type_of(action)):
            value = None
        if "${" not in str(value):
            return check(value)
        with lenient(True):  # it is checked in full once it is resolved
            return check(value)


def build(
    config: Mapping[str, Any], bases: Mapping[str, type], instantiators: Mapping[type, Callable[..., Any]] | None = None
) -> dict[str, Any]:
    """Parts of a configuration, built as those of a run are, in the order of `bases`.

    Args:
        bases: what the class of each part inherits from.
        instantiators: what makes the objects of these classes and their children, where it is not the class itself.
    """
    parser = Parser(exit_on_error=False)
    for key, base in bases.items():
        parser.add_subclass_arguments(base, key, fail_untyped=False, required=True)
    for base, instantiate in (instantiators or {}).items():
        parser.add_instantiator(surfacing(instantiate), base)
    parser.add_instantiator(surfacing(), object)
    built = parser.instantiate_classes(parser.parse_object({key: config[key] for key in bases}))
    return {key: built[key] for key in bases}
