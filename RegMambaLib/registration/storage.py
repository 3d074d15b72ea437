"""A registration on disk: transforms that any ITK program reads, and a JSON file with the rest."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..io.atomic import staged
from ..io.images import read_image, write_image
from ..io.transforms import read_transform, write_transform
from ..spatial.grid import Grid
from ..spatial.itk import split_transform

if TYPE_CHECKING:
    from .result import Registration

TRANSFORM, INVERSE, META, UNCERTAINTY = "transform.h5", "inverse.h5", "registration.json", "uncertainty.nii.gz"


def save(result: Registration, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `result` into `folder`; all files or none.

    Raises:
        InputError: the files exist (without `overwrite`) or the folder cannot be written.
    """
    with staged(folder, [TRANSFORM, INVERSE, META, UNCERTAINTY], overwrite=overwrite) as staging:
        write_files(result, staging)


def write_files(result: Registration, folder: Path) -> None:
    """The files of `save`, straight into an existing folder."""
    from .result import inverse_of

    write_transform(inverse_of(result), folder / INVERSE)
    write_transform(result.transform, folder / TRANSFORM)
    if result.uncertainty is not None:
        write_image(result.grid.image(result.uncertainty), folder / UNCERTAINTY)
    (folder / META).write_text(json.dumps(describe(result), indent=2), encoding="utf-8")


def describe(result: Registration) -> dict[str, Any]:
    """All of a registration but its arrays, as plain values."""
    return {
        "fixed_grid": asdict(result.fixed_grid),
        "moving_grid": asdict(result.moving_grid),
        "affine_lps": np.asarray(result.affine).tolist(),
        "settings": result.settings.to_dict(),
        "seconds": result.seconds,
        "details": result.details,
    }


def load(folder: str | Path) -> Registration:
    """What `save` wrote.

    Raises:
        InputError: the folder does not hold a registration.
    """
    import SimpleITK as sitk

    from .result import Registration
    from .settings import Settings

    folder = Path(folder)
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        fixed_grid, moving_grid = (_grid(meta[name]) for name in ("fixed_grid", "moving_grid"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no saved registration ({META} is missing or damaged); give a folder that "
            "`Registration.save` or `regmamba register` wrote."
        ) from error
    affine, displacement, grid = split_transform(read_transform(folder / TRANSFORM))
    if displacement is None or grid is None:
        raise InputError(f"{folder / TRANSFORM} holds no displacement; the registration is damaged.")
    parts = read_transform(folder / INVERSE)
    _, inverse, _ = split_transform(_displacement_of(parts))
    uncertainty = None
    if (folder / UNCERTAINTY).exists():
        uncertainty = sitk.GetArrayFromImage(read_image(folder / UNCERTAINTY, constant=True))
    if inverse is None:
        raise InputError(f"{folder / INVERSE} holds no displacement; the registration is damaged.")
    return Registration(
        grid=grid,
        displacement=displacement,
        inverse_displacement=inverse,
        affine=affine,
        fixed_grid=fixed_grid,
        moving_grid=moving_grid,
        uncertainty=uncertainty,
        seconds=meta.get("seconds", {}),
        settings=Settings.from_dict(meta.get("settings", {})),
        details=meta.get("details", {}),
    )


def _displacement_of(inverse: Any) -> Any:
    """The displacement of `inverse.h5`, which follows the linear part."""
    import SimpleITK as sitk

    inverse = inverse.Downcast()
    if isinstance(inverse, sitk.CompositeTransform):
        return inverse.GetNthTransform(0).Downcast()
    return inverse


def _grid(values: dict[str, Any]) -> Grid:
    return Grid(tuple(values["size"]), tuple(values["spacing"]), tuple(values["origin"]), tuple(values["direction"]))
