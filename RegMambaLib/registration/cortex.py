"""Where the cortex of a T1 brain lies, as sharp as its image: from what a network found on a coarser grid.

The network says what a voxel of 2 mm holds and so how bright white matter, cortex and fluid are around it; a voxel of
the image that is as bright as the cortex there is cortex, one half way to a neighbour half of it. Local means of the
classes instead of a model of the bias field: Pham and Prince, IEEE TMI 1999.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..spatial import fields
from ..spatial.kernels import ONE, OPTIONS, split
from ..spatial.rows import HELPER
from .kernels import ZERO

HALF = np.float32(0.5)
# Share of a class from which a voxel tells its brightness, and how far it tells it: sigma in voxels of 4 mm.
PURE, SIGMA = 0.75, 2.5
# Least differences in brightness, of 1 for the brightest: of white matter and of fluid from the cortex.
WHITER, DARKER = np.float32(0.02), np.float32(0.05)
# Of an average of all voxels of a class, what it counts besides those near by; fluid is rare in stripped images.
OVERALL = 1e-3


def cortex_map(image: np.ndarray, coarse: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of cortex in each voxel of an image, float32 (k, j, i); 0 where no voxel tells how bright the tissues are.

    Args:
        image: float32 (k, j, i) in [0, 1], background 0.
        coarse: the same over the same extent, at the resolution of the shares.
        shares: float32 (k, j, i, 3) of white matter, cortex and fluid (what is no brain, but within the image).
    """
    classes = np.ascontiguousarray(np.moveaxis(shares, -1, 0))
    pure = np.where(classes > PURE, classes, np.float32(0))
    out = np.zeros(image.shape, np.float32)
    amounts = pure.sum((1, 2, 3), dtype=np.float64)
    if not (amounts[:2] > 0).all():
        return out
    z, y, x = (max(1, n // 2) for n in coarse.shape)
    near = np.stack([fields.resize(volume, (z, y, x)) for volume in (*(pure * coarse), *pure)])
    near = fields.smooth(near, SIGMA, truncate=3.0)
    overall = [
        np.vdot(voxels.astype(np.float64), coarse) / max(n, 1e-6) for voxels, n in zip(pure, amounts, strict=True)
    ]
    white, grey, fluid = (
        (total + np.float32(OVERALL * mean)) / (amount + np.float32(OVERALL))
        for total, amount, mean in zip(near[:3], near[3:], overall, strict=True)
    )
    grey = np.minimum(grey, white - WHITER)
    fluid = np.minimum(fluid, grey - DARKER)
    _cortex_share(image, white, grey, fluid, np.minimum(classes.sum(0), 1), out)
    return out


@njit(**OPTIONS)
def _cortex_share(image, white, grey, fluid, tissue, out):
    """1 within a quarter of the way in brightness to white matter or fluid, 0 beyond three quarters.

    The brightness of white matter, cortex and fluid around, all of one shape, and tissue, the share of all three, are
    sampled over the same extent.
    """
    Z, Y, X = image.shape
    near_step, there_step = np.float32(grey.shape[2] / X), np.float32(tissue.shape[2] / X)
    for z in prange(Z):
        near = np.empty((3, grey.shape[2]), np.float32)
        there = np.empty(tissue.shape[2], np.float32)
        for y in range(Y):
            for number, volume in enumerate((white, grey, fluid)):
                _row(volume, (z + 0.5) / Z, (y + 0.5) / Y, near[number])
            _row(tissue, (z + 0.5) / Z, (y + 0.5) / Y, there)
            for x in range(X):
                value = image[z, y, x]
                centre = np.float32(x) + HALF
                share = _along(there, centre * there_step - HALF) if value > 0 else ZERO
                if share > 0:
                    place = centre * near_step - HALF
                    cortex = _along(near[1], place)
                    if value > cortex:
                        way = (value - cortex) / max(_along(near[0], place) - cortex, WHITER)
                    else:
                        way = (cortex - value) / max(cortex - _along(near[2], place), DARKER)
                    share *= min(max(np.float32(1.5) - 2 * way, ZERO), ONE)
                out[z, y, x] = share


@njit(**HELPER)
def _row(volume, z, y, out):
    """A row of a volume (k, j, i) at a share of its height and its length, bilinear."""
    z0, z1, fz = split(np.float32(z * volume.shape[0] - 0.5), volume.shape[0])
    y0, y1, fy = split(np.float32(y * volume.shape[1] - 0.5), volume.shape[1])
    for x in range(out.size):
        low = volume[z0, y0, x] * (ONE - fy) + volume[z0, y1, x] * fy
        high = volume[z1, y0, x] * (ONE - fy) + volume[z1, y1, x] * fy
        out[x] = low * (ONE - fz) + high * fz


@njit(**HELPER)
def _along(row, x):
    """The value between two voxels of a row, linear."""
    low, high, fraction = split(x, row.size)
    return row[low] * (ONE - fraction) + row[high] * fraction
