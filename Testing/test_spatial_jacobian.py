"""Jacobian determinants of voxel displacements against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import determinants, made_grid, random_displacement, smallest_determinants

from RegMambaLib.errors import InputError
from RegMambaLib.spatial.itk import displacement_transform, voxels_to_mm
from RegMambaLib.spatial.jacobian import jacobian_determinant

SHAPES = [(8, 9, 7), (2, 5, 6), (5, 2, 2), (2, 2, 2), (3, 3, 3)]


def noise(shape, scale):
    return (np.random.default_rng(0).normal(size=(3, *shape)) * scale).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_central_determinants_are_numpys(shape, scale):
    u = noise(shape, scale)
    np.testing.assert_allclose(jacobian_determinant(u), determinants(u), atol=2e-5 * (1 + scale) ** 3, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_strict_determinants_are_the_smallest_of_all_nine_differences(shape, scale):
    u = noise(shape, scale)
    strict = jacobian_determinant(u, strict=True)
    np.testing.assert_allclose(strict, smallest_determinants(u), atol=5e-5 * (1 + scale) ** 3, rtol=1e-4)
    assert (strict <= jacobian_determinant(u)).all()


def test_a_linear_map_has_its_determinant_everywhere_under_both_schemes():
    matrix = np.array([[1.2, 0.1, -0.2], [0.05, 0.9, 0.1], [0.0, 0.3, 1.1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (6, 7, 8)), indexing="ij")).astype(float)
    u = np.einsum("ab,bkji->akji", matrix - np.eye(3), index)
    for strict in (False, True):
        np.testing.assert_allclose(jacobian_determinant(u, strict=strict), np.linalg.det(matrix), rtol=1e-4)


def test_a_zigzag_that_central_differences_miss_is_a_fold_for_the_strict_scheme():
    u = np.zeros((3, 8, 8, 8), np.float32)
    u[2, 4, 4] = 1.5 * (np.arange(8) % 2)
    assert jacobian_determinant(u).min() > 0
    assert jacobian_determinant(u, strict=True).min() < 0


def test_a_huge_shift_does_not_disturb_the_determinant():
    u = np.full((3, 5, 5, 5), 1e6, np.float32)
    np.testing.assert_array_equal(jacobian_determinant(u), 1)


def test_nan_in_a_displacement_does_not_pass_as_healthy():
    u = np.zeros((3, 5, 5, 5), np.float32)
    u[1, 2, 2, 2] = np.nan
    assert np.isnan(jacobian_determinant(u)).any()


@pytest.mark.parametrize("shape", [(3, 1, 5, 5), (2, 5, 5, 5), (5, 5, 5), (3, 5, 5, 5, 1)])
def test_a_shape_without_a_jacobian_is_refused(shape):
    with pytest.raises(InputError, match="shape"):
        jacobian_determinant(np.zeros(shape))


def test_the_determinant_is_that_of_the_world_map_on_an_oblique_left_handed_grid():
    grid = made_grid((14, 13, 12), (1.5, 1.0, 2.5), turn=(20, -30, 40), flip=True)
    u = random_displacement(grid.shape, sigma=2.5, smallest=0.4)
    transform = displacement_transform(u, grid)
    index = np.array([[6, 5, 4], [7, 6, 6], [4, 8, 7]])
    world = grid.world(index)
    # Differentiate the world map itself, by steps of one voxel along the grid's axes.
    for (i, j, k), point in zip(index, world, strict=True):
        columns = [
            (np.subtract(transform.TransformPoint(point + step), transform.TransformPoint(point - step))) / 2
            for step in grid.axes.T
        ]
        expected = np.linalg.det(np.stack(columns, 1)) / np.linalg.det(grid.axes)
        np.testing.assert_allclose(jacobian_determinant(u)[k, j, i], expected, atol=1e-4)


def test_on_a_grid_along_the_world_axes_it_is_simpleitks():
    grid = made_grid((14, 13, 12), (1.5, 1.0, 2.5))
    u = random_displacement(grid.shape, sigma=2.5, smallest=0.4)
    field = grid.image(voxels_to_mm(u, grid))
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    core = (slice(1, -1),) * 3
    np.testing.assert_allclose(jacobian_determinant(u)[core], theirs[core], atol=1e-4)
