"""Where a key stands, in the yaml files or as a flag: read for error messages only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_nlf.cli.errors import ConfigurationError, nearest

_NOT_SHOWN = ("init_args", "dict_kwargs")
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
    return [place.value or "" for place in _flags(args) if place.shown in ("--config", "-c")]


def read_places(args: Sequence[str]) -> list[Place]:
    """Every key of the yamls that the words of a command line name, in their order; then the flags.

    Raises:
        ConfigurationError: a file is missing, empty or no mapping, its yaml is broken, a key stands twice, or a key
            stands beside `class_path` that does not belong there.
    """
    return [place for file in config_files(args) for place in _places_of(file)] + _flags(args)


def _flags(args: Sequence[str]) -> list[Place]:
    flags = []
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, sign, value = word.partition("=")
        if name.startswith("-"):
            flags.append(Place(short(name.lstrip("-").split(".")), name, value=value if sign else following))
    return flags


def find(places: Sequence[Place], keys: Sequence[str]) -> Place | None:
    """The last place of a key, as the last file wins."""
    wanted = short(keys)
    return next((place for place in reversed(places) if place.keys == wanted), None)


def short(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys without `init_args`, `dict_kwargs` and positions in lists."""
    return tuple(key for key in keys if key not in _NOT_SHOWN and not key.isdigit())


def _places_of(file: str) -> list[Place]:
    path = Path(file)
    if not file:
        raise ConfigurationError("--config: names no file")
    if not path.is_file():
        siblings = [str(path.parent / other.name) for other in path.parent.glob("*.y*ml")]
        close = difflib.get_close_matches(file, siblings, 1)
        raise ConfigurationError(f"--config {file}: no such file" + (f". Did you mean {close[0]}?" if close else ""))
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{file}, line {line}: not valid yaml: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not valid yaml: {str(error).splitlines()[0]}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(
            f"{file}: expected keys with values, found " + ("nothing" if node is None else node.id)
        )
    return list(_walk(node, (), file))


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
        if str(key.value) not in _NOT_SHOWN:
            yield Place(short(deeper), ".".join(deeper), file, key.start_mark.line + 1, scalar)
        yield from _walk(value, deeper, file)


def _check_keys(node: yaml.MappingNode, path: tuple[str, ...], file: str) -> None:
    names = [str(key.value) for key, _ in node.value]
    for index, name in enumerate(names):
        place = f"{'.'.join((*path, name))} ({file}, line {node.value[index][0].start_mark.line + 1})"
        if name in names[:index]:
            raise ConfigurationError(f"{place}: the key stands there twice")
        if "class_path" in names and name not in _BESIDE_CLASS_PATH:
            hint = nearest(name, _BESIDE_CLASS_PATH) or "Arguments of the class belong below init_args."
            raise ConfigurationError(f"{place}: no such key beside class_path. {hint}")
