"""What ITK lets pass in a NIfTI file, or refuses without need.

ITK reads a truncated file as a volume that ends in zeros, NaN as 0, and a voxel size of zero or NaN as 1 mm.
It refuses axes that are a rounding error away from orthogonal, and its permissive mode is no way out of that:
it transposes the direction of an oblique volume (ITK 5.4).
"""

from __future__ import annotations

import gzip
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk

INTENT_OFFSET = 68
INTENT_DISPLACEMENT = 1006
_one_reader = threading.Lock()
_FLOATS = {16: "f4", 64: "f8"}
MAX_SHEAR = 0.1
"""Voxels that a corner may move when sheared axes are made orthogonal."""


@dataclass(frozen=True)
class Header:
    """The fields of a single-file NIfTI-1 header that are checked here.

    Attributes:
        size: voxels along all axes the file has.
        spacing: pixdim along (i, j, k), as stored.
        start, end: bytes from the start of the (unpacked) file to its data, and to their end.
        floats: numpy type of the values if they are floats, else None.
        axes: 3x3, index difference to LPS mm, of the sform; None without one.
    """

    size: tuple[int, ...]
    spacing: tuple[float, float, float]
    start: int
    end: int
    floats: np.dtype | None
    axes: np.ndarray | None


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_version_2(path: Path) -> bool:
    """Whether the file begins as NIfTI-2."""
    try:
        with _open(path) as file:
            start = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return start in (struct.pack("<i", 540), struct.pack(">i", 540))


def read_header(path: Path) -> Header | None:
    """The header of a single-file NIfTI-1 (`.nii`, `.nii.gz`); None for anything else, NIfTI-2 included."""
    try:
        with _open(path) as file:
            raw = file.read(348)
    except (OSError, EOFError, zlib.error):
        return None
    if len(raw) < 348 or raw[344:347] != b"n+1":
        return None
    order = "<" if struct.unpack_from("<i", raw)[0] == 348 else ">"
    dim = struct.unpack_from(order + "8h", raw, 40)
    size = dim[1 : 1 + max(0, min(dim[0], 7))]
    kind, bits = struct.unpack_from(order + "2h", raw, 70)
    spacing = struct.unpack_from(order + "3f", raw, 80)
    start = int(struct.unpack_from(order + "f", raw, 108)[0])
    sform = np.array(struct.unpack_from(order + "12f", raw, 280)).reshape(3, 4)
    has_sform = struct.unpack_from(order + "h", raw, 254)[0] > 0
    count = int(np.prod(np.maximum(size, 1), dtype=np.int64))
    floats = np.dtype(order + _FLOATS[kind]) if kind in _FLOATS else None
    axes = np.diag([-1.0, -1.0, 1.0]) @ sform[:, :3] if has_sform else None
    return Header(size, spacing, start, start + count * bits // 8, floats, axes)


def check(path: Path, header: Header) -> None:
    """Raise `InputError` for a file that ITK would read, but wrongly."""
    if not all(np.isfinite(s) and s != 0 for s in header.spacing[: len(header.size)]):
        sizes = " x ".join(f"{s:g}" for s in header.spacing)
        raise InputError(f"{path} says its voxels are {sizes} mm; correct the voxel size in its header.")
    if not is_complete(path, header):
        raise InputError(f"{path} is truncated or damaged; copy or download it again.")


def is_complete(path: Path, header: Header) -> bool:
    """Whether the file holds all the data its header promises."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size >= header.end
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        # The gzip trailer: the unpacked size modulo 2^32. A truncated file ends in something else, and so
        # does one made of several members; then only unpacking tells.
        if struct.unpack("<I", file.read(4))[0] == header.end % 2**32:
            return True
    found = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(1 << 20):
                found += len(chunk)
    except (OSError, EOFError, zlib.error):
        return False
    return found >= header.end


def count_not_finite(path: Path, header: Header) -> int:
    """Values that are NaN or infinite."""
    if header.floats is None:
        return 0
    with _open(path) as file:
        file.seek(header.start)
        values = np.frombuffer(file.read(header.end - header.start), header.floats)
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def read_nearly_orthogonal(path: Path, header: Header) -> sitk.Image:
    """Read a volume whose sform is not quite orthogonal, with the nearest orthogonal axes.

    Raises:
        InputError: a corner would move by more than `MAX_SHEAR` voxels.
    """
    import SimpleITK as sitk

    if header.axes is None or len(header.size) < 3:
        raise InputError(f"{path} has no usable orientation; write one (qform or sform) into its header.")
    spacing = np.linalg.norm(header.axes, axis=0)
    if not np.all(np.isfinite(spacing)) or spacing.min() <= 0:
        raise InputError(f"The sform of {path} is singular; correct its header.")
    left, _, right = np.linalg.svd(header.axes / spacing)
    direction = left @ right
    corner = np.asarray(header.size[:3]) - 1
    moved = np.abs(direction * spacing - header.axes) @ corner
    if moved.max() > MAX_SHEAR * spacing.min():
        raise InputError(
            f"The axes of {path} are sheared (by up to {moved.max():.2g} mm at a corner); "
            "resample it onto orthogonal axes first."
        )
    with _permissive():
        image = sitk.ReadImage(str(path))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


def write_displacement(field: sitk.Image, path: Path) -> None:
    """Write a vector image (LPS mm, float32) as a NIfTI displacement: intent 1006, vectors in RAS mm.

    ITK 5.4 (SimpleITK, ANTs, Slicer) turns the vectors of intent 1006 back to LPS when it reads; SimpleITK
    itself writes intent 1007 only, which Slicer does not take for a displacement.
    """
    import SimpleITK as sitk

    vectors = sitk.GetArrayFromImage(field) * np.array([-1, -1, 1], np.float32)
    flipped = sitk.GetImageFromArray(vectors, isVector=True)
    flipped.CopyInformation(field)
    with tempfile.TemporaryDirectory(prefix=".regmamba-", dir=path.parent) as folder:
        plain = Path(folder) / "displacement.nii"
        sitk.WriteImage(flipped, str(plain), useCompression=False)
        data = bytearray(plain.read_bytes())
    order = "<" if struct.unpack_from("<i", data)[0] == 348 else ">"
    struct.pack_into(order + "h", data, INTENT_OFFSET, INTENT_DISPLACEMENT)
    path.write_bytes(gzip.compress(data, compresslevel=1) if path.suffix == ".gz" else data)


def _open(path: Path):
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


@contextmanager
def _permissive() -> Iterator[None]:
    """ITK's permissive mode, which is a variable of the environment, so that one thread at a time may be in it."""
    name = "ITK_NIFTI_SFORM_PERMISSIVE"
    with _one_reader:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
