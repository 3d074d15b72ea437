"""Transforms survive every file format, and are read by the tools the formats belong to."""

from __future__ import annotations

import shutil
from collections import namedtuple

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.errors import InputError
from RegMambaLib.io.transforms import (
    chain,
    flatten,
    own_grid,
    parts,
    read_linear,
    read_transform,
    write_transform,
)
from RegMambaLib.spatial.grid import Grid

# Oblique, anisotropic and left-handed.
GRID = Grid(
    (14, 12, 10),
    (1.5, 1.0, 2.5),
    (-30.0, 12.0, 40.0),
    (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0),
)
CHAINS = (".h5", ".hdf5", ".tfm", ".txt")
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")


def bump(grid=GRID, height=(2.0, -1.5, 1.0)):
    """A smooth displacement in the middle of a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    middle, width = (np.array(grid.shape) - 1) / 2, np.array(grid.shape) / 5
    weight = np.exp(-0.5 * (((index - middle) / width) ** 2).sum(-1))
    return sitk.DisplacementFieldTransform(grid.image(weight[..., None] * np.array(height)))


def affine():
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((1.05, 0.1, 0.0, -0.08, 0.95, 0.02, 0.0, 0.05, 1.1))
    transform.SetTranslation((3.0, -2.0, 5.0))
    return transform


def composite():
    """First the bump, then the affine."""
    return sitk.CompositeTransform([affine(), bump()])


def points(grid=GRID, count=50):
    index = np.random.default_rng(0).uniform(0, np.array(grid.size) - 1, (count, 3))
    return grid.world(index)


def mapped(transform, where):
    return np.array([transform.TransformPoint(p) for p in where.tolist()])


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix", CHAINS)
def test_transform_files_keep_a_chain_as_simpleitk_reads_it(tmp_path, suffix):
    path = tmp_path / f"transform{suffix}"
    write_transform(composite(), path)
    names = ["DisplacementFieldTransform", "AffineTransform"]
    assert [part.GetName() for part in parts(read_transform(path))] == names
    for read in (read_transform(path), sitk.ReadTransform(str(path))):
        np.testing.assert_allclose(mapped(read, points()), mapped(composite(), points()), atol=1e-9)


@pytest.mark.parametrize("suffix", IMAGES)
def test_displacement_images_flatten_a_chain_onto_the_grid_inside(tmp_path, suffix):
    path = tmp_path / f"transform{suffix}"
    write_transform(composite(), path)
    voxels = GRID.world(np.random.default_rng(0).integers(0, GRID.size, (50, 3)))
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    for read in (read_transform(path), sitk.DisplacementFieldTransform(field)):
        np.testing.assert_allclose(mapped(read, voxels), mapped(composite(), voxels), atol=1e-5)
    assert own_grid(read_transform(path)).same_as(GRID)


@pytest.mark.parametrize("suffix", IMAGES)
def test_displacement_images_take_the_grid_of_a_reference(tmp_path, suffix):
    reference = Grid((9, 8, 7), (2.0, 3.0, 2.0), (-28.0, 10.0, 30.0))
    write_transform(affine(), tmp_path / f"t{suffix}", reference=reference)
    read = read_transform(tmp_path / f"t{suffix}")
    assert own_grid(read).same_as(reference)
    where = points(reference)
    np.testing.assert_allclose(mapped(read, where), mapped(affine(), where), atol=1e-4)


def test_a_mat_file_holds_a_linear_transform_only(tmp_path):
    rigid = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    linear = sitk.CompositeTransform([affine(), rigid])
    write_transform(linear, tmp_path / "linear.mat")
    read = read_linear(tmp_path / "linear.mat")
    np.testing.assert_allclose(mapped(read, points()), mapped(linear, points()), atol=1e-9)
    refused(lambda: write_transform(composite(), tmp_path / "chain.mat"), "not linear")


def test_a_chain_within_a_chain_is_opened(tmp_path):
    nested = sitk.CompositeTransform([affine(), composite()])
    write_transform(nested, tmp_path / "nested.h5")
    read = read_transform(tmp_path / "nested.h5")
    assert len(parts(read)) == 3
    np.testing.assert_allclose(mapped(read, points()), mapped(nested, points()), atol=1e-9)


def test_a_point_passes_a_chain_in_the_order_given():
    joined = chain(bump(), affine())
    np.testing.assert_allclose(mapped(joined, points()), mapped(affine(), mapped(bump(), points())), atol=1e-9)


def test_flatten_gives_lps_millimetres_at_voxels():
    field = flatten(composite(), GRID)
    assert field.shape == (*GRID.shape, 3)
    where = GRID.world(np.array([3, 4, 5]))
    np.testing.assert_allclose(field[5, 4, 3], mapped(composite(), where[None])[0] - where, atol=1e-9)


def test_only_a_displacement_that_comes_first_gives_a_grid(tmp_path):
    assert own_grid(composite()).same_as(GRID)
    after = sitk.CompositeTransform([bump(), affine()])
    assert own_grid(after) is None
    refused(lambda: write_transform(after, tmp_path / "t.nii.gz"), "reference")


def test_a_nifti_displacement_has_the_intent_that_slicer_wants_with_vectors_in_ras(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads the header of a NIfTI displacement")
    write_transform(bump(), tmp_path / "t.nii.gz")
    image = nibabel.load(tmp_path / "t.nii.gz")
    assert int(image.header["intent_code"]) == 1006
    assert image.shape == (*GRID.size, 1, 3)
    ras = np.asarray(image.dataobj)[7, 6, 5, 0]
    np.testing.assert_allclose(ras, flatten(bump(), GRID)[5, 6, 7] * (-1, -1, 1), atol=1e-5)
    np.testing.assert_allclose(image.affine[:3, 3], np.array(GRID.origin) * (-1, -1, 1), atol=1e-4)


def test_writing_a_nifti_displacement_touches_no_other_file(tmp_path):
    (tmp_path / "displacement.nii").write_text("somebody's own")
    write_transform(bump(), tmp_path / "t.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["displacement.nii", "t.nii.gz"]
    assert (tmp_path / "displacement.nii").read_text() == "somebody's own"


def test_a_nifti_displacement_as_itk_and_ants_write_it_is_lps(tmp_path):
    field = sitk.Cast(bump().GetDisplacementField(), sitk.sitkVectorFloat32)
    sitk.WriteImage(field, str(tmp_path / "ants.nii.gz"))
    read = read_transform(tmp_path / "ants.nii.gz")
    np.testing.assert_allclose(mapped(read, points()), mapped(bump(), points()), atol=1e-5)


@pytest.mark.parametrize("suffix", [".h5", ".nii.gz"])
def test_ants_moves_points_and_images_as_we_do(tmp_path, suffix):
    ants = pytest.importorskip("ants", reason="antspyx checks that ANTs reads our transforms")
    pandas = pytest.importorskip("pandas", reason="antspyx takes points as a pandas table")
    path = tmp_path / f"t{suffix}"
    write_transform(composite(), path)
    ours = read_transform(path)
    where = GRID.world(np.array([[4.0, 5.0, 5.0], [6.0, 6.0, 4.0], [8.0, 5.0, 3.0]]))
    theirs = ants.apply_transforms_to_points(3, pandas.DataFrame(where, columns=["x", "y", "z"]), [str(path)])
    np.testing.assert_allclose(theirs.to_numpy(), mapped(ours, where), atol=1e-3)
    image = GRID.image(np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    loaded = ants.image_read(str(tmp_path / "image.nii.gz"))
    moved = ants.apply_transforms(loaded, loaded, [str(path)], interpolator="linear").numpy()
    np.testing.assert_allclose(moved.T, sitk.GetArrayFromImage(GRID.resample(image, ours)), atol=2e-3)


def test_files_that_hold_no_transform_are_refused(tmp_path):
    scalar = GRID.image(np.random.default_rng(0).normal(size=GRID.shape))
    sitk.WriteImage(scalar, str(tmp_path / "scalar.nii.gz"))
    refused(lambda: read_transform(tmp_path / "scalar.nii.gz"), "scalar.nii.gz", "no displacement")
    (tmp_path / "parameters.txt").write_text("(Transform 'EulerTransform')\n")
    refused(lambda: read_transform(tmp_path / "parameters.txt"), "parameters.txt", "no transform")
    (tmp_path / "letter.h5").write_text("dear reader")
    refused(lambda: read_transform(tmp_path / "letter.h5"), "letter.h5", "no transform")
    (tmp_path / "table.csv").write_text("x,y,z\n")
    refused(lambda: read_transform(tmp_path / "table.csv"), "table.csv", "no transform by its name")
    (tmp_path / "empty.h5").touch()
    refused(lambda: read_transform(tmp_path / "empty.h5"), "empty.h5", "empty")
    refused(lambda: read_transform(tmp_path / "none.h5"), "none.h5", "does not exist")
    refused(lambda: read_transform(tmp_path), "is a folder")
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "plane.tfm"))
    refused(lambda: read_transform(tmp_path / "plane.tfm"), "plane.tfm", "2-D")
    refused(lambda: write_transform(affine(), tmp_path / "t.jpg"), "t.jpg", ".h5")
    refused(lambda: write_transform(affine(), tmp_path / "t.h5", reference=GRID), "t.h5", "leave the reference out")


def test_a_truncated_transform_is_refused_without_noise(tmp_path, capfd):
    write_transform(composite(), tmp_path / "t.h5")
    data = (tmp_path / "t.h5").read_bytes()
    (tmp_path / "t.h5").write_bytes(data[: len(data) // 2])
    refused(lambda: read_transform(tmp_path / "t.h5"), "t.h5", "damaged")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_displacement_that_is_not_finite_is_refused(tmp_path, suffix):
    field = sitk.GetArrayFromImage(bump().GetDisplacementField())
    field[3, 3, 3, 1] = np.nan
    sitk.WriteImage(GRID.image(field), str(tmp_path / f"holes{suffix}"))
    refused(lambda: read_transform(tmp_path / f"holes{suffix}"), f"holes{suffix}", "1 NaN")


def test_a_deformation_is_refused_where_a_linear_transform_is_needed(tmp_path):
    write_transform(composite(), tmp_path / "t.h5")
    refused(lambda: read_linear(tmp_path / "t.h5"), "t.h5", "not linear")


def test_a_full_disk_is_told_before_itk_writes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    refused(lambda: write_transform(composite(), tmp_path / "t.h5"), "t.h5", "No space left")
    assert not (tmp_path / "t.h5").exists()
