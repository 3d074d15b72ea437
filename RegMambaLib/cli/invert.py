"""`regmamba invert`: the true inverse of a transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Output, Overwrite, Quiet, Reference, TransformFile

if TYPE_CHECKING:
    import SimpleITK as sitk


def invert(
    transform: TransformFile,
    output: Output,
    reference: Reference = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Invert a transform: linear parts exactly, displacements by iteration on their own grid.

    `register` writes inverse.h5 already; this is for other transforms. Prints what is left of the inverse's
    error.
    """
    from ..io.atomic import staged_file
    from ..io.images import read_grid
    from ..io.transforms import check_writable, read_transform, write_transform

    check_writable(output)
    with staged_file(output, overwrite=overwrite) as out:
        grid = read_grid(reference) if reference else None
        inverse, error = inverse_of(read_transform(transform))
        write_transform(inverse, out, reference=grid)
    if not quiet:
        print(f"Wrote {output}. Largest error: {error:.2g} mm.")


def inverse_of(transform: sitk.Transform) -> tuple[sitk.Transform, float]:
    """The inverse of a chain of linear transforms and displacements, and its largest error at a voxel, mm.

    Raises:
        InputError: the chain holds another kind of transform.
    """
    import SimpleITK as sitk

    from ..errors import InputError
    from ..io.transforms import chain, parts
    from ..spatial.fields import invert as invert_displacement
    from ..spatial.grid import Grid
    from ..spatial.itk import displacement_transform, mm_to_voxels

    inverses, largest = [], 0.0
    for part in reversed(parts(transform)):
        if part.IsLinear():
            inverses.append(part.GetInverse())
        elif isinstance(part, sitk.DisplacementFieldTransform):
            field = part.GetDisplacementField()
            grid = Grid.of(field)
            inverse, error = invert_displacement(mm_to_voxels(sitk.GetArrayViewFromImage(field), grid))
            inverses.append(displacement_transform(inverse, grid))
            largest = max(largest, float(error.max()) * max(grid.spacing))
        else:
            raise InputError(
                f"A {part.GetName()} cannot be inverted directly; turn it into a displacement first "
                "(regmamba convert to .nii.gz with --reference)."
            )
    return chain(*inverses), largest
