"""What takes long at its first use, beforehand: kernels that numba and Triton compile and keep on disk, libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import is_out_of_memory
from .settings import Settings


def is_compiled(device: str = "cpu") -> bool:
    """Whether numba's kernels for a registration on a device are on disk already.

    They may still be compiled anew, on another processor.
    """
    from ..spatial.kernels import grow
    from .lncc_kernels import lncc_force

    # Refinement is numba's on the CPU only; the displacement is made to fade out at the border by numba in any case.
    name, kernel = ("lncc_kernels", lncc_force) if device == "cpu" else ("kernels", grow)
    return any(Path(kernel.stats.cache_path).glob(f"{name}.{kernel.__name__}-*.nbi"))


def load_kernels(settings: Settings) -> None:
    """Bring into memory what a registration with these settings needs: torch, and kernels from disk or compiled now.

    On a graphics card the network's part too: cuDNN and the scan's kernels take seconds at their first use.
    """
    if settings.device != "cpu" or settings.weights != "none":
        import torch  # noqa: F401 - a second, which is no part of a registration
    from .device import find_device

    device = find_device(settings.device)
    try:
        _load_kernels(settings, device)
    except Exception as error:
        if settings.device != "auto" or device == "cpu" or not is_out_of_memory(error):
            raise
        _load_kernels(settings, "cpu")  # where `register` will go too


def _load_kernels(settings: Settings, device: str) -> None:
    from ..scan import use_backend
    from ..spatial.grid import Grid
    from .cortex import cortex_map
    from .grid import faded
    from .network import chosen_weights, load_weights, predict
    from .refine import Maps, Pair, refine
    from .repair import repair_and_invert
    from .structures import structure_maps, wanted

    volume = np.random.default_rng(0).random((18, 18, 18), np.float32)
    maps = (Maps(volume[..., None], volume[..., None], 0.1),) if settings.structures else ()
    pair = Pair(volume, volume, np.empty((0, 0, 0), np.float32), maps=maps)
    if settings.structures:
        cortex_map(volume, volume, np.stack([volume] * 3, -1))
    u, _ = faded(refine(pair, Settings(iterations=(1, 1)), device=device), Grid(volume.shape, (1.0, 1.0, 1.0)))
    u[0, 8, 8, 8] += 3  # a fold to mend
    repair_and_invert(u, 1.0, device=device)
    if device != "cpu" and settings.weights != "none":
        weights = chosen_weights(settings.weights)
        with use_backend(settings.scan):
            predict(load_weights(weights), volume, volume, device=device)
        if wanted(settings, weights, alike=True):
            structure_maps(pair, pair, device=device)


def compile_kernels() -> None:
    """Register a small made-up pair in the ways that use different kernels: network, LNCC, MIND, labels.

    On the CPU, and on a graphics card where there is one.
    """
    import SimpleITK as sitk

    from .device import find_device
    from .pipeline import register

    place = np.indices((40, 44, 48)).astype(np.float32)
    distance = np.sqrt(sum((axis - 22) ** 2 for axis in place))
    waves = np.sin(place[0] / 3) * np.sin(place[1] / 4) * np.sin(place[2] / 5)
    values = np.where(distance < 16, 500 + 300 * waves, 0).astype(np.float32)
    fixed, moving = sitk.GetImageFromArray(values), sitk.GetImageFromArray(np.roll(values, 1, axis=2))
    labels = sitk.Cast(fixed > 500, sitk.sitkUInt8), sitk.Cast(moving > 500, sitk.sitkUInt8)
    quick = Settings(affine="none", iterations=(1, 1))
    ways = (quick, replace(quick, weights="none", metric="mind", guide=True))
    devices = dict.fromkeys(("cpu", find_device("auto")))
    for device in devices:
        _load_kernels(quick, device)  # what this pair does not need, as it shows no brain
    for settings in (replace(way, device=device) for device in devices for way in ways):
        result = register(fixed, moving, fixed_labels=labels[0], moving_labels=labels[1], settings=settings)
        result.warp(moving)
        result.warp(labels[1], labels=True)
