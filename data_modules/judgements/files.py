"""Feedback files: JSON lines, one judged prompt a line."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TextIO, TypeVar

from data_modules.judgements.fields import Scale
from data_modules.judgements.json_text import decoded
from data_modules.judgements.parsing import Faults, parse
from data_modules.judgements.schema import Judgement
from data_modules.terminal import on_one_line

LISTED = 10  # bad lines that a message lists
T = TypeVar("T")


def read(path: str | Path, scale: Scale = (0.0, 1.0), on_bad: Literal["raise", "skip"] = "raise") -> list[Judgement]:
    """The judgements of a file, in its order. Blank lines are no lines.

    Args:
        scale: lowest and highest score there is.
        on_bad: `skip` goes on without the lines that are wrong, and warns how many and which.
    Raises:
        ValueError: no such file, no judgement in it, lines that are wrong: file, line, field and mend of the first ten.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: got {on_bad!r}, must be raise or skip")
    judgements, bad = scan(path, scale)
    if bad and (on_bad == "raise" or not judgements):
        raise ValueError(listed(path, bad))
    if not judgements:
        raise ValueError(f"{path}: there is no judgement in it")
    if bad:
        warnings.warn(f"skipped: {listed(path, bad)}", stacklevel=2)
    return judgements


def read_all(
    paths: Sequence[str], scale: Scale = (0.0, 1.0), on_bad: Literal["raise", "skip"] = "raise"
) -> list[Judgement]:
    """The judgements of several files, one after the other.

    Two files may have one id, where they are of different replies or runs (`meta.run`, as those of two rounds of RLHF),
    or somebody else judged. Else it is one judgement, which would count twice.

    Args:
        on_bad: `skip` goes on without the second of them, and warns.
    Raises:
        ValueError: as `read`; a judgement that is in two files: both lines of the first ten.
    """
    judgements: list[Judgement] = []
    faults: list[str] = []
    first: dict[object, str] = {}  # where it stands
    for judgement in (judgement for path in paths for judgement in read(path, scale, on_bad)):
        who = (judgement.source, *(repr(judgement.meta.get(name)) for name in ("said_by", "run")))
        what = (judgement.id, judgement.prompt, tuple(sorted(judgement.responses)), who)
        if judgement.id is not None and first.setdefault(what, judgement.where) != judgement.where:
            faults.append(
                f"{judgement.where}: id: {judgement.id!r} is that of {first[what]} as well, of the same replies by "
                "the same source; leave one of the lines out, or make its id unique"
            )
            continue
        judgements.append(judgement)
    if faults and on_bad == "raise":
        raise ValueError(enumerated(faults))
    if faults:
        warnings.warn(f"skipped: {enumerated(faults)}", stacklevel=2)
    return judgements


def scan(path: str | Path, scale: Scale = (0.0, 1.0)) -> tuple[list[Judgement], dict[int, list[str]]]:
    """The judgements of a file, and by line number what is wrong with the other lines.

    Raises:
        ValueError: no such file, or no scale.
    """
    if not scale[0] < scale[1]:
        raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, must go upwards")
    return scan_lines(path, lambda record, where: parse(record, scale, where))


class WithId(Protocol):
    """What a line is read into."""

    @property
    def id(self) -> str | None: ...


L = TypeVar("L", bound=WithId)


def scan_lines(path: str | Path, read_line: Callable[[Any, str], L]) -> tuple[list[L], dict[int, list[str]]]:
    """What `read_line` makes of the JSON of each line, and by line number what is wrong with the other lines.

    Args: read_line: the content of a line and FILE:LINE → what it says; raises `Faults`.
    Raises:
        ValueError: no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"path: there is no file {path}")
    results: list[L] = []
    bad: dict[int, list[str]] = {}
    first: dict[str, int] = {}  # line of each id
    with open(path, "rb") as lines:
        if hint := _no_lines(lines):
            return [], {1: [hint]}
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # some editors mark UTF-8 so
            if not line.strip():
                continue
            try:
                result = read_line(decoded(line), f"{path}:{number}")
            except Faults as error:
                bad[number] = error.faults
                continue
            if result.id is not None and first.setdefault(result.id, number) != number:
                bad[number] = [f"id: {result.id!r} is that of line {first[result.id]} as well; make it unique"]
                continue
            results.append(result)
    return results, bad


def listed(path: str | Path, bad: Mapping[int, Sequence[str]]) -> str:
    """All that is wrong with a file by line number, the first ten lines of it in full."""
    return enumerated([f"{path}:{number}: {'; '.join(faults)}" for number, faults in bad.items()])


def enumerated(faults: Sequence[str]) -> str:
    """One fault as it is, on one line; of more how many, and the first ten."""
    if len(faults) == 1:
        return on_one_line(faults[0])
    return first_ten(f"{len(faults)} lines are wrong", faults, " lines")


def first_ten(head: str, texts: Sequence[str], unit: str = "") -> str:
    """The head, and below it the first ten texts, each on one line, and how many more there are."""
    rest = [f"… and {len(texts) - LISTED} more{unit}"] if len(texts) > LISTED else []
    return "\n  ".join([head, *map(on_one_line, texts[:LISTED]), *rest])


def each_line(judgements: Iterable[Judgement], make: Callable[[Judgement], T]) -> list[T]:
    """What `make` gives for each. Raises ValueError: all that it refuses, each with file and line."""
    made: list[T] = []
    faults: list[str] = []
    for judgement in judgements:
        try:
            made.append(make(judgement))
        except ValueError as error:
            faults.append(f"{judgement.where}: {error}")
    if faults:
        raise ValueError(enumerated(faults))
    return made


@contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file to write that appears at `path` whole or not at all, even if another process writes it too."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: str | Path, judgements: Iterable[Judgement]) -> None:
    """A file that `read` reads, whole or not at all: another reader never sees half of it.

    Raises:
        ValueError: a judgement that could not be read back; then the file stays as it was.
    """
    first: dict[str, int] = {}  # number of each id
    with whole(Path(path)) as file:
        for number, judgement in enumerate(judgements, 1):
            record = judgement.record()
            try:
                parse(record)
            except Faults as error:
                raise ValueError(f"judgement {number}: {error}") from None
            if judgement.id is not None and first.setdefault(judgement.id, number) != number:
                raise ValueError(f"judgement {number}: id: {judgement.id!r} is taken; make it unique")
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _no_lines(file: BinaryIO) -> str | None:
    """What the whole file is, where it is not one of JSON lines, so that not every line is a fault."""
    start = file.read(64).lstrip(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16; save it as UTF-8"
    file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
    if start.startswith(b"[") and file.read().rstrip().endswith(b"]"):
        return "this is a JSON array; give one object a line, without brackets around them and commas between"
    if start.startswith(b"{") and not start.split(b"\n")[0].strip(b"{ \t\r"):
        return "this is an object over several lines; give each object on a line of its own"
    return None
