"""How much memory this process needs."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` begin anew. Only Linux can; elsewhere the peak stays that of the whole process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MiB."""
    if sys.platform == "win32":
        return _peak_memory_windows() / 2**20
    if sys.platform == "linux" and (peak := peak_of(os.getpid())):
        return peak / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_of(pid: int) -> int:
    """The most bytes that a process has held so far; 0 where it cannot be told. Only Linux can.

    What `getrusage` and `wait4` tell is of no use there: Linux carries the peak of the parent over into the child.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_memory_windows() -> int:
    """Bytes; `GetProcessMemoryInfo`, since Windows has no `resource`."""
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    process = ctypes.windll.kernel32.GetCurrentProcess()  # type: ignore[attr-defined]
    ctypes.windll.psapi.GetProcessMemoryInfo(  # type: ignore[attr-defined]
        wintypes.HANDLE(process), ctypes.byref(counters), counters.cb
    )
    return int(counters.peak)
