"""Memory of this process on a CPU: what is kept for the next call, and what the system gets back."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from pathlib import Path

MOST = 21 * 10**8
"""Bytes that a process may hold before a network begins. Freed blocks of many sizes would add up to a multiple; but
to fault a gigabyte in again takes a quarter of a second, so a gradient's own memory is kept for the next one."""

SELDOM = 20.0
"""Seconds between two returns while a process holds little more than `MOST`: some gradients need as much."""


def keep_blocks() -> None:
    """Keep large freed blocks for the next call; `release` returns them.

    glibc returns them to the system at once, and every batch would fault its pages in again.
    """
    # oneDNN keeps a compiled operation for every size of a batch, 1024 by default.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    with contextlib.suppress(OSError, AttributeError):  # not glibc: slower, not wrong
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def release(above: int = 0) -> None:
    """Return freed memory to the system if this process holds more than `above` bytes."""
    if resident() >= above:
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def limit() -> None:
    """Return freed memory if this process holds half as much again as `MOST`, or more than that for some time."""
    global _returned
    now = time.monotonic()
    if resident() >= (MOST if now - _returned >= SELDOM else 3 * MOST // 2):
        _returned = now
        release()


_returned = -math.inf
"""When `limit` last returned memory."""


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
