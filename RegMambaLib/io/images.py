"""Images and label maps as SimpleITK images: NIfTI, NRRD, MetaImage, what else ITK reads, DICOM folders."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, is_out_of_memory
from ..spatial.grid import Grid
from . import dicom, nifti
from .atomic import writing
from .quiet import quiet_itk

if TYPE_CHECKING:
    import SimpleITK as sitk

MIN_SIZE = 4
"""Voxels an image needs along each axis."""
WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")
_FORMATS = "NIfTI, NRRD, MetaImage or a DICOM folder"


def read_image(path: str | Path, *, constant: bool = False) -> sitk.Image:
    """A 3-D scalar volume as float32, in its own space.

    Args:
        path: an image file, a folder with one DICOM series, or one file of a series.
        constant: accept an image that has the same value everywhere.

    Raises:
        InputError: missing, empty, truncated, no image, not 3-D scalar, thinner than `MIN_SIZE` voxels,
            without a valid voxel size, not finite, or constant.
    """
    import SimpleITK as sitk

    path = Path(path)
    image = sitk.Cast(_read(path), sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    check_finite(path, values)
    if not constant and values.min() == values.max():
        raise InputError(
            f"{path} has the value {values.flat[0]:g} everywhere, so there is nothing to register; "
            "is it the right file?"
        )
    return image


def read_labels(path: str | Path) -> sitk.Image:
    """A 3-D label map (or mask) as uint8, uint16 or uint32, in its own space; 0 is background.

    Unsigned types are kept; other types, whole-numbered floats included, become the smallest that holds them.

    Raises:
        InputError: as `read_image`, or values that are not whole numbers from 0 to 2^32 - 1, or only zeros.
    """
    import SimpleITK as sitk

    path = Path(path)
    image = _read(path)
    values = sitk.GetArrayViewFromImage(image)
    check_finite(path, values)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and not np.all(values == np.rint(values)):
        raise InputError(
            f"{path} holds values that are not whole numbers, so it is no label map; is it the right file?"
        )
    if low < 0 or high > np.iinfo(np.uint32).max:
        raise InputError(f"{path} has labels from {low:g} to {high:g}; they must be from 0 to 4294967295.")
    if high == 0:
        raise InputError(f"{path} holds no label, only zeros; is it the right file?")
    if image.GetPixelID() in (sitk.sitkUInt8, sitk.sitkUInt16, sitk.sitkUInt32):
        return image
    kinds = ((255, sitk.sitkUInt8), (65535, sitk.sitkUInt16), (np.inf, sitk.sitkUInt32))
    return sitk.Cast(image, next(kind for most, kind in kinds if high <= most))


def read_grid(path: str | Path) -> Grid:
    """The grid of a 3-D image or displacement; of a file, only the header is read.

    Raises:
        InputError: as `read_image`, of what a header tells.
    """
    path = Path(path)
    reader = None if path.is_dir() else inspect(path)
    if reader is None or len(reader.GetSize()) != 3 or _is_slice(reader):
        return Grid.of(_read(path))
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write an image, compressed for speed rather than size.

    Raises:
        InputError: the name ends in none of `WRITABLE`, or the file cannot be written.
    """
    import SimpleITK as sitk

    path = Path(path)
    check_image_name(path)
    with writing(path.name), quiet_itk():
        sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)
        header = nifti.read_header(path) if nifti.is_nifti(path) else None
        if header and not nifti.is_complete(path, header):  # ITK does not notice a full disk here
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_image_name(path: Path) -> None:
    """Raise `InputError` unless the name ends as an image file that `write_image` writes."""
    if not path.name.endswith(WRITABLE):  # ITK knows endings in small letters only
        raise InputError(f"Cannot write an image as {path.name}; end its name in {', '.join(WRITABLE)}.")


def inspect(path: Path) -> sitk.ImageFileReader | None:
    """A reader that has read an image file's header; None if only `nifti.read_nearly_orthogonal` can.

    Raises:
        InputError: missing, empty, truncated, no image, or without a valid voxel size.
    """
    import SimpleITK as sitk

    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes); copy or download it again.")
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check its permissions.") from error
    header = nifti.read_header(path) if nifti.is_nifti(path) else None
    if header:
        nifti.check(path, header)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        if header and "orthonormal" in str(error):
            return None
        if nifti.is_version_2(path):
            raise InputError(f"{path} is NIfTI-2, which ITK does not read; convert it to NIfTI-1 or NRRD.") from error
        raise InputError(f"{path} is no image, or its header is damaged; give {_FORMATS}.{_hint(path)}") from error
    if not all(np.isfinite(s) and s > 0 for s in reader.GetSpacing()):
        sizes = " x ".join(f"{s:g}" for s in reader.GetSpacing())
        raise InputError(f"{path} says its voxels are {sizes} mm; correct the voxel size in its header.")
    return reader


def _hint(path: Path) -> str:
    """What else may keep ITK from a file: on Windows it opens no path with letters beyond ASCII (ITK issue 6739)."""
    if os.name != "nt" or str(path).isascii():
        return ""
    return " On Windows, also try a path of plain letters without accents."


def execute(path: Path, reader: sitk.ImageFileReader | None) -> sitk.Image:
    """The image of an inspected file.

    Raises:
        InputError: truncated or damaged.
        MemoryError: no memory for it.
    """
    header = nifti.read_header(path) if reader is None else None
    try:
        with quiet_itk():
            if header:
                return nifti.read_nearly_orthogonal(path, header)
            assert reader is not None
            return reader.Execute()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise InputError(f"{path} is truncated or damaged; copy or download it again.") from error


def check_finite(path: Path, values: np.ndarray) -> None:
    """Raise `InputError` if values read from a file, or those that stand in it, are NaN or infinite."""
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    header = nifti.read_header(path) if not bad and nifti.is_nifti(path) else None
    if header:
        bad = nifti.count_not_finite(path, header)
    if bad:
        raise InputError(f"{path} has {bad} NaN or infinite values; replace them, by 0 for instance.")


def _read(path: Path) -> sitk.Image:
    reader = None if path.is_dir() else inspect(path)
    if path.is_dir():
        image = dicom.read_folder(path)
    elif reader is not None and _is_slice(reader):
        image = dicom.read_series_of(path)
    else:
        if reader is not None:  # refuse before the data are read
            _check_kind(path, reader.GetSize(), reader.GetPixelID())
        image = execute(path, reader)
    _check_kind(path, image.GetSize(), image.GetPixelID())
    return image


def _is_slice(reader: sitk.ImageFileReader) -> bool:
    """Whether this is one slice of a DICOM series."""
    return reader.HasMetaDataKey(dicom.SERIES_UID) and reader.GetSize()[2:] in ((), (1,))


def _check_kind(path: Path, size: tuple[int, ...], kind: int) -> None:
    """Raise `InputError` unless this is a 3-D scalar volume of at least `MIN_SIZE` voxels each way."""
    import SimpleITK as sitk

    shape = " x ".join(str(n) for n in size)
    pixel = sitk.GetPixelIDValueAsString(kind)
    if "complex" in pixel:
        raise InputError(f"{path} is complex-valued; save its magnitude and give that.")
    if "vector" in pixel:
        raise InputError(f"{path} holds colours or vectors; give a 3-D image with one value a voxel.")
    if len(size) > 3:
        raise InputError(f"{path} is {len(size)}-D ({shape}); give one 3-D volume of it.")
    if len(size) < 3:
        raise InputError(f"{path} is a {len(size)}-D image ({shape}); give a 3-D volume.")
    if min(size) < MIN_SIZE:
        raise InputError(f"{path} is {shape} voxels; a volume needs at least {MIN_SIZE} along each axis.")
