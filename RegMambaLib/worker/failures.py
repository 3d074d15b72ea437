"""What went wrong, in a kind that a panel can act on and one sentence that a user can."""

from __future__ import annotations

from typing import Any

from ..errors import Cancelled, InputError, MissingDependencyError, RegMambaError, is_out_of_memory

_GPU_WORDS = ("cuda", "cublas", "cudnn", "mps")
ROLES = {
    "fixed": "The fixed volume",
    "moving": "The moving volume",
    "fixed_labels": "The map of fixed labels",
    "moving_labels": "The map of moving labels",
    "fixed_mask": "The fixed mask",
    "moving_mask": "The moving mask",
    "initial": "The initial transform",
}


def describe(error: BaseException, request: dict[str, Any]) -> tuple[str, str]:
    """(kind, message) of an error; paths of temporary files become the roles of the inputs."""
    if is_out_of_memory(error):
        return "memory", memory_advice(on_gpu=any(word in str(error).lower() for word in _GPU_WORDS))
    if isinstance(error, MissingDependencyError):
        return "missing", _in_roles(str(error), request)
    if isinstance(error, ImportError):
        name = error.name or "a package"
        return "missing", f"The Python package {name} cannot be loaded ({error}); install the requirements again."
    if isinstance(error, (InputError, RegMambaError)) and not isinstance(error, Cancelled):
        return "input", _in_roles(str(error), request)
    return "crash", (
        f"The registration stopped with an internal error ({type(error).__name__}: {str(error) or 'no message'}); "
        "try other settings, and report it with the log if it stays."
    )


def memory_advice(*, on_gpu: bool) -> str:
    """What to do about memory that ran out."""
    if on_gpu:
        return "The graphics card has not enough memory; choose the device cpu, or a coarser working grid (spacing)."
    return (
        "There is not enough memory for this registration; choose a coarser working grid (spacing), crop the volumes, "
        "or close other programs."
    )


def _in_roles(message: str, request: dict[str, Any]) -> str:
    for name, words in ROLES.items():
        path = request.get(name)
        if isinstance(path, str) and path in message:
            at_start = message.startswith(path)
            message = message.replace(path, words if at_start else words[0].lower() + words[1:])
    return message
