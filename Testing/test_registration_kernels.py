"""The forces of refinement against numerical derivatives of plainly computed similarities, and Adam's formula."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import sampled
from scipy import ndimage

from RegMambaLib.registration import kernels, lncc_kernels
from RegMambaLib.spatial.fields import spans_of, whole, within

EPSILON = np.float32(1e-3)
NO_WEIGHT = np.empty((0, 0, 0), np.float32)


def texture(shape, seed=0):
    """Smooth random values in about [0, 1]."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0, mode="nearest")
    return ((field - field.min()) / np.ptp(field)).astype(np.float32)


def fractional(shape, seed=0, reach=2):
    """Displacements that land well between voxels, where the trilinear interpolation has a derivative."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-reach, reach, (3, *shape)) + rng.uniform(0.15, 0.85, (3, *shape))).astype(np.float32)


def lands_inside(u, shape):
    """Where x + u(x) is between the first and the last voxel of every axis."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in u.shape[1:]), indexing="ij")) + u
    return np.all([(p > 0) & (p < n - 1) for p, n in zip(index, shape, strict=True)], axis=0)


def box_sum(volume, radius):
    """Sums over cubes of side 2 radius + 1, zeros outside."""
    for axis in range(3):
        volume = ndimage.correlate1d(volume, np.ones(2 * radius + 1), axis=axis, mode="constant")
    return volume


def lncc_sum(fixed, warped, radius, weight=1.0):
    """Sum of the squared local correlations of fixed and warped moving image, float64."""
    f, m, n = fixed.astype(np.float64), warped, (2 * radius + 1) ** 3
    fs, ms = box_sum(f, radius), box_sum(m, radius)
    common = float(EPSILON)
    cross = box_sum(f * m, radius) - fs * ms / n + common
    variances = (box_sum(f * f, radius) - fs**2 / n + common) * (box_sum(m * m, radius) - ms**2 / n + common)
    return float((weight * cross**2 / variances).sum())


def lncc_force(fixed, moving, u, radius, weight=NO_WEIGHT, slabs=2, spans=None):
    mean, variance = np.empty_like(fixed), np.empty_like(fixed)
    lncc_kernels.fixed_moments(fixed, radius, EPSILON, slabs, mean, variance)
    force = np.full_like(u, np.nan)
    spans = whole(fixed.shape) if spans is None else spans
    value = lncc_kernels.lncc_force(fixed, moving, u, mean, variance, weight, radius, EPSILON, slabs, spans, force)
    return force, value


def slope(function, u, direction, step=1e-3):
    """Central difference of a function of the displacement along a direction."""
    u = u.astype(np.float64)
    return (function(u + step * direction) - function(u - step * direction)) / (2 * step)


def directions(u, shape, count=4):
    """A random direction at all voxels, and some at one voxel only, all where the displacement lands inside."""
    rng = np.random.default_rng(7)
    where = lands_inside(u, shape)
    yield rng.normal(size=u.shape) * where
    for voxel in rng.permutation(np.argwhere(where))[:count]:
        single = np.zeros(u.shape)
        single[(slice(None), *voxel)] = rng.normal(size=3)
        yield single


def assert_gradient(force, function, u, shape, tolerance=2e-3):
    scale = float(np.abs(force).max())
    for direction in directions(u, shape):
        expected = slope(function, u, direction)
        assert abs((force * direction).sum() - expected) < tolerance * max(scale, abs(expected))


def central_differences(volume):
    """(3, k, j, i); one-sided at the border, 0 along an axis of one voxel."""
    slopes = [np.gradient(volume, axis=axis) if n > 1 else np.zeros_like(volume) for axis, n in enumerate(volume.shape)]
    return np.stack(slopes)


def assert_lncc_force(force, fixed, moving, u, radius, weight=1.0, tolerance=2e-3):
    """The force is the derivative by the warped image's values, times the central differences of that image."""
    warped = sampled(moving, u)
    scale, slopes, rng = float(np.abs(force).max()), central_differences(warped), np.random.default_rng(7)
    for share in (1.0, 0.05, 0.01):
        direction = rng.normal(size=u.shape) * (rng.uniform(size=u.shape[1:]) < share)
        change = (slopes * direction).sum(0)
        expected = slope(lambda w: lncc_sum(fixed, w, radius, weight), warped, change)
        assert abs((force * direction).sum() - expected) < tolerance * max(scale, abs(expected))


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("shape", [(12, 11, 13), (3, 14, 4)], ids=["volume", "slab thinner than the window"])
def test_window_sums_of_the_fixed_image_are_plain_sums(radius, shape):
    fixed = texture(shape)
    mean, variance = np.empty_like(fixed), np.empty_like(fixed)
    lncc_kernels.fixed_moments(fixed, radius, EPSILON, 2, mean, variance)
    sums, squares = box_sum(fixed.astype(np.float64), radius), box_sum(fixed.astype(np.float64) ** 2, radius)
    np.testing.assert_allclose(mean, sums, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, squares - sums**2 / (2 * radius + 1) ** 3 + EPSILON, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("weighted", [False, True], ids=["everywhere", "weighted"])
def test_the_lncc_force_follows_the_derivative_of_the_summed_lncc(radius, weighted):
    shape = (14, 13, 12)
    fixed, moving, u = texture(shape), texture(shape, 1), fractional(shape)
    weight = np.random.default_rng(2).uniform(0, 1, shape).astype(np.float32) if weighted else NO_WEIGHT
    force, value = lncc_force(fixed, moving, u, radius, weight)
    plain = weight if weighted else 1.0
    np.testing.assert_allclose(value, lncc_sum(fixed, sampled(moving, u), radius, plain), rtol=1e-4)
    assert_lncc_force(force, fixed, moving, u, radius, plain)


@pytest.mark.parametrize("shape", [(3, 9, 4), (1, 12, 11), (2, 2, 2)], ids=str)
def test_the_lncc_force_holds_for_volumes_thinner_than_the_window(shape):
    fixed, moving, u = texture(shape), texture(shape, 1), fractional(shape, reach=1)
    u[[n == 1 for n in shape]] = 0
    force, value = lncc_force(fixed, moving, u, 2, slabs=1)
    assert np.isfinite(force).all()
    np.testing.assert_allclose(value, lncc_sum(fixed, sampled(moving, u), 2), rtol=1e-4)
    assert_lncc_force(force, fixed, moving, u, 2)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("slabs", [2, 3, 5, 13])
def test_the_lncc_force_does_not_depend_on_how_the_volume_is_shared(radius, slabs):
    shape = (13, 12, 11)
    fixed, moving, u = texture(shape), texture(shape, 1), fractional(shape)
    weight = texture(shape, 4)
    one, many = lncc_force(fixed, moving, u, radius, weight, 1), lncc_force(fixed, moving, u, radius, weight, slabs)
    np.testing.assert_allclose(many[0], one[0], atol=2e-4 * np.abs(one[0]).max())
    np.testing.assert_allclose(many[1], one[1], rtol=1e-5)


def test_flat_images_and_zero_weights_give_no_lncc_force():
    shape = (15, 15, 15)
    flat, rough, u = np.full(shape, 0.7, np.float32), texture(shape), fractional(shape)
    core = (slice(None), *(slice(5, -5),) * 3)  # windows at the border see the zeros outside
    for fixed, moving in ((flat, rough), (rough, flat), (flat, flat)):
        assert np.abs(lncc_force(fixed, moving, u, 2)[0][core]).max() < 0.02
    force, value = lncc_force(rough, texture(shape, 1), u, 2, np.zeros(shape, np.float32))
    assert not force.any() and value == 0


def test_identical_images_have_an_lncc_of_one_a_window():
    fixed = texture((10, 10, 10))
    assert lncc_force(fixed, fixed, np.zeros((3, 10, 10, 10), np.float32), 2)[1] == pytest.approx(1000, rel=0.02)


def test_within_spans_the_lncc_force_counts_the_windows_centred_there():
    shape = (14, 13, 12)
    mask = np.zeros(shape, bool)
    mask[4:9, 3:9, 4:9] = mask[6, 6, 2:11] = True
    spans = spans_of(mask, 2)
    active = within(spans, shape[2])
    assert 0.2 < active.mean() < 0.9
    fixed, moving = texture(shape) * mask, texture(shape, 1) * mask
    u = fractional(shape, reach=1) / 2  # what is not 0 stays within the spans
    force, value = lncc_force(fixed, moving, u, 2, spans=spans)
    assert np.isnan(force[:, ~active]).all()
    weight = active.astype(float)
    np.testing.assert_allclose(value, lncc_sum(fixed, sampled(moving, u), 2, weight), rtol=1e-4)
    force[:, ~active] = 0
    warped = sampled(moving, u) * active
    direction = np.random.default_rng(0).normal(size=u.shape) * active
    change = (central_differences(warped) * direction).sum(0)
    expected = slope(lambda w: lncc_sum(fixed, w, 2, weight), warped, change)
    assert (force * direction).sum() == pytest.approx(expected, abs=2e-3 * float(np.abs(force).max()))
    everywhere, _ = lncc_force(fixed, moving, u, 2)
    core = mask & ~ndimage.binary_dilation(~active, np.ones((3, 3, 3)), iterations=4)
    np.testing.assert_allclose(force[:, core], everywhere[:, core], atol=1e-3 * np.abs(force[:, active]).max())


def channel_loss(fixed, moving, u, weight=1.0):
    warped = np.stack([sampled(moving[..., n], u) for n in range(moving.shape[-1])], -1)
    return float((weight * np.square(fixed.astype(np.float64) - warped).sum(-1)).sum())


@pytest.mark.parametrize("weighted", [False, True], ids=["everywhere", "weighted"])
@pytest.mark.parametrize(("shape", "channels"), [((8, 9, 7), 12), ((2, 7, 3), 1)], ids=["volume", "thin"])
def test_the_channel_force_points_down_the_squared_difference(shape, channels, weighted):
    fixed, moving = (np.stack([texture(shape, s + n) for n in range(channels)], -1) for s in (0, 50))
    weight = texture(shape, 99) if weighted else NO_WEIGHT
    plain = weight if weighted else 1.0
    u, force = fractional(shape, reach=1), np.full((3, *shape), np.nan, np.float32)
    value = kernels.channel_force(fixed, moving, u, weight, whole(shape), force)
    np.testing.assert_allclose(value, channel_loss(fixed, moving, u, plain), rtol=1e-4)
    assert_gradient(force, lambda v: -channel_loss(fixed, moving, v, plain) / 2, u, shape)


def soft_dice(fixed, moving, u, labels):
    """Sum over labels 1 .. labels - 1 of the Dice of one-hot maps, moving warped trilinearly."""
    total = 0.0
    for label in range(1, labels):
        f, m = fixed == label, sampled(moving == label, u)
        if f.sum() + m.sum() > 0:
            total += 2 * (f * m).sum() / (f.sum() + m.sum())
    return total


def label_map(shape, labels, seed):
    return np.random.default_rng(seed).integers(0, labels, shape).astype(np.int32)


def label_sums(fixed, moving, u, labels):
    overlap, size = np.zeros(labels, np.float32), np.zeros(labels, np.float32)
    kernels.label_overlap(fixed, moving, u, labels, whole(fixed.shape), overlap, size)
    return overlap, size


def label_force(fixed, moving, u, labels):
    force = np.full_like(u, np.nan)
    kernels.label_force(fixed, moving, u, *label_sums(fixed, moving, u, labels), whole(fixed.shape), force)
    return force


@pytest.mark.parametrize("shape", [(7, 8, 9), (1, 5, 6), (2, 2, 2)], ids=str)
def test_label_sums_are_those_of_warped_one_hot_maps(shape):
    fixed, moving, u = label_map(shape, 4, 0), label_map(shape, 4, 1), fractional(shape)
    overlap, size = label_sums(fixed, moving, u, 4)
    for label in range(4):
        f, m = fixed == label, sampled(moving == label, u)
        np.testing.assert_allclose(overlap[label], (f * m).sum(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(size[label], f.sum() + m.sum(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 8, 9), (2, 6, 3)], ids=str)
def test_the_label_force_is_the_derivative_of_the_summed_soft_dice(shape):
    fixed, moving, u = label_map(shape, 4, 0), label_map(shape, 4, 1), fractional(shape, reach=1)
    force = label_force(fixed, moving, u, 4)
    assert_gradient(force, lambda v: soft_dice(fixed, moving, v, 4), u, shape, 5e-3)


def test_background_and_labels_that_never_occur_do_not_pull():
    fixed = moving = np.zeros((5, 5, 5), np.int32)
    assert not label_force(fixed, moving, fractional((5, 5, 5)), 3).any()


OUTWARD = [(axis, sign) for axis in range(3) for sign in (-1, 1)]


@pytest.mark.parametrize(("axis", "sign"), OUTWARD)
def test_nothing_pulls_where_the_displacement_leaves_the_image_on_any_side(axis, sign):
    shape = (8, 8, 8)
    u = np.zeros((3, *shape), np.float32)
    u[axis] = sign * 20.3
    fixed, moving = texture(shape), texture(shape, 1)
    force, _ = lncc_force(fixed, moving, u, 2)
    assert not force[axis].any()
    kernels.channel_force(fixed[..., None], moving[..., None], u, NO_WEIGHT, whole(shape), force)
    assert not force[axis].any()
    force = label_force(label_map(shape, 3, 0), label_map(shape, 3, 1), u, 3)
    np.testing.assert_allclose(force[axis], 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 7, 5), (1, 1, 1), (1, 9, 2)], ids=str)
def test_adam_takes_the_steps_of_its_formula(shape):
    rng = np.random.default_rng(0)
    b1, b2, epsilon = 0.9, 0.99, 1e-3
    first, second = np.zeros((3, *shape), np.float32), np.zeros(shape, np.float32)
    m, v = np.zeros((3, *shape)), np.zeros(shape)
    out = np.empty_like(first)
    for n in range(1, 6):
        gradient = rng.normal(size=(3, *shape)).astype(np.float32)
        numbers = (np.float32(value) for value in (b1, b2, 1 / (1 - b1**n), 1 / (1 - b2**n), epsilon))
        largest = kernels.adam(gradient, first, second, *numbers, whole(shape), out)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * np.square(gradient, dtype=np.float64).sum(0)
        expected = m / (1 - b1**n) / (np.sqrt(v / (1 - b2**n)) + epsilon)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(largest, np.sqrt(np.square(expected).sum(0).max()), rtol=1e-4)


def test_adam_rests_where_there_is_no_gradient():
    zero, out = np.zeros((3, 3, 3, 3), np.float32), np.ones((3, 3, 3, 3), np.float32)
    numbers = (np.float32(value) for value in (0.9, 0.99, 10.0, 100.0, 1e-20))
    assert kernels.adam(zero, zero.copy(), zero[0].copy(), *numbers, whole((3, 3, 3)), out) == 0
    assert not out.any()


def test_the_longest_vector_is_looked_for_within_the_spans():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    lengths = np.sqrt(np.square(vectors).sum(0))
    assert kernels.longest(vectors, whole((4, 5, 6))) == pytest.approx(lengths.max(), rel=1e-6)
    spans = np.zeros((4, 5, 2), np.int32)
    assert kernels.longest(vectors, spans) == 0
    spans[2, 1] = 1, 4
    assert kernels.longest(vectors, spans) == pytest.approx(lengths[2, 1, 1:4].max(), rel=1e-6)
