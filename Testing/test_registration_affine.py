"""The linear stage finds known movements of made heads, on grids as scanners make them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import DATA, apply, head_points, linear, made_grid, made_head

from RegMambaLib.errors import InputError
from RegMambaLib.registration.affine import Side, align
from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.spatial.grid import Grid

FIXED = made_grid((52, 50, 44), (3.6, 4.4, 4.0), (15, -25, 20), (-20.0, 35.0, 400.0), flip=True)
CENTER = linear(shift=(-15.0, 30.0, 395.0))  # where the head is in fixed space


def side(image, name="fixed", mask=None):
    prepared = prepare(image, name)
    return Side(prepared.image, prepared.foreground(), mask)


def moving_head(truth, grid=None, contrast=None):
    """The head where `truth` (fixed to moving world) brings it, on a grid that is not the fixed one's."""
    to_head = np.linalg.inv(CENTER) @ np.linalg.inv(truth)
    center = apply(truth, CENTER[None, :3, 3])[0] + (4.0, -6.0, 5.0)
    grid = grid or made_grid((48, 62, 50), (4.2, 3.5, 4.2), (-50, 30, 100), tuple(center))
    image = made_head(grid, lambda points: apply(to_head, points))
    return contrast(image) if contrast else image


def cut_off(image, keep, name, padded=True):
    """The side of an image whose field of view along k is `keep`; the rest is empty, or missing."""
    if not padded:
        return side(image[:, :, keep], name)
    values = sitk.GetArrayFromImage(image)
    seen = np.zeros_like(values)
    seen[keep] = values[keep]
    out = sitk.GetImageFromArray(seen)
    out.CopyInformation(image)
    return side(out, name)


@pytest.fixture(scope="module")
def fixed():
    return side(made_head(FIXED, lambda points: apply(np.linalg.inv(CENTER), points)))


def error(found, truth):
    """Largest distance (mm) over points of the head."""
    points = apply(CENTER, head_points())
    return float(np.linalg.norm(apply(found, points) - apply(truth, points), axis=1).max())


def within(truth):
    """A world movement that turns about the head's centre."""
    return CENTER @ truth @ np.linalg.inv(CENTER)


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("rigid", linear((0, 0, 0), (40, 0, 0))),
        ("rigid", linear((30, 0, 0), (0, -25, 30))),
        ("rigid", linear((-12, 18, 20), (-20, 20, -28))),
        ("similarity", linear((0, -28, 0), (10, 30, -20), 1.12)),
        ("affine", linear((-20, -15, 10), (0, 0, -40))),
        ("affine", linear((-10, -5, 10), (0, 0, -20), 1.03, -0.02)),
    ],
    ids=["shift", "turn", "rigid", "similarity", "rigid as affine", "affine"],
)
def test_a_known_movement_is_recovered_to_a_millimetre(fixed, kind, truth):
    truth = within(truth)
    found = align(fixed, side(moving_head(truth), "moving"), kind)
    assert error(found, truth) < 1.0


@pytest.mark.parametrize(
    "truth",
    [linear((0, 8, 26), (25, 5, 25), 0.93, 0.06), linear((-20, -15, 10), (0, 0, -40), 1.06, -0.05)],
    ids=["smaller", "larger"],
)
def test_a_strongly_sheared_and_turned_head_is_recovered_to_a_few_millimetres(fixed, truth):
    truth = within(truth)
    assert error(align(fixed, side(moving_head(truth), "moving"), "affine"), truth) < 3.0


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_the_matrix_is_of_the_kind_that_was_asked_for(fixed, kind):
    truth = within(linear((10, 5, -8), (10, 0, 10), 1.1, 0.05))
    axes = align(fixed, side(moving_head(truth), "moving"), kind)[:3, :3]
    gram = axes.T @ axes
    if kind == "affine":
        assert np.abs(gram / gram[0, 0] - np.eye(3)).max() > 0.02
    else:
        np.testing.assert_allclose(gram / gram[0, 0], np.eye(3), atol=1e-6)
    if kind == "rigid":
        assert gram[0, 0] == pytest.approx(1)
    else:
        assert np.linalg.det(axes) == pytest.approx(1.1**3, rel=0.05)


def test_another_contrast_is_recovered_too(fixed):
    truth = within(linear((10, -15, 12), (-15, 20, 10)))

    def inverted(image):
        values = sitk.GetArrayFromImage(image)
        brain = values > 350
        out = sitk.GetImageFromArray(np.where(brain, 1300 - 0.9 * values, 0.3 * values).astype(np.float32))
        out.CopyInformation(image)
        return out

    found = align(fixed, side(moving_head(truth, contrast=inverted), "moving"), "rigid")
    assert error(found, truth) < 2.5


def test_images_that_do_not_overlap_at_all_are_brought_together(fixed):
    truth = within(linear((8, 0, 10), (900, -700, 300)))
    assert error(align(fixed, side(moving_head(truth), "moving"), "rigid"), truth) < 1.0


def test_half_a_turn_needs_the_principal_axes(fixed):
    truth = within(linear((0, 20, 120), (20, -10, 15)))
    moving = side(moving_head(truth), "moving")
    assert error(align(fixed, moving, "rigid"), truth) > 20
    assert error(align(fixed, moving, "rigid", principal_axes=True), truth) < 1.0


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_start_that_is_given_is_where_the_search_begins(fixed, kind):
    # A turn that no start of its own reaches, given to within a few degrees and mm.
    truth = within(linear((0, 0, 150), (20, -10, 15)))
    near = truth @ within(linear((2, -2, 3), (3, 2, -3)))
    moving = side(moving_head(truth), "moving")
    assert error(near, truth) > 6
    assert error(align(fixed, moving, kind, initial=near), truth) < 2.0
    assert error(align(fixed, moving, kind), truth) > 20


def test_a_mask_keeps_a_false_structure_out(fixed):
    truth = within(linear((6, -8, 5), (10, 5, -8)))
    image = moving_head(truth)
    values = sitk.GetArrayFromImage(image)
    values[:, :, :14] = 1200  # a bright block over one side
    spoiled = sitk.GetImageFromArray(values)
    spoiled.CopyInformation(image)
    keep = np.ones(values.shape, np.uint8)
    keep[:, :, :15] = 0
    mask = sitk.GetImageFromArray(keep)
    mask.CopyInformation(image)
    free = error(align(fixed, side(spoiled, "moving"), "rigid"), truth)
    masked = error(align(fixed, side(spoiled, "moving", mask), "rigid"), truth)
    assert masked < 2.0 and masked < free


def test_the_same_seed_gives_the_same_matrix(fixed):
    moving = side(moving_head(within(linear((10, 5, -8), (10, 0, 10)))), "moving")
    first, second = (align(fixed, moving, "affine", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_matrix_does_not_depend_on_the_number_of_threads(fixed, threads):
    moving = cut_off(moving_head(within(linear((10, 5, -8), (10, 0, 10)))), slice(0, 34), "moving")
    expected = align(fixed, moving, "affine")
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        found = align(fixed, moving, "affine")
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("padded", [False, True], ids=["missing", "padded"])
@pytest.mark.parametrize(
    ("here", "there"),
    [(slice(0, 44), slice(14, 32)), (slice(12, 44), slice(0, 36)), (slice(14, 26), slice(0, 50))],
    ids=["a part in the whole", "two ends", "the whole around a part"],
)
def test_a_field_of_view_that_ends_within_the_head_is_recovered(here, there, padded):
    truth = within(linear((6, -8, 5), (10, 5, 40)))
    grid = made_grid((56, 56, 50), (4.0, 4.0, 4.0), (15, -25, 20), tuple(apply(truth, CENTER[None, :3, 3])[0]), True)
    image = made_head(FIXED, lambda points: apply(np.linalg.inv(CENTER), points))
    fixed = cut_off(image, here, "fixed", padded)
    moving = cut_off(moving_head(truth, grid), there, "moving", padded)
    assert error(align(fixed, moving, "rigid"), truth) < 2.0


def overlap(fixed, moving, matrix):
    """Mean Dice of the labels 1 .. 7, the moving ones brought to the fixed grid through `matrix`."""
    through = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    moved = sitk.GetArrayFromImage(Grid.of(fixed).resample(moving, through, labels=True))
    own = sitk.GetArrayFromImage(fixed)
    return np.mean(
        [2 * ((own == n) & (moved == n)).sum() / ((own == n).sum() + (moved == n).sum()) for n in range(1, 8)]
    )


@pytest.mark.skipif(not (DATA / "openkbp_ct").is_dir(), reason="needs the data folder, see conftest")
@pytest.mark.parametrize(("one", "other"), [("017", "022"), ("022", "017"), ("034", "022")])
def test_patients_of_whom_different_parts_were_scanned_are_brought_together(one, other):
    ct, organs = (
        [sitk.ReadImage(str(DATA / "openkbp_ct" / f"pt_{name}_{what}.nii.gz")) for name in (one, other)]
        for what in ("ct", "oar7")
    )
    found = align(side(ct[0]), side(ct[1], "moving"), "affine")
    assert overlap(*organs, found) > 0.17


def test_progress_rises_to_one_and_may_stop_the_search(fixed):
    moving = side(moving_head(np.eye(4)), "moving")
    shares = []
    align(fixed, moving, "rigid", progress=shares.append)
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(fixed, moving, "rigid", progress=stop)


def test_an_unknown_kind_is_refused(fixed):
    with pytest.raises(InputError, match="elastic"):
        align(fixed, fixed, "elastic")
