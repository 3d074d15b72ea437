"""Between voxel displacements on a grid and ITK transforms in LPS mm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk


def voxels_to_mm(displacement: np.ndarray, grid: Grid) -> np.ndarray:
    """(3, k, j, i) voxels on `grid` -> (k, j, i, 3) LPS mm, float64."""
    out = np.empty((*displacement.shape[1:], 3))
    for z, plane in enumerate(out):  # copies of all of it would take hundreds of megabytes
        np.matmul(np.moveaxis(displacement[::-1, z], 0, -1), grid.axes.T, out=plane)
    return out


def mm_to_voxels(displacement: np.ndarray, grid: Grid) -> np.ndarray:
    """(k, j, i, 3) LPS mm -> (3, k, j, i) voxels of `grid`, float32."""
    axes = np.linalg.inv(grid.axes).T
    out = np.empty((3, *displacement.shape[:3]), np.float32)
    for z, plane in enumerate(displacement):
        out[:, z] = np.moveaxis(np.asarray(plane, np.float64) @ axes, -1, 0)[::-1]
    return out


def displacement_transform(displacement: np.ndarray, grid: Grid) -> sitk.Transform:
    """The ITK transform x -> x + u(x); identity outside the grid."""
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(grid.image(voxels_to_mm(displacement, grid)))


def affine_transform(matrix: np.ndarray) -> sitk.Transform:
    """The ITK transform of a 4x4 matrix in LPS mm."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.asarray(matrix, float)[:3, :3].ravel().tolist())
    transform.SetTranslation(np.asarray(matrix, float)[:3, 3].tolist())
    return transform


def affine_matrix(transform: sitk.Transform) -> np.ndarray:
    """The 4x4 matrix (LPS mm) of a linear ITK transform of any class, or of a composite of such.

    Raises:
        InputError: the transform is not linear.
    """
    if not transform.IsLinear():
        raise InputError("The transform is not linear; give a translation, rigid, similarity or affine one.")
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        matrix[:3, axis] = np.asarray(transform.TransformPoint(unit)) - matrix[:3, 3]
    return matrix


def split_transform(transform: sitk.Transform) -> tuple[np.ndarray, np.ndarray | None, Grid | None]:
    """(affine 4x4, voxel displacement, grid) of `x -> affine(x + u(x))`, as `Registration` writes it.

    A purely linear transform has displacement and grid None.

    Raises:
        InputError: the transform is another kind of chain.
    """
    import SimpleITK as sitk

    transform = transform.Downcast() if hasattr(transform, "Downcast") else transform
    if transform.IsLinear():
        return affine_matrix(transform), None, None
    if isinstance(transform, sitk.CompositeTransform):
        parts = [transform.GetNthTransform(n).Downcast() for n in range(transform.GetNumberOfTransforms())]
    else:
        parts = [transform]
    if not isinstance(parts[-1], sitk.DisplacementFieldTransform) or not all(p.IsLinear() for p in parts[:-1]):
        raise InputError("The transform is not a displacement followed by a linear transform.")
    field = parts[-1].GetDisplacementField()
    grid = Grid.of(field)
    matrix = np.eye(4)
    for part in parts[:-1]:
        matrix = matrix @ affine_matrix(part)
    return matrix, mm_to_voxels(sitk.GetArrayViewFromImage(field), grid), grid


def grown(
    displacement: np.ndarray,
    grid: Grid,
    more: Sequence[tuple[int, int]],
    factors: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, Grid]:
    """A displacement (3, k, j, i) with its edges continued, float32, and its grid.

    Args:
        more: voxels before and behind, along k, j and i.
        factors: what to multiply it by along k, j and i; each as long as that axis will be.
    """
    from .kernels import grow  # numba, which not everyone who converts transforms needs

    k, j, i = (n + before + behind for n, (before, behind) in zip(displacement.shape[1:], more, strict=True))
    (below, _), (front, _), (left, _) = more
    out = np.empty((3, k, j, i), np.float32)
    along = [np.ones(n) for n in (k, j, i)] if factors is None else factors
    grow(
        np.ascontiguousarray(displacement, np.float32),
        (below, front, left),
        tuple(np.ascontiguousarray(values, np.float32) for values in along),
        out,
    )
    return out, grid.crop((-left, -front, -below), (i, j, k))


def map_points(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """(n, 3) LPS mm through a transform."""
    positions = np.asarray(points, float).reshape(-1, 3)
    return np.array([transform.TransformPoint(p) for p in positions.tolist()]).reshape(-1, 3)
