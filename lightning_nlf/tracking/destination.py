"""The MLflow side of a journal: one run on one server, brought up to date a batch at a time.

Sending a record twice changes nothing: a metric row is its own primary key (run, name, step, time, value), tags and
artifacts are overwritten, a parameter is sent only where the run has none of that name. So whatever is in doubt is sent
again, and nothing is lost. Artifacts come after the records that wait: a store for files that fails holds up no metric.
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

METRICS_PER_BATCH = 1000  # what a server takes in one request
IDENTITY_TAG = "mlflow.journal"  # the pages do not show tags that begin with mlflow
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class RunDeletedError(RuntimeError):
    """Somebody deleted the MLflow run while it was being written."""


class Destination:
    """The MLflow run that mirrors the journal of `run_dir` at `tracking_uri`.

    It is found by `mlflow.json`, else by the journal's identity, else created. Not for use by two threads at once.
    """

    def __init__(self, run_dir: str | Path, tracking_uri: str) -> None:
        self.run_dir = Path(run_dir)
        self.tracking_uri = tracking_uri
        self._journal = self.run_dir / JOURNAL
        self.opening = True  # MLflow has yet to be imported, or a data base to be made
        self.unreadable = 0  # lines left out of what was sent
        self._client: MlflowClient | None = None
        self._position: Position | None = None
        self._left_out: set[str] = set()  # artifacts that were told

    def ship_next(self) -> int:
        """Send the next batch of records, or the next artifact when there is none; 0 means that all has arrived.

        Raises:
            RunDeletedError: the run was deleted meanwhile.
            Exception: whatever MLflow and its transport raise; the same is then sent again by a later call.
        """
        client, position = self.open()
        batch, end = self._next_batch(position.offset)
        if batch:
            self._send(client, position.run_id, batch)
            paths = [record["path"] for record in batch if record["kind"] == "artifact"]
            position.artifacts = list(dict.fromkeys(position.artifacts + paths))
            position.offset = end
        elif position.artifacts:
            # To the end first: one that fails must not keep back the others.
            path = position.artifacts.pop(0)
            position.artifacts.append(path)
            self._upload(client, position.run_id, path)
            position.artifacts.remove(path)
        else:
            return 0
        write_position(self.run_dir, self.tracking_uri, position)
        return len(batch) or 1

    def left(self) -> int:
        """How many complete records of the journal and artifacts have not arrived, by `mlflow.json`."""
        position = read_position(self.run_dir, self.tracking_uri)
        if position is None or position.journal != first_start(self._journal).get("journal"):
            return count_records(self._journal)
        return count_records(self._journal, position.offset) + len(position.artifacts)

    def open(self) -> tuple[MlflowClient, Position]:
        """Connect, find or create the run, and return the client and the position.

        Raises:
            ValueError: the folder has no journal.
            Exception: whatever MLflow and its transport raise.
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
                raise ValueError(f"{self._journal}: the start record names no experiment")
            self._position = self._known(self._client, start) or self._found_or_created(self._client, start)
            write_position(self.run_dir, self.tracking_uri, self._position)
        return self._client, self._position

    def _known(self, client: MlflowClient, start: Mapping[str, Any]) -> Position | None:
        """The run named by `mlflow.json`, unless it is another journal's or no longer there."""
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
        # Both files may come from elsewhere and name somebody else's run.
        if run.info.lifecycle_stage != "active" or run.data.tags.get(IDENTITY_TAG) != start["journal"]:
            return None
        return position if starts_a_record(self._journal, position.offset) else replace(position, offset=0)

    def _found_or_created(self, client: MlflowClient, start: Mapping[str, Any]) -> Position:
        """The run tagged with the journal's identity (created, but killed before it was noted), else a new one."""
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
                self._position = None  # a new server at the old address: begin again from the first record
                raise
            if error.error_code not in _REFUSED:
                raise
            if client.get_run(run_id).info.lifecycle_stage != "active":
                raise RunDeletedError(f"run {run_id} was deleted") from error
            # Something in the batch is refused for good: send the records one by one and leave that one out.
            if len(batch) > 1:
                for record in batch:
                    self._send(client, run_id, [record])
            else:
                log.warning("MLflow refuses a %s record, it is left out: %s", batch[0]["kind"], reason(error))

    def _log(self, client: MlflowClient, run_id: str, batch: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        last: Mapping[str, Any] | None = None
        for record in batch:
            match record["kind"]:
                case "metrics":
                    values, place = _named(record), (record["time"], record["step"])
                    metrics += [Metric(name, float(value), *place) for name, value in values.items()]
                case "params":
                    params |= _named(record)
                case "tags":
                    tags |= _named(record)
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
            # MLflow never changes a parameter. What a resumed run does differently is kept as a tag.
            known = client.get_run(run_id).data.params
            changed = {f"resumed/{key}": value for key, value in params.items() if known.get(key, value) != value}
            tags |= _named({"values": changed})
            params = {key: value for key, value in params.items() if key not in known}
        rows = [Param(key, value) for key, value in params.items()]
        client.log_batch(run_id, metrics, rows, [RunTag(key, value) for key, value in tags.items()])

    def _upload(self, client: MlflowClient, run_id: str, path: str) -> None:
        """Send the file or folder as it is now. What may not or cannot be sent is told once and left out."""
        from mlflow.exceptions import MlflowException

        names, left_out = artifact_files(self.run_dir, path)
        for name in names:
            file = self.run_dir / name
            try:
                client.log_artifact(run_id, str(file), posixpath.dirname(name) or None)
            except OSError:
                if os.access(file, os.R_OK):
                    raise
                left_out[name] = "cannot be read"
            except MlflowException as error:
                if error.error_code not in _REFUSED:
                    raise
                left_out[name] = reason(error)
        for name, why in left_out.items():
            if name not in self._left_out:
                self._left_out.add(name)
                escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
                log.warning("artifact %s is left out: %s", self.run_dir / escaped, why)


def _named(record: Mapping[str, Any]) -> dict[str, Any]:
    names = clean_names(record["values"])
    return {names[key]: value for key, value in record["values"].items()}
