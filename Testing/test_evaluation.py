"""The numbers of a report, against plain references and shapes whose values are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.distance import surface_distances
from RegMambaLib.evaluation.folding import folding_percent, sd_log_jacobian
from RegMambaLib.evaluation.landmarks import target_registration_error
from RegMambaLib.evaluation.overlap import common_labels, dice, label_values
from RegMambaLib.evaluation.report import folding_report, label_report

SPACING = (1.5, 0.8, 2.5)


def blobs(seed, labels=(1, 2, 5), shape=(14, 18, 16), dtype=np.uint16):
    """A random but smooth label map."""
    rng = np.random.default_rng(seed)
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(len(labels) + 1)])
    return np.array([0, *labels], dtype)[fields.argmax(0)]


def box(shape, corner, size, label=1):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = label
    return labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("shift", [0, 100, 4_000_000_000])
def test_dice_is_twice_the_common_part_over_the_sum(dtype, shift):
    if shift > np.iinfo(dtype).max:
        pytest.skip("the label does not fit the type")
    labels = tuple(label + shift for label in (1, 2, 5))
    first, second = blobs(0, labels, dtype=dtype), blobs(1, labels, dtype=dtype)
    expected = {}
    for label in labels:
        a, b = first == label, second == label
        expected[label] = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert dice(first, second) == pytest.approx(expected)


def test_dice_counts_common_labels_unless_told():
    first, second = blobs(0, (1, 2, 5)), blobs(1, (2, 5, 7))
    assert label_values(first) == [1, 2, 5]
    assert common_labels(first, second) == [2, 5]
    assert list(dice(first, second)) == [2, 5]
    told = dice(first, second, [1, 2, 9])
    assert told[1] == 0 and 0 < told[2] < 1 and math.isnan(told[9])
    assert dice(first, first) == {1: 1, 2: 1, 5: 1}
    with pytest.raises(ValueError, match="shape"):
        dice(first, second[1:])


def reference_distance(first, second, label, spacing):
    """Surfaces by erosion and distances by a distance map of the whole volume."""
    surfaces = []
    for labels in (first, second):
        inside = labels == label
        surfaces.append(inside & ~ndimage.binary_erosion(inside))
    maps = [ndimage.distance_transform_edt(~surface, sampling=spacing[::-1]) for surface in surfaces]
    there, back = maps[1][surfaces[0]], maps[0][surfaces[1]]
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_agree_with_distance_maps(seed):
    first, second = blobs(seed), blobs(seed + 10)
    found = surface_distances(first, second, SPACING)
    assert list(found) == [1, 2, 5]
    for label, distance in found.items():
        assert distance == pytest.approx(reference_distance(first, second, label, SPACING))


def test_a_shifted_box_is_as_far_as_it_was_shifted():
    first = box((20, 20, 20), (5, 5, 5), (6, 6, 6))
    second = box((20, 20, 20), (8, 5, 5), (6, 6, 6))
    assert surface_distances(first, first, SPACING)[1] == (0, 0)
    # Three slices of 2.5 mm along k.
    assert surface_distances(first, second, SPACING)[1].hd95 == pytest.approx(7.5)


def test_distances_ignore_the_order_and_the_number_of_threads():
    first, second = blobs(0), blobs(1)
    there, back = (
        surface_distances(first, second, SPACING),
        surface_distances(second, first, SPACING, threads=1),
    )
    assert there.keys() == back.keys()
    np.testing.assert_allclose(list(there.values()), list(back.values()))


def test_a_label_that_is_missing_has_no_distance():
    first, second = blobs(0, (1, 2)), blobs(1, (1, 3))
    found = surface_distances(first, second, SPACING, [1, 2, 3, 9])
    assert not math.isnan(found[1].hd95)
    assert all(math.isnan(found[label].mean) for label in (2, 3, 9))


def test_an_empty_label_map_has_no_distances_and_no_overlap():
    first, empty = blobs(0), np.zeros((14, 18, 16), np.uint16)
    assert surface_distances(first, empty, SPACING) == {}
    assert all(math.isnan(found.hd95) for found in surface_distances(first, empty, SPACING, [1, 2]).values())
    assert dice(first, empty, [1, 2]) == {1: 0, 2: 0}


def test_folding_is_the_share_of_determinants_not_above_zero():
    jacobian = np.ones((4, 5, 5), np.float32)
    jacobian[0, 0, :2] = (0, -1)
    assert folding_percent(jacobian) == pytest.approx(2)
    mask = np.zeros(jacobian.shape, bool)
    mask[0, 0] = True
    assert folding_percent(jacobian, mask) == pytest.approx(40)
    assert folding_report(jacobian, ~mask)["folding_percent"] == 0
    assert folding_report(jacobian)["smallest_jacobian"] == -1


def test_sd_log_jacobian_is_zero_for_a_scaling_and_known_for_two_values():
    assert sd_log_jacobian(np.full((3, 3, 3), 1.7, np.float32)) == pytest.approx(0, abs=1e-6)
    half = np.ones((2, 4, 4), np.float32)
    half[0] = np.e**2
    assert sd_log_jacobian(half) == pytest.approx(1, abs=1e-6)
    assert np.isfinite(sd_log_jacobian(-half))


def test_landmarks_are_brought_to_moving_space():
    fixed = np.array([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0]])
    moving = fixed + np.array([3.0, 4.0, 0.0])
    np.testing.assert_allclose(target_registration_error(fixed, moving), [5, 5])
    shift = sitk.TranslationTransform(3, (3.0, 4.0, 0.0))
    np.testing.assert_allclose(target_registration_error(fixed, moving, shift), [0, 0])
    with pytest.raises(InputError, match="2 fixed and 1 moving"):
        target_registration_error(fixed, moving[:1])


def test_the_report_averages_what_exists_and_is_json():
    first, second = blobs(0, (1, 2, 5)), blobs(1, (1, 2))
    report = label_report(first, second, SPACING, [1, 2, 5])
    rows = report["per_label"]
    assert report["labels"] == 3
    assert rows["5"] == {"dice": 0, "hd95_mm": None, "surface_mm": None}
    assert report["dice"] == pytest.approx(sum(row["dice"] for row in rows.values()) / 3)
    assert report["hd95_mm"] == pytest.approx((rows["1"]["hd95_mm"] + rows["2"]["hd95_mm"]) / 2)
    json.dumps(report, allow_nan=False)
    quick = label_report(first, second, SPACING, [1, 2, 5], distances=False)
    assert quick["dice"] == report["dice"] and "hd95_mm" not in quick
    assert label_report(first, second, SPACING, [])["dice"] is None
