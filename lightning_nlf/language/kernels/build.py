"""Compile `kernels.cpp` once per machine, and load the library."""

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
    """The kernels for float32 or bfloat16 tensors. None, with a warning, if they cannot be compiled or loaded.

    The library is stored in `$XDG_CACHE_HOME/lightning_nlf` (by default `~/.cache/lightning_nlf`). The file name
    contains a hash of source, flags, compiler and processor, so that different machines can share a home directory.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    try:
        if compiler is None:
            raise OSError("no C++ compiler was found; install g++, or set CXX")
        flags = (*FLAGS, "-DBFLOAT16") if dtype == torch.bfloat16 else FLAGS
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = caches / "lightning_nlf" / "kernels" / f"kernels-{_key(compiler, flags)}.so"
        if not path.is_file():
            _compile(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(f"language models run without C++ kernels, which is slower on a CPU: {error}", stacklevel=2)
        return None


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    sources = [path.read_text() for path in (SOURCE, *HEADERS)]
    parts = (*sources, *flags, shutil.which(compiler) or compiler, _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Description of the processor, which identifies the instruction set."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    properties = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(properties))) or f"{platform.machine()} {platform.processor()}"


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile the library to `path`. A temporary folder is used first, so that no other process loads a partial file.

    Raises:
        OSError: the compiler fails, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if sys.stderr.isatty():
        print("compiling C++ kernels for this CPU (once, takes some seconds)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        output = Path(folder) / path.name
        words = [*shlex.split(compiler), *flags, str(SOURCE), "-o", str(output)]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no error message"])[0]
            raise OSError(f"{compiler} fails on {SOURCE.name}: {reason}")
        output.replace(path)
