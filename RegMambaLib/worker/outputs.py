"""The files of a result for a client: the displacement, the moved volume and labels, the maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spatial.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..registration.result import Registration

MARGIN = 2
"""Voxels that a flattened displacement reaches past the volumes."""
REACH = 60.0
"""How far (mm) past the fixed volume it follows the moving volume."""
MOST_VOXELS = 32_000_000


def write(
    result: Registration, inputs: dict[str, Any], pixel: int, folder: Path, mode: str
) -> tuple[dict[str, str], sitk.Image | None, str]:
    """Write the result's images, uncompressed.

    Args:
        pixel: SimpleITK's pixel type of the moving image as given, which the moved one gets.
        mode: "grid" flattens the whole transform into one displacement; "composite" writes u alone, for the
            transform x -> affine(x + u(x)).

    Returns:
        Paths by name (displacement, volume, jacobian, and labels and uncertainty where there are), the moved
        labels, and the mode.
    """
    import SimpleITK as sitk

    moved = result.warp(inputs["moving"])
    images: dict[str, sitk.Image] = {
        "displacement": displacement(result, mode),
        "volume": as_pixel(moved, pixel),
        "jacobian": result.grid.image(result.jacobian),
    }
    labels = inputs.get("moving_labels")
    moved_labels = None if labels is None else result.warp(labels, labels=True)
    if moved_labels is not None:
        images["labels"] = moved_labels
    if result.uncertainty is not None:
        images["uncertainty"] = result.grid.image(result.uncertainty)
    files = {}
    for name, image in images.items():
        files[name] = str(folder / f"{name}.nrrd")
        sitk.WriteImage(image, files[name], useCompression=False)
    return files, moved_labels, mode


def displacement(result: Registration, mode: str) -> sitk.Image:
    """float32 vectors in LPS mm: of the whole transform ("grid"), or of u alone ("composite")."""
    from ..io.transforms import flatten
    from ..spatial.itk import voxels_to_mm

    if mode == "composite" or np.allclose(result.affine, np.eye(4), atol=1e-9):
        return result.grid.image(voxels_to_mm(result.displacement, result.grid).astype(np.float32))
    grid = covering_grid(result.grid, result.fixed_grid, result.moving_grid, result.affine)
    return grid.image(flatten(result.transform, grid).astype(np.float32))


def covering_grid(grid: Grid, fixed: Grid, moving: Grid, affine: np.ndarray) -> Grid:
    """The working grid's lattice, extended over the fixed volume and the moving one where that lies near.

    A program that keeps the edge displacement outside of a grid (VTK) then has the right one wherever there is
    data. Coarser than the working grid only beyond `MOST_VOXELS`.
    """
    own = grid.index(np.concatenate([grid.corners, fixed.corners]))
    low, high = own.min(0), own.max(0)
    back = np.linalg.inv(affine)
    others = grid.index(moving.corners @ back[:3, :3].T + back[:3, 3])
    reach = REACH / np.asarray(grid.spacing)
    others = np.clip(others, low - reach, high + reach)
    for points in (np.concatenate([own, others]), own):
        start = np.floor(points.min(0)).astype(int) - MARGIN
        size = np.ceil(points.max(0)).astype(int) + MARGIN - start + 1
        if size.prod() <= MOST_VOXELS:
            break
    covering = grid.crop(_ints(start), _ints(size))
    if size.prod() <= MOST_VOXELS:
        return covering
    coarser = float(np.cbrt(size.prod() / MOST_VOXELS))
    i, j, k = (coarser * s for s in grid.spacing)
    return covering.with_spacing((i, j, k))


def as_pixel(image: sitk.Image, pixel: int) -> sitk.Image:
    """The image in a pixel type; whole numbers are rounded and kept in range."""
    import SimpleITK as sitk

    if pixel in (sitk.sitkFloat32, sitk.sitkFloat64):
        return image
    kind = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], pixel)).dtype
    if kind.itemsize > 4 or kind.kind not in "iu":
        return image
    limits = np.iinfo(kind)
    values = np.clip(np.rint(sitk.GetArrayViewFromImage(image).astype(np.float64)), limits.min, limits.max)
    cast = sitk.GetImageFromArray(values.astype(kind))
    cast.CopyInformation(image)
    return cast


def _ints(values: np.ndarray) -> tuple[int, int, int]:
    i, j, k = (int(v) for v in values)
    return i, j, k
