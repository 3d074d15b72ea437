"""`regmamba apply`: move images, label maps and points through transforms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Output, Overwrite, Quiet, Reference

if TYPE_CHECKING:
    import SimpleITK as sitk


def apply(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Image, DICOM folder or point list.")],
    output: Output,
    transform: Annotated[
        list[Path],
        typer.Option("--transform", "-t", metavar="FILE", help="Repeatable; points pass them in order."),
    ],
    reference: Reference = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="INPUT is a label map: nearest neighbour, values kept.")
    ] = False,
    points_space: Annotated[
        str, typer.Option(metavar="lps|ras", help="Space of a .csv; other point lists state it.")
    ] = "lps",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Move an image, a label map or a list of points.

    After `register FIXED MOVING -o out`:

    - images and label maps in moving space come to fixed space by out/transform.h5, with --reference FIXED;

    - points in fixed space go to moving space by the same out/transform.h5;

    - images in fixed space go to moving space, and points in moving space come to fixed space, by
    out/inverse.h5.

    A transform carries points from fixed to moving space. An image is pulled: every voxel of the reference
    asks the transform where to look. That is why an image and its points take different files.

    Label maps need --labels: without it values are interpolated. Outside of the input, images get their
    lowest value.
    """
    from ..errors import InputError
    from ..io.atomic import staged_file
    from ..io.points import SUFFIXES, is_points
    from ..io.transforms import chain, read_transform

    if is_points(source) and not is_points(output):
        raise InputError(f"Points are written as {', '.join(SUFFIXES)}, not as {output.name}; name the output so.")
    with staged_file(output, overwrite=overwrite) as out:
        if is_points(source):
            _apply_to_points(source, out, chain(*map(read_transform, transform)), points_space)
        else:
            _apply_to_image(source, out, transform, reference, labels)
    if not quiet:
        print(f"Wrote {output}.")


def _apply_to_points(source: Path, out: Path, chain: sitk.Transform, space: str) -> None:
    from ..io.points import read_points, write_points
    from ..spatial.itk import map_points

    points = read_points(source, csv_space=space)
    write_points(points.moved_to(map_points(chain, points.positions)), out)


def _apply_to_image(source: Path, out: Path, transforms: list[Path], reference: Path | None, labels: bool) -> None:
    import SimpleITK as sitk

    from ..errors import InputError
    from ..io.images import check_image_name, read_grid, read_image, read_labels, write_image
    from ..io.transforms import chain, read_transform

    if reference is None:
        raise InputError("An image needs a grid to be brought to; add --reference IMAGE, the fixed image.")
    check_image_name(out)
    grid = read_grid(reference)
    image = read_labels(source) if labels else read_image(source, constant=True)
    lowest = 0.0 if labels else float(sitk.GetArrayViewFromImage(image).min())
    moved = grid.resample(image, chain(*map(read_transform, transforms)), labels=labels, default=lowest)
    write_image(moved, out)
