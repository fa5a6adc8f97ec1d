"""Store finished checkpoints by name in MLflow's model registry, and download them.

A version consists of two plain files: the checkpoint, and the `config.yaml` that rebuilds its module. The SHA-256 of
    both files are tags. Nothing is traced or pickled again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_nlf.tracking.artifacts import is_inside
from lightning_nlf.tracking.position import default_tracking_uri, resolve_tracking_uri
from lightning_nlf.tracking.replay import run_tracking_uri, sync
from lightning_nlf.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CONFIG = "config.yaml"


class ChecksumError(ValueError):
    """A downloaded file differs from the registered file."""


def register(
    run_dir: str | Path, name: str, alias: str = "champion", checkpoint: str = "best", tracking_uri: str | None = None
) -> int:
    """Register `<run_dir>/checkpoints/<checkpoint>.ckpt` with `config.yaml` as a new version of `name`.

    Records of the run that have not reached MLflow are sent first. Afterwards, `alias` points to the new version.

    Returns:
        The number of the version.

    Raises:
        FileNotFoundError: The checkpoint or the configuration does not exist.
        ValueError: `run_dir` has no journal, or one of the files is a link to a place outside `run_dir`.
        Exception: Any error of MLflow and its transport.
    """
    run_dir = Path(run_dir)
    weights = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    for file in (weights, run_dir / CONFIG):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, so nothing was registered")
        if not is_inside(run_dir, file):
            raise ValueError(f"{file} is a link out of the run folder, so nothing was registered")
    run_id = sync(run_dir, tracking_uri)[0].run_id
    client = connect(run_tracking_uri(run_dir, tracking_uri))
    tags = {"checkpoint": weights.name, "sha256": sha256(weights), "config_sha256": sha256(run_dir / CONFIG)}
    # The folder's name depends on the content, so that a second version of a run does not overwrite the first version.
    folder = f"registered/{tags['sha256'][:12]}-{tags['config_sha256'][:12]}"
    for file in (weights, run_dir / CONFIG):
        client.log_artifact(run_id, str(file), folder)
    client.set_tag(run_id, f"sha256/{weights.name}", tags["sha256"])
    _create_model(client, name)
    version = client.create_model_version(name, f"runs:/{run_id}/{folder}", run_id, tags=tags)
    client.set_registered_model_alias(name, alias, version.version)
    return int(version.version)


def fetch_registered(uri: str, tracking_uri: str | None = None) -> Path:
    """Download `models:/name@alias` or `models:/name/3`, and return the path of the checkpoint.

    The configuration is in the same folder. Files are cached in `$XDG_CACHE_HOME/lightning_nlf` (by default
    `~/.cache/lightning_nlf`), in a folder named by their checksums.

    Args:
        tracking_uri: URI of the MLflow store. By default the environment variable MLFLOW_TRACKING_URI, otherwise
            `outputs/mlflow.db`.

    Raises:
        ValueError: `uri` is malformed, the version or the store does not exist, or `register` did not create the
            version.
        ChecksumError: A file differs from the registered file. The downloaded file is not kept.
        Exception: Any other error of MLflow and its transport.
    """
    if not re.fullmatch(r"models:/[^/@]+(@[^/@]+|/\d+)", uri):
        raise ValueError(f"expected models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r}")
    store = resolve_tracking_uri(Path("outputs/run"), tracking_uri)
    # Connecting to a missing database would create this database.
    if store == default_tracking_uri(Path("outputs/run")) and not Path("outputs/mlflow.db").is_file():
        raise ValueError(f"{uri}: this folder has no outputs/mlflow.db; set MLFLOW_TRACKING_URI")
    client = connect(store)
    version = _version(client, uri)
    expected, checkpoint = _expected(version)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_nlf" / "registered"
    folder = cache / "-".join(digest[:32] for digest in expected.values())
    if not all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in expected.items()):
        _download(client, version, expected, folder)
    return folder / checkpoint


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(client: MlflowClient, uri: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(*name.split("/"))
    except MlflowException as error:
        # MLflow reports an unknown name or version by the first code, and an unknown alias by the second code.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ValueError(f"{uri}: {str(error).splitlines()[0]}") from error


def _expected(version: ModelVersion) -> tuple[dict[str, str], str]:
    """Expected SHA-256 by file name, from the tags of `version`, and the file name of the checkpoint."""
    tags = version.tags
    checkpoint, digest, config_digest = (tags.get(key, "") for key in ("checkpoint", "sha256", "config_sha256"))
    # Check the tags, because they become names of files and folders, and anybody can write tags.
    if not all(re.fullmatch("[0-9a-f]{64}", text) for text in (digest, config_digest)):
        raise ValueError(f"version {version.version} of {version.name} has no checksums; register it with this library")
    if not re.fullmatch(r"[^/\\]+\.ckpt", checkpoint):
        raise ValueError(f"version {version.version} of {version.name} names no checkpoint; register it again")
    return {checkpoint: digest, CONFIG: config_digest}, checkpoint


def _download(client: MlflowClient, version: ModelVersion, expected: dict[str, str], folder: Path) -> None:
    """Download and check the files in a temporary folder, and then replace `folder` with the temporary folder."""
    run_id = version.run_id or ""
    source = (version.source or "").removeprefix(f"runs:/{run_id}/")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "files"
        fresh.mkdir()
        for name, digest in expected.items():
            file = Path(client.download_artifacts(run_id, f"{source}/{name}", temporary))
            if sha256(file) != digest:
                text = f"{name} of {version.name} version {version.version} is not the file that was registered"
                raise ChecksumError(f"{text} (its SHA-256 differs)")
            shutil.move(file, fresh / name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
