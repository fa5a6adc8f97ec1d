"""jsonargparse's, omegaconf's and constructors' errors in one sentence: which key, where it stands, what would do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lightning_nlf.cli.errors import nearest
from lightning_nlf.cli.given_config import given_config
from lightning_nlf.cli.valid_names import import_hint, of_the_stage
from lightning_nlf.cli.wrong_key import Examiner
from lightning_nlf.cli.yaml_places import Place, find, short
from lightning_nlf.private_names import arguments_of

_LONGEST = 300  # characters of a message that could not be translated


def translate(message: str, parser: ArgumentParser, places: Sequence[Place], words: Sequence[str]) -> str:
    """One sentence for what `parser.error` was called with; `words` are those of the command line."""
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        flag = match[1].split("=")[0]
        if flag.endswith((".yaml", ".yml")) and not flag.startswith("-"):
            return f"{flag}: a yaml is named by --config {flag}"
        flags = [name for action in arguments_of(of_the_stage(parser)) for name in action.option_strings]
        return _joined(f"{flag}: no such flag.", nearest(flag, flags))
    if fault := Examiner(of_the_stage(parser)).examine(given_config(words)):
        return _at(fault.keys, places, _joined(fault.text, fault.hint))
    if match := re.search(r"arguments are required: (.+)", message):
        names = [name.split(".")[-1] for name in match[1].split(", ")]
        return f"{' and '.join(names)}: missing. Name a yaml with --config"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines)[:_LONGEST]


def translate_interpolation(error: OmegaConfBaseException, places: Sequence[Place]) -> str:
    """One sentence for a `${…}` that cannot be resolved."""
    keys = tuple((error.full_key or "").split(".")[1:])  # without the stage
    written, wanted = None, None
    for _ in places:  # at most once each: what an interpolation means may be another, which is the one that is wrong
        place = find(places, keys)
        written = place.value if place else None
        wanted = re.search(r"\$\{\.*([^}:]+)\}", written or "")
        target = find(places, wanted[1].split(".")) if wanted else None
        if target is None or "${" not in (target.value or ""):
            break
        keys = tuple(target.shown.split(".")) if target.file else target.keys
    if "not found" in str(error) and wanted:
        hint = nearest(wanted[1], {place.shown for place in places if place.file})
        return _at(keys, places, _joined(f"{written} names no key of the configuration.", hint))
    return _at(keys, places, f"{written or 'the interpolation'} cannot be resolved: {str(error).splitlines()[0]}")


def translate_construction(class_name: str, error: Exception, places: Sequence[Place]) -> str:
    """One sentence for a value that a constructor refused."""
    text = import_hint(error)
    name, _, rest = text.partition(":")
    tail = tuple(name.split("."))
    owners = [place.keys[:-1] for place in places if (place.value or "").rpartition(".")[2] == class_name]
    named = [place for place in places if place.keys[-len(tail) :] == tail]
    named = [place for place in named if place.keys[: -len(tail)] in owners or not owners]
    got = re.search(r"got ([^\s,;]+)", rest)
    if named:
        place = next((place for place in reversed(named) if got and place.value == got[1]), named[-1])
        return f"{place}: {rest.strip()}"
    if owners and find(places, (*owners[-1], "class_path")):
        return _at((*owners[-1], "class_path"), places, f"{class_name}: {text}")
    return f"{class_name}: {text}"


def translate_trainer(error: Exception, places: Sequence[Place]) -> str:
    """One sentence for what the Trainer refused: the argument is named whose name or value the error has."""
    text, given = " ".join(str(error).split()), [place for place in places if place.keys[:1] == ("trainer",)]
    for place in reversed(given):
        if place.value and len(place.keys) == 2 and (place.keys[1] in text or repr(place.value) in text):
            return f"{place}: {text}"
    return f"trainer: {text}"


def _at(keys: Sequence[str], places: Sequence[Place], text: str) -> str:
    """The text with the key in front, and where it stands; a class may be named by a flag of the key above."""
    *above, last = keys or ("",)
    same = [
        place
        for place in places
        if place.keys == short(keys) or (last == "class_path" and place.keys == short(above) and place.value)
    ]
    place = same[-1] if same else None
    if place and place.file:
        place = find(places, keys) or place
    shown = str(place) if place else ".".join(keys)
    return f"{shown}: {text}" if shown else text


def _joined(text: str, hint: str) -> str:
    return f"{text} {hint}".strip()
