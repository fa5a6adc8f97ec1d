"""Read and write feedback files: JSON lines, with the judgement of one prompt per line."""

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

LISTED = 10  # maximum number of faulty lines in a message
T = TypeVar("T")


def read(path: str | Path, scale: Scale = (0.0, 1.0), on_bad: Literal["raise", "skip"] = "raise") -> list[Judgement]:
    """Read the judgements of a file, in order. Blank lines are ignored.

    Args:
        scale: lowest and highest possible score.
        on_bad: `skip` = leave out faulty lines, and list them in a warning.
    Raises:
        ValueError: the file does not exist or has no judgement, or lines are faulty. The message gives file, line,
            field and what to do for the first ten faulty lines.
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
    """Read the judgements of several files, one file after another.

    Two judgements may have the same id if their replies, their runs (`meta.run`, as in two rounds of RLHF) or their
    sources differ. Otherwise they are the same judgement, which must not count twice.

    Args:
        on_bad: `skip` = also leave out a judgement that occurs a second time, with a warning.
    Raises:
        ValueError: as `read`; or a judgement is in two files. The message gives both lines for the first ten.
    """
    judgements: list[Judgement] = []
    faults: list[str] = []
    first: dict[object, str] = {}  # judgement → its place
    for judgement in (judgement for path in paths for judgement in read(path, scale, on_bad)):
        author = (judgement.source, *(repr(judgement.meta.get(name)) for name in ("said_by", "run")))
        key = (judgement.id, judgement.prompt, tuple(sorted(judgement.responses)), author)
        if judgement.id is not None and first.setdefault(key, judgement.where) != judgement.where:
            faults.append(
                f"{judgement.where}: id: {judgement.id!r} is also in {first[key]}, with the same replies and the same "
                "source; remove one of the lines, or make its id unique"
            )
            continue
        judgements.append(judgement)
    if faults and on_bad == "raise":
        raise ValueError(enumerated(faults))
    if faults:
        warnings.warn(f"skipped: {enumerated(faults)}", stacklevel=2)
    return judgements


def scan(path: str | Path, scale: Scale = (0.0, 1.0)) -> tuple[list[Judgement], dict[int, list[str]]]:
    """Read a file; return its judgements, and line number → errors for all faulty lines.

    Raises:
        ValueError: the file does not exist, or the first value of the scale is not lower than the second.
    """
    if not scale[0] < scale[1]:
        raise ValueError(f"scale: got {scale[0]:g} to {scale[1]:g}, the first must be below the second")
    return scan_lines(path, lambda record, where: parse(record, scale, where))


class WithId(Protocol):
    """A parsed line, which may have an id."""

    @property
    def id(self) -> str | None: ...


L = TypeVar("L", bound=WithId)


def scan_lines(path: str | Path, read_line: Callable[[Any, str], L]) -> tuple[list[L], dict[int, list[str]]]:
    """Read a file line by line; return the results of `read_line`, and line number → errors for all faulty lines.

    Args: read_line: parser of one line, (JSON value, `FILE:LINE`) → result; raises `Faults`.
    Raises:
        ValueError: the file does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f"path: there is no file {path}")
    results: list[L] = []
    bad: dict[int, list[str]] = {}
    first: dict[str, int] = {}  # id → line number
    with open(path, "rb") as lines:
        if hint := _no_lines(lines):
            return [], {1: [hint]}
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark, which some editors write
            if not line.strip():
                continue
            try:
                result = read_line(decoded(line), f"{path}:{number}")
            except Faults as error:
                bad[number] = error.faults
                continue
            if result.id is not None and first.setdefault(result.id, number) != number:
                bad[number] = [f"id: {result.id!r} is also on line {first[result.id]}; make it unique"]
                continue
            results.append(result)
    return results, bad


def listed(path: str | Path, bad: Mapping[int, Sequence[str]]) -> str:
    """A message with all errors in a file by line, and with the first ten lines in full."""
    return enumerated([f"{path}:{number}: {'; '.join(faults)}" for number, faults in bad.items()])


def enumerated(faults: Sequence[str]) -> str:
    """A message with a single error on one line, or with the number of errors and the first ten."""
    if len(faults) == 1:
        return on_one_line(faults[0])
    return first_ten(f"{len(faults)} lines are wrong", faults, " lines")


def first_ten(head: str, texts: Sequence[str], unit: str = "") -> str:
    """A message of the head, the first ten texts below it, each on one line, and the number of further texts."""
    rest = [f"… and {len(texts) - LISTED} more{unit}"] if len(texts) > LISTED else []
    return "\n  ".join([head, *map(on_one_line, texts[:LISTED]), *rest])


def each_line(judgements: Iterable[Judgement], make: Callable[[Judgement], T]) -> list[T]:
    """Call `make` for each judgement.  Raises ValueError: all errors that `make` raised, with file and line."""
    results: list[T] = []
    faults: list[str] = []
    for judgement in judgements:
        try:
            results.append(make(judgement))
        except ValueError as error:
            faults.append(f"{judgement.where}: {error}")
    if faults:
        raise ValueError(enumerated(faults))
    return results


@contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """Write a file atomically: it appears at `path` complete or not at all, even if a second process writes it too."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: str | Path, judgements: Iterable[Judgement]) -> None:
    """Write a file for `read`. The file appears only when it is complete, so no reader sees a part of it.

    Raises:
        ValueError: `read` would not accept a judgement. The file is then left unchanged.
    """
    first: dict[str, int] = {}  # id → number of the judgement
    with whole(Path(path)) as file:
        for number, judgement in enumerate(judgements, 1):
            record = judgement.record()
            try:
                parse(record)
            except Faults as error:
                raise ValueError(f"judgement {number}: {error}") from None
            if judgement.id is not None and first.setdefault(judgement.id, number) != number:
                raise ValueError(
                    f"judgement {number}: id: {judgement.id!r} is also that of judgement {first[judgement.id]}; "
                    "make it unique"
                )
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _no_lines(file: BinaryIO) -> str | None:
    """A single error for a file that is not in JSON lines, in place of an error for every line; None for JSON lines."""
    start = file.read(64).lstrip(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16; save it as UTF-8"
    file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
    if start.startswith(b"[") and file.read().rstrip().endswith(b"]"):
        return "this is a JSON array; give one object per line, without brackets around them and commas between"
    if start.startswith(b"{") and not start.split(b"\n")[0].strip(b"{ \t\r"):
        return "this is an object over several lines; give each object on a line of its own"
    return None
