"""From MRML nodes to images and transforms in world LPS mm, and the result's transform back into a node."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform

from .geometry import covering_grid, orthogonal_grid, volume_axes
from .segments import LabelImage, from_segmentation, labels_of_volume
from .space import flip_axes, flip_matrix, flip_vectors, from_vtk, to_vtk


def export_volume(node: Any, *, labels: bool = False, ignore: Any = None) -> sitk.Image:
    """A volume node as image in world LPS mm; the node and its file name stay as they are.

    Where linear parent transforms shear it, it is resampled onto a grid at right angles (labels by nearest
    neighbour). A parent transform node `ignore` counts as identity, with all above it.

    Raises:
        InputError: no voxels, or a parent transform that is not linear.
    """
    if node.GetImageData() is None or node.GetImageData().GetPointData().GetScalars() is None:
        raise InputError(f"The volume {node.GetName()} has no voxels; load it again, or choose another.")
    array = slicer.util.arrayFromVolume(node)
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    axes = volume_axes(node, ignore)
    grid = orthogonal_grid(image.GetSize(), axes)
    if grid is not None:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
        image.SetDirection(grid.direction)
        return image
    to_index = affine_transform(np.linalg.inv(axes))
    return covering_grid(image.GetSize(), axes).resample(image, to_index, labels=labels)


def export_labels(
    node: Any, reference: Any, numbering: dict[str, int] | None = None, *, ignore: Any = None
) -> LabelImage:
    """A label map volume or segmentation node on the grid of a reference, with the names and colours of its labels.

    Args:
        reference: volume node, or its exported image.
        numbering: for segmentations, values of segments by name, so that two segmentations agree.
        ignore: as in `export_volume`.

    Raises:
        InputError: as `export_volume`; a segmentation without segments.
    """
    grid = Grid.of(reference if isinstance(reference, sitk.Image) else export_volume(reference))
    if node.IsA("vtkMRMLSegmentationNode"):
        return from_segmentation(node, grid, numbering, ignore)
    image = export_volume(node, labels=True, ignore=ignore)
    if not Grid.of(image).same_as(grid, 0.01):
        image = grid.resample(image, labels=True)
    return LabelImage(image, labels_of_volume(node, image))


def export_mask(node: Any, reference: Any, *, ignore: Any = None) -> sitk.Image:
    """A volume, label map or segmentation on the grid of a reference: 1 where it is not 0, uint8."""
    image = export_labels(node, reference, ignore=ignore).image
    return sitk.Cast(image != 0, sitk.sitkUInt8)


def set_displacement(node: Any, displacement: sitk.Image, affine: Any = None) -> None:
    """Let a transform node hold the result: data that observes it goes from moving to fixed space.

    The node gets x -> affine(x + u(x)), fixed to moving, as its transform from parent.

    Args:
        node: vtkMRMLTransformNode.
        displacement: u as image of vectors in LPS mm.
        affine: 4x4 in LPS mm for "linear + grid"; None for the grid alone.
    """
    if node.IsA("vtkMRMLLinearTransformNode") or node.IsA("vtkMRMLBSplineTransformNode"):
        raise InputError(f"{node.GetName()} can only hold a linear or B-spline transform; choose a general one.")
    grid = grid_transform(displacement)
    if affine is None:
        node.SetAndObserveTransformFromParent(grid)
        return
    both = vtk.vtkGeneralTransform()
    both.PostMultiply()
    both.Concatenate(grid)
    both.Concatenate(to_vtk(flip_matrix(affine)))
    node.SetAndObserveTransformFromParent(both)


def grid_transform(displacement: sitk.Image) -> Any:
    """A displacement image (LPS mm) as vtkOrientedGridTransform (RAS mm), cubic as Slicer reads it from files."""
    values = flip_vectors(sitk.GetArrayViewFromImage(displacement))
    grid = Grid.of(displacement)
    axes = flip_axes(grid.index_to_world)
    image = vtk.vtkImageData()
    image.SetDimensions(grid.size)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(axes[:3, 3].tolist())
    scalars = numpy_to_vtk(np.ascontiguousarray(values).reshape(-1, 3), deep=True)
    scalars.SetName("Displacement")
    image.GetPointData().SetScalars(scalars)
    direction = np.eye(4)
    direction[:3, :3] = axes[:3, :3] / np.asarray(grid.spacing)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetDisplacementGridData(image)
    transform.SetGridDirectionMatrix(to_vtk(direction))
    transform.SetInterpolationModeToCubic()
    return transform


def displacement_image(transform: Any) -> sitk.Image:
    """The displacement of a vtkOrientedGridTransform as image of vectors in LPS mm."""
    transform.Update()
    data = transform.GetDisplacementGrid()
    matrix = transform.GetGridDirectionMatrix()
    axes = np.eye(4) if matrix is None else from_vtk(matrix)
    axes[:3, :3] = axes[:3, :3] * np.asarray(data.GetSpacing())
    axes[:3, 3] = data.GetOrigin()
    axes = flip_axes(axes)
    shape = (*reversed(data.GetDimensions()), 3)
    values = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(shape) * transform.GetDisplacementScale()
    image = sitk.GetImageFromArray(flip_vectors(values.astype(np.float64)), isVector=True)
    image.SetSpacing(data.GetSpacing())
    image.SetOrigin(axes[:3, 3].tolist())
    image.SetDirection((axes[:3, :3] / np.asarray(data.GetSpacing())).ravel().tolist())
    return image


def transform_to_sitk(node: Any) -> sitk.Transform:
    """The resampling transform of a node: world LPS mm -> the space of what observes it.

    As an initial transform, that is fixed to moving.

    Raises:
        InputError: it holds a B-spline, thin-plate spline, or a displacement that is stored to parent.
    """
    chain = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(chain)
    # A composite transform of ITK takes its last member first.
    parts = [_part(part, node) for part in flattened(chain)][::-1]
    if not parts:
        return affine_transform(np.eye(4))
    return parts[0] if len(parts) == 1 else sitk.CompositeTransform(parts)


def flattened(transform: Any) -> list[Any]:
    """The parts of a VTK transform in the order in which a point passes them; None has none."""
    collection = vtk.vtkCollection()
    if transform is not None:
        slicer.vtkMRMLTransformNode.FlattenGeneralTransform(collection, transform)
    parts = [collection.GetItemAsObject(n) for n in range(collection.GetNumberOfItems())]
    for part in parts:
        part.Update()  # an inverse does not know that it is one before
    return parts


def is_grid(transform: Any) -> bool:
    """Whether a VTK transform is a displacement grid (or the inverse of one)."""
    return bool(transform.IsA("vtkOrientedGridTransform"))


def _part(transform: Any, node: Any) -> sitk.Transform:
    if transform.IsA("vtkHomogeneousTransform"):
        return affine_transform(flip_matrix(from_vtk(transform.GetMatrix())))
    if is_grid(transform) and not transform.GetInverseFlag():
        return sitk.DisplacementFieldTransform(displacement_image(transform))
    raise InputError(
        f"The transform {node.GetName()} holds a part ({transform.GetClassName()}) that cannot be used here; "
        "convert it to a displacement grid in the module Transforms."
    )
