"""Target registration error of corresponding points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..spatial.itk import map_points

if TYPE_CHECKING:
    import SimpleITK as sitk


def target_registration_error(
    fixed: np.ndarray, moving: np.ndarray, transform: sitk.Transform | None = None
) -> np.ndarray:
    """(n,) mm between the fixed points, brought to moving space, and the moving points; both (n, 3) LPS mm.

    Args:
        fixed, moving: corresponding points.
        transform: fixed -> moving; None measures the points as they are.

    Raises:
        InputError: the lists differ in length, or are empty.
    """
    if len(fixed) != len(moving) or len(fixed) == 0:
        raise InputError(f"{len(fixed)} fixed and {len(moving)} moving points are no pairs; give pairs.")
    brought = map_points(transform, fixed) if transform is not None else np.asarray(fixed, float)
    return np.linalg.norm(brought - np.asarray(moving, float), axis=1)
