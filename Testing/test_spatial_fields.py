"""Warping, composing, inverting, smoothing and resizing voxel displacements, each against numpy and scipy."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from conftest import determinants, random_displacement, sampled
from scipy import ndimage

from RegMambaLib.spatial import fields, kernels

SHAPES = [(9, 8, 7), (1, 6, 5), (5, 1, 6), (6, 5, 1), (2, 2, 2), (1, 1, 1)]


def noise(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_warping_is_trilinear_with_repeated_borders(shape):
    volume, u = noise(shape), noise((3, *shape), 1, 2.0)
    np.testing.assert_allclose(fields.warp(volume, u), sampled(volume, u), atol=2e-5)


def test_the_warped_volume_may_have_another_size_than_the_displacement():
    volume, u = noise((9, 8, 7)), noise((3, 5, 6, 11), 1, 2.0)
    assert fields.warp(volume, u).shape == (5, 6, 11)
    np.testing.assert_allclose(fields.warp(volume, u), sampled(volume, u), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float64])
def test_nearest_warping_takes_the_nearest_voxel_and_keeps_the_type(shape, dtype):
    volume = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    u = noise((3, *shape), 1, 2.0)
    moved = fields.warp(volume, u, nearest=True)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) + u
    rounded = [np.clip(np.floor(p + 0.5), 0, n - 1).astype(int) for p, n in zip(index, shape, strict=True)]
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, volume[tuple(rounded)])


def test_large_labels_survive_nearest_warping_exactly():
    volume = np.array([[[2**31 - 1, 16_777_217], [2_035, 0]]], np.int64)
    np.testing.assert_array_equal(fields.warp(volume, np.zeros((3, 1, 2, 2)), nearest=True), volume)


def test_a_zero_displacement_changes_no_value():
    volume = noise((6, 7, 8), scale=1e6)
    np.testing.assert_array_equal(fields.warp(volume, np.zeros((3, 6, 7, 8))), volume)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_a_constant_volume_stays_constant_wherever_it_is_sampled(value):
    volume = np.full((5, 6, 7), value, np.float32)
    u = noise((3, 5, 6, 7), scale=1e4)
    np.testing.assert_array_equal(fields.warp(volume, u), volume)
    np.testing.assert_allclose(fields.smooth(volume, 1.5), volume, rtol=1e-6)
    np.testing.assert_allclose(fields.resize(volume, (3, 9, 4)), value, rtol=1e-6)


@pytest.mark.parametrize("nearest", [False, True])
def test_positions_far_outside_take_the_border_value(nearest):
    volume = noise((4, 5, 6))
    u = np.zeros((3, 4, 5, 6), np.float32)
    u[0], u[1], u[2] = -1e9, 1e9, -1e9
    np.testing.assert_array_equal(fields.warp(volume, u, nearest=nearest), volume[0, -1, 0])


def test_nan_in_an_image_stays_nan_and_does_not_spread():
    volume = noise((6, 6, 6))
    volume[2, 3, 4] = np.nan
    moved = fields.warp(volume, np.full((3, 6, 6, 6), 0.25, np.float32))
    assert np.isnan(moved[1:3, 2:4, 3:5]).all() and np.isnan(moved).sum() == 8


def test_a_transposed_float64_volume_warps_like_its_contiguous_copy():
    volume = noise((6, 7, 8)).astype(np.float64).transpose(2, 0, 1)
    u = noise((3, 8, 6, 7), 1)
    np.testing.assert_array_equal(fields.warp(volume, u), fields.warp(np.ascontiguousarray(volume, np.float32), u))


@pytest.mark.parametrize("shape", SHAPES)
def test_composing_moves_by_the_inner_displacement_first(shape):
    outer, inner = noise((3, *shape), 0), noise((3, *shape), 1)
    expected = inner + np.stack([sampled(channel, inner) for channel in outer])
    np.testing.assert_allclose(fields.compose(outer, inner), expected, atol=2e-5)


def test_composing_with_a_scale_scales_the_inner_displacement():
    outer, inner = noise((3, 5, 6, 7), 0), noise((3, 5, 6, 7), 1)
    out = np.empty_like(outer)
    kernels.compose(outer, inner, np.float32(0.25), fields.whole((5, 6, 7)), out)
    np.testing.assert_allclose(out, fields.compose(outer, inner / 4), atol=1e-6)


def test_warping_by_a_composition_is_warping_twice():
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (20, 22, 18)), indexing="ij"))
    volume = np.sin(grid[0] / 9) * np.cos(grid[1] / 8) + grid[2] / 20
    outer, inner = (random_displacement((20, 22, 18), sigma=4, smallest=0.6, seed=s) for s in (1, 2))
    once = fields.warp(volume, fields.compose(outer, inner))
    twice = fields.warp(fields.warp(volume, outer), inner)
    core = (slice(4, -4),) * 3
    np.testing.assert_allclose(once[core], twice[core], atol=0.02)


@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 6, 5), (2, 3, 1), (30, 4, 3)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.73, 4.0])
def test_smoothing_is_scipys_gaussian_with_repeated_borders(shape, sigma):
    field = noise((3, *shape))
    taps = fields.gaussian_taps(sigma)
    expected = field.astype(np.float64)
    for axis in (1, 2, 3):
        expected = ndimage.correlate1d(expected, taps.astype(np.float64), axis=axis, mode="nearest")
    np.testing.assert_allclose(fields.smooth(field, sigma), expected, atol=3e-6)
    np.testing.assert_allclose(fields.smooth(field[1], sigma), expected[1], atol=3e-6)


@pytest.mark.parametrize("slabs", [1, 2, 3, 7, 20])
def test_smoothing_gives_the_same_for_any_number_of_slabs(slabs):
    field, taps = noise((2, 11, 6, 5)), fields.gaussian_taps(1.7)
    one, many = np.empty_like(field), np.empty_like(field)
    spans = fields.whole((11, 6, 5))
    kernels.smooth(field, taps, 1, spans, one)
    kernels.smooth(field, taps, slabs, spans, many)
    np.testing.assert_array_equal(one, many)


def test_gaussian_taps_are_symmetric_sum_to_one_and_reach_at_least_one_voxel():
    for sigma, size in ((0.1, 3), (0.7, 5), (1.73, 9), (3.0, 13)):
        taps = fields.gaussian_taps(sigma)
        assert taps.size == size and taps.dtype == np.float32
        np.testing.assert_allclose(taps.sum(), 1, atol=1e-6)
        np.testing.assert_array_equal(taps, taps[::-1])


def test_no_smoothing_returns_a_copy():
    field = noise((4, 5, 6))
    result = fields.smooth(field, 0.0)
    np.testing.assert_array_equal(result, field)
    assert not np.shares_memory(result, field)


@pytest.mark.parametrize("new", [(9, 8, 7), (18, 16, 14), (4, 5, 3), (1, 1, 1), (7, 13, 22)])
def test_resizing_samples_the_same_extent_trilinearly(new):
    volume = noise((9, 8, 7))
    positions = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(new, volume.shape, strict=True)]
    expected = ndimage.map_coordinates(
        volume.astype(np.float64), np.stack(np.meshgrid(*positions, indexing="ij")), order=1, mode="nearest"
    )
    np.testing.assert_allclose(fields.resize(volume, new), expected, atol=3e-6)


@pytest.mark.parametrize("old", [(9, 8, 7), (1, 1, 1), (2, 31, 5)])
@pytest.mark.parametrize("new", [(4, 4, 3), (1, 1, 1), (5, 20, 2), (9, 8, 7), (12, 3, 14)])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 4.0])
def test_shrinking_is_smoothing_and_resizing_in_one(old, new, sigma):
    for volume in (noise(old), 1e30 * noise(old), np.full(old, 3, np.float32)):
        expected = fields.resize(fields.smooth(volume, sigma, truncate=3.0), new)
        np.testing.assert_allclose(fields.shrink(volume, new, sigma), expected, atol=3e-6 * np.abs(volume).max())
    mask = noise(old) > 0
    np.testing.assert_array_equal(fields.shrink(mask, new, sigma), fields.shrink(mask.astype(np.float32), new, sigma))


def test_a_resized_displacement_counts_in_the_new_voxels():
    u = np.ones((3, 6, 8, 10), np.float32)
    finer = fields.resize_displacement(u, (12, 8, 5))
    np.testing.assert_allclose(finer.reshape(3, -1), np.array([[2.0], [1.0], [0.5]]) * np.ones(480), rtol=1e-6)


def test_displacements_survive_going_to_a_finer_grid_and_back():
    u = random_displacement((16, 18, 14), sigma=3, smallest=0.5)
    back = fields.resize_displacement(fields.resize_displacement(u, (32, 36, 28)), (16, 18, 14))
    assert np.abs(back - u).max() < 0.15 * np.abs(u).max()


@pytest.mark.parametrize(
    ("sigma", "smallest"), [(5.0, 0.5), (3.0, 0.2), (2.0, 0.15), (1.5, 0.3)], ids=lambda value: str(value)
)
def test_an_inverse_undoes_a_strong_deformation_at_every_voxel_it_can_reach(sigma, smallest):
    u = random_displacement((26, 24, 28), sigma=sigma, smallest=smallest, seed=3, faded=True)
    assert determinants(u).min() == pytest.approx(smallest, abs=0.01)
    v, error = fields.invert(u)
    round_trip = v + np.stack([sampled(channel, v) for channel in u])
    length = np.sqrt(np.square(round_trip).sum(0))
    np.testing.assert_allclose(error, length, atol=1e-3)
    assert length.max() < 0.0051
    forth = fields.compose(v, u)
    assert np.sqrt(np.square(forth).sum(0)).mean() < 0.1  # between voxels v is only interpolated


def test_the_inverse_of_a_shift_is_the_opposite_shift_also_beyond_the_border():
    u = np.empty((3, 12, 11, 10), np.float32)
    u[0], u[1], u[2] = 7.3, -4.6, 20.0
    v, error = fields.invert(u)
    np.testing.assert_allclose(v, -u, atol=5e-3)
    assert error.max() < 5e-3


@pytest.mark.parametrize("seed", range(6))
def test_an_inverse_is_as_good_where_it_leaves_the_grid_on_any_side(seed):
    u = random_displacement((20, 20, 20), sigma=2.5, smallest=0.3, seed=seed)
    assert fields.invert(u)[1].max() < 0.0051


def test_the_inverse_of_nothing_is_nothing():
    v, error = fields.invert(np.zeros((3, 4, 1, 5)))
    assert not v.any() and not error.any()


def test_a_tighter_tolerance_gives_a_smaller_error():
    u = random_displacement((20, 20, 20), sigma=2.5, smallest=0.3, faded=True)
    loose, tight = (fields.invert(u, tolerance=t)[1] for t in (0.05, 0.0005))
    assert tight.max() < 0.0006 < loose.max() <= 0.05


def test_inverting_a_fold_ends_and_says_where_it_failed():
    u = np.zeros((3, 16, 16, 16), np.float32)
    u[2, 4:12, 4:12] = -np.float32(2.5) * (np.arange(16) - 8) * (np.abs(np.arange(16) - 8) < 4)
    v, error = fields.invert(u)
    assert np.isfinite(v).all() and np.isfinite(error).all()
    assert error[0].max() < 0.005


def blob(shape=(9, 10, 12)):
    mask = np.zeros(shape, bool)
    mask[3:6, 4:7, 3:8] = mask[4, 5, 10] = True
    return mask


def test_spans_reach_from_the_first_to_the_last_voxel_of_every_row():
    spans = fields.spans_of(blob(), 0)
    assert spans.dtype == np.int32 and spans.shape == (9, 10, 2)
    assert spans[3, 4].tolist() == [3, 8] and spans[4, 5].tolist() == [3, 11]
    assert (spans[0] == spans[0, 0, 0]).all() and not fields.within(spans, 12)[0].any()
    np.testing.assert_array_equal(fields.within(fields.whole((2, 3, 4)), 4), np.ones((2, 3, 4), bool))


@pytest.mark.parametrize("margin", [1, 2, 5])
def test_spans_with_a_margin_hold_everything_that_near_and_no_row_farther(margin):
    mask = blob()
    near = ndimage.maximum_filter(mask, 2 * margin + 1)
    found = fields.within(fields.spans_of(mask, margin), 12)
    assert found[near].all()
    assert not found[~near.any(axis=2)].any()
    assert not fields.spans_of(np.zeros((4, 5, 6), bool), margin).any()


def test_kernels_write_within_spans_what_they_write_everywhere_and_nothing_outside():
    shape = (9, 10, 12)
    outer, inner = noise((3, *shape)), noise((3, *shape), 1)
    spans = fields.spans_of(blob(), 1)
    active = fields.within(spans, 12)
    taps = fields.gaussian_taps(1.2)
    composed, smoothed = (np.full_like(outer, 99) for _ in range(2))
    kernels.compose(outer, inner, np.float32(1), spans, composed)
    kernels.smooth(outer, taps, 3, spans, smoothed)
    for found, expected in ((composed, fields.compose(outer, inner)), (smoothed, fields.smooth(outer, 1.2))):
        np.testing.assert_allclose(found[:, active], expected[:, active], atol=1e-6)
        assert (found[:, ~active] == 99).all()


def test_one_thread_gives_the_same_numbers_as_all():
    u, volume = random_displacement((15, 14, 13)), noise((15, 14, 13))
    many = fields.warp(volume, u), fields.compose(u, u), fields.smooth(u, 1.3), fields.invert(u)[0]
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = fields.warp(volume, u), fields.compose(u, u), fields.smooth(u, 1.3), fields.invert(u)[0]
    finally:
        numba.set_num_threads(threads)
    for first, second in zip(many, one, strict=True):
        np.testing.assert_array_equal(first, second)
