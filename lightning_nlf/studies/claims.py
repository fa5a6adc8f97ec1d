"""Claim a folder, so that only one process of all machines with the same disk works in it.

A claim is a file: `claim.json`, or `claim-2.json` and so on after earlier claims that were released or whose process
died. Only the file with the highest number counts, and no file is deleted. Therefore two processes that take over the
same dead claim both try to create the same file, and the file system lets only one of them succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from lightning_nlf.tracking.journal import process_alive

BEAT_SECONDS = 5.0  # the owner of a claim touches its file this often
SILENCE_SECONDS = 60.0  # a claim of another machine that was not touched for this long is dead


class Claim:
    """A claimed folder, as a context manager that releases the claim. `take` makes it.

    A thread touches the file at intervals. `is_lost` becomes True if another process took the claim over, which happens
    only after this process was suspended for a minute.
    """

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content
        self.is_lost = False
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="claim", daemon=True).start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes claim the folder."""
        self._over.set()
        part = self.file.with_suffix(".part")
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted
            part.write_text(json.dumps(self.content | {"released": True}), encoding="utf-8")
            part.replace(self.file)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS) and not self.is_lost:
            with contextlib.suppress(OSError):  # a disk of the network may be away for a moment
                os.utime(self.file)
                self.is_lost = _last_number(self.file.parent) > _number(self.file)


def take(folder: Path) -> Claim | None:
    """Claim a folder, which is created if necessary. Returns None if another live process has it."""
    import psutil

    folder.mkdir(parents=True, exist_ok=True)
    last = _last_number(folder)
    if last and _is_alive(_file(folder, last)):
        return None
    file = _file(folder, last + 1)
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    content = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}
    content["token"] = secrets.token_hex(8)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(content))
    return Claim(file, content)


def holder(folder: Path) -> dict[str, Any] | None:
    """Host and process of the live claim of a folder; None if there is none."""
    last = _last_number(folder)
    return _read(_file(folder, last)) if last and _is_alive(_file(folder, last)) else None


def _is_alive(file: Path) -> bool:
    content = _read(file)
    if content.get("released"):
        return False
    if content.get("host") == socket.gethostname():
        return process_alive(content["pid"], content["process_started"])
    return _age(file) < SILENCE_SECONDS  # also if its owner has created it and not written it yet


def _age(file: Path) -> float:
    """Seconds since a file was touched, by the clock of its disk, because the clocks of machines differ."""
    probe = file.parent / f".now-{secrets.token_hex(8)}"
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mtime - file.stat().st_mtime
    finally:
        probe.unlink()


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except json.JSONDecodeError:
        return {}


def _file(folder: Path, number: int) -> Path:
    return folder / ("claim.json" if number == 1 else f"claim-{number}.json")


def _number(file: Path) -> int:
    match = re.fullmatch(r"claim(?:-(\d+))?\.json", file.name)
    return int(match[1] or 1) if match else 0


def _last_number(folder: Path) -> int:
    """Number of the last claim of a folder; 0 without one."""
    return max((_number(file) for file in folder.glob("claim*.json")), default=0)
