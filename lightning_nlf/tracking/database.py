"""Create the SQLite database of a folder of runs atomically.

MLflow creates its tables in about seventy steps, and refuses a database in which these steps stopped half-way. In this
module, the steps run on a file in a temporary folder next to the target. The complete file then takes the name of the
target. Several processes may do this at once. The file of the first process to finish is kept, and the leftovers of a
killed process do no harm.
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

LOCK_SECONDS = 60.0  # longest wait for another process that is creating the database
QUIET_SECONDS = 10.0  # an incomplete database that has not changed for this long is abandoned
_ANNOUNCED_SECONDS = 2.0  # a longer wait is announced
_INTERVAL = 0.1  # seconds between two checks
_SIDE_FILES = ("", "-journal", "-wal", "-shm")
# Conditions that exclude rows which MLflow itself creates in new tables.
_INITIAL_ROWS = {"experiments": "experiment_id != 0", "workspaces": "name != 'default'"}


def create_database(path: Path) -> None:
    """Create MLflow's database at `path` unless it exists. Imports MLflow.

    An incomplete database without any run, experiment or model is renamed to `<name>.broken-<n>`. A database that
    contains any data is not changed.

    Raises:
        RuntimeError: The file is not a database, or cannot be opened.
        OSError: The folder cannot be written.
    """
    if _usable(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as locked:
        files = _side_files(path)  # list them before the check, so that no later file is moved
        if _usable(path) or _becomes_usable(path):
            return
        if locked:
            _remove_leftovers(path)
        _move_aside(path, files)
        _make(path)


def has_other_version(path: Path) -> bool:
    """Whether the tables at `path` are from a different version of MLflow than the installed version."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
        return _revision(connection) != _last_revision()
    return False


def _usable(path: Path) -> bool:
    """Whether the database is complete, or contains any data besides MLflow's initial rows."""
    try:
        # A process that was killed at its first table leaves an empty file.
        if path.stat().st_size == 0 and not _side_files(path)[1:]:
            return False
        with contextlib.closing(sqlite3.connect(path, timeout=5.0)) as connection:
            return _holds_rows(connection) or _revision(connection) == _last_revision()
    except FileNotFoundError:
        return False
    except sqlite3.Error as error:
        raise RuntimeError(f"cannot open {path} as an MLflow database: {error}") from error


def _holds_rows(connection: sqlite3.Connection) -> bool:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in sorted(set(tables) - {"alembic_version", "sqlite_sequence"}, key=lambda name: name != "runs"):
        where = _INITIAL_ROWS.get(table, "1")
        quoted = table.replace('"', '""')
        if connection.execute(f'SELECT EXISTS(SELECT 1 FROM "{quoted}" WHERE {where})').fetchone()[0]:
            return True
    return False


def _revision(connection: sqlite3.Connection) -> str | None:
    with contextlib.suppress(sqlite3.OperationalError):  # the version table does not exist before the first step
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None
    return None


def _last_revision() -> str | None:
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()


def _becomes_usable(path: Path) -> bool:
    """Wait while a tool of MLflow, which does not use our lock, creates the tables at `path`."""
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
    """Time of the last change of the database in seconds since 1970; 0 if no file exists."""
    return max((file.stat().st_mtime for file in _side_files(path)), default=0.0)


def _side_files(path: Path) -> list[Path]:
    """The existing files of a database: the file itself, and the files that SQLite adds."""
    return [file for suffix in _SIDE_FILES if (file := path.with_name(path.name + suffix)).exists()]


def _move_aside(path: Path, files: list[Path]) -> None:
    # SQLite would apply an old journal to the new database.
    existing = {name for name in os.listdir(path.parent) if name.startswith(f"{path.name}.broken-")}
    places = (f"{path.name}.broken-{number}" for number in itertools.count(1))
    place = next(place for place in places if not existing & {place + suffix for suffix in _SIDE_FILES})
    for file in files:
        if file.stat().st_size:
            file.rename(path.with_name(place + file.name.removeprefix(path.name)))
        else:
            file.unlink()
    if any(path.parent.glob(f"{glob.escape(place)}*")):
        log.warning("%s was incomplete and had no run: renamed it to %s and created a new one", path, place)


def _make(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        fresh = Path(folder) / path.name
        store = SqlAlchemyStore(sqlite_uri(fresh), artifact_location(sqlite_uri(path)))
        store.engine.dispose()
        try:
            os.link(fresh, path)  # unlike a rename, a link does not replace an existing file
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without hard links
            fresh.rename(path)


def _remove_leftovers(path: Path) -> None:
    """Delete temporary folders of killed processes."""
    for folder in path.parent.iterdir():
        if folder.name.startswith(f".{path.name}-") and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock on the folder of `path`, or continue without a lock after `LOCK_SECONDS`.

    The lock only saves work: without it, several processes may create the same database.

    The folder itself is locked, so that no lock file remains. The system releases the lock of a killed process.
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
            fcntl.flock(folder, fcntl.LOCK_UN)  # closing is not enough if a forked process also has the folder open
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
                log.warning("waiting up to %.0f s for another process that creates %s …", LOCK_SECONDS, path)
            time.sleep(_INTERVAL)
        except OSError:  # some network folders do not support locks
            return False
    return False
