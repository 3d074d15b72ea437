"""`regmamba jacobian`: local volume change, and whether a transform folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Output, Overwrite, Quiet, Reference, TransformFile


def jacobian(
    transform: TransformFile,
    output: Output,
    reference: Reference = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Count only where this label map is not 0 (in world space).")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the Jacobian determinant of a transform, and print folding and SDlogJ.

    Above 1 a voxel of the grid maps to a larger volume, below 1 to a smaller one; at or below 0 the
    transform folds. The grid is that of --reference, or else of the displacement inside the transform.
    Linear parts count too.
    """
    import SimpleITK as sitk

    from ..errors import InputError
    from ..evaluation.report import folding_report
    from ..io.atomic import staged_file
    from ..io.images import check_image_name, read_grid, read_labels, write_image
    from ..io.transforms import flatten, own_grid, read_transform
    from ..spatial.itk import mm_to_voxels
    from ..spatial.jacobian import jacobian_determinant
    from .output import print_json

    check_image_name(output)
    with staged_file(output, overwrite=overwrite) as out:
        chain = read_transform(transform)
        grid = read_grid(reference) if reference else own_grid(chain)
        if grid is None:
            raise InputError(f"{transform} has no grid of its own; add --reference IMAGE.")
        inside = None
        if mask:
            inside = sitk.GetArrayFromImage(grid.resample(read_labels(mask), labels=True)) > 0
            if not inside.any():
                raise InputError(f"The mask {mask} does not overlap the grid; is it the right file?")
        determinant = jacobian_determinant(mm_to_voxels(flatten(chain, grid), grid))
        write_image(grid.image(determinant), out)
    report = folding_report(determinant, inside)
    if json:
        print_json(report)
    elif not quiet:
        print(
            f"Wrote {output}. Folding {report['folding_percent']:.4g} %, "
            f"SDlogJ {report['sd_log_jacobian']:.4g}, smallest determinant {report['smallest_jacobian']:.4g}."
        )
