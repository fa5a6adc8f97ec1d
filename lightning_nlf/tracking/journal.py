"""The journal of a run: `<run folder>/journal.jsonl`, one JSON object a line, appended and never rewritten.

Every record has `kind` ("start", "params", "tags", "metrics", "artifact", "end") and `time` (milliseconds since 1970).
A line reaches the operating system in one `write`, so that a killed process loses at most the line it was writing;
there is no fsync, a power cut may cost the last seconds. NaN and infinities are written as strings: JSON has no such
numbers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_nlf.tracking.records import RecordError, parse

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
# A writer on another machine cannot be asked whether it lives: it counts as alive this long after its last record
# (a living one samples the machine every ten seconds).
SILENCE_SECONDS = 120.0

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_LIFECYCLE = (b'"start"', b'"end"')


class JournalError(OSError):
    """The journal cannot be written (disk full, folder read-only), or another process is writing it."""


class Journal:
    """Appends records to the journal of `run_dir`, creating the folder where it is missing.

    A last line torn by a kill is cut off first. `identity` is the same for every process that continued this journal.

    Raises:
        JournalError: the folder cannot be written, or another living process of this machine is writing there.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / JOURNAL
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_other_writer()
            repair(self.path)
            # Unbuffered: a buffer would keep what a full disk refused and fail again when it is closed.
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except JournalError:
            raise
        except OSError as error:
            raise JournalError(f"cannot write {self.path}: {error.strerror}") from error
        self.identity: str = first_start(self.path).get("journal") or uuid.uuid4().hex
        self._lock = threading.Lock()
        self._reported = False

    def start(self, **fields: Any) -> None:
        """Append a "start" record that names this process; `fields` are JSON values.

        Raises:
            JournalError: another process has begun to write since this one opened the journal.
        """
        import psutil

        self._refuse_other_writer()
        process = {"pid": os.getpid(), "host": socket.gethostname(), "process_started": psutil.Process().create_time()}
        self.append("start", journal=self.identity, **fields, **process)

    def metrics(self, values: Mapping[str, float], step: int, *, optional: bool = False) -> None:
        """Append the metrics of one step. Raises JournalError as `append` does."""
        # A finite sum means that all are finite; an infinite one may be an overflow, so then each is looked at.
        if not math.isfinite(sum(values.values())):
            values = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}  # type: ignore[misc]
        self.append("metrics", optional=optional, step=step, values=values)

    def append(self, kind: str, *, optional: bool = False, **fields: Any) -> None:
        """Append one record.

        Raises:
            JournalError: it could not be written. Only the first time and not for an `optional` record: later ones are
                tried and dropped in silence, so that a full disk is told once and does not hide what happened after.
        """
        time_ms = fields.pop("time", None) or time.time_ns() // 1_000_000
        line = _encode({"kind": kind, "time": time_ms, **fields}).encode("utf-8", "replace") + b"\n"
        try:
            with self._lock:
                self._write(line)
        except OSError as error:
            if not optional and not self._reported:
                self._reported = True
                raise JournalError(f"cannot write {self.path}: {error.strerror}") from error

    def discard(self) -> None:
        """Close the file, and remove it where nobody has written anything."""
        self.close()
        with contextlib.suppress(OSError):  # gone already, or not to be written: what is left is empty
            if not self.path.stat().st_size:
                self.path.unlink()

    def close(self) -> None:
        """Close the file. What was appended is already with the operating system."""
        self._file.close()

    def _refuse_other_writer(self) -> None:
        writer = last_lifecycle(self.path)
        # The parent is let through: a launcher may open the logger before it forks or spawns rank 0.
        if writer_alive(self.path) and writer.get("pid") not in (os.getpid(), os.getppid()):
            raise JournalError(f"{self.path.parent} is being written by process {writer['pid']}: use another folder")

    def _write_anew(self) -> None:
        """The whole journal at its place, where somebody deleted it: the open file still has it."""
        log.warning("%s was deleted while the run writes there: it is written anew", self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file.seek(0)
        part = self.path.with_name(f".{JOURNAL}.part")
        with open(part, "wb") as file:
            shutil.copyfileobj(self._file, file)
        self._file.close()
        self._file = open(part, "a+b", buffering=0)  # noqa: SIM115
        os.replace(part, self.path)

    def _write(self, line: bytes) -> None:
        written = 0
        if not self.path.exists():
            self._write_anew()
        try:
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError:
            # A full disk may take half a line: take it back, so that the next record starts a line of its own.
            if written:
                with contextlib.suppress(OSError):
                    self._file.truncate(os.fstat(self._file.fileno()).st_size - written)
            raise


def repair(path: Path) -> int:
    """Cut an unfinished last line off the journal at `path` and return how many bytes that took (0 where all is well).

    Only the writer may do this: a reader that meets half a line just waits for the rest.
    """
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        end = sum(len(line) for line in file if line.endswith(b"\n"))
        cut = file.seek(0, os.SEEK_END) - end
        if cut:
            file.truncate(end)
    return cut


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each complete record after byte `offset`, with the offset at which the next one starts.

    A line that is no record (a power cut leaves zeros) comes as `{"kind": "unreadable"}`. A missing file is empty.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = parse(line)
            except RecordError:
                record = {"kind": "unreadable"}
            yield record, offset


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, of each complete line of the journal at `path` that is no record, and what is wrong with it."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.endswith(b"\n"):
                    parse(line)
            except RecordError as error:
                yield number, str(error)


def count_records(path: Path, offset: int = 0) -> int:
    """How many complete lines follow byte `offset`."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        return sum(line.endswith(b"\n") for line in file)
    return 0


def starts_a_record(path: Path, offset: int) -> bool:
    """Whether byte `offset` is the first of a line, or the end of the last one."""
    with open(path, "rb") as file:
        if not 0 < offset <= file.seek(0, os.SEEK_END):
            return offset == 0
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def _lifecycle(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n") and any(word in line for word in _LIFECYCLE):
                with contextlib.suppress(RecordError):
                    if (record := parse(line))["kind"] in ("start", "end"):
                        yield record


def first_start(path: Path) -> dict[str, Any]:
    """The first "start" record of the journal at `path`, or an empty dict."""
    return next((record for record in _lifecycle(path) if record["kind"] == "start"), {})


def last_lifecycle(path: Path) -> dict[str, Any]:
    """The last "start" or "end" record of the journal at `path`, or an empty dict."""
    return [{}, *_lifecycle(path)][-1]


def writer_alive(path: Path) -> bool:
    """Whether the process that opened the journal last has neither ended it nor died.

    On this machine the process itself is looked at (number, start time, no zombie). A writer on another machine counts
    as alive for `SILENCE_SECONDS` after its last record.
    """
    import psutil

    record = last_lifecycle(path)
    if record.get("kind") != "start":
        return False
    if record.get("host") != socket.gethostname():
        return record.get("pid") is not None and time.time() - path.stat().st_mtime < SILENCE_SECONDS
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["process_started"]) < 2.0
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except (psutil.NoSuchProcess, KeyError):
        return False
