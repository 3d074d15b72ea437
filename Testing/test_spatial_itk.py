"""Voxel displacements and ITK transforms say the same about the world."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import apply, linear, made_grid, random_displacement, sampled, world_of

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.itk import (
    affine_matrix,
    affine_transform,
    displacement_transform,
    mm_to_voxels,
    split_transform,
    voxels_to_mm,
)

GRIDS = {
    "anisotropic": made_grid((12, 10, 9), (0.8, 1.5, 4.0), center=(12.0, -40.0, 300.0)),
    "oblique": made_grid((12, 11, 9), (1.2, 1.0, 3.0), turn=(30, -20, 55), center=(-7.0, 9.0, 2.0)),
    "left-handed": made_grid((12, 11, 9), (1.2, 1.0, 3.0), turn=(170, 20, -35), flip=True),
}
each = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
MATRIX = linear((20, 5, -40), (10.0, -30.0, 4.0), 1.1, 0.05)


def moved(transform, points):
    return np.array([transform.TransformPoint(p) for p in points.tolist()])


@each
def test_voxels_become_mm_and_mm_become_voxels_again(grid):
    u = random_displacement(grid.shape, seed=1)
    mm = voxels_to_mm(u, grid)
    assert mm.shape == (*grid.shape, 3) and mm.dtype == np.float64
    back = mm_to_voxels(mm, grid)
    assert back.dtype == np.float32 and back.flags.c_contiguous
    np.testing.assert_allclose(back, u, atol=1e-5)


@each
def test_a_displacement_in_voxels_becomes_mm_through_direction_and_spacing(grid):
    # One voxel along i (the last array axis, so channel 2) is the first column of direction times spacing.
    for channel, axis in ((2, 0), (1, 1), (0, 2)):
        u = np.zeros((3, *grid.shape), np.float32)
        u[channel] = 1
        expected = np.reshape(grid.direction, (3, 3))[:, axis] * grid.spacing[axis]
        np.testing.assert_allclose(voxels_to_mm(u, grid), np.broadcast_to(expected, (*grid.shape, 3)), atol=1e-12)


@each
def test_the_transform_moves_the_centre_of_a_voxel_by_its_displacement(grid):
    u = random_displacement(grid.shape, seed=1)
    world = world_of(grid)
    transform = displacement_transform(u, grid)
    for k, j, i in ((1, 2, 3), (4, 5, 6), (7, 8, 10)):
        expected = grid.world(np.array([i, j, k]) + u[::-1, k, j, i])
        np.testing.assert_allclose(transform.TransformPoint(world[k, j, i].tolist()), expected, atol=1e-4)


@each
def test_resampling_through_the_transform_is_warping_by_the_displacement(grid):
    volume = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    u = random_displacement(grid.shape, sigma=2, seed=1, faded=True)
    image = grid.resample(grid.image(volume), displacement_transform(u, grid))
    core = (slice(1, -1),) * 3
    np.testing.assert_allclose(sitk.GetArrayFromImage(image)[core], sampled(volume, u)[core], atol=1e-3)


def test_outside_its_grid_a_displacement_moves_nothing():
    grid = GRIDS["oblique"]
    transform = displacement_transform(np.ones((3, *grid.shape), np.float32), grid)
    outside = grid.world(np.array([-3.0, 4.0, 4.0]))
    np.testing.assert_allclose(transform.TransformPoint(outside.tolist()), outside)


def test_a_matrix_becomes_the_transform_that_moves_points_by_it():
    points = np.random.default_rng(0).uniform(-100, 100, (20, 3))
    np.testing.assert_allclose(moved(affine_transform(MATRIX), points), apply(MATRIX, points), atol=1e-9)
    np.testing.assert_allclose(affine_matrix(affine_transform(MATRIX)), MATRIX, atol=1e-9)


@pytest.mark.parametrize(
    "kind",
    [
        sitk.Euler3DTransform,
        sitk.VersorRigid3DTransform,
        sitk.Similarity3DTransform,
        sitk.AffineTransform,
        sitk.TranslationTransform,
        sitk.ScaleTransform,
    ],
)
def test_the_matrix_of_any_linear_class_moves_points_as_itk_does(kind):
    transform = kind(3) if kind in (sitk.AffineTransform, sitk.TranslationTransform, sitk.ScaleTransform) else kind()
    rng = np.random.default_rng(0)
    if hasattr(transform, "SetCenter"):
        transform.SetCenter((5.0, -60.0, 7.0))
    parameters = np.array(transform.GetParameters())
    transform.SetParameters((parameters + 0.1 * rng.normal(size=parameters.size)).tolist())
    points = rng.uniform(-100, 100, (10, 3))
    np.testing.assert_allclose(apply(affine_matrix(transform), points), moved(transform, points), atol=1e-9)


def test_a_chain_of_linear_transforms_is_one_matrix():
    chain = sitk.CompositeTransform([affine_transform(MATRIX), sitk.TranslationTransform(3, (1.0, 2.0, 3.0))])
    np.testing.assert_allclose(affine_matrix(chain), MATRIX @ linear(shift=(1, 2, 3)), atol=1e-9)


def test_a_displacement_has_no_matrix():
    grid = GRIDS["oblique"]
    with pytest.raises(InputError, match="not linear"):
        affine_matrix(displacement_transform(np.ones((3, *grid.shape)), grid))


@each
def test_a_written_chain_comes_apart_into_what_it_was_made_of(grid):
    u = random_displacement(grid.shape, seed=4)
    chain = sitk.CompositeTransform([affine_transform(MATRIX), displacement_transform(u, grid)])
    matrix, displacement, found = split_transform(chain)
    np.testing.assert_allclose(matrix, MATRIX, atol=1e-12)
    np.testing.assert_allclose(displacement, u, atol=1e-5)
    assert found.same_as(grid, 1e-6)


def test_several_linear_parts_after_a_displacement_become_one_matrix():
    grid, shift = GRIDS["oblique"], linear(shift=(1, 2, 3))
    field = displacement_transform(np.ones((3, *grid.shape)), grid)
    chain = sitk.CompositeTransform([affine_transform(shift), affine_transform(MATRIX), field])
    np.testing.assert_allclose(split_transform(chain)[0], shift @ MATRIX, atol=1e-9)


def test_linear_transforms_and_bare_displacements_split_too():
    matrix, u, grid = split_transform(affine_transform(MATRIX))
    np.testing.assert_allclose(matrix, MATRIX)
    assert u is None and grid is None
    oblique = GRIDS["oblique"]
    matrix, u, grid = split_transform(displacement_transform(np.ones((3, *oblique.shape)), oblique))
    np.testing.assert_array_equal(matrix, np.eye(4))
    np.testing.assert_allclose(u, 1, atol=1e-6)
    assert grid.same_as(oblique, 1e-6)


def test_other_chains_are_refused():
    grid = GRIDS["oblique"]
    field = displacement_transform(np.ones((3, *grid.shape)), grid)
    for chain in ([field, affine_transform(MATRIX)], [field, field]):
        with pytest.raises(InputError, match="not a displacement followed by"):
            split_transform(sitk.CompositeTransform(chain))
    with pytest.raises(InputError):
        split_transform(sitk.BSplineTransform(3))
