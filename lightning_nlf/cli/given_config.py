"""The configuration as the yamls and flags of a command together give it, before any value is checked.

Read for error messages only: jsonargparse merges and checks in one go, and has no whole when a check fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import get_loader
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_nlf.cli.yaml_bounds import read_text
from lightning_nlf.cli.yaml_places import flags

_OF_A_CLASS = frozenset(("class_path", "init_args", "dict_kwargs"))


class OfAnotherClass(dict[str, Any]):
    """init_args that were given for another class: those that the new one does not know are dropped."""


def given_config(words: Sequence[str]) -> dict[str, Any]:
    """Nested keys and values of a command line, all of whose yamls can be read, with every `${…}` that has a value."""
    config: dict[str, Any] = {}
    for flag in flags(words):
        name, value = flag.shown, flag.value or ""
        if name in ("--config", "-c"):
            config = _overlaid(config, get_loader("yaml")(read_text(value)))
        elif name.split(".")[-1].lstrip("-") not in ("help", "print_config"):
            nested = _loaded(value)
            for key in reversed(name.lstrip("-").split(".")):
                nested = {key: nested}
            config = _overlaid(config, nested)
    with contextlib.suppress(OmegaConfBaseException, ValueError):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        return _as_before(resolved, config)
    return config


def _loaded(value: str) -> Any:
    try:
        return get_loader("yaml")(value)
    except (yaml.YAMLError, ValueError):
        return value


def _overlaid(old: Any, new: Any) -> Any:
    """`new` over `old`, as jsonargparse does it."""
    if isinstance(old, dict) and "class_path" in old:
        if isinstance(new, str):
            new = {"class_path": new}
        if isinstance(new, dict) and not _OF_A_CLASS & set(new):
            new = {"init_args": new}
        if isinstance(new, dict) and new.get("class_path", old["class_path"]) != old["class_path"]:
            old = {"init_args": OfAnotherClass(old.get("init_args") or {})}
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return type(old)(old | {key: _overlaid(old.get(key), value) for key, value in new.items()})


def _as_before(resolved: Any, config: Any) -> Any:
    """`resolved`, with init_args of another class marked as they are in `config`."""
    if isinstance(resolved, dict) and isinstance(config, dict):
        return type(config)({key: _as_before(value, config.get(key)) for key, value in resolved.items()})
    return resolved
