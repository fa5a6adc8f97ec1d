"""Names that MLflow takes, and that keep apart what was apart."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

LONGEST = 250  # characters

Key = TypeVar("Key", bound=Hashable)


def clean_name(key: str) -> str:
    """`key` as MLflow takes it: letters, digits and `_-./: `, a clean relative path, at most 250 characters."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")[:LONGEST] or "_"


def clean_names(keys: Iterable[str]) -> dict[str, str]:
    """The `clean_name` of each key. Of keys that would share one, those that it changed get a digest of the key."""
    return distinct({key: clean_name(key) for key in keys}, {key: key for key in keys})


def distinct(names: Mapping[Key, str], ordinary: Mapping[Key, str]) -> dict[Key, str]:
    """`names`, of which those that are shared end in a digest of their key, unless they are what is `ordinary` for it.

    The digest depends on the key alone: a resumed run finds the same names.
    """
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        key: _with_digest(name, key) if name in shared and name != ordinary[key] else name
        for key, name in names.items()
    }


def _with_digest(name: str, key: Hashable) -> str:
    digest = hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"
