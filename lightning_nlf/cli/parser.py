"""Parser of a configuration, with one-line errors and stricter checks than jsonargparse."""

from __future__ import annotations

import contextlib
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args

from lightning_nlf.cli import messages, shorthand, values
from lightning_nlf.cli.errors import OUT_OF_MEMORY, ConfigurationError, RunFailure, memory_is_short
from lightning_nlf.cli.yaml_places import Place
from lightning_nlf.construction import surfacing
from lightning_nlf.private_names import CheckedParser, arguments_of, lenient, type_of
from lightning_nlf.trust import FunctionNamed

values.keep_text_that_looks_like_numbers()


class Parser(CheckedParser):
    """jsonargparse parser that raises a one-line ConfigurationError instead of printing its usage and exiting."""

    places: Sequence[Place] = ()
    words: Sequence[str] = ()  # arguments of the command line
    folder: str = "."  # working folder of the command

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse made this parser for one class, and collects its errors
            super().error(message, ex)
        if ex is not None and memory_is_short(ex):
            raise RunFailure(OUT_OF_MEMORY) from ex
        with contextlib.chdir(self.folder):  # jsonargparse changes to the folder of the yaml that it reads
            text = messages.translate(message, self, self.places, self.words)
        raise ConfigurationError(text) from ex

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a function as `class_path`, because jsonargparse would call the function while it reads the yaml."""
        raise FunctionNamed(function)

    def add_class_arguments(
        self, class_type: Any, nested_key: str | None = None, *args: Any, **kwargs: Any
    ) -> list[str]:
        added = super().add_class_arguments(class_type, nested_key, *args, **kwargs)
        if isinstance(class_type, type):
            values.narrow(class_type, f"{nested_key}." if nested_key else "", arguments_of(self))
        return added

    def check_value(self, action: Action, value: Any, check: Callable[[Any], Any]) -> Any:
        """Check a value as jsonargparse does, but also check null, and refuse an empty mapping for a class.

        The arguments of classes have two exceptions. A value with a `${…}`, which is resolved only later, is kept if
        another class replaces the first class. The word None counts as null if null is accepted, because jsonargparse
        turns the null in `--model.policy.weights null` into this word.
        """
        values.refuse_empty_class(action, value)
        value = shorthand.in_full(value, type_of(action))
        try:
            return self._checked(action, value, check)
        except TypeError:  # for arguments alone, no class is known yet
            full = shorthand.with_class(value, shorthand.bases_of(type_of(action)))
            if full is None:
                raise
        return self._checked(action, full, check)

    def _checked(self, action: Action, value: Any, check: Callable[[Any], Any]) -> Any:
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
        with lenient(True):  # fully checked when the `${…}` is resolved
            return check(value)


def build(
    config: Mapping[str, Any], bases: Mapping[str, type], instantiators: Mapping[type, Callable[..., Any]] | None = None
) -> dict[str, Any]:
    """Build parts of a configuration as a run would, in the order of `bases`.

    Args:
        bases: Base class of each part, by the part's key.
        instantiators: Functions that create the objects of a class and its subclasses, instead of the class itself.
    """
    parser = Parser(exit_on_error=False)
    for key, base in bases.items():
        parser.add_subclass_arguments(base, key, fail_untyped=False, required=True)
    for base, instantiate in (instantiators or {}).items():
        parser.add_instantiator(surfacing(instantiate), base)
    parser.add_instantiator(surfacing(), object)
    built = parser.instantiate_classes(parser.parse_object({key: config[key] for key in bases}))
    return {key: built[key] for key in bases}
