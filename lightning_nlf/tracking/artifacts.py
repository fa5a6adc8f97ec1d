"""Select the files of a run folder that may be sent: only regular files inside the folder, with links resolved.

A journal can name any path, and a folder from an untrusted source can hold links, pipes and devices.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_NO_UTF8 = re.compile(r"[\ud800-\udfff]")  # Python decodes bytes that are not UTF-8 to these characters


def is_inside(run_dir: Path, path: Path) -> bool:
    """Whether `path`, with all links resolved, is a readable regular file inside `run_dir`."""
    root, real = os.path.realpath(run_dir), os.path.realpath(path)
    return real.startswith(os.path.join(root, "")) and _kind(real) == "file"


def artifact_files(run_dir: Path, path: str) -> tuple[list[str], dict[str, str]]:
    """List the files of an artifact, which is a file or a folder.

    All paths are relative to `run_dir` and have `/` between their parts. A folder is walked once, even if several links
    point to it.

    Returns:
        The files to send, and a mapping of skipped paths to reasons.
    """
    left_out: dict[str, str] = {}
    name = posixpath.normpath(path)
    if posixpath.isabs(name) or name.split("/")[0] in ("..", "."):
        return [], {path: "it is not inside the run folder"}
    return list(_walk(os.path.realpath(run_dir), name, set(), left_out)), left_out


def _walk(root: str, name: str, walked: set[str], left_out: dict[str, str]) -> Iterator[str]:
    real = os.path.realpath(os.path.join(root, name))
    kind = _kind(real)
    if not real.startswith(os.path.join(root, "")):
        left_out[name] = "it is a link out of the run folder"
    elif _NO_UTF8.search(name):
        left_out[name] = "its name is not UTF-8"
    elif kind == "file":
        yield name
    elif kind == "folder":
        if real in walked:
            left_out[name] = "it is a link to a folder that was already sent"
            return
        walked.add(real)
        try:
            # Links come last, so that a folder is sent by its real name.
            entries = sorted(os.scandir(real), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError:
            left_out[name] = "it cannot be read"
            return
        for entry in entries:
            yield from _walk(root, f"{name}/{entry.name}", walked, left_out)
    else:
        left_out[name] = kind


def _kind(real: str) -> str:
    try:
        mode = os.stat(real).st_mode
    except (OSError, ValueError):
        return "it cannot be read"
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        return "it is neither a file nor a folder"
    return "file" if os.access(real, os.R_OK) else "it cannot be read"
