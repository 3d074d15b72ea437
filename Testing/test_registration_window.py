"""The part of a volume that networks are shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from RegMambaLib.networks import build_network
from RegMambaLib.registration.network import predict
from RegMambaLib.registration.window import FRAME, RIM, anatomy_window, nearness
from RegMambaLib.spatial import fields


def test_a_window_holds_the_anatomy_in_its_middle():
    mask = np.zeros((90, 90, 60), bool)
    mask[70:88, 5:20, 20:40] = True
    inner, frame, size = window = anatomy_window(mask)
    assert size == FRAME
    shown = np.zeros(size, bool)
    shown[frame] = mask[inner]
    assert shown.sum() == mask.sum()
    np.testing.assert_array_equal(window.shown(mask), shown)
    for span, length in zip(fields.box_of(shown), size, strict=True):
        assert abs(span.start - (length - span.stop)) <= 1
    assert anatomy_window(mask, (1, 1, 1)).size == (16, 16, 16)  # a rim of 4 voxels may go
    assert anatomy_window(np.zeros((4, 4, 4), bool)) is None


@pytest.mark.parametrize(("extent", "size"), [((8, 24), 16), ((8, 24 + RIM), 16), ((8, 25 + RIM), 32), ((0, 17), 32)])
def test_a_rim_is_left_out_only_where_the_image_goes_on_beyond_the_anatomy(extent, size):
    mask = np.zeros((40, 40, 40), bool)
    mask[slice(*extent), 8:24, 8:24] = True
    assert anatomy_window(mask, (1, 1, 1)).size == (size, 16, 16)


def test_of_an_image_without_background_nothing_is_left_out():
    mask = np.ones((17, 32, 5), bool)
    window = anatomy_window(mask, (1, 1, 1))
    assert window.size == (32, 32, 16)
    volume = np.random.default_rng(0).random(mask.shape, np.float32)
    np.testing.assert_array_equal(window.shown(volume)[window.frame], volume)
    assert np.count_nonzero(window.shown(volume)) == np.count_nonzero(volume)


def test_what_is_found_in_a_window_goes_on_outside():
    mask = np.zeros((50, 40, 45), bool)
    mask[20:41, 3:30, 9:33] = True
    window = anatomy_window(mask, (1, 1, 1))
    places = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij")).astype(np.float32)
    found = np.stack([window.shown(axis) for axis in places])
    low, high = ([getattr(span, end) for span in window.inner] for end in ("start", "stop"))
    expected = np.stack([axis.clip(a, b - 1) for axis, a, b in zip(places, low, high, strict=True)])
    np.testing.assert_array_equal(window.whole(found, mask.shape), expected)


@pytest.mark.parametrize("shape", [(90, 100, 88), (91, 1, 40), (1, 1, 1)])
def test_nearness_is_1_on_the_anatomy_and_0_far_from_it(shape):
    """A head is round: there is less of it around a voxel of its surface than beside a plane."""
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    mask = sum(((grid - n / 2 + 0.5) / max(0.3 * n, 1)) ** 2 for grid, n in zip(grids, shape, strict=True)) < 1
    near = nearness(mask)
    assert near.dtype == np.float32 and near.shape == shape and near.min() >= 0 and near.max() <= 1
    assert near[mask].min() > 0.95
    assert near[0, 0, 0] < 0.05 or max(shape) == 1
    assert (nearness(np.ones(shape, bool)) == 1).all() and (nearness(np.zeros(shape, bool)) == 0).all()


class Shift(torch.nn.Module):
    """Says one displacement everywhere and remembers what it was shown."""

    def predict(self, moving, fixed):
        self.shown = moving[0, 0].numpy(), fixed[0, 0].numpy()
        return torch.full((1, 3, *fixed.shape[2:]), 2.0), None


def test_a_network_sees_the_anatomy_and_its_answer_fades_in_the_air():
    images = np.zeros((2, 130, 100, 60), np.float32)
    images[0, 20:36, 30:44, 5:20] = 0.5
    images[1, 22:38, 28:40, 5:20] = 0.7
    network = Shift()
    found = predict(network, *images)
    assert [shown.shape for shown in network.shown] == [(80, 96, 64)] * 2  # as in training, where there is as much
    for shown, image in zip(network.shown, images[::-1], strict=True):
        np.testing.assert_allclose(shown.sum(), image.sum(), rtol=1e-5)
    assert found.shape == (3, 130, 100, 60) and found.dtype == np.float32
    assert np.abs(found[:, (images > 0).any(0)] - 2).max() < 0.1
    assert np.abs(found[:, -1, -1, -1]).max() < 0.01
    assert (predict(network, *np.zeros((2, 9, 8, 7), np.float32)) == 0).all()


def test_a_network_sees_the_anatomy_wherever_it_lies_in_the_volume():
    network = build_network("regmamba", channels=(4, 8, 8))
    fixed, moving = np.zeros((2, 40, 44, 48), np.float32)
    fixed[4:20, 6:22, 8:24], moving[4:20, 6:22, 8:24] = np.random.default_rng(0).random((2, 16, 16, 16), np.float32)
    here = predict(network, fixed, moving)
    there = predict(network, *(np.roll(image, (16, 16, 16), (0, 1, 2)) for image in (fixed, moving)))
    assert here.shape == (3, 40, 44, 48) and here.dtype == np.float32
    np.testing.assert_allclose(
        np.roll(here, (16, 16, 16), (1, 2, 3))[:, 20:36, 22:38, 24:40], there[:, 20:36, 22:38, 24:40], atol=1e-5
    )
    assert not predict(network, np.zeros_like(fixed), np.zeros_like(fixed)).any()
