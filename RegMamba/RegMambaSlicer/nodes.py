"""The nodes that go into a registration and come out of it, and why some cannot."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import slicer.util

from RegMambaLib.errors import InputError

NEW = ""
"""As an output: a new node with a name of its own."""
GRID, COMPOSITE = "grid", "composite"
SMALLEST = 4
"""Voxels a volume needs along each axis."""
LABEL_WORDS = ("label", "labels", "labelmap", "seg", "segmentation", "segments")
MASK_WORDS = ("mask",)


@dataclass
class JobInputs:
    """Nodes of a registration: volumes, label maps or segmentations, and a transform from moving to fixed data."""

    fixed: Any = None
    moving: Any = None
    fixed_labels: Any = None
    moving_labels: Any = None
    fixed_mask: Any = None
    moving_mask: Any = None
    initial_transform: Any = None


@dataclass
class JobOutputs:
    """What is wanted: a node to fill, a name for a new one (`NEW` chooses it), or None for nothing.

    Attributes:
        mode: "grid" (one displacement grid) or "composite" (linear + grid), of the transform.
        append: add to the rows of the table instead of replacing them (batch).
    """

    transform: Any = NEW
    volume: Any = None
    labels: Any = None
    jacobian: Any = None
    uncertainty: Any = None
    table: Any = None
    chart: Any = None
    mode: str = GRID
    append: bool = False


INPUTS = tuple(f.name for f in fields(JobInputs))
OPTIONAL_OUTPUTS = ("volume", "labels", "jacobian", "uncertainty")
"""Outputs that a user may leave out and name a node for."""
TABLES = ("table", "chart")
"""Outputs that a user may leave out; they are filled again by the next run of the pair."""
RESULTS = ("transform", *OPTIONAL_OUTPUTS, *TABLES)
"""All outputs that are nodes."""


def nodes_of(job: JobInputs | JobOutputs) -> dict[str, Any]:
    """The nodes that are given, by the names of the fields."""
    given = {f.name: getattr(job, f.name) for f in fields(job)}
    return {name: node for name, node in given.items() if hasattr(node, "GetID")}


def is_result_of(transform: Any, fixed: Any, moving: Any) -> bool:
    """Whether a transform node says that it was made by registering this pair."""
    roles = transform.GetFixedNodeReferenceRole(), transform.GetMovingNodeReferenceRole()
    return [transform.GetNodeReference(role) for role in roles] == [fixed, moving]


def check(inputs: JobInputs, outputs: JobOutputs) -> None:
    """Raise `InputError` for volumes that cannot be registered with each other, or outputs that are inputs."""
    for name in ("fixed", "moving"):
        node = getattr(inputs, name)
        if node is None:
            raise InputError(f"Choose the {name} volume.")
        image = node.GetImageData()
        if image is None or image.GetPointData().GetScalars() is None:
            raise InputError(f"The {name} volume {node.GetName()} holds no image; load it again or choose another one.")
        size, components = image.GetDimensions(), image.GetNumberOfScalarComponents()
        if components != 1:
            raise InputError(
                f"The {name} volume {node.GetName()} has {components} components per voxel; choose a scalar volume."
            )
        if min(size) < SMALLEST:
            raise InputError(
                f"The {name} volume {node.GetName()} has {' x '.join(map(str, size))} voxels; choose one with at "
                f"least {SMALLEST} along each axis."
            )
    if inputs.fixed is inputs.moving:
        raise InputError("Fixed and moving are the same volume; choose two different ones.")
    given = list(nodes_of(inputs).values())
    for name, node in nodes_of(outputs).items():
        if any(node is one for one in given):
            raise InputError(
                f"The output {name} {node.GetName()} is also an input; choose another node or leave it as new."
            )


def find_companion(volume: Any, words: tuple[str, ...]) -> Any:
    """The label map or segmentation that is called after a volume, such as "Case 2 labels" or "Case2-mask"; or None.

    Args:
        words: what may follow the volume's name; capitals, spaces and - _ . between do not matter.
    """
    start = volume.GetName().lower()
    for kind in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"):
        for node in slicer.util.getNodesByClass(kind):
            name = node.GetName().lower()
            if name.startswith(start) and name[len(start) :].strip(" -_.") in words:
                return node
    return None
