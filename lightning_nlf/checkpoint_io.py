"""How a checkpoint gets onto the disk and back: whole or not at all, and never as code."""

from __future__ import annotations

import io
import os
import pickle
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lightning_nlf.checkpoint_content import check_run

# How torch's reader says that bytes are missing or wrong.
_DAMAGE = (RuntimeError, OSError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError)
SYNC_SECONDS = 5.0  # between two fsyncs of one file: they take some ms, and `last` is written every iteration


class SafeCheckpointIO(CheckpointIO):
    """Writes beside the old file and renames; reads tensors and plain containers only.

    A process that is killed leaves the old or the new file whole. So does a power cut, if the file had not been
    written within `SYNC_SECONDS` before; a file that has not been synced is, when the stage ends.
    """

    def __init__(self) -> None:
        self._synced: dict[Path, float] = {}  # when each file was last on the disk for sure
        self._unsynced: set[Path] = set()
        self._checked = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replaces `path` in one step.

        Raises:
            OSError: it could not be written (disk full, folder read-only); the file that was there is untouched.
            ValueError: the checkpoint holds objects that `load_checkpoint` would refuse. Asked of the first save
                only: the next hours would be lost if that came out at the resume.
        """
        if storage_options is not None:
            raise ValueError("storage_options: checkpoints are local files, got options")
        path = Path(path)
        # One name, not a random one: what a kill left behind is overwritten, not collected.
        part = path.with_name(f".{path.name}.part")
        now = time.monotonic()
        sync = now - self._synced.get(path, -SYNC_SECONDS) >= SYNC_SECONDS
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, part, sync)
            self._check(part, path)
            os.replace(part, path)
            if sync:
                _sync(path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            reason = error.strerror or error
            raise OSError(
                error.errno, f"cannot save the checkpoint, the one before is kept: {reason}", str(path)
            ) from error
        if sync:
            self._synced[path] = now
            self._unsynced.discard(path)
        else:
            self._unsynced.add(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, without running anything in it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds code or foreign objects, it is cut short or no checkpoint, or `weights_only` is False.
        """
        if weights_only is False:
            raise ValueError(
                f"{path}: checkpoints are never loaded with weights_only=False, which would run their code"
            )
        if not Path(path).is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        with open(path, "rb") as file:
            try:
                _check_sums(file)
                loaded = torch.load(file, map_location=map_location, weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(_refusal(path, error)) from None
            except (*_DAMAGE, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is cut short, damaged, or no checkpoint") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{path} is no checkpoint: it holds a {type(loaded).__name__}")
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file, if there is one."""
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        """Brings to the disk what the last saves left to the operating system."""
        for path in self._unsynced:
            if path.exists():
                _sync(path)
        self._unsynced.clear()

    def _check(self, part: Path, path: Path) -> None:
        if self._checked:
            return
        try:
            torch.load(part, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            part.unlink()
            what = _foreign(error)
            raise ValueError(
                f"{path} would hold {what}, and so could never be loaded again: save plain values"
            ) from None
        self._checked = True


def _write(checkpoint: dict[str, Any], part: Path, sync: bool) -> None:
    with _Recorder(io.FileIO(part, "w")) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError:
            if file.error is not None:  # torch hides the cause behind "unexpected pos"
                raise file.error from None
            raise
        file.flush()
        if sync:
            os.fsync(file.fileno())


class RunCheckpointIO(SafeCheckpointIO):
    """The same for a Trainer, which gets nothing but a whole checkpoint of a run."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises: as `SafeCheckpointIO.load_checkpoint`; ValueError: a part that every stage reads is missing."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        check_run(checkpoint, path)
        return checkpoint


class _Recorder(io.BufferedWriter):
    """A file that remembers why a write failed."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _check_sums(file: IO[bytes]) -> None:
    """Compares all bytes with their checksums, which torch writes and does not read. Raises BadZipFile."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as content:
            if (name := content.testzip()) is not None:
                raise zipfile.BadZipFile(f"{name} is not what was written")
    file.seek(0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: str | Path, error: pickle.UnpicklingError) -> str:
    if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
        return f"{path} is cut short, damaged, or no checkpoint"
    return f"{path} is refused: it holds {_foreign(error)}, which only running its code could load"


def _foreign(error: pickle.UnpicklingError) -> str:
    words = str(error).split("GLOBAL ", 1)
    return f"`{words[1].split()[0]}`" if len(words) == 2 else "more than tensors and plain values"
