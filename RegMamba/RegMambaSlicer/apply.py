"""A result on other nodes, its inverse, and files of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid

from .bridge import export_volume, flattened, is_grid, set_displacement
from .outputs import output_node
from .space import flip_axes, flip_vectors, to_vtk

TRANSFORM_FILES = (".h5", ".tfm", ".nrrd", ".nii.gz", ".mha")
COPY_ATTRIBUTE = "RegMamba.parentOf"


def apply_transform(transform: Any, nodes: Iterable[Any], *, harden: bool = False) -> None:
    """Take nodes (volumes, segmentations, models, markups) from moving to fixed space.

    A node that is under transforms already keeps them: they apply first, then the result.

    Args:
        transform: transform node of a registration.
        harden: write it into the nodes' data instead of leaving them under the transform node.

    Raises:
        InputError: a node cannot be transformed.
    """
    nodes = list(nodes)
    for node in nodes:
        if node is transform or not node.IsA("vtkMRMLTransformableNode"):
            raise InputError(
                f"{node.GetName()} cannot be transformed; choose volumes, segmentations, models or markups."
            )
        if node.IsA("vtkMRMLTransformNode") and transform.IsTransformNodeMyParent(node):
            raise InputError(f"{node.GetName()} is a parent of {transform.GetName()}; choose another node.")
    for node in nodes:
        parent = node.GetParentTransformNode()
        if parent is transform:
            pass
        elif parent is None:
            node.SetAndObserveTransformNodeID(transform.GetID())
        elif harden:
            node.HardenTransform()
            node.SetAndObserveTransformNodeID(transform.GetID())
        elif parent.GetAttribute(COPY_ATTRIBUTE) != node.GetID() or parent.GetParentTransformNode() is not transform:
            node.SetAndObserveTransformNodeID(_copy_of_parents(node, parent, transform).GetID())
        if harden:
            node.HardenTransform()


def inverted(transform: Any, *, node: Any = None) -> Any:
    """The inverse of a transform node, from fixed to moving data, as a node.

    It is Slicer's own inverse, found anew for every point (within 0.01 mm), not a displacement sampled on a grid.

    Args:
        node: transform node to fill; None makes one.
    """
    roles = slicer.vtkMRMLTransformNode
    fixed, moving = roles.GetFixedNodeReferenceRole(), roles.GetMovingNodeReferenceRole()
    if node is None:
        node = output_node(transform.GetScene(), "", "vtkMRMLTransformNode", f"{transform.GetName()} inverse")
    node.CopyContent(transform)
    node.Inverse()
    node.SetNodeReferenceID(fixed, transform.GetNodeReferenceID(moving))
    node.SetNodeReferenceID(moving, transform.GetNodeReferenceID(fixed))
    return node


def sample(transform: Any, grid: Grid) -> sitk.Image:
    """The displacement of a transform node in the resampling direction at the voxels of a grid: vectors in LPS mm."""
    data = vtk.vtkImageData()
    data.SetDimensions(grid.size)
    done = slicer.vtkSlicerTransformLogic.GetTransformedPointSamplesAsVectorImage(
        data, transform, to_vtk(flip_axes(grid.index_to_world)), False
    )
    if not done:
        raise InputError(f"The transform {transform.GetName()} cannot be sampled; convert it in Transforms first.")
    values = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(*grid.shape, 3)
    return grid.image(flip_vectors(values.astype(np.float32)))


def save_transform(transform: Any, path: str | Path) -> None:
    """Write a transform node as .h5, .tfm, .nrrd, .mha or .nii.gz; the node's own file name stays.

    An inverse is sampled on the grid of the volume it starts from: Slicer would write it in a form that SimpleITK,
    ANTs and this library refuse (.h5) or take for its opposite (.nrrd).

    Raises:
        InputError: another ending, a format that cannot hold it, or a failed write.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(TRANSFORM_FILES):
        raise InputError(f"Cannot write a transform as {path.name}; end its name in {', '.join(TRANSFORM_FILES)}.")
    parts = flattened(transform.GetTransformFromParent())
    if any(is_grid(part) and part.GetInverseFlag() for part in parts):
        transform = _as_grid(transform)
    elif not name.endswith((".h5", ".tfm")) and not (len(parts) == 1 and is_grid(parts[0])):
        raise InputError(
            f"{path.name} can only hold a displacement grid, which {transform.GetName()} is not; end the name in .h5, "
            "or register with the transform as one grid."
        )
    _write(transform, slicer.vtkMRMLTransformStorageNode(), path)


def _as_grid(inverse: Any) -> Any:
    """An inverse as a node, in no scene, with a displacement sampled on the grid of the volume it starts from."""
    reference = inverse.GetNodeReference(inverse.GetFixedNodeReferenceRole())
    if reference is None:
        raise InputError(
            f"{inverse.GetName()} can only be written on the grid of the moving volume, which is not in the scene; "
            "load that volume, register again and invert."
        )
    node = slicer.vtkMRMLTransformNode()
    node.SetName(inverse.GetName())
    set_displacement(node, sample(inverse, Grid.of(export_volume(reference, ignore=inverse))))
    return node


def _write(node: Any, storage: Any, path: Path) -> None:
    """Through a storage node of its own: one that failed once keeps failing."""
    storage.SetScene(node.GetScene())
    storage.SetFileName(str(path))
    if not path.parent.is_dir() or not storage.WriteData(node) or not path.is_file():
        raise InputError(
            f"Cannot write {path.name} from {node.GetName()}; choose a writable folder with "
            "enough room, or another format."
        )


def _copy_of_parents(node: Any, parent: Any, transform: Any) -> Any:
    """A transform node, under `transform`, that does what the node's parents do to the world now."""
    chain = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(chain)
    snapshot = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.DeepCopyTransform(snapshot, chain)
    scene = node.GetScene()
    copy = scene.AddNewNodeByClass(
        "vtkMRMLTransformNode", scene.GenerateUniqueName(f"{parent.GetName()} for {node.GetName()}")
    )
    copy.SetAndObserveTransformToParent(snapshot)
    copy.SetAttribute(COPY_ATTRIBUTE, node.GetID())
    copy.SetAndObserveTransformNodeID(transform.GetID())
    return copy
