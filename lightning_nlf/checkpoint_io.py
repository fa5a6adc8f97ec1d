"""Save checkpoints atomically, and load them without running code."""

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

# Errors that torch's reader raises for a damaged file.
_DAMAGE = (RuntimeError, OSError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError)
SYNC_SECONDS = 5.0  # minimum time between two fsyncs of one file: an fsync takes some ms, and last.ckpt is saved often


class SafeCheckpointIO(CheckpointIO):
    """Checkpoint plugin that replaces files atomically, and loads only tensors and plain containers.

    If the process is killed, either the old or the new file is complete. The same holds after a power cut, unless the
    file was already saved within the last `SYNC_SECONDS`. The remaining files are synced at the end of the stage.
    """

    def __init__(self) -> None:
        self._synced: dict[Path, float] = {}  # time of the last sync of each file
        self._unsynced: set[Path] = set()
        self._checked = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint by replacing `path` atomically.

        Raises:
            OSError: The file could not be written (disk full, folder read-only). The old file is unchanged.
            ValueError: The checkpoint holds objects that `load_checkpoint` would refuse. Only the first save is
                checked, so that a run does not train for hours and then fail to resume.
        """
        if storage_options is not None:
            raise ValueError("storage_options: not supported, because checkpoints are local files")
        path = Path(path)
        # The temporary name is fixed, so that the next save overwrites the leftover of a killed process.
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
                error.errno, f"cannot save the checkpoint; the previous one is unchanged: {reason}", str(path)
            ) from error
        if sync:
            self._synced[path] = now
            self._unsynced.discard(path)
        else:
            self._unsynced.add(path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint without running any code in it.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file contains code or unknown objects, is damaged, or is not a checkpoint. Also if
                `weights_only` is False.
        """
        if weights_only is False:
            raise ValueError(
                f"{path}: weights_only=False is not supported, because it would run code in the checkpoint"
            )
        if not Path(path).is_file():
            raise FileNotFoundError(f"the checkpoint {path} does not exist")
        with open(path, "rb") as file:
            try:
                _check_sums(file)
                content = torch.load(file, map_location=map_location, weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(_refusal(path, error)) from None
            except (*_DAMAGE, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is damaged, incomplete or not a checkpoint") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a checkpoint: it contains a {type(content).__name__}")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file if it exists."""
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        """Sync the files whose last save was not synced."""
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
            foreign = _foreign(error)
            raise ValueError(
                f"{path}: the checkpoint contains {foreign}, so it could not be loaded again; save plain values instead"
            ) from None
        self._checked = True


def _write(checkpoint: dict[str, Any], part: Path, sync: bool) -> None:
    with _Recorder(io.FileIO(part, "w")) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError:
            if file.error is not None:  # torch only reports "unexpected pos"
                raise file.error from None
            raise
        file.flush()
        if sync:
            os.fsync(file.fileno())


class RunCheckpointIO(SafeCheckpointIO):
    """Checkpoint plugin for a Trainer. In addition, it checks that a checkpoint has all parts of a run."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint as `SafeCheckpointIO` does.

        Raises:
            FileNotFoundError, ValueError: As in `SafeCheckpointIO`. Also if a part that every stage needs is missing.
        """
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        check_run(checkpoint, path)
        return checkpoint


class _Recorder(io.BufferedWriter):
    """A file writer that keeps the error of a failed write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _check_sums(file: IO[bytes]) -> None:
    """Check the checksums of all bytes. Torch writes checksums but never checks them.

    Raises:
        zipfile.BadZipFile: The file was changed.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as content:
            if (name := content.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {name} is wrong")
    file.seek(0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: str | Path, error: pickle.UnpicklingError) -> str:
    if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
        return f"{path} is damaged, incomplete or not a checkpoint"
    return f"{path} was refused: it contains {_foreign(error)}, and loading that would run code"


def _foreign(error: pickle.UnpicklingError) -> str:
    """Describe the object that torch refused to load."""
    words = str(error).split("GLOBAL ", 1)
    return f"`{words[1].split()[0]}`" if len(words) == 2 else "objects other than tensors and plain values"
