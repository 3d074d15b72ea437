"""apply, invert, compose, jacobian, convert and evaluate as a user calls them, against SimpleITK."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.io.images import read_image
from RegMambaLib.io.transforms import read_transform, write_transform
from RegMambaLib.spatial.grid import Grid

ROTATED = (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0)
GRIDS = {
    "plain": Grid((24, 22, 20)),
    "oblique": Grid((24, 22, 20), (1.5, 1.0, 2.0), (-30.0, 12.0, 40.0), ROTATED),
    "left-handed": Grid((20, 24, 18), (1.0, 1.2, 3.0), (5.0, -8.0, 60.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0)),
    "swapped": Grid((22, 20, 24), (2.0, 1.0, 1.5), (10.0, 20.0, -30.0), (0, 0, 1.0, 1.0, 0, 0, 0, 1.0, 0)),
}


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


def index_of(grid):
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).astype(float)


def wave(grid, height=1.0):
    """A smooth displacement of up to `height` voxels, zero at the border, as (k, j, i, 3) mm."""
    fade = np.prod(np.sin(np.pi * index_of(grid) / (np.array(grid.shape) - 1)), axis=-1) ** 2
    return (height * fade[..., None] * np.array([1.0, -0.7, 0.5])) @ grid.axes.T


def deformation(grid, height=1.0):
    return sitk.DisplacementFieldTransform(grid.image(wave(grid, height)))


def affine():
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((1.05, 0.1, 0.0, -0.08, 0.95, 0.02, 0.0, 0.05, 1.1))
    transform.SetTranslation((3.0, -2.0, 5.0))
    return transform


def save(transform, path):
    sitk.WriteTransform(transform, str(path))
    return str(path)


def texture(grid):
    values = np.sin(index_of(grid) / 2).sum(-1) * 40 - 500
    return grid.image(values.astype(np.float32))


def inner_points(grid, count=30):
    size = np.array(grid.size)
    return grid.world(np.random.default_rng(0).uniform(0.25 * size, 0.75 * size, (count, 3)))


def mapped(transform, points):
    return np.array([transform.TransformPoint(p) for p in points.tolist()])


def test_apply_pulls_an_image_as_simpleitk_does_with_its_lowest_value_outside(tmp_path, grid):
    chain = sitk.CompositeTransform([affine(), deformation(grid)])
    moving = texture(GRIDS["oblique"])
    sitk.WriteImage(moving, str(tmp_path / "moving.nrrd"))
    sitk.WriteImage(texture(grid), str(tmp_path / "fixed.nrrd"))
    arguments = ["-t", save(chain, tmp_path / "t.h5"), "-r", str(tmp_path / "fixed.nrrd"), "-q"]
    assert main(["apply", str(tmp_path / "moving.nrrd"), "-o", str(tmp_path / "moved.nii.gz"), *arguments]) == 0
    lowest = float(sitk.GetArrayViewFromImage(moving).min())
    expected = sitk.Resample(moving, texture(grid), chain, sitk.sitkLinear, lowest)
    moved = read_image(tmp_path / "moved.nii.gz", constant=True)
    assert Grid.of(moved).same_as(grid)
    np.testing.assert_allclose(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected), atol=1e-3)


def test_apply_keeps_the_values_and_the_type_of_labels(tmp_path, grid):
    labels = grid.image((index_of(grid).sum(-1) // 7 * 300).astype(np.uint16))
    sitk.WriteImage(labels, str(tmp_path / "labels.nii.gz"))
    path = save(deformation(grid), tmp_path / "t.h5")
    arguments = ["-t", path, "-r", str(tmp_path / "labels.nii.gz"), "--labels"]
    assert main(["apply", str(tmp_path / "labels.nii.gz"), "-o", str(tmp_path / "moved.nrrd"), *arguments]) == 0
    moved = sitk.ReadImage(str(tmp_path / "moved.nrrd"))
    expected = sitk.Resample(labels, labels, deformation(grid), sitk.sitkNearestNeighbor)
    assert moved.GetPixelID() == sitk.sitkUInt16
    # The grid of a NIfTI file is float32: a voxel on the edge of two may fall to either side.
    differ = sitk.GetArrayFromImage(moved) != sitk.GetArrayFromImage(expected)
    assert differ.mean() < 0.01


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
def test_apply_carries_points_forward_through_several_transforms(tmp_path, grid, suffix):
    points = inner_points(grid)
    if suffix == ".csv":
        text = "x,y,z\n" + "".join(f"{x},{y},{z}\n" for x, y, z in points)
    elif suffix == ".fcsv":
        text = "# CoordinateSystem = LPS\n" + "".join(f"1,{x},{y},{z},0,0,0,1\n" for x, y, z in points)
    else:
        controls = [{"position": list(p)} for p in points]
        text = json.dumps({"markups": [{"type": "Curve", "coordinateSystem": "LPS", "controlPoints": controls}]})
    source, target = tmp_path / f"points{suffix}", tmp_path / f"moved{suffix}"
    source.write_text(text)
    files = [save(deformation(grid), tmp_path / "a.h5"), save(affine(), tmp_path / "b.tfm")]
    assert main(["apply", str(source), "-o", str(target), "-t", files[0], "-t", files[1], "-q"]) == 0
    from RegMambaLib.io.points import read_points

    expected = mapped(affine(), mapped(deformation(grid), points))
    np.testing.assert_allclose(read_points(target).positions, expected, atol=1e-5)


def test_apply_takes_ras_points_when_told(tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    path = save(sitk.TranslationTransform(3, (10.0, 20.0, 30.0)), tmp_path / "t.tfm")
    arguments = ["-t", path, "--points-space", "ras", "-q"]
    assert main(["apply", str(tmp_path / "p.csv"), "-o", str(tmp_path / "q.csv"), *arguments]) == 0
    assert (tmp_path / "q.csv").read_text() == "x,y,z\n-9.000000,-18.000000,33.000000\n"


@pytest.mark.parametrize("order", ["affine last", "affine first"])
def test_invert_undoes_a_chain(tmp_path, grid, order, capsys):
    parts = [affine(), deformation(grid)]
    chain = sitk.CompositeTransform(parts if order == "affine last" else parts[::-1])
    points = inner_points(grid)
    if order == "affine first":
        points = mapped(affine().GetInverse(), points)
    path = save(chain, tmp_path / "t.h5")
    assert main(["invert", path, "-o", str(tmp_path / "inverse.h5")]) == 0
    assert "Largest error" in capsys.readouterr().out
    back = mapped(read_transform(tmp_path / "inverse.h5"), mapped(chain, points))
    np.testing.assert_allclose(back, points, atol=0.1)


def test_compose_joins_files_in_the_order_a_point_passes(tmp_path, grid):
    files = [save(deformation(grid), tmp_path / "a.h5"), save(affine(), tmp_path / "b.tfm")]
    assert main(["compose", *files, "-o", str(tmp_path / "ab.h5"), "-q"]) == 0
    expected = mapped(affine(), mapped(deformation(grid), inner_points(grid)))
    found = mapped(read_transform(tmp_path / "ab.h5"), inner_points(grid))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".tfm", ".nii.gz", ".nrrd", ".mha"])
def test_convert_there_and_back_is_the_same_deformation(tmp_path, grid, suffix):
    path = save(deformation(grid), tmp_path / "a.h5")
    assert main(["convert", path, str(tmp_path / f"b{suffix}"), "-q"]) == 0
    assert main(["convert", str(tmp_path / f"b{suffix}"), str(tmp_path / "c.h5"), "-q"]) == 0
    back = sitk.ReadTransform(str(tmp_path / "c.h5"))
    points = inner_points(grid)
    np.testing.assert_allclose(mapped(back, points), mapped(deformation(grid), points), atol=1e-4)


def test_jacobian_is_that_of_the_world_on_every_grid(tmp_path, grid, capsys):
    chain = sitk.CompositeTransform([affine(), deformation(grid)])
    path, image = save(chain, tmp_path / "t.h5"), tmp_path / "j.nii.gz"
    assert main(["jacobian", path, "-o", str(image), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folding_percent"] == 0 < report["sd_log_jacobian"]
    determinant = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
    middle = [n // 2 for n in grid.size]
    columns = []
    for axis in np.eye(3, dtype=int):
        ends = [mapped(chain, grid.world(np.array([middle + s * axis])))[0] for s in (1, -1)]
        columns.append((ends[0] - ends[1]) / 2)
    expected = np.linalg.det(np.array(columns).T) / np.linalg.det(grid.axes)
    assert determinant[middle[2], middle[1], middle[0]] == pytest.approx(expected, rel=1e-3)


def test_jacobian_finds_folds_within_a_mask(tmp_path, grid, capsys):
    path = save(deformation(grid, height=30.0), tmp_path / "t.h5")
    index = index_of(grid)
    inside = grid.image((np.abs(index / (np.array(grid.shape) - 1) - 0.5).max(-1) < 0.3).astype(np.uint8))
    sitk.WriteImage(inside, str(tmp_path / "mask.nii.gz"))
    shares = []
    for extra in ([], ["--mask", str(tmp_path / "mask.nii.gz")]):
        target = str(tmp_path / f"j{len(extra)}.nrrd")
        assert main(["jacobian", path, "-o", target, "--json", *extra]) == 0
        shares.append(json.loads(capsys.readouterr().out)["folding_percent"])
    assert 0 < shares[0] < shares[1]


def test_evaluate_compares_before_and_after(tmp_path, grid, capsys):
    labels = grid.image((np.abs(index_of(grid) / (np.array(grid.shape) - 1) - 0.5).max(-1) < 0.3).astype(np.uint8))
    moved = sitk.Resample(labels, labels, deformation(grid, 2.0), sitk.sitkNearestNeighbor)
    sitk.WriteImage(labels, str(tmp_path / "moving.nrrd"))
    sitk.WriteImage(moved, str(tmp_path / "fixed.nrrd"))
    files = [str(tmp_path / "fixed.nrrd"), str(tmp_path / "moving.nrrd")]
    path = save(deformation(grid, 2.0), tmp_path / "t.h5")
    assert main(["evaluate", *files, "-t", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"]["dice"] < 0.99 < report["after"]["dice"]
    assert report["before"]["hd95_mm"] > report["after"]["hd95_mm"]
    assert report["folding_percent"] == 0
    assert main(["evaluate", *files]) == 0
    assert "mean" in capsys.readouterr().out


def test_evaluate_says_when_no_label_is_shared(tmp_path, capsys):
    for name, value in (("a", 1), ("b", 2)):
        image = sitk.GetImageFromArray(np.full((5, 5, 5), value, np.uint8))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nrrd"))
    assert main(["evaluate", str(tmp_path / "a.nrrd"), str(tmp_path / "b.nrrd")]) == 2
    assert "share no label" in capsys.readouterr().err


def test_the_inverse_of_a_displacement_image_holds_where_it_leads(tmp_path, capsys):
    grid = Grid((30, 32, 28), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    field = np.zeros((*grid.shape, 3), np.float32) + np.float32([40.0, -25.0, 10.0])
    write_transform(
        sitk.DisplacementFieldTransform(sitk.Cast(grid.image(field), sitk.sitkVectorFloat64)), tmp_path / "d.nii.gz"
    )
    assert main(["invert", str(tmp_path / "d.nii.gz"), "-o", str(tmp_path / "i.nii.gz"), "--quiet"]) == 0
    inverse = read_transform(tmp_path / "i.nii.gz")
    for corner in grid.corners:
        there = corner * 0.999 + grid.center * 0.001 + (40.0, -25.0, 10.0)
        np.testing.assert_allclose(inverse.TransformPoint(there.tolist()), there - (40.0, -25.0, 10.0), atol=0.01)


def test_a_transform_that_flattens_space_has_no_inverse(tmp_path, capsys):
    flat = sitk.AffineTransform(3)
    flat.SetMatrix((1, 0, 0, 0, 1, 0, 0, 0, 1e-14))
    sitk.WriteTransform(flat, str(tmp_path / "flat.tfm"))
    assert main(["invert", str(tmp_path / "flat.tfm"), "-o", str(tmp_path / "i.tfm")]) == 2
    assert "no inverse" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["T.H5", "t.NII.GZ"])
def test_endings_in_capitals_are_refused_as_such(tmp_path, name):
    with pytest.raises(InputError, match="end its name in"):
        write_transform(sitk.TranslationTransform(3), tmp_path / name)
