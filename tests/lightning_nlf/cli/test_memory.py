"""Freed memory stays in the process unless the user sets another policy."""

import os
import platform
import subprocess
import sys

import pytest

from lightning_nlf import __main__ as command_line

ROUNDS, BLOCKS, PAGES = 5, 4, 6000
DISABLE_HUGE_PAGES = 41  # of prctl(2)
FAULTS = f"""
import ctypes, resource
from lightning_nlf.cli.memory import keep_freed_memory

keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.prctl({DISABLE_HUGE_PAGES}, 1, 0, 0, 0)  # a fault is a page
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    blocks = [libc.malloc({PAGES} * 4096) for _ in range({BLOCKS})]
    for block in blocks:
        libc.memset(block, 1, {PAGES} * 4096)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("variables", "rounds"), [({}, 1), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, ROUNDS)])
def test_pages_are_asked_for_once(variables, rounds):
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))} | variables
    output = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(output.stdout) / (BLOCKS * PAGES) == pytest.approx(rounds, rel=0.1)


def test_the_command_line_sees_to_it(monkeypatch):
    calls = []
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "argv", ["lightning_nlf", "fit"])
    monkeypatch.setattr(command_line, "keep_freed_memory", lambda: calls.append("keep_freed_memory"))
    monkeypatch.setattr("lightning_nlf.cli.command_line.main", lambda: calls.append("fit"))
    command_line.main()
    assert calls == ["keep_freed_memory", "fit"]
