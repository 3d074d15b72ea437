"""`register` from scanner space to scanner space, on made heads under known transforms."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import (
    LABELS,
    STRUCTURES,
    apply,
    head_points,
    inside,
    linear,
    made_grid,
    made_head,
    made_labels,
    permuted_axes,
    smallest_determinants,
    world_of,
)

from RegMambaLib.errors import Cancelled, InputError
from RegMambaLib.registration import refine
from RegMambaLib.registration.device import find_device
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.pipeline import register
from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.registration.settings import Settings

FAST = Settings(weights="none", iterations=(30, 15), threads=2, device="cpu")
ALIGNED = Settings(weights="none", iterations=(30, 15), threads=2, device="cpu", affine="none")
CENTER = np.array([20.0, -15.0, 120.0])
# The fixed image is oblique, left-handed and anisotropic; the moving one lies elsewhere and is stored another way.
FIXED = made_grid((36, 40, 28), (4.6, 4.8, 5.6), (12, -15, 20), (20.0, -15.0, 120.0), flip=True)
NEAR = made_grid((40, 44, 36), (4.4, 4.4, 4.4), (0, 0, 0), (20.0, -15.0, 120.0))
FAR = linear((10, -14, 12), (600.0, -450.0, 300.0))


def bend(points, size=6.0):
    """A smooth displacement (mm) of points about the head's centre."""
    x, y, z = np.moveaxis(points, -1, 0)
    wave = [np.sin(y / 27 + 0.5) + np.cos(z / 31), np.sin(z / 25) * np.cos(x / 33), np.cos(x / 29 + 1) + np.sin(y / 35)]
    return size * np.stack(wave, -1) / 1.5


def to_head(points):
    return points - CENTER


def bent_to_head(points):
    return points - CENTER + bend(points - CENTER)


def elsewhere(truth):
    """From moving world space, where `truth` brings the head, to the head's own."""
    back = np.linalg.inv(truth)
    return lambda points: apply(back, points) - CENTER


def far_grid():
    center = apply(FAR, CENTER[None])[0] + (5.0, 4.0, -6.0)
    return made_grid((40, 44, 46), (5.2, 4.8, 4.4), (-40, 70, 110), tuple(center))


def errors(result, truth=None):
    """Distance (mm) between where head points go and where they belong, at points of fixed space."""
    points = head_points(150, structure=1) + CENTER
    bent = points + bend(points - CENTER)
    expected = bent if truth is None else apply(truth, bent)
    return np.linalg.norm(result.points_to_moving(points) - expected, axis=1)


def image_of(values, like):
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.CopyInformation(like)
    return image


def dice(first, second, labels=LABELS):
    first, second = sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second)
    return float(
        np.mean([2 * ((first == n) & (second == n)).sum() / ((first == n).sum() + (second == n).sum()) for n in labels])
    )


@pytest.fixture(scope="module")
def far_pair():
    """A bent head on an oblique left-handed grid, and the head far away and turned."""
    grid = far_grid()
    return made_head(FIXED, bent_to_head), made_head(grid, elsewhere(FAR))


@pytest.fixture(scope="module")
def far_result(far_pair):
    return register(*far_pair, settings=FAST)


@pytest.fixture(scope="module")
def near_pair():
    """A bent head and the head, in the same place, on different grids."""
    return made_head(FIXED, bent_to_head), made_head(NEAR, to_head)


@pytest.fixture(scope="module")
def near_result(near_pair):
    return register(*near_pair, settings=ALIGNED)


def test_a_head_far_away_turned_and_bent_is_brought_to_where_it_belongs(far_result):
    assert np.linalg.norm(FAR[:3, 3]) > 500
    linear_only = np.linalg.norm(
        apply(far_result.affine, head_points(150, structure=1) + CENTER)
        - apply(FAR, head_points(150, structure=1) + CENTER + bend(head_points(150, structure=1))),
        axis=1,
    )
    found = errors(far_result, FAR)
    assert found.mean() < 2.0 and found.mean() < 0.55 * linear_only.mean()


def test_a_known_smooth_deformation_is_recovered(near_result):
    before = np.linalg.norm(bend(head_points(150, structure=1)), axis=1)
    found = errors(near_result)
    assert before.mean() > 5 and found.mean() < 1.2
    np.testing.assert_array_equal(near_result.affine, np.eye(4))


@pytest.mark.parametrize("name", ["far_result", "near_result"])
def test_the_result_has_no_fold_at_all(name, request):
    result = request.getfixturevalue(name)
    assert smallest_determinants(result.displacement).min() > 0
    assert result.jacobian.min() > 0 and result.details["folded_voxels"] == 0


@pytest.mark.parametrize("name", ["far_result", "near_result"])
def test_the_inverse_is_true_at_voxel_centres(name, request):
    result = request.getfixturevalue(name)
    points = world_of(result.grid)[::5, ::5, ::5].reshape(-1, 3)
    there = apply(result.affine, points)
    gap = np.linalg.norm(result.points_to_moving(result.points_to_fixed(there)) - there, axis=1)
    assert gap.max() < 0.1
    assert result.details["inverse_error_mm"] < 0.1


@pytest.mark.parametrize("name", ["far_result", "near_result"])
def test_the_displacement_fades_out_at_the_border_of_its_grid(name, request):
    u = request.getfixturevalue(name).displacement
    assert all(not u.take((0, -1), axis).any() for axis in (1, 2, 3))


def test_the_moved_image_looks_like_the_fixed_one(far_result, far_pair):
    fixed, moving = far_pair
    moved = sitk.GetArrayFromImage(far_result.warp(moving))
    unmoved = sitk.GetArrayFromImage(far_result.fixed_grid.resample(moving))
    there = sitk.GetArrayFromImage(fixed)
    assert not unmoved.any()
    assert np.corrcoef(moved.ravel(), there.ravel())[0, 1] > 0.98


def test_stages_are_timed_and_the_result_tells_what_was_done(near_result, near_pair):
    assert set(near_result.seconds) == {"preprocess", "linear", "network", "refine", "repair"}
    assert all(value >= 0 for value in near_result.seconds.values())
    assert near_result.details["metric"] == "lncc" and near_result.details["weights"] == "none"
    assert near_result.settings == ALIGNED and near_result.uncertainty is None
    assert near_result.moving_grid.size == near_pair[1].GetSize()


@pytest.mark.parametrize(
    ("which", "order", "flips"),
    [
        ("moving", (2, 0, 1), (True, False, True)),
        ("fixed", (1, 2, 0), (False, True, False)),
        ("fixed", (0, 2, 1), (True, True, True)),
    ],
    ids=str,
)
def test_the_result_does_not_depend_on_how_an_image_is_stored(near_pair, near_result, which, order, flips):
    fixed, moving = near_pair
    stored = permuted_axes(fixed if which == "fixed" else moving, order, flips)
    assert stored.GetSize() != fixed.GetSize()
    again = register(*((stored, moving) if which == "fixed" else (fixed, stored)), settings=ALIGNED)
    points = head_points(150, structure=1) + CENTER
    gap = np.linalg.norm(again.points_to_moving(points) - near_result.points_to_moving(points), axis=1)
    assert gap.max() < 0.1


def test_the_linear_stage_hardly_depends_on_how_an_image_is_stored(far_pair, far_result):
    fixed, moving = far_pair
    stored = permuted_axes(moving, (2, 0, 1), (True, False, True))
    again = register(fixed, stored, settings=FAST)
    points = head_points(150, structure=1) + CENTER
    gap = np.linalg.norm(again.points_to_moving(points) - far_result.points_to_moving(points), axis=1)
    assert np.median(gap) < 0.5


def test_the_same_call_gives_the_same_numbers(near_pair, near_result):
    again = register(*near_pair, settings=ALIGNED)
    np.testing.assert_allclose(again.displacement, near_result.displacement, atol=1e-4)
    np.testing.assert_allclose(again.inverse_displacement, near_result.inverse_displacement, atol=1e-4)


def test_the_same_seed_repeats_the_linear_stage(far_pair, far_result):
    again = register(*far_pair, settings=Settings(**{**FAST.to_dict(), "iterations": ()}))
    points = head_points(50) + CENTER
    gap = np.abs(apply(again.affine, points) - apply(far_result.affine, points))
    assert gap.max() == 0.0


def test_labels_come_out_as_simpleitk_warps_them_once(near_result):
    labels = made_labels(NEAR, to_head)
    ours = near_result.warp(labels, labels=True)
    reference = FIXED.image(np.zeros(FIXED.shape, np.uint8))
    theirs = sitk.Resample(labels, reference, near_result.transform, sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    fixed = made_labels(FIXED, bent_to_head)
    before = dice(fixed, near_result.fixed_grid.resample(labels, labels=True))
    assert dice(fixed, ours) > max(before + 0.1, 0.75)


def test_a_linear_transform_is_where_registration_starts(far_pair):
    near = sitk.AffineTransform(3)
    near.SetMatrix(FAR[:3, :3].ravel().tolist())
    near.SetTranslation((FAR[:3, 3] + (2.0, -3.0, 2.0)).tolist())
    for affine, most in (("none", 1.0), ("rigid", 2.6)):
        result = register(*far_pair, initial=near, settings=Settings(**{**FAST.to_dict(), "affine": affine}))
        assert errors(result, FAR).mean() < most
        if affine == "none":
            np.testing.assert_allclose(result.affine[:3, :3], FAR[:3, :3], atol=1e-9)


def test_what_lies_outside_a_mask_does_not_pull(near_pair):
    fixed, moving = near_pair
    values, where = sitk.GetArrayFromImage(fixed), world_of(FIXED) - CENTER
    hidden = np.linalg.norm(where - (-30.0, 20.0, 15.0), axis=-1) < 34
    rng = np.random.default_rng(0)
    spoiled = image_of(np.where(hidden, rng.uniform(0, 1000, values.shape), values).astype(np.float32), fixed)
    mask = image_of((~hidden).astype(np.uint8), fixed)
    free = register(spoiled, moving, settings=ALIGNED)
    masked = register(spoiled, moving, fixed_mask=mask, settings=ALIGNED)
    clean = register(fixed, moving, fixed_mask=mask, settings=ALIGNED)

    points = head_points(150, structure=1)
    seen = np.linalg.norm(points - (-30.0, 20.0, 15.0), axis=-1) > 45
    assert seen.sum() > 50
    assert np.median(errors(masked)) < np.median(errors(free))
    assert errors(masked)[seen].mean() < 1.5
    # Clean or spoiled, about the same within the mask.
    there = [result.points_to_moving(points[seen] + CENTER) for result in (masked, clean)]
    gap = np.median(np.linalg.norm(there[0] - there[1], axis=1))
    assert gap < 0.7


def test_masks_of_both_images_count(near_pair):
    fixed, moving = near_pair
    everywhere = [image_of(np.ones(sitk.GetArrayFromImage(i).shape, np.uint8), i) for i in (fixed, moving)]
    result = register(fixed, moving, fixed_mask=everywhere[0], moving_mask=everywhere[1], settings=ALIGNED)
    assert errors(result).mean() < 1.5


def test_guidance_pulls_the_given_labels_together():
    # Images that show the outline only: what lies within is known from the labels alone.
    labels = made_labels(FIXED, bent_to_head), made_labels(NEAR, to_head)
    fixed, moving = (
        grid.image((inside(way(world_of(grid)), STRUCTURES[0]).clip(-5, 5) * 100).astype(np.float32))
        for grid, way in ((FIXED, bent_to_head), (NEAR, to_head))
    )
    scores = []
    for guide in (False, True):
        settings = Settings(**{**ALIGNED.to_dict(), "guide": guide})
        result = register(fixed, moving, fixed_labels=labels[0], moving_labels=labels[1], settings=settings)
        scores.append(dice(labels[0], result.warp(labels[1], labels=True)))
        assert result.jacobian.min() > 0
    assert scores[1] > scores[0] + 0.06


def test_labels_do_not_pull_unless_asked(near_pair, near_result):
    labels = made_labels(FIXED, bent_to_head), made_labels(NEAR, to_head)
    result = register(*near_pair, fixed_labels=labels[0], moving_labels=labels[1], settings=ALIGNED)
    np.testing.assert_allclose(result.displacement, near_result.displacement, atol=1e-4)


def other_contrast(image):
    """Brightness turned over within the head, air left dark."""
    values = sitk.GetArrayFromImage(image)
    return image_of(np.where(values > 250, 1250 - 0.9 * values, 0.4 * values).astype(np.float32), image)


def bend_error(result):
    """Mean error over the mean of the bend that was to be found."""
    return errors(result).mean() / np.linalg.norm(bend(head_points(150, structure=1)), axis=1).mean()


def test_another_contrast_is_brought_to_that_of_the_other_image(near_pair):
    fixed, moving = near_pair
    result = register(fixed, other_contrast(moving), settings=ALIGNED)
    assert result.details["metric"] == "lncc" and result.details["contrast_carried"] == "fixed"
    assert bend_error(result) < 0.3
    assert result.jacobian.min() > 0


def test_images_whose_intensities_say_little_about_each_other_go_by_mind(near_pair):
    fixed, moving = near_pair
    noise = np.random.default_rng(0).uniform(100, 900, moving.GetSize()[::-1]).astype(np.float32)
    result = register(fixed, image_of(noise, moving), settings=ALIGNED)
    assert result.details["metric"] == "mind" and result.details["contrast_carried"] is None
    assert result.jacobian.min() > 0


def test_the_metric_can_be_forced(near_pair):
    quick = {**ALIGNED.to_dict(), "iterations": (2,), "metric": "mind"}
    assert register(*near_pair, settings=Settings(**quick)).details["metric"] == "mind"


def test_brightness_and_units_do_not_matter(near_pair, near_result):
    fixed, moving = near_pair
    again = register(sitk.Cast(fixed, sitk.sitkInt16), moving * 0.001 - 5.0, settings=ALIGNED)
    # Point by point the two differ by rounding, which decides within even tissue; neither is closer to the truth.
    assert errors(again).mean() == pytest.approx(errors(near_result).mean(), abs=0.1)


def test_the_shipped_weights_run_and_their_answer_is_kept_where_it_helps(near_pair):
    settings = Settings(**{**ALIGNED.to_dict(), "weights": "brain-t1"})
    result = register(*near_pair, settings=settings)
    assert result.details["weights"] == "brain-t1"
    before, after = result.details["network_similarity"]
    assert result.details["network_used"] == (after > before)
    assert errors(result).mean() < 1.5 and result.jacobian.min() > 0


@pytest.mark.parametrize("iterations", [(), ALIGNED.iterations])
def test_a_map_of_the_error_to_expect_comes_with_every_registration_that_asks_for_it(near_pair, iterations):
    settings = Settings(**{**ALIGNED.to_dict(), "iterations": iterations, "uncertainty": True})
    result = register(*near_pair, settings=settings)
    assert result.uncertainty is not None and result.uncertainty.shape == result.grid.shape
    assert result.uncertainty.dtype == np.float32
    inside = result.uncertainty > 0
    assert np.isfinite(result.uncertainty).all() and 0.1 < inside.mean() < 0.9
    assert register(*near_pair, settings=ALIGNED).uncertainty is None


def test_neither_network_nor_refinement_leave_the_linear_map(near_pair):
    result = register(*near_pair, settings=Settings(**{**ALIGNED.to_dict(), "iterations": ()}))
    assert not result.displacement.any() and not result.inverse_displacement.any()


@pytest.mark.parametrize("weights", ["none", "brain-t1"])
def test_progress_names_every_stage_and_never_goes_back(near_pair, weights):
    told = []
    settings = Settings(weights=weights, iterations=(3, 2), affine="rigid", device="cpu")
    register(*near_pair, settings=settings, progress=lambda stage, share: told.append((stage, share)))
    runs = [(stage, [share for _, share in calls]) for stage, calls in groupby(told, lambda call: call[0])]
    assert [stage for stage, _ in runs] == ["preprocess", "linear", "preprocess", "network", "refine", "repair"]
    for _, shares in runs:
        assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("stage", ["preprocess", "linear", "network", "refine", "repair"])
def test_progress_may_cancel_in_any_stage(near_pair, stage):
    def progress(now, share):
        if now == stage:
            raise Cancelled

    settings = Settings(weights="none", iterations=(2, 1), affine="rigid", device="cpu")
    with pytest.raises(Cancelled):
        register(*near_pair, settings=settings, progress=progress)


def small(kind=np.float32, size=(8, 9, 10)):
    grid = made_grid(size, (2.0, 2.0, 2.0))
    return grid.image((np.random.default_rng(0).uniform(0, 100, grid.shape)).astype(kind))


def bad_inputs():
    good, shifted = small(), small()
    shifted.SetOrigin((50.0, 0.0, 0.0))
    labels = small(np.uint8)
    ones = image_of(np.ones((10, 9, 8), np.uint8), good)
    nothing = image_of(np.zeros((10, 9, 8), np.uint8), good)
    twos = image_of(np.full((10, 9, 8), 2, np.uint8), good)
    spoiled = sitk.GetArrayFromImage(good)
    spoiled[3, 3, 3] = np.nan
    infinite = np.where(np.isnan(spoiled), np.inf, spoiled)
    bent = sitk.DisplacementFieldTransform(made_grid((4, 4, 4)).image(np.ones((4, 4, 4, 3))))
    guide = Settings(guide=True, weights="none", affine="none")
    return {
        "2-D": ((good[:, :, 4], good), {}, "fixed image has 2 dimensions"),
        "4-D": ((good, sitk.JoinSeries([good, good])), {}, "moving image has 4 dimensions"),
        "RGB": ((sitk.Compose([good] * 3), good), {}, "3 components"),
        "one slice": ((good, small(size=(9, 9, 1))), {}, "moving image has 9 x 9 x 1 voxels"),
        "three slices": ((small(size=(9, 3, 9)), good), {}, "at least 4"),
        "NaN": ((image_of(spoiled, good), good), {}, "fixed image holds NaN"),
        "infinity": ((good, image_of(infinite.astype(np.float32), good)), {}, "moving image holds NaN or infinite"),
        "constant": ((good, ones), {}, "moving image is constant"),
        "fixed labels elsewhere": ((good, good), {"fixed_labels": shifted}, "fixed labels lie on another grid"),
        "moving labels elsewhere": ((good, good), {"moving_labels": small(size=(8, 8, 8))}, "moving labels"),
        "fixed mask elsewhere": ((good, good), {"fixed_mask": shifted}, "fixed mask lie on another grid"),
        "moving mask elsewhere": ((good, good), {"moving_mask": shifted}, "moving mask"),
        "empty fixed mask": ((good, good), {"fixed_mask": nothing}, "fixed mask"),
        "empty moving mask": ((good, good), {"moving_mask": nothing}, "moving mask"),
        "guide without labels": ((good, good), {"settings": guide}, "needs both label maps"),
        "guide with one label map": ((good, good), {"settings": guide, "fixed_labels": labels}, "needs both"),
        "no common label": (
            (good, good),
            {"settings": guide, "fixed_labels": ones, "moving_labels": twos},
            "no label in common",
        ),
        "bent initial": ((good, good), {"initial": bent}, "not linear"),
        "no such weights": ((good, good), {"settings": Settings(weights="nothing", affine="none")}, "no weights"),
        "no such device": ((good, good), {"settings": Settings(device="abacus")}, "Unknown device"),
    }


@pytest.mark.parametrize(("images", "others", "message"), bad_inputs().values(), ids=bad_inputs().keys())
def test_what_cannot_be_used_is_refused_with_what_and_why(images, others, message):
    with pytest.raises(InputError, match=message):
        register(*images, **others)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda:99", "tpu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError):
        find_device(name)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
def test_images_of_any_pixel_type_are_prepared_to_about_zero_to_one(kind):
    image = made_head(FIXED, to_head)
    values = sitk.GetArrayFromImage(image) / 5
    prepared = prepare(image_of(values.astype(kind), image), "fixed")
    scaled = sitk.GetArrayFromImage(prepared.image)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    inside = prepared.foreground()
    assert 0.8 < inside.sum() / (values > 40).sum() < 1.2


def test_one_bright_voxel_does_not_hide_the_anatomy():
    image = made_head(FIXED, to_head)
    values = sitk.GetArrayFromImage(image)
    values[0, 0, 0] = 1e7
    clean, spoiled = (prepare(image_of(v, image), "fixed").foreground() for v in (values.clip(0, 1200), values))
    assert (clean == spoiled).mean() > 0.99


def test_very_different_sizes_and_spacings_register():
    fixed = made_head(made_grid((24, 64, 18), (7.5, 2.8, 8.0), (0, 0, 90), tuple(CENTER)), bent_to_head)
    moving = made_head(made_grid((60, 20, 30), (3.0, 9.0, 5.0), (0, 0, 0), tuple(CENTER)), to_head)
    result = register(fixed, moving, settings=ALIGNED)
    assert errors(result).mean() < 0.6 * np.linalg.norm(bend(head_points(150, structure=1)), axis=1).mean()
    assert result.jacobian.min() > 0


def test_the_smallest_volumes_register():
    result = register(small(size=(4, 5, 4)), small(size=(4, 4, 6)), settings=FAST)
    assert np.isfinite(result.displacement).all() and result.jacobian.min() > 0


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_an_image_registered_to_itself_or_to_its_rescan_stays_where_it_is(noise):
    grid = made_grid((48, 52, 44), (3.0, 3.0, 3.0))
    head = sitk.GetArrayFromImage(made_head(grid)).astype(np.float32)
    rng = np.random.default_rng(0)
    scans = [grid.image(head + noise * head.max() * rng.normal(size=head.shape).astype(np.float32)) for _ in range(2)]
    for device in ("cpu", "torch"):
        settings = replace(ALIGNED, extra_iterations=False)
        with pytest.MonkeyPatch.context() as patch:
            if device == "torch":
                patch.setattr(refine, "_engine", lambda _, *given, floor: TorchEngine(*given, floor=floor))
            moved = np.linalg.norm(register(*scans, settings=settings).displacement, axis=0)
        assert moved.mean() < (0.06 if noise else 0.002) and np.quantile(moved, 0.99) < (0.6 if noise else 0.02)


def test_images_that_do_not_overlap_are_refused_where_no_linear_stage_can_help():
    away = made_head(NEAR, to_head)
    away.SetOrigin([v + 700 for v in away.GetOrigin()])
    with pytest.raises(InputError, match=r"does not overlap where they lie.*--affine affine"):
        register(made_head(FIXED, bent_to_head), away, settings=ALIGNED)


def test_a_mask_that_leaves_nothing_to_align_is_named():
    fixed, moving = made_head(FIXED, bent_to_head), made_head(NEAR, to_head)
    values = np.zeros(FIXED.shape, np.uint8)
    values[0, 0, 0] = 1
    with pytest.raises(InputError, match="masks hold too little"):
        register(fixed, moving, fixed_mask=image_of(values, fixed), settings=FAST)


def test_beyond_the_moving_image_is_its_lowest_value(near_result, near_pair):
    moving = near_pair[1] - 1000.0
    small = sitk.RegionOfInterest(moving, (20, 22, 18), (10, 11, 9))
    assert sitk.GetArrayFromImage(near_result.warp(small)).min() == sitk.GetArrayFromImage(small).min() < -900
