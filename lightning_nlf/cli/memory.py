"""What happens to memory that is freed."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 2**25  # bytes of a block that glibc may take from the heap; larger ones are mapped one by one


def keep_freed() -> None:
    """Large blocks stay with the process when they are freed, until it ends.

    Otherwise glibc gives them back behind every optimizer step and the kernel clears them anew, which takes a tenth of
    the step of a small language model. Settings of the user (MALLOC_…, GLIBC_TUNABLES) stay; other libraries too.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
