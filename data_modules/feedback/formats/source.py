"""Read records from JSON lines, a JSON list, a JSON object that contains one list, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_modules.judgements.json_text import decoded
from data_modules.judgements.parsing import Faults

Record = tuple[str, Any]  # place, such as "line 7", and the record, or Faults if it cannot be parsed
_OTHER = {
    b"PAR1": "this is a Parquet file; save it as JSON lines, for instance with `to_json` of datasets",
    b"\x1f\x8b": "the file is compressed with gzip; unpack it first",
    b"PK": "the file is compressed with zip; unpack it first",
    b"\xff\xfe": "the file is UTF-16; save it as UTF-8",
    b"\xfe\xff": "the file is UTF-16; save it as UTF-8",
}


def records(path: Path, fits: Callable[[dict[str, Any]], bool]) -> Iterator[Record]:
    """Yield the records of a file in order. Blank lines are skipped.

    Args: fits: function that returns whether an object is itself a record, and not a container with a list of records.
    Raises:
        ValueError: the file does not exist, or is not JSON or CSV.
    """
    if not path.is_file():
        raise ValueError(f"path: the file {path} does not exist")
    with open(path, "rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, advice in _OTHER.items():
        if start.startswith(mark):
            raise ValueError(f"{path}: {advice}")
    if path.suffix.lower() == ".csv":
        yield from _of_csv(path)
    elif start.startswith(b"[") or start.startswith(b"{") and not start.split(b"\n")[0].strip(b"{ \t\r"):
        yield from _of_list(path, fits)
    else:
        yield from _of_lines(path, fits)


def _of_lines(path: Path, fits: Callable[[dict[str, Any]], bool]) -> Iterator[Record]:
    with open(path, "rb") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        first = next(lines, None)
        if first is None:
            return
        rest = next(lines, None)
        record = _decoded(first[1].removeprefix(b"\xef\xbb\xbf"))
        if rest is None and isinstance(record, dict) and not fits(record) and (items := _list_in(record)):
            yield from items
            return
        yield f"line {first[0]}", record
        if rest is not None:
            yield f"line {rest[0]}", _decoded(rest[1])
        for number, line in lines:
            yield f"line {number}", _decoded(line)


def _of_list(path: Path, fits: Callable[[dict[str, Any]], bool]) -> Iterator[Record]:
    try:
        whole = decoded(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except Faults as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(whole, dict):
        yield from [("record 1", whole)] if fits(whole) else _list_in(whole) or [("record 1", whole)]
    else:
        yield from ((f"record {number}", record) for number, record in enumerate(whole, 1))


def _list_in(record: dict[str, Any]) -> list[Record]:
    """The items of the only list of objects in an object; empty if there is no such list, or more than one."""
    lists = [x for x in record.values() if isinstance(x, list) and x and all(isinstance(item, dict) for item in x)]
    return [(f"record {number}", item) for number, item in enumerate(lists[0], 1)] if len(lists) == 1 else []


def _of_csv(path: Path) -> Iterator[Record]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            yield f"record {number}", {str(name): value for name, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}: not valid CSV: {error}") from None


def _decoded(line: bytes) -> Any:
    try:
        return decoded(line)
    except Faults as error:
        return error
