"""`regmamba register`: two images in, one transform, its inverse, the moved image and a report out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Assignments, Json, LabelNames, Overwrite, Preset, Quiet, resolve_settings, setting

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..registration.result import Registration

OUTPUTS = (
    "transform.h5",
    "inverse.h5",
    "registration.json",
    "uncertainty.nii.gz",
    "moved.nii.gz",
    "moved_labels.nii.gz",
    "report.json",
    "report.html",
)
COMPILING = (
    "The numerical kernels are compiled now, once after installing; it takes about a minute. `regmamba warmup` does it "
    "beforehand."
)
# Memory that a registration works in, for a voxel of the fixed image, and no more than it is for a brain at 1 mm.
BYTES_PER_VOXEL, MOST_BYTES = 130, 640 * 2**20
_STAGES = ("read", "start", "preprocess", "linear", "network", "refine", "repair", "write", "evaluate")


def register(
    fixed: Annotated[Path, typer.Argument(metavar="FIXED", help="Image that stays: file or DICOM folder.")],
    moving: Annotated[Path, typer.Argument(metavar="MOVING", help="Image to align to it.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")],
    fixed_labels: Annotated[Path | None, typer.Option(help="Label map on the fixed image's grid.")] = None,
    moving_labels: Annotated[Path | None, typer.Option(help="Label map on the moving image's grid.")] = None,
    fixed_mask: Annotated[Path | None, typer.Option(help="Restrict the metric to where it is not 0.")] = None,
    moving_mask: Annotated[Path | None, typer.Option(help="The same in the moving image.")] = None,
    initial: Annotated[Path | None, typer.Option(help="Linear transform to start from.")] = None,
    affine: Annotated[str | None, setting("affine")] = None,
    weights: Annotated[str | None, setting("weights")] = None,
    metric: Annotated[str | None, setting("metric")] = None,
    guide: Annotated[bool | None, setting("guide")] = None,
    device: Annotated[str | None, setting("device")] = None,
    scan: Annotated[str | None, setting("scan")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    uncertainty: Annotated[bool | None, setting("uncertainty")] = None,
    preset: Preset = None,
    assignments: Assignments = None,
    html: Annotated[bool, typer.Option("--report", help="Also write report.html, to look at in a browser.")] = False,
    label_names: LabelNames = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align MOVING to FIXED, wherever the two are in scanner space.

    Writes to DIR: transform.h5 (fixed to moving, what resamples MOVING), inverse.h5, moved.nii.gz,
    moved_labels.nii.gz (with --moving-labels), uncertainty.nii.gz (with --uncertainty), report.json, report.html
    (with --report; pictures and figures in one file), and registration.json, with which Python loads the result
    again. All of them appear, or none.
    """
    began = time.perf_counter()
    settings = resolve_settings(
        preset,
        assignments or [],
        affine=affine,
        weights=weights,
        metric=metric,
        guide=guide,
        device=device,
        scan=scan,
        threads=threads,
        uncertainty=uncertainty,
    )
    paths = {
        "fixed": fixed,
        "moving": moving,
        "fixed_labels": fixed_labels,
        "moving_labels": moving_labels,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "initial": initial,
    }
    from ..allocation import memory_fetched
    from ..evaluation.names import read_label_names
    from ..io.atomic import staged
    from .output import print_json, to_json
    from .progress import Stages

    names = read_label_names(label_names) if label_names else {}
    with staged(output, OUTPUTS, overwrite=overwrite) as folder, Stages(quiet=quiet) as stages:
        with stages.stage("read"):
            inputs = _read({name: path for name, path in paths.items() if path})
        with stages.stage("start"), memory_fetched(_memory_needed(inputs.fixed)):
            from ..evaluation.report import registration_report
            from ..registration.device import find_device
            from ..registration.pipeline import register as run
            from ..registration.warmup import is_compiled, load_kernels

            if not is_compiled(find_device(settings.device)) and not quiet:
                typer.echo(COMPILING, err=True)
            load_kernels(settings)
        registration = run(**vars(inputs), settings=settings, progress=stages)
        with stages.stage("write"):
            moved_labels = _write(registration, inputs, folder)
        with stages.stage("evaluate"):
            labels = inputs.fixed_labels, inputs.moving_labels, moved_labels
            numbers, notes = registration_report(
                registration, *labels, initial=inputs.initial, threads=settings.threads
            )
        seconds = {**registration.seconds, **stages.seconds, "total": time.perf_counter() - began}
        outputs = [*sorted(file.name for file in folder.iterdir()), *(["report.html"] if html else []), "report.json"]
        report = _report(registration, paths, seconds, {**numbers, "notes": notes}, outputs)
        (folder / "report.json").write_text(to_json(report), encoding="utf-8")
        if html:
            with stages.stage("report"):
                (folder / "report.html").write_text(_page(report, registration, inputs, names), encoding="utf-8")
    if json:
        print_json(report)
    elif not quiet:
        _print_summary(report, output)


@dataclass(frozen=True)
class _Inputs:
    """The arguments of `registration.pipeline.register` that come from files."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image | None = None
    moving_labels: sitk.Image | None = None
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    initial: sitk.Transform | None = None


def _read(paths: dict[str, Path]) -> _Inputs:
    from ..errors import InputError
    from ..io.images import read_image, read_labels
    from ..io.transforms import read_linear
    from ..spatial.grid import Grid

    read: dict[str, Any] = {name: read_image(paths[name]) for name in ("fixed", "moving")}
    for name in ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask"):
        if name in paths:
            image = name.split("_")[0]
            read[name] = read_labels(paths[name])
            if not Grid.of(read[name]).same_as(Grid.of(read[image]), 0.01):
                raise InputError(
                    f"{paths[name]} is on another grid than {paths[image]}; give the one that belongs to "
                    "that image, or resample it onto the image first, by nearest neighbour."
                )
    if "initial" in paths:
        read["initial"] = read_linear(paths["initial"])
    return _Inputs(**read)


def _memory_needed(fixed: sitk.Image) -> int:
    """About the bytes that a registration takes at its peak; no more than brains at 1 mm do."""
    return min(BYTES_PER_VOXEL * fixed.GetNumberOfPixels(), MOST_BYTES)


def _write(registration: Registration, inputs: _Inputs, folder: Path) -> sitk.Image | None:
    """Write everything but the report; returns the moved labels."""
    from ..io.images import write_image
    from ..registration.storage import write_files

    write_files(registration, folder)
    write_image(registration.warp(inputs.moving), folder / "moved.nii.gz")
    if inputs.moving_labels is None:
        return None
    moved_labels = registration.warp(inputs.moving_labels, labels=True)
    write_image(moved_labels, folder / "moved_labels.nii.gz")
    return moved_labels


def _report(
    registration: Registration,
    paths: dict[str, Path | None],
    seconds: dict[str, float],
    numbers: dict[str, Any],
    outputs: list[str],
) -> dict[str, Any]:
    from ..evaluation.memory import peak_memory_mb
    from .system import versions

    order = [*_STAGES, *(name for name in seconds if name not in _STAGES)]
    return {
        "inputs": {name: str(path) for name, path in paths.items() if path},
        "outputs": outputs,
        "seconds": {name: round(seconds.get(name, 0.0), 3) for name in order},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        **numbers,
        "details": registration.details,
        "settings": registration.settings.to_dict(),
        "versions": versions(),
    }


def _page(report: dict[str, Any], registration: Registration, inputs: _Inputs, names: dict[int, str]) -> str:
    from ..evaluation.registration_page import registration_page
    from ..evaluation.viewer import Shown

    shown = Shown(
        inputs.fixed,
        inputs.moving,
        registration.transform,
        registration.displacement,
        registration.grid,
        before=inputs.initial,
        fixed_labels=inputs.fixed_labels,
        moving_labels=inputs.moving_labels,
        uncertainty=registration.uncertainty,
    )
    return registration_page(report, shown, names)


def _print_summary(report: dict[str, Any], output: Path) -> None:
    from .output import shown

    if "after" in report:
        before, after = report["before"], report["after"]
        print(f"Dice {shown(before['dice'])} -> {shown(after['dice'])} over {after['labels']} labels")
        print(f"HD95 {shown(after['hd95_mm'], 2)} mm")
    for note in report["notes"]:
        print(note)
    print(f"Folding {report['folding_percent']:.4g} %, SDlogJ {report['sd_log_jacobian']:.3f}")
    print(f"Wrote {output} in {report['seconds']['total']:.1f} s")
