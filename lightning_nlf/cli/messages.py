"""jsonargparse's and omegaconf's errors in one sentence: which key, where it stands, what would do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lightning_nlf.cli.errors import nearest
from lightning_nlf.cli.valid_names import contents, import_hint, missing_module, of_the_stage, options, parameters
from lightning_nlf.cli.yaml_places import Place, find

_KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_CALLABLE_KEY = re.compile(r'Type .* expects a function or a callable class: Parser key "([^"]+)":')
_CALLABLE = re.compile(r"expects a function or a callable class: (.*)\. Got value: Namespace\(class_path='([^']+)'")
_SAYS_NOTHING = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "- a ",
    "Subclass types expect",
    "Expected a path but",
)
_LONGEST = 300  # characters of a message that could not be translated


@dataclass(frozen=True)
class Fault:
    """One reason why a value was not taken."""

    keys: tuple[str, ...]  # where
    owner: str | None  # class path of what the value is an argument of
    text: str
    value: str | None = None


def translate(message: str, parser: ArgumentParser, places: Sequence[Place]) -> str:
    """One sentence for what `parser.error` was called with."""
    faults, parser = read_faults(message), of_the_stage(parser)
    for describe in (_unknown_key, _bad_class_path, _missing_key, _bad_type):
        for fault in reversed(faults):
            if text := describe(fault, faults, parser, places):
                return text
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        flag = match[1].split("=")[0]
        if flag.endswith((".yaml", ".yml")) and not flag.startswith("-"):
            return f"{flag}: a yaml is named by --config {flag}"
        flags = [name for action in parser._actions for name in action.option_strings]
        return _joined(f"{flag}: no such flag.", nearest(flag, flags))
    if text := _unknown_section(parser, places):
        return text
    fault = faults[-1] if faults else Fault((), None, message)
    return _at(fault.keys, places, fault.text[:_LONGEST])


def translate_interpolation(error: OmegaConfBaseException, places: Sequence[Place]) -> str:
    """One sentence for a `${…}` that cannot be resolved."""
    keys = tuple((error.full_key or "").split(".")[1:])  # without the stage
    place = find(places, keys)
    written = place.value if place else None
    wanted = re.search(r"\$\{\.*([^}:]+)\}", written or "")
    if "not found" in str(error) and wanted:
        hint = nearest(wanted[1], {place.shown for place in places if place.file})
        return _at(keys, places, _joined(f"{written} names no key of the configuration.", hint))
    return _at(keys, places, f"{written or 'the interpolation'} cannot be resolved: {str(error).splitlines()[0]}")


def translate_construction(class_name: str, error: Exception, places: Sequence[Place]) -> str:
    """One sentence for a value that a constructor refused."""
    text = import_hint(error)
    name, _, rest = text.partition(":")
    owners = [place.keys[:-1] for place in places if (place.value or "").rpartition(".")[2] == class_name]
    for keys in [(*owner, name) for owner in owners]:
        if find(places, keys):
            return _at(keys, places, rest.strip())
    if owners and find(places, (*owners[-1], "class_path")):
        return _at((*owners[-1], "class_path"), places, f"{class_name}: {text}")
    return f"{class_name}: {text}"


def read_faults(message: str) -> list[Fault]:
    """The leaves of jsonargparse's tree of reasons, which is told by indentation."""
    faults: list[Fault] = []
    stack: list[tuple[int, str, str]] = []  # indentation, "key" or "class", name
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(line.lstrip()) + (2 if line.lstrip().startswith("- ") else 0)
        if not text:
            continue
        if text.startswith("Given value: ") and faults and faults[-1].value is None:
            faults[-1] = Fault(faults[-1].keys, faults[-1].owner, faults[-1].text, text.removeprefix("Given value: "))
        if text.startswith((*_SAYS_NOTHING, "Given value: ")):
            continue
        stack = [level for level in stack if level[0] < indent]
        if match := _KEY.fullmatch(text):
            stack.append((indent, "key", match[1]))
            text = match[2]
        elif match := _CALLABLE_KEY.fullmatch(text):
            stack.append((indent, "key", match[1]))
            text = ""
        elif match := _CLASS.fullmatch(text):
            stack.append((indent, "class", match[1]))
            text = ""
        if text:
            keys = tuple(key for _, kind, name in stack if kind == "key" for key in name.split("."))
            classes = [name for _, kind, name in stack if kind == "class"]
            faults.append(Fault(keys, classes[-1] if classes else None, text))
    return faults


def _unknown_key(fault: Fault, faults: list[Fault], parser: ArgumentParser, places: Sequence[Place]) -> str | None:
    text, owner = fault.text, fault.owner
    if match := _CALLABLE.search(text):
        text, owner = match[1], match[2]
    match = re.search(r"does not accept option '([^']+)'|[Oo]ption '([^']+)' is not accepted", text)
    if match is None:
        return None
    given = (match[1] or match[2]).split(".")
    if owner:
        names = parameters(owner)
        known = 0
    else:
        known = next((n for n in range(len(given), 0, -1) if options(parser, given[:n])), 0)
        names = options(parser, given[:known])
    keys = (*fault.keys, *given[: known + 1])
    text = f"{_name(owner)} has no such key." if owner else "no such key."
    hint = nearest(given[known], names)
    if owner and not hint and find(places, fault.keys) and not find(places, (*fault.keys, "class_path")):
        hint = "Is a class_path missing above?"
    return _at(keys, places, _joined(text, hint))


def _unknown_section(parser: ArgumentParser, places: Sequence[Place]) -> str | None:
    """For a key with nothing below it, of which jsonargparse says no more than that the whole is unexpected."""
    for place in places:
        if not place.file:
            continue
        keys = tuple(key.rstrip(":") for key in place.keys)  # `{modle:}` is a key "modle:" to one of two yaml readers
        for depth, key in enumerate(keys):
            if (names := options(parser, keys[:depth])) and key not in names:
                shown = Place(keys, place.shown.rstrip(":"), place.file, place.line)
                return _joined(f"{shown}: no such key.", nearest(key, names))
    return None


def _missing_key(fault: Fault, faults: list[Fault], parser: ArgumentParser, places: Sequence[Place]) -> str | None:
    if not (match := re.search(r"arguments are required: (.+)", fault.text)):
        return None
    names = [name.split(".")[-1] for name in match[1].split(", ")]
    if fault.owner is None:
        return f"{' and '.join(names)}: missing. Name a yaml with --config"
    owner = fault.owner
    if "expects a function or a callable class" in fault.text:  # one level deeper than jsonargparse tells
        given = [re.match(r"Namespace\(class_path='([^']+)'", f.value or "") for f in faults if f.keys == fault.keys]
        owner = next((match[1] for match in given if match), owner)
    return _at((*fault.keys, "class_path"), places, f"{_name(owner)} needs {' and '.join(names)}")


def _bad_class_path(fault: Fault, faults: list[Fault], parser: ArgumentParser, places: Sequence[Place]) -> str | None:
    keys = (*fault.keys, "class_path")
    if match := re.search(r"module '([^']+)' has no attribute '([^']+)'", fault.text):
        hint = nearest(match[2], contents(match[1])) or _module_beside(*match.groups())
        return _at(keys, places, _joined(f"{match[1]} has no {match[2]}.", hint))
    if match := re.search(r"No module named '?([\w.]+)'?", fault.text):
        return _at(keys, places, missing_module(match[1]))
    if match := re.search(r"([\w.]+) is a function:|Expected '([\w.]+)' to be a function that returns", fault.text):
        return _at(keys, places, f"{match[1] or match[2]} is a function; a class must stand there")
    if match := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", fault.text):
        return _at(keys, places, f"{match[1]} is no {match[2]}")
    return None


def _module_beside(module: str, name: str) -> str:
    """A hint at the module of nearly that name which has the class."""
    parent, _, last = module.rpartition(".")
    near = difflib.get_close_matches(last, sorted(contents(parent) - {last}), 1) if parent else []
    return f"Did you mean {near[0]!r}?" if near and name in contents(f"{parent}.{near[0]}") else ""


def _bad_type(fault: Fault, faults: list[Fault], parser: ArgumentParser, places: Sequence[Place]) -> str | None:
    if not fault.keys or not fault.text.startswith("Expected a"):
        return None
    # A fault inside a class says more than that the class could have been null.
    if any(len(other.keys) > len(fault.keys) and other.keys[: len(fault.keys)] == fault.keys for other in faults):
        return None
    same = [other for other in faults if other.keys == fault.keys]
    expected = [
        re.sub(r"^Expected (an? (?=<class |typing\.|path ))?|\. Got value:.*", "", other.text)
        for other in same
        if "Expected a" in other.text
    ]
    got = re.search(r"Got value: (.*?)(\. Got value: Namespace\(|$)", fault.text)
    value = got[1] if got else next((other.value for other in same if other.value is not None), "")
    nested = re.search(r"NestedArg\(key='[^']*', val='(.*)'\)", value or "")
    value = nested[1] if nested else value
    text = f"expected {' or '.join(map(_readable, expected))}, got {(value or '')[:60]!r}."
    choices = [choice for name in expected for choice in re.findall(r"'(\w+)'", name) if "Literal" in name]
    return _at(fault.keys, places, _joined(text, nearest(value or "", choices)))


def _readable(type_name: str) -> str:
    if literal := re.fullmatch(r"typing.Literal\[(.*)\]", type_name):
        return f"one of {literal[1]}"
    name = re.sub(r"<class '([^']+)'>", r"\1", type_name)
    return {"NoneType": "null", "list": "a list", "dict": "a mapping"}.get(name, re.sub(r"(\w+\.)+(\w+)", r"\2", name))


def _at(keys: Sequence[str], places: Sequence[Place], text: str) -> str:
    place = find(places, keys)
    shown = str(place) if place else ".".join(keys)
    return f"{shown}: {text}" if shown else text


def _joined(text: str, hint: str) -> str:
    return f"{text} {hint}".strip()


def _name(class_path: str) -> str:
    return class_path.rpartition(".")[2]
