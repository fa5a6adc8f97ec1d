"""Run a command in a child process that ends with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PATIENCE_SECONDS = 20.0  # a process that was asked to end is killed after this time
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(words: Sequence[str], dying: signal.Signals, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, so that only its parent gets Ctrl-C.

    Args:
        dying: Signal that the process gets when the thread that started it ends (Linux).
        options: Options of `subprocess.Popen`.
    """
    return subprocess.Popen(words, start_new_session=True, preexec_fn=_with_parent(dying), **options)


def run(words: Sequence[str], cwd: str, environ: Mapping[str, str]) -> int:
    """Run a command to its end, and return its exit code. An exception in this process ends the command too."""
    process = start(words, signal.SIGTERM, cwd=cwd, env=os.environ | dict(environ))
    try:
        return process.wait()
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill its process group if it does not, or at a second Ctrl-C."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _with_parent(dying: signal.Signals) -> Callable[[], None] | None:
    """A function that a forked process calls before its command. It uses nothing that a thread could have locked."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(dying))
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return ask
