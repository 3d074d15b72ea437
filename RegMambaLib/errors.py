"""Errors a user can act on. Every message says what is wrong and what to do about it."""

from __future__ import annotations

import re

_NO_MEMORY = re.compile(
    r"out of memory|not enough memory|(can't|failed to|could not) alloc|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)


class RegMambaError(Exception):
    """Base of all errors with a message meant for the user; the command line prints it and exits with 2."""


class InputError(RegMambaError, ValueError):
    """An input (file, image, labels, transform, setting) cannot be used as given."""


class MissingDependencyError(RegMambaError, ImportError):
    """An optional package or device is needed for what was asked; the message names the install line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy, torch or ITK had no memory; the latter two raise plain RuntimeErrors."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


class Cancelled(RegMambaError):
    """The user asked to stop; no unfinished file is left behind."""
