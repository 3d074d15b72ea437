"""How regular a deformation is, from its Jacobian determinants."""

from __future__ import annotations

import numpy as np

FLOOR = 1e-9
"""Determinants are clipped here before their logarithm is taken, as Learn2Reg does."""


def folding_percent(jacobian: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Share of voxels with a determinant <= 0, in percent; within a mask if given."""
    values = jacobian if mask is None else jacobian[mask]
    return float(100 * np.count_nonzero(values <= 0) / max(values.size, 1))


def sd_log_jacobian(jacobian: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Standard deviation of the logarithm of the determinant; within a mask if given. 0 is rigid."""
    values = jacobian if mask is None else jacobian[mask]
    return float(np.log(np.maximum(values, np.float32(FLOOR)), dtype=np.float32).std(dtype=np.float64))
