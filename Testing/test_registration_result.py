"""A registration says one thing in every way it can be asked: transforms, images, labels, points, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import apply, determinants, linear, made_grid, made_head, made_labels, random_displacement, world_of

from RegMambaLib.errors import InputError
from RegMambaLib.registration.result import Registration
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial import fields
from RegMambaLib.spatial.grid import Grid

FIXED = made_grid((26, 24, 20), (6.0, 7.0, 8.0), (15, -25, 20), (-20.0, 35.0, 400.0), flip=True)
MOVING = made_grid((24, 30, 22), (7.0, 5.5, 7.5), (-50, 30, 100), (30.0, -10.0, 60.0))
GRID = made_grid((30, 30, 28), (6.5, 6.5, 6.5), (15, -25, 20), (-20.0, 35.0, 400.0))
AFFINE = linear((20, 10, -30), (0.0, 0.0, 0.0), 1.05, 0.03)
AFFINE[:3, 3] = MOVING.center - AFFINE[:3, :3] @ GRID.center


@pytest.fixture(scope="module")
def result():
    u = random_displacement(GRID.shape, sigma=3, smallest=0.35, seed=5, faded=True)
    u *= fields.resize(np.pad(np.ones((24, 26, 26), np.float32), 2), GRID.shape)
    inverse, _ = fields.invert(u)
    return Registration(
        GRID,
        u,
        inverse,
        AFFINE,
        FIXED,
        MOVING,
        uncertainty=np.random.default_rng(0).uniform(0, 2, GRID.shape).astype(np.float32),
        seconds={"refine": 1.5},
        settings=Settings(window=7, iterations=(3,)),
        details={"metric": "lncc", "grid_spacing": 6.5},
    )


@pytest.fixture(scope="module")
def moving():
    return made_head(MOVING, lambda points: points - MOVING.center)


def voxels(count=60):
    """Some voxel indices (i, j, k) of the working grid, away from its border."""
    return np.random.default_rng(1).integers(4, np.array(GRID.size) - 4, (count, 3))


def test_a_point_goes_through_the_displacement_first_and_then_the_affine(result):
    index = voxels()
    moved = index + result.displacement[::-1, index[:, 2], index[:, 1], index[:, 0]].T
    expected = apply(AFFINE, GRID.world(moved))
    np.testing.assert_allclose(result.points_to_moving(GRID.world(index)), expected, atol=1e-4)
    point = GRID.world(index[0]).tolist()
    np.testing.assert_allclose(result.transform.TransformPoint(point), expected[0], atol=1e-4)


def test_points_go_to_moving_space_and_back(result):
    points = GRID.world(voxels())
    back = result.points_to_fixed(result.points_to_moving(points))
    assert np.linalg.norm(back - points, axis=1).mean() < 0.5  # between voxels the inverse is interpolated
    index = voxels()
    there = apply(AFFINE, GRID.world(index))  # lands on voxels of the inverse
    np.testing.assert_allclose(result.points_to_moving(result.points_to_fixed(there)), there, atol=0.1)


def test_far_outside_the_grid_only_the_affine_is_left(result):
    far = GRID.center + np.array([[500.0, 0, 0], [0, -400.0, 300.0]])
    np.testing.assert_allclose(result.points_to_moving(far), apply(AFFINE, far), atol=1e-9)
    np.testing.assert_allclose(result.points_to_fixed(apply(AFFINE, far)), far, atol=1e-6)


def test_warping_is_resampling_by_simpleitk_through_the_transform(result, moving):
    theirs = sitk.Resample(moving, FIXED.image(np.zeros(FIXED.shape)), result.transform, sitk.sitkLinear, 0.0)
    ours = result.warp(moving)
    assert Grid.of(ours).same_as(FIXED)
    np.testing.assert_allclose(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs), atol=1e-2)
    assert sitk.GetArrayFromImage(ours).max() > 500


def test_labels_are_warped_once_by_nearest_neighbour(result):
    labels = made_labels(MOVING, lambda points: points - MOVING.center)
    labels = sitk.Cast(labels, sitk.sitkUInt16) * 1001
    moved = result.warp(labels, labels=True)
    values = sitk.GetArrayFromImage(moved)
    assert moved.GetPixelID() == sitk.sitkUInt16
    assert set(np.unique(values)) <= set(np.unique(sitk.GetArrayFromImage(labels))) and len(np.unique(values)) > 4
    points = result.points_to_moving(world_of(FIXED).reshape(-1, 3))
    index = MOVING.index(points)
    safe = (np.abs(index - np.floor(index) - 0.5) > 1e-3).all(1)
    nearest = np.floor(index + 0.5).astype(int)
    held = ((nearest >= 0) & (nearest < MOVING.size)).all(1)
    expected = np.zeros(len(points), int)
    expected[held] = sitk.GetArrayFromImage(labels)[tuple(nearest[held].T[::-1])]
    np.testing.assert_array_equal(values.ravel()[safe], expected[safe])


def test_warping_back_brings_the_fixed_image_to_the_moving_grid(result, moving):
    there = result.warp(moving)
    back = result.warp_back(there)
    assert Grid.of(back).same_as(MOVING)
    ours, original = sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(moving)
    both = (ours > 200) & (original > 200)
    assert both.sum() > 0.5 * (original > 200).sum()
    assert np.corrcoef(ours[both], original[both])[0, 1] > 0.75
    labels = result.warp_back(result.warp(sitk.Cast(moving > 300, sitk.sitkUInt8), labels=True), labels=True)
    assert set(np.unique(sitk.GetArrayFromImage(labels))) == {0, 1}


def test_the_jacobian_is_that_of_the_displacement_on_its_oblique_grid(result):
    np.testing.assert_allclose(result.jacobian, determinants(result.displacement), atol=1e-3)


def test_a_saved_registration_loads_as_it_was(result, tmp_path):
    result.save(tmp_path / "out")
    names = {"transform.h5", "inverse.h5", "registration.json", "uncertainty.nii.gz"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    loaded = Registration.load(tmp_path / "out")
    for name in ("displacement", "inverse_displacement", "uncertainty", "affine"):
        np.testing.assert_allclose(getattr(loaded, name), getattr(result, name), atol=1e-4)
        assert getattr(loaded, name).dtype == getattr(result, name).dtype
    assert loaded.grid.same_as(GRID, 1e-5)
    assert (loaded.fixed_grid, loaded.moving_grid) == (FIXED, MOVING)
    assert (loaded.settings, loaded.details, loaded.seconds) == (result.settings, result.details, result.seconds)
    points = GRID.world(voxels())
    np.testing.assert_allclose(loaded.points_to_moving(points), result.points_to_moving(points), atol=1e-3)
    np.testing.assert_allclose(loaded.points_to_fixed(points), result.points_to_fixed(points), atol=1e-3)


def test_the_saved_transforms_are_plain_itk_files(result, tmp_path):
    result.save(tmp_path)
    points = GRID.world(voxels())
    for name, ours in (("transform.h5", result.transform), ("inverse.h5", result.inverse)):
        theirs = sitk.ReadTransform(str(tmp_path / name))
        for point in points.tolist():
            np.testing.assert_allclose(theirs.TransformPoint(point), ours.TransformPoint(point), atol=1e-3)


def test_a_registration_without_uncertainty_saves_and_loads(result, tmp_path):
    plain = Registration(GRID, result.displacement, result.inverse_displacement, AFFINE, FIXED, MOVING)
    plain.save(tmp_path)
    assert not (tmp_path / "uncertainty.nii.gz").exists()
    assert Registration.load(tmp_path).uncertainty is None


def test_a_saved_registration_is_not_overwritten_unasked(result, tmp_path):
    result.save(tmp_path)
    before = (tmp_path / "registration.json").read_bytes()
    with pytest.raises(InputError):
        result.save(tmp_path)
    assert (tmp_path / "registration.json").read_bytes() == before
    result.save(tmp_path, overwrite=True)


def test_saving_over_a_result_with_uncertainty_leaves_no_stale_map(result, tmp_path):
    result.save(tmp_path)
    plain = Registration(GRID, result.displacement, result.inverse_displacement, AFFINE, FIXED, MOVING)
    plain.save(tmp_path, overwrite=True)
    assert Registration.load(tmp_path).uncertainty is None


@pytest.mark.parametrize("damage", ["empty folder", "no json", "broken json", "no grid", "a list"])
def test_a_folder_without_a_whole_registration_is_refused(result, tmp_path, damage):
    if damage != "empty folder":
        result.save(tmp_path)
        file = tmp_path / "registration.json"
        meta = json.loads(file.read_text())
        if damage == "no json":
            file.unlink()
        elif damage == "broken json":
            file.write_text(file.read_text()[:40])
        elif damage == "no grid":
            file.write_text(json.dumps({name: value for name, value in meta.items() if name != "fixed_grid"}))
        else:
            file.write_text("[]")
    with pytest.raises(InputError, match="no saved registration"):
        Registration.load(tmp_path)


def test_a_registration_whose_inverse_is_missing_is_refused(result, tmp_path):
    result.save(tmp_path)
    (tmp_path / "inverse.h5").unlink()
    with pytest.raises(InputError, match=r"inverse\.h5"):
        Registration.load(tmp_path)


def test_a_linear_transform_in_place_of_the_inverse_is_refused(result, tmp_path):
    result.save(tmp_path)
    sitk.WriteTransform(sitk.AffineTransform(3), str(tmp_path / "inverse.h5"))
    with pytest.raises(InputError):
        Registration.load(tmp_path)
