"""Where the similarity counts: inside masks, and away from where the field of view of an image ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..spatial import fields
from ..spatial.grid import Grid
from .preprocess import Prepared

if TYPE_CHECKING:
    import SimpleITK as sitk

# Share of a face of the image that anatomy covers where it goes on beyond: more than a few bright voxels, which are
# noise or a nose.
CUT_OFF = 0.02
# The same of a face between the image and padding of one value around it. A skull-stripped brain has such padding too,
# but its convex surface touches a plane with little of it.
CUT_OFF_BY_PADDING = 0.5


def similarity_weight(
    grid: Grid,
    sides: tuple[Prepared, Prepared],
    through: tuple[sitk.Transform, sitk.Transform],
    masks: tuple[sitk.Image | None, sitk.Image | None],
) -> np.ndarray:
    """Where both images may be compared: inside the masks, and inside the fields of view where these cut anatomy.

    Args:
        grid: working grid.
        through: transforms from the working grid to either image.
        masks: non-zero where an image may be compared.

    Returns:
        (k, j, i) float32 of the grid; size 0 where it counts everywhere.
    """
    import SimpleITK as sitk

    weight = None
    for side, transform, mask in zip(sides, through, masks, strict=True):
        view = field_of_view(side)
        if mask is None and view is None:
            continue
        inside = np.zeros(side.image.GetSize()[::-1], np.uint8)
        inside[view or ...] = 1
        if mask is not None:  # an array, since ITK refuses grids that differ by a rounding error
            inside *= sitk.GetArrayViewFromImage(mask) != 0
        seen = sitk.GetImageFromArray(inside)
        seen.CopyInformation(side.image)
        part = sitk.GetArrayFromImage(grid.resample(seen, transform, labels=True)).astype(np.float32)
        weight = part if weight is None else weight * part
    return np.empty((0, 0, 0), np.float32) if weight is None else weight


def whole_windows(weight: np.ndarray, edge: int) -> np.ndarray:
    """What windows of an edge (voxels) count: those that lie inside altogether; all, where the inside holds none.

    Along an axis on which the inside is thin the edge counts as shorter, so that half of the inside is left.
    """
    from scipy.ndimage import minimum_filter

    if weight.size == 0:
        return weight
    inside = weight > 0.999
    box = fields.box_of(inside)
    if box is None:
        return weight
    edges = [min(edge, (span.stop - span.start) // 4 * 2 + 1) for span in box]
    whole = minimum_filter(inside.view(np.uint8), size=edges)
    return whole.astype(np.float32) if whole.any() else weight


def field_of_view(side: Prepared) -> tuple[slice, slice, slice] | None:
    """The box (k, j, i) whose faces cut anatomy off, or None where the anatomy ends by itself.

    Faces are those of the image, or of what is left of it without padding of one value. At faces that cut nothing off
    the box is as large as the image.
    """
    inner, cut = _cut_faces(side)
    sizes = side.image.GetSize()[::-1]
    box = [
        slice(span.start if low else 0, span.stop if high else size)
        for size, span, (low, high) in zip(sizes, inner, cut, strict=True)
    ]
    return (box[0], box[1], box[2]) if any(map(any, cut)) else None


def is_cutout(side: Prepared) -> bool:
    """Whether the image shows a piece of something larger: anatomy goes on beyond two opposite faces."""
    return any(map(all, _cut_faces(side)[1]))


def _cut_faces(side: Prepared) -> tuple[tuple[slice, slice, slice], list[tuple[bool, bool]]]:
    """The box (k, j, i) of the image without padding, and for each axis whether its two faces cut anatomy off."""
    import SimpleITK as sitk

    image = sitk.GetArrayViewFromImage(side.image)
    inner = _without_padding(image)
    anatomy = side.foreground()[inner]
    cut = []
    for axis, (size, span) in enumerate(zip(image.shape, inner, strict=True)):
        low, high = (float(np.take(anatomy, plane, axis=axis).mean()) for plane in (0, -1))
        limits = [CUT_OFF_BY_PADDING if padded else CUT_OFF for padded in (span.start > 0, span.stop < size)]
        cut.append((low > limits[0], high > limits[1]))
    return inner, cut


def _without_padding(image: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box outside which every voxel has the value of the first one."""
    k, j, i = image.shape
    return fields.box_of(image != image[0, 0, 0]) or (slice(0, k), slice(0, j), slice(0, i))
