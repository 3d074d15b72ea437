"""RegMamba: deformable 3-D image registration with selective state spaces, in world space.

The names below load on first use, so that `import RegMambaLib` is instant: torch and numba wait until they
are needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .errors import Cancelled, InputError, MissingDependencyError, RegMambaError
    from .networks import build_network, load_network, load_published_checkpoint
    from .registration.pipeline import register
    from .registration.result import Registration
    from .registration.settings import Settings

_HOMES = {
    "register": ".registration.pipeline",
    "Registration": ".registration.result",
    "Settings": ".registration.settings",
    "build_network": ".networks",
    "load_network": ".networks",
    "load_published_checkpoint": ".networks",
    "RegMambaError": ".errors",
    "InputError": ".errors",
    "MissingDependencyError": ".errors",
    "Cancelled": ".errors",
}

__all__ = [
    "Cancelled",
    "InputError",
    "MissingDependencyError",
    "RegMambaError",
    "Registration",
    "Settings",
    "__version__",
    "build_network",
    "load_network",
    "load_published_checkpoint",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
