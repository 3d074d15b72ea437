"""Where a node's voxels are in the world, as a `Grid` in LPS mm."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid

from .space import flip_axes, from_vtk

SHEAR = 0.05
"""Voxels by which the corners may be off before a grid counts as sheared."""


def to_world(node: Any, ignore: Any = None) -> np.ndarray:
    """4x4 in RAS mm from a node's own space to the world.

    Args:
        ignore: a transform node that counts as identity with all above it: the result of a run before, which is
            about to be replaced.

    Raises:
        InputError: a parent transform of the node is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None or parent is ignore:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if ignore is not None and parent.IsTransformNodeMyParent(ignore) and parent.IsTransformToNodeLinear(ignore):
        parent.GetMatrixTransformToNode(ignore, matrix)
        return from_vtk(matrix)
    if not parent.IsTransformToWorldLinear():
        raise InputError(
            f"{node.GetName()} is under the non-linear transform {parent.GetName()}; harden that transform on a copy "
            "and choose the copy."
        )
    parent.GetMatrixTransformToWorld(matrix)
    return from_vtk(matrix)


def volume_axes(node: Any, ignore: Any = None) -> np.ndarray:
    """4x4 from (i, j, k) of a volume node to world LPS mm."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return flip_axes(to_world(node, ignore) @ from_vtk(matrix))


def orthogonal_grid(size: tuple[int, int, int], axes: np.ndarray) -> Grid | None:
    """The grid of a 4x4 from indices to LPS mm, or None where the axes are not at right angles."""
    spacing = np.linalg.norm(axes[:3, :3], axis=0)
    direction = nearest_rotation(axes[:3, :3] / spacing)
    off = (direction * spacing - axes[:3, :3]) * (np.asarray(size) - 1)
    if np.abs(off).sum(axis=1).max() > SHEAR * spacing.min():
        return None
    return _grid(size, spacing, axes[:3, 3], direction)


def covering_grid(size: tuple[int, int, int], axes: np.ndarray) -> Grid:
    """A grid at right angles around a sheared one, with the finest of its spacings along each axis."""
    spacing = np.linalg.norm(axes[:3, :3], axis=0)
    direction = nearest_rotation(axes[:3, :3] / spacing)
    ends = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.asarray(size) - 1)
    corners = ends @ axes[:3, :3].T + axes[:3, 3]
    along = corners @ direction
    count = np.ceil(np.ptp(along, axis=0) / spacing - 1e-6).astype(int) + 1
    return _grid((int(count[0]), int(count[1]), int(count[2])), spacing, direction @ along.min(0), direction)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal 3x3 (mirrored or not) closest to a matrix; one that is orthogonal already stays as it is."""
    if np.abs(matrix.T @ matrix - np.eye(3)).max() < 1e-12:
        return matrix
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _grid(size: tuple[int, int, int], spacing: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> Grid:
    sx, sy, sz = (float(v) for v in spacing)
    x, y, z = (float(v) for v in origin)
    return Grid(size, (sx, sy, sz), (x, y, z), tuple(direction.ravel().tolist()))
