"""What the tests of the bridge share: scenes, volumes and segmentations made from images in LPS, known deformations."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from conftest import apply, linear, made_grid, made_head, made_labels, world_of

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "RegMamba"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if not any(metadata.distributions(name="slicer-core")):
    pytest.skip("slicer-core is not installed", allow_module_level=True)

import SimpleITK as sitk  # noqa: E402
import slicer  # noqa: E402
import slicer.util  # noqa: E402
import vtk  # noqa: E402
from RegMambaSlicer.space import FLIP, flip_axes, to_vtk  # noqa: E402
from RegMambaSlicer.worker_client import WorkerClient  # noqa: E402

from RegMambaLib.spatial.grid import Grid  # noqa: E402

TOLERANCE = 0.05
GRIDS = {
    "axis-aligned": made_grid((34, 32, 30), (4.0, 4.0, 4.0), center=(5.0, -8.0, 12.0)),
    "oblique": made_grid((34, 32, 30), (4.0, 4.2, 3.8), turn=(12.0, -20.0, 31.0), center=(-10.0, 4.0, 8.0)),
    "left-handed": made_grid((34, 32, 30), (4.0, 4.0, 4.0), turn=(5.0, 0.0, -9.0), flip=True),
    "anisotropic": made_grid((50, 40, 20), (2.6, 3.2, 6.5), turn=(0.0, 15.0, 0.0), center=(0.0, 20.0, -6.0)),
}
# RAS mm, to parent.
PARENTS = {
    "none": None,
    "rigid parent": linear((10.0, 25.0, -15.0), (12.0, -30.0, 7.0)),
    "scaling parent": linear((0.0, 0.0, 90.0), (5.0, 5.0, 5.0)) @ np.diag([1.1, 1.1, 1.1, 1.0]),
}
SHEARED = linear((3.0, 8.0, -5.0), (4.0, 6.0, 8.0), shear=0.08)
# A made pair that a worker registers in a moment.
FIXED = made_grid((28, 32, 26), (6.5, 6.5, 6.5))
MOVING = made_grid((26, 30, 28), (6.5, 6.5, 6.5), turn=(3.0, 2.0, -4.0), center=(6.0, -4.0, 3.0))
SHIFT = linear((2.0, -3.0, 5.0), (4.0, -5.0, 3.0))
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
each_parent = pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS.keys())


@pytest.fixture
def scene():
    """An empty MRML scene, with what segmentations and displays need."""
    made = slicer.vtkMRMLScene()
    slicer.mrmlScene = made
    logic = slicer.vtkMRMLColorLogic()
    logic.SetMRMLScene(made)
    yield made
    made.Clear(True)


@pytest.fixture(scope="module")
def client():
    """A client whose worker serves the tests of a file."""
    made = WorkerClient(sys.executable)
    yield made
    made.shutdown()


def shifted(points):
    """Points (n, 3) LPS mm of the moving head in the head's own space."""
    return apply(SHIFT, points)


def made_pair():
    """Fixed and moving head, and their label maps."""
    return (made_head(FIXED), made_head(MOVING, shifted)), (made_labels(FIXED), made_labels(MOVING, shifted))


def add_parent(scene, node, matrix):
    """Put a node under a new linear transform (RAS mm, to parent); None puts it under none."""
    if matrix is None:
        return None
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Parent")
    parent.SetMatrixTransformToParent(to_vtk(matrix))
    node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


def add_volume(scene, image, name="Volume", *, parent=None, labels=False):
    """A volume node whose own space is that of an image in LPS."""
    kind = "vtkMRMLLabelMapVolumeNode" if labels else "vtkMRMLScalarVolumeNode"
    node = scene.AddNewNodeByClass(kind, name)
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    node.SetIJKToRASMatrix(to_vtk(flip_axes(Grid.of(image).index_to_world)))
    node.CreateDefaultDisplayNodes()
    add_parent(scene, node, parent)
    return node


def wave(points, size=3.0):
    """A smooth displacement (mm, LPS) at points (..., 3) in LPS mm, of period 200 mm."""
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0) * (2 * np.pi / 200.0)
    parts = np.sin(x + 0.3) * np.cos(y), np.sin(y - 0.5) * np.cos(z + 0.2), np.cos(x) * np.sin(z + 1.0)
    return size * np.stack(parts, -1)


def wave_image(grid, affine=None):
    """The displacement image, float32, of x -> affine(x + wave(x))."""
    points = world_of(grid)
    moved = points + wave(points)
    if affine is not None:
        moved = moved @ affine[:3, :3].T + affine[:3, 3]
    return grid.image((moved - points).astype(np.float32))


def inner_points(grid, count=150, seed=0, border=6):
    """Random points (n, 3) LPS mm, some voxels inside of a grid's border."""
    size = np.asarray(grid.size)
    index = np.random.default_rng(seed).uniform(border, size - 1 - border, (count, 3))
    return grid.world(index)


def ramp(grid):
    """An image with the value R + 2 A + 3 S (mm) divided by the length of (1, 2, 3): a value is a distance."""
    return grid.image((world_of(grid) @ (FLIP[:3, :3] @ [1.0, 2.0, 3.0]) / np.sqrt(14.0)).astype(np.float32))


def from_world(node, points):
    """Points (n, 3) LPS mm through a transform node, from world."""
    chain = vtk.vtkGeneralTransform()
    node.GetTransformFromWorld(chain)
    return np.array([chain.TransformPoint(p) for p in (points @ FLIP[:3, :3]).tolist()]) @ FLIP[:3, :3]


def through(transform, points):
    """Points (n, 3) LPS mm through an ITK transform."""
    return np.array([transform.TransformPoint(p) for p in np.asarray(points, float).tolist()])


def dice_of(first, second):
    """The lowest Dice of the labels of two arrays."""
    found = []
    for label in sorted((set(np.unique(first)) | set(np.unique(second))) - {0}):
        a, b = first == label, second == label
        found.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return min(found)
