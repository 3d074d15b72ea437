"""Many pairs, one after another: each is registered or read, measured, and kept in a folder of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Cancelled, InputError
from ..io.atomic import staged
from ..io.images import read_image, read_labels
from ..io.points import read_points
from ..io.transforms import chain, flatten, read_transform
from ..registration.network import weights_files
from ..registration.settings import Settings
from ..registration.warmup import load_kernels
from ..spatial.grid import Grid
from ..spatial.itk import mm_to_voxels
from ..version import __version__
from .consistency import inverse_error
from .landmarks import target_registration_error
from .memory import peak_memory_mb, reset_peak_memory
from .overlap import label_values
from .pairs import PairFiles
from .plain import finite
from .registration_page import registration_page
from .report import compare_labels, regularity_report
from .slices import without_linear_part
from .viewer import Shown, overlay

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..registration.result import Registration

RESULT, PAGE, OVERLAY = "result.json", "report.html", "overlay.jpg"


@dataclass(frozen=True)
class Cohort:
    """How pairs are evaluated, and where.

    Attributes:
        folder: of the evaluation; every pair has one below it (`PairFiles.folder`).
        settings: of the registrations, where no transform is given.
        names: of labels; where there are any, only these labels count.
        pictures: also write report.html and overlay.jpg of every pair.
    """

    folder: Path
    settings: Settings = field(default_factory=Settings)
    names: Mapping[int, str] = field(default_factory=dict)
    pictures: bool = True


def evaluate_pairs(
    pairs: Sequence[PairFiles],
    cohort: Cohort,
    *,
    overwrite: bool = False,
    progress: Callable[[int, PairFiles, str], None] = lambda number, pair, outcome: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Evaluate pairs in order. Pairs whose result is in the folder are kept; one that fails does not stop the rest.

    Args:
        overwrite: do the kept ones again.
        progress: called with the number of a pair, the pair, and "begun", "kept", "done" or "failed: why".

    Returns:
        The results (see `evaluate_pair`), and why others failed, by their names.

    Raises:
        InputError: the folder holds a result made from other files, settings or weights, or by another version.
    """
    kept = {} if overwrite else _kept(pairs, cohort)
    results, failed = [], {}
    if any(pair.folder not in kept and not pair.transform for pair in pairs):
        load_kernels(cohort.settings)  # so that the seconds of the first pair are as comparable as the others'
    for number, pair in enumerate(pairs, 1):
        if pair.folder in kept:
            results.append(kept[pair.folder])
            progress(number, pair, "kept")
            continue
        progress(number, pair, "begun")
        try:
            results.append(evaluate_pair(pair, cohort))
            progress(number, pair, "done")
        except Cancelled:
            raise
        except Exception as error:  # a pair may fail in any way; the others shall not pay for it
            reason = " ".join(str(error).split()) or type(error).__name__
            failed[f"{pair.name} ({pair.method})"] = reason
            progress(number, pair, f"failed: {reason}")
    return results, failed


def evaluate_pair(pair: PairFiles, cohort: Cohort) -> dict[str, Any]:
    """Measure one pair and write its files.

    Returns:
        What result.json holds: "pair", "method", "source" (files and settings it was made from), the names of a
        `regmamba register` report, and of the measures in `results.PAIR_MEASURES`. Measures on the displacement
        are over the fixed image's grid, or over the mask given for the pair.
    """
    source = _source(pair, cohort)  # before the work: a file that changes meanwhile is noticed
    images = {name: read_image(pair.files[name]) for name in ("fixed", "moving")}
    labels = {
        name: _on_grid_of(pair, name, images)
        for name in ("fixed_labels", "moving_labels", "mask")
        if name in pair.files
    }
    transform, inverse, registration, costs = _transform(pair, images, cohort.settings)
    grid = Grid.of(images["fixed"])
    numbers, displacement = _field_measures(grid, transform, inverse, labels.get("mask"))
    numbers |= _label_measures(labels, transform, cohort)
    numbers |= _landmark_measures(pair, transform)
    inputs = {name: str(path) for name, path in pair.files.items()}
    report = {"pair": pair.name, "method": pair.method, "source": source, "inputs": inputs, **numbers, **costs}
    with staged(cohort.folder / pair.folder, (RESULT, PAGE, OVERLAY), overwrite=True) as staging:
        if cohort.pictures:
            shown = _shown(images, labels, transform, registration, displacement, grid)
            (staging / PAGE).write_text(registration_page(report, shown, cohort.names), encoding="utf-8")
            (staging / OVERLAY).write_bytes(overlay(shown))
        (staging / RESULT).write_text(json.dumps(finite(report)), encoding="utf-8")
    return report


def _source(pair: PairFiles, cohort: Cohort) -> dict[str, Any]:
    """All that the result of a pair depends on, as JSON gives it back; a registration on weights and version too."""
    files = [*pair.files.items(), *(("transform", p) for p in pair.transform), *(("inverse", p) for p in pair.inverse)]
    stamps = [[name, str(path), *_stamp(path)] for name, path in files]
    made: dict[str, Any] = {}
    if not pair.transform:
        weights = {str(path): _stamp(path) for path in weights_files(cohort.settings.weights)}
        made = {"settings": cohort.settings.to_dict(), "weights": weights, "version": __version__}
    source = {"files": stamps, **made, "labels": sorted(cohort.names), **dict(sorted(pair.numbers.items()))}
    return json.loads(json.dumps(source))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _kept(pairs: Sequence[PairFiles], cohort: Cohort) -> dict[str, dict[str, Any]]:
    kept = {}
    for pair in pairs:
        path = cohort.folder / pair.folder / RESULT
        if not path.exists():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            source = result["source"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; remove it, or add --overwrite.") from error
        if source != _source(pair, cohort):
            raise InputError(
                f"{path} was made from other files, settings or weights, or by another version; choose another folder, "
                "or add --overwrite to do all pairs again."
            )
        kept[pair.folder] = result
    return kept


def _on_grid_of(pair: PairFiles, name: str, images: Mapping[str, sitk.Image]) -> sitk.Image:
    of = "moving" if name == "moving_labels" else "fixed"
    labels = read_labels(pair.files[name])
    if not Grid.of(labels).same_as(Grid.of(images[of]), 0.01):
        raise InputError(
            f"{pair.files[name]} is on another grid than {pair.files[of]}; give the one that belongs to that image."
        )
    return labels


def _transform(
    pair: PairFiles, images: Mapping[str, sitk.Image], settings: Settings
) -> tuple[sitk.Transform, sitk.Transform | None, Registration | None, dict[str, Any]]:
    """The pair's transform, its inverse if there is one, and what it took."""
    if pair.transform:
        inverse = chain(*map(read_transform, pair.inverse)) if pair.inverse else None
        costs: dict[str, Any] = {}
        if "seconds" in pair.numbers:
            costs["seconds"] = {"total": pair.numbers["seconds"]}
        if "memory_mb" in pair.numbers:
            costs["peak_memory_mb"] = pair.numbers["memory_mb"]
        return chain(*map(read_transform, pair.transform)), inverse, None, costs
    from ..registration.pipeline import register

    reset_peak_memory()
    began = time.perf_counter()
    found = register(images["fixed"], images["moving"], settings=settings)
    costs = {
        "seconds": {**found.seconds, "total": time.perf_counter() - began},
        "peak_memory_mb": peak_memory_mb(),
        "details": found.details,
        "settings": settings.to_dict(),
    }
    return found.transform, found.inverse, found, costs


def _field_measures(
    grid: Grid, transform: sitk.Transform, inverse: sitk.Transform | None, mask: sitk.Image | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Regularity over the grid or mask, and the displacement, (3, k, j, i) voxels."""
    import SimpleITK as sitk

    region = None if mask is None else sitk.GetArrayViewFromImage(mask) > 0
    if region is not None and not region.any():
        raise InputError("The mask is empty (0 everywhere); mark where the deformation counts, or leave it out.")
    displacement = mm_to_voxels(flatten(transform, grid), grid)
    numbers: dict[str, Any] = {**regularity_report(displacement, region)}
    if inverse is not None:
        error = inverse_error(transform, inverse, grid, region)
        numbers |= {"inverse_error_mm": float(error.mean()), "inverse_error_largest_mm": float(error.max())}
    return numbers, displacement


def _label_measures(labels: Mapping[str, sitk.Image], transform: sitk.Transform, cohort: Cohort) -> dict[str, Any]:
    import SimpleITK as sitk

    if "fixed_labels" not in labels:
        return {}
    fixed, moving = labels["fixed_labels"], labels["moving_labels"]
    grid, only, threads = Grid.of(fixed), cohort.names or None, cohort.settings.threads or None
    before, after = (grid.resample(moving, t, labels=True) for t in (None, transform))
    values = [set(label_values(sitk.GetArrayViewFromImage(image))) for image in (fixed, moving)]
    return {
        "before": compare_labels(fixed, moving, before, only=only, distances=False, threads=threads),
        "after": compare_labels(fixed, moving, after, only=only, threads=threads),
        "unmatched_labels": sorted((values[0] ^ values[1]) & (set(cohort.names) or values[0] | values[1])),
    }


def _landmark_measures(pair: PairFiles, transform: sitk.Transform) -> dict[str, Any]:
    if "fixed_landmarks" not in pair.files:
        return {}
    fixed, moving = (read_points(pair.files[f"{side}_landmarks"]).positions for side in ("fixed", "moving"))
    before, after = (target_registration_error(fixed, moving, t) for t in (None, transform))
    return {
        "tre_before_mm": float(before.mean()),
        "tre_mm": float(after.mean()),
        "tre_largest_mm": float(after.max()),
        "landmarks": len(after),
    }


def _shown(
    images: Mapping[str, sitk.Image],
    labels: Mapping[str, sitk.Image],
    transform: sitk.Transform,
    registration: Registration | None,
    displacement: np.ndarray,
    grid: Grid,
) -> Shown:
    if registration is not None:
        displacement, grid = registration.displacement, registration.grid
    else:
        displacement = without_linear_part(displacement)
    return Shown(
        images["fixed"],
        images["moving"],
        transform,
        displacement,
        grid,
        fixed_labels=labels.get("fixed_labels"),
        moving_labels=labels.get("moving_labels"),
        uncertainty=None if registration is None else registration.uncertainty,
    )
