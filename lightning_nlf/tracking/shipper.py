"""Background thread that sends a journal to MLflow during training.

Training only appends to the journal. This thread imports MLflow, creates the database, and handles a slow, dead or
restarted server. If the server fails, the thread warns once, waits longer after each failure, and then continues after
the last batch that arrived.
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

INTERVAL = 1.0  # seconds between two checks of the journal
LONGEST_WAIT = 30.0  # longest time in seconds between two attempts to reach a server that does not answer
SAMPLE_INTERVAL = 10.0  # seconds between two samples of the machine
QUIET_SECONDS = 2.0  # a wait longer than this at the end of a stage is announced
LAST_ATTEMPTS = 3  # number of failures in a row after which a closing thread gives up


class Shipper:
    """Daemon thread that sends `journal` to `destination`, and logs CPU and memory of this process to the journal.

    The metrics are `system/cpu_percent` (of this process; 100 is one core) and `system/memory_mb` (resident memory, in
    10⁶ bytes). The step of these metrics is the number of seconds since the start of the run.
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
        """Send the remaining records and end the thread.

        The thread gives up early if the server fails `LAST_ATTEMPTS` times in a row. A long wait is announced.

        Args:
            timeout: Longest time for sending, in seconds.
            opening: Longest time for importing MLflow and creating its database, before `timeout` begins, in seconds.

        Returns:
            The number of records that have not arrived; None if this number cannot be read because no file descriptor
            is free.
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
                log.warning("waiting for MLflow to start, to send the run to %s …", self._uri)

    def _run(self) -> None:
        sample = self._sampler()
        next_attempt = 0.0
        while not self._closing.is_set():
            if time.monotonic() >= next_attempt:
                next_attempt = time.monotonic() + self._attempt()
            if not self._closing.is_set():  # an attempt can last longer than `close`, and then the journal is closed
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
        """Send one batch, and return the seconds until the next batch: 0 after a success, more after failures."""
        try:
            shipped = 0 if self._deleted else self._destination.ship_next()
            self._failures = 0
            if self._destination.unreadable and not self._warned_of_lines:
                self._warned_of_lines = True
                log.warning("%s has invalid lines, which are skipped", self._journal.path)
            return 0.0 if shipped else INTERVAL
        except RunDeletedError as error:
            log.warning("%s on the MLflow server. No more records are sent; the journal keeps them", error)
            self._deleted = True
        except Exception as error:  # noqa: BLE001
            # MLflow, urllib3, SQLAlchemy and the operating system raise different errors if the server does not
            # answer, and an error of tracking must never end a fit.
            self._failures += 1
            if not self._warned:
                self._warned = True
                text = "MLflow at %s: %s. Training continues; records are saved in %s and sent when MLflow answers."
                log.warning(text, self._uri, reason(error), self._journal.path)
        return min(LONGEST_WAIT, 2.0**self._failures)

    def _sampler(self) -> Callable[[], None]:
        import psutil

        try:
            process = psutil.Process()
            process.cpu_percent()  # the first call only starts the measurement
            began = first_start(self._journal.path)["time"] / 1000
        except OSError:  # no file descriptor is free, so log no samples
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
                except OSError:  # no file descriptor is free, so skip this sample
                    return
                self._journal.metrics(values, int(time.time() - began), optional=True)

        return sample
