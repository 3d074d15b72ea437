"""Label maps in their frame, made-up shapes, contrasts, and the pairs that are rendered from them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import SimpleITK as sitk
import torch
from fixtures.head_maps import BOXES, head, lps
from scipy import ndimage

from RegMambaLib.errors import InputError
from RegMambaLib.training import anatomy, contrast, rendering, separable, synthetic
from RegMambaLib.training.shapes import random_shapes
from RegMambaLib.training.synthetic_settings import GENERAL, SyntheticSettings

PARTS = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_clean", "moving_clean")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def brains() -> list[anatomy.Anatomy]:
    return [anatomy.place_anatomy(head(k), f"made_up_{k}") for k in range(2)]


def test_brain_lands_in_the_common_frame_without_skin(brains):
    labels = brains[0].labels.numpy()
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
    assert (again == brains[0].labels).float().mean() > 0.99


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
            inside = np.argwhere(one.labels.numpy())
            np.testing.assert_allclose((inside.min(0) + inside.max(0)) / 2, (79.5, 95.5, 79.5), atol=0.5)
            np.testing.assert_allclose(np.ptp(inside, axis=0) + 1, np.array((33, 63, 33)) / voxel, atol=1.5)
        made = pair([a, b], base=GENERAL, shapes=0.0, crops=0.0)
        assert {0, 101} <= set(np.unique(made.fixed_labels)) <= {0, 101, 102, 103}
        assert made.fixed[made.fixed_labels > 0].mean() > 0.05
    labels = np.arange(27 * 8, dtype=np.uint16).reshape(6, 6, 6)
    sitk.WriteImage(lps(labels), str(tmp_path / "c.nii.gz"))
    with pytest.raises(InputError, match="149"):
        anatomy.load_centred(tmp_path, 1.0)


def pair(brains, seed: int = 0, base: SyntheticSettings | None = None, **changes) -> synthetic.Pair:
    settings = replace(base or SyntheticSettings(), **changes)
    return synthetic.random_pair(
        brains, np.random.default_rng(seed), shape=(20, 24, 22), spacing=8.0, settings=settings
    )


@pytest.mark.parametrize("base", [SyntheticSettings(), GENERAL], ids=["t1", "general"])
def test_pairs_depend_on_the_seed_alone(brains, base):
    one, same, other = pair(brains, base=base), pair(brains, base=base), pair(brains, seed=1, base=base)
    assert all((getattr(one, part) == getattr(same, part)).all() for part in PARTS)
    assert one.fixed.shape != other.fixed.shape or (one.fixed != other.fixed).any()


def test_threads_and_what_torch_draws_elsewhere_leave_a_pair_alone(brains):
    made = []
    state = torch.get_rng_state()
    # The last bit may hang on how many threads torch shares its work out to, which differs in pytest's own thread.
    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as threads:
            making = [threads.submit(pair, brains, seed, GENERAL) for seed in range(6)]
            torch.rand(1000)
            made.append([future.result() for future in making])
    assert all((getattr(a, part) == getattr(b, part)).all() for a, b in zip(*made, strict=True) for part in PARTS)
    torch.set_rng_state(state)
    pair(brains)
    assert (torch.get_rng_state() == state).all()


@pytest.mark.parametrize("changes", [{"shapes": 0.0, "crops": 0.0}, {"shapes": 0.0, "crops": 1.0}, {"shapes": 1.0}])
def test_no_step_needs_a_value_back_from_the_device_or_mixes_devices(brains, monkeypatch, changes):
    """Tensors on "meta" have no values: reading one, or a shape that hangs on one, raises; so does another device."""
    meta = torch.device("meta")
    monkeypatch.setattr(rendering, "white_noise", lambda seed, shape, device: torch.empty(shape, device=device))
    shapes = {"crop_size": (12, 16), **changes}
    settings = replace(GENERAL, **shapes)
    made = synthetic.random_pair(
        [a.to(meta) for a in brains],
        np.random.default_rng(4),
        shape=(20, 24, 22),
        spacing=8.0,
        settings=settings,
        device=meta,
    )
    assert all(getattr(made, part).device == meta for part in PARTS)
    monkeypatch.undo()
    assert made.fixed.shape == made.moving_clean.shape == pair(brains, 4, GENERAL, **shapes).fixed.shape


def test_noise_changes_nothing_else(brains, monkeypatch):
    """As between two kinds of device: the dense noise is other, and labels and clean images are the same."""
    ours = pair(brains, 5, GENERAL, noise=(0.05, 0.05))
    noise = rendering.white_noise
    monkeypatch.setattr(rendering, "white_noise", lambda seed, shape, device: noise(seed + 1, shape, device))
    other = pair(brains, 5, GENERAL, noise=(0.05, 0.05))
    assert (ours.fixed != other.fixed).any() and (ours.fixed - other.fixed).std() < 0.15
    assert all((getattr(ours, part) == getattr(other, part)).all() for part in PARTS[2:])


def test_positions_and_tables_give_the_labels_and_their_brightness():
    labels = torch.zeros(6, 7, 8, dtype=torch.uint8)
    labels[2:, 3:, 1:] = 5
    labels[2:4, 3:5, 1:3] = 9
    table, halves = np.arange(256) / 10.0, np.arange(256) / 20.0
    rng = np.random.default_rng(0)
    positions = rng.uniform(-2, 9, (3, 5, 6, 7)).astype(np.float32)
    images, nearest = rendering._sampled(labels, [table, halves], torch.from_numpy(positions))
    expected = ndimage.map_coordinates(np.pad(table[labels.numpy()], 4), positions + 4, order=1)
    np.testing.assert_allclose(images[0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(images[1], images[0] / 2)
    rounded = ndimage.map_coordinates(np.pad(labels.numpy(), 4), np.floor(positions + 4.5), order=0)
    assert (nearest.numpy() == rounded).all() and nearest.dtype == torch.uint8


def test_matrices_along_the_axes_are_the_usual_filters():
    volume = np.random.default_rng(0).random((9, 7, 8)).astype(np.float32)
    blurred = separable.along_axes(
        volume, [separable.gaussian(n, s) for n, s in zip(volume.shape, (1, 0, 2), strict=True)]
    )
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(volume, (1, 0, 2)), atol=1e-5)
    stretch = [torch.from_numpy(separable.stretching(n, m)) for n, m in zip(volume.shape, (12, 7, 15), strict=True)]
    tensor = torch.from_numpy(volume)
    usual = torch.nn.functional.interpolate(tensor[None, None], (12, 7, 15), mode="trilinear", align_corners=True)[0, 0]
    torch.testing.assert_close(separable.along_axes(torch.stack([tensor, tensor]), stretch)[1], usual)
    field = separable.smooth_field(np.random.default_rng(1), (20, 21, 22), 6.0, 0.7)
    assert field.std() == pytest.approx(0.7, rel=1e-4) and np.abs(np.diff(field, axis=0)).max() < 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_percentile_is_that_of_the_voxels_inside(share):
    rng = np.random.default_rng(0)
    image, inside = rng.random((15, 16, 17)).astype(np.float32), rng.random((15, 16, 17)) < share
    found = rendering.percentile(torch.from_numpy(image * inside), torch.from_numpy(inside), 99.5)
    assert float(found) == pytest.approx(np.percentile(image[inside], 99.5) if inside.any() else 0.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["brains", "shapes", "cut-outs"])
def test_general_pairs_are_within_range_finite_and_dark_outside(brains, kind):
    changes = {"shapes": float(kind == "shapes"), "crops": float(kind == "cut-outs"), "crop_size": (12, 16)}
    for seed in range(4):
        one = pair(brains, seed, GENERAL, **changes)
        for image, labels, clean in (
            (one.fixed, one.fixed_labels, one.fixed_clean),
            (one.moving, one.moving_labels, one.moving_clean),
        ):
            assert image.shape == labels.shape == clean.shape
            assert image.dtype == clean.dtype == torch.float32 and labels.dtype == torch.uint8
            assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1
            assert clean.isfinite().all() and clean.min() >= 0
            # Far from every structure there is nothing; the voxels next to one hold a share of it.
            outside = ~ndimage.binary_dilation(labels > 0, iterations=2)
            assert (image[outside] == 0).all()
        if kind == "cut-outs":
            assert max(one.fixed.shape) < 16


def means(image: torch.Tensor, labels: torch.Tensor) -> dict[int, float]:
    return {int(v): float(image[labels == v].mean()) for v in labels.unique() if (labels == v).sum() > 30}


def test_clean_images_share_their_contrast_where_the_images_do_not(brains):
    differ = []
    for seed in range(6):
        one = pair(brains, seed, GENERAL, shapes=0.0, crops=0.0)
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
        assert image.dtype == torch.float32 and labels.dtype == torch.uint8
        assert image.min() == 0 and image.max() == 1 and image.isfinite().all()
        white, grey = image[np.isin(labels, (2, 41))].mean(), image[np.isin(labels, (3, 42))].mean()
        assert white > grey + 0.1 > 0.3
        assert image[labels == 0].mean() < 0.05


def test_without_randomness_the_brain_is_shown_as_it_is(brains):
    names = ("pose_rotation", "pose_shift", "rotation", "scaling", "shear", "shift")
    still = dict.fromkeys((*names, "coarse_bend", "fine_bend", "structure_spread", "gamma"), 0.0)
    one = pair(brains, **still)
    # 8 mm voxels of the centred grid fall on the voxels 79.5 + 8 k of the frame, half way between two.
    candidates = [brains[k].labels[4:160:8, 4:192:8, 0:160:8].numpy() for k in range(2)]
    inside = one.fixed_labels[:, :, 1:21].numpy()
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
    one, same = (random_shapes(np.random.default_rng(3), 12, (14.0, 40.0), bounded, CPU) for _ in range(2))
    labels = one.labels.numpy()
    assert (labels == same.labels.numpy()).all() and not one.brain
    assert labels.shape == anatomy.FRAME_SHAPE and labels.dtype == np.uint8
    values, counts = np.unique(labels, return_counts=True)
    assert set(values) <= {0, *range(101, 113)} and len(values) > 6
    assert (values[0] == 0) == bounded
    assert counts.max() < 0.9 * labels.size
    # Neighbours agree almost everywhere: shapes, no noise.
    assert (np.diff(labels.astype(int), axis=0) != 0).mean() < 0.1


def test_the_documentation_lists_every_range():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+ \| [^|]+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE))
    for name, usual in vars(SyntheticSettings()).items():
        shown = ["..".join(f"{v:g}" for v in np.atleast_1d(value)) for value in (usual, getattr(GENERAL, name))]
        assert rows[name] == " | ".join(shown), name
