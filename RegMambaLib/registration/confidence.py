"""How far off a registration probably is, told from what it leaves behind.

Where it bends hard, where the images stay unlike, and where they stay of different brightness, it is off more often.
How much more was fitted to pairs whose true displacement is known; `python -m benchmarks.confidence` makes them, fits
again, and tells how well the map predicts the error of data sets that the fit did not see.
"""

from __future__ import annotations

import numpy as np

from ..spatial import fields

# Exponents of the three signs, and the factor before them: voxels. See the module for where they come from.
EXPONENTS = (0.316, 0.731, 0.433)
FACTOR = 3.334
# Gaussians, voxels: of the window that correlation is taken in, and over which signs are averaged.
WINDOW, REACH = 1.5, 4.0


def expected_error(fixed: np.ndarray, moved: np.ndarray, displacement: np.ndarray, spacing: float) -> np.ndarray:
    """The error that a registration probably has at each voxel, mm.

    Args:
        fixed, moved: (k, j, i) float32 in about [0, 1], on one grid.
        displacement: (3, k, j, i) float32 voxels, what `moved` was warped by.
        spacing: of the grid, mm.

    Returns:
        (k, j, i) float32.
    """
    logarithm = np.full(fixed.shape, np.log(FACTOR * spacing), np.float32)
    for exponent, sign in zip(EXPONENTS, signs(fixed, moved, displacement), strict=True):
        logarithm += np.float32(exponent) * np.log(sign)
    return np.exp(logarithm, out=logarithm)


def signs(fixed: np.ndarray, moved: np.ndarray, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What tells of an error: remaining difference, bending, and lack of correlation; (k, j, i) float32 above 0.

    The first two are root mean squares around each voxel, of the brightness and of the displacement's gradient.
    """
    difference = np.sqrt(_around(np.square(fixed - moved)) + 1e-6)
    bending = np.zeros_like(fixed)
    for component in displacement:
        for axis, size in enumerate(component.shape):
            if size > 1:
                bending += np.square(np.gradient(component, axis=axis))
    bending = np.sqrt(_around(bending) + 1e-5)
    vf, vm, cross = fields.local_moments(fixed, moved, WINDOW)
    unlike = _around(1 - np.square(cross) / (np.maximum(vf, 0) * np.maximum(vm, 0) + 1e-6)) + 1e-3
    return difference, bending, unlike


def _around(values: np.ndarray) -> np.ndarray:
    return np.maximum(fields.smooth(values, REACH), 0)
