"""Which implementation runs: the first that is not "auto" of argument, `use_backend`, `set_backend` and REGMAMBA_SCAN,
else what is fastest on the device.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from types import ModuleType

import torch

from RegMambaLib.errors import InputError, MissingDependencyError, is_out_of_memory

ENVIRONMENT_VARIABLE = "REGMAMBA_SCAN"
_MODULES = {
    "torch": "RegMambaLib.scan.reference",
    "numba": "RegMambaLib.scan.numba_backend",
    "mamba_ssm": "RegMambaLib.scan.mamba_ssm_backend",
    "triton": "RegMambaLib.scan.triton_backend",
}
_INSTALL = {
    "numba": "pip install numba",
    "mamba_ssm": "pip install mamba-ssm causal-conv1d --no-build-isolation (Linux with an NVIDIA GPU)",
    "triton": "pip install triton (Linux with an NVIDIA GPU; it comes with torch for CUDA)",
}
# Tried in this order where nobody chose; torch is what remains.
_FASTEST = {"cuda": ("triton", "mamba_ssm"), "cpu": ("numba",)}
_ON_CUDA = ("triton", "mamba_ssm")
BACKENDS = ("auto", *_MODULES)

# What is known of backends on devices, with or without gradients: None, or why one cannot run there.
_known: dict[tuple[str, torch.device, bool], str | None] = {}
_process_choice = "auto"
_context_choice: ContextVar[str] = ContextVar("regmamba_scan_backend", default="auto")


def set_backend(name: str) -> None:
    """Choose the scan backend (one of `BACKENDS`) for the whole process.

    Raises InputError for an unknown name and MissingDependencyError for a backend that cannot run here.
    """
    global _process_choice
    with torch.no_grad():  # a call that wants gradients tries them
        _require(name)
    _process_choice = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """As `set_backend`, within a with-block and the current thread only."""
    with torch.no_grad():
        _require(name)
    token = _context_choice.set(name)
    try:
        yield
    finally:
        _context_choice.reset(token)


def available_backends() -> dict[str, str | None]:
    """Every backend with None where it works, else the reason why it does not, in one sentence."""
    with torch.no_grad():
        return {name: _why_unusable(name) for name in _MODULES}


def backend_module(requested: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that runs a call with this `backend` argument on tensors of this device and type.

    Raises InputError for an unknown name or one that cannot take these tensors, MissingDependencyError for a
    missing one.
    """
    name = requested
    if name == "auto":
        name = _context_choice.get()
    if name == "auto":
        name = _process_choice
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE, "auto").strip() or "auto"
    if name == "auto":
        name = _for_tensors(device, dtype)
    on_gpu = device.type == "cuda"
    _require(name, device if on_gpu and name in _ON_CUDA else None)
    if name == "numba" and device.type != "cpu":
        raise InputError(f"The numba scan runs on the CPU only and got tensors on {device}; use 'auto' or 'torch'.")
    if name in _ON_CUDA and not on_gpu and not _interpreted(name):
        raise InputError(f"The {name} scan runs on CUDA only and got tensors on {device}; use 'auto' or 'numba'.")
    return importlib.import_module(_MODULES[name])


def _for_tensors(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest that works; only torch has a float64 state."""
    fast = () if dtype == torch.float64 else _FASTEST.get(device.type, ())
    reasons = {}
    for name in fast:
        reasons[name] = _why_unusable(name, device)
        if reasons[name] is None:
            return name
    broken = [f"{name}: {reason}" for name, reason in reasons.items() if find_spec(name) is not None]
    if broken:
        warnings.warn(f"The scan runs with torch, much slower ({'; '.join(broken)}).", stacklevel=2)
    return "torch"


def _interpreted(name: str) -> bool:
    """Whether Triton's interpreter stands in for the GPU."""
    return name == "triton" and importlib.import_module(_MODULES[name]).interpreted()


def _require(name: str, device: torch.device | None = None) -> None:
    if name not in BACKENDS:
        raise InputError(f"'{name}' is not a scan backend; choose from {', '.join(BACKENDS)}.")
    reason = None if name == "auto" else _why_unusable(name, device)
    if reason is not None:
        raise MissingDependencyError(
            f"The scan backend '{name}' cannot run: {reason}; install it with: {_INSTALL[name]}"
        )


def _why_unusable(name: str, device: torch.device | None = None) -> str | None:
    """None, or why the backend cannot run on a device (by default the one it is for).

    Tried once per process and device, with gradients once they are wanted, since a broken installation shows only when
    called; a lack of memory passes and is not remembered.
    """
    place = device or torch.device("cuda" if name in _ON_CUDA else "cpu")
    key = name, place, torch.is_grad_enabled()
    if key in _known:
        return _known[key]
    if _known.get((name, place, True), "untried") is None:
        return None
    try:
        module = importlib.import_module(_MODULES[name])
        module.check(torch.device("cpu") if _interpreted(name) else place)
        reason = None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if is_out_of_memory(error):
            return reason
    _known[key] = reason
    return reason
