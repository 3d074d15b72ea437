"""Linear operations that treat the three axes one by one, as one small matrix per axis; numpy and torch alike.

Interpolation, Gaussian smoothing and both in a row are such operations. As matrix products they are fast on every
device and, unlike cuDNN's convolutions, computed in full float32 unless someone asks torch for less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage

Volume = TypeVar("Volume", np.ndarray, torch.Tensor)


def stretching(knots: int, size: int) -> np.ndarray:
    """Linear interpolation of `knots` values at `size` places, corner on corner, float32 (size, knots)."""
    places = np.linspace(0, knots - 1, size)
    rows = [np.interp(places, np.arange(knots), unit) for unit in np.eye(knots)]
    return np.stack(rows, axis=1).astype(np.float32)


def gaussian(size: int, sigma: float, *, truncate: float = 4.0) -> np.ndarray:
    """Gaussian smoothing of `size` values, sigma in voxels, ends reflected, float32 (size, size)."""
    if sigma <= 0:
        return np.eye(size, dtype=np.float32)
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, truncate=truncate).astype(np.float32)


def along_axes(volume: Volume, matrices: Sequence[Volume]) -> Volume:
    """(..., h, w, d) -> (..., H, W, D) by the matrices (H, h), (W, w) and (D, d)."""
    first, second, third = matrices
    volume = second @ (volume @ third.T)
    width, depth = volume.shape[-2:]
    rows = first @ volume.reshape(*volume.shape[:-2], width * depth)
    return rows.reshape(*rows.shape[:-1], width, depth)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: float, spread: float) -> np.ndarray:
    """Smooth random field, float32 `shape`, with the standard deviation `spread`; `knots` in voxels.

    Drawn and made on the CPU with numpy, so that it is the same whatever device it goes to.
    """
    counts = [max(2, round(n / knots) + 1) for n in shape]
    values = rng.standard_normal(counts).astype(np.float32)
    # Linear interpolation has creases at the knots; they would show as folds in the Jacobian.
    matrices = [
        ndimage.gaussian_filter1d(stretching(count, n), 0.35 * knots, axis=0, truncate=2.5, mode="nearest")
        for count, n in zip(counts, shape, strict=True)
    ]
    field = along_axes(values, matrices)
    return field * np.float32(spread / max(float(field.std()), 1e-6))


def put(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device, in their dtype; a GPU that they go to is not waited for."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        # From pageable memory the copy would wait for all that the training has queued there.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
