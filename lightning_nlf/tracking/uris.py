"""Convert between paths and tracking URIs of SQLite databases and their artifact folders.

In the URI of a database, SQLAlchemy ends the file name at `?` and decodes `%41`. MLflow decodes the location of
artifacts. A path must therefore be quoted. Only this module converts between paths and URIs.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

DATABASE = "mlflow.db"
_SPECIAL = re.compile(r"[%?#\x00-\x1f\x7f]")  # characters with a meaning in a URI; all other characters are not quoted


def without_credentials(tracking_uri: str) -> str:
    """Remove `user:password@` from a tracking URI, so that it can be printed and stored."""
    return re.sub(r"//[^/@]+@", "//", tracking_uri)


def sqlite_uri(path: Path) -> str:
    """The tracking URI of the database file at `path`."""
    text = _quoted(path)
    # For "sqlite:///", MLflow would create a folder with the undecoded name.
    driver = "sqlite" if text == str(path) else "sqlite+pysqlite"
    return f"{driver}:///{text}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The resolved database file of a tracking URI; None for a server and for a database in memory."""
    match = re.match(r"sqlite(?:\+pysqlite)?:///([^?]*)", tracking_uri)
    name = unquote(match.group(1)) if match else ""
    return None if name in ("", ":memory:") else Path(name).resolve()


def artifact_location(tracking_uri: str) -> str | None:
    """Artifact location for MLflow: `mlartifacts` next to an SQLite database.

    None for a server, which chooses its own.
    """
    path = sqlite_path(tracking_uri)
    return None if path is None else _quoted(path.parent / "mlartifacts")


def _quoted(path: Path) -> str:
    return _SPECIAL.sub(lambda match: f"%{ord(match.group()):02X}", str(path))
