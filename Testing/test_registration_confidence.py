"""The map of the error to expect: what raises it, and what leaves it alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from RegMambaLib.registration.confidence import EXPONENTS, FACTOR, expected_error, signs
from RegMambaLib.spatial import fields

SHAPE = (30, 28, 26)


def smooth(seed, sigma=1.5, shape=SHAPE):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (field / field.std()).astype(np.float32)


def texture(seed=0, shape=SHAPE):
    return np.clip(0.5 + 0.15 * smooth(seed, shape=shape), 0, 1).astype(np.float32)


STILL = np.zeros((3, *SHAPE), np.float32)
BENT = np.stack([0.8 * smooth(n, 3.0) for n in (5, 6, 7)])


@pytest.mark.parametrize(
    ("moved", "displacement"),
    [(texture() + 0.1 * smooth(2), STILL), (texture(3), STILL), (texture(), BENT)],
    ids=["noise", "other anatomy", "bent"],
)
def test_noise_other_anatomy_and_bending_raise_it(moved, displacement):
    alike = expected_error(texture(), texture(), STILL, 1.0)
    assert (expected_error(texture(), moved, displacement, 1.0) > 2 * alike).all()


def test_it_is_high_where_the_images_differ():
    moved = texture()
    moved[:, :, SHAPE[2] // 2 :] = texture(3)[:, :, SHAPE[2] // 2 :]
    found = expected_error(texture(), moved, STILL, 1.0)
    assert found[:, :, -4:].min() > 5 * found[:, :, :4].max()


def test_it_is_in_mm_and_a_shift_of_everything_adds_nothing():
    moved = texture() + 0.05 * smooth(2)
    found = expected_error(texture(), moved, BENT, 1.0)
    assert found.dtype == np.float32 and found.shape == SHAPE and np.isfinite(found).all()
    np.testing.assert_allclose(expected_error(texture(), moved, BENT, 2.5), 2.5 * found, rtol=1e-5)
    shift = np.float32([3, -2, 1])[:, None, None, None]
    np.testing.assert_allclose(expected_error(texture(), moved, BENT + shift, 1.0), found, rtol=1e-3)


def test_it_is_the_product_of_powers_of_the_signs():
    moved = texture(3)
    difference, bending, unlike = signs(texture(), moved, BENT)
    root = np.sqrt(fields.smooth((texture() - moved) ** 2, 4.0))
    np.testing.assert_allclose(difference, root, rtol=1e-2)
    slopes = sum(np.gradient(u, axis=axis) ** 2 for u in BENT for axis in range(3))
    np.testing.assert_allclose(bending, np.sqrt(fields.smooth(slopes.astype(np.float32), 4.0)), rtol=1e-2)
    assert unlike.min() > 0 and unlike.max() < 1.01
    product = FACTOR * difference ** EXPONENTS[0] * bending ** EXPONENTS[1] * unlike ** EXPONENTS[2]
    np.testing.assert_allclose(expected_error(texture(), moved, BENT, 1.0), product, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 8), (7, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_and_thin_volumes_give_finite_values(shape, value):
    flat = np.full(shape, value, np.float32)
    found = expected_error(flat, flat, np.zeros((3, *shape), np.float32), 1.0)
    assert np.isfinite(found).all() and (found > 0).all()
