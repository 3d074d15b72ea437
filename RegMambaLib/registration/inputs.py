"""What `register` can use: checks of its arguments, before anything long begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from ..io.images import MIN_SIZE
from ..spatial.grid import Grid
from .settings import Settings

if TYPE_CHECKING:
    import SimpleITK as sitk


def check_inputs(
    fixed: sitk.Image,
    moving: sitk.Image,
    fixed_labels: sitk.Image | None,
    moving_labels: sitk.Image | None,
    fixed_mask: sitk.Image | None,
    moving_mask: sitk.Image | None,
    settings: Settings,
) -> None:
    """Raise `InputError` for what `register` cannot use, before anything long begins."""
    import SimpleITK as sitk

    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(
                f"The {name} image has {image.GetDimension()} dimensions and "
                f"{image.GetNumberOfComponentsPerPixel()} components; give a 3-D scalar volume."
            )
        if min(image.GetSize()) < MIN_SIZE:
            raise InputError(
                f"The {name} image has {' x '.join(map(str, image.GetSize()))} voxels; every axis needs at least "
                f"{MIN_SIZE}."
            )
    for name, image, other in (
        ("fixed labels", fixed, fixed_labels),
        ("moving labels", moving, moving_labels),
        ("fixed mask", fixed, fixed_mask),
        ("moving mask", moving, moving_mask),
    ):
        if other is not None and not Grid.of(other).same_as(Grid.of(image), 0.01):
            raise InputError(
                f"The {name} lie on another grid than the {name.split()[0]} image; resample them onto it first."
            )
    for name, mask in (("fixed mask", fixed_mask), ("moving mask", moving_mask)):
        if mask is not None and not sitk.GetArrayViewFromImage(mask).any():
            raise InputError(
                f"The {name} is empty (0 everywhere); mark where the metric counts, or leave the mask out."
            )
    if settings.guide and (fixed_labels is None or moving_labels is None):
        raise InputError("Label guidance needs both label maps; give fixed and moving labels, or leave it off.")
