"""Translate errors of jsonargparse, OmegaConf and constructors into one line: key, file, line, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lightning_nlf.cli.errors import nearest
from lightning_nlf.cli.given_config import given_config
from lightning_nlf.cli.shorthand import is_about
from lightning_nlf.cli.valid_names import import_hint, stage_parser
from lightning_nlf.cli.wrong_key import Examiner
from lightning_nlf.cli.yaml_places import Place, find, short
from lightning_nlf.private_names import arguments_of

_LONGEST = 300  # maximum characters of a message that could not be translated


def translate(message: str, parser: ArgumentParser, places: Sequence[Place], words: Sequence[str]) -> str:
    """One-line error for a message of jsonargparse. `words` are the arguments of the command line."""
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        flag = match[1].split("=")[0]
        if flag.endswith((".yaml", ".yml")) and not flag.startswith("-"):
            return f"{flag}: write --config in front of a yaml: --config {flag}"
        flags = [name for action in arguments_of(stage_parser(parser)) for name in action.option_strings]
        return _joined(f"{flag}: no such flag.", nearest(flag, flags))
    if fault := Examiner(stage_parser(parser)).examine(given_config(words)):
        return _at(fault.keys, places, _joined(fault.text, fault.hint))
    if match := re.search(r"arguments are required: (.+)", message):
        names = [name.split(".")[-1] for name in match[1].split(", ")]
        return f"{' and '.join(names)}: missing. Give a yaml with --config"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines)[:_LONGEST]


def translate_interpolation(error: OmegaConfBaseException, places: Sequence[Place]) -> str:
    """One-line error for a `${…}` that cannot be resolved."""
    keys = tuple((error.full_key or "").split(".")[1:])  # without the stage
    text, reference = None, None
    for _ in places:  # follow the chain to the wrong interpolation; the bound ends a cycle
        place = find(places, keys)
        text = place.value if place else None
        reference = re.search(r"\$\{\.*([^}:]+)\}", text or "")
        target = find(places, reference[1].split(".")) if reference else None
        if target is None or "${" not in (target.value or ""):
            break
        keys = tuple(target.name.split(".")) if target.file else target.keys
    if "not found" in str(error) and reference:
        hint = nearest(reference[1], {place.name for place in places if place.file})
        return _at(keys, places, _joined(f"{text} refers to a key that does not exist.", hint))
    return _at(keys, places, f"{text or 'the interpolation'} cannot be resolved: {str(error).splitlines()[0]}")


def translate_construction(class_name: str, error: Exception, places: Sequence[Place]) -> str:
    """One-line error for a value that a constructor refused."""
    text = import_hint(error)
    name, _, rest = text.partition(":")
    tail = tuple(name.split("."))
    owners = [place.keys[:-1] for place in places if (place.value or "").rpartition(".")[2] == class_name]
    for place in reversed(places if not owners else ()):  # the class is left out
        if is_about(text, class_name, place.value):
            return f"{place}: {text.removeprefix('weights: ')}"
    matches = [place for place in places if place.keys[-len(tail) :] == tail]
    matches = [place for place in matches if place.keys[: -len(tail)] in owners or not owners]
    value = re.search(r"got ([^\s,;]+)", rest)
    if matches:
        place = next((place for place in reversed(matches) if value and place.value == value[1]), matches[-1])
        return f"{place}: {rest.strip()}"
    if owners and find(places, (*owners[-1], "class_path")):
        return _at((*owners[-1], "class_path"), places, f"{class_name}: {text}")
    return f"{class_name}: {text}"


def translate_trainer(error: Exception, places: Sequence[Place]) -> str:
    """One-line error for a value that the Trainer refused.

    Gives the argument whose name or value the error mentions.
    """
    text, arguments = " ".join(str(error).split()), [place for place in places if place.keys[:1] == ("trainer",)]
    for place in reversed(arguments):
        if place.value and len(place.keys) == 2 and (place.keys[1] in text or repr(place.value) in text):
            return f"{place}: {text}"
    return f"trainer: {text}"


def _at(keys: Sequence[str], places: Sequence[Place], text: str) -> str:
    """Put the key, with its file and line, before a message.

    A class_path can also be set by a flag of the parent key.
    """
    *above, last = keys or ("",)
    matches = [
        place
        for place in places
        if place.keys == short(keys) or (last == "class_path" and place.keys == short(above) and place.value)
    ]
    place = matches[-1] if matches else None
    if place and place.file:
        place = find(places, keys) or place
    prefix = str(place) if place else ".".join(keys)
    return f"{prefix}: {text}" if prefix else text


def _joined(text: str, hint: str) -> str:
    return f"{text} {hint}".strip()
