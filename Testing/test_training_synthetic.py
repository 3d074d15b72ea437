"""Label maps in their frame, made-up shapes, contrasts, and the pairs that are rendered from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
import SimpleITK as sitk
from fixtures.head_maps import BOXES, head, lps
from scipy import ndimage

from RegMambaLib.errors import InputError
from RegMambaLib.training import anatomy, contrast, synthetic
from RegMambaLib.training.shapes import random_shapes

PARTS = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_clean", "moving_clean")


@pytest.fixture(scope="module")
def brains() -> list[anatomy.Anatomy]:
    return [anatomy.place_anatomy(head(k), f"made_up_{k}") for k in range(2)]


def test_brain_lands_in_the_common_frame_without_skin(brains):
    labels = brains[0].labels
    assert labels.shape == anatomy.FRAME_SHAPE and labels.dtype == np.uint8
    kept = {int(v) for v in np.unique(labels)}
    outside_csf = {anatomy.SULCAL_CSF, anatomy.RIM_NEAR, anatomy.RIM_MIDDLE, anatomy.RIM_FAR}
    assert kept - outside_csf == set(BOXES) - {24, 516} | {0}
    cerebrum = np.argwhere(np.isin(labels, (2, 3, 41, 42)))
    centre = cerebrum.mean(axis=0) - (np.array(anatomy.FRAME_SHAPE) - 1) / 2
    np.testing.assert_allclose(centre, (11.4, 0.2, 0.0), atol=1.5)
    np.testing.assert_allclose(cerebrum.std(axis=0), (28.1, 42.5, 36.1), atol=1.5)


def test_pose_and_size_of_the_head_do_not_matter(brains):
    turned = np.zeros((70, 70, 70), np.int32)
    turned[10:50, 5:53, 20:60] = head()
    again = anatomy.place_anatomy(turned, "shifted").labels
    assert (again == brains[0].labels).mean() > 0.99


def test_map_without_known_structures_is_refused():
    with pytest.raises(InputError, match="FreeSurfer"):
        anatomy.place_anatomy(np.ones((8, 8, 8), np.int32), "ones")


def test_label_maps_are_read_in_any_orientation(tmp_path, brains):
    for k in range(2):
        image = sitk.DICOMOrient(lps(head(k)), "RAI" if k else "ASL")
        sitk.WriteImage(image, str(tmp_path / f"head_{k}.nii.gz"))
    read = anatomy.load_anatomies(tmp_path)
    assert [a.name for a in read] == ["head_0", "head_1"]
    assert all((a.labels == b.labels).all() for a, b in zip(read, brains, strict=True))
    (tmp_path / "head_1.nii.gz").unlink()
    with pytest.raises(InputError, match="at least two"):
        anatomy.load_anatomies(tmp_path)


def test_maps_that_are_no_heads_come_to_the_middle_of_the_frame_numbered_anew(tmp_path):
    for name, values, corner in (("a", (7, 3000), 2), ("b", (7, 12), 9)):
        labels = np.zeros((30, 30, 30), np.uint16)
        labels[corner : corner + 11, 4:25, 8:19] = values[0]
        labels[corner + 3 : corner + 6, 6:12, 10:14] = values[1]
        sitk.WriteImage(sitk.DICOMOrient(lps(labels, 3.0), "RAS"), str(tmp_path / f"{name}.nii.gz"))
    for voxel in (1.0, 1.5):
        a, b = anatomy.load_centred(tmp_path, voxel)
        assert not a.brain and a.labels.shape == anatomy.FRAME_SHAPE
        assert set(np.unique(a.labels)) == {0, 101, 103} and set(np.unique(b.labels)) == {0, 101, 102}
        for one in (a, b):
            inside = np.argwhere(one.labels)
            np.testing.assert_allclose((inside.min(0) + inside.max(0)) / 2, (79.5, 95.5, 79.5), atol=0.5)
            np.testing.assert_allclose(np.ptp(inside, axis=0) + 1, np.array((33, 63, 33)) / voxel, atol=1.5)
        made = pair([a, b], base=synthetic.GENERAL, shapes=0.0, crops=0.0)
        assert {0, 101} <= set(np.unique(made.fixed_labels)) <= {0, 101, 102, 103}
        assert made.fixed[made.fixed_labels > 0].mean() > 0.05
    labels = np.arange(27 * 8, dtype=np.uint16).reshape(6, 6, 6)
    sitk.WriteImage(lps(labels), str(tmp_path / "c.nii.gz"))
    with pytest.raises(InputError, match="149"):
        anatomy.load_centred(tmp_path, 1.0)


def pair(brains, seed: int = 0, base: synthetic.SyntheticSettings | None = None, **changes) -> synthetic.Pair:
    settings = replace(base or synthetic.SyntheticSettings(), **changes)
    return synthetic.random_pair(
        brains, np.random.default_rng(seed), shape=(20, 24, 22), spacing=8.0, settings=settings
    )


@pytest.mark.parametrize("base", [synthetic.SyntheticSettings(), synthetic.GENERAL], ids=["t1", "general"])
def test_pairs_depend_on_the_seed_alone(brains, base):
    one, same, other = pair(brains, base=base), pair(brains, base=base), pair(brains, seed=1, base=base)
    assert all((getattr(one, part) == getattr(same, part)).all() for part in PARTS)
    assert one.fixed.shape != other.fixed.shape or (one.fixed != other.fixed).any()


@pytest.mark.parametrize("kind", ["brains", "shapes", "cut-outs"])
def test_general_pairs_are_within_range_finite_and_dark_outside(brains, kind):
    changes = {"shapes": float(kind == "shapes"), "crops": float(kind == "cut-outs"), "crop_size": (12, 16)}
    for seed in range(4):
        one = pair(brains, seed, synthetic.GENERAL, **changes)
        for image, labels, clean in (
            (one.fixed, one.fixed_labels, one.fixed_clean),
            (one.moving, one.moving_labels, one.moving_clean),
        ):
            assert image.shape == labels.shape == clean.shape
            assert image.dtype == clean.dtype == np.float32 and labels.dtype == np.uint8
            assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
            assert np.isfinite(clean).all() and clean.min() >= 0
            # Far from every structure there is nothing; the voxels next to one hold a share of it.
            outside = ~ndimage.binary_dilation(labels > 0, iterations=2)
            assert (image[outside] == 0).all()
        if kind == "cut-outs":
            assert max(one.fixed.shape) < 16


def means(image: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    return {int(v): float(image[labels == v].mean()) for v in np.unique(labels) if (labels == v).sum() > 30}


def test_clean_images_share_their_contrast_where_the_images_do_not(brains):
    differ = []
    for seed in range(6):
        one = pair(brains, seed, synthetic.GENERAL, shapes=0.0, crops=0.0)
        sides = [
            (means(one.fixed_clean, one.fixed_labels), means(one.moving_clean, one.moving_labels)),
            (means(one.fixed, one.fixed_labels), means(one.moving, one.moving_labels)),
        ]
        clean, seen = (np.array([[a[v], b[v]] for v in a.keys() & b.keys() if v in (2, 3, 41, 42)]) for a, b in sides)
        assert np.abs(clean[:, 0] - clean[:, 1]).max() < 0.12
        differ.append(np.abs(seen[:, 0] - seen[:, 1]).max())
    assert max(differ) > 0.25


def test_clean_images_are_the_images_where_the_contrast_is_shared(brains):
    one = pair(brains)
    assert one.fixed_clean is one.fixed and one.moving_clean is one.moving


def test_images_look_like_stripped_t1(brains):
    one = pair(brains, grey=(0.6, 0.6), csf=(0.1, 0.1), noise=(0, 0), gamma=0.0)
    for image, labels in ((one.fixed, one.fixed_labels), (one.moving, one.moving_labels)):
        assert image.shape == labels.shape == (20, 24, 22)
        assert image.dtype == np.float32 and labels.dtype == np.uint8
        assert image.min() == 0 and image.max() == 1 and np.isfinite(image).all()
        white, grey = image[np.isin(labels, (2, 41))].mean(), image[np.isin(labels, (3, 42))].mean()
        assert white > grey + 0.1 > 0.3
        assert image[labels == 0].mean() < 0.05


def test_without_randomness_the_brain_is_shown_as_it_is(brains):
    names = ("pose_rotation", "pose_shift", "rotation", "scaling", "shear", "shift")
    still = dict.fromkeys((*names, "coarse_bend", "fine_bend", "structure_spread", "gamma"), 0.0)
    one = pair(brains, **still)
    # 8 mm voxels of the centred grid fall on the voxels 79.5 + 8 k of the frame, half way between two.
    candidates = [brains[k].labels[4:160:8, 4:192:8, 0:160:8] for k in range(2)]
    inside = one.fixed_labels[:, :, 1:21]
    assert max((inside == c).mean() for c in candidates) > 0.9


def test_t1_is_bright_in_white_matter_and_dark_in_fluid():
    table = contrast.t1_table(grey=0.6, csf=0.1)
    assert table.shape == (256,) and table[0] == 0 and (table[list(contrast.RIMS)] == 0).all()
    assert table[2] == table[41] == 1 and table[3] == table[42] == 0.6
    assert (table[[4, 43, 24]] == 0.1).all() and 0.6 < table[10] < 1


def test_other_contrasts_keep_the_background_and_the_two_sides_alike():
    table = contrast.t1_table(grey=0.6, csf=0.1)
    inverted = 0
    for seed in range(40):
        other = contrast.other_contrast(np.random.default_rng(seed), table)
        assert ((other == 0) == (table == 0)).all() and other.max() <= 1 and other[table > 0].min() >= 0.03
        np.testing.assert_allclose(other[[2, 3, 10, 17]], other[[41, 42, 49, 53]], atol=0.25)
        assert np.ptp(other[[4, 43, 14, 15, 24]]) < 1e-9
        inverted += other[2] < other[3] < other[4]
    assert 4 < inverted < 30


@pytest.mark.parametrize("bounded", [True, False])
def test_shapes_fill_the_frame_with_large_connected_pieces(bounded):
    one, same = (random_shapes(np.random.default_rng(3), 12, (14.0, 40.0), bounded) for _ in range(2))
    assert (one.labels == same.labels).all() and not one.brain
    assert one.labels.shape == anatomy.FRAME_SHAPE and one.labels.dtype == np.uint8
    values, counts = np.unique(one.labels, return_counts=True)
    assert set(values) <= {0, *range(101, 113)} and len(values) > 6
    assert (values[0] == 0) == bounded
    assert counts.max() < 0.9 * one.labels.size
    # Neighbours agree almost everywhere: shapes, no noise.
    assert (np.diff(one.labels.astype(int), axis=0) != 0).mean() < 0.1
