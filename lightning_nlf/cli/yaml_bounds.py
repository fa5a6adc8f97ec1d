"""Limits on the size, depth and aliases of a yaml.

Without limits, a single line could keep the reader busy for ever.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lightning_nlf.cli.errors import ConfigurationError

LARGEST = 1_000_000  # bytes of a file
DEEPEST = 64  # levels of nesting
MOST = 50_000  # keys and values; an alias counts as much as the content of its anchor
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(file: str) -> str:
    """Read a yaml file.

    Raises:
        ConfigurationError: The file is larger than 1 MB or cannot be read.
        UnicodeDecodeError: The file is not UTF-8.
    """
    try:
        size = os.path.getsize(file)
        if size > LARGEST:
            raise ConfigurationError(f"{file}: the file has {size:,} bytes; a yaml may have at most {LARGEST:,}")
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error


def check_bounds(text: str, source: str) -> None:
    """Check the limits of a yaml from its stream of events, without building any object.

    Args:
        source: Name of the file or flag, for error messages.

    Raises:
        ConfigurationError: The yaml is nested too deeply, an alias is inside its own anchor, or it has too many values.
        yaml.YAMLError: The text is not valid yaml.
    """
    sizes: dict[str, int] = {}  # number of keys and values below each anchor
    levels: list[tuple[str | None, int]] = [(None, 0)]  # for each open level, its anchor and its size so far
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
            raise ConfigurationError(f"{source}, line {line}: nested deeper than {DEEPEST} levels")
        if levels[-1][1] > MOST:
            raise ConfigurationError(f"{source}, line {line}: more than {MOST:,} values, with aliases expanded")
