"""The part of a volume that networks are shown."""

from __future__ import annotations

import numpy as np
import pytest

from RegMambaLib.registration.window import RIM, anatomy_window
from RegMambaLib.spatial import fields

USUAL = (80, 96, 80)


def test_a_window_holds_the_anatomy_in_its_middle():
    mask = np.zeros((90, 90, 60), bool)
    mask[70:88, 5:20, 20:40] = True
    inner, frame, size = window = anatomy_window(mask, USUAL)
    assert size == USUAL
    shown = np.zeros(size, bool)
    shown[frame] = mask[inner]
    assert shown.sum() == mask.sum()
    np.testing.assert_array_equal(window.shown(mask), shown)
    for span, length in zip(fields.box_of(shown), size, strict=True):
        assert abs(span.start - (length - span.stop)) <= 1
    assert anatomy_window(mask, (1, 1, 1)).size == (16, 16, 16)  # a rim of 4 voxels may go
    assert anatomy_window(np.zeros((4, 4, 4), bool), USUAL) is None


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
