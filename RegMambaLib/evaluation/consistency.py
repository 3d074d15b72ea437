"""How far a transform and its inverse are from undoing one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..io.transforms import chain, flatten
from ..spatial.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk


def inverse_error(
    transform: sitk.Transform, inverse: sitk.Transform, grid: Grid, mask: np.ndarray | None = None
) -> np.ndarray:
    """(n,) mm between voxel centres and where `transform`, then `inverse`, bring them.

    Args:
        transform: fixed -> moving; inverse: moving -> fixed; both LPS mm.
        grid: in fixed space.
        mask: (k, j, i) bool on the grid: the voxels that count; by default all. A voxel that the transform
            carries out of the moving image counts too.
    """
    error = np.linalg.norm(flatten(chain(transform, inverse), grid), axis=-1)
    return error.ravel() if mask is None else error[mask]
