"""Merge the yamls and flags of a command without checking any value, for error messages.

jsonargparse merges and checks in one pass, so no merged configuration exists when a check fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import get_loader
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_nlf.cli.shorthand import is_path
from lightning_nlf.cli.yaml_bounds import read_text
from lightning_nlf.cli.yaml_places import flags

_OF_A_CLASS = frozenset(("class_path", "init_args", "dict_kwargs"))


class OldClassArguments(dict[str, Any]):
    """`init_args` of a class that a later yaml or flag replaced.

    The new class ignores arguments that it does not have.
    """


def given_config(words: Sequence[str]) -> dict[str, Any]:
    """Nested keys and values of a command line.

    Each `${…}` is replaced by its value, if all of them can be resolved.
    """
    config: dict[str, Any] = {}
    for flag in flags(words):
        name, value = flag.name, flag.value or ""
        if name in ("--config", "-c"):
            config = _overlaid(config, get_loader("yaml")(read_text(value)))
        elif name.split(".")[-1].lstrip("-") not in ("help", "print_config"):
            nested = _parsed(value)
            for key in reversed(name.lstrip("-").split(".")):
                nested = {key: nested}
            config = _overlaid(config, nested)
    with contextlib.suppress(OmegaConfBaseException, ValueError):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        return _as_before(resolved, config)
    return config


def _parsed(value: str) -> Any:
    try:
        return get_loader("yaml")(value)
    except (yaml.YAMLError, ValueError):
        return value


def _overlaid(old: Any, new: Any) -> Any:
    """Merge `new` over `old`, by the rules of jsonargparse. A path stands for the class that reads it."""
    if is_path(old) and isinstance(new, dict):
        old = {"class_path": old}
    if isinstance(old, dict) and "class_path" in old:
        if isinstance(new, str) and not is_path(new):
            new = {"class_path": new}
        if isinstance(new, dict) and not _OF_A_CLASS & set(new):
            new = {"init_args": new}
        if isinstance(new, dict) and new.get("class_path", old["class_path"]) != old["class_path"]:
            old = {"init_args": OldClassArguments(old.get("init_args") or {})}
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return type(old)(old | {key: _overlaid(old.get(key), value) for key, value in new.items()})


def _as_before(resolved: Any, config: Any) -> Any:
    """`resolved`, with the same OldClassArguments as in `config`, because OmegaConf returns plain dicts."""
    if isinstance(resolved, dict) and isinstance(config, dict):
        return type(config)({key: _as_before(value, config.get(key)) for key, value in resolved.items()})
    return resolved
