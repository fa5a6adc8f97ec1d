"""Which files of a run folder may leave it: regular files that lie in it, however they are reached.

A journal may name any path, and a folder from elsewhere may hold links, pipes and devices.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_NO_UTF8 = re.compile(r"[\ud800-\udfff]")  # what Python reads bytes of a name as that are none


def is_inside(run_dir: Path, path: Path) -> bool:
    """Whether `path`, with all links resolved, is a regular file in `run_dir`."""
    root, real = os.path.realpath(run_dir), os.path.realpath(path)
    return real.startswith(os.path.join(root, "")) and _kind(real) == "file"


def artifact_files(run_dir: Path, path: str) -> tuple[list[str], dict[str, str]]:
    """The files of the artifact `path`, a file or a folder, and what is left out of it, each with the reason.

    All are paths below `run_dir` with `/` between their parts. A folder that several links reach is walked once.
    """
    left_out: dict[str, str] = {}
    name = posixpath.normpath(path)
    if posixpath.isabs(name) or name.split("/")[0] in ("..", "."):
        return [], {path: "not a path in the run folder"}
    return list(_walk(os.path.realpath(run_dir), name, set(), left_out)), left_out


def _walk(root: str, name: str, walked: set[str], left_out: dict[str, str]) -> Iterator[str]:
    real = os.path.realpath(os.path.join(root, name))
    kind = _kind(real)
    if not real.startswith(os.path.join(root, "")):
        left_out[name] = "a link out of the run folder"
    elif _NO_UTF8.search(name):
        left_out[name] = "a name that is no UTF-8"
    elif kind == "file":
        yield name
    elif kind == "folder":
        if real in walked:
            left_out[name] = "a link to a folder that is sent already"
            return
        walked.add(real)
        try:
            # Links last: a folder is sent under its own name.
            entries = sorted(os.scandir(real), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError:
            left_out[name] = "cannot be read"
            return
        for entry in entries:
            yield from _walk(root, f"{name}/{entry.name}", walked, left_out)
    else:
        left_out[name] = kind


def _kind(real: str) -> str:
    try:
        mode = os.stat(real).st_mode
    except (OSError, ValueError):
        return "cannot be read"
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        return "neither a file nor a folder"
    return "file" if os.access(real, os.R_OK) else "cannot be read"
