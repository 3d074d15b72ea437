"""Folds are removed where they are, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_displacement, smallest_determinants

from RegMambaLib.registration.repair import DETERMINANT_MARGIN, mend, repair_and_invert
from RegMambaLib.spatial.jacobian import jacobian_determinant


def remove_folds(displacement, rounds=200):
    """A mended copy, how many voxels were below the margin, and how many still are."""
    u = np.array(displacement, np.float32)
    bad = np.flatnonzero(jacobian_determinant(u, strict=True) < DETERMINANT_MARGIN)
    return u, bad.size, mend(u, bad, DETERMINANT_MARGIN, rounds=rounds)


def folded_field(shape=(28, 26, 24), at=(14, 13, 12), width=3, strength=2.5):
    """A smooth field with a fold at one place."""
    u = random_displacement(shape, sigma=5, smallest=0.6, seed=2)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")) - np.reshape(at, (3, 1, 1, 1))
    near = np.exp(-0.5 * np.square(index / width).sum(0))
    u[2] -= (strength * index[2] * near).astype(np.float32)
    return u, np.abs(index).max(0)


def still_at_the_border(u):
    """Displacements that have faded out at the border, as those of a registration have."""
    still = np.zeros_like(u)
    still[:, 1:-1, 1:-1, 1:-1] = u[:, 1:-1, 1:-1, 1:-1]
    return still


@pytest.mark.parametrize("strength", [1.2, 2.5, 6.0])
def test_a_folded_field_comes_back_without_any_fold(strength):
    u, _ = folded_field(strength=strength)
    assert smallest_determinants(u).min() < 0
    repaired, first, left = remove_folds(u)
    assert left == 0 and first >= np.count_nonzero(smallest_determinants(u) <= 0)
    assert smallest_determinants(repaired).min() > 0
    assert repaired.dtype == np.float32


def test_values_far_from_a_fold_are_untouched():
    u, distance = folded_field(width=1.5)
    repaired, _, left = remove_folds(u)
    far = distance > 10
    assert left == 0 and far.sum() > 0.2 * far.size
    np.testing.assert_array_equal(repaired[:, far], u[:, far])


def test_a_smooth_field_is_untouched_and_a_copy():
    u = random_displacement((20, 22, 18), sigma=3, smallest=0.3)
    repaired, first, left = remove_folds(u)
    assert (first, left) == (0, 0)
    np.testing.assert_array_equal(repaired, u)
    assert not np.shares_memory(repaired, u)


def test_the_field_that_was_given_is_not_changed():
    u, _ = folded_field()
    before = u.copy()
    remove_folds(u)
    np.testing.assert_array_equal(u, before)


@pytest.mark.parametrize("at", [(0, 0, 0), (27, 25, 23), (0, 13, 23)], ids=str)
def test_folds_beside_the_border_are_removed_too(at):
    u = still_at_the_border(folded_field(at=at, strength=6.0)[0])
    assert smallest_determinants(u).min() < 0
    repaired, _, left = remove_folds(u)
    assert left == 0 and smallest_determinants(repaired).min() > 0


def test_a_field_of_noise_is_folded_everywhere_and_still_comes_back_healthy():
    u = still_at_the_border((3 * np.random.default_rng(0).normal(size=(3, 20, 18, 16))).astype(np.float32))
    repaired, first, left = remove_folds(u)
    assert first > 0.5 * u[0].size and left == 0
    assert smallest_determinants(repaired).min() > 0


def test_no_rounds_change_nothing_and_count_the_folds():
    u, _ = folded_field()
    same, first, left = remove_folds(u, rounds=0)
    assert first == left > 0
    np.testing.assert_array_equal(same, u)


def test_a_fold_free_result_is_left_alone_the_second_time():
    u, _ = folded_field()
    once, _, _ = remove_folds(u)
    twice, first, _ = remove_folds(once)
    assert first == 0
    np.testing.assert_array_equal(once, twice)


def test_the_border_stays_as_it_is():
    u = still_at_the_border((3 * np.random.default_rng(3).normal(size=(3, 20, 20, 20))).astype(np.float32))
    repaired, first, left = remove_folds(u)
    assert first > 0 and left == 0
    for axis in range(1, 4):
        for end in (0, -1):
            assert not np.take(repaired, end, axis=axis).any()


def test_what_is_reported_counts_folds_and_not_what_is_only_close_to_one():
    u = still_at_the_border(folded_field()[0])
    folds = np.count_nonzero(smallest_determinants(u) <= 0)
    left = repair_and_invert(u, 1.0, repair=False)
    assert left.folded == folds > 0 and left.repaired == 0
    mended = repair_and_invert(u.copy(), 1.0)  # it mends in place
    assert mended.folded == 0
    assert mended.repaired == np.count_nonzero(smallest_determinants(u) < 0.02)
