"""`regmamba demo`: a real template registered to a deformed copy of it, whose true transform is known."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MissingDependencyError
from .options import Json, Overwrite, Quiet, setting
from .register import OUTPUTS
from .register import register as run_register

if TYPE_CHECKING:
    from ..evaluation.known_pair import KnownPair, Template
    from ..registration.result import Registration

INPUTS = ("fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz", "landmarks.csv")
FINDINGS = ("demo.png", "demo.json")
# About where these lie in MNI152, RAS mm.
LANDMARKS = {
    "anterior commissure": (0, 3, -4),
    "posterior commissure": (0, -25, -2),
    "left hippocampus": (-26, -20, -14),
    "right hippocampus": (26, -20, -14),
    "left putamen": (-25, 3, 2),
    "right putamen": (25, 3, 2),
}


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for inputs, results and the picture.")
    ] = Path("demo_output"),
    seed: Annotated[int, typer.Option(help="Another number, another deformation and noise.")] = 0,
    weights: Annotated[str | None, setting("weights")] = None,
    device: Annotated[str | None, setting("device")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register the MNI152 template to a deformed copy of it, and show how close that comes to the truth.

    The copy is bent by a smooth deformation of up to 7 mm, turned and moved, gets a T2-like contrast, noise,
    and 3 mm slices on an oblique left-handed grid. `register` sees the two images and nothing else; the label
    maps and the true transform serve to measure. Writes all of it to DIR, with demo.png to look at.

    Needs nilearn, which holds the template, and matplotlib: pip install "regmamba[demo]". No download.
    """
    from ..io.atomic import staged
    from .output import print_json, to_json

    template = load_template()
    from ..evaluation.figures import check_matplotlib

    check_matplotlib(_missing("matplotlib"))
    from ..evaluation.known_pair import make_pair
    from ..evaluation.picture import draw

    with staged(output, (*INPUTS, *OUTPUTS, *FINDINGS), overwrite=overwrite) as folder:
        pair = make_pair(template, seed)
        write_pair(pair, folder)
    fixed, moving, fixed_labels, moving_labels = (output / name for name in INPUTS[:4])
    run_register(
        fixed,
        moving,
        output,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        weights=weights,
        device=device,
        quiet=quiet or json,
    )
    from ..registration.result import Registration  # with torch and numba: after register's progress

    registration = Registration.load(output)
    findings = measure(pair, registration)
    findings["register"] = json_module.loads((output / "report.json").read_text(encoding="utf-8"))
    with staged(output, FINDINGS, overwrite=overwrite) as folder:
        (folder / "demo.json").write_text(to_json(findings), encoding="utf-8")
        draw(pair, registration, folder / "demo.png")
    if json:
        print_json(findings)
    elif not quiet:
        print_tables(findings)
        print(f"Look at {output / 'demo.png'}.")


def load_template() -> Template:
    """MNI152 and its maps of grey and white matter, 1 mm, from the installed package nilearn.

    Raises:
        MissingDependencyError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingDependencyError(_missing("nilearn")) from error
    import numpy as np

    from ..evaluation.known_pair import Template
    from ..spatial.grid import Grid

    files = (
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    )
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ files[0].affine  # RAS to LPS
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    grid = Grid(
        files[0].shape,
        tuple(spacing.tolist()),
        tuple(matrix[:3, 3].tolist()),
        tuple((matrix[:3, :3] / spacing).ravel().tolist()),
    )
    t1, grey, white = (np.ascontiguousarray(file.get_fdata(dtype=np.float32).T) for file in files)
    return Template(grid, t1, grey, white)


def _missing(package: str) -> str:
    return f'The demo needs {package}; pip install "regmamba[demo]".'


def write_pair(pair: KnownPair, folder: Path) -> None:
    """Write `INPUTS`. The landmarks are in fixed space, with their true places in moving space beside (LPS mm)."""
    import numpy as np

    from ..io.images import write_image

    images = (pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels)
    for image, name in zip(images, INPUTS, strict=False):
        write_image(image, folder / name)
    places = np.array(list(LANDMARKS.values()), float) * (-1, -1, 1)
    rows = ["name,x,y,z,true_x,true_y,true_z"]
    for name, *numbers in zip(LANDMARKS, *pair.truth.inverse(places).T, *places.T, strict=True):
        rows.append(",".join([name, *(f"{v:.3f}" for v in numbers)]))
    (folder / "landmarks.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def measure(pair: KnownPair, registration: Registration) -> dict[str, Any]:
    """Error over grey and white matter (mm, fixed to moving) and Dice: as given, after the linear stage, at the end."""
    import numpy as np
    import SimpleITK as sitk

    from ..evaluation.known_pair import TISSUES, error_mm
    from ..evaluation.overlap import dice
    from ..spatial.grid import Grid
    from ..spatial.itk import affine_transform

    labels = sitk.GetArrayViewFromImage(pair.fixed_labels)
    grid = Grid.of(pair.fixed)
    stages = {
        "given": sitk.Transform(3, sitk.sitkIdentity),
        "linear": affine_transform(registration.affine),
        "registered": registration.transform,
    }
    findings: dict[str, Any] = {}
    for name, transform in stages.items():
        error = error_mm(pair.truth, transform, grid, labels > 0)
        moved = grid.resample(pair.moving_labels, transform, labels=True)
        overlap = dice(labels, sitk.GetArrayViewFromImage(moved), TISSUES.values())
        findings[name] = {
            "error_mm": {
                "mean": float(error.mean()),
                "95_percent": float(np.quantile(error, 0.95)),
                "largest": float(error.max()),
            },
            "dice": {tissue: overlap[label] for tissue, label in TISSUES.items()},
        }
    return findings


def print_tables(findings: dict[str, Any]) -> None:
    """The measurements and the times, for people."""
    from rich.console import Console
    from rich.table import Table

    stages = {"given": "as given", "linear": "linear stage", "registered": "registered"}
    table = Table("against the truth")
    for title in stages.values():
        table.add_column(title, justify="right")
    for key, title in {"mean": "error, mean", "95_percent": "error, 95 % below"}.items():
        table.add_row(f"{title}, mm", *(f"{findings[stage]['error_mm'][key]:.2f}" for stage in stages))
    for tissue in findings["given"]["dice"]:
        table.add_row(f"Dice, {tissue}", *(f"{findings[stage]['dice'][tissue]:.3f}" for stage in stages))
    report = findings["register"]
    table.add_row("folding, % of voxels", "", "", f"{report['folding_percent']:.4g}")
    Console(highlight=False).print(table)
    print("Seconds:", ", ".join(f"{stage} {value:.1f}" for stage, value in report["seconds"].items()))
