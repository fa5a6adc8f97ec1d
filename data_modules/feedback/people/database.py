"""The SQLite file of an MLflow store: find its path, and create it atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def file_of(uri: str) -> Path | None:
    """The path of an SQLite database, by SQLAlchemy's rules for URIs; None for a server."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return None if name in (None, "", ":memory:") else Path(name).resolve()


def make(path: Path) -> None:
    """Create an SQLite store under a temporary name, and rename it when it is complete.

    Without the temporary name, a process killed in between would leave a store that MLflow refuses to open.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _alone_in(path.parent),
        tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True) as folder,
    ):
        if path.exists():
            return  # another process was faster
        fresh = Path(folder) / path.name
        store = SqlAlchemyStore(f"sqlite+pysqlite:///{quote(str(fresh))}", quote(str(path.parent / "mlartifacts")))
        store.engine.dispose()
        try:
            os.link(fresh, path)  # unlike a rename, a link never replaces a file
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # file system without hard links
            fresh.rename(path)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, as a run's logger does, because migrations in two threads of one process interfere."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
