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

from .bridge import set_displacement
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


def inverted(transform: Any, reference: Any, *, scene: Any = None, node: Any = None) -> Any:
    """The inverse of a transform node (fixed to moving data) as a displacement grid of its own, which files can hold.

    Args:
        reference: volume node whose grid the displacement gets: the moving volume.
        node: transform node to fill; None makes one.
    """
    from .bridge import export_volume
    from .outputs import output_node

    grid = Grid.of(export_volume(reference))
    displacement = sample(transform, grid, to_world=True)
    scene = scene or transform.GetScene()
    if node is None:
        node = output_node(scene, "", "vtkMRMLTransformNode", f"{transform.GetName()} inverse")
    set_displacement(node, displacement)
    return node


def sample(transform: Any, grid: Grid, *, to_world: bool = False) -> sitk.Image:
    """The displacement of a transform node at the voxels of a grid, as image of vectors in LPS mm.

    Args:
        to_world: of the direction in which data move; else of the resampling direction.
    """
    data = vtk.vtkImageData()
    data.SetDimensions(grid.size)
    done = slicer.vtkSlicerTransformLogic.GetTransformedPointSamplesAsVectorImage(
        data, transform, to_vtk(flip_axes(grid.index_to_world)), to_world
    )
    if not done:
        raise InputError(f"The transform {transform.GetName()} cannot be sampled; convert it in Transforms first.")
    values = vtk_to_numpy(data.GetPointData().GetScalars()).reshape(*grid.shape, 3)
    return grid.image(flip_vectors(values.astype(np.float32)))


def save_transform(transform: Any, path: str | Path) -> None:
    """Write a transform node as .h5, .tfm, .nrrd, .mha or .nii.gz; the node's own file name stays.

    Raises:
        InputError: another ending, a format that cannot hold it, or a failed write.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(TRANSFORM_FILES):
        raise InputError(f"Cannot write a transform as {path.name}; end its name in {', '.join(TRANSFORM_FILES)}.")
    from_parent = transform.GetTransformFromParent()
    is_grid = from_parent is not None and from_parent.IsA("vtkOrientedGridTransform")
    if not name.endswith((".h5", ".tfm")) and not is_grid:
        raise InputError(
            f"{path.name} can only hold a displacement grid, which {transform.GetName()} is not; end the name in .h5, "
            "or register with the transform as one grid."
        )
    _write(transform, slicer.vtkMRMLTransformStorageNode(), path)


def save_node(node: Any, path: str | Path) -> None:
    """Write a volume, segmentation, table or transform node; the node's own file name stays.

    Raises:
        InputError: the node or the format cannot be written.
    """
    if node.IsA("vtkMRMLTransformNode"):
        save_transform(node, path)
        return
    storage = node.CreateDefaultStorageNode()
    if storage is None:
        raise InputError(f"{node.GetName()} cannot be written to a file; choose a volume, segmentation or transform.")
    storage.UnRegister(None)
    _write(node, storage, Path(path))


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
