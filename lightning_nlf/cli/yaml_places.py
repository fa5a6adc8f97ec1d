"""Where a key stands, in the yaml files or as a flag: read for error messages only."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import get_loader

from lightning_nlf.cli.errors import ConfigurationError, nearest
from lightning_nlf.cli.yaml_bounds import LOADER, check_bounds, read_text

_NOT_SHOWN = ("init_args", "dict_kwargs")
_LONGEST = 80  # characters of a path in a message
_BESIDE_CLASS_PATH = ("class_path", *_NOT_SHOWN)


@dataclass(frozen=True)
class Place:
    """A key of a yaml file, or a flag."""

    keys: tuple[str, ...]  # without `init_args` and positions in lists
    shown: str  # as the user wrote it, dotted
    file: str = ""  # none for a flag
    line: int = 0
    value: str | None = None  # of a scalar

    def __str__(self) -> str:
        return f"{self.shown} ({self.file}, line {self.line})" if self.file else self.shown


def config_files(args: Sequence[str]) -> list[str]:
    """The yamls that the words of a command line name, in their order."""
    return [flag.value or "" for flag in flags(args) if flag.shown in ("--config", "-c")]


def read_places(args: Sequence[str]) -> list[Place]:
    """Every key of the yamls that the words of a command line name, in their order; then the flags.

    Raises:
        ConfigurationError: a file is missing, empty or no mapping, its yaml is broken, a key stands twice, or a key
            stands beside `class_path` that does not belong there.
    """
    for flag in flags(args):
        with contextlib.suppress(yaml.YAMLError):  # then it is text
            check_bounds(flag.value or "", flag.shown)
    return [place for file in config_files(args) for place in _places_of(file)] + flags(args)


def flags(args: Sequence[str]) -> list[Place]:
    """The flags of a command line, each with its value, or the word that follows."""
    places = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, sign, value = word.partition("=")
        if re.match(r"--?[^\W\d]", name):  # a number below 0 is a value
            places.append(Place(short(name.lstrip("-").split(".")), name, value=value if sign else following))
    return places


def find(places: Sequence[Place], keys: Sequence[str]) -> Place | None:
    """The last place of a key, as the last file wins; of several entries of a list, that of the right one."""
    wanted, exact = short(keys), ".".join(keys)
    same = [place for place in places if place.keys == wanted]
    last = [place for place in reversed(same) if place.file == same[-1].file]
    above_all = min(last, key=lambda place: place.shown.count("."), default=None)  # its init_args have the same keys
    return next((place for place in last if place.shown == exact), above_all)


def short(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys without `init_args`, `dict_kwargs` and positions in lists."""
    return tuple(key for key in keys if key not in _NOT_SHOWN and not key.isdigit())


def _places_of(file: str) -> list[Place]:
    if not file:
        raise ConfigurationError("--config: names no file")
    if not os.path.isfile(file):  # False too for what can be no path at all
        raise ConfigurationError(f"--config {file[:_LONGEST]}: no such file{_sibling(file)}")
    try:
        text = read_text(file)
        check_bounds(text, file)
        node = yaml.compose(text, Loader=LOADER)
        get_loader("yaml")(text)  # of tags and values that mean nothing
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{file}, line {line}: not valid yaml: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter: bytes that are no text, an int of 5,000 digits
        raise ConfigurationError(f"{file}: not valid yaml: {str(error).splitlines()[0]}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(
            f"{file}: expected keys with values, found " + ("nothing" if node is None else node.id)
        )
    return list(_walk(node, (), file))


def _sibling(file: str) -> str:
    folder = os.path.dirname(file)
    if not os.path.isdir(folder or "."):
        return ""
    siblings = [str(path.relative_to(".")) if not folder else str(path) for path in Path(folder).glob("*.y*ml")]
    close = difflib.get_close_matches(file, siblings, 1)
    return f". Did you mean {close[0]}?" if close else ""


def _walk(node: yaml.Node, path: tuple[str, ...], file: str) -> Iterator[Place]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, str(index)), file)
    if not isinstance(node, yaml.MappingNode):
        return
    _check_keys(node, path, file)
    for key, value in node.value:
        deeper = (*path, str(key.value))
        scalar = value.value if isinstance(value, yaml.ScalarNode) else None
        yield Place(short(deeper), ".".join(deeper), file, key.start_mark.line + 1, scalar)
        yield from _walk(value, deeper, file)


def _check_keys(node: yaml.MappingNode, path: tuple[str, ...], file: str) -> None:
    before: set[str] = set()
    names = {key.value for key, _ in node.value}
    for key, _ in node.value:
        place = f"{'.'.join((*path, key.value))} ({file}, line {key.start_mark.line + 1})"
        if key.value in before:
            raise ConfigurationError(f"{place}: the key stands there twice")
        before.add(key.value)
        if "class_path" in names and key.value not in _BESIDE_CLASS_PATH:
            hint = nearest(key.value, _BESIDE_CLASS_PATH) or "Arguments of the class belong below init_args."
            raise ConfigurationError(f"{place}: no such key beside class_path. {hint}")
