"""Reaching an MLflow store: the client, the experiment, the names it takes and the reasons it fails."""

from __future__ import annotations

import logging
import os
import re
import shlex
from typing import TYPE_CHECKING

from lightning_nlf.tracking.database import make_whole, of_other_version
from lightning_nlf.tracking.uris import artifact_location, sqlite_path, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The client's own 120 s and 7 retries would keep the thread, and with it the end of a training, for many minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_KNOWN_REASONS = "Connection refused|Name or service not known|timed out|Connection aborted|No route to host"


def connect(tracking_uri: str) -> MlflowClient:
    """A client for tracking and registry at `tracking_uri`, with short time limits unless the user set some.

    Importing MLflow happens here and takes seconds. An SQLite data base is made where there is none that is whole.

    Raises:
        RuntimeError: what lies there is no data base, cannot be opened, or is of another version of MLflow.
        Exception: whatever MLflow and its transport raise.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # A new data base announces each of its migrations otherwise.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_path(tracking_uri)
    if path is not None:
        make_whole(path)
    try:
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except Exception as error:  # of MLflow, SQLAlchemy or alembic: each fails in its own way at such a data base
        if path is None or not of_other_version(path):
            raise
        text = f"{path} holds runs, and its tables are of another MLflow or half changed to this one's"
        raise RuntimeError(
            f"{text}: keep a copy of it, then run mlflow db upgrade {shlex.quote(tracking_uri)}"
        ) from error


def experiment_id(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """The experiment called `name`, created where it is missing; at an SQLite store its artifacts lie beside the file.

    Raises:
        RuntimeError: the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location(tracking_uri))
        except MlflowException:
            # Another training that starts now may have been faster.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        where = without_credentials(tracking_uri)
        raise RuntimeError(f"experiment {name!r} is deleted at {where}: restore it or choose another name")
    return experiment.experiment_id


def reason(error: BaseException) -> str:
    """One short line that says why a request failed."""
    text = str(error)
    found = re.search(_KNOWN_REASONS, text)
    return found.group() if found else f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"
