"""The parent run of a study in MLflow: its children are the runs, and its artifacts are the report.

The study's folder has a journal like the folder of a run, so nothing waits for MLflow and nothing is lost without it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study
from lightning_nlf.tracking.destination import Destination
from lightning_nlf.tracking.journal import Journal, JournalError
from lightning_nlf.tracking.position import default_run_name, read_position, resolve_tracking_uri
from lightning_nlf.tracking.shipper import Shipper

log = logging.getLogger(__name__)

EXPERIMENT = "lightning_nlf"
WAIT = 15.0  # seconds for MLflow at the end
OPENING = 120.0  # seconds for importing MLflow and creating its database


class Parent:
    """Writes the study's journal and sends it to MLflow.

    If another process of the same study already writes the journal, this one only reads the id of the MLflow run.
    """

    def __init__(self, study: Study) -> None:
        self.folder = study.folder
        self.uri = resolve_tracking_uri(study.folder)
        self._journal: Journal | None = None
        self._shipper: Shipper | None = None
        try:
            self._journal = Journal(study.folder)
            self._journal.start(experiment=EXPERIMENT, run_name=default_run_name(study.folder), tracking_uri=None)
        except JournalError:
            self._journal = None
            return
        self._journal.append("tags", values={"study": study.name, "study/file": str(study.file)})
        destination = Destination(study.folder, self.uri)
        try:
            destination.open()  # now, because the first run needs the id
        except Exception as error:  # noqa: BLE001  MLflow and its transport raise many kinds of errors
            log.warning("the study's runs get no parent run: MLflow at %s does not answer: %s", self.uri, error)
        self._shipper = Shipper(self._journal, destination)
        self._shipper.start()

    @property
    def run_id(self) -> str | None:
        """Id of the parent run in MLflow; None while MLflow has not answered."""
        position = read_position(self.folder, self.uri)
        return position.run_id if position else None

    def tags(self, run: Run, study: Study) -> dict[str, str]:
        """Tags of a child in MLflow."""
        parent = {"mlflow.parentRunId": self.run_id} if self.run_id else {}
        cell = json.dumps(dict(run.cell), sort_keys=True)
        return {**parent, "study": study.name, "arm": run.arm, "stage": run.stage, "cell": cell, "seed": str(run.seed)}

    def count(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers such as the runs that are left. Args: step: number of finished runs."""
        if self._journal:
            self._journal.metrics(values, step)

    def close(self, files: tuple[Path, ...] = (), status: str = "FINISHED") -> None:
        """Send the files of the report and end the parent run."""
        if self._journal is None or self._shipper is None:
            return
        for file in files:
            if file.parent.resolve() != self.folder.resolve():  # committed results; artifacts are in the run's folder
                shutil.copy(file, self.folder)
            self._journal.append("artifact", path=file.name)
        self._journal.append("end", status=status)
        if self._shipper.close(WAIT, OPENING) != 0:
            log.warning("send the rest later: python -m lightning_nlf.tracking sync %s", self.folder)
        self._journal.close()
