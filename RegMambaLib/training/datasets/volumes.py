"""Volumes as data sets hold them: image files, and pickles of arrays that have no header."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import polar

from ...errors import InputError
from ...io.images import check_finite, read_grid, read_image, read_labels
from ...spatial.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".hdr", ".img.gz", ".img")
PICKLE = ".pkl"
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Arrays, numbers, texts and lists of them; anything else in a pickle could run code of its maker."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_pickle(path: Path) -> Any:
    """What a pickle of numpy arrays and plain lists holds; nothing else is unpacked, so that no code runs.

    Raises:
        InputError: missing, damaged, or it holds other objects.
    """
    try:
        with path.open("rb") as stream:
            return _ArraysOnly(stream).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check that the data set is complete.") from None
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(
            f"{path} is no pickle of arrays, or damaged ({error}); download it again from the data set's owners."
        ) from error


def read_volume(path: Path) -> sitk.Image:
    """An image as it is stored, float32; of a pickle, its first array."""
    return _pickled(path, 0, np.float32) if path.suffix == PICKLE else read_image(path, constant=True)


def read_label_volume(path: Path) -> sitk.Image:
    """A label map as it is stored, unsigned; of a pickle, its second array."""
    return _pickled(path, 1, np.uint16) if path.suffix == PICKLE else read_labels(path)


def size_of(path: Path) -> tuple[int, int, int] | None:
    """Voxels along (i, j, k) from a header; None for a pickle, which would have to be read whole."""
    return None if path.suffix == PICKLE else read_grid(path).size


@dataclass(frozen=True)
class Axes:
    """What a header would tell, for volumes whose headers are missing or not to be trusted.

    Attributes:
        direction: row-major 3x3, its columns the unit vectors of i, j, k in LPS.
        spacing: mm along (i, j, k); None: the header's.
    """

    direction: tuple[float, ...]
    spacing: tuple[float, float, float] | None = None


def oriented(image: sitk.Image, axes: Axes | None) -> sitk.Image:
    """The same voxels with axes that lie closest to L, P, S, whatever their order in the file.

    Args:
        axes: instead of the header; the volume is then centred on the world's origin. None: the header's.
    """
    import SimpleITK as sitk

    if axes is not None:
        image.SetDirection(axes.direction)
        image.SetSpacing(axes.spacing or image.GetSpacing())
        image.SetOrigin((0.0, 0.0, 0.0))
        image.SetOrigin((-Grid.of(image).center).tolist())
    return sitk.DICOMOrient(image, "LPS")


def direction_from_labels(labels: sitk.Image, landmarks: dict[str, tuple[int, ...]], name: str) -> tuple[float, ...]:
    """The direction matrix of a volume, found from where its structures lie, not from its header.

    Left minus right, back minus front and top minus bottom centres give the world axes in voxel axes; the closest
    signed permutation is the direction. Pickles have no header, and Analyze files do not tell left from right.

    Raises:
        InputError: the structures are missing or lie in no consistent way. `name` tells in which file.
    """
    import SimpleITK as sitk

    array = sitk.GetArrayViewFromImage(labels)
    spacing = np.asarray(labels.GetSpacing())

    def centre(place: str) -> np.ndarray:
        found = np.argwhere(np.isin(array, landmarks[place]))
        if not len(found):
            raise InputError(
                f"{name} lacks the structures that tell {', '.join(landmarks)} (label values "
                f"{', '.join(map(str, landmarks[place][:4]))}, ...); is it the label map of this data set?"
            )
        return found.mean(0)[::-1] * spacing

    rows = [centre(a) - centre(b) for a, b in (("left", "right"), ("back", "front"), ("top", "bottom"))]
    axes = np.array([row / max(float(np.linalg.norm(row)), 1e-9) for row in rows])
    turn = np.rint(polar(axes)[0])
    if not (np.abs(turn).sum(0) == 1).all() or not (np.abs(turn).sum(1) == 1).all():
        raise InputError(
            f"The structures in {name} do not lie as in a body, so its orientation stays unknown; "
            "is it the label map of this data set?"
        )
    return tuple(float(value) + 0.0 for value in turn.ravel())  # no -0.0


def _pickled(path: Path, part: int, kind: type) -> sitk.Image:
    """Array `part` of a pickled (image, labels); its axes become (i, j, k), 1 mm."""
    import SimpleITK as sitk

    held = read_pickle(path)
    parts = held if isinstance(held, (tuple, list)) else (held,)
    array = np.asarray(parts[part]).squeeze() if part < len(parts) else np.zeros(0)
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        what = "an image and a label map" if part else "a 3-D image"
        raise InputError(f"{path} does not hold {what} as arrays; is it a file of this data set?")
    check_finite(path, array)
    if part and (array.min() < 0 or array.max() > 65535 or not np.array_equal(array, np.rint(array))):
        raise InputError(f"The second array in {path} is no label map; is it a file of this data set?")
    return sitk.GetImageFromArray(np.ascontiguousarray(array.T, kind))
