"""Lightning logger that writes a journal in the run folder. A thread copies the journal to MLflow.

Training never waits for MLflow, and an error of MLflow never ends it. Records that have not reached the server remain
in the journal. `python -m lightning_nlf.tracking sync RUN_DIR` sends them later.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import hashlib
import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_nlf.numbers import Positive
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.hyperparameters import LONGEST_TAG, cut, flatten
from lightning_nlf.tracking.journal import Journal, first_start, last_lifecycle
from lightning_nlf.tracking.position import default_run_name, default_tracking_uri, resolve_tracking_uri
from lightning_nlf.tracking.shipper import Shipper
from lightning_nlf.tracking.uris import without_credentials

log = logging.getLogger(__name__)

FLUSH_SECONDS = 15.0  # longest wait for MLflow at the end of a stage
# Longest wait, before FLUSH_SECONDS begin, for importing MLflow and creating the database. New runs that start at the
# same time wait for each other.
OPENING_SECONDS = 120.0
INTERRUPTED_SECONDS = 3.0  # longest wait after Ctrl-C, because Lightning ignores a second Ctrl-C
LARGEST_MB = 100.0  # larger files are not copied
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "aborted": "KILLED"}


class MLflowJournalLogger(Logger):
    """Logs to `<save_dir>/journal.jsonl` first, and from there to MLflow.

    One run folder is one run: `name` and `version` are empty, and `log_dir` is `save_dir`. If the folder already has a
    journal, the logger continues the same MLflow run. It writes nothing before the first record of the training, so
    that a refused resume leaves no trace. If `waits` is True, a new run also writes nothing before this record. Only
    rank 0 writes, and it opens no file before the first record.

    Args:
        save_dir: Path of the run folder.
        experiment: Name of the MLflow experiment, which is created if necessary.
        run_name: Name of the run in MLflow. By default the path of the run folder below `outputs`.
        tracking_uri: URI of the MLflow store. By default the environment variable MLFLOW_TRACKING_URI. If this is not
            set, the database `mlflow.db` in `outputs`, or in the parent of a run folder that is not below `outputs`.
            Artifacts are in the folder `mlartifacts` next to the database.
        largest_mb: Size limit in megabytes (10⁶ bytes) of files that are copied to MLflow. For a larger file, such as
            the checkpoint of a large model, only a tag `not_copied/<path>` is set, with the path, size and SHA-256 of
            the file.
        tags: Tags of the run in MLflow, set at each start.
    """

    def __init__(
        self,
        save_dir: str,
        experiment: str = "lightning_nlf",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        largest_mb: Positive = LARGEST_MB,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._largest = int(largest_mb * 1e6)
        self._run_dir = Path(save_dir)
        self._experiment = experiment
        self._run_name = run_name or default_run_name(self._run_dir)
        self._given_uri = tracking_uri
        self._tags = tags or {}
        self._journal: Journal | None = None
        self._shipper: Shipper | None = None
        self._process: int | None = None
        self._started = False  # whether this process has written its start record
        self._params: dict[str, str] = {}  # parameters that were logged before the start record
        self._step = 0
        self._status: str | None = None
        self.waits = False

    @property
    def name(self) -> str:
        """Empty, because the run folder has no subfolders for names and versions."""
        return ""

    version = name

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    root_dir = log_dir = save_dir

    @property
    def tracking_uri(self) -> str:
        """URI of the MLflow store."""
        return resolve_tracking_uri(self._run_dir, self._given_uri)

    @property
    @rank_zero_experiment
    def experiment(self) -> Journal:
        """The journal, which is opened on first use. Raises JournalError if the run folder cannot be written.

        Lightning reads this property before it loads a checkpoint.
        """
        # A forked process has a copy of the logger without its thread, so it opens the journal again.
        if self._journal is None or self._process != os.getpid():
            self._open()
        assert self._journal is not None
        return self._journal

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics (numbers or one-element tensors) at `step`, by default the last step.

        Raises:
            JournalError: The disk is full or the folder is read-only. Raised only once.
        """
        self._step = self._step if step is None else int(step)
        self._started_journal().metrics({key: float(value) for key, value in metrics.items()}, self._step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log parameters. Nested parameters get names like `optimizer/init_args/lr`, and long values are cut."""
        if values := flatten(params):
            _ = self.experiment  # open the journal now, so that an unwritable folder raises its error now
            if self._started:
                self._started_journal().append("params", values=values)
            else:
                self._params |= values

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run. A new value replaces the old one."""
        if tags:
            self._started_journal().append(
                "tags", values={key: cut(str(value), LONGEST_TAG) for key, value in tags.items()}
            )

    @rank_zero_only
    def log_artifact(self, path: str | Path) -> None:
        """Send a file or folder of the run folder to MLflow, or set a tag for a file above the size limit.

        The thread sends the file later, with its content at that time. A file may be logged again after each change,
        and MLflow keeps the newest version. A relative path starts at the run folder.

        Raises:
            ValueError: `path` is not inside the run folder.
        """
        root = self._run_dir.resolve()
        file = (root / path).resolve() if not Path(path).is_absolute() else Path(path).resolve()
        if not file.is_relative_to(root) or file == root:
            raise ValueError(f"an artifact must be inside the run folder {self._run_dir}: {path}")
        name = file.relative_to(root).as_posix()
        if file.is_file() and (size := file.stat().st_size) > self._largest:
            with open(file, "rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            self.set_tags({f"not_copied/{name}": f"{file} ({size / 1e6:,.4g} MB, SHA-256 {digest})"})
        else:
            self._started_journal().append("artifact", path=name)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run as FINISHED, KILLED (interrupted or terminated) or FAILED, and wait a while for MLflow.

        A later record, such as a metric of `test` after `fit`, opens the same run again.
        """
        interrupted = isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit))
        ending = _STATUS.get(status) or ("KILLED" if interrupted else "FAILED")
        # The run was never opened, or has already ended with this status.
        if self._journal is None and self._status in (None, ending):
            return
        # The run was refused before it started, so leave the folder unchanged.
        if self._journal is not None and not self._started:
            self._journal.discard()
            self._journal = None
            return
        journal = self._started_journal()
        journal.append("end", status=ending)
        self._status = ending
        atexit.unregister(self._at_exit)
        patience = (INTERRUPTED_SECONDS,) if interrupted else (FLUSH_SECONDS, OPENING_SECONDS)
        left = self._shipper.close(*patience) if self._shipper else 0
        journal.close()
        self._journal = self._shipper = None
        self._started = False
        if left != 0:
            command = ["python", "-m", "lightning_nlf.tracking", "sync", self.save_dir]
            command += ["--tracking_uri", uri] if (uri := self._chosen_uri()) else []
            records = "some records may" if left is None else f"{left} records"
            log.warning("%s have not reached MLflow. To send them later: %s", records, shlex.join(command))

    def _chosen_uri(self) -> str | None:
        """The tracking URI without credentials. None for the default, which depends on the place of the run folder."""
        uri = self.tracking_uri
        return None if uri == default_tracking_uri(self._run_dir) else without_credentials(uri)

    def _open(self) -> None:
        self._journal = Journal(self._run_dir)
        self._process = os.getpid()
        self._started = False
        self._params = {}
        if not self.waits and not first_start(self._journal.path):
            self._start(self._journal)

    def _start(self, journal: Journal) -> None:
        """Write the start record of this process, and start the thread that sends records."""
        self._started = True
        uri = self._chosen_uri()
        journal.start(experiment=self._experiment, run_name=self._run_name, tracking_uri=uri, **_origin())
        if self._params:
            journal.append("params", values=self._params)
        if self._tags:
            journal.append("tags", values={key: cut(value, LONGEST_TAG) for key, value in self._tags.items()})
        self._shipper = Shipper(journal, Destination(self._run_dir, self.tracking_uri))
        self._shipper.start()
        atexit.register(self._at_exit)

    def _started_journal(self) -> Journal:
        """The journal, after the start record of this process has been written."""
        journal = self.experiment
        if not self._started:
            self._start(journal)
        return journal

    def _at_exit(self) -> None:
        """End a run that is still open at exit, after an error outside the Trainer or a record after the last stage."""
        if self._journal is None or self._process != os.getpid():
            return
        try:
            last = last_lifecycle(self._journal.path)
        except OSError as error:
            log.warning("could not write the end of the run: %s", error.strerror)
            return
        # If this process only started rank 0, rank 0 ends the run.
        if last.get("pid") != self._process:
            return
        crashed = getattr(sys, "last_value", None) is not None
        endings = {"FINISHED": "success", "KILLED": "aborted"}
        self.finalize("failed" if crashed else endings.get(self._status or "", "failed"))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned rank gets the settings, but neither the open file nor the thread.
        return self.__dict__ | {"_journal": None, "_shipper": None, "_process": None, "_started": False}


def _origin() -> dict[str, str]:
    """User and program that started the run, for MLflow's list of runs."""
    program = Path(sys.argv[0])
    # After `python -m package`, this is the path of the package's __main__.py.
    origin = {"source.name": (program.parent if program.name == "__main__.py" else program).name or "python"}
    with contextlib.suppress(KeyError, OSError):  # in a container, the user id may have no entry
        origin["user"] = getpass.getuser()
    return origin
