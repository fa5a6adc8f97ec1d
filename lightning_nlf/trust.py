"""Restrict the classes that a checkpoint may load: our classes, torch's, and classes of packages that the user trusts.

A checkpoint may come from an untrusted source, so the caller decides which packages the checkpoint may import.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from torch import nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_nlf.private_names import imports_only

OURS = ("lightning_nlf", "data_modules")
TORCH = ("torch.nn", "torch.distributions", "torch.optim", "lightning.pytorch.cli.ReduceLROnPlateau")
_NO_REASON = ("Subtypes:", "Given value", "Errors:", "Problem with given", "Does not validate", "Expected a path but")
_KINDS = (nn.Module, Distribution, Optimizer, LRScheduler)  # building one has no side effects

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


class FunctionNamed(ImportError):
    """A `class_path` names a function. The function would be called while the file is read."""

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        super().__init__(f"{getattr(function, '__module__', '')}.{name} is a function; class_path must name a class")


@contextmanager
def trusting(packages: Sequence[str] | None) -> Iterator[None]:
    """Context manager in which checkpoints may also load classes of `packages`.

    Raises:
        ValueError: `packages` is not a list of names such as `mypkg` or `mypkg.networks`.
    """
    packages = [] if packages is None else packages
    if isinstance(packages, str) or not all(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) for name in packages):
        raise ValueError(f"trust: expected a list of packages such as [mypkg], got {packages!r}")
    token = _trusted.set((*_trusted.get(), *packages))
    try:
        yield
    finally:
        _trusted.reset(token)


class CheckpointParser(ArgumentParser):
    """Parser of the networks and knobs in a checkpoint. It imports only allowed packages, and calls no function."""

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        raise FunctionNamed(function)

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        module = class_type.__module__
        # Code can name a class of any package at this point, but a file cannot.
        checked = _below(module, (*OURS, *TORCH)) and not _below(module, _trusted.get())
        if checked and not (issubclass(class_type, _KINDS) or is_dataclass(class_type)):
            raise ImportError(f"{class_type.__name__} is not a network, schedule or optimizer")
        return super().add_class_arguments(class_type, *args, **kwargs)

    def parse_trusted(self, content: Mapping[str, Any]) -> Namespace:
        """Parse the content of a checkpoint and look up its classes.

        Raises:
            ValueError: The content names a class that is not allowed, a function, or an unknown class or parameter.
        """
        with imports_only((*OURS, *TORCH, *_trusted.get())):
            try:
                return self.parse_object(dict(content))
            except (ArgumentError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(_in_one_line(str(error))) from error

    def build(self, config: Namespace) -> Namespace:
        """Build the objects from the content that `parse_trusted` has parsed."""
        with imports_only((*OURS, *TORCH, *_trusted.get())):
            return self.instantiate_classes(config)


def may_be_named(spec: Any) -> bool:
    """Whether a checkpoint may load this optimizer or scheduler, because its package is torch, ours or trusted."""
    path = spec.get("class_path") if isinstance(spec, Mapping) else spec
    return path is None or isinstance(path, str) and _below(path, (*TORCH, *OURS, *_trusted.get()))


def refusal(name: str) -> str:
    """The error message for a class that a checkpoint may not load."""
    root = name.split(".")[0]
    if root in sys.stdlib_module_names:  # the standard library has no networks, so the file is malicious
        return f"it names {name}, which was not loaded; do not trust this file"
    return (
        f"it names {name}, which was not loaded. If you trust that package, load with trust=[{root!r}] or "
        f"--trust {root}"
    )


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _in_one_line(message: str) -> str:
    """Reduce a message of jsonargparse, a tree of reasons, to the deepest reason and its key."""
    if match := re.search(r"Importing '([^']+)' is not allowed", message):
        return refusal(match[1])
    if match := re.search(r"[\w.]+ is a function; class_path must name a class|\w+ is not a network, [\w ]+", message):
        return f"it names an object that is not allowed: {match[0]}"
    if match := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", message):
        return f"it is of {match[1].rpartition('.')[2]}, which is not a {match[2]}"
    keys: list[tuple[int, str]] = []  # indentation and name of the keys above a line
    deepest, reason = -1, "it cannot be read"
    for line in message.splitlines():
        text = line.lstrip(" -")
        indent = len(line) - len(text)
        keys = [key for key in keys if key[0] < indent]
        if match := re.fullmatch(r'Parser key "([^"]+)":', text):
            keys.append((indent, match[1]))
        elif indent > deepest and text and not text.startswith(_NO_REASON):
            above = ".".join(name for _, name in keys[1:])  # the first key is the parser's name of the module
            deepest, reason = indent, f"{above}: {text}" if above else text
    reason = re.sub(r"Type .+ expects a function or a callable class: |\.\.? Got value: Namespace.*", "", reason)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)[:300]
