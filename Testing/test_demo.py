"""The demo's truth is true, the demo runs and gets closer to it, and what the README tells works as written."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.cli import demo
from RegMambaLib.cli.main import main
from RegMambaLib.evaluation.known_pair import (
    PEAK,
    SPACING,
    Template,
    error_mm,
    head_corners,
    make_pair,
    make_truth,
    scan_grid,
    voxel_centers,
)
from RegMambaLib.spatial.fields import smooth
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import displacement_transform, mm_to_voxels
from RegMambaLib.spatial.jacobian import jacobian_determinant

README = Path(__file__).parents[1] / "README.md"


def small_head():
    """An egg of grey and white matter with folds and a hole, of a brain's size, in 4 mm voxels, RAS."""
    grid = Grid((46, 54, 46), (4.0, 4.0, 4.0), (90.0, 106.0, -72.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.8) ** 2)
    folds = smooth(np.random.default_rng(1).normal(size=grid.shape).astype(np.float32), 2.0) * 3
    brain, fluid = radius < 1, (np.abs(x) < 0.25) & (radius < 0.35)
    white = smooth((brain & ~fluid & (radius + folds < 0.7)).astype(np.float32), 0.5)
    grey = smooth((brain & ~fluid).astype(np.float32), 0.5) - white
    return Template(grid, 0.25 * brain * (1 - grey - white).clip(0) + 0.62 * grey + 0.85 * white, grey, white)


@pytest.fixture(scope="module")
def head():
    return small_head()


@pytest.fixture(scope="module")
def pair(head):
    return make_pair(head)


def true_transform(pair, grid):
    """The truth as an ITK transform, exact at the voxels of a grid."""
    points = np.stack([voxel_centers(grid, k) for k in range(grid.size[2])])
    return displacement_transform(mm_to_voxels(pair.truth(points) - points, grid), grid)


def test_the_copy_lies_on_an_oblique_left_handed_grid_of_thick_slices(pair):
    direction = np.reshape(pair.fixed.GetDirection(), (3, 3))
    assert pair.fixed.GetSpacing() == SPACING and SPACING[2] == 3.0
    assert np.linalg.det(direction) == pytest.approx(-1)
    assert np.abs(direction).max(axis=0).max() < 0.999


def test_the_copy_has_another_contrast(pair):
    grid = Grid.of(pair.fixed)
    moved = sitk.GetArrayFromImage(grid.resample(pair.moving, true_transform(pair, grid)))
    brain = sitk.GetArrayFromImage(pair.fixed_labels) > 0
    assert np.corrcoef(moved[brain], sitk.GetArrayFromImage(pair.fixed)[brain])[0, 1] < -0.8


def test_the_true_transform_brings_the_labels_to_each_other(pair):
    grid = Grid.of(pair.fixed)
    fixed = sitk.GetArrayFromImage(pair.fixed_labels)
    moved = sitk.GetArrayFromImage(grid.resample(pair.moving_labels, true_transform(pair, grid), labels=True))
    assert (fixed == moved)[(fixed > 0) | (moved > 0)].mean() > 0.85


def test_the_error_of_the_true_transform_is_zero(pair):
    grid = Grid.of(pair.fixed)
    where = sitk.GetArrayFromImage(pair.fixed_labels) > 0
    assert error_mm(pair.truth, true_transform(pair, grid), grid, where).max() < 1e-3
    assert error_mm(pair.truth, sitk.Transform(3, sitk.sitkIdentity), grid, where).mean() > 20


@pytest.mark.parametrize("seed", range(5))
def test_the_true_transform_bends_by_the_peak_without_folds_and_inverts(seed):
    extent = np.array([144.0, 180.0, 154.0])
    truth = make_truth(np.array([0.0, 18.0, 5.0]), extent, np.random.default_rng(seed))
    grid = scan_grid(truth, extent).with_spacing((4.0, 4.0, 4.0))
    points = np.stack([voxel_centers(grid, k) for k in range(grid.size[2])])
    bend = truth.displacement(points)
    assert PEAK * 0.9 < np.linalg.norm(bend, axis=-1).max() < PEAK * 2
    assert jacobian_determinant(mm_to_voxels(bend, grid), strict=True).min() > 0.1
    np.testing.assert_allclose(truth(truth.inverse(points)), points, atol=1e-6)


def test_the_template_comes_with_nilearn_in_world_space():
    pytest.importorskip("nilearn")
    template = demo.load_template()
    assert template.grid.spacing == (1.0, 1.0, 1.0)
    assert template.t1.shape == template.grey.shape == template.white.shape == template.grid.shape
    ends = head_corners(template)
    np.testing.assert_allclose(ends, [(-72, -73, -72), (72, 107, 82)], atol=3)  # MNI152, L P S: more behind than before


@pytest.mark.parametrize("package", ["nilearn", "matplotlib"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(package, head, tmp_path, monkeypatch, capsys):
    if package != "nilearn":
        monkeypatch.setattr(demo, "load_template", lambda: head)
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "-o", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"Error: The demo needs {package}") and 'pip install "regmamba[demo]"' in message
    assert message.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(head, tmp_path_factory):
    """A folder where the demo has run, on the small head."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demo, "load_template", lambda: head)
        assert main(["demo", "--quiet", "--weights", "none"]) == 0
    return folder


def test_the_demo_gets_closer_to_the_truth_and_leaves_everything_to_look_at(finished):
    output = finished / "demo_output"
    found = json.loads((output / "demo.json").read_text())
    assert found["registered"]["error_mm"]["mean"] < found["linear"]["error_mm"]["mean"] < 8
    assert found["registered"]["dice"]["white matter"] > found["given"]["dice"]["white matter"]
    assert found["register"]["details"]["contrast_carried"] in ("fixed", "moving")
    assert not found["register"]["settings"]["guide"]
    expected = {*demo.INPUTS, *demo.FINDINGS, "transform.h5", "inverse.h5", "moved.nii.gz", "moved_labels.nii.gz"}
    assert expected <= {file.name for file in output.iterdir()}
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_does_not_overwrite_unasked(finished, head, monkeypatch, capsys):
    monkeypatch.setattr(demo, "load_template", lambda: head)
    assert main(["demo", "-o", str(finished / "demo_output")]) == 2
    assert "exists already" in capsys.readouterr().err


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_command_of_the_readme_works_as_written(finished, monkeypatch, capsys):
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("regmamba ")]
    commands = [command for command in commands if command[0] != "demo"]
    assert {command[0] for command in commands} >= {
        "register", "apply", "invert", "compose", "jacobian", "evaluate", "convert", "info"
    }  # fmt: skip
    monkeypatch.chdir(finished / "demo_output")
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_the_python_of_the_readme_works_as_written(finished, monkeypatch, tmp_path):
    for name in ("fixed.nii.gz", "moving.nii.gz", "moving_labels.nii.gz"):
        (tmp_path / name).symlink_to(finished / "demo_output" / name)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, str(README), "exec"), {})
    assert (tmp_path / "from_python" / "transform.h5").exists()
