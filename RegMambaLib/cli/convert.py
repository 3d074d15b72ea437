"""`regmamba convert`: the same transform in another file format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, Quiet, Reference, TransformFile


def convert(
    source: TransformFile,
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help=".h5 .tfm .mat .nii.gz .nrrd or .mha.")],
    reference: Reference = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Convert a transform between .h5, .tfm and displacement images (.nii.gz, .nrrd, .mha).

    .h5 and .tfm keep a chain of transforms as it is. A displacement image is one vector per voxel, in mm:
    the chain is evaluated on the grid of --reference, or else of the displacement inside it, and outside of
    that grid other programs take no displacement at all, so choose a reference that covers everything you
    will transform.
    """
    from ..io.atomic import staged_file
    from ..io.images import read_grid
    from ..io.transforms import check_writable, read_transform, write_transform

    check_writable(target, reference)
    with staged_file(target, overwrite=overwrite) as out:
        grid = read_grid(reference) if reference else None
        write_transform(read_transform(source), out, reference=grid)
    if not quiet:
        print(f"Wrote {target}.")
