"""World-space transforms: ITK transform files and displacement images, LPS mm, in the resampling direction.

A transform file keeps a chain as it is. A displacement image holds one vector per voxel: a chain is flattened
onto its grid, and outside of that grid ITK takes the identity, also where the chain had a linear part.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..spatial.grid import Grid
from ..spatial.itk import affine_matrix, affine_transform
from . import nifti
from .atomic import writing
from .images import check_finite, execute, inspect
from .quiet import quiet_itk

if TYPE_CHECKING:
    import SimpleITK as sitk

CHAINS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_KNOWN = "give .h5, .tfm, .txt or .mat as ITK writes them, or a displacement image (.nii.gz, .nrrd, .mha)"


def read_transform(path: str | Path) -> sitk.Transform:
    """The 3-D transform in a file: a chain (ITK's .h5 .hdf5 .tfm .txt .mat) or a displacement image in mm.

    NIfTI displacements carry intent 1006 (vectors in RAS, as Slicer and `write_transform` write) or 1007
    (vectors in LPS, as ITK and ANTs write); ITK turns both into LPS.

    Raises:
        InputError: missing, empty, damaged, or anything but a 3-D transform.
    """
    import SimpleITK as sitk

    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a transform; {_KNOWN}.")
    if name.endswith(IMAGES):
        return _read_displacement(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    if not name.endswith(CHAINS):
        raise InputError(f"{path} is no transform by its name; {_KNOWN}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or make it again.")
    try:
        with quiet_itk():
            transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} holds no transform that ITK can read, or is damaged; {_KNOWN}.") from error
    if transform.GetDimension() != 3:
        raise InputError(f"{path} holds a {transform.GetDimension()}-D transform; give a 3-D one.")
    return transform.Downcast()


def read_linear(path: str | Path) -> sitk.Transform:
    """A transform file that holds a linear transform.

    Raises:
        InputError: as `read_transform`, or the transform is not linear.
    """
    transform = read_transform(path)
    if not transform.IsLinear():
        raise InputError(f"{path} is not linear; give a translation, rigid, similarity or affine transform.")
    return transform


def write_transform(transform: sitk.Transform, path: str | Path, *, reference: Grid | None = None) -> None:
    """Write a transform in the format its name says.

    Args:
        transform: any 3-D transform, LPS mm.
        path: .h5 .hdf5 .tfm .txt (chain kept), .mat (linear only), .nii.gz .nii .nrrd .mha (float32 displacement).
        reference: grid of a displacement image; None takes the grid of the displacement inside the transform.

    Raises:
        InputError: an unknown name, a transform that the format cannot hold, a grid that is missing or not wanted, or a
            failed write.
    """
    import SimpleITK as sitk

    path = Path(path)
    name = path.name.lower()
    check_writable(path, reference)
    if name.endswith(CHAINS):
        if name.endswith(".mat"):
            transform = affine_transform(affine_matrix(transform))
        transform = transform.Downcast()
        if isinstance(transform, sitk.CompositeTransform):
            transform = sitk.CompositeTransform(transform)
            transform.FlattenTransform()  # a file holds no chain within a chain
        with writing(path.name), quiet_itk():
            _require_room(path, transform)
            sitk.WriteTransform(transform, str(path))
        return
    grid = reference or own_grid(transform)
    if grid is None:
        raise InputError(
            "The transform does not begin with a displacement, so it has no grid of its own to be written "
            "on; name a reference image."
        )
    field = grid.image(flatten(transform, grid).astype(np.float32))
    with writing(path.name), quiet_itk():
        if nifti.is_nifti(path):
            nifti.write_displacement(field, path)
        else:
            sitk.WriteImage(field, str(path), useCompression=True, compressionLevel=1)


def check_writable(path: Path, reference: object = None) -> None:
    """Raise `InputError` unless `write_transform` writes files of such a name, with a reference if one is given."""
    known = (*CHAINS, *(suffix for suffix in IMAGES if suffix != ".mhd"))
    if not path.name.endswith(known):  # ITK knows endings in small letters only
        raise InputError(f"Cannot write a transform as {path.name}; end its name in {', '.join(known)}.")
    if reference is not None and path.name.endswith(CHAINS):
        raise InputError(
            f"{path.name} keeps the transform as it is, and no grid; leave the reference out, or name a displacement "
            "image (.nii.gz, .nrrd, .mha)."
        )


def flatten(transform: sitk.Transform, grid: Grid) -> np.ndarray:
    """The displacement of a transform at the voxels of a grid, (k, j, i, 3) LPS mm, float64."""
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.size, grid.origin, grid.spacing, grid.direction
    )
    return sitk.GetArrayFromImage(field)


def parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """The members of a transform in the order in which a point passes them; nested chains are opened."""
    import SimpleITK as sitk

    transform = transform.Downcast()
    if not isinstance(transform, sitk.CompositeTransform):
        return [transform]
    members = [transform.GetNthTransform(n) for n in range(transform.GetNumberOfTransforms())]
    return [part for member in reversed(members) for part in parts(member)]


def chain(*transforms: sitk.Transform) -> sitk.Transform:
    """One transform that a point passes in the order given: the first argument moves it first."""
    import SimpleITK as sitk

    members = [part for transform in transforms for part in parts(transform)]
    return members[0] if len(members) == 1 else sitk.CompositeTransform(members[::-1])


def own_grid(transform: sitk.Transform) -> Grid | None:
    """The grid of the displacement that moves a point first, or None."""
    import SimpleITK as sitk

    first = parts(transform)[0]
    if not isinstance(first, sitk.DisplacementFieldTransform):
        return None
    return Grid.of(first.GetDisplacementField())


def _require_room(path: Path, transform: sitk.Transform) -> None:
    """Raise `OSError` on a full disk: ITK would write text cut short, and crash after broken HDF5."""
    bytes_each = 8 if path.suffix.lower() in (".h5", ".hdf5") else 25
    if shutil.disk_usage(path.parent).free < transform.GetNumberOfParameters() * bytes_each:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_displacement(path: Path) -> sitk.Transform:
    import SimpleITK as sitk

    reader = inspect(path)
    if reader is None or reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 3:
        raise InputError(
            f"{path} is an image but no displacement: that has 3 values a voxel (in NIfTI marked by intent "
            f"1006 or 1007); {_KNOWN}."
        )
    field = sitk.Cast(execute(path, reader), sitk.sitkVectorFloat64)
    check_finite(path, sitk.GetArrayViewFromImage(field))
    return sitk.DisplacementFieldTransform(field)
