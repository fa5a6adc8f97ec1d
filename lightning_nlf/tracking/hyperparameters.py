"""Hyperparameters of any nesting as the flat names and short texts that MLflow keeps."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

LONGEST_PARAM = 6000  # characters
LONGEST_TAG = 8000


def flatten(params: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings, namespaces, dataclasses and lists of them as one level of `a/b/0/c` names and text values."""
    if isinstance(params, Namespace):
        params = vars(params)
    elif dataclasses.is_dataclass(params) and not isinstance(params, type):
        params = dataclasses.asdict(params)
    elif isinstance(params, (list, tuple)) and any(isinstance(item, (Mapping, Namespace)) for item in params):
        params = dict(enumerate(params))
    if not isinstance(params, Mapping):
        return {prefix: cut(str(params), LONGEST_PARAM)}
    flat: dict[str, str] = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}/{key}" if prefix else str(key))
    return flat


def cut(text: str, longest: int) -> str:
    """`text`, or its beginning and an ellipsis, in at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
