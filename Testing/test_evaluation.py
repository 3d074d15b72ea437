"""The numbers of a report, against plain references and shapes whose values are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.consistency import inverse_error
from RegMambaLib.evaluation.distance import surface_distances
from RegMambaLib.evaluation.folding import folding_percent, nondiffeomorphic_percent, sd_log_jacobian
from RegMambaLib.evaluation.landmarks import target_registration_error
from RegMambaLib.evaluation.names import read_label_names
from RegMambaLib.evaluation.overlap import common_labels, dice, label_values, volume_similarity
from RegMambaLib.evaluation.report import compare_labels, folding_report, label_report
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import displacement_transform
from RegMambaLib.spatial.jacobian import jacobian_determinant

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


def ball(shape, center, radius, spacing=SPACING):
    """Voxels within `radius` mm of a centre (k, j, i)."""
    place = (np.indices(shape).T - np.asarray(center)) * np.asarray(spacing[::-1])
    return (radius >= np.linalg.norm(place, axis=-1).T).astype(np.uint8)


def test_a_ball_in_a_larger_ball_is_as_far_as_their_radii_differ():
    spacing = (0.5, 0.8, 1.0)
    inner, outer = (ball((41, 51, 81), (20, 25, 40), radius, spacing) for radius in (9.0, 13.0))
    found = surface_distances(inner, outer, spacing)[1]
    assert found.mean == pytest.approx(4, abs=0.35) and found.hd95 == pytest.approx(4, abs=0.8)
    # |A and B| = |A|, so that Dice and volume similarity are one: both 2 |A| / (|A| + |B|).
    expected = 2 * inner.sum() / (inner.sum() + outer.sum())
    assert expected == pytest.approx(2 * 9**3 / (9**3 + 13**3), rel=0.02)
    assert dice(inner, outer)[1] == volume_similarity(inner, outer)[1] == pytest.approx(expected)


def test_structures_of_one_voxel_are_measured():
    first, second = np.zeros((2, 6, 7, 8), np.uint8)
    first[2, 3, 4] = second[3, 5, 4] = 1
    distance = math.hypot(SPACING[2], 2 * SPACING[1])
    assert surface_distances(first, second, SPACING)[1] == pytest.approx((distance, distance))
    assert surface_distances(first, first, SPACING)[1] == (0, 0)
    assert dice(first, second) == {1: 0} and volume_similarity(first, second) == {1: 1}


def test_volume_similarity_looks_at_volumes_only():
    first, second = box((20, 20, 20), (0, 0, 0), (4, 5, 6)), box((20, 20, 20), (10, 10, 10), (4, 5, 3))
    assert volume_similarity(first, second) == {1: pytest.approx(1 - 60 / 180)}
    assert volume_similarity(first, 0 * first, [1]) == {1: 0}
    assert math.isnan(volume_similarity(first, second, [7])[7])


def test_labels_of_one_map_only_do_not_count_and_names_choose():
    grid = Grid((16, 18, 14), SPACING)
    fixed, moving = grid.image(blobs(0, (1, 2, 5))), grid.image(blobs(1, (1, 5, 7)))
    assert set(compare_labels(fixed, moving, moving)["per_label"]) == {"1", "5"}
    assert set(compare_labels(fixed, moving, moving, only={5: "five", 7: "seven"})["per_label"]) == {"5"}
    # A label that the transform moves out of the image is lost, not absent.
    gone = grid.image(np.zeros(grid.shape, np.uint16))
    lost = compare_labels(fixed, moving, gone)["per_label"]["1"]
    assert lost["dice"] == 0 and lost["volume_similarity"] == 0 and lost["hd95_mm"] is None
    with pytest.raises(InputError, match="has a name"):
        compare_labels(fixed, moving, moving, only={9: "nine"})
    with pytest.raises(InputError, match="share no label"):
        compare_labels(fixed, gone, gone)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.json", '{"3": "left putamen", "12": "brain stem"}'),
        ("manifest.json", '{"cases": [], "label_names": {"3": "left putamen", "12": "brain stem"}}'),
        ("names.csv", "label,name\n3,left putamen\n12, brain stem\n"),
    ],
)
def test_label_names_come_from_json_a_manifest_or_csv(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_label_names(tmp_path / name) == {3: "left putamen", 12: "brain stem"}


def test_a_shipped_table_names_the_labels_that_are_evaluated():
    names = read_label_names("lpba40")
    assert len(names) == 54 and names[165] == "L hippocampus"


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.json", "[1, 2]", "no label table"),
        ("a.json", '{"x": "y"}', "no label table"),
        ("a.json", "{", "no readable JSON"),
        ("a.csv", "a,b\n1,2\n", "holds no label names"),
    ],
)
def test_a_file_without_label_names_is_refused(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=word):
        read_label_names(tmp_path / name)


def test_missing_label_names_are_named(tmp_path):
    with pytest.raises(InputError, match="There is no label table"):
        read_label_names(tmp_path / "none.json")
    with pytest.raises(InputError, match="does not exist"):
        read_label_names(tmp_path / "none.csv")


def test_no_volume_is_folded_by_a_scaling_and_all_of_it_by_a_mirror():
    index = np.indices((6, 7, 8)).astype(np.float32)
    assert nondiffeomorphic_percent(0 * index) == 0
    assert nondiffeomorphic_percent(0.7 * index) == 0
    assert nondiffeomorphic_percent(index * np.array([-2, 0, 0], np.float32)[:, None, None, None]) == pytest.approx(100)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("far", [0.9, 1.3, 1.8])
def test_a_voxel_moved_past_its_neighbour_folds_a_known_volume(axis, far):
    """Eight of the ten kinds of tetrahedra at the voxel's and the neighbour's corners turn over, by (far - 1) / 6."""
    u = np.zeros((3, 20, 9, 8), np.float32)
    u[axis, 9, 4, 4] = far
    cells = 19 * 8 * 7
    expected = 100 * max(0.0, far - 1) * 8 / 6 / 2 / cells
    assert nondiffeomorphic_percent(u) == pytest.approx(expected, abs=1e-7)
    away = np.ones(u.shape[1:], bool)
    away[9, 4, 4] = False
    assert nondiffeomorphic_percent(u, away) == 0
    # The strict determinants are <= 0 in the same cases.
    assert (folding_percent(jacobian_determinant(u, strict=True)) > 0) == (far > 1)


def test_folded_volume_is_that_of_the_tetrahedra_turned_inside_out():
    rng = np.random.default_rng(0)
    u = rng.normal(scale=0.5, size=(3, 4, 5, 11)).astype(np.float32)
    points = np.moveaxis(np.indices(u.shape[1:]) + u.astype(float), 0, -1)
    corners = np.array([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    total = 0.0
    for cell in np.ndindex(3, 4, 10):
        for odd in (0, 1):  # two ways: the middle tetrahedron on the even or on the odd corners
            middle = [c for c in corners if c.sum() % 2 == odd]
            tips = [c for c in corners if c.sum() % 2 != odd]
            tetrahedra = [middle] + [[t, *(c for c in middle if np.abs(c - t).sum() == 1)] for t in tips]
            for tetrahedron in tetrahedra:
                at = np.array(tetrahedron)
                start, end = at[1:] - at[0], points[tuple((at + cell).T)]
                volume = np.linalg.det(end[1:] - end[0]) * np.sign(np.linalg.det(start)) / 6
                total += max(0.0, -volume) / 2
    assert total > 1
    assert nondiffeomorphic_percent(u) == pytest.approx(100 * total / (3 * 4 * 10), rel=1e-5)


def test_inverse_error_is_the_distance_between_there_and_back():
    grid = Grid((9, 8, 7), SPACING, (3.0, -4.0, 5.0), (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, -1.0))
    there, back = (sitk.TranslationTransform(3, shift) for shift in ((3.0, -1.0, 2.0), (-3.0, 4.0, 2.0)))
    np.testing.assert_allclose(inverse_error(there, there.GetInverse(), grid), 0, atol=1e-9)
    np.testing.assert_allclose(inverse_error(there, back, grid), 5)
    mask = np.zeros(grid.shape, bool)
    mask[1:3, 2, 4] = True
    assert inverse_error(there, back, grid, mask).shape == (2,)
    # The transform goes first: a displacement moves voxel centres, and the "inverse" none of them.
    u = np.zeros((3, *grid.shape), np.float32)
    u[0] = 1
    error = inverse_error(displacement_transform(u, grid), sitk.Transform(3, sitk.sitkIdentity), grid)
    np.testing.assert_allclose(error, SPACING[2])


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
    assert rows["5"] == {"dice": 0, "hd95_mm": None, "surface_mm": None, "volume_similarity": 0}
    assert report["dice"] == pytest.approx(sum(row["dice"] for row in rows.values()) / 3)
    assert report["hd95_mm"] == pytest.approx((rows["1"]["hd95_mm"] + rows["2"]["hd95_mm"]) / 2)
    json.dumps(report, allow_nan=False)
    quick = label_report(first, second, SPACING, [1, 2, 5], distances=False)
    assert quick["dice"] == report["dice"] and "hd95_mm" not in quick
    assert label_report(first, second, SPACING, [])["dice"] is None


def test_label_names_that_are_no_numbers_and_empty_landmarks_are_refused(tmp_path):
    from RegMambaLib.evaluation.landmarks import target_registration_error
    from RegMambaLib.evaluation.names import read_label_names

    (tmp_path / "names.json").write_text('{"label_names": {"a": "b"}}')
    with pytest.raises(InputError, match="no number"):
        read_label_names(tmp_path / "names.json")
    with pytest.raises(InputError, match="no pairs"):
        target_registration_error(np.empty((0, 3)), np.empty((0, 3)))
