"""Facts about this process and machine for the report and `info`."""

from __future__ import annotations

import platform
from importlib import metadata

from ..version import __version__

PACKAGES = ("numpy", "SimpleITK", "scipy", "numba", "torch", "safetensors", "triton", "mamba-ssm", "causal-conv1d")


def versions() -> dict[str, str | None]:
    """Versions of RegMamba, Python and the packages it uses; None for one that is not installed."""
    found: dict[str, str | None] = {"regmamba": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
