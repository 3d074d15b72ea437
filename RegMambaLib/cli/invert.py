"""`regmamba invert`: the true inverse of a transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Output, Overwrite, Quiet, Reference, TransformFile

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk

    from ..spatial.grid import Grid


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

    check_writable(output, reference)
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
    import numpy as np
    import SimpleITK as sitk

    from ..errors import InputError
    from ..io.transforms import chain, parts
    from ..spatial.fields import invert as invert_displacement
    from ..spatial.grid import Grid
    from ..spatial.itk import affine_matrix, displacement_transform, mm_to_voxels

    inverses, largest = [], 0.0
    for part in reversed(parts(transform)):
        if part.IsLinear():
            if np.linalg.cond(affine_matrix(part)[:3, :3]) > 1e12:
                raise InputError("The transform flattens space, so that it has no inverse.")
            inverses.append(part.GetInverse())
        elif isinstance(part, sitk.DisplacementFieldTransform):
            field = part.GetDisplacementField()
            grid = Grid.of(field)
            displacement, grid = _with_room(mm_to_voxels(sitk.GetArrayViewFromImage(field), grid), grid)
            inverse, error = invert_displacement(displacement)
            inverses.append(displacement_transform(inverse, grid))
            largest = max(largest, float(error.max()) * max(grid.spacing))
        else:
            raise InputError(
                f"A {part.GetName()} cannot be inverted directly; turn it into a displacement first "
                "(regmamba convert to .nii.gz with --reference)."
            )
    return chain(*inverses), largest


def _with_room(displacement: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A displacement (3, k, j, i) voxels on a grid that holds all that it leads to, its edges continued.

    A displacement image of a whole registration leads out of its own grid, and its inverse is wanted where it leads.
    """
    import numpy as np

    from ..spatial.itk import grown

    pads = []
    for axis, along in enumerate(displacement):
        index = np.arange(along.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        ends = float((index + along).min()), float((index + along).max())
        pads.append((max(0, int(np.ceil(-ends[0]))), max(0, int(np.ceil(ends[1])) - along.shape[axis] + 1)))
    return grown(displacement, grid, pads) if any(map(any, pads)) else (displacement, grid)
