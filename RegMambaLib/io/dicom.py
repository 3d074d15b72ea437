"""A DICOM series as one volume, through GDCM (rescale slope and intercept applied)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .quiet import quiet_itk

if TYPE_CHECKING:
    import SimpleITK as sitk

SERIES_UID = "0020|000e"
_DESCRIPTION = "0008|103e"
_POSITION = "0020|0032"
UNEVEN = 0.1
"""Largest difference between a slice's place and an even stack, in slice distances."""


def read_folder(folder: Path) -> sitk.Image:
    """The one DICOM series in a folder or in its subfolders.

    Raises:
        InputError: there is no series, or several: then they are listed, and any file of one of them chooses
        it.
    """
    series = [found for place, _, files in os.walk(folder) if files for found in _series(Path(place))]
    if not series:
        raise InputError(f"The folder {folder} holds no DICOM series; give a DICOM folder or an image file.")
    if len(series) > 1:
        listed = "; ".join(
            f"{_text(files[0], _DESCRIPTION) or 'no description'}, {len(files)} files, {files[0]}"
            for files in series[:8]
        )
        more = f"; and {len(series) - 8} more" if len(series) > 8 else ""
        raise InputError(
            f"The folder {folder} holds {len(series)} series; give one file of the right one: {listed}{more}."
        )
    return _read(series[0], folder)


def read_series_of(file: Path) -> sitk.Image:
    """The whole series that a DICOM file belongs to; the rest of it lies in the same folder."""
    import SimpleITK as sitk

    with quiet_itk():
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(file.parent), _text(str(file), SERIES_UID))
    return _read(names or (str(file),), file)


def _series(folder: Path) -> list[tuple[str, ...]]:
    import SimpleITK as sitk

    with quiet_itk():
        uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        return [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in uids]


def _read(names: tuple[str, ...], source: Path) -> sitk.Image:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        with quiet_itk():
            if len(names) == 1:  # a slice, or a whole volume in one file
                return sitk.ReadImage(names[0])
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"The DICOM series in {source} cannot be read as one volume (slices damaged or of different "
            "size); convert it with dcm2niix."
        ) from error
    if all(reader.HasMetaDataKey(n, _POSITION) for n in range(len(names))):
        positions = [_numbers(reader.GetMetaData(n, _POSITION)) for n in range(len(names))]
        _check_even(np.array(positions), image, source)
    return image


def _check_even(positions: np.ndarray, image: sitk.Image, source: Path) -> None:
    """Raise `InputError` when slices are missing, repeated or tilted: ITK stacks them evenly all the same."""
    step = np.asarray(image.GetDirection()).reshape(3, 3)[:, 2] * image.GetSpacing()[2]
    even = positions[0] + np.arange(len(positions))[:, None] * step
    off = np.linalg.norm(positions - even, axis=1).max()
    if off > UNEVEN * image.GetSpacing()[2]:
        raise InputError(
            f"The slices of the DICOM series in {source} are missing, repeated, uneven or tilted (up to "
            f"{off:.1f} mm off an even stack); convert it with dcm2niix, or give a complete series."
        )


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split("\\")]


def _text(file: str, key: str) -> str:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    with quiet_itk():
        reader.ReadImageInformation()
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""
