"""Images of different contrast are made comparable: tone curves, and what registration does with them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.registration.contrast import (
    CARRIED_CONTRAST,
    SAME_CONTRAST,
    TONES,
    carried,
    correlation,
    side_to_carry,
    tone_curve,
    with_tones,
)
from RegMambaLib.registration.network import chosen_weights, shipped_weights, weights_contrast
from RegMambaLib.registration.pipeline import register
from RegMambaLib.registration.refine import Pair
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial import fields

NO_WEIGHT = np.empty((0, 0, 0), np.float32)
EVERYWHERE = np.ones((24, 26, 28), bool)


def tissue(seed=0, shape=EVERYWHERE.shape):
    """A smooth random image in [0.1, 0.9]."""
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    smooth = fields.smooth(noise, 2.0)
    return (0.5 + 0.4 * np.clip(smooth / (2.5 * smooth.std()), -1, 1)).astype(np.float32)


def turned_over(volume):
    """Dark where it was bright, and not in a straight line; the background stays dark."""
    return np.where(volume > 0, 1 - 0.9 * volume**1.5, 0).astype(np.float32)


def test_a_tone_curve_brings_one_contrast_to_another():
    target = tissue()
    source = turned_over(target)
    assert np.abs(with_tones(source, tone_curve(source, target)) - target).mean() < 0.02


def test_a_tone_curve_keeps_the_spread_of_a_misaligned_target():
    target, source = tissue(), turned_over(np.roll(tissue(), 2, axis=1))
    made = with_tones(source, tone_curve(source, target))
    assert made.std() == pytest.approx(target.std(), rel=0.15)
    assert np.corrcoef(made.ravel(), np.roll(target, 2, axis=1).ravel())[0, 1] > 0.95


def test_background_stays_background():
    target = tissue()
    target[:5] = 0
    source = turned_over(target)
    assert not with_tones(source, tone_curve(source, target))[:5].any()


@pytest.mark.parametrize(
    "source",
    [np.zeros((8, 8, 8)), np.ones((8, 8, 8)), np.full((8, 8, 8), 0.5), np.linspace(0, 1, 512).reshape(8, 8, 8)],
    ids=["empty", "bright", "constant", "ramp"],
)
@pytest.mark.parametrize("target", [np.zeros((8, 8, 8)), np.full((8, 8, 8), 0.3)], ids=["empty", "constant"])
def test_a_tone_curve_of_poor_images_is_finite(source, target):
    curve = tone_curve(source.astype(np.float32), target.astype(np.float32))
    assert curve.shape == (TONES,) and np.isfinite(curve).all()
    assert np.isfinite(with_tones(source.astype(np.float32), curve)).all()


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_either_image_can_be_carried_and_the_other_stays(side):
    image = tissue()
    pair = Pair(image, turned_over(image), NO_WEIGHT, active=EVERYWHERE)
    assert correlation(pair, 2.0) < SAME_CONTRAST
    made = carried(pair, side)
    assert correlation(made, 2.0) > CARRIED_CONTRAST
    other = "fixed" if side == "moving" else "moving"
    np.testing.assert_array_equal(getattr(made, other), getattr(pair, other))


def test_an_alignment_sharpens_the_curve():
    image = tissue()
    shift = np.zeros((3, *image.shape), np.float32)
    shift[1] = 3
    pair = Pair(image, turned_over(np.roll(image, 3, axis=1)), NO_WEIGHT, active=EVERYWHERE)
    truth = np.roll(image, 3, axis=1)
    rough, sharp = carried(pair, "moving"), carried(pair, "moving", shift)
    assert np.abs(sharp.moving - truth).mean() < np.abs(rough.moving - truth).mean()


def test_the_image_that_tells_more_is_carried():
    image = tissue()
    shift = np.zeros((3, *image.shape), np.float32)
    shift[1] = 3
    folded = (0.1 + 1.6 * np.abs(image - 0.5)).astype(np.float32)  # dark and bright tissue look alike
    for moving in (folded, np.roll(folded, 3, axis=1)):
        displacement = None if moving is folded else shift
        assert side_to_carry(Pair(image, moving, NO_WEIGHT, active=EVERYWHERE), 2.0, displacement) == "fixed"
    assert side_to_carry(Pair(folded, image, NO_WEIGHT, active=EVERYWHERE), 2.0) == "moving"


def test_unrelated_images_stay_unlike():
    pair = Pair(tissue(0), tissue(1), NO_WEIGHT, active=EVERYWHERE)
    assert max(correlation(carried(pair, side), 4.0) for side in ("moving", "fixed")) < CARRIED_CONTRAST


@pytest.mark.parametrize(
    ("other", "expected"),
    [(lambda v: v, "brain-t1"), (turned_over, "brain-t1"), (lambda v: tissue(9, v.shape), "general")],
    ids=["one contrast", "turned over", "unrelated"],
)
def test_auto_takes_the_weights_that_know_the_contrasts_of_the_pair(other, expected):
    shape = (40, 44, 36)
    ball = (
        sum(((n - (size - 1) / 2) / (size / 2 - 4)) ** 2 for n, size in zip(np.indices(shape), shape, strict=True)) < 1
    )
    volume = tissue(3, shape)
    images = [sitk.GetImageFromArray((array * ball).astype(np.float32)) for array in (volume, other(volume))]
    for image in images:
        image.SetSpacing((4.0, 4.0, 4.0))
    settings = Settings(affine="none", iterations=(), device="cpu")
    assert register(*images, settings=settings).details["weights"] == expected


def test_auto_leaves_pieces_of_something_larger_to_refinement():
    images = [sitk.GetImageFromArray(tissue(3, (20, 24, 22)).astype(np.float32)) for _ in range(2)]
    details = register(*images, settings=Settings(affine="none", iterations=(), device="cpu")).details
    assert details["weights"] == "none" and not details["network_used"]


def test_weights_that_are_named_are_taken_whatever_the_contrast():
    assert chosen_weights("auto") == "brain-t1" and chosen_weights("auto", one_contrast=False) == "general"
    assert chosen_weights("mine.pth", one_contrast=False, cutout=True) == "mine.pth"
    assert {"brain-t1", "general"} <= set(shipped_weights())
    assert weights_contrast("general") == "any" and weights_contrast("brain-t1") == "same"
