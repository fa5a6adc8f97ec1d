"""Answers on disk, by the content of the question: what was paid for once is never paid for again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


def content_key(body: Any) -> str:
    """SHA-256 of a request in canonical form, whoever it is sent to."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Cache:
    """One file an answer. Several processes may share a folder: a file appears whole or not at all.

    Args: folder: None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def get(self, key: str) -> Any:
        """None where nothing is known; half a file, as a full disk leaves it, is nothing, nor is one that nests without
        end.
        """
        if self.folder is None:
            return None
        try:
            return json.loads(self._path(self.folder, key).read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def put(self, key: str, answer: Any) -> None:
        if self.folder is None:
            return
        path = self._path(self.folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            unfinished.write_text(json.dumps(answer, ensure_ascii=False, allow_nan=False), encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"
