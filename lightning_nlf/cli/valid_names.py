"""The names that a mistake could have meant: keys, classes, modules, packages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from lightning_nlf.cli.errors import EXTRAS, nearest
from lightning_nlf.private_names import arguments_of


def of_the_stage(parser: ArgumentParser) -> ArgumentParser:
    """The parser of `fit` and so on, which has the keys."""
    stages = [action.choices for action in arguments_of(parser) if isinstance(action.choices, dict)]
    return next(iter(stages[0].values())) if stages else parser


def options(parser: ArgumentParser, keys: Sequence[str]) -> set[str]:
    """The keys below `keys` that are flags."""
    prefix = "".join(f"{key}." for key in keys)
    names = [action.dest for action in arguments_of(parser) if action.dest.startswith(prefix)]
    return {name.removeprefix(prefix).split(".")[0] for name in names} - {"help", "print_config"}


def contents(module_name: str) -> set[str]:
    """Classes of a module, and the modules in it."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return set()
    inside = {info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))}
    return inside | {name for name, thing in vars(module).items() if inspect.isclass(thing)}


def module_beside(module: str, name: str) -> str:
    """A hint at the module of nearly that name which has the class."""
    parent, _, last = module.rpartition(".")
    near = difflib.get_close_matches(last, sorted(contents(parent) - {last}), 1) if parent else []
    return f"Did you mean {near[0]!r}?" if near and name in contents(f"{parent}.{near[0]}") else ""


def import_hint(error: Exception) -> str:
    """The message; for a package that is missing, what it comes with."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing_module(name) if name else str(error).strip() or type(error).__name__


def missing_module(name: str) -> str:
    """What to do about a package that cannot be imported."""
    root = name.split(".")[0]
    if root in EXTRAS:
        return f"{root} is not installed. It comes with: pip install 'lightning_nlf[{EXTRAS[root]}]'"
    parent, _, last = name.rpartition(".")
    hint = nearest(last, contents(parent)) if parent else nearest(name, ("lightning_nlf", "data_modules", "torch"))
    return f"there is no module {name}. {hint}".strip()
