"""How good a registration is: the same measures, from the same code, for every tool."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from .cases import Case, Job
from .peers import LABELS, SECONDS, WARP

# Stages of `register` that are registration, not reading, loading or writing.
STAGES = ("preprocess", "linear", "network", "refine", "repair")


def overlap(job: Job, case: Case, labels: str) -> dict[str, Any]:
    """Dice of all labels, of each group and of each label, and HD95 (mm), of the moved labels in the job's folder."""
    from RegMambaLib.evaluation.report import compare_labels
    from RegMambaLib.io.images import read_labels

    fixed, moving, moved = (read_labels(path) for path in (job.fixed_labels, job.moving_labels, job.folder / labels))
    found = compare_labels(fixed, moving, moved, threads=job.threads)
    per_label = {int(label): measures["dice"] for label, measures in found["per_label"].items()}
    groups = {
        f"dice_{name}": float(np.mean([value for label, value in per_label.items() if holds(label)]))
        for name, holds in case.groups.items()
    }
    return {
        "dice": found["dice"],
        **groups,
        "hd95_mm": found["hd95_mm"],
        "per_label": {str(label): round(value, 4) for label, value in per_label.items()},
    }


def regularity(job: Job, displacement: np.ndarray) -> dict[str, float]:
    """Of a displacement (k, j, i, 3) in LPS mm on the fixed image's grid, without the linear part.

    Folds by central and by any differences and the non-diffeomorphic volume, in percent of the whole grid; SDlogJ
    within the fixed labels, where there is something to register.
    """
    import SimpleITK as sitk

    from RegMambaLib.evaluation import folding
    from RegMambaLib.io.images import read_labels
    from RegMambaLib.spatial.grid import Grid
    from RegMambaLib.spatial.itk import mm_to_voxels
    from RegMambaLib.spatial.jacobian import jacobian_determinant

    labels = read_labels(job.fixed_labels)
    voxels = mm_to_voxels(displacement, Grid.of(labels))
    central = jacobian_determinant(voxels)
    inside = sitk.GetArrayViewFromImage(labels) > 0
    return {
        "folding_percent": folding.folding_percent(central),
        "folding_strict_percent": folding.folding_percent(jacobian_determinant(voxels, strict=True)),
        "nondiffeomorphic_percent": folding.nondiffeomorphic_percent(voxels),
        "sd_log_jacobian": folding.sd_log_jacobian(central, inside),
    }


def judge_start(job: Job, case: Case) -> dict[str, Any]:
    """Before anything: the moving labels looked up through the world."""
    import SimpleITK as sitk

    from RegMambaLib.io.images import read_labels
    from RegMambaLib.spatial.grid import Grid

    moved = Grid.of(read_labels(job.fixed_labels)).resample(read_labels(job.moving_labels), labels=True)
    if not sitk.GetArrayViewFromImage(moved).any():
        return {"dice": 0.0}
    sitk.WriteImage(moved, str(job.folder / LABELS))
    return overlap(job, case, LABELS)


def judge_peer(job: Job, case: Case) -> dict[str, Any]:
    """Of what `benchmarks.peers` wrote."""
    import SimpleITK as sitk

    seconds = json.loads((job.folder / SECONDS).read_text(encoding="utf-8"))
    linear = seconds.get("linear", 0.0)
    field = sitk.GetArrayFromImage(sitk.ReadImage(str(job.folder / WARP)))
    return {
        **overlap(job, case, LABELS),
        **regularity(job, field),
        "registration_seconds": linear + seconds["deform"],
        "linear_seconds": linear,
        "stages": seconds,
    }


def judge_regmamba(job: Job, case: Case) -> dict[str, Any]:
    """Of what `regmamba register` wrote; the transform's own grid is judged too."""
    from RegMambaLib.io.images import read_grid
    from RegMambaLib.io.transforms import flatten
    from RegMambaLib.registration.result import Registration
    from RegMambaLib.spatial.itk import displacement_transform
    from RegMambaLib.spatial.jacobian import jacobian_determinant

    folder = job.folder / "out"
    result = Registration.load(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    seconds = report["seconds"]
    field = flatten(displacement_transform(result.displacement, result.grid), read_grid(job.fixed))
    own = jacobian_determinant(result.displacement, strict=True)
    return {
        **overlap(job, case, f"out/{LABELS}"),
        **regularity(job, field),
        "registration_seconds": math.fsum(seconds.get(name, 0.0) for name in STAGES),
        "linear_seconds": seconds.get("linear", 0.0),
        "stages": seconds,
        "folded_voxels_own_grid": int(np.count_nonzero(own <= 0)),
        "details": report["details"],
    }
