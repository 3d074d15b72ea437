"""What the C library does with memory that is freed; of programs, not of the library, to decide."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
_PAGE = 4096

_kept = False


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back at once. Only glibc (Linux) is told.

    A registration makes and drops arrays of tens of megabytes all the time. glibc asks the system for each of these
    anew, which clears every page of it once more: a tenth of the time of a registration, and more on virtual machines.
    """
    global _kept
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
        _kept = True


@contextmanager
def memory_fetched(size: int) -> Iterator[None]:
    """Have the system hand over `size` bytes meanwhile, for arrays to come; only after `keep_freed_memory`.

    The first use of a page is slow: the system clears it, and on a virtual machine the host has to find one. A thread
    that does it while libraries load takes .6 s off a registration of brains at 1 mm where memory has lain idle.
    """
    thread = None
    if _kept and size > 0:
        import numpy as np

        with suppress(MemoryError):  # what needs it will say so
            thread = Thread(target=np.empty(size, np.uint8)[::_PAGE].fill, args=(0,), daemon=True)
            thread.start()
    try:
        yield
    finally:
        if thread is not None:
            thread.join()


def return_freed_memory() -> None:
    """Give freed memory back to the system, after `keep_freed_memory`."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc; others (musl) lack these functions."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
