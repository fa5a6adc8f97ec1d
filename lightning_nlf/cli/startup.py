"""A quick start: what every command would wait for, and none of them needs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports inside are about 1.5 s quicker: no garbage is looked for, and scipy.signal stays out.

    torchmetrics imports all of scipy.signal to see whether it has `hamming`. A stand-in has it; it is gone afterwards,
    and who imports scipy.signal then gets the real one.
    """
    stand_in = ModuleType("scipy.signal")
    stand_in.hamming = None  # type: ignore[attr-defined]
    collecting = gc.isenabled()
    gc.disable()
    sys.modules.setdefault("scipy.signal", stand_in)
    try:
        yield
    finally:
        if sys.modules["scipy.signal"] is stand_in:
            del sys.modules["scipy.signal"]
        if collecting:
            gc.enable()
