"""Compile `kernels.cpp` for this machine, once, and load the library."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.h"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC", "-fopenmp")


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for tensors of float32 or bfloat16, or None where they cannot be had, which is said once.

    It lies under `$XDG_CACHE_HOME/lightning_nlf` (by default `~/.cache/lightning_nlf`), in a file named by source,
    flags, compiler and processor: a home that other machines share is none's trouble.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    try:
        if compiler is None:
            raise OSError("there is no C++ compiler; install g++, or say which by CXX")
        flags = (*FLAGS, "-DBFLOAT16") if dtype == torch.bfloat16 else FLAGS
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = caches / "lightning_nlf" / "kernels" / f"kernels-{_key(compiler, flags)}.so"
        if not path.is_file():
            _compile(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"language models are computed by torch alone, more slowly on a CPU: {error}", stacklevel=2)
        return None


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    sources = [path.read_text() for path in (SOURCE, *HEADERS)]
    said = (*sources, *flags, shutil.which(compiler) or compiler, _processor())
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _processor() -> str:
    """What tells which instructions this machine has."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    known = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(known))) or f"{platform.machine()} {platform.processor()}"


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Into a file beside it first: processes that start together do not read half of one.

    Raises:
        OSError: the compiler fails, or there is no place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.stderr.isatty():
        print("compiling what language models need on this CPU, once: some seconds", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        words = [*shlex.split(compiler), *flags, str(SOURCE), "-o", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
            raise OSError(f"{compiler} fails on {SOURCE.name}: {said}")
        made.replace(path)
