"""A result outlives its scene, and reaches other nodes: observed, hardened, under parents, saved."""

from __future__ import annotations

from bridge_help import (
    GRIDS,
    PARENTS,
    TOLERANCE,
    add_parent,
    add_volume,
    from_world,
    inner_points,
    ramp,
    scene,
    through,
    wave_image,
)

# isort: split
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from conftest import linear, made_labels
from RegMambaSlicer import apply
from RegMambaSlicer.bridge import export_labels, export_volume, set_displacement
from RegMambaSlicer.outputs import fill_chart, fill_table, set_volume
from RegMambaSlicer.segments import Label, fill_segmentation
from RegMambaSlicer.space import FLIP

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid

__all__ = ["scene"]
GRID = GRIDS["oblique"]
AFFINE = linear((4.0, -6.0, 8.0), (6.0, -4.0, 9.0), scale=1.04)
REPORT = {
    "before": {"dice": 0.5, "per_label": {"1": {"dice": 0.5}}},
    "after": {"dice": 0.8, "per_label": {"1": {"dice": 0.8}}},
    "seconds": {"total": 3.0},
}


def result(scene, affine=None, name="Result"):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    set_displacement(node, wave_image(GRID), affine)
    return node


def filled(scene, affine):
    """A scene with everything that a registration makes."""
    fixed = add_volume(scene, ramp(GRID), "Fixed")
    moving = add_volume(scene, ramp(GRID), "Moving")
    transform = result(scene, affine)
    roles = slicer.vtkMRMLTransformNode
    transform.SetNodeReferenceID(roles.GetFixedNodeReferenceRole(), fixed.GetID())
    transform.SetNodeReferenceID(roles.GetMovingNodeReferenceRole(), moving.GetID())
    moving.SetAndObserveTransformNodeID(transform.GetID())
    apply.inverted(transform)
    set_volume(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Moved"), ramp(GRID))
    segments = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Carried")
    labels = [Label(n, f"Part {n}", (n / 10, 0.5, 0.25)) for n in range(1, 8)]
    fill_segmentation(segments, made_labels(GRID), labels, fixed)
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", "Numbers")
    fill_table(table, REPORT, labels, "Moving")
    fill_chart(scene.AddNewNodeByClass("vtkMRMLPlotChartNode", "Chart"), table)


def save_scene(scene, folder):
    """As Slicer saves a scene: every storable node its file, then the .mrml."""
    scene.SetRootDirectory(str(folder))
    nodes = [
        scene.GetNthNodeByClass(n, "vtkMRMLStorableNode")
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLStorableNode"))
    ]
    for node in nodes:
        if not node.GetName() or node.GetHideFromEditors() or node.IsA("vtkMRMLColorNode"):
            continue
        if not node.AddDefaultStorageNode():
            continue
        storage = node.GetStorageNode()
        if storage is None:
            continue
        extension = storage.GetDefaultWriteFileExtension()
        storage.SetFileName(str(folder / f"{node.GetName()}.{extension}"))
        assert storage.WriteData(node), node.GetName()
    scene.SetURL(str(folder / "scene.mrml"))
    assert scene.Commit()


def reopened(folder):
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    scene.SetURL(str(folder / "scene.mrml"))
    assert scene.Connect()
    return scene, logic


def save_bundle(scene, folder):
    scene.SetRootDirectory(str(folder))
    assert scene.WriteToMRB(str(folder / "scene.mrb"))


def reopened_bundle(folder):
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    cache, manager = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(folder / "cache"))
    manager.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    assert scene.ReadFromMRB(str(folder / "scene.mrb"))
    return scene, logic


@pytest.mark.parametrize(
    ("save", "load"), [(save_scene, reopened), (save_bundle, reopened_bundle)], ids=["mrml", "mrb"]
)
@pytest.mark.parametrize("affine", [None, AFFINE], ids=["grid", "linear + grid"])
def test_a_scene_saved_and_opened_again_has_the_same_result(scene, affine, save, load, tmp_path):
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    filled(scene, affine)
    points = inner_points(GRID)
    before = from_world(scene.GetFirstNodeByName("Result"), points)
    inverse = from_world(scene.GetFirstNodeByName("Result inverse"), points)
    save(scene, tmp_path)
    again, kept = load(tmp_path)
    transform = again.GetFirstNodeByName("Result")
    assert np.abs(from_world(transform, points) - before).max() < 1e-3
    assert np.abs(from_world(again.GetFirstNodeByName("Result inverse"), points) - inverse).max() < 1e-3
    assert transform.GetNodeReference("spatialRegistrationFixed").GetName() == "Fixed"
    assert transform.GetNodeReference("spatialRegistrationMoving").GetName() == "Moving"
    assert again.GetFirstNodeByName("Moving").GetParentTransformNode() is transform
    moved = export_volume(again.GetFirstNodeByName("Moved"))
    assert np.allclose(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(ramp(GRID)))
    assert Grid.of(moved).same_as(GRID)
    carried = export_labels(again.GetFirstNodeByName("Carried"), moved)
    assert np.array_equal(sitk.GetArrayFromImage(carried.image), sitk.GetArrayFromImage(made_labels(GRID)))
    assert [label.name for label in carried.labels] == [f"Part {n}" for n in range(1, 8)]
    assert again.GetFirstNodeByName("Numbers").GetNumberOfRows() == 2
    assert again.GetFirstNodeByName("Chart").GetNumberOfPlotSeriesNodes() == 2
    again.Clear(True)
    del kept


def test_a_node_under_a_parent_keeps_it_and_then_follows_the_result(scene):
    node = result(scene)
    other = add_volume(scene, ramp(GRID), "Other", parent=PARENTS["rigid parent"])
    parent = other.GetParentTransformNode()
    sibling = add_volume(scene, ramp(GRID), "Sibling")
    sibling.SetAndObserveTransformNodeID(parent.GetID())
    apply.apply_transform(node, [other])
    apply.apply_transform(node, [other])
    assert other.GetParentTransformNode().GetParentTransformNode() is node
    assert sibling.GetParentTransformNode() is parent and parent.GetParentTransformNode() is None
    # A point of the fixed space comes from the parent's place of the moving data.
    points = inner_points(GRID, 20)
    back = FLIP @ np.linalg.inv(PARENTS["rigid parent"]) @ FLIP
    wanted = from_world(node, points) @ back[:3, :3].T + back[:3, 3]
    assert np.abs(from_world(other.GetParentTransformNode(), points) - wanted).max() < 1e-3


@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS.keys())
def test_models_and_markups_are_hardened_to_where_they_correspond(scene, parent):
    node = result(scene, AFFINE)
    fixed = inner_points(GRID, 15)
    moving = from_world(node, fixed)
    own = moving @ FLIP[:3, :3]
    if parent is not None:
        back = np.linalg.inv(parent)
        own = own @ back[:3, :3].T + back[:3, 3]
    points = vtk.vtkPoints()
    for point in own.tolist():
        points.InsertNextPoint(point)
    mesh = vtk.vtkPolyData()
    mesh.SetPoints(points)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "Model")
    model.SetAndObserveMesh(mesh)
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Points")
    slicer.util.updateMarkupsControlPointsFromArray(markups, own)
    for one in (model, markups):
        add_parent(scene, one, parent)
    apply.apply_transform(node, [model, markups], harden=True)
    for found in (slicer.util.arrayFromModelPoints(model), slicer.util.arrayFromMarkupsControlPoints(markups)):
        assert np.abs(found @ FLIP[:3, :3] - fixed).max() < TOLERANCE
    assert model.GetParentTransformNode() is None and markups.GetParentTransformNode() is None


def test_what_cannot_be_transformed_is_refused_and_nothing_is_moved(scene):
    volume = add_volume(scene, ramp(GRID))
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", "Numbers")
    with pytest.raises(InputError, match="Numbers cannot be transformed"):
        apply.apply_transform(result(scene), [volume, table])
    assert volume.GetParentTransformNode() is None


def test_an_unknown_ending_is_refused(scene, tmp_path):
    with pytest.raises(InputError, match="end its name in"):
        apply.save_transform(result(scene), tmp_path / "result.txt")


assert through
