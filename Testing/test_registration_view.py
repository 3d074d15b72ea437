"""Where the similarity counts: not at the ends of a field of view, whether it ends at the image or in padding."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import linear, made_grid, made_head

from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.registration.view import field_of_view, is_cutout, similarity_weight, whole_windows
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform

GRID = made_grid((40, 44, 36), (4.4, 4.4, 4.4), (0, 0, 0), (0.0, 0.0, 0.0))


def head():
    return sitk.GetArrayFromImage(made_head(GRID, lambda points: points))


def side(array):
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(made_head(GRID, lambda points: points))
    return prepare(image, "fixed")


def cut_out(array, box, padding=0.0):
    """The array in a box, padding around."""
    out = np.full_like(array, padding)
    out[box] = array[box]
    return out


def textured(shape=GRID.shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1, shape).astype(np.float32)


def test_a_whole_head_is_seen_wherever_the_image_ends():
    assert field_of_view(side(head())) is None


def test_a_skull_stripped_head_in_padding_is_not_taken_for_a_cut_out():
    array = head()
    array[array < 0.2 * array.max()] = 0
    assert field_of_view(side(array)) is None


def test_anatomy_that_goes_on_beyond_the_image_is_cut_there():
    array = head()
    box = field_of_view(side(np.concatenate([array[18:], np.zeros_like(array[:18])])))
    assert box is not None and box[0].start == 0


@pytest.mark.parametrize("padding", [0.0, -1000.0])
def test_a_cut_out_in_padding_is_seen_up_to_its_faces(padding):
    box = (slice(8, 30), slice(10, 34), slice(6, 31))
    assert field_of_view(side(cut_out(textured(), box, padding))) == box


def test_only_a_piece_that_is_cut_on_all_sides_is_a_cutout():
    assert is_cutout(side(textured()))
    assert is_cutout(side(cut_out(textured(), (slice(8, 30), slice(10, 34), slice(6, 31)))))
    assert not is_cutout(side(head()))
    assert not is_cutout(side(np.concatenate([head()[18:], np.zeros_like(head()[:18])])))


def test_the_box_is_open_where_padding_cuts_nothing_off():
    array = head()
    array[array < 0.2 * array.max()] = 0
    array[:18] = 0
    box = field_of_view(side(array))
    assert box is not None and box[0] == slice(18, GRID.shape[0])
    assert box[1:] == (slice(0, GRID.shape[1]), slice(0, GRID.shape[2]))


def weight(sides, masks=(None, None), window=5, shift=(0, 0, 0)):
    through = affine_transform(np.eye(4)), affine_transform(linear((0, 0, 0), shift))
    return whole_windows(similarity_weight(Grid.of(sides[0].image), sides, through, masks), window)


def test_whole_images_count_everywhere():
    assert weight((side(head()), side(head()))).size == 0


def test_no_window_reaches_over_the_faces_of_either_cut_out():
    first = (slice(8, 30), slice(10, 34), slice(6, 31))
    second = (slice(5, 27), slice(12, 38), slice(9, 34))
    found = weight((side(cut_out(textured(), first)), side(cut_out(textured(seed=1), second))))
    expected = np.zeros(GRID.shape, bool)
    both = tuple(slice(max(a.start, b.start) + 2, min(a.stop, b.stop) - 2) for a, b in zip(first, second, strict=True))
    expected[both] = True
    np.testing.assert_array_equal(found > 0, expected)


def test_a_mask_counts_within_the_field_of_view_only():
    box = (slice(8, 30), slice(10, 34), slice(6, 31))
    own = side(cut_out(textured(), box))
    mask = sitk.Image(own.image.GetSize(), sitk.sitkUInt8) + 1
    mask.CopyInformation(own.image)
    found = weight((own, side(head())), (mask, None), window=3)
    expected = np.zeros(GRID.shape, bool)
    expected[9:29, 11:33, 7:30] = True
    np.testing.assert_array_equal(found > 0, expected)


def test_a_mask_whose_grid_differs_by_a_rounding_error_counts():
    image = side(head())
    mask = sitk.GetImageFromArray((head() > 0.5 * head().max()).astype(np.uint8))
    mask.CopyInformation(image.image)
    mask.SetOrigin([v + 0.005 * GRID.spacing[0] for v in mask.GetOrigin()])
    through = (affine_transform(np.eye(4)),) * 2
    weight = similarity_weight(GRID, (image, image), through, (mask, None))
    assert 0 < weight.mean() < 0.5


@pytest.mark.parametrize(("slices", "left"), [(20, 14), (10, 6), (6, 4), (4, 2), (1, 1)])
def test_half_of_a_thin_inside_is_left(slices, left):
    inside = np.zeros((24, 30, 30), np.float32)
    inside[2 : 2 + slices] = 1
    found = whole_windows(inside, 7)
    assert found.any(axis=(1, 2)).sum() == left
    assert found.shape == inside.shape and whole_windows(np.empty((0, 0, 0), np.float32), 7).size == 0
