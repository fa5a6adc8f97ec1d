"""Tracking URIs of SQLite data bases, and the file and artifact folder that one means.

A path is no URI: SQLAlchemy ends the file name at `?` and decodes `%41`, in the URI of a data base, and MLflow decodes
the place of artifacts. Here alone is one made of the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

DATA_BASE = "mlflow.db"
_SPECIAL = re.compile(r"[%?#\x00-\x1f\x7f]")  # what a path is read otherwise with; all else stays legible


def without_credentials(tracking_uri: str) -> str:
    """`tracking_uri` as it may be shown and stored: without `user:password@`."""
    return re.sub(r"//[^/@]+@", "//", tracking_uri)


def sqlite_uri(path: Path) -> str:
    """The tracking URI of the data base file at `path`."""
    text = _quoted(path)
    # For "sqlite:///" MLflow makes the folder of the path that it has not decoded.
    driver = "sqlite" if text == str(path) else "sqlite+pysqlite"
    return f"{driver}:///{text}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The data base file that `tracking_uri` means, resolved; None for a server and for a data base in memory."""
    match = re.match(r"sqlite(?:\+pysqlite)?:///([^?]*)", tracking_uri)
    name = unquote(match.group(1)) if match else ""
    return None if name in ("", ":memory:") else Path(name).resolve()


def artifact_location(tracking_uri: str) -> str | None:
    """`mlartifacts` beside an SQLite data base, as MLflow is to be told; None for a server, which has its own place."""
    path = sqlite_path(tracking_uri)
    return None if path is None else _quoted(path.parent / "mlartifacts")


def _quoted(path: Path) -> str:
    return _SPECIAL.sub(lambda match: f"%{ord(match.group()):02X}", str(path))
