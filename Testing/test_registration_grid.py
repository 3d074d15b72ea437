"""The working grid: whatever the images' grids are, it sees both anatomies the same way round."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import apply, inside, linear, made_grid, made_head, permuted_axes, smallest_determinants, world_of

from RegMambaLib.registration.grid import WIDEST_FADE, canonical, fade_widths, faded, padded, working_grid
from RegMambaLib.spatial.grid import Grid

TURNS = [(0, 0, 0), (12, -20, 15), (0, 0, 90), (85, 10, 5), (180, 0, 0), (40, 130, -70), (54, 54, 54)]
HEAD = ((0.0, 0.0, 0.0), (30.0, 40.0, 35.0), 0.0, 1.0)


def anatomy(grid, center=(0.0, 0.0, 0.0)):
    return inside(world_of(grid) - np.asarray(center), HEAD) > 0


def world_points(grid):
    points = np.round(world_of(grid).reshape(-1, 3), 6)
    return points[np.lexsort(points.T)]


def contains(grid, points, margin):
    index = grid.index(points)
    return bool((index >= margin).all() and (index <= np.array(grid.size) - 1 - margin).all())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_canonical_grid_is_the_same_voxels_turned_towards_lps(turn, flip):
    grid = made_grid((4, 5, 6), (1.0, 2.0, 3.5), turn, (10.0, -20.0, 5.0), flip)
    found = canonical(grid)
    np.testing.assert_allclose(world_points(found), world_points(grid), atol=1e-5)
    direction = np.reshape(found.direction, (3, 3))
    strength = [sum(direction[world, axis] for world, axis in enumerate(p)) for p in itertools.permutations(range(3))]
    assert (np.diag(direction) > 0).all() and np.trace(direction) >= max(strength) - 0.25
    assert canonical(found).same_as(found, 1e-9)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (True, True, True)], ids=str)
def test_the_canonical_grid_does_not_depend_on_how_a_volume_is_stored(order, flips):
    grid = made_grid((4, 5, 6), (1.0, 2.0, 3.5), (12, -20, 15), (10.0, -20.0, 5.0))
    stored = Grid.of(permuted_axes(grid.image(np.zeros(grid.shape)), order, flips))
    assert canonical(stored).same_as(canonical(grid), 1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", TURNS[:4], ids=str)
def test_the_working_grid_holds_both_anatomies_with_a_margin(turn, flip):
    fixed = made_grid((40, 36, 30), (2.0, 3.0, 3.5), turn, (5.0, -3.0, 8.0), flip)
    moving = made_grid((30, 34, 40), (3.0, 3.0, 2.5), (30, 0, 10), (200.0, 100.0, -50.0))
    affine = linear((10, 20, -5), (195.0, 110.0, -40.0))  # the images do not overlap in the world
    other = anatomy(moving, affine[:3, 3])
    grid = working_grid(fixed, anatomy(fixed), moving, other, affine)
    assert grid.spacing == pytest.approx((np.cbrt(2.0 * 3.0 * 3.5),) * 3)
    assert contains(grid, world_of(fixed)[anatomy(fixed)], 6)
    assert contains(grid, apply(np.linalg.inv(affine), world_of(moving)[other]), 6)
    assert canonical(grid).same_as(grid, 1e-9)


def test_an_isotropic_image_keeps_its_voxel_size_and_another_can_be_chosen():
    fixed = made_grid((40, 44, 40), (2.0, 2.0, 2.0))
    own = working_grid(fixed, anatomy(fixed), fixed, anatomy(fixed), np.eye(4))
    chosen = working_grid(fixed, anatomy(fixed), fixed, anatomy(fixed), np.eye(4), spacing=1.5)
    assert own.spacing == (2.0,) * 3 and chosen.spacing == (1.5,) * 3
    offset = own.index(fixed.corners)
    np.testing.assert_allclose(offset, np.round(offset), atol=1e-6)  # voxels fall on the fixed image's


def test_moving_anatomy_far_away_does_not_blow_the_grid_up():
    fixed = made_grid((40, 44, 40), (2.0, 2.0, 2.0))
    away = made_grid((40, 44, 40), (2.0, 2.0, 2.0), center=(5000.0, 0.0, 0.0))
    grid = working_grid(fixed, anatomy(fixed), away, anatomy(away, (5000.0, 0, 0)), np.eye(4))
    assert contains(grid, world_of(fixed)[anatomy(fixed)], 6)
    assert max(grid.size) < 100


def test_a_huge_volume_is_worked_on_coarser_within_the_same_extent():
    fixed = Grid((1000, 900, 800), (0.5, 0.5, 0.5))
    ones = np.ones((800, 900, 1000), bool)
    grid = working_grid(fixed, ones, fixed, ones, np.eye(4))
    assert 12e6 < np.prod(grid.size) < 18e6
    assert contains(grid, fixed.corners, 5.5)


def test_an_empty_foreground_counts_as_the_whole_volume():
    fixed = made_grid((20, 22, 24), (2.0, 2.0, 2.0))
    nothing = np.zeros(fixed.shape, bool)
    grid = working_grid(fixed, nothing, fixed, nothing, np.eye(4))
    assert contains(grid, fixed.corners, 6)


def test_the_fade_goes_from_zero_at_the_border_to_one_inside_and_is_smooth():
    window = faded(np.ones((3, 20, 24, 17)), Grid((17, 24, 20), (1.0, 1.0, 1.0)))[0][0]
    assert window.dtype == np.float32 and window.shape == (20, 24, 17)
    assert window[0].max() == window[:, -1].max() == window[..., 0].max() == 0
    np.testing.assert_array_equal(window[6:-6, 6:-6, 6:-6], 1)
    assert max(np.abs(np.diff(window, axis=a)).max() for a in range(3)) < 0.3
    np.testing.assert_array_equal(window, window[::-1, ::-1, ::-1])


def shifted(grid, voxels):
    """The same displacement (k, j, i) at every voxel."""
    return np.broadcast_to(np.array(voxels, np.float32)[:, None, None, None], (3, *grid.shape)).copy()


def test_a_displacement_gets_as_much_room_to_fade_as_it_needs_along_each_axis():
    grid = made_grid((20, 24, 22), (2.0, 1.5, 1.0), (10, 20, -15), (30.0, -10.0, 50.0), flip=True)
    assert fade_widths(shifted(grid, (0.5, -1.0, 1.9))) == (6, 6, 6)
    u, larger = faded(shifted(grid, (0.5, 4.0, -7.0)), grid)
    assert u.shape[1:] == larger.shape == (22, 24 + 2 * 6, 20 + 2 * 15)
    np.testing.assert_allclose(larger.center, grid.center)
    np.testing.assert_allclose(u[:, 11, 18, 25], (0.5, 4.0, -7.0), rtol=1e-6)
    assert not u[:, 0].any() and not u[:, :, -1].any() and not u[..., 0].any()
    assert smallest_determinants(u).min() > 0.2
    assert fade_widths(shifted(grid, (500.0, 0, 0))) == (WIDEST_FADE, 6, 6)


def test_a_displacement_that_has_room_keeps_its_grid():
    grid = made_grid((30, 24, 22), (2.0, 1.5, 1.0))
    u, same = faded(shifted(grid, (1.0, 1.0, 1.0)), grid)
    assert same == grid and u.shape[1:] == grid.shape


def test_a_volume_is_padded_alike_on_both_sides():
    out = padded(np.ones((2, 3, 4), np.float32), (4, 3, 10))
    assert out.shape == (4, 3, 10) and out.sum() == 24 and out[1:3, :, 3:7].all()


@pytest.mark.parametrize("padding", [-3024, -2000])
def test_padding_around_the_field_of_view_of_a_ct_is_air(padding):
    from RegMambaLib.registration.preprocess import prepare

    grid = made_grid((40, 40, 30), (5.0, 5.0, 5.0))
    hounsfield = (sitk.GetArrayFromImage(made_head(grid)) * 2 - 1000).astype(np.int16)
    _, j, i = np.indices(hounsfield.shape)
    padded = np.where(np.hypot(j - 19.5, i - 19.5) > 20, padding, hounsfield).astype(np.int16)
    plain, other = (prepare(grid.image(values), "fixed") for values in (hounsfield, padded))
    assert other.threshold == pytest.approx(plain.threshold, abs=0.05)
    assert (other.foreground() == plain.foreground()).mean() > 0.99
