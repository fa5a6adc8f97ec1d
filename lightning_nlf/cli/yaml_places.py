"""File and line of every key of the yamls, and the flags of a command line. Used only for error messages."""

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
from lightning_nlf.moved_yamls import new_place

_OMITTED = ("init_args", "dict_kwargs")
_LONGEST = 80  # characters of a path in a message
_BESIDE_CLASS_PATH = ("class_path", *_OMITTED)


@dataclass(frozen=True)
class Place:
    """A place that sets a value: a key of a yaml file with its line, or a flag."""

    keys: tuple[str, ...]  # without `init_args`, `dict_kwargs` and list positions
    name: str  # dotted keys, as the user wrote them
    file: str = ""  # empty for a flag
    line: int = 0
    value: str | None = None  # None unless the value is a scalar

    def __str__(self) -> str:
        return f"{self.name} ({self.file}, line {self.line})" if self.file else self.name


def config_files(args: Sequence[str]) -> list[str]:
    """The yamls that a command line gives by `--config`, in order."""
    return [flag.value or "" for flag in flags(args) if flag.name in ("--config", "-c")]


def read_places(args: Sequence[str]) -> list[Place]:
    """Every key in the yamls of a command line, in order, followed by the flags.

    Raises:
        ConfigurationError: A file is missing, empty or not a mapping; its yaml is invalid; a key appears twice; or an
            unknown key is beside `class_path`.
    """
    for flag in flags(args):
        with contextlib.suppress(yaml.YAMLError):  # if this is not yaml, the value is plain text
            check_bounds(flag.value or "", flag.name)
    return [place for file in config_files(args) for place in places_of(file)] + flags(args)


def flags(args: Sequence[str]) -> list[Place]:
    """The flags of a command line. The value of a flag without `=` is the next word."""
    places = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, sign, value = word.partition("=")
        if re.match(r"--?[^\W\d]", name):  # a negative number is a value, not a flag
            places.append(Place(short(name.lstrip("-").split(".")), name, value=value if sign else following))
    return places


def find(places: Sequence[Place], keys: Sequence[str]) -> Place | None:
    """Find the place that sets a key: in the last file that has the key, at the right entry of a list."""
    short_keys, exact = short(keys), ".".join(keys)
    matches = [place for place in places if place.keys == short_keys]
    last = [place for place in reversed(matches) if place.file == matches[-1].file]
    above_all = min(last, key=lambda place: place.name.count("."), default=None)  # keys inside init_args match too
    return next((place for place in last if place.name == exact), above_all)


def short(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys without `init_args`, `dict_kwargs` and list positions."""
    return tuple(key for key in keys if key not in _OMITTED and not key.isdigit())


def places_of(file: str, flag: str = "--config ") -> list[Place]:
    """Every key of a yaml, in order. Args: flag: Text before the name of a missing file in the error message.

    Raises:
        ConfigurationError: See `read_places`.
    """
    if not file:
        raise ConfigurationError("--config: the file name is missing; write --config FILE")
    if not os.path.isfile(file):  # also False for a path that no file system allows
        new = new_place(file)
        hint = f"; it is now {new}" if new else _sibling(file)
        raise ConfigurationError(f"{flag}{file[:_LONGEST]}: the file does not exist{hint}")
    try:
        text = read_text(file)
        check_bounds(text, file)
        node = yaml.compose(text, Loader=LOADER)
        get_loader("yaml")(text)  # refuses unknown tags and values
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{file}, line {line}: not valid yaml: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an int of 5,000 digits
        raise ConfigurationError(f"{file}: not valid yaml: {str(error).splitlines()[0]}") from None
    if not isinstance(node, yaml.MappingNode):
        content = "an empty file" if node is None else f"a {node.id}"
        raise ConfigurationError(f"{file}: expected keys with values, got {content}")
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
            raise ConfigurationError(f"{place}: this key appears twice; delete one")
        before.add(key.value)
        if "class_path" in names and key.value not in _BESIDE_CLASS_PATH:
            hint = nearest(key.value, _BESIDE_CLASS_PATH) or "Put arguments of the class below init_args."
            raise ConfigurationError(f"{place}: no such key beside class_path. {hint}")
