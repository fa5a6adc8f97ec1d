"""Connect to an MLflow store, find or create an experiment, and describe errors in one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
from typing import TYPE_CHECKING

from lightning_nlf.tracking.database import create_database, has_other_version
from lightning_nlf.tracking.uris import artifact_location, sqlite_path, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The defaults (120 s and 7 retries) would block the thread, and so the end of a fit, for many minutes.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_KNOWN_REASONS = "Connection refused|Name or service not known|timed out|Connection aborted|No route to host"


def connect(tracking_uri: str) -> MlflowClient:
    """Create a client for tracking and registry at `tracking_uri`, with short timeouts unless the user set timeouts.

    Imports MLflow, which takes seconds. Creates the SQLite database if it is missing or incomplete.

    Raises:
        RuntimeError: The file is not a database, cannot be opened, or comes from a different version of MLflow.
        Exception: Any error of MLflow and its transport.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Without this, MLflow logs each migration of a new database.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_path(tracking_uri)
    if path is not None:
        create_database(path)
    try:
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except Exception as error:  # MLflow, SQLAlchemy and alembic raise different errors for such a database
        if path is None or not has_other_version(path):
            raise
        text = f"{path} holds runs, but its tables are of another MLflow version or an interrupted upgrade"
        raise RuntimeError(
            f"{text}. Make a copy of it, then run: mlflow db upgrade {shlex.quote(tracking_uri)}"
        ) from error


def experiment_id(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """The id of the experiment `name`, which is created if necessary.

    With SQLite, its artifacts are stored next to the database.

    Raises:
        RuntimeError: The experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location(tracking_uri))
        except MlflowException:
            # Another run that starts now may have created the experiment first.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        where = without_credentials(tracking_uri)
        raise RuntimeError(f"experiment {name!r} was deleted at {where}; restore it or choose another name")
    return experiment.experiment_id


def reason(error: BaseException) -> str:
    """The reason why a request failed, in one short line."""
    text = str(error)
    match = re.search(_KNOWN_REASONS, text)
    return match.group() if match else f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"
