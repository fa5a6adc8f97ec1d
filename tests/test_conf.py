"""`conf/`: no setting stands in a yaml that the code has as its default, and their number does not grow back."""

import dataclasses
import inspect
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lightning_nlf.cli.class_lookup import look_up, parameters
from lightning_nlf.cli.command_line import TRAINER_DEFAULTS
from lightning_nlf.cli.parser import Parser
from lightning_nlf.cli.shorthand import bases_of, with_class

CONF = Path(__file__).parents[1] / "conf"
YAMLS = sorted(CONF.rglob("*.yaml"))
MOST = 1096
TRAINER = "lightning.pytorch.Trainer"
SHOWN = ("layers", "heads", "width", "updates")  # sizes and budgets, which a yaml says for its reader
parameters_of = cache(lambda path: parameters(Parser, look_up(path, ())))


def leaves(node, path=()):
    """Every setting: a scalar, or a list of scalars, or an empty mapping."""
    inner = list(node.items()) if isinstance(node, dict) else []
    if isinstance(node, list) and any(isinstance(item, dict | list) for item in node):
        inner = list(enumerate(node))
    for key, value in inner:
        yield from leaves(value, (*path, key))
    if not inner:
        yield path, node


def settings_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def repeated(settings):
    """Paths of the leaves that the code has as defaults already."""
    if "class_path" in settings:
        yield from _of_class(settings, ())
    for key in ("model", "data"):
        if key in settings:
            yield from _of_class(settings[key], (key,))
    trainer = {name: parameter.default for name, parameter in parameters_of(TRAINER).items()} | TRAINER_DEFAULTS
    yield from _equal(settings.get("trainer", {}), trainer, ("trainer",))
    for i, callback in enumerate(settings.get("trainer", {}).get("callbacks", [])):
        yield from _of_class(callback, ("trainer", "callbacks", i))
    if settings.get("seed_everything") == 0:
        yield ("seed_everything",)


def _of_class(node, path):
    if not isinstance(node, dict):
        return
    arguments, values = parameters_of(node["class_path"]), node.get("init_args", {})
    where = (*path, "init_args")
    yield from _equal(values, {name: parameter.default for name, parameter in arguments.items()}, where)
    for name, value in values.items():
        for i, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            place = (*where, name) if i is None else (*where, name, i)
            item = name in arguments and with_class(item, bases_of(arguments[name].hint)) or item
            if isinstance(item, dict) and "class_path" in item:
                yield from _of_class(item, place)
            elif isinstance(item, dict) and name in arguments:
                equal = list(_equal(item, _fields(arguments[name].hint), place))
                yield from equal[1:] if len(equal) == len(item) else equal  # a mapping is not left empty


def _equal(settings, defaults, path):
    for name, value in settings.items():
        if name in SHOWN:
            continue
        if name in defaults and defaults[name] is not inspect.Parameter.empty and is_default(value, defaults[name]):
            yield (*path, name)


def _fields(hint):
    """Defaults of the dataclass among the types of a parameter."""
    for kind in get_args(hint) or (hint,):
        if dataclasses.is_dataclass(kind):
            return {field.name: field.default for field in dataclasses.fields(kind)}
    return {}


def is_default(value, default):
    if isinstance(value, list) and isinstance(default, tuple | list):
        return list(value) == list(default)
    return type(value) is not dict and value == default and isinstance(value, bool) == isinstance(default, bool)


@pytest.mark.parametrize(
    "path", [path for path in YAMLS if path.parent.name != "overlays"], ids=lambda path: str(path.relative_to(CONF))
)
def test_nothing_is_said_that_is_the_default(path):
    assert [".".join(map(str, place)) for place in repeated(settings_of(path))] == []


def test_the_settings_are_as_many_as_they_must_be():
    assert sum(len(list(leaves(settings_of(path)))) for path in YAMLS) <= MOST
