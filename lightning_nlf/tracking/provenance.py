"""Gather the provenance of a run: command line, state of the code, packages and machine, each as a short text.

This module only reads. The caller writes the texts to files in the run folder. The texts contain no paths of the
machine, except paths that the user typed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LONGEST_PATCH = 1_000_000  # maximum characters of git.patch


def gather(folder: str | Path = ".") -> dict[str, str]:
    """Texts by file name: `command.txt`, `git.txt`, `packages.txt`, `host.txt`, and `git.patch` if code was changed.

    Args:
        folder: Any folder in the git repository of the code.
    """
    return {
        "command.txt": command_line() + "\n",
        "packages.txt": installed_packages(),
        "host.txt": host(),
        **git_state(folder),
    }


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as typed, quoted for a shell. The folders of the interpreter and of an installed script are left out.

    Args:
        arguments: Words of the command; by default the command of this process.
    """
    words = list(sys.orig_argv if arguments is None else arguments)
    if words:
        folder = os.path.dirname(words[0])
        words[0] = os.path.basename(words[0])
        if folder and len(words) > 1 and os.path.dirname(words[1]) == folder:
            words[1] = os.path.basename(words[1])
    return shlex.join(words)


def git_state(folder: str | Path = ".") -> dict[str, str]:
    """`git.txt` (commit, branch, changed and untracked files), and `git.patch` if tracked files are changed.

    If git is not installed or the folder is in no repository, `git.txt` says so. A patch is cut after a million
    characters.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"git.txt": "no git repository with a commit\n"}
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    changes = _git(folder, "status", "--porcelain") or ""
    text = f"commit: {commit.strip()}\nbranch: {(branch or 'unknown').strip()}\n"
    text += f"changed:\n{changes}" if changes else "changed: nothing\n"
    patch = _git(folder, "diff", "HEAD") or ""
    if len(patch) > LONGEST_PATCH:
        patch = patch[:LONGEST_PATCH] + f"\n… cut, {len(patch)} characters in all\n"
    return {"git.txt": text} | ({"git.patch": patch} if patch else {})


def installed_packages() -> str:
    """Installed packages, sorted by name, as lines of `name==version`."""
    versions = {
        re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def host() -> str:
    """Text with machine name, system, processor, memory, accelerators, and the versions of Python and torch."""
    import psutil

    lines = {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": processor(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
    # Do not import torch only for this, because the import is slow and starts the driver.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        lines["accelerators"] = ", ".join(names)
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def processor() -> str:
    """Kind of CPU and number of cores."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    kind = match.group(1) if match else platform.processor() or platform.machine()
    return f"{kind}, {os.cpu_count()} cores"


def commit(folder: str | Path = ".") -> str:
    """Commit of the code, with a `+` if tracked files are changed; empty outside a git repository."""
    name = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return "" if name is None else name.strip() + ("+" if changes else "")


def code_folder() -> Path:
    """The working folder if it is in a git repository, otherwise the folder of this package."""
    cwd = Path.cwd()
    in_repository = any((folder / ".git").exists() for folder in (cwd, *cwd.parents))
    return cwd if in_repository else Path(__file__).parent


def _git(folder: str | Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode("utf-8", "replace")
