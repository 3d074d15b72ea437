"""A known deformation given to a transform node does in Slicer what it does in SimpleITK, and files keep it."""

from __future__ import annotations

from bridge_help import (
    GRIDS,
    TOLERANCE,
    add_parent,
    add_volume,
    dice_of,
    each_grid,
    each_parent,
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
from conftest import linear, made_grid, made_labels, random_displacement
from RegMambaSlicer import apply
from RegMambaSlicer.bridge import (
    displacement_image,
    export_labels,
    export_volume,
    set_displacement,
    transform_to_sitk,
)
from RegMambaSlicer.geometry import covering_grid
from RegMambaSlicer.segments import _oriented

from RegMambaLib.errors import InputError
from RegMambaLib.io.transforms import read_transform
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform, displacement_transform

__all__ = ["scene"]
AFFINE = linear((4.0, -6.0, 8.0), (6.0, -4.0, 9.0), scale=1.04)
FILES = (".h5", ".tfm", ".nrrd", ".nii.gz")


def given(scene, grid, affine=None):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Result")
    set_displacement(node, wave_image(grid), affine)
    return node


def expected(grid, affine=None):
    field = sitk.DisplacementFieldTransform(sitk.Cast(wave_image(grid), sitk.sitkVectorFloat64))
    return field if affine is None else sitk.CompositeTransform([affine_transform(affine), field])


@each_grid
@pytest.mark.parametrize("affine", [None, AFFINE], ids=["grid", "linear + grid"])
def test_points_go_where_simpleitk_takes_them(scene, grid, affine):
    points = inner_points(grid)
    found = from_world(given(scene, grid, affine), points)
    assert np.abs(found - through(expected(grid, affine), points)).max() < TOLERANCE


@each_grid
def test_a_flattened_transform_with_a_linear_part_is_the_same_transform(scene, grid):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    set_displacement(node, wave_image(grid, AFFINE))
    points = inner_points(grid)
    assert np.abs(from_world(node, points) - through(expected(grid, AFFINE), points)).max() < TOLERANCE


@each_grid
def test_a_point_under_the_transform_arrives_where_it_corresponds(scene, grid):
    node = given(scene, grid)
    fixed_points = inner_points(grid, 20)
    moving_points = through(expected(grid), fixed_points)
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    slicer.util.updateMarkupsControlPointsFromArray(markups, moving_points * [-1, -1, 1])
    apply.apply_transform(node, [markups], harden=True)
    arrived = slicer.util.arrayFromMarkupsControlPoints(markups) * [-1, -1, 1]
    assert np.abs(arrived - fixed_points).max() < TOLERANCE


@each_grid
def test_the_node_gives_back_the_displacement_it_got(scene, grid):
    node = given(scene, grid)
    back = displacement_image(node.GetTransformFromParent())
    assert Grid.of(back).same_as(grid)
    values = sitk.GetArrayFromImage(wave_image(grid))
    assert np.abs(sitk.GetArrayFromImage(back) - values).max() < 1e-5
    assert node.GetTransformFromParent().GetInterpolationModeAsString() == "Cubic"


@each_grid
@pytest.mark.parametrize("affine", [None, AFFINE], ids=["grid", "linear + grid"])
def test_transform_to_sitk_is_the_transform_of_the_node(scene, grid, affine):
    points = inner_points(grid)
    found = through(transform_to_sitk(given(scene, grid, affine)), points)
    assert np.abs(found - through(expected(grid, affine), points)).max() < 1e-3


def test_an_initial_transform_under_a_parent_is_taken_to_the_world(scene):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(node, linear((0.0, 0.0, 10.0), (1.0, 2.0, 3.0)))
    add_parent(scene, node, linear((20.0, 0.0, 0.0), (-4.0, 0.0, 9.0)))
    points = inner_points(GRIDS["oblique"], 10)
    transform = transform_to_sitk(node)
    assert transform.IsLinear()
    assert np.abs(through(transform, points) - from_world(node, points)).max() < 1e-9


def test_a_spline_is_refused_with_advice(scene):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Spline")
    spline = vtk.vtkThinPlateSplineTransform()
    for landmarks, shift in ((spline.SetSourceLandmarks, 0.0), (spline.SetTargetLandmarks, 2.0)):
        points = vtk.vtkPoints()
        for p in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (20, 30, 40 + shift)):
            points.InsertNextPoint(*p)
        landmarks(points)
    spline.SetBasisToR()
    node.SetAndObserveTransformFromParent(spline)
    with pytest.raises(InputError, match=r"Spline holds a part .* convert it"):
        transform_to_sitk(node)


def test_a_linear_transform_node_cannot_hold_a_displacement(scene):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Lin")
    with pytest.raises(InputError, match="Lin can only hold"):
        set_displacement(node, wave_image(GRIDS["axis-aligned"]))


@each_grid
@each_parent
def test_a_hardened_volume_is_simpleitks_own_with_the_saved_file(scene, grid, parent, tmp_path):
    moving = add_volume(scene, ramp(made_grid((40, 38, 36), (3.5, 3.5, 3.5), (9.0, 3.0, -7.0))), parent=parent)
    before = export_volume(moving)
    node = given(scene, grid, AFFINE)
    apply.save_transform(node, tmp_path / "result.h5")
    apply.apply_transform(node, [moving], harden=True)
    hardened = export_volume(moving)
    target = Grid.of(hardened)
    own = target.resample(before, read_transform(tmp_path / "result.h5"), default=np.nan)
    # Where the displacement is known to both, and the value comes from within the volume.
    edge = sitk.GetArrayFromImage(target.resample(inside_of(grid), labels=True))
    both = (edge == 1) & np.isfinite(sitk.GetArrayFromImage(own))
    difference = sitk.GetArrayFromImage(hardened) - sitk.GetArrayFromImage(own)
    there = both & (sitk.GetArrayFromImage(hardened) != 0)
    assert there.sum() > 5000
    # Voxels at the border of the volume are cut differently; a distance is seen in all others.
    assert np.quantile(np.abs(difference[there]), 0.99) < TOLERANCE


def inside_of(grid, border=3):
    values = np.zeros(grid.shape, np.uint8)
    values[border:-border, border:-border, border:-border] = 1
    return grid.image(values)


@each_grid
@each_parent
def test_a_hardened_segmentation_is_the_pull_back_of_its_labels(scene, grid, parent, tmp_path):
    # Fine labels, of 1,400 voxels and more, on a fine displacement: where cubic and linear interpolation differ (by
    # 0.003 mm at most), a voxel of a border may fall to the other side.
    grid = grid.with_spacing(tuple(spacing / 3 for spacing in grid.spacing))
    moving = add_volume(scene, made_labels(made_grid((108, 120, 96), (1.6, 1.6, 1.6))), "Labels", labels=True)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(moving, segmentation)
    for node in (moving, segmentation):
        add_parent(scene, node, parent)
    node = given(scene, grid, AFFINE)
    apply.save_transform(node, tmp_path / "result.h5")
    labels = export_volume(moving, labels=True)
    apply.apply_transform(node, [segmentation], harden=True)
    # Slicer hardens onto the grid of the segmentation; on another one labels would be taken from neighbours twice.
    hardened = lattice(segmentation)
    found = export_labels(segmentation, hardened.image(np.zeros(hardened.shape, np.uint8))).image
    wanted = hardened.resample(labels, read_transform(tmp_path / "result.h5"), labels=True)
    where = sitk.GetArrayFromImage(hardened.resample(inside_of(grid, border=9), labels=True))
    arrays = [sitk.GetArrayFromImage(image) * where for image in (found, wanted)]
    assert dice_of(*arrays) >= 0.999


def lattice(segmentation):
    """The grid of the label map within a segmentation that is under no transform."""
    return Grid.of(_oriented(segmentation.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")))


@each_grid
@pytest.mark.parametrize("ending", FILES)
def test_a_file_keeps_the_transform_for_slicer_and_for_simpleitk(scene, grid, ending, tmp_path):
    path = tmp_path / f"result{ending}"
    node = given(scene, grid)
    apply.save_transform(node, path)
    points = inner_points(grid)
    wanted = through(expected(grid), points)
    assert np.abs(through(read_transform(path), points) - wanted).max() < TOLERANCE
    assert np.abs(from_world(loaded(scene, path), points) - wanted).max() < TOLERANCE
    assert node.GetStorageNode() is None


def loaded(scene, path):
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetScene(scene)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


@pytest.mark.parametrize("ending", [".h5", ".tfm"])
def test_a_file_keeps_linear_and_grid(scene, ending, tmp_path):
    grid = GRIDS["oblique"]
    path = tmp_path / f"result{ending}"
    apply.save_transform(given(scene, grid, AFFINE), path)
    points = inner_points(grid)
    wanted = through(expected(grid, AFFINE), points)
    assert np.abs(through(read_transform(path), points) - wanted).max() < TOLERANCE
    assert np.abs(from_world(loaded(scene, path), points) - wanted).max() < TOLERANCE


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_linear_and_grid_in_an_image_file_is_refused_with_advice(scene, ending, tmp_path):
    node = given(scene, GRIDS["oblique"], AFFINE)
    with pytest.raises(InputError, match=r"end the name in \.h5"):
        apply.save_transform(node, tmp_path / f"result{ending}")
    assert not list(tmp_path.iterdir())


def test_after_a_failed_write_the_next_one_works(scene, tmp_path):
    node = given(scene, GRIDS["oblique"])
    with pytest.raises(InputError, match="choose a writable folder"):
        apply.save_transform(node, tmp_path / "missing" / "result.h5")
    apply.save_transform(node, tmp_path / "result.h5")
    assert (tmp_path / "result.h5").exists()


@each_grid
@pytest.mark.parametrize("affine", [None, AFFINE], ids=["grid", "linear + grid"])
def test_the_inverse_undoes_the_transform_and_every_program_reads_its_file(scene, grid, affine, tmp_path):
    node = given(scene, grid, affine)
    moving = add_volume(scene, ramp(moved_grid(grid, affine)), "Moving")
    node.SetNodeReferenceID(node.GetMovingNodeReferenceRole(), moving.GetID())
    inverse = apply.inverted(node)
    points = inner_points(grid, border=8)
    there = from_world(node, points)
    assert np.abs(from_world(inverse, there) - points).max() < 0.02
    assert np.abs(from_world(apply.inverted(inverse), points) - there).max() < 1e-4
    for ending in FILES:
        apply.save_transform(inverse, tmp_path / f"inverse{ending}")
        back = through(read_transform(tmp_path / f"inverse{ending}"), there)
        assert np.abs(back - points).max() < 2 * TOLERANCE, ending
        assert np.abs(from_world(loaded(scene, tmp_path / f"inverse{ending}"), there) - points).max() < 2 * TOLERANCE


def moved_grid(grid, affine):
    """A grid that covers what lies in another one when that is moved."""
    axes = grid.index_to_world if affine is None else affine @ grid.index_to_world
    return covering_grid(grid.size, axes)


def test_an_inverse_whose_volume_is_gone_is_not_written(scene, tmp_path):
    with pytest.raises(InputError, match="grid of the moving volume, which is not in the scene"):
        apply.save_transform(apply.inverted(given(scene, GRIDS["oblique"])), tmp_path / "inverse.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", FILES)
def test_a_rough_result_is_the_same_in_a_reloaded_scene_and_nearly_so_in_simpleitk(scene, ending, tmp_path):
    """Slicer interpolates by cubics, now and when reloaded, ITK linearly: they agree at voxels, not between."""
    grid = GRIDS["oblique"]
    u = random_displacement(grid.shape, sigma=1.5, smallest=0.2, faded=True)
    field = displacement_transform(u, grid).GetDisplacementField()
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Result")
    set_displacement(node, field)
    path = tmp_path / f"result{ending}"
    apply.save_transform(node, path)
    between, at_voxels = inner_points(grid), grid.world(np.floor(grid.index(inner_points(grid))))
    for points, limit in ((at_voxels, 1e-3), (between, 0.25 * max(grid.spacing))):
        session = from_world(node, points)
        assert np.abs(from_world(loaded(scene, path), points) - session).max() < 1e-3
        assert np.abs(through(read_transform(path), points) - session).max() < limit
