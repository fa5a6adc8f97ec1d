"""Classes that a checkpoint may name: this project's, torch's networks, and those of packages that the caller trusts.

A checkpoint may come from somebody else. The caller decides what it may import; the file does not.
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
_KINDS = (nn.Module, Distribution, Optimizer, LRScheduler)  # nothing happens where one is built

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


class FunctionNamed(ImportError):
    """A `class_path` names a function, which would be called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        super().__init__(f"{getattr(function, '__module__', '')}.{name} is a function: class_path must name a class")


@contextmanager
def trusting(packages: Sequence[str] | None) -> Iterator[None]:
    """Inside, checkpoints may name classes of `packages` as well.

    Raises:
        ValueError: they are no list of names such as `mypkg` or `mypkg.networks`.
    """
    packages = [] if packages is None else packages
    if isinstance(packages, str) or not all(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) for name in packages):
        raise ValueError(f"trust: a list of packages, such as [mypkg]; got {packages!r}")
    token = _trusted.set((*_trusted.get(), *packages))
    try:
        yield
    finally:
        _trusted.reset(token)


class CheckpointParser(ArgumentParser):
    """Reads the networks and knobs that a checkpoint names. Imports no more than it may name, and calls no function."""

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        raise FunctionNamed(function)

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        module = class_type.__module__
        # A class elsewhere is one that code names: the file cannot.
        checked = _below(module, (*OURS, *TORCH)) and not _below(module, _trusted.get())
        if checked and not (issubclass(class_type, _KINDS) or is_dataclass(class_type)):
            raise ImportError(f"{class_type.__name__} is no network, schedule or optimizer")
        return super().add_class_arguments(class_type, *args, **kwargs)

    def parse_trusted(self, content: Mapping[str, Any]) -> Namespace:
        """The content with its classes found.

        Raises:
            ValueError: it names a class that it may not, a function, or a class or parameter that there is not.
        """
        with imports_only((*OURS, *TORCH, *_trusted.get())):
            try:
                return self.parse_object(dict(content))
            except (ArgumentError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(_in_one_line(str(error))) from error

    def build(self, config: Namespace) -> Namespace:
        """The content with its classes built."""
        with imports_only((*OURS, *TORCH, *_trusted.get())):
            return self.instantiate_classes(config)


def may_be_named(spec: Any) -> bool:
    """Whether an optimizer or scheduler, as a checkpoint describes it, is torch's or trusted."""
    path = spec.get("class_path") if isinstance(spec, Mapping) else spec
    return path is None or isinstance(path, str) and _below(path, (*TORCH, *OURS, *_trusted.get()))


def refusal(name: str) -> str:
    """What to say of a class that may not be named."""
    root = name.split(".")[0]
    if root in sys.stdlib_module_names:  # no network is there: the file was made to do harm
        return f"it names {name}, which is not run; do not trust this file"
    return (
        f"it names {name}, which is not run: if you trust that package, load with trust=[{root!r}], or --trust {root}"
    )


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _in_one_line(message: str) -> str:
    """The deepest reason in jsonargparse's tree of reasons, and the key that it is of."""
    if match := re.search(r"Importing '([^']+)' is not allowed", message):
        return refusal(match[1])
    if match := re.search(r"[\w.]+ is a function: class_path must name a class|\w+ is no network, [\w ]+", message):
        return f"it names what it may not: {match[0]}"
    if match := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", message):
        return f"it is of {match[1].rpartition('.')[2]}, which is no {match[2]}"
    keys: list[tuple[int, str]] = []  # indentation and name of those above a line
    deepest, reason = -1, "it cannot be read"
    for line in message.splitlines():
        text = line.lstrip(" -")
        indent = len(line) - len(text)
        keys = [key for key in keys if key[0] < indent]
        if match := re.fullmatch(r'Parser key "([^"]+)":', text):
            keys.append((indent, match[1]))
        elif indent > deepest and text and not text.startswith(_NO_REASON):
            above = ".".join(name for _, name in keys[1:])  # the first is what the parser calls the module
            deepest, reason = indent, f"{above}: {text}" if above else text
    reason = re.sub(r"Type .+ expects a function or a callable class: |\.\.? Got value: Namespace.*", "", reason)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)[:300]
