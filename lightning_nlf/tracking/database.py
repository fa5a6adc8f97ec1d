"""The SQLite data base of a folder of runs, made whole or not at all.

MLflow makes its tables in some seventy steps, and refuses a data base in which they stopped half-way. So the steps run
on a file in a temporary folder beside the place, and the file gets its name when it is whole. Several processes may do
so at once: the first to finish gives the name, and whatever a killed one leaves is in nobody's way.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_nlf.tracking.uris import artifact_location, sqlite_uri

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK_SECONDS = 60.0  # the longest wait for another process that makes the data base
QUIET_SECONDS = 10.0  # a half-made data base that did not change for so long is nobody's work
_ANNOUNCED_SECONDS = 2.0  # a longer wait is worth a line
_INTERVAL = 0.1  # seconds between two looks
_SIDE_FILES = ("", "-journal", "-wal", "-shm")
# What a data base without a single run holds.
_MADE_WITH_THE_TABLES = {"experiments": "experiment_id != 0", "workspaces": "name != 'default'"}


def make_whole(path: Path) -> None:
    """Make MLflow's data base at `path`, unless there is one.

    A half-made one without any run, experiment or model is moved to `<name>.broken-<n>`. One that holds something is
    left as it is, whatever its state. Importing MLflow happens here.

    Raises:
        RuntimeError: the file is no data base, or cannot be opened.
        OSError: the folder cannot be written.
    """
    if _usable(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as locked:
        files = _side_files(path)  # before the look: nothing that comes later is moved
        if _usable(path) or _becomes_usable(path):
            return
        if locked:
            _remove_leftovers(path)
        _move_aside(path, files)
        _make(path)


def of_other_version(path: Path) -> bool:
    """Whether the tables at `path` are not those of the MLflow that is installed."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
        return _revision(connection) != _last_revision()
    return False


def _usable(path: Path) -> bool:
    """Whether the data base is whole, or holds something."""
    try:
        # An empty file is what a process leaves that was killed at its first table.
        if path.stat().st_size == 0 and not _side_files(path)[1:]:
            return False
        with contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
            return _holds_rows(connection) or _revision(connection) == _last_revision()
    except FileNotFoundError:
        return False
    except sqlite3.Error as error:
        raise RuntimeError(f"{path} is no MLflow data base that can be opened: {error}") from error


def _holds_rows(connection: sqlite3.Connection) -> bool:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in sorted(set(tables) - {"alembic_version", "sqlite_sequence"}, key=lambda name: name != "runs"):
        where = _MADE_WITH_THE_TABLES.get(table, "1")
        quoted = table.replace('"', '""')
        if connection.execute(f'SELECT EXISTS(SELECT 1 FROM "{quoted}" WHERE {where})').fetchone()[0]:
            return True
    return False


def _revision(connection: sqlite3.Connection) -> str | None:
    with contextlib.suppress(sqlite3.OperationalError):  # no such table: it is made with the first step
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None
    return None


def _last_revision() -> str | None:
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()


def _becomes_usable(path: Path) -> bool:
    """Wait while a tool of MLflow's own, which knows no lock, makes the tables at `path`."""
    changed, since = _last_change(path), time.monotonic()
    if time.time() - changed > QUIET_SECONDS:
        return False
    while time.monotonic() - since < QUIET_SECONDS:
        time.sleep(_INTERVAL)
        if _usable(path):
            return True
        if (now := _last_change(path)) != changed:
            changed, since = now, time.monotonic()
    return False


def _last_change(path: Path) -> float:
    """Seconds since 1970; 0 where there is nothing."""
    return max((file.stat().st_mtime for file in _side_files(path)), default=0.0)


def _side_files(path: Path) -> list[Path]:
    """The data base and what SQLite keeps beside it, as far as they are there."""
    return [file for suffix in _SIDE_FILES if (file := path.with_name(path.name + suffix)).exists()]


def _move_aside(path: Path, files: list[Path]) -> None:
    # A journal that stays would be rolled back into the new data base.
    taken = {name for name in os.listdir(path.parent) if name.startswith(f"{path.name}.broken-")}
    places = (f"{path.name}.broken-{number}" for number in itertools.count(1))
    place = next(place for place in places if not taken & {place + suffix for suffix in _SIDE_FILES})
    for file in files:
        if file.stat().st_size:
            file.rename(path.with_name(place + file.name.removeprefix(path.name)))
        else:
            file.unlink()
    if any(path.parent.glob(f"{glob.escape(place)}*")):
        log.warning("%s was left half-made, without any run: it is now %s, and is made anew", path, place)


def _make(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        fresh = Path(folder) / path.name
        store = SqlAlchemyStore(sqlite_uri(fresh), artifact_location(sqlite_uri(path)))
        store.engine.dispose()
        try:
            os.link(fresh, path)  # which replaces nothing, unlike a rename
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a disk without links
            fresh.rename(path)


def _remove_leftovers(path: Path) -> None:
    """Temporary folders of processes that were killed."""
    for folder in path.parent.iterdir():
        if folder.name.startswith(f".{path.name}-") and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of the folder of `path`, or go on without it after `LOCK_SECONDS`: it only saves work.

    The folder is locked, not a file that would have to lie there for ever. The system unlocks it for a killed process.
    """
    if fcntl is None:
        yield False
        return
    folder = os.open(path.parent, os.O_RDONLY)
    locked = False
    try:
        locked = _lock(folder, path)
        yield locked
    finally:
        if locked:
            fcntl.flock(folder, fcntl.LOCK_UN)  # a forked process may have the folder open, too
        os.close(folder)


def _lock(folder: int, path: Path) -> bool:
    since, announced = time.monotonic(), False
    while time.monotonic() - since < LOCK_SECONDS:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not announced and time.monotonic() - since > _ANNOUNCED_SECONDS:
                announced = True
                log.warning("waiting up to %.0f s for another process that makes %s …", LOCK_SECONDS, path)
            time.sleep(_INTERVAL)
        except OSError:  # some network folders know no locks
            return False
    return False
