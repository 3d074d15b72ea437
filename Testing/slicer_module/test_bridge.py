"""Nodes become images in world space, whatever they are under, and are left as they were."""

from __future__ import annotations

from bridge_help import (
    GRIDS,
    PARENTS,
    ROOT,
    SHEARED,
    TOLERANCE,
    add_parent,
    add_volume,
    each_grid,
    each_parent,
    ramp,
    scene,
    wave_image,
)

# isort: split
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from conftest import made_grid, made_labels, world_of
from RegMambaSlicer.bridge import export_labels, export_mask, export_volume, set_displacement
from RegMambaSlicer.outputs import fill_chart, fill_table, put_beside, set_labels, set_volume
from RegMambaSlicer.segments import Label, fill_segmentation
from RegMambaSlicer.space import FLIP

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.grid import Grid

__all__ = ["scene"]
SMALL = made_grid((24, 22, 20), (4.0, 4.0, 4.0))


def slicers_world(node, index):
    """LPS mm of a voxel as Slicer's own functions tell it."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    local = matrix.MultiplyPoint((*index, 1.0))[:3]
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(local, world)
    return FLIP[:3, :3] @ world


@each_grid
@each_parent
def test_every_voxel_is_where_slicer_shows_it(scene, grid, parent):
    node = add_volume(scene, ramp(grid), parent=parent)
    image = export_volume(node)
    for index in ((0, 0, 0), (grid.size[0] - 1, 0, 3), (4, grid.size[1] - 1, grid.size[2] - 1)):
        assert np.abs(np.asarray(image.TransformIndexToPhysicalPoint(index)) - slicers_world(node, index)).max() < 1e-6
    assert np.array_equal(sitk.GetArrayFromImage(image), slicer.util.arrayFromVolume(node))


def test_a_sheared_volume_is_resampled_onto_a_grid_at_right_angles(scene):
    grid = made_grid((40, 38, 36), (2.0, 2.0, 2.0))
    node = add_volume(scene, ramp(grid), parent=SHEARED)
    image = export_volume(node)
    found = Grid.of(image)
    assert (
        np.abs(
            np.asarray(found.direction).reshape(3, 3).T @ np.asarray(found.direction).reshape(3, 3) - np.eye(3)
        ).max()
        < 1e-9
    )
    # The value of a place is that of the place it came from.
    back = FLIP @ np.linalg.inv(SHEARED) @ FLIP
    points = world_of(found).reshape(-1, 3)
    own = points @ back[:3, :3].T + back[:3, 3]
    index = grid.index(own)
    inside = ((index > 1) & (index < np.asarray(grid.size) - 2)).all(-1)
    values = sitk.GetArrayFromImage(image).ravel()
    wanted = own @ (FLIP[:3, :3] @ [1.0, 2.0, 3.0]) / np.sqrt(14.0)
    assert inside.sum() > 20000
    assert np.abs(values - wanted)[inside].max() < TOLERANCE


def test_a_non_linear_parent_is_refused_with_advice(scene):
    node = add_volume(scene, ramp(SMALL), "Brain")
    warp = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Warp")
    set_displacement(warp, wave_image(SMALL))
    node.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match=r"Brain is under the non-linear transform Warp; harden"):
        export_volume(node)


def test_a_volume_without_voxels_is_refused(scene):
    with pytest.raises(InputError, match="Empty has no voxels"):
        export_volume(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty"))


def test_export_leaves_the_node_and_its_file_name_as_they_were(scene):
    node = add_volume(scene, ramp(SMALL), parent=PARENTS["rigid parent"])
    storage = node.CreateDefaultStorageNode()
    storage.UnRegister(None)
    scene.AddNode(storage)
    storage.SetFileName("/somewhere/else.nrrd")
    node.SetAndObserveStorageNodeID(storage.GetID())
    before = node.GetMTime(), storage.GetMTime(), scene.GetNumberOfNodes()
    export_labels(node, export_volume(node))
    assert (node.GetMTime(), storage.GetMTime(), scene.GetNumberOfNodes()) == before
    assert storage.GetFileName() == "/somewhere/else.nrrd"


def segmented(scene, grid=SMALL, name="Segments", parent=None):
    """A segmentation of `made_labels`, with names and colours of its own."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    labels = [Label(n, f"Part {n}", (n / 10, 0.5, 1 - n / 10)) for n in range(1, 8)]
    fill_segmentation(node, made_labels(grid), labels)
    add_parent(scene, node, parent)
    return node


@each_grid
@each_parent
def test_labels_of_a_segmentation_are_those_of_the_label_map_it_was_made_of(scene, grid, parent):
    reference = add_volume(scene, ramp(grid), "Reference", parent=parent)
    node = segmented(scene, grid, parent=parent)
    found = export_labels(node, reference)
    assert np.array_equal(sitk.GetArrayFromImage(found.image), sitk.GetArrayFromImage(made_labels(grid)))
    assert Grid.of(found.image).same_as(Grid.of(export_volume(reference)))
    assert [label.name for label in found.labels] == [f"Part {n}" for n in range(1, 8)]
    assert found.labels[2].color == pytest.approx((0.3, 0.5, 0.7))
    assert not found.overlap


def test_a_new_node_goes_where_another_is_in_the_subject_hierarchy(scene):
    volumes = [add_volume(scene, ramp(SMALL), name) for name in ("Fixed", "Moved", "Outside")]
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = tree.CreateFolderItem(tree.GetSceneItemID(), "Study")
    for volume in volumes[:2]:  # Slicer's own logic, which is not here, makes an item for every node
        tree.CreateItem(study if volume is volumes[0] else tree.GetSceneItemID(), volume)
    put_beside(volumes[1], volumes[0])
    put_beside(volumes[2], volumes[0])
    assert tree.GetItemParent(tree.GetItemByDataNode(volumes[1])) == study
    assert tree.GetItemByDataNode(volumes[2]) == 0


def test_segments_keep_their_tags_and_terminology(scene):
    source = segmented(scene)
    segment = source.GetSegmentation().GetSegment(source.GetSegmentation().GetNthSegmentID(2))
    segment.SetTag("TerminologyEntry", "Segmentation category and type~SCT^123037004^Anatomical Structure")
    given = export_labels(source, add_volume(scene, ramp(SMALL)))
    carried = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    set_labels(carried, given.image, given.labels, source, None)
    found = carried.GetSegmentation().GetSegment(carried.GetSegmentation().GetNthSegmentID(2))
    tag = vtk.reference("")
    assert found.GetTag("TerminologyEntry", tag) and "SCT^123037004" in str(tag)
    assert found.GetName() == segment.GetName() and found.GetLabelValue() == given.labels[2].value


@each_grid
@each_parent
def test_a_segmentation_and_a_volume_under_different_parents_meet_in_the_world(scene, grid, parent):
    reference = add_volume(
        scene, ramp(made_grid((50, 50, 44), (3.0, 3.0, 3.0), center=(1.31, 0.73, 0.37))), "Reference"
    )
    label_map = add_volume(scene, made_labels(grid), "Labels", labels=True, parent=parent)
    from_map = export_labels(label_map, reference)
    from_segments = export_labels(segmented(scene, grid, parent=parent), reference)
    assert np.array_equal(sitk.GetArrayFromImage(from_map.image), sitk.GetArrayFromImage(from_segments.image))
    wanted = Grid.of(from_map.image).resample(export_volume(label_map, labels=True), labels=True)
    assert np.array_equal(sitk.GetArrayFromImage(from_map.image), sitk.GetArrayFromImage(wanted))


def test_two_segmentations_agree_by_the_names_of_segments(scene):
    reference = add_volume(scene, ramp(SMALL))
    first = segmented(scene)
    second = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    turned = [Label(8 - n, f"Part {8 - n}", (1.0, 0.0, 0.0)) for n in range(1, 8)] + [
        Label(9, "Other", (0.0, 1.0, 0.0))
    ]
    values = sitk.GetArrayFromImage(made_labels(SMALL))
    values[0, 0, 0] = 9
    fill_segmentation(second, SMALL.image(values), turned)
    numbering = export_labels(first, reference).numbering
    found = export_labels(second, reference, {**numbering, "Part 7": 70})
    assert found.numbering == {**numbering, "Part 7": 70, "Other": 9}
    swapped = sitk.GetArrayFromImage(found.image)
    assert np.array_equal(swapped == 70, values == 7) and np.array_equal(swapped == 1, values == 1)


def test_segments_of_their_own_layers_get_numbers_of_their_own(scene):
    reference = add_volume(scene, ramp(SMALL))
    node = segmented(scene)
    segmentation = node.GetSegmentation()
    for n in range(7):
        segmentation.SeparateSegmentLabelmap(segmentation.GetNthSegmentID(n))
    found = export_labels(node, reference)
    assert segmentation.GetNumberOfLayers() == 7 and sorted(found.numbering.values()) == list(range(1, 8))
    values = sitk.GetArrayFromImage(found.image)
    for n in range(1, 8):
        assert np.array_equal(values == found.numbering[f"Part {n}"], sitk.GetArrayFromImage(made_labels(SMALL)) == n)
    assert not found.overlap


def test_overlapping_segments_are_noticed_and_the_later_one_is_kept(scene):
    reference = add_volume(scene, ramp(SMALL))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    whole = np.zeros(SMALL.shape, np.uint8)
    whole[5:15, 5:15, 5:15] = 1
    part = np.zeros(SMALL.shape, np.uint8)
    part[8:11, 8:11, 8:11] = 1
    fill_segmentation(node, SMALL.image(whole), [Label(1, "Whole", (1.0, 0.0, 0.0))])
    segment = slicer.vtkSegment()
    segment.SetName("Part")
    from RegMambaSlicer.segments import oriented_image

    segment.AddRepresentation("Binary labelmap", oriented_image(SMALL.image(part)))
    node.GetSegmentation().AddSegment(segment)
    found = export_labels(node, reference)
    values = sitk.GetArrayFromImage(found.image)
    assert found.overlap
    assert np.array_equal(values == found.numbering["Part"], part == 1)
    assert np.array_equal(values > 0, whole == 1)


def test_a_segmentation_of_surfaces_alone_is_made_into_labels_and_stays_as_it_was(scene):
    reference = add_volume(scene, ramp(SMALL))
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(22.0)
    sphere.SetCenter(3.0, -4.0, 5.0)
    sphere.SetThetaResolution(48)
    sphere.SetPhiResolution(48)
    sphere.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Surface")
    segmentation = node.GetSegmentation()
    closed = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    segmentation.SetSourceRepresentationName(closed)
    segment = slicer.vtkSegment()
    segment.SetName("Ball")
    segment.AddRepresentation(closed, sphere.GetOutput())
    segmentation.AddSegment(segment)
    found = sitk.GetArrayFromImage(export_labels(node, reference).image)
    distance = np.linalg.norm(world_of(SMALL) - [-3.0, 4.0, 5.0], axis=-1)
    assert (found[distance < 19] == 1).all() and (found[distance > 25] == 0).all()
    assert not segmentation.ContainsRepresentation("Binary labelmap")


def test_a_segmentation_without_segments_is_refused(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Nothing")
    with pytest.raises(InputError, match="Nothing has no segments"):
        export_labels(node, ramp(SMALL))


def test_masks_are_where_anything_is(scene):
    values = sitk.GetArrayFromImage(made_labels(SMALL)) > 0
    for node in (segmented(scene), add_volume(scene, made_labels(SMALL), labels=True)):
        mask = export_mask(node, ramp(SMALL))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(sitk.GetArrayFromImage(mask), values)


@each_grid
def test_a_volume_written_into_a_node_is_read_back_the_same(scene, grid):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    add_parent(scene, node, PARENTS["rigid parent"])
    set_volume(node, ramp(grid))
    image = export_volume(node)
    assert node.GetParentTransformNode() is None and Grid.of(image).same_as(grid)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(ramp(grid)))


@each_grid
def test_labels_written_into_nodes_keep_names_and_colours(scene, grid):
    source = segmented(scene, grid)
    given = export_labels(source, ramp(grid))
    carried = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    set_labels(carried, given.image, given.labels, source, add_volume(scene, ramp(grid)))
    again = export_labels(carried, ramp(grid))
    assert again.labels == given.labels
    assert np.array_equal(sitk.GetArrayFromImage(again.image), sitk.GetArrayFromImage(given.image))
    as_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    count = scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")
    for _ in range(2):
        set_labels(as_map, given.image, given.labels, source, None)
    assert export_labels(as_map, ramp(grid)).labels == [
        Label(label.value, label.name, pytest.approx(label.color, abs=0.01)) for label in given.labels
    ]
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode") == count + 1


REPORT = {
    "before": {"dice": 0.5, "hd95_mm": 4.0, "per_label": {"1": {"dice": 0.4, "hd95_mm": 5.0}, "2": {"dice": 0.6}}},
    "after": {
        "dice": 0.8,
        "hd95_mm": 2.0,
        "per_label": {"1": {"dice": 0.7, "hd95_mm": 2.0}, "2": {"dice": 0.9, "hd95_mm": None}},
    },
    "folding_percent": 0.25,
    "seconds": {"total": 12.5},
}
NAMES = [Label(1, "Cortex", (1.0, 0.0, 0.0)), Label(2, "Thalamus", (0.0, 1.0, 0.0))]


def rows(node):
    table = node.GetTable()
    return [
        [table.GetValue(row, column).ToString() for column in range(table.GetNumberOfColumns())]
        for row in range(table.GetNumberOfRows())
    ]


def test_the_table_has_a_row_per_label_and_one_for_the_whole_and_can_grow(scene):
    node = scene.AddNewNodeByClass("vtkMRMLTableNode")
    fill_table(node, REPORT, NAMES, "First")
    assert rows(node) == [
        ["First", "1", "Cortex", "0.4", "0.7", "5", "2", "nan", "nan"],
        ["First", "2", "Thalamus", "0.6", "0.9", "nan", "nan", "nan", "nan"],
        ["First", "mean", "mean", "0.5", "0.8", "4", "2", "0.25", "12.5"],
    ]
    fill_table(node, {"folding_percent": 0.0, "seconds": {"total": 1.0}}, [], "Second", append=True)
    assert len(rows(node)) == 4 and rows(node)[3][:3] == ["Second", "whole", "whole"]
    fill_table(node, REPORT, NAMES, "Third")
    assert [row[0] for row in rows(node)] == ["Third"] * 3


def test_the_chart_shows_dice_before_and_after_and_is_made_once(scene):
    table = scene.AddNewNodeByClass("vtkMRMLTableNode")
    fill_table(table, REPORT, NAMES, "First")
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode")
    for _ in range(2):
        fill_chart(chart, table)
    assert chart.GetNumberOfPlotSeriesNodes() == 2 == scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode")
    assert {chart.GetNthPlotSeriesNode(n).GetYColumnName() for n in range(2)} == {"Dice before", "Dice after"}


def test_importing_the_bridge_loads_nothing_heavy():
    code = (
        "import sys; import RegMambaSlicer.logic, RegMambaSlicer.apply; "
        "print([m for m in ('torch', 'numba', 'scipy', 'RegMambaLib.registration') if m in sys.modules])"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "RegMamba")])
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip().splitlines()[-1] == "[]"


assert GRIDS
