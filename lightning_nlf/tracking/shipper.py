"""The thread that carries a journal to MLflow while the training goes on.

The training only ever appends to the journal. Importing MLflow, creating a data base, a slow, dead or restarted server
all happen to this thread, which says so once, waits longer after each failure and begins where the last batch arrived.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lightning_nlf.tracking.destination import Destination, RunDeletedError
from lightning_nlf.tracking.journal import Journal, first_start
from lightning_nlf.tracking.server import reason
from lightning_nlf.tracking.uris import without_credentials

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks at the journal
LONGEST_WAIT = 30.0  # seconds between two attempts at a server that does not answer
SAMPLE_INTERVAL = 10.0  # seconds between two samples of the machine
QUIET_SECONDS = 2.0  # a closing thread that takes longer is worth a line
LAST_ATTEMPTS = 3  # failures in a row after which a closing thread stops trying


class Shipper:
    """Ships `journal` to `destination` from a daemon thread, and samples CPU and memory of this process into it.

    `system/cpu_percent` (of this process, 100 = one core) and `system/memory_mb` (resident, 10^6 bytes) have the
    seconds since the run began as their step.
    """

    def __init__(self, journal: Journal, destination: Destination) -> None:
        self._journal = journal
        self._destination = destination
        self._uri = without_credentials(destination.tracking_uri)
        self._closing = threading.Event()
        self._failures = 0
        self._warned = False
        self._warned_of_lines = False
        self._deleted = False
        self._thread = threading.Thread(target=self._run, name="mlflow-shipper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float, opening: float = 0.0) -> int | None:
        """Send what is left, for at most `timeout` seconds, and return how many records have not arrived.

        None where that cannot be read, in a process without file descriptors left.

        A server that fails `LAST_ATTEMPTS` times in a row is given up earlier. Where MLflow is still being imported or
        its data base made, that is waited for first, for at most `opening` seconds. A long wait is announced. The
        thread is not used again.
        """
        self._closing.set()
        self._wait_while_opening(opening)
        if self._thread.is_alive():
            self._thread.join(min(timeout, QUIET_SECONDS))
        if self._thread.is_alive() and timeout > QUIET_SECONDS:
            log.warning("waiting up to %.0f s for MLflow at %s …", timeout, self._uri)
            self._thread.join(timeout - QUIET_SECONDS)
        try:
            return 0 if self._deleted else self._destination.left()
        except OSError:
            return None

    def _wait_while_opening(self, seconds: float) -> None:
        began, announced = time.monotonic(), False
        while self._thread.is_alive() and self._destination.opening and time.monotonic() - began < seconds:
            self._thread.join(0.1)
            if not announced and time.monotonic() - began > QUIET_SECONDS:
                announced = True
                log.warning("MLflow is still starting; the run is then recorded in %s …", self._uri)

    def _run(self) -> None:
        sample = self._sampler()
        next_attempt = 0.0
        while not self._closing.is_set():
            if time.monotonic() >= next_attempt:
                next_attempt = time.monotonic() + self._attempt()
            if not self._closing.is_set():  # else the journal may be closed: an attempt can outlast the patience
                sample()
            self._closing.wait(min(INTERVAL, max(0.0, next_attempt - time.monotonic())))
        self._failures = 0
        while self._failures < LAST_ATTEMPTS:
            wait = self._attempt()
            if self._failures:
                time.sleep(0.3)
            elif wait:
                return

    def _attempt(self) -> float:
        """Ship one batch, and return the seconds to wait before the next: none after a batch, more after failures."""
        try:
            shipped = 0 if self._deleted else self._destination.ship_next()
            self._failures = 0
            if self._destination.unreadable and not self._warned_of_lines:
                self._warned_of_lines = True
                log.warning("%s has lines that are no records; they are left out", self._journal.path)
            return 0.0 if shipped else INTERVAL
        except RunDeletedError as error:
            log.warning("%s on the MLflow server: nothing more is sent, the journal goes on", error)
            self._deleted = True
        except Exception as error:  # noqa: BLE001
            # The outermost boundary of the thread: MLflow, urllib3, SQLAlchemy and the operating system each have
            # errors of their own for "not now", and no error of a bookkeeper may end a training.
            self._failures += 1
            if not self._warned:
                self._warned = True
                text = "MLflow at %s: %s. Training goes on; records are kept in %s and sent when it answers."
                log.warning(text, self._uri, reason(error), self._journal.path)
        return min(LONGEST_WAIT, 2.0**self._failures)

    def _sampler(self) -> Callable[[], None]:
        import psutil

        try:
            process = psutil.Process()
            process.cpu_percent()  # the first call only sets the mark
            began = first_start(self._journal.path)["time"] / 1000
        except OSError:  # no descriptor left: nothing is sampled
            return lambda: None
        due = time.monotonic() + SAMPLE_INTERVAL

        def sample() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + SAMPLE_INTERVAL
                try:
                    values = {
                        "system/cpu_percent": process.cpu_percent(),
                        "system/memory_mb": process.memory_info().rss / 1e6,
                    }
                except OSError:  # no descriptor left: this sample is missing, the records are not
                    return
                self._journal.metrics(values, int(time.time() - began), optional=True)

        return sample
