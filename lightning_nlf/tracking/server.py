"""Reaching an MLflow store: the client, the experiment, the names it takes and the reasons it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_nlf.tracking.position import artifact_location, without_credentials

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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

    Importing MLflow happens here and takes seconds.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # A new data base announces each of its migrations otherwise.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _alone(tracking_uri):
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextlib.contextmanager
def _alone(tracking_uri: str) -> Iterator[None]:
    """Only one process of this machine at a time opens an SQLite store: two that create its tables break each other."""
    location = artifact_location(tracking_uri)
    if location is None or fcntl is None:
        yield
        return
    # The folder is locked, not a file that would have to lie there for ever; closing it unlocks.
    os.makedirs(os.path.dirname(location), exist_ok=True)
    folder = os.open(os.path.dirname(location), os.O_RDONLY)
    try:
        # Some network folders know no locks: then as MLflow does it.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


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


def clean_name(key: str) -> str:
    """`key` as MLflow takes it: letters, digits and `_-./: `, a clean relative path, at most 250 characters."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("/.")[:250] or "_"
