"""The API reference: a section for each module of a package, from the docstrings as they are.

A line `<!-- modules: PACKAGE -->` in a page becomes these sections, so a new module needs no page of its own. A line
`<!-- file: PATH -->` becomes that Markdown file of the project, and `<!-- class: NAME -->` the entry of a class.
Docstrings are plain text: paragraphs, lists with hyphens, code in single backticks, and sections such as `Args:`. They
are written as reStructuredText here, with everything else escaped, so that no docstring can break the build.
"""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

from sphinx.application import Sphinx

PLACE = re.compile(r"^<!-- modules: ([\w.]+) -->$", re.M)
CLASS = re.compile(r"^<!-- class: ([\w.]+) -->$", re.M)
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.M)
SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns|Yields)\b([^:]*):(?: +(.*))?$")
INDENT = "    "
ROOT = Path(__file__).parents[1]
OURS = ("lightning_nlf", "data_modules")


def sections(package: str) -> str:
    """Markdown with a section for the package itself and one for each of its modules; packages in it are left out."""
    path = getattr(import_module(package), "__path__", [])
    modules = [module.name for module in pkgutil.iter_modules(path, f"{package}.") if not module.ispkg]
    itself = [package] if import_module(package).__doc__ or not modules else []
    return "\n".join(section(name) for name in [*itself, *modules] if not name.endswith("__main__"))


def section(module: str) -> str:
    """A section for one module. Names that it imports from its own modules have their entry there."""
    directive = f".. automodule:: {module}\n   :ignore-module-all:"
    return f"## {module.rpartition('.')[2]}\n\n`{module}`\n\n```{{eval-rst}}\n{directive}\n```\n"


def whole_file(document: str, path: str) -> str:
    """A Markdown file of the project as a part of a page, with its relative links rewritten."""
    file, folder = ROOT / path, (ROOT / "docs" / document).parent

    def link(match: re.Match) -> str:
        return f"]({os.path.relpath(file.parent / match[1], folder)}{match[2] or ''})"

    return re.sub(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", link, file.read_text(encoding="utf-8"))


def fill_in(app: Sphinx, document: str, source: list[str]) -> None:
    source[0] = PLACE.sub(lambda match: sections(match[1]), source[0])
    source[0] = CLASS.sub(r"```{eval-rst}\n.. autoclass:: \1\n```", source[0])
    source[0] = FILE.sub(lambda match: whole_file(document, match[1]), source[0])


def plain(text: str) -> str:
    """Plain text as reStructuredText that shows it; code in backticks stays code."""
    pieces = re.split(r"`([^`]+)`", text)
    texts = [
        f"``{piece.strip()}``" if odd % 2 else re.sub(r"([\\*|_`])", r"\\\1", piece) for odd, piece in enumerate(pieces)
    ]
    return "\\ ".join(filter(None, texts))


def joined(lines: list[str]) -> str:
    return plain(" ".join(line.strip() for line in lines))


def cut(lines: list[str], begins: Callable[[str], bool]) -> list[list[str]]:
    """Lines in groups, each of which starts at a line that begins one."""
    groups: list[list[str]] = []
    for line in lines:
        if begins(line) or not groups:
            groups.append([])
        groups[-1].append(line)
    return groups


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def named_items(lines: list[str]) -> Iterator[str]:
    """`name: text` at the least indentation, with the lines below it that are indented further."""
    least = min(map(indent_of, lines))
    for item in cut(lines, lambda line: indent_of(line) == least):
        names, colon, text = " ".join(line.strip() for line in item).partition(": ")
        yield f"{INDENT}- " + (f"**{plain(names)}**: {plain(text)}" if colon else plain(names))


def short_section(kind: str, about: str, text: str) -> list[str]:
    """A section that begins in its first line: `Args: a: text; b: text.`, `Raises ValueError: text` or plain text."""
    if kind == "Raises" and about.strip():
        about, text = "", f"{about.strip()}: {text}"
    items = re.split(r"; (?=[\w, ]+: )", text.strip())
    if kind not in ("Returns", "Yields") and all(re.match(r"[\w, ]+: ", item) for item in items):
        return [f":{kind}{plain(about)}:", "", *named_items(items)]
    return [f":{kind}{plain(about)}: {plain(text.strip())}"]


def block(lines: list[str]) -> list[str]:
    """One paragraph, list, section or literal block."""
    match = SECTION.match(lines[0])
    if match and not match[3] and lines[1:] and match[1] not in ("Returns", "Yields"):
        return [f":{match[1]}{plain(match[2])}:", "", *named_items(lines[1:])]
    if match:
        return short_section(match[1], match[2], " ".join(line.strip() for line in [match[3] or "", *lines[1:]]))
    if lines[0].startswith("- "):
        return ["- " + joined([item[0][2:], *item[1:]]) for item in cut(lines, lambda line: line.startswith("- "))]
    if lines[0].startswith(" "):
        return ["::", "", *(INDENT + line for line in lines)]
    return [joined(lines)]


def rendered(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText."""

    def begins(line: str) -> bool:
        return not line.strip() or bool(SECTION.match(line))

    groups = [[line for line in group if line.strip()] for group in cut(lines, begins)]
    return [line for group in groups if group for line in [*block(group), ""]]


def rewrite(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rendered(lines)


def set_by(init: Callable[..., None], behind: list[str]) -> set[str]:
    """Arguments that `super().__init__(…)` in an `__init__` sets, so that a caller cannot.

    Args: behind: the arguments of the next `__init__`, in order, for those that are set by position.
    """
    calls = [call for call in ast.walk(ast.parse(dedent(inspect.getsource(init)))) if isinstance(call, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return {name for call in calls for name in [*behind[: len(call.args)], *(key.arg for key in call.keywords)] if name}


def whole_signature(cls: type) -> str:
    """The arguments of a class, with those that its `**kwargs` hands to the classes behind it; required ones first."""
    arguments: dict[str, inspect.Parameter] = {}
    bases = [base for base in cls.__mro__ if "__init__" in vars(base) and base.__module__.split(".")[0] in OURS]
    bases = [base for base in bases if not getattr(base, "_is_protocol", False)]
    hands_on = bool(bases)
    taken: set[str] = set()
    while hands_on and bases:
        init = vars(bases.pop(0))["__init__"]
        parameters = list(inspect.signature(init).parameters.values())[1:]
        behind = list(inspect.signature(vars(bases[0])["__init__"]).parameters)[1:] if bases else []
        hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        new = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in {*arguments, *taken}]
        arguments |= {p.name: p for p in new}
        taken |= set_by(init, behind)
    texts = [p.name for p in arguments.values() if p.default is p.empty]
    texts += [f"{p.name}={p.default!r}" for p in arguments.values() if p.default is not p.empty]
    return f"({', '.join([*texts, *(['**kwargs'] if hands_on else [])])})"


def sign(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """Every argument of a class, none of a protocol; defaults that are functions or classes by their name."""
    if getattr(value, "_is_protocol", False):
        return "", returns
    if isinstance(value, type) and "**kwargs" in (signature or ""):
        signature = whole_signature(value)
    signature = re.sub(r"<(?:function|class) '?([\w.]+)[^>]*>", r"\1", signature or "").replace("<factory>", "…")
    return signature or None, returns


def skip(app: Sphinx, kind: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, whose docstring is only their number; the signature has them."""
    return True if (getattr(value, "__doc__", "") or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": False}
