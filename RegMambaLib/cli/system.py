"""Facts about this process and machine for the report and `info`."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from ..version import __version__

PACKAGES = ("numpy", "SimpleITK", "scipy", "numba", "torch", "safetensors", "mamba-ssm", "causal-conv1d")


def versions() -> dict[str, str | None]:
    """Versions of RegMamba, Python and the packages it uses; None for one that is not installed."""
    found: dict[str, str | None] = {"regmamba": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MiB."""
    if sys.platform == "win32":
        return _peak_memory_windows() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


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
