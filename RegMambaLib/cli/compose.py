"""`regmamba compose`: several transforms as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Output, Overwrite, Quiet, Reference


def compose(
    transforms: Annotated[
        list[Path], typer.Argument(metavar="FIRST SECOND ...", help="In the order a point passes them.")
    ],
    output: Output,
    reference: Reference = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Join transforms into one: a point goes through FIRST, then SECOND, and so on.

    To bring an image from space C over B to A, with ab.h5 from `register A B` and bc.h5 from `register B C`,
    compose ab.h5 bc.h5: points travel A to B to C, and the image is pulled the other way. (ANTs lists the
    same files in the opposite order.)
    """
    from ..io.atomic import staged_file
    from ..io.images import read_grid
    from ..io.transforms import chain, check_writable, read_transform, write_transform

    check_writable(output, reference)
    with staged_file(output, overwrite=overwrite) as out:
        grid = read_grid(reference) if reference else None
        write_transform(chain(*(read_transform(path) for path in transforms)), out, reference=grid)
    if not quiet:
        print(f"Wrote {output}.")
