"""Flatten nested hyperparameters to the names and short texts that MLflow accepts."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_nlf.tracking.names import distinct

LONGEST_PARAM = 6000  # maximum characters of a value
LONGEST_TAG = 8000


def flatten(params: Any) -> dict[str, str]:
    """Flatten nested mappings, namespaces, dataclasses and lists of them to names like `a/b/0/c` and text values.

    If two keys would get the same name, as in `{"a": {"b": 1}, "a/b": 2}`, one of the names ends in a digest (here the
    name of "a/b", because a key with a slash is less usual).
    """
    leaves = dict(_leaves(params, ()))
    names = {path: "/".join(map(str, path)) for path in leaves}
    ordinary = {
        path: names[path] if all(isinstance(key, str) and "/" not in key for key in path) else "" for path in leaves
    }
    return {name: leaves[path] for path, name in distinct(names, ordinary).items()}


def _leaves(params: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(params, Namespace):
        params = vars(params)
    elif dataclasses.is_dataclass(params) and not isinstance(params, type):
        params = dataclasses.asdict(params)
    elif isinstance(params, (list, tuple)) and any(isinstance(item, (Mapping, Namespace)) for item in params):
        params = dict(enumerate(params))
    if not isinstance(params, Mapping):
        yield path, cut(str(params), LONGEST_PARAM)
        return
    for key, value in params.items():
        yield from _leaves(value, (*path, key))


def cut(text: str, longest: int) -> str:
    """Shorten `text` to at most `longest` characters, with an ellipsis at the end."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
