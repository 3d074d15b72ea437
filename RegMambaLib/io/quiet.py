"""Keep ITK's own words off the terminal: what a user needs to know is in our error messages."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_shown = True


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Silence ITK's warnings, and what its readers print to the process's stderr past Python.

    Threads may be within at once. The process's stderr is silenced in the main thread only: in another one, what the
    program prints meanwhile would be lost with it.
    """
    import SimpleITK as sitk

    global _inside, _shown
    with _lock:
        if _inside == 0:
            _shown = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _inside += 1
    try:
        if threading.current_thread() is threading.main_thread():
            with _no_stderr():
                yield
        else:
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_shown)


@contextmanager
def _no_stderr() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # a process without stderr (pythonw) has nothing to silence
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
