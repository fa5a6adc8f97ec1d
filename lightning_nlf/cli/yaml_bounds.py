"""How large, deep and self-repeating a yaml may be: a reader without bounds can be kept busy for ever by one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lightning_nlf.cli.errors import ConfigurationError

LARGEST = 1_000_000  # bytes of a file
DEEPEST = 64  # levels
MOST = 50_000  # keys and values, with every alias counted as what it stands for
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(file: str) -> str:
    """The text of a yaml file.

    Raises:
        ConfigurationError: it is larger than 1 MB, or cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    try:
        size = os.path.getsize(file)
        if size > LARGEST:
            raise ConfigurationError(f"{file}: has {size:,} bytes; the yaml of a run has at most {LARGEST:,}")
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error


def check_bounds(text: str, source: str) -> None:
    """Read the events of a yaml one by one, without building anything; messages name its `source`, a file or flag.

    Raises:
        ConfigurationError: it is too deep, an alias stands inside of what it means, or aliases make it too large.
        yaml.YAMLError: it is no yaml.
    """
    sizes: dict[str, int] = {}  # of what an anchor stands for
    levels: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and keys and values so far
    for event in yaml.parse(text, Loader=LOADER):
        size, line = 0, event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = levels.pop()
            sizes[anchor or ""] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in levels]:
                raise ConfigurationError(f"{source}, line {line}: *{event.anchor} contains itself")
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            sizes[event.anchor or ""] = size
        levels[-1] = (levels[-1][0], levels[-1][1] + size)
        if len(levels) - 1 > DEEPEST:
            raise ConfigurationError(f"{source}, line {line}: is nested deeper than {DEEPEST} levels")
        if levels[-1][1] > MOST:
            raise ConfigurationError(f"{source}, line {line}: has more than {MOST:,} values, aliases counted in full")
