"""Jacobian determinants of voxel displacements.

They are computed in index space: SimpleITK's filter ignores the direction matrix and reports folds that are not
there on every grid whose axes are not LPS.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .jacobian_kernels import jacobian


def jacobian_determinant(displacement: np.ndarray, *, strict: bool = False) -> np.ndarray:
    """det(I + du/dx) of (3, k, j, i) voxels -> (k, j, i) float32; <= 0 is a fold.

    Central differences; `strict` takes the smallest of the central and the eight one-sided ones (Liu et al., IJCV
    2024), so that no difference scheme finds a fold where all are positive.
    """
    if displacement.ndim != 4 or displacement.shape[0] != 3 or min(displacement.shape[1:]) < 2:
        raise InputError(
            f"A displacement needs shape (3, k, j, i) with at least 2 voxels an axis, not {displacement.shape}."
        )
    u = np.ascontiguousarray(displacement, np.float32)
    out = np.empty(u.shape[1:], np.float32)
    jacobian(u, strict, out)
    return out
