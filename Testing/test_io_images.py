"""Images and label maps: what is read keeps its space, and every unusable file is named in one sentence."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.errors import InputError
from RegMambaLib.io import nifti
from RegMambaLib.io.images import MIN_SIZE, read_grid, read_image, read_labels, write_image
from RegMambaLib.spatial.grid import Grid

OBLIQUE = Grid(
    (12, 10, 8),
    (1.5, 1.0, 2.5),
    (-30.0, 12.0, 40.0),
    (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0),
)
FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def noise(grid=OBLIQUE, dtype=np.float32):
    return grid.image((np.random.default_rng(0).normal(size=grid.shape) * 50 + 100).astype(dtype))


def save(image, path, **options):
    sitk.WriteImage(image, str(path), **options)
    return path


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_an_image_is_read_as_float32_in_its_own_space(tmp_path, suffix, dtype):
    image = noise(dtype=dtype)
    read = read_image(save(image, tmp_path / f"image{suffix}"))
    assert read.GetPixelID() == sitk.sitkFloat32
    assert Grid.of(read).same_as(OBLIQUE)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image).astype(np.float32), rtol=1e-6
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_written_image_is_read_back_as_it_was(tmp_path, suffix):
    write_image(noise(), tmp_path / f"image{suffix}")
    read = read_image(tmp_path / f"image{suffix}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(noise()))
    assert Grid.of(read).same_as(OBLIQUE)
    assert read_grid(tmp_path / f"image{suffix}").same_as(OBLIQUE)


def test_an_image_is_not_written_under_a_name_without_a_known_ending(tmp_path):
    refused(lambda: write_image(noise(), tmp_path / "image.jpg"), "image.jpg", ".nii.gz")


def test_a_missing_file_is_named(tmp_path):
    refused(lambda: read_image(tmp_path / "no.nii.gz"), "no.nii.gz", "does not exist")


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"empty{suffix}"
    path.touch()
    refused(lambda: read_image(path), path.name, "empty")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".txt"])
def test_a_file_that_is_no_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"letter{suffix}"
    path.write_text("To whom it may concern\n" * 100)
    refused(lambda: read_image(path), path.name, "no image")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kept", [0.97, 0.5, 0.0])
def test_a_truncated_file_is_refused_without_noise(tmp_path, capfd, suffix, compressed, kept):
    path = save(noise(), tmp_path / f"image{suffix}", useCompression=compressed)
    data = path.read_bytes()
    path.write_bytes(data[: max(int(kept * len(data)), 120)])
    refused(lambda: read_image(path), path.name)
    assert capfd.readouterr().err == ""


def test_a_nifti_of_several_gzip_members_is_read(tmp_path):
    data = save(noise(), tmp_path / "image.nii").read_bytes()
    path = tmp_path / "members.nii.gz"
    path.write_bytes(gzip.compress(data[:700]) + gzip.compress(data[700:]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), sitk.GetArrayFromImage(noise()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted(tmp_path, value, suffix, dtype):
    array = sitk.GetArrayFromImage(noise(dtype=dtype))
    array[2:4, 3, 3] = value
    path = save(OBLIQUE.image(array), tmp_path / f"holes{suffix}")
    refused(lambda: read_image(path), path.name, "2 NaN")


def test_a_constant_image_is_refused_unless_allowed(tmp_path):
    path = save(OBLIQUE.image(np.full(OBLIQUE.shape, 7.0)), tmp_path / "flat.mha")
    refused(lambda: read_image(path), "flat.mha", "7 everywhere")
    assert read_image(path, constant=True).GetSize() == OBLIQUE.size


@pytest.mark.parametrize("shape", [(1, 10, 12), (8, 3, 12)])
def test_a_volume_of_too_few_slices_is_refused(tmp_path, shape):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=shape))
    refused(lambda: read_image(save(image, tmp_path / "thin.nrrd")), "thin.nrrd", f"at least {MIN_SIZE}")


def test_images_of_other_dimensions_are_refused(tmp_path):
    array = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    volume = sitk.GetImageFromArray(array)
    refused(lambda: read_image(save(volume[:, :, 0], tmp_path / "flat.nii.gz")), "flat.nii.gz", "2-D")
    series = sitk.JoinSeries([volume, volume])
    refused(lambda: read_image(save(series, tmp_path / "series.nii.gz")), "series.nii.gz", "4-D")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_colours_vectors_and_complex_values_are_refused(tmp_path, suffix):
    red = noise(dtype=np.uint8)
    refused(lambda: read_image(save(sitk.Compose(red, red, red), tmp_path / f"rgb{suffix}")), "rgb", "colours")
    waves = sitk.RealAndImaginaryToComplex(noise(), noise())
    if suffix != ".mha":  # which holds none
        refused(lambda: read_image(save(waves, tmp_path / f"waves{suffix}")), "waves", "complex")


@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_a_voxel_size_of_zero_or_nan_is_refused(tmp_path, size):
    path = save(noise(), tmp_path / "image.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 80, size)
    path.write_bytes(data)
    refused(lambda: read_image(path), "image.nii", "voxel size")
    text = save(noise(), tmp_path / "image.mha", useCompression=False).read_bytes()
    (tmp_path / "image.mha").write_bytes(text.replace(b"ElementSpacing = 1.5", b"ElementSpacing = 0"))
    refused(lambda: read_image(tmp_path / "image.mha"), "image.mha", "voxel size")


@pytest.mark.parametrize(("noise_level", "accepted"), [(1e-4, True), (0.05, False)])
def test_axes_a_rounding_error_from_orthogonal_are_repaired_and_sheared_ones_refused(tmp_path, noise_level, accepted):
    path = save(noise(), tmp_path / "image.nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, 252, 0)  # no qform to fall back to
    rows = np.array(struct.unpack_from("<12f", data, 280)).reshape(3, 4)
    rows[0, 1] += noise_level
    rows[2, 0] -= noise_level
    struct.pack_into("<12f", data, 280, *rows.ravel())
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    if not accepted:
        refused(lambda: read_image(path), "image.nii", "sheared")
        return
    image = read_image(path)
    assert Grid.of(image).same_as(OBLIQUE, tolerance=nifti.MAX_SHEAR)
    assert read_grid(path).same_as(Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(noise()))


@pytest.mark.parametrize(
    ("dtype", "largest", "pixel"),
    [
        (np.uint8, 3, sitk.sitkUInt8),
        (np.uint16, 3, sitk.sitkUInt16),
        (np.uint32, 3, sitk.sitkUInt32),
        (np.int16, 3, sitk.sitkUInt8),
        (np.int32, 2035, sitk.sitkUInt16),
        (np.float32, 2035, sitk.sitkUInt16),
        (np.float64, 90000, sitk.sitkUInt32),
    ],
)
def test_labels_keep_unsigned_types_and_fit_others(tmp_path, dtype, largest, pixel):
    array = np.zeros(OBLIQUE.shape, dtype)
    array[2:5, 3:6, 4:8] = largest
    read = read_labels(save(OBLIQUE.image(array), tmp_path / "labels.nii.gz"))
    assert read.GetPixelID() == pixel
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), array)
    assert Grid.of(read).same_as(OBLIQUE)


@pytest.mark.parametrize(
    ("values", "word"),
    [((0, 0.5), "whole"), ((0, np.nan), "1 NaN"), ((-1, 2), "from -1"), ((0, 0), "only zeros")],
)
def test_what_is_no_label_map_is_refused(tmp_path, values, word):
    array = np.full(OBLIQUE.shape, values[0], np.float32)
    array[3, 3, 3] = values[1]
    refused(lambda: read_labels(save(OBLIQUE.image(array), tmp_path / "labels.nrrd")), "labels.nrrd", word)


def write_series(folder, uid, slices=8, gap=0.0, tilt=0.0, description="T1"):
    """A DICOM series with rescale slope 2 and intercept -100; returns its values, rescaled.

    ITK takes rescaled values and stores (value + 100) / 2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = (np.random.default_rng(0).integers(0, 1000, (slices, 10, 12)) * 2 - 100).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n in range(slices):
        image = sitk.GetImageFromArray(values[n : n + 1])
        image.SetSpacing((1.5, 1.2, 2.0))
        z = 2.0 * n + (gap if n >= slices // 2 else 0)
        tags = {
            "0008|0060": "MR",
            "0008|103e": description,
            "0020|000e": uid,
            "0020|000d": "1.2.3",
            "0008|0018": f"{uid}.{n}",
            "0020|0013": str(n),
            "0020|0032": f"1\\{2 + tilt * n}\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-100",
            "0028|1053": "2",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}-{n:03d}.dcm"))
        writer.Execute(image)
    return values


def test_a_dicom_folder_its_parent_and_one_of_its_files_give_the_same_volume(tmp_path):
    values = write_series(tmp_path / "study" / "series", "1.2.826.0.1.1")
    for path in ("study/series", "study", "study/series/1.2.826.0.1.1-003.dcm"):
        image = read_image(tmp_path / path)
        assert image.GetSize() == (12, 10, 8)
        np.testing.assert_allclose(image.GetSpacing(), (1.5, 1.2, 2.0))
        np.testing.assert_allclose(image.GetOrigin(), (1, 2, 0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    assert read_grid(tmp_path / "study") == Grid.of(image)


def test_a_folder_of_several_series_lists_them_and_a_file_chooses(tmp_path):
    write_series(tmp_path, "1.2.826.0.1.1", description="T1 MPRAGE")
    write_series(tmp_path, "1.2.826.0.1.2", slices=6, description="T2 FLAIR")
    refused(lambda: read_image(tmp_path), "2 series", "T1 MPRAGE, 8 files", "T2 FLAIR, 6 files")
    assert read_image(tmp_path / "1.2.826.0.1.2-000.dcm").GetSize() == (12, 10, 6)


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    refused(lambda: read_image(tmp_path), "no DICOM series")


@pytest.mark.parametrize("fault", [{"gap": 6.0}, {"tilt": 0.5}])
def test_dicom_slices_that_miss_or_tilt_are_refused(tmp_path, fault):
    write_series(tmp_path, "1.2.826.0.1.1", **fault)
    refused(lambda: read_image(tmp_path), "missing, repeated, uneven or tilted")


def test_nifti_2_is_called_by_its_name(tmp_path):
    path = tmp_path / "two.nii"
    path.write_bytes((540).to_bytes(4, "little") + bytes(600))
    with pytest.raises(InputError, match="NIfTI-2"):
        read_image(path)
