"""How many CPU threads numba, torch and ITK use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let numba, torch and ITK use so many CPU threads within the block, and as many as before after it; 0 lets all be.

    ITK's and torch's numbers are those of the whole process: blocks of different numbers must not run side by side.
    """
    if count <= 0:
        yield
        return
    import numba
    import SimpleITK as sitk
    import torch

    itk = sitk.ProcessObject
    before = numba.get_num_threads(), torch.get_num_threads(), itk.GetGlobalDefaultNumberOfThreads()
    try:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        torch.set_num_threads(count)
        itk.SetGlobalDefaultNumberOfThreads(count)
        yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])
        itk.SetGlobalDefaultNumberOfThreads(before[2])
