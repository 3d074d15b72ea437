"""Python packages the library needs and Slicer lacks: found without importing them, installed with consent.

numpy, scipy and SimpleITK are Slicer's own and never installed or changed from here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import slicer

SLICERS_OWN = ("numpy", "scipy", "SimpleITK")
TORCH = ">=2.2"
OLDEST_PYTHON = (3, 10)
KERNELS = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"


class DependencyError(RuntimeError):
    """Something the registration needs is not there; the message says what to do."""


def is_there(package: str) -> bool:
    """Whether a package could be imported, without importing it."""
    importlib.invalidate_caches()
    return importlib.util.find_spec(package) is not None


def requirements() -> list[str]:
    """The requirements as written, without comments."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def missing() -> list[str]:
    """Requirements that are not installed, or in a version that is too old; torch among them."""
    wanted = [*requirements(), f"torch{TORCH}"]
    return [line for line in wanted if not is_there(_name(line)) or is_too_old(line)]


def is_too_old(requirement: str) -> bool:
    """Whether an installed package is older than a requirement of the form name>=1.2 allows."""
    name, _, least = requirement.partition(">=")
    try:
        return _numbers(metadata.version(name)) < _numbers(least)
    except metadata.PackageNotFoundError:  # built into Slicer without a record of its version
        return False


def ensure(say: Callable[[str], None] = lambda text: None) -> None:
    """Install what is missing, after asking the user; called when Register is first pressed.

    Args:
        say: shows a remark at once; pip blocks Slicer up to 5.10.

    Raises:
        DependencyError: declined, failed, the PyTorch extension is not installed, or Slicer is too old.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise DependencyError("RegMamba needs Slicer 5.10 or newer; update Slicer.")
    if not missing():
        return
    say("Installing Python packages; Slicer may not respond until that is done.")
    if f"torch{TORCH}" in missing():
        _ensure_torch()
    others = [line for line in missing() if _name(line) != "torch"]
    if others:
        _install(others)
    left = missing()
    if left:
        raise DependencyError(
            f"Registration needs {', '.join(left)}, not installed so far; press Register again and allow the "
            "installation, or ask whoever looks after this computer for it."
        )


def _ensure_torch() -> None:
    if is_there("torch"):
        raise DependencyError(
            f"Registration needs PyTorch {TORCH.strip('>=')} or newer, and version {metadata.version('torch')} is "
            "installed; uninstall it in the module PyTorch Util, restart Slicer, and press Register again."
        )
    try:
        import PyTorchUtils
    except ImportError:
        raise DependencyError(
            "Registration needs PyTorch; install the PyTorch extension with the Extensions Manager and restart Slicer."
        ) from None
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH)
    except Exception as error:
        raise DependencyError(
            f"PyTorch could not be installed ({error}); open the module PyTorch Util and install it there."
        ) from error
    if torch is None:
        raise DependencyError("Registration needs PyTorch; press Register again and allow its installation.")


def _install(wanted: list[str]) -> None:
    try:
        if importlib.util.find_spec("slicer.packaging") is not None:
            packaging = importlib.import_module("slicer.packaging")
            if hasattr(packaging, "pip_ensure"):
                _ensure_by_packaging(packaging)
                return
        text = f"RegMamba needs {', '.join(wanted)}. Install them into Slicer's Python now?"
        if not slicer.util.confirmOkCancelDisplay(text, windowTitle="RegMamba"):
            raise DependencyError(_declined(wanted))
        slicer.util.pip_install([*wanted, *_held()])
    except DependencyError:
        raise
    except Exception as error:
        if "declined" in str(error):  # of slicer.packaging, which asks by itself
            raise DependencyError(_declined(wanted)) from error
        raise DependencyError(
            f"{', '.join(wanted)} could not be installed ({error}); check the network connection and try again."
        ) from error


def _declined(wanted: list[str]) -> str:
    return f"Registration needs {', '.join(wanted)}; press Register again and allow it."


def _ensure_by_packaging(packaging: Any) -> None:
    """Slicer 5.11 and later ask, show progress and offer a restart by themselves."""
    wanted = packaging.load_requirements(str(REQUIREMENTS))
    with tempfile.TemporaryDirectory() as folder:
        more = {}
        if "constraints" in inspect.signature(packaging.pip_ensure).parameters:
            more["constraints"] = str(Path(folder) / "constraints.txt")
            Path(more["constraints"]).write_text("\n".join(_held()) + "\n", encoding="utf-8")
        packaging.pip_ensure(wanted, requester="RegMamba", **more)


def _held() -> list[str]:
    """Slicer's own packages at the version they have, so that pip leaves them alone."""
    found = []
    for package in SLICERS_OWN:
        try:
            found.append(f"{package}=={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _name(requirement: str) -> str:
    for mark in "<>=!~; [":
        requirement = requirement.split(mark)[0]
    return requirement.strip()


def _numbers(version: str) -> list[int]:
    """The release of a version, such as [2, 13, 0] of 2.13.0+cpu."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def describe_kernels() -> str:
    """What the "CUDA kernels" entry says: whether they are there, what they bring, how to add them."""
    found = [name for module, name in KERNELS.items() if is_there(module)]
    if len(found) == len(KERNELS):
        return "mamba-ssm and causal-conv1d are installed: the network runs on fused CUDA kernels."
    benefit = "They make the network faster on NVIDIA cards; without them everything works and gives the same result."
    if sys.platform != "linux":
        return f"Not installed. {benefit} They exist for Linux only."
    names = " and ".join(name for name in KERNELS.values() if name not in found)
    add = " ".join(KERNELS.values())
    return (
        f"{names} not installed. {benefit} To add them, with an NVIDIA card and the CUDA toolkit, type in the Python "
        f"console: slicer.util.pip_install('--no-build-isolation {add}')"
    )
