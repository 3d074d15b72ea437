"""`regmamba evaluate`: how well two label maps agree, before and after a transform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..spatial.grid import Grid


def evaluate(
    fixed: Annotated[Path, typer.Argument(metavar="FIXED_LABELS", help="Label map of the fixed image.")],
    moving: Annotated[Path, typer.Argument(metavar="MOVING_LABELS", help="Label map of the moving image.")],
    transform: Annotated[
        list[Path] | None,
        typer.Option("--transform", "-t", metavar="FILE", help="Fixed to moving; repeatable, in order."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two label maps in world space: Dice, HD95 and mean surface distance of every label they share.

    With a transform, before and after it, and its folding and SDlogJ on the fixed image's grid.
    """
    from ..io.images import read_labels
    from ..io.transforms import chain, read_transform
    from ..spatial.grid import Grid
    from .output import print_json

    fixed_labels, moving_labels = read_labels(fixed), read_labels(moving)
    joined = chain(*map(read_transform, transform)) if transform else None
    grid = Grid.of(fixed_labels)
    moved = grid.resample(moving_labels, labels=True)
    report: dict[str, Any] = {"before": compare(fixed_labels, moving_labels, moved)}
    if joined is not None:
        moved = grid.resample(moving_labels, joined, labels=True)
        report["after"] = compare(fixed_labels, moving_labels, moved)
        report |= _folding(grid, joined)
    if json:
        print_json(report)
    else:
        _print_table(report)


def compare(
    fixed: sitk.Image,
    moving: sitk.Image,
    moved: sitk.Image,
    *,
    distances: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """`label_report` of the fixed labels and of the moving ones pulled onto their grid.

    It is over the labels of both maps as given: one that moving makes vanish counts as lost, not as absent.

    Raises:
        InputError: the maps share no label.
    """
    import SimpleITK as sitk

    from ..errors import InputError
    from ..evaluation.overlap import common_labels
    from ..evaluation.report import label_report

    given = sitk.GetArrayViewFromImage(fixed)
    labels = common_labels(given, sitk.GetArrayViewFromImage(moving))
    if not labels:
        raise InputError("The two label maps share no label; are they of the same kind?")
    arrived = sitk.GetArrayViewFromImage(moved)
    return label_report(given, arrived, fixed.GetSpacing(), labels, distances=distances, threads=threads)


def _folding(grid: Grid, transform: sitk.Transform) -> dict[str, float]:
    from ..evaluation.report import folding_report
    from ..io.transforms import flatten
    from ..spatial.itk import mm_to_voxels
    from ..spatial.jacobian import jacobian_determinant

    return folding_report(jacobian_determinant(mm_to_voxels(flatten(transform, grid), grid)))


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .output import shown

    table = Table("label")
    names = {"dice": "Dice", "hd95_mm": "HD95 mm", "surface_mm": "surface mm"}
    times = [name for name in ("before", "after") if name in report]
    for time in times:
        for name in names.values():
            table.add_column(f"{name} {time}" if len(times) > 1 else name, justify="right")
    for label in report["before"]["per_label"]:
        rows = [report[time]["per_label"][label] for time in times]
        table.add_row(label, *(shown(row[name]) for row in rows for name in names))
    table.add_section()
    table.add_row("mean", *(shown(report[time][name]) for time in times for name in names))
    Console(highlight=False).print(table)
    if "folding_percent" in report:
        print(f"Folding {report['folding_percent']:.4g} %, SDlogJ {report['sd_log_jacobian']:.4g}.")
