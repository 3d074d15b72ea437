"""The map of the cortex: what it is worked out from, written plainly, and that it is as sharp as the image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from RegMambaLib.registration.cortex import DARKER, OVERALL, PURE, SIGMA, WHITER, cortex_map
from RegMambaLib.spatial import fields

WHITE, CORTEX, FLUID = range(3)
# The resolution of the shares and that of the image.
SHAPES = [
    ((12, 13, 11), (12, 13, 11)),
    ((12, 13, 11), (24, 26, 22)),
    ((7, 9, 11), (13, 20, 17)),
    ((8, 9, 11), (4, 18, 21)),  # the network's grid has 8 voxels at least, more than a slab
    ((1, 9, 8), (1, 18, 16)),
    ((7, 1, 9), (14, 2, 13)),
    ((8, 5, 1), (8, 5, 1)),
    ((1, 1, 1), (2, 3, 1)),
    ((1, 1, 1), (1, 1, 1)),
]
# Brightness of white matter, cortex and fluid in the made-up slabs.
BRIGHT = 0.75, 0.5, 0.2


def random_shares(shape, seed=0):
    """Mostly nearly of one class, and of none of the three in a corner."""
    shares = np.random.default_rng(seed).dirichlet([0.15] * 4, shape).astype(np.float32)[..., :3]
    shares[: shape[0] // 3, : shape[1] // 2, : shape[2] // 2] = 0
    return shares


def random_image(shares, shape, seed=0):
    """Of random voxels, a tenth of them background, and at the resolution of the shares about as bright as they say."""
    rng = np.random.default_rng(seed)
    coarse = shares @ np.array(BRIGHT, np.float32) + 0.2 * rng.random(shares.shape[:3], np.float32)
    image = fields.resize(coarse, shape) + 0.4 * (rng.random(shape, np.float32) - 0.5)
    return np.where(rng.random(shape) < 0.1, 0, np.clip(image, 0, 1)).astype(np.float32), coarse


def written_plainly(image, coarse, shares):
    half = tuple(max(1, n // 2) for n in coarse.shape)

    def around(volume):
        return ndimage.gaussian_filter(fields.resize(volume, half).astype(float), SIGMA, truncate=3.0, mode="nearest")

    if not all((shares[..., number] > PURE).any() for number in (WHITE, CORTEX)):
        return np.zeros(image.shape)
    means = []
    for share in np.moveaxis(shares, -1, 0):
        pure = np.where(share > PURE, share, 0).astype(float)
        overall = (pure * coarse).sum() / pure.sum() if pure.any() else 0
        means.append((around(pure * coarse) + OVERALL * overall) / (around(pure) + OVERALL))
    white, cortex, fluid = means
    cortex = np.minimum(cortex, white - WHITER)
    fluid = np.minimum(fluid, cortex - DARKER)
    white, cortex, fluid = (fields.resize(mean, image.shape).astype(float) for mean in (white, cortex, fluid))
    way = (image - cortex) / (np.where(image > cortex, white, fluid) - cortex)
    share = fields.resize(np.minimum(shares.sum(-1), 1), image.shape)
    return np.where(image > 0, share * np.clip(1.5 - 2 * way, 0, 1), 0)


def assert_is_a_map_of(found, image):
    assert found.shape == image.shape and found.dtype == np.float32 and found.flags.c_contiguous
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    assert not found[image == 0].any()


@pytest.mark.parametrize(("own", "shape"), SHAPES)
def test_a_map_is_what_the_scheme_written_plainly_makes(own, shape):
    shares = random_shares(own)
    if shares.size == 3:
        shares[:] = 0.1, 0.8, 0.1
    image, coarse = random_image(shares, shape)
    found = cortex_map(image, coarse, shares)
    assert_is_a_map_of(found, image)
    np.testing.assert_allclose(found, written_plainly(image, coarse, shares), atol=2e-3)


def test_a_view_of_more_channels_serves_as_well_and_nothing_given_changes():
    own, shape = SHAPES[2]
    channels = np.concatenate([np.ones((*own, 2), np.float32), random_shares(own)], -1)
    image, coarse = random_image(channels[..., 2:], shape)
    given = [array.copy() for array in (image, coarse, channels)]
    found = cortex_map(image, coarse, channels[..., 2:])
    np.testing.assert_array_equal(found, cortex_map(image, coarse, np.ascontiguousarray(channels[..., 2:])))
    for array, before in zip((image, coarse, channels), given, strict=True):
        np.testing.assert_array_equal(array, before)


def slab(ratio, first=20.0, last=23.5):
    """Fluid up to `first`, cortex up to `last`, then white matter along x: amounts per voxel of 1 mm, and coarser.

    The image is that of 1 mm at a ratio of 2 to its shares, and that of 2 mm at a ratio of 1.
    """
    below = [np.clip(border - np.arange(48), 0, 1) for border in (first, last)]
    row = np.stack([1 - below[1], below[1] - below[0], below[0]], -1)
    amounts = np.broadcast_to(row, (12, 120, 48, 3)).astype(np.float32)
    coarse = amounts.reshape(6, 2, 60, 2, 24, 2, 3).mean((1, 3, 5))
    return (amounts if ratio == 2 else coarse), coarse


def biased(shape, axis):
    """Brightness from 0.6 to 1 along an axis."""
    ramp = 0.6 + 0.4 * (np.arange(shape[axis]) + 0.5) / shape[axis]
    return ramp.reshape([-1 if n == axis else 1 for n in range(3)]).astype(np.float32)


@pytest.mark.parametrize("axis", [None, 1, 2])
@pytest.mark.parametrize("last", [23.0, 23.5, 25.5])
def test_a_slab_of_cortex_is_found_as_sharp_as_the_image_under_any_bias(last, axis):
    amounts, shares = slab(2, last=last)
    image, coarse = (parts @ np.array(BRIGHT, np.float32) for parts in (amounts, shares))
    if axis is not None:
        image, coarse = (volume * biased(volume.shape, axis) for volume in (image, coarse))
        if axis == 1:
            # No one brightness tells cortex from white matter everywhere.
            assert image[:, 0, -1].max() < image[:, -1, 21].min()
    found, true = cortex_map(image, coarse, shares), amounts[..., CORTEX]
    assert_is_a_map_of(found, image)
    np.testing.assert_allclose(found.sum(2), last - 20, atol=0.2)
    np.testing.assert_allclose(found, true, atol=0.2)
    as_coarse = np.abs(fields.resize(shares[..., CORTEX], image.shape) - true).mean()
    assert np.abs(found - true).mean() < 0.25 * as_coarse


def test_at_the_resolution_of_the_shares_a_voxel_half_way_to_its_neighbour_is_half_cortex():
    amounts, shares = slab(1, first=20.0, last=25.0)
    image = shares @ np.array(BRIGHT, np.float32)
    np.testing.assert_allclose(cortex_map(image, image, shares), amounts[..., CORTEX], atol=1e-3)


def test_what_is_neither_cortex_nor_white_matter_nor_fluid_is_no_cortex_however_bright_it_is():
    amounts, shares = slab(2)
    image, coarse = (parts @ np.array(BRIGHT, np.float32) for parts in (amounts, shares))
    image[:, 40:60, 30:40], coarse[:, 20:30, 15:20] = BRIGHT[CORTEX], BRIGHT[CORTEX]
    assert cortex_map(image, coarse, shares)[:, 45:55, 32:38].min() > 0.9
    without = shares.copy()
    without[:, 20:30, 15:20] = 0
    found = cortex_map(image, coarse, without)
    assert not found[:, 41:59, 31:39].any() and found[:, 45:55, 21].min() > 0.9


def test_where_a_class_is_far_away_its_brightness_is_that_of_all_its_voxels():
    """As that of fluid is in stripped images."""
    amounts, shares = slab(2, first=20.5, last=25.0)
    image, coarse = (parts @ np.array(BRIGHT, np.float32) for parts in (amounts, shares))
    shares[:, 8:][shares[:, 8:, :, FLUID] > PURE] = 0.2, 0.2, 0.6  # of which none is pure
    found = cortex_map(image, coarse, shares)[:, -20:]
    np.testing.assert_allclose(found, amounts[:, -20:, :, CORTEX], atol=0.02)


def made(value):
    """An image with its coarser self; brightness is random up to a value, or constant where that is negative."""
    shares = random_shares((9, 8, 10))
    image, coarse = random_image(shares, (18, 16, 20))
    if value < 0:
        image[:], coarse[:] = -value, -value
        return image, coarse, shares
    return image * np.float32(value), coarse * np.float32(value), shares


@pytest.mark.parametrize(
    "value",
    [1, 1e-3, 1e-30, 1e3, 1e6, 1e30, 1e38, -1, -0.5, -0.01, -1e-6, -1e3, -1e8, -1e30],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_constant_faint_and_huge_images_have_a_map_like_any_other(value):
    image, coarse, shares = made(value)
    found = cortex_map(image, coarse, shares)
    assert_is_a_map_of(found, image)
    if -10 < value < 0:
        assert not found.any()


def test_an_empty_image_and_shares_of_nothing_have_an_empty_map():
    image, coarse, shares = made(1)
    assert not cortex_map(np.zeros_like(image), np.zeros_like(coarse), shares).any()
    assert not cortex_map(image, coarse, np.zeros_like(shares)).any()


@pytest.mark.parametrize("kept", [(), (CORTEX,), (WHITE,), (FLUID,), (WHITE, CORTEX), (CORTEX, FLUID), (WHITE, FLUID)])
def test_classes_may_be_missing(kept):
    image, coarse, shares = made(1)
    shares[..., [n for n in range(3) if n not in kept]] = 0
    assert_is_a_map_of(cortex_map(image, coarse, shares), image)
    sure = np.zeros_like(shares)
    if kept:
        sure[..., kept[0]] = 1
    assert_is_a_map_of(cortex_map(image, coarse, sure), image)


@pytest.mark.parametrize("missing", [WHITE, CORTEX])
def test_where_no_voxel_tells_how_bright_white_matter_or_cortex_is_there_is_no_map(missing):
    image, coarse, shares = made(1)
    shares[..., missing] = np.minimum(shares[..., missing], np.float32(PURE))
    assert not cortex_map(image, coarse, shares).any()
