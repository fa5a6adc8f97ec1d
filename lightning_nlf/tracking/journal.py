"""The journal of a run: `<run folder>/journal.jsonl`, an append-only file with one JSON object per line.

Every record has a `kind` ("start", "params", "tags", "metrics", "artifact" or "end") and a `time` (milliseconds since
1970). Each line is one `write`, so a killed process loses at most its last line. The file is not synced to the disk, so
a power cut can lose the records of the last seconds. NaN and infinities are written as strings, because JSON cannot
represent them.
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
# A process on another machine cannot be checked. It counts as alive until this long after its last record.
# (A live process writes a sample of the machine every ten seconds.)
SILENCE_SECONDS = 120.0

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_LIFECYCLE = (b'"start"', b'"end"')


class JournalError(OSError):
    """The journal cannot be written: the disk is full, the folder is read-only, or another process is writing it."""


class Journal:
    """Appends records to the journal of `run_dir`. Creates this folder if necessary.

    An incomplete last line, which a killed process can leave, is removed first. All processes that continue a journal
    have the same `identity`.

    Raises:
        JournalError: The folder cannot be written, or another running process is writing the journal.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / JOURNAL
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_other_writer()
            repair(self.path)
            # Unbuffered: a buffer would keep data that a full disk refused, and `close` would fail again.
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except JournalError:
            raise
        except OSError as error:
            raise JournalError(f"cannot write {self.path}: {error.strerror}") from error
        self.identity: str = first_start(self.path).get("journal") or uuid.uuid4().hex
        self._lock = threading.Lock()
        self._reported = False

    def start(self, **fields: Any) -> None:
        """Append a "start" record with the id of this process. `fields` are JSON values.

        Raises:
            JournalError: Another process has begun to write since this process opened the journal.
        """
        import psutil

        self._refuse_other_writer()
        process = {"pid": os.getpid(), "host": socket.gethostname(), "process_started": psutil.Process().create_time()}
        self.append("start", journal=self.identity, **fields, **process)

    def metrics(self, values: Mapping[str, float], step: int, *, optional: bool = False) -> None:
        """Append the metrics of one step. Raises JournalError like `append`."""
        # If the sum is finite, all values are finite. An infinite sum may be an overflow, so each value is checked.
        if not math.isfinite(sum(values.values())):
            values = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}  # type: ignore[misc]
        self.append("metrics", optional=optional, step=step, values=values)

    def append(self, kind: str, *, optional: bool = False, **fields: Any) -> None:
        """Append one record.

        Raises:
            JournalError: The record could not be written. The error is raised only once, and never for an `optional`
                record. Later records that fail are dropped silently, so that a full disk does not hide later errors.
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
        """Close the file, and delete it if it is empty."""
        self.close()
        with contextlib.suppress(OSError):  # already deleted, or read-only
            if not self.path.stat().st_size:
                self.path.unlink()

    def close(self) -> None:
        """Close the file. No record is lost, because the operating system already has all records."""
        self._file.close()

    def _refuse_other_writer(self) -> None:
        writer = last_lifecycle(self.path)
        # The parent process may be the writer, because a launcher can open the logger before it starts rank 0.
        if writer_alive(self.path) and writer.get("pid") not in (os.getpid(), os.getppid()):
            raise JournalError(f"{self.path.parent} is being written by process {writer['pid']}; use another folder")

    def _restore(self) -> None:
        """Restore a deleted journal from the file that is still open."""
        log.warning("%s was deleted during the run; writing its files again", self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file.seek(0)
        part = self.path.with_name(f".{JOURNAL}.part")
        with open(part, "wb") as file:
            shutil.copyfileobj(self._file, file)
        self._file.close()
        self._file = open(part, "a+b", buffering=0)  # noqa: SIM115
        os.replace(part, self.path)

    def _write(self, line: bytes) -> None:
        count = 0
        if not self.path.exists():
            self._restore()
        try:
            while count < len(line):
                count += self._file.write(line[count:]) or 0
        except OSError:
            # A full disk may store half a line. Remove this half, so that the next record starts on a new line.
            if count:
                with contextlib.suppress(OSError):
                    self._file.truncate(os.fstat(self._file.fileno()).st_size - count)
            raise


def repair(path: Path) -> int:
    """Remove an incomplete last line from the journal at `path`, and return the number of bytes removed.

    Only the writer may call this. A reader ignores an incomplete line, because the rest of the line may follow.
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
    """Yield each complete record after byte `offset`, with the offset of the next record.

    An invalid line, such as the zeros that a power cut leaves, gives `{"kind": "unreadable"}`. A missing file gives no
    records.
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
    """Yield the number (from 1) of each invalid line of the journal at `path`, and why the line is invalid."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.endswith(b"\n"):
                    parse(line)
            except RecordError as error:
                yield number, str(error)


def count_records(path: Path, offset: int = 0) -> int:
    """Number of complete lines of the journal at `path` after byte `offset`."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(offset)
        return sum(line.endswith(b"\n") for line in file)
    return 0


def starts_a_record(path: Path, offset: int) -> bool:
    """Whether byte `offset` of a journal is the start of a line or the end of the file."""
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
    """The first "start" record of the journal at `path`; {} if there is none."""
    return next((record for record in _lifecycle(path) if record["kind"] == "start"), {})


def last_lifecycle(path: Path) -> dict[str, Any]:
    """The last "start" or "end" record of the journal at `path`; {} if there is none."""
    return [{}, *_lifecycle(path)][-1]


def writer_alive(path: Path) -> bool:
    """Whether the last process that started the journal is still running and has not written an "end" record.

    A process on this machine is checked by its id, start time and status. A process on another machine counts as alive
    for `SILENCE_SECONDS` after its last record.
    """
    record = last_lifecycle(path)
    if record.get("kind") != "start":
        return False
    if record.get("host") != socket.gethostname():
        return record.get("pid") is not None and time.time() - path.stat().st_mtime < SILENCE_SECONDS
    return {"pid", "process_started"} <= record.keys() and process_alive(record["pid"], record["process_started"])


def process_alive(pid: int, started: float) -> bool:
    """Whether a process of this machine is running. Args: started: seconds since 1970."""
    import psutil

    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < 2.0
        return is_same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
