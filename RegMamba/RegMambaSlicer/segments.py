"""Label map volumes and segmentations as one label image on the grid of a reference volume, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform

from .geometry import to_world
from .space import flip_axes, flip_matrix, from_vtk, to_vtk

Color = tuple[float, float, float]
BINARY = "Binary labelmap"
"""As Slicer names the label maps within a segmentation."""


@dataclass(frozen=True)
class Label:
    """One label: its value in the image, and what it is called and coloured in Slicer."""

    value: int
    name: str
    color: Color
    segment_id: str = ""


@dataclass(frozen=True)
class LabelImage:
    """A label image (LPS, uint16 or as it was) and its labels.

    `overlap` tells that segments overlapped; there the later one is kept.
    """

    image: sitk.Image
    labels: list[Label] = field(default_factory=list)
    overlap: bool = False

    @property
    def numbering(self) -> dict[str, int]:
        """Values by name."""
        return {label.name: label.value for label in self.labels}


def from_segmentation(node: Any, grid: Grid, numbering: dict[str, int] | None = None, ignore: Any = None) -> LabelImage:
    """A segmentation node on a grid in world LPS, by nearest neighbour from its own label maps; the node stays.

    Args:
        numbering: values for segments of these names; the others get numbers of their own.

    Raises:
        InputError: no segments, or a non-linear parent transform.
    """
    segmentation = node.GetSegmentation()
    names = vtk.vtkStringArray()
    segmentation.GetSegmentIDs(names)
    ids = [names.GetValue(n) for n in range(names.GetNumberOfValues())]
    if not ids:
        raise InputError(f"The segmentation {node.GetName()} has no segments; choose another, or none.")
    own_to_world = to_world(node, ignore)
    labels = number(segmentation, ids, numbering or {})
    merged = np.zeros(grid.shape, np.uint16)
    overlap = False
    maps: dict[int, np.ndarray] = {}
    layers: dict[int, np.ndarray] = {}
    for label in labels:
        segment = segmentation.GetSegment(label.segment_id)
        data = segment.GetRepresentation(BINARY)
        if data is None:
            layer = -1 - len(layers)
            here = _rasterized(segment, grid, own_to_world, node.GetName())
        elif 0 in data.GetDimensions():
            continue
        else:
            layer = segmentation.GetLayerIndex(label.segment_id)
            if layer not in maps:
                world_to_own = affine_transform(flip_matrix(np.linalg.inv(own_to_world)))
                maps[layer] = sitk.GetArrayFromImage(grid.resample(_oriented(data), world_to_own, labels=True))
            here = maps[layer] == segment.GetLabelValue()
        overlap = overlap or any(bool((here & filled).any()) for other, filled in layers.items() if other != layer)
        merged[here] = label.value
        layers[layer] = here | layers[layer] if layer in layers else here
    return LabelImage(grid.image(merged), labels, overlap)


def number(segmentation: Any, ids: list[str], numbering: dict[str, int]) -> list[Label]:
    """Values for segments: of `numbering` by name, else the segment's own if free, else the next free one."""
    taken = set(numbering.values())
    labels: list[Label] = []
    for name in ids:
        segment = segmentation.GetSegment(name)
        value = numbering.get(segment.GetName())
        if value is None or any(label.value == value for label in labels):
            value = int(segment.GetLabelValue())
            if value in taken or value < 1:
                value = next(free for free in range(1, len(ids) + len(taken) + 2) if free not in taken)
        taken.add(value)
        labels.append(Label(value, segment.GetName(), tuple(segment.GetColor()), name))
    return labels


def labels_of_volume(node: Any, image: sitk.Image) -> list[Label]:
    """The labels that occur in a label map volume, named and coloured by its colour table."""
    display = node.GetDisplayNode()
    table = display.GetColorNode() if display is not None else None
    values = np.unique(sitk.GetArrayViewFromImage(image))
    labels = []
    for value in (int(v) for v in values if v > 0):
        rgba = [0.5, 0.5, 0.5, 1.0]
        name = ""
        if table is not None and value < table.GetNumberOfColors():
            name = table.GetColorName(value) or ""
            table.GetColor(value, rgba)
        labels.append(Label(value, name or str(value), (rgba[0], rgba[1], rgba[2])))
    return labels


def fill_segmentation(
    node: Any, image: sitk.Image, labels: list[Label], reference: Any = None, source: Any = None
) -> None:
    """Replace the segments of a node by those of a label image, with their names and colours.

    Args:
        reference: volume node whose geometry the segmentation takes, or None.
        source: segmentation node the labels come from; its segments' tags and terminology stay with them.

    Labels that are not in the image become empty segments, so that what went out of view is seen to be missing.
    """
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    segmentation.SetSourceRepresentationName(BINARY)
    if reference is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    data = oriented_image(image)
    for label in labels:
        segment = slicer.vtkSegment()
        original = source.GetSegmentation().GetSegment(label.segment_id) if source is not None else None
        if original is not None:
            segment.DeepCopyMetadata(original)
        segment.SetName(label.name)
        segment.SetColor(*label.color)
        segment.SetLabelValue(label.value)
        segment.AddRepresentation(BINARY, data)
        segmentation.AddSegment(segment, label.segment_id)
    node.CreateDefaultDisplayNodes()


def oriented_image(image: sitk.Image) -> Any:
    """A label image (LPS) as vtkOrientedImageData (RAS)."""
    array = sitk.GetArrayViewFromImage(image)
    array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    data = slicer.vtkOrientedImageData()
    data.SetDimensions(image.GetSize())
    scalars = numpy_to_vtk(array.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    data.GetPointData().SetScalars(scalars)
    data.SetGeometryFromImageToWorldMatrix(to_vtk(flip_axes(Grid.of(image).index_to_world)))
    return data


def _rasterized(segment: Any, grid: Grid, own_to_world: np.ndarray, name: str) -> np.ndarray:
    """The voxels of a grid within the closed surface of a segment."""
    surface = segment.GetRepresentation(
        slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    )
    if surface is None:
        raise InputError(
            f"The segmentation {name} holds neither label maps nor surfaces; create its "
            "binary label map in Segmentations."
        )
    to_index = vtk.vtkTransform()
    to_index.SetMatrix(to_vtk(np.linalg.inv(flip_axes(grid.index_to_world)) @ own_to_world))
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetInputData(surface)
    moved.SetTransform(to_index)
    stencil = vtk.vtkPolyDataToImageStencil()
    stencil.SetInputConnection(moved.GetOutputPort())
    stencil.SetOutputWholeExtent(*(v for n in grid.size for v in (0, n - 1)))
    image = vtk.vtkImageStencilToImage()
    image.SetInputConnection(stencil.GetOutputPort())
    image.SetOutputScalarTypeToUnsignedChar()
    image.Update()
    return vtk_to_numpy(image.GetOutput().GetPointData().GetScalars()).reshape(grid.shape) == 1


def _oriented(data: Any) -> sitk.Image:
    """vtkOrientedImageData (RAS, any extent) as an image in LPS."""
    extent = data.GetExtent()
    shape = tuple(extent[2 * a + 1] - extent[2 * a] + 1 for a in (2, 1, 0))
    matrix = vtk.vtkMatrix4x4()
    data.GetImageToWorldMatrix(matrix)
    axes = flip_axes(from_vtk(matrix))
    spacing = np.linalg.norm(axes[:3, :3], axis=0)
    origin = axes[:3, :3] @ np.asarray(extent[::2], float) + axes[:3, 3]
    image = sitk.GetImageFromArray(vtk_to_numpy(data.GetPointData().GetScalars()).reshape(shape))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection((axes[:3, :3] / spacing).ravel().tolist())
    return image
