"""Valid names of keys, classes, modules and packages, for "Did you mean …?" hints."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from lightning_nlf.cli.errors import EXTRAS, nearest
from lightning_nlf.private_names import arguments_of


def stage_parser(parser: ArgumentParser) -> ArgumentParser:
    """The subparser of the stage, such as `fit`. Its arguments are the keys of the configuration."""
    stages = [action.choices for action in arguments_of(parser) if isinstance(action.choices, dict)]
    return next(iter(stages[0].values())) if stages else parser


def options(parser: ArgumentParser, keys: Sequence[str]) -> set[str]:
    """The names that the flags of a parser have one level below `keys`."""
    prefix = "".join(f"{key}." for key in keys)
    names = [action.dest for action in arguments_of(parser) if action.dest.startswith(prefix)]
    return {name.removeprefix(prefix).split(".")[0] for name in names} - {"help", "print_config"}


def contents(module_name: str) -> set[str]:
    """Names of the classes and submodules of a module."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return set()
    inside = {info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))}
    return inside | {name for name, member in vars(module).items() if inspect.isclass(member)}


def module_beside(module: str, name: str) -> str:
    """A hint at a module with a similar name in the same package, if that module has the class `name`."""
    parent, _, last = module.rpartition(".")
    near = difflib.get_close_matches(last, sorted(contents(parent) - {last}), 1) if parent else []
    return f"Did you mean {near[0]!r}?" if near and name in contents(f"{parent}.{near[0]}") else ""


def import_hint(error: Exception) -> str:
    """The message of an import error, or how to install a missing package."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing_module(name) if name else str(error).strip() or type(error).__name__


def missing_module(name: str) -> str:
    """Message for a module that cannot be imported. It gives the extra that installs the module, or a similar name."""
    root = name.split(".")[0]
    if root in EXTRAS:
        return f"{root} is not installed. Install it with: pip install 'lightning_nlf[{EXTRAS[root]}]'"
    parent, _, last = name.rpartition(".")
    hint = nearest(last, contents(parent)) if parent else nearest(name, ("lightning_nlf", "data_modules", "torch"))
    return f"the module {name} does not exist. {hint}".strip()
