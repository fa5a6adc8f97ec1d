"""Convert names of metrics, parameters and tags to names that MLflow accepts, without collisions."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

LONGEST = 250  # maximum characters of a name

Key = TypeVar("Key", bound=Hashable)


def clean_name(key: str) -> str:
    """Convert a name to one that MLflow accepts: letters, digits and `_-./: `, normalised, at most 250 characters."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")[:LONGEST] or "_"


def clean_names(keys: Iterable[str]) -> dict[str, str]:
    """The `clean_name` of each key.

    If several keys get the same name, the names that differ from their keys end in a digest.
    """
    return distinct({key: clean_name(key) for key in keys}, {key: key for key in keys})


def distinct(names: Mapping[Key, str], ordinary: Mapping[Key, str]) -> dict[Key, str]:
    """Make names distinct. If several keys share a name, a digest of the key is added to each of these names.

    A key whose name is its `ordinary` name gets no digest. A digest depends only on the key, so a resumed run gets the
    same names.

    Args:
        names: Name of each key.
        ordinary: The name that each key keeps without a digest, even if other keys share it.
    """
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return {
        key: _with_digest(name, key) if name in shared and name != ordinary[key] else name
        for key, name in names.items()
    }


def _with_digest(name: str, key: Hashable) -> str:
    digest = hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"
