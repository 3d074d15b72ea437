"""What the worker can be asked for: a registration, facts about the installation, and to load everything ahead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .progress import EXPECTED, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable


Answer = tuple[dict[str, Any], dict[str, str]]
IMAGES = ("fixed", "moving")
LABELS = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask")
_costs = dict(EXPECTED)


def register(request: dict[str, Any], emit: Callable[..., None]) -> Answer:
    """Register the files of a request; the report, and the result's files in the folder `output`.

    Raises:
        InputError: an input or a setting cannot be used.
    """
    from ..registration.settings import Settings

    began = time.perf_counter()
    progress = Tracker(emit, dict(_costs))
    settings = Settings.from_dict(request.get("settings") or {})
    output = Path(request["output"])
    output.mkdir(parents=True, exist_ok=True)

    progress("read", 0.0)
    inputs, pixel = _read(request)
    progress("start", 0.0)
    from ..registration.pipeline import register as run

    result = run(**inputs, settings=settings, progress=progress)
    progress("write", 0.0)
    from .outputs import write

    files, moved_labels, mode = write(result, inputs, pixel, output, request.get("mode", "grid"))
    progress("evaluate", 0.0)
    from ..evaluation.report import registration_report

    labels = inputs.get("fixed_labels"), inputs.get("moving_labels"), moved_labels
    numbers, notes = registration_report(
        result, *labels, initial=inputs.get("initial"), distances_before=True, threads=settings.threads
    )
    progress("evaluate", 1.0)
    progress.finish()
    _costs.update(progress.seconds)
    if "start" in progress.seconds:
        _costs["start"] = 0.1  # torch and numba are loaded now
    report = {
        "seconds": {**progress.seconds, "total": time.perf_counter() - began},
        **numbers,
        "notes": notes,
        "mode": mode,
        "affine_lps": result.affine.tolist(),
        "details": result.details,
        "settings": result.settings.to_dict(),
    }
    return report, files


def info(request: dict[str, Any], emit: Callable[..., None]) -> Answer:
    """Versions, devices, scan backends (None, or why one cannot be used) and shipped weights."""
    import torch

    from ..cli.system import versions
    from ..registration.network import shipped_weights
    from ..scan import available_backends

    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    names = {"cpu": "CPU"} | {name: torch.cuda.get_device_name(name) for name in devices if name != "cpu"}
    if torch.backends.mps.is_available():
        devices.append("mps")
        names["mps"] = "Apple GPU"
    facts = {
        "versions": versions(),
        "devices": [{"device": device, "name": names[device]} for device in devices],
        "scan_backends": available_backends(),
        "weights": list(shipped_weights()),
    }
    return facts, {}


def warmup(request: dict[str, Any], emit: Callable[..., None]) -> Answer:
    """Load torch, numba, its kernels and the network of the settings, so that the first registration starts at once."""
    from ..registration.settings import Settings
    from ..registration.warmup import load_kernels

    settings = Settings.from_dict(request.get("settings") or {})
    emit(stage="start", share=0.0, total=0.0, eta=None)
    load_kernels(settings)
    from ..registration.network import chosen_weights, load_weights

    if settings.weights != "none":
        load_weights(chosen_weights(settings.weights))
    return {"weights": settings.weights}, {}


def _read(request: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The arguments of `register`, and the pixel type of the moving image as given."""
    import SimpleITK as sitk

    from ..io.images import read_image, read_labels
    from ..io.transforms import read_linear

    inputs: dict[str, Any] = {}
    for name in IMAGES:
        if not request.get(name):
            raise InputError(f"There is no {name} volume; choose one.")
        inputs[name] = read_image(request[name])
    for name in LABELS:
        if request.get(name):
            inputs[name] = read_labels(request[name])
    if request.get("initial"):
        inputs["initial"] = read_linear(request["initial"])
    reader = sitk.ImageFileReader()
    reader.SetFileName(request["moving"])
    reader.ReadImageInformation()
    return inputs, reader.GetPixelID()
