"""Errors a user can act on. Every message says what is wrong and what to do about it."""

from __future__ import annotations


class RegMambaError(Exception):
    """Base of all errors with a message meant for the user; the command line prints it and exits with 2."""


class InputError(RegMambaError, ValueError):
    """An input (file, image, labels, transform, setting) cannot be used as given."""


class MissingDependencyError(RegMambaError, ImportError):
    """An optional package or device is needed for what was asked; the message names the install line."""


class Cancelled(RegMambaError):
    """The user asked to stop; no unfinished file is left behind."""
