"""Where voxels are in the world, against SimpleITK, on grids as scanners make them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import made_grid, permuted_axes, world_of

from RegMambaLib.spatial.grid import Grid

GRIDS = {
    "plain": made_grid((7, 6, 5), (1.0, 1.0, 1.0)),
    "anisotropic": made_grid((9, 6, 4), (0.8, 1.5, 4.0), center=(12.0, -40.0, 300.0)),
    "oblique": made_grid((7, 8, 5), (1.2, 1.0, 3.0), turn=(30, -20, 55), center=(-7.0, 9.0, 2.0)),
    "left-handed": made_grid((7, 8, 5), (1.2, 1.0, 3.0), turn=(170, 20, -35), flip=True),
}
each = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def random_grid(seed):
    """Any size, spacing, turn, place and handedness."""
    rng = np.random.default_rng(seed)
    size, spacing = rng.integers(2, 13, 3), rng.uniform(0.3, 6.0, 3)
    places = rng.uniform(-180, 180, 3), rng.uniform(-300, 300, 3)
    return made_grid(tuple(size.tolist()), tuple(spacing.tolist()), *places, flip=bool(seed % 2))


def values(grid):
    return np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)


@each
def test_a_grid_keeps_what_the_image_says(grid):
    image = grid.image(values(grid))
    assert (image.GetSize(), image.GetSpacing()) == (grid.size, grid.spacing)
    assert Grid.of(image).same_as(grid, 1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values(grid))
    assert grid.shape == grid.size[::-1]


@each
def test_world_and_index_are_simpleitks(grid):
    image = grid.image(values(grid))
    for index in ((0.0, 0.0, 0.0), (1.5, 2.25, 3.0), (-4.0, 9.0, 20.0)):
        point = image.TransformContinuousIndexToPhysicalPoint(index)
        np.testing.assert_allclose(grid.world(np.array(index)), point, atol=1e-9)
        np.testing.assert_allclose(grid.index(np.array(point)), index, atol=1e-9)
        np.testing.assert_allclose((grid.index_to_world @ [*index, 1])[:3], point, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_index_undoes_world_on_any_grid(seed):
    grid = random_grid(seed)
    index = np.random.default_rng(0).uniform(-20, 20, (4, 5, 3))
    np.testing.assert_allclose(grid.index(grid.world(index)), index, atol=1e-8)
    np.testing.assert_allclose(grid.world(index).mean((0, 1)), grid.world(index.mean((0, 1))), atol=1e-8)


@each
def test_center_and_corners_are_those_of_the_voxels(grid):
    world = world_of(grid).reshape(-1, 3)
    np.testing.assert_allclose(grid.center, world.mean(0), atol=1e-9)
    distance = np.linalg.norm(grid.corners[:, None] - world[None], axis=-1)
    assert distance.min(1).max() < 1e-9 and len(np.unique(distance.argmin(1))) == 8


@each
def test_vector_images_keep_three_components_a_voxel(grid):
    field = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    image = grid.image(field)
    assert image.GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), field)


@pytest.mark.parametrize("seed", range(20))
def test_other_spacing_keeps_the_centre_and_covers_the_extent(seed):
    grid, spacing = random_grid(seed), random_grid(seed + 100).spacing
    other = grid.with_spacing(spacing)
    assert other.spacing == spacing and other.direction == grid.direction
    np.testing.assert_allclose(other.center, grid.center, atol=1e-8)
    old, new = (np.array(g.size) * g.spacing for g in (grid, other))
    assert (new >= old - 2e-3 * np.array(spacing)).all() and (new < old + np.array(spacing)).all()


def test_half_the_spacing_doubles_the_size_exactly():
    grid = GRIDS["oblique"]
    assert grid.with_spacing((0.6, 0.5, 1.5)).size == (14, 16, 10)
    assert grid.with_spacing((0.6, 0.5, 1.5)).with_spacing(grid.spacing).same_as(grid, 1e-6)


@each
def test_a_crop_is_the_same_voxels(grid):
    crop = grid.crop((1, 2, 0), (4, 3, 2))
    np.testing.assert_allclose(world_of(crop), world_of(grid)[0:2, 2:5, 1:5], atol=1e-9)
    assert grid.crop((-3, -3, -3), tuple(n + 3 for n in grid.size)).crop((3, 3, 3), grid.size).same_as(grid, 1e-9)


@each
def test_grids_are_the_same_up_to_a_tolerance_in_voxels(grid):
    def moved(share):
        return Grid(grid.size, grid.spacing, tuple(grid.world(np.full(3, share))), grid.direction)

    assert grid.same_as(moved(5e-4)) and not grid.same_as(moved(0.1)) and grid.same_as(moved(0.1), 0.2)
    assert not grid.same_as(grid.crop((0, 0, 0), (2, 2, 2)))
    swapped = Grid(grid.size, grid.spacing, grid.origin, tuple(np.reshape(grid.direction, (3, 3))[:, ::-1].ravel()))
    assert not grid.same_as(swapped)


@each
@pytest.mark.parametrize("labels", [False, True])
def test_resampling_is_simpleitks(grid, labels):
    source = made_grid((8, 9, 10), (1.1, 0.9, 0.8), turn=(10, 20, 30), center=tuple(grid.center))
    image = sitk.Cast(source.image(values(source)) * 50, sitk.sitkInt16)
    shift = sitk.TranslationTransform(3, (0.7, -0.4, 0.2))
    ours = grid.resample(image, shift, labels=labels, default=-7)
    method = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    kind = sitk.sitkInt16 if labels else sitk.sitkFloat32
    theirs = sitk.Resample(image, grid.image(values(grid)), shift, method, -7, kind)
    assert ours.GetPixelID() == kind
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))


def test_resampling_without_a_transform_goes_through_the_world():
    grid = GRIDS["left-handed"]
    image = grid.image(values(grid))
    stored = permuted_axes(image, (2, 0, 1), (True, False, True))
    np.testing.assert_allclose(sitk.GetArrayFromImage(grid.resample(stored)), values(grid), atol=1e-5)
