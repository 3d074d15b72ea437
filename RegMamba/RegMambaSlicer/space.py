"""The one place where LPS (SimpleITK, the library) becomes RAS (Slicer) and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_matrix(matrix: np.ndarray) -> np.ndarray:
    """A 4x4 from world to world, given in LPS mm, in RAS mm (and the other way round)."""
    return FLIP @ np.asarray(matrix, float) @ FLIP


def flip_axes(matrix: np.ndarray) -> np.ndarray:
    """A 4x4 from indices to world, given in LPS mm, in RAS mm (and the other way round)."""
    return FLIP @ np.asarray(matrix, float)


def flip_vectors(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) points or vectors in LPS mm as RAS mm (and the other way round); the number type stays."""
    vectors = np.asarray(vectors)
    return vectors * np.asarray([-1, -1, 1], vectors.dtype)


def to_vtk(matrix: np.ndarray) -> Any:
    """A 3x3 or 4x4 array as vtkMatrix4x4."""
    result = vtk.vtkMatrix4x4()
    for row, values in enumerate(np.asarray(matrix, float)):
        for column, value in enumerate(values):
            result.SetElement(row, column, value)
    return result


def from_vtk(matrix: Any) -> np.ndarray:
    """A vtkMatrix4x4 as 4x4 array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
