"""Optuna's journal in the folder of a study, and a lock that holds for all processes on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_nlf.tracking.journal import repair

LOG = "optuna.log"


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold the lock of a file against all processes on the disk. One left by a killed process opens after 30 s."""
    from optuna.storages.journal import JournalFileOpenLock

    mutex = JournalFileOpenLock(str(file.resolve()))
    mutex.acquire()
    try:
        yield
    finally:
        mutex.release()


def storage(folder: Path) -> Any:
    """Optuna's storage in a study's folder. A line that a killed process left incomplete is removed first."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = (folder / LOG).resolve()
    with lock(file):
        repair(file)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))
