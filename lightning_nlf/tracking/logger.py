"""The Lightning logger of this library: a journal in the run folder, mirrored to MLflow by a thread.

A training never waits for MLflow and never fails because of it. What a server has not got yet is in the journal, and
`python -m lightning_nlf.tracking sync RUN_DIR` sends it later.
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
from lightning_nlf.tracking.position import default_tracking_uri, resolve_tracking_uri
from lightning_nlf.tracking.shipper import Shipper
from lightning_nlf.tracking.uris import without_credentials

log = logging.getLogger(__name__)

FLUSH_SECONDS = 15.0  # the longest that the end of a stage waits for MLflow
# The longest that it waits before that for MLflow to be imported and a data base to be made: first runs that begin
# together wait for each other.
OPENING_SECONDS = 120.0
INTERRUPTED_SECONDS = 3.0  # the same for somebody who pressed Ctrl-C, which Lightning does not hear a second time
LARGEST_MB = 100.0  # of a file that is copied
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "aborted": "KILLED"}


class MLflowJournalLogger(Logger):
    """Logs to `<save_dir>/journal.jsonl` first, and from there to MLflow.

    The run folder is the run: `name` and `version` are empty, `log_dir` is `save_dir`. A folder that already has a
    journal continues the same MLflow run, from the first record that training makes: a resume that is refused before
    leaves no trace. With `waits` a fresh folder has none either. Only rank 0 writes; nothing is opened before the first
    record.

    Args:
        save_dir: the run folder.
        experiment: the MLflow experiment, created where it is missing.
        run_name: shown by MLflow; by default the name of the run folder.
        tracking_uri: of the MLflow store. By default the variable MLFLOW_TRACKING_URI, else
            `sqlite:///<folder above the run folder>/mlflow.db` with `mlartifacts` beside it.
        largest_mb: a file of more megabytes (10⁶ bytes), such as the checkpoint of a large model, is not copied: a tag
            `not_copied/<path>` says its path, size and SHA-256.
    """

    def __init__(
        self,
        save_dir: str,
        experiment: str = "lightning_nlf",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        largest_mb: Positive = LARGEST_MB,
    ) -> None:
        super().__init__()
        self._largest = int(largest_mb * 1e6)
        self._run_dir = Path(save_dir)
        self._experiment = experiment
        self._run_name = run_name or self._run_dir.resolve().name
        self._given_uri = tracking_uri
        self._journal: Journal | None = None
        self._shipper: Shipper | None = None
        self._process: int | None = None
        self._started = False  # this process stands in the journal
        self._params: dict[str, str] = {}  # come before training does
        self._step = 0
        self._status: str | None = None
        self.waits = False

    @property
    def name(self) -> str:
        """Empty: the run folder has no folders for names and versions."""
        return ""

    version = name

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._run_dir)

    root_dir = log_dir = save_dir

    @property
    def tracking_uri(self) -> str:
        """The MLflow store in use."""
        return resolve_tracking_uri(self._run_dir, self._given_uri)

    @property
    @rank_zero_experiment
    def experiment(self) -> Journal:
        """The journal, opened on first use. Raises JournalError where the run folder cannot be written.

        Lightning asks for it before it loads a checkpoint.
        """
        # A forked process has the object but not its thread: it opens the journal anew.
        if self._journal is None or self._process != os.getpid():
            self._open()
        assert self._journal is not None
        return self._journal

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append numbers (or tensors of one element) at `step`, by default the last step seen.

        Raises:
            JournalError: the disk is full or the folder read-only; raised once.
        """
        self._step = self._step if step is None else int(step)
        self._writing().metrics({key: float(value) for key, value in metrics.items()}, self._step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Append parameters; nested ones get names like `optimizer/init_args/lr`, long values are cut."""
        if values := flatten(params):
            _ = self.experiment  # so that a folder that cannot be written is told now
            if self._started:
                self._writing().append("params", values=values)
            else:
                self._params |= values

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Append tags of the run; a tag set again is replaced."""
        if tags:
            self._writing().append("tags", values={key: cut(str(value), LONGEST_TAG) for key, value in tags.items()})

    @rank_zero_only
    def log_artifact(self, path: str | Path) -> None:
        """Have a file or folder of the run folder sent, as it is when the thread comes to it; of a large file a tag.

        A file may be logged again after each rewrite; MLflow keeps the newest.
        A relative path begins at the run folder.

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
            self._writing().append("artifact", path=name)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run as FINISHED, KILLED (interrupted or terminated) or FAILED, and wait a while for MLflow.

        A record that comes later (a `test` after a `fit`) opens the same run again.
        """
        interrupted = isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit))
        ending = _STATUS.get(status) or ("KILLED" if interrupted else "FAILED")
        # Never opened, or ended in the same way already: nothing to say.
        if self._journal is None and self._status in (None, ending):
            return
        # A run that was refused: the folder is what it was.
        if self._journal is not None and not self._started:
            self._journal.discard()
            self._journal = None
            return
        journal = self._writing()
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
            which = "some records may" if left is None else f"{left} records"
            log.warning("%s have not reached MLflow. When it answers: %s", which, shlex.join(command))

    def _chosen_uri(self) -> str | None:
        """As it may be written down; None for the default, which moves with the run folder."""
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
        """Write down that this process writes, and begin to send."""
        self._started = True
        uri = self._chosen_uri()
        journal.start(experiment=self._experiment, run_name=self._run_name, tracking_uri=uri, **_origin())
        if self._params:
            journal.append("params", values=self._params)
        self._shipper = Shipper(journal, Destination(self._run_dir, self.tracking_uri))
        self._shipper.start()
        atexit.register(self._at_exit)

    def _writing(self) -> Journal:
        """The journal, in which this process stands."""
        journal = self.experiment
        if not self._started:
            self._start(journal)
        return journal

    def _at_exit(self) -> None:
        """End what nobody ended: an error outside the Trainer, or a record after the last stage."""
        if self._journal is None or self._process != os.getpid():
            return
        try:
            last = last_lifecycle(self._journal.path)
        except OSError as error:
            log.warning("the end of the run is not written down: %s", error.strerror)
            return
        # A launcher that spawned rank 0 leaves the last word to it.
        if last.get("pid") != self._process:
            return
        crashed = getattr(sys, "last_value", None) is not None
        endings = {"FINISHED": "success", "KILLED": "aborted"}
        self.finalize("failed" if crashed else endings.get(self._status or "", "failed"))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned rank gets the settings; the file and the thread stay where they are.
        return self.__dict__ | {"_journal": None, "_shipper": None, "_process": None, "_started": False}


def _origin() -> dict[str, str]:
    """Who started the run and with which program, as MLflow's list of runs shows it."""
    program = Path(sys.argv[0])
    # `python -m package` has the path of the package's __main__.py here.
    origin = {"source.name": (program.parent if program.name == "__main__.py" else program).name or "python"}
    with contextlib.suppress(KeyError, OSError):  # a container without an entry for this user number
        origin["user"] = getpass.getuser()
    return origin
