"""Send a journal to one MLflow run on one server, in batches.

Sending a record twice changes nothing. The primary key of a metric is the whole row (run, name, step, time, value),
tags and artifacts are overwritten, and a parameter is sent only if the run does not have it. Records that may not have
arrived are therefore sent again, and nothing is lost. Artifacts are sent after all waiting records, so that a failing
file store does not delay metrics.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_nlf.tracking.artifacts import artifact_files
from lightning_nlf.tracking.journal import JOURNAL, count_records, first_start, read_records, starts_a_record
from lightning_nlf.tracking.names import clean_names
from lightning_nlf.tracking.position import Position, read_position, write_position
from lightning_nlf.tracking.server import connect, experiment_id, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000  # a server's limit per request
IDENTITY_TAG = "mlflow.journal"  # MLflow's pages hide tags that begin with mlflow
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RunDeletedError(RuntimeError):
    """The MLflow run was deleted while records were being sent to it."""


class Destination:
    """The MLflow run at `tracking_uri` that mirrors the journal of `run_dir`.

    The run is found by `mlflow.json`, or else by the identity of the journal. If there is no such run, it is created.
    Not thread-safe.
    """

    def __init__(self, run_dir: str | Path, tracking_uri: str) -> None:
        self.run_dir = Path(run_dir)
        self.tracking_uri = tracking_uri
        self._journal = self.run_dir / JOURNAL
        self.opening = True  # True until MLflow is imported and the database exists
        self.unreadable = 0  # number of unreadable lines that were skipped
        self._client: MlflowClient | None = None
        self._position: Position | None = None
        self._left_out: set[str] = set()  # skipped artifacts that have been reported

    def ship_next(self) -> int:
        """Send the next batch of records, or the next artifact if no record is waiting.

        Returns:
            The number of records and artifacts sent; 0 if everything has arrived.

        Raises:
            RunDeletedError: The run was deleted.
            Exception: Any error of MLflow and its transport. A later call then sends the same batch again.
        """
        client, position = self.open()
        batch, end = self._next_batch(position.offset)
        if batch:
            self._send(client, position.run_id, batch)
            paths = [record["path"] for record in batch if record["kind"] == "artifact"]
            position.artifacts = list(dict.fromkeys(position.artifacts + paths))
            position.offset = end
        elif position.artifacts:
            # Move this artifact to the end first, so that it does not block the other artifacts if it fails.
            path = position.artifacts.pop(0)
            position.artifacts.append(path)
            self._upload(client, position.run_id, path)
            position.artifacts.remove(path)
        else:
            return 0
        write_position(self.run_dir, self.tracking_uri, position)
        return len(batch) or 1

    def left(self) -> int:
        """Number of records and artifacts that have not arrived, according to `mlflow.json`."""
        position = read_position(self.run_dir, self.tracking_uri)
        if position is None or position.journal != first_start(self._journal).get("journal"):
            return count_records(self._journal)
        return count_records(self._journal, position.offset) + len(position.artifacts)

    def open(self) -> tuple[MlflowClient, Position]:
        """Connect to the server, find or create the run, and return the client and the position.

        Raises:
            ValueError: The folder has no journal, or the journal has no experiment.
            Exception: Any error of MLflow and its transport.
        """
        if self._client is None:
            try:
                self._client = connect(self.tracking_uri)
            finally:
                self.opening = False
        if self._position is None:
            start = first_start(self._journal)
            if not start:
                raise ValueError(f"{self.run_dir} has no journal")
            if "experiment" not in start:
                raise ValueError(f"{self._journal}: the start record has no experiment")
            self._position = self._stored_run(self._client, start) or self._find_or_create(self._client, start)
            write_position(self.run_dir, self.tracking_uri, self._position)
        return self._client, self._position

    def _stored_run(self, client: MlflowClient, start: Mapping[str, Any]) -> Position | None:
        """The position that `mlflow.json` stores; None if its run belongs to another journal or does not exist."""
        from mlflow.exceptions import MlflowException

        position = read_position(self.run_dir, self.tracking_uri)
        if position is None or position.journal != start["journal"]:
            return None
        try:
            run = client.get_run(position.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        # A folder from an untrusted source may name a run that belongs to somebody else.
        if run.info.lifecycle_stage != "active" or run.data.tags.get(IDENTITY_TAG) != start["journal"]:
            return None
        return position if starts_a_record(self._journal, position.offset) else replace(position, offset=0)

    def _find_or_create(self, client: MlflowClient, start: Mapping[str, Any]) -> Position:
        """The run with the identity tag of this journal, or a new run.

        The tag is needed if an earlier process was killed before it saved `mlflow.json`.
        """
        experiment = experiment_id(client, start["experiment"], self.tracking_uri)
        runs = client.search_runs([experiment], f"tags.`{IDENTITY_TAG}` = '{start['journal']}'", max_results=1)
        if runs:
            return Position(start["journal"], experiment, runs[0].info.run_id)
        tags = {IDENTITY_TAG: start["journal"], "mlflow.source.type": "LOCAL"}
        tags |= {f"mlflow.{key}": start[key] for key in ("user", "source.name") if start.get(key)}
        run = client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["run_name"])
        return Position(start["journal"], experiment, run.info.run_id)

    def _next_batch(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        batch: list[dict[str, Any]] = []
        size = 0
        for record, end in read_records(self._journal, offset):
            size += len(record["values"]) if record["kind"] == "metrics" else 1
            if batch and size > METRICS_PER_BATCH:
                break
            batch.append(record)
            self.unreadable += record["kind"] == "unreadable"
            offset = end
        return batch, offset

    def _send(self, client: MlflowClient, run_id: str, batch: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._log(client, run_id, batch)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                self._position = None  # a new server has the old address: start again from the first record
                raise
            if error.error_code not in _REFUSED:
                raise
            if client.get_run(run_id).info.lifecycle_stage != "active":
                raise RunDeletedError(f"run {run_id} was deleted") from error
            # One record of the batch is invalid: send the records one by one, and skip the invalid record.
            if len(batch) > 1:
                for record in batch:
                    self._send(client, run_id, [record])
            else:
                log.warning("MLflow refused a %s record, which is skipped: %s", batch[0]["kind"], reason(error))

    def _log(self, client: MlflowClient, run_id: str, batch: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        last: Mapping[str, Any] | None = None
        for record in batch:
            match record["kind"]:
                case "metrics":
                    values, place = _clean_values(record), (record["time"], record["step"])
                    metrics += [Metric(name, float(value), *place) for name, value in values.items()]
                case "params":
                    params |= _clean_values(record)
                case "tags":
                    tags |= _clean_values(record)
                case "start" | "end":
                    last = record
        self._log_batch(client, run_id, metrics, params, tags)
        if last and last["kind"] == "end":
            client.set_terminated(run_id, last["status"], end_time=last["time"])
        elif last:
            client.update_run(run_id, status="RUNNING")

    def _log_batch(
        self, client: MlflowClient, run_id: str, metrics: list[Metric], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        if params:
            # MLflow never changes a parameter, so if a resumed run has a different value, this value becomes a tag.
            existing = client.get_run(run_id).data.params
            changed = {f"resumed/{key}": value for key, value in params.items() if existing.get(key, value) != value}
            tags |= _clean_values({"values": changed})
            params = {key: value for key, value in params.items() if key not in existing}
        rows = [Param(key, value) for key, value in params.items()]
        client.log_batch(run_id, metrics, rows, [RunTag(key, value) for key, value in tags.items()])

    def _upload(self, client: MlflowClient, run_id: str, path: str) -> None:
        """Send a file or folder in its current state.

        Files that may not or cannot be sent are skipped, with one warning.
        """
        from mlflow.exceptions import MlflowException

        names, left_out = artifact_files(self.run_dir, path)
        for name in names:
            file = self.run_dir / name
            try:
                client.log_artifact(run_id, str(file), posixpath.dirname(name) or None)
            except OSError:
                if os.access(file, os.R_OK):
                    raise
                left_out[name] = "it cannot be read"
            except MlflowException as error:
                if error.error_code not in _REFUSED:
                    raise
                left_out[name] = reason(error)
        for name, why in left_out.items():
            if name not in self._left_out:
                self._left_out.add(name)
                escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
                log.warning("skipped artifact %s: %s", self.run_dir / escaped, why)


def _clean_values(record: Mapping[str, Any]) -> dict[str, Any]:
    names = clean_names(record["values"])
    return {names[key]: value for key, value in record["values"].items()}
