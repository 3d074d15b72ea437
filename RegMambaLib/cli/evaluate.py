"""`regmamba evaluate`: how good registrations are: of two label maps, of many pairs, of two methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import Assignments, Json, LabelNames, Overwrite, Preset, Quiet, resolve_settings, setting

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..spatial.grid import Grid

COMPARISONS = ("comparison.csv", "comparison.json", "comparison.md")


def evaluate(
    fixed: Annotated[
        Path | None, typer.Argument(metavar="[FIXED_LABELS]", help="Label map of the fixed image.", show_default=False)
    ] = None,
    moving: Annotated[
        Path | None, typer.Argument(metavar="[MOVING_LABELS]", help="Label map of the moving image.")
    ] = None,
    transform: Annotated[
        list[Path] | None,
        typer.Option("--transform", "-t", metavar="FILE", help="Fixed to moving; repeatable, in order."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Many pairs, a row each: columns fixed, moving, fixed_labels, moving_labels; also pair, method, "
            "transform, inverse, fixed_landmarks, moving_landmarks, mask, seconds, memory_mb.",
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="RESULTS RESULTS", help="Test two results.csv of the same pairs against one another."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for results of --pairs or --compare."),
    ] = None,
    label_names: LabelNames = None,
    pictures: Annotated[
        bool, typer.Option("--report/--no-report", help="With --pairs: write report.html, box plots and slices too.")
    ] = True,
    affine: Annotated[str | None, setting("affine")] = None,
    weights: Annotated[str | None, setting("weights")] = None,
    metric: Annotated[str | None, setting("metric")] = None,
    device: Annotated[str | None, setting("device")] = None,
    scan: Annotated[str | None, setting("scan")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    preset: Preset = None,
    assignments: Assignments = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure registrations.

    FIXED_LABELS MOVING_LABELS: compare two label maps in world space: Dice, HD95, mean surface distance and volume
    similarity of every label they share. With a transform, before and after it, and its folding and SDlogJ on the
    fixed image's grid.

    --pairs CSV -o DIR: many pairs. A row with a transform is measured as it is, any other is registered first, with
    the settings given. Writes results.csv, results.json, results.md, and report.html with pictures; pairs that are
    in DIR already are kept. Exit code 1 says that a pair failed; the others are there.

    --compare A/results.csv B/results.csv: Wilcoxon's signed-rank test between two methods.
    """
    if sum((fixed is not None, pairs is not None, compare is not None)) != 1:
        raise InputError("Give either two label maps, or --pairs, or --compare.")
    if transform and fixed is None:
        raise InputError("--transform goes with two label maps; with --pairs, name transforms in the list.")
    if output is not None and fixed is not None:
        raise InputError("--output goes with --pairs or --compare; two label maps are measured on the screen (--json).")
    registering = affine, weights, metric, device, scan, preset, assignments
    if pairs is None and any(value is not None and value != [] for value in registering):
        raise InputError("Settings of a registration go with --pairs; nothing is registered here.")
    if pairs is None and compare is None:
        if fixed is None or moving is None:
            raise InputError("Comparing label maps takes two: FIXED_LABELS MOVING_LABELS.")
        _evaluate_one(fixed, moving, transform, label_names, json)
    elif compare is not None:
        _compare(compare, output, overwrite, json, quiet)
    elif pairs is not None:
        if output is None:
            raise InputError("Evaluating pairs needs a folder for the results; add -o DIR.")
        settings = resolve_settings(
            preset,
            assignments or [],
            affine=affine,
            weights=weights,
            metric=metric,
            device=device,
            scan=scan,
            threads=threads,
        )
        if settings.guide:
            raise InputError("Label guidance would use the labels that the evaluation measures by; leave guide off.")
        from .evaluate_pairs import evaluate_list

        code = evaluate_list(
            pairs,
            output,
            settings,
            label_names,
            pictures=pictures,
            overwrite=overwrite,
            json=json,
            quiet=quiet,
        )
        if code:
            raise typer.Exit(code)


def _evaluate_one(
    fixed: Path, moving: Path, transform: list[Path] | None, label_names: Path | None, json: bool
) -> None:
    from ..evaluation.names import read_label_names
    from ..evaluation.report import compare_labels
    from ..io.images import read_labels
    from ..io.transforms import chain, read_transform
    from ..spatial.grid import Grid
    from .output import print_json

    names = read_label_names(label_names) if label_names else {}
    only = names or None
    fixed_labels, moving_labels = read_labels(fixed), read_labels(moving)
    joined = chain(*map(read_transform, transform)) if transform else None
    grid = Grid.of(fixed_labels)
    moved = grid.resample(moving_labels, labels=True)
    report: dict[str, Any] = {"before": compare_labels(fixed_labels, moving_labels, moved, only=only)}
    if joined is not None:
        moved = grid.resample(moving_labels, joined, labels=True)
        report["after"] = compare_labels(fixed_labels, moving_labels, moved, only=only)
        report |= _folding(grid, joined)
    if names:
        report["label_names"] = {label: names[int(label)] for label in report["before"]["per_label"]}
    if json:
        print_json(report)
    else:
        _print_table(report, names)


def _compare(files: tuple[Path, Path], output: Path | None, overwrite: bool, json: bool, quiet: bool) -> None:
    from ..evaluation.results import COMPARISON_COLUMNS, compare_methods, read_results, to_csv
    from ..evaluation.text import comparison_text
    from ..io.atomic import staged
    from .output import print_json, to_json

    first, second = (read_results(path) for path in files)
    a, b = first[0]["method"], second[0]["method"]
    if a == b:
        a, b = map(str, files)
    comparison = compare_methods(first, second)
    found = {"first": a, "second": b, "comparison": comparison}
    text = comparison_text(a, b, comparison)
    if output is not None:
        with staged(output, COMPARISONS, overwrite=overwrite) as folder:
            (folder / "comparison.csv").write_text(to_csv(comparison, COMPARISON_COLUMNS), encoding="utf-8")
            (folder / "comparison.json").write_text(to_json(found), encoding="utf-8")
            (folder / "comparison.md").write_text(f"# {a} against {b}\n\n{text}", encoding="utf-8")
    if json:
        print_json(found)
    elif not quiet:
        print(text)


def _folding(grid: Grid, transform: sitk.Transform) -> dict[str, float]:
    from ..evaluation.report import regularity_report
    from ..io.transforms import flatten
    from ..spatial.itk import mm_to_voxels

    return regularity_report(mm_to_voxels(flatten(transform, grid), grid))


def _print_table(report: dict[str, Any], names: dict[int, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.names import structure_name
    from ..evaluation.report import LABEL_MEASURES
    from .output import shown

    table = Table("label")
    times = [name for name in ("before", "after") if name in report]
    for time in times:
        for title in LABEL_MEASURES.values():
            table.add_column(f"{title} {time}" if len(times) > 1 else title, justify="right")
    for label in report["before"]["per_label"]:
        rows = [report[time]["per_label"][label] for time in times]
        table.add_row(structure_name(label, names), *(shown(row[name]) for row in rows for name in LABEL_MEASURES))
    table.add_section()
    table.add_row("mean", *(shown(report[time][name]) for time in times for name in LABEL_MEASURES))
    Console(highlight=False).print(table)
    if "folding_percent" in report:
        print(
            f"Folding {report['folding_percent']:.4g} %, non-diffeomorphic volume "
            f"{report['nondiffeomorphic_percent']:.4g} %, SDlogJ {report['sd_log_jacobian']:.4g}."
        )
