"""What the worker can be asked for: a registration, facts about the installation, and to load everything ahead."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .progress import EXPECTED, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    import SimpleITK as sitk

    from ..registration.result import Registration

Answer = tuple[dict[str, Any], dict[str, str]]
IMAGES = ("fixed", "moving")
LABELS = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask")
_costs = dict(EXPECTED)
_threads: dict[str, tuple[int, int, int]] = {}


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
    _keep_networks()
    from ..registration.pipeline import register as run

    _restore_threads()
    result = run(**inputs, settings=settings, progress=progress)
    progress("write", 0.0)
    from .outputs import write

    files, moved_labels, mode = write(result, inputs, pixel, output, request.get("mode", "grid"))
    progress("evaluate", 0.0)
    numbers, notes = _evaluate(result, inputs, moved_labels, settings.threads)
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
    load_kernels()
    _keep_networks()
    from ..registration import network, pipeline

    if settings.weights != "none":
        pipeline.load_weights(network.chosen_weights(settings.weights))
    return {"weights": settings.weights}, {}


def _keep_networks() -> None:
    """Let the pipeline take networks from a store of the last two instead of reading them for every run."""
    from ..registration import network, pipeline

    pipeline.load_weights = _stored_network  # type: ignore[assignment]
    assert network.load_weights is not _stored_network


def _restore_threads() -> None:
    """Undo the thread limit of a run before: `threads` 0 means all, not the number of the last run."""
    import numba
    import SimpleITK as sitk
    import torch

    now = numba.get_num_threads(), torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first = _threads.setdefault("first", now)
    if first != now:
        numba.set_num_threads(first[0])
        torch.set_num_threads(first[1])
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(first[2])


def _stored_network(name: str) -> Any:
    from ..registration.network import find_weights

    path = find_weights(name).resolve()
    facts = path.stat()
    return _read_network(str(path), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2)
def _read_network(path: str, changed: int, size: int) -> Any:
    """The network of a file; read again if the file changed."""
    from ..registration.network import load_weights

    return load_weights(path)


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


def _evaluate(
    result: Registration, inputs: dict[str, Any], moved_labels: sitk.Image | None, threads: int
) -> tuple[dict[str, Any], list[str]]:
    """Folding on the working grid; with both label maps Dice and distances before and after; remarks."""
    import SimpleITK as sitk

    from ..evaluation.overlap import common_labels
    from ..evaluation.report import folding_report, label_report

    numbers: dict[str, Any] = dict(folding_report(result.jacobian))
    fixed, moving = inputs.get("fixed_labels"), inputs.get("moving_labels")
    if fixed is None or moving is None or moved_labels is None:
        return numbers, []
    given = sitk.GetArrayViewFromImage(fixed)
    labels = common_labels(given, sitk.GetArrayViewFromImage(moving))
    if not labels:
        return numbers, ["There is no Dice: the fixed and the moving labels have no label in common."]
    unmoved = result.fixed_grid.resample(moving, inputs.get("initial"), labels=True)
    for name, image in (("before", unmoved), ("after", moved_labels)):
        array = sitk.GetArrayViewFromImage(image)
        numbers[name] = label_report(given, array, fixed.GetSpacing(), labels, threads=threads or None)
    return numbers, []
