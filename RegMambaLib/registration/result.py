"""The result of a registration: one world-space transform, its inverse, and everything derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spatial.grid import Grid
from ..spatial.itk import affine_transform, displacement_transform, map_points
from ..spatial.jacobian import jacobian_determinant
from .settings import Settings

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True)
class Registration:
    """A point x of fixed space (LPS mm) corresponds to `affine @ (x + u(x))` in moving space.

    Attributes:
        grid: the working grid, in fixed world space.
        displacement: u on the grid, (3, k, j, i) float32 voxels; it fades to zero at the grid's border.
        inverse_displacement: v on the grid with (id + v) o (id + u) = id, same units.
        affine: 4x4, LPS mm, from fixed to moving space (with the initial transform, if any, included).
        fixed_grid, moving_grid: the grids of the images as given.
        uncertainty: (k, j, i) float32 mm, the error to expect (see `confidence`), 0 outside the anatomy; or None.
        seconds: time per stage.
        settings: what it was made with.
        details: what the stages tell about themselves (metric chosen, folds repaired, weights used ...).
    """

    grid: Grid
    displacement: np.ndarray
    inverse_displacement: np.ndarray
    affine: np.ndarray
    fixed_grid: Grid
    moving_grid: Grid
    uncertainty: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    details: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def transform(self) -> sitk.Transform:
        """Fixed -> moving, LPS mm: the resampling direction of ITK, ANTs and elastix."""
        import SimpleITK as sitk

        return sitk.CompositeTransform(
            [affine_transform(self.affine), displacement_transform(self.displacement, self.grid)]
        )

    @cached_property
    def inverse(self) -> sitk.Transform:
        """Moving -> fixed, LPS mm."""
        return inverse_of(self)

    @cached_property
    def jacobian(self) -> np.ndarray:
        """Jacobian determinant of id + u on the working grid, (k, j, i) float32; <= 0 is a fold."""
        return jacobian_determinant(self.displacement)

    def warp(self, moving: sitk.Image, *, labels: bool = False) -> sitk.Image:
        """`moving` (or its label map) on the fixed image's grid; labels by nearest neighbour, once.

        Outside of it are its lowest value, which is air also in CT, and no label.
        """
        return self.fixed_grid.resample(moving, self.transform, labels=labels, default=_outside(moving, labels))

    def warp_back(self, fixed: sitk.Image, *, labels: bool = False) -> sitk.Image:
        """`fixed` (or its label map) on the moving image's grid, through the inverse."""
        return self.moving_grid.resample(fixed, self.inverse, labels=labels, default=_outside(fixed, labels))

    def points_to_moving(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) LPS mm of fixed space -> moving space."""
        return map_points(self.transform, points)

    def points_to_fixed(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) LPS mm of moving space -> fixed space."""
        return map_points(self.inverse, points)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write transform.h5, inverse.h5, registration.json (and uncertainty.nii.gz), whole or not at all."""
        from .storage import save

        save(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Registration:
        """Read what `save` wrote."""
        from .storage import load

        return load(folder)


def inverse_of(result: Registration) -> sitk.Transform:
    """`Registration.inverse`, not kept: a brain's takes 200 MB."""
    import SimpleITK as sitk

    displacement = displacement_transform(result.inverse_displacement, result.grid)
    return sitk.CompositeTransform([displacement, affine_transform(np.linalg.inv(result.affine))])


def _outside(image: sitk.Image, labels: bool) -> float:
    """What lies beyond an image."""
    import SimpleITK as sitk

    return 0.0 if labels else float(sitk.GetArrayViewFromImage(image).min())
