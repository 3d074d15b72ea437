"""The command line: what `register` leaves behind; every bad input is one line, exit code 2 and no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from RegMambaLib.cli.main import main
from RegMambaLib.errors import Cancelled, InputError
from RegMambaLib.registration.result import Registration
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial.grid import Grid

FIXED = Grid((14, 12, 10), (1.0, 1.5, 2.0), (5.0, -3.0, 20.0))
MOVING = Grid((12, 14, 11), (1.2, 1.0, 2.0), (19.0, -2.0, 39.0), (-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))
STAGES = ("read ", "start ", "preprocess ", "linear ")
SHIFT = (1.0, -2.0, 0.5)


def texture(grid, seed=0):
    return grid.image((np.random.default_rng(seed).normal(size=grid.shape) * 50 - 400).astype(np.float32))


def label_map(grid):
    values = np.zeros(grid.shape, np.uint8)
    values[2:-2, 3:-3, 3:-3] = 1
    values[4:-4, 4:-4, 4:-4] = 2
    return grid.image(values)


@pytest.fixture
def files(tmp_path):
    """Two images and their label maps on disk, in a folder of their own."""
    folder = tmp_path / "in"
    folder.mkdir()
    images = {
        "fixed": texture(FIXED),
        "moving": texture(MOVING, 1),
        "fixed_labels": label_map(FIXED),
        "moving_labels": label_map(MOVING),
    }
    for name, image in images.items():
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    return SimpleNamespace(folder=folder, **{name: str(folder / f"{name}.nii.gz") for name in images})


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for the registration: a known shift. `calls` are the arguments it got; `error` is raised."""
    stand_in = SimpleNamespace(calls=[], error=None)

    def register(fixed, moving, *, settings, progress, **others):
        stand_in.calls.append({"settings": settings, **others})
        for stage in ("preprocess", "linear", "network"):
            progress(stage, 0.5)
        if stand_in.error:
            raise stand_in.error
        zero = np.zeros((3, *FIXED.shape), np.float32)
        matrix = np.eye(4)
        matrix[:3, 3] = SHIFT
        return Registration(
            Grid.of(fixed),
            zero,
            zero,
            matrix,
            Grid.of(fixed),
            Grid.of(moving),
            uncertainty=zero[0] + 1 if settings.uncertainty else None,
            seconds={"linear": 1.25, "network": 0.5},
            settings=settings,
            details={"metric": "lncc"},
        )

    monkeypatch.setitem(sys.modules, "RegMambaLib.registration.pipeline", SimpleNamespace(register=register))
    return stand_in


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_register_writes_transform_inverse_images_and_report(files, pipeline, tmp_path, capsys):
    labels = ["--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels]
    out = tmp_path / "out"
    assert main(["register", files.fixed, files.moving, "-o", str(out), *labels, "--uncertainty"]) == 0
    names = [
        "inverse.h5",
        "moved.nii.gz",
        "moved_labels.nii.gz",
        "registration.json",
        "report.json",
        "transform.h5",
        "uncertainty.nii.gz",
    ]
    assert everything(out) == names
    said = capsys.readouterr()
    assert "Dice" in said.out and "linear" in said.err

    shift = sitk.TranslationTransform(3, SHIFT)
    transform, inverse = (sitk.ReadTransform(str(out / f"{name}.h5")) for name in ("transform", "inverse"))
    np.testing.assert_allclose(transform.TransformPoint((1.0, 2.0, 3.0)), (2, 0, 3.5))
    np.testing.assert_allclose(inverse.TransformPoint((2.0, 0.0, 3.5)), (1, 2, 3))
    moving, fixed = sitk.ReadImage(files.moving), sitk.ReadImage(files.fixed)
    lowest = float(sitk.GetArrayViewFromImage(moving).min())
    expected = sitk.Resample(moving, fixed, shift, sitk.sitkLinear, lowest)
    moved = sitk.ReadImage(str(out / "moved.nii.gz"))
    assert Grid.of(moved).same_as(FIXED)
    np.testing.assert_allclose(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected), atol=1e-3)
    expected = sitk.Resample(sitk.ReadImage(files.moving_labels), fixed, shift, sitk.sitkNearestNeighbor)
    moved = sitk.ReadImage(str(out / "moved_labels.nii.gz"))
    assert moved.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected))


def test_the_output_of_register_is_loaded_as_a_registration(files, pipeline, tmp_path):
    assert main(["register", files.fixed, files.moving, "-o", str(tmp_path / "out"), "--quiet"]) == 0
    loaded = Registration.load(tmp_path / "out")
    np.testing.assert_allclose(loaded.affine[:3, 3], SHIFT)
    assert loaded.fixed_grid.same_as(FIXED) and loaded.moving_grid.same_as(MOVING)


def test_register_aligns_two_real_files(tmp_path, capsys):
    """The whole way, without the stand-in: blobs on two grids, one of them oblique and left-handed."""
    fixed_grid = Grid((40, 36, 32), (2.0, 2.0, 2.5), (10.0, -20.0, 5.0))
    moving_grid = Grid((44, 40, 36), (2.0, 2.5, 2.0), (90.0, 70.0, 100.0), (-0.8, 0.6, 0, -0.6, -0.8, 0, 0, 0, -1.0))
    for name, grid, center in (
        ("fixed", fixed_grid, fixed_grid.center),
        ("moving", moving_grid, moving_grid.center),
    ):
        index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
        offset = (grid.world(index) - center) @ np.diag((1.0, 1.2, 1.0 if name == "fixed" else 1.1))
        radius = np.linalg.norm(offset, axis=-1).T
        image = 100.0 * (radius < 28) + 60.0 * (np.linalg.norm(offset - (8, 5, 3), axis=-1).T < 10)
        sitk.WriteImage(sitk.SmoothingRecursiveGaussian(grid.image(image), 2.0), str(tmp_path / f"{name}.nii.gz"))
        labels = (radius < 28).astype(np.uint8) + (np.linalg.norm(offset - (8, 5, 3), axis=-1).T < 10)
        sitk.WriteImage(grid.image(labels.astype(np.uint8)), str(tmp_path / f"{name}_labels.nii.gz"))
    fixed, moving = str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")
    labels = ["--fixed-labels", str(tmp_path / "fixed_labels.nii.gz")]
    labels += ["--moving-labels", str(tmp_path / "moving_labels.nii.gz")]
    options = ["--weights", "none", "--set", "iterations=20,10", "--json", "--quiet"]
    assert main(["register", fixed, moving, "-o", str(tmp_path / "out"), *labels, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folding_percent"] == 0
    assert report["after"]["dice"] > max(0.85, report["before"]["dice"])

    # Labels that have nothing in common measure nothing, and the registration is as good.
    others = sitk.ReadImage(labels[3]) * 10
    sitk.WriteImage(others, labels[3])
    assert main(["register", fixed, moving, "-o", str(tmp_path / "again"), *labels, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "no label in common" in report["notes"][0] and "after" not in report
    assert (tmp_path / "again" / "transform.h5").exists()


def test_the_report_holds_times_memory_agreement_settings_and_versions(files, pipeline, tmp_path, capsys):
    labels = ["--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels]
    arguments = [
        "register",
        files.fixed,
        files.moving,
        "-o",
        str(tmp_path / "out"),
        *labels,
        "--json",
        "--quiet",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    report = json.loads(said.out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    stages = (
        "read",
        "start",
        "preprocess",
        "linear",
        "network",
        "refine",
        "repair",
        "write",
        "evaluate",
        "total",
    )
    assert tuple(report["seconds"]) == stages
    assert report["seconds"]["linear"] == 1.25 and report["seconds"]["total"] > 0
    assert report["peak_memory_mb"] > 10
    for time in ("before", "after"):
        assert set(report[time]["per_label"]) == {"1", "2"}
        assert 0 <= report[time]["dice"] <= 1
    assert report["after"]["hd95_mm"] > 0
    assert report["folding_percent"] == 0 and report["sd_log_jacobian"] == 0
    assert report["inputs"]["fixed"] == files.fixed
    assert "moved_labels.nii.gz" in report["outputs"]
    assert report["details"] == {"metric": "lncc"}
    assert report["settings"] == Settings().to_dict()
    assert report["versions"]["numpy"] == np.__version__


def test_what_the_user_gives_reaches_the_registration(files, pipeline, tmp_path):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(files.folder / "initial.tfm"))
    (files.folder / "preset.json").write_text('{"window": 7, "metric": "lncc", "seed": 3}')
    given = ["--settings", str(files.folder / "preset.json"), "--metric", "mind", "--guide", "--threads", "1"]
    given += ["--set", "iterations=20,10", "--set", "spacing=2", "--set", "repair=false", "--set", "seed=5"]
    given += ["--initial", str(files.folder / "initial.tfm"), "--fixed-mask", files.fixed_labels]
    arguments = ["register", files.fixed, files.moving, "-o", str(tmp_path / "out"), *given, "--quiet"]
    assert main(arguments) == 0
    call = pipeline.calls[0]
    assert call["settings"] == Settings(
        window=7, metric="mind", guide=True, threads=1, iterations=(20, 10), spacing=2, repair=False, seed=5
    )
    assert call["initial"].TransformPoint((0.0, 0.0, 0.0)) == SHIFT
    assert Grid.of(call["fixed_mask"]).same_as(FIXED)
    assert call["moving_labels"] is None


def test_an_existing_result_is_kept_unless_told(files, pipeline, tmp_path, capsys):
    arguments = ["register", files.fixed, files.moving, "-o", str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 0
    (tmp_path / "out" / "moved_labels.nii.gz").write_text("of an earlier run")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(pipeline.calls) == 1
    assert main([*arguments, "--overwrite"]) == 0
    names = ["inverse.h5", "moved.nii.gz", "notes.txt", "registration.json", "report.json", "transform.h5"]
    assert everything(tmp_path / "out") == names


def damage(path, how):
    image = sitk.ReadImage(path)
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if how == "missing":
        os.remove(path)
    elif how == "empty":
        open(path, "w").close()
    elif how == "truncated":
        with open(path, "rb+") as file:
            file.truncate(os.path.getsize(path) // 2)
    elif how == "text":
        with open(path, "w") as file:
            file.write("no image at all\n" * 50)
    elif how == "nan":
        array[2, 2, 2] = np.nan
    elif how == "constant":
        array[:] = 3
    elif how == "one slice":
        array = array[:1]
    elif how == "4-D":
        sitk.WriteImage(sitk.JoinSeries([image, image]), path)
    elif how == "colour":
        sitk.WriteImage(sitk.Compose(image, image, image), path)
    if how in ("nan", "constant", "one slice"):
        sitk.WriteImage(sitk.GetImageFromArray(array), path)


def fails_in_one_line(capfd, arguments, *words, code=2):
    assert main(arguments) == code
    said = capfd.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line and not line.startswith(STAGES)]
    assert len(lines) == 1, said.err
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("which", ["fixed", "moving"])
@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("missing", "does not exist"),
        ("empty", "empty"),
        ("truncated", "truncated"),
        ("text", "no image"),
        ("nan", "1 NaN"),
        ("constant", "everywhere"),
        ("one slice", "at least"),
        ("4-D", "4-D"),
        ("colour", "colours"),
    ],
)
def test_an_unusable_image_is_named(files, pipeline, tmp_path, capfd, which, how, word):
    path = getattr(files, which)
    damage(path, how)
    arguments = ["register", files.fixed, files.moving, "-o", str(tmp_path / "out")]
    fails_in_one_line(capfd, arguments, os.path.basename(path), word)
    assert pipeline.calls == []
    assert everything(tmp_path) == ["in", *(f"in/{name}" for name in sorted(os.listdir(files.folder)))]


@pytest.mark.parametrize("option", ["--fixed-labels", "--fixed-mask"])
def test_labels_and_masks_on_another_grid_are_refused(files, pipeline, tmp_path, capfd, option):
    arguments = [
        "register",
        files.fixed,
        files.moving,
        "-o",
        str(tmp_path / "out"),
        option,
        files.moving_labels,
    ]
    fails_in_one_line(capfd, arguments, "moving_labels.nii.gz", "another grid", "fixed.nii.gz")
    assert not (tmp_path / "out").exists()


def test_an_initial_transform_of_the_wrong_type_is_refused(files, pipeline, tmp_path, capfd):
    field = FIXED.image(np.zeros((*FIXED.shape, 3)))
    sitk.WriteTransform(sitk.DisplacementFieldTransform(field), str(files.folder / "field.h5"))
    arguments = ["register", files.fixed, files.moving, "-o", str(tmp_path / "out"), "--initial"]
    fails_in_one_line(capfd, [*arguments, str(files.folder / "field.h5")], "field.h5", "not linear")
    fails_in_one_line(capfd, [*arguments, files.moving], "moving.nii.gz", "no displacement")


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(files, pipeline, capfd):
    arguments = ["register", files.fixed, files.moving, "-o", f"{files.moving}/out"]
    fails_in_one_line(capfd, arguments, "Cannot write", "writable")
    assert pipeline.calls == []


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (MemoryError(), 2, "Not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), 2, "Not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "Not enough memory"),
        (RuntimeError("ITK ERROR: Failed to allocate memory for image."), 2, "Not enough memory"),
        (InputError("The images do not overlap;\n move one."), 2, "overlap; move one."),
        (ZeroDivisionError("division\nby zero"), 1, "REGMAMBA_DEBUG=1"),
        (KeyboardInterrupt(), 130, "no unfinished file"),
        (Cancelled("stop"), 130, "no unfinished file"),
    ],
)
def test_an_error_in_the_middle_is_one_line_and_leaves_nothing(
    files, pipeline, tmp_path, capfd, monkeypatch, error, code, word
):
    monkeypatch.delenv("REGMAMBA_DEBUG", raising=False)
    pipeline.error = error
    before = everything(tmp_path)
    fails_in_one_line(capfd, ["register", files.fixed, files.moving, "-o", str(tmp_path / "a" / "b")], word, code=code)
    assert everything(tmp_path) == before


def test_the_traceback_of_an_unexpected_error_is_shown_on_request(files, pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("REGMAMBA_DEBUG", "1")
    pipeline.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["register", files.fixed, files.moving, "-o", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "ssim"], ["metric", "lncc"]),
        (["--set", "wndow=5"], ["wndow", "window"]),
        (["--set", "window=4"], ["window", "odd"]),
        (["--set", "window=big"], ["window", "big"]),
        (["--set", "window=3,5"], ["window", "one value"]),
        (["--set", "window"], ["name=value"]),
        (["--settings", "none.json"], ["none.json"]),
        (["--threads", "many"], ["--threads", "integer"]),
        (["--nonsense"], ["nonsense"]),
    ],
)
def test_a_bad_setting_is_named(files, pipeline, tmp_path, capfd, options, words):
    arguments = ["register", files.fixed, files.moving, "-o", str(tmp_path / "out"), *options]
    fails_in_one_line(capfd, arguments, *words)
    assert not (tmp_path / "out").exists()


def test_commands_refuse_what_they_cannot_do_and_write_nothing(files, tmp_path, capfd):
    shift = str(files.folder / "shift.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), shift)
    spline = str(files.folder / "spline.tfm")
    sitk.WriteTransform(sitk.BSplineTransformInitializer(texture(FIXED), [2, 2, 2]), spline)
    (files.folder / "points.csv").write_text("x,y,z\n1,2,3\n")
    before = everything(tmp_path)
    out = str(tmp_path / "out")
    for arguments, words in [
        (["apply", files.moving, "-o", f"{out}.nii.gz", "-t", shift], ["--reference"]),
        (["apply", files.moving, "-o", f"{out}.jpg", "-t", shift, "-r", files.fixed], ["out.jpg"]),
        (
            ["apply", files.moving, "-o", f"{out}.nrrd", "-t", files.fixed, "-r", files.fixed],
            ["no displacement"],
        ),
        (["apply", str(files.folder / "points.csv"), "-o", f"{out}.fcsv", "-t", shift], [".csv"]),
        (["apply", files.moving, "-o", files.fixed, "-t", shift, "-r", files.fixed], ["--overwrite"]),
        (["invert", spline, "-o", f"{out}.h5"], ["BSplineTransform", "convert"]),
        (["invert", shift, "-o", f"{out}.png"], ["out.png"]),
        (["compose", shift, shift, "-o", f"{out}.nii.gz"], ["reference"]),
        (["jacobian", shift, "-o", f"{out}.nii.gz"], ["--reference"]),
        (["convert", shift, f"{out}.nii.gz"], ["reference"]),
        (["convert", f"{shift}.gone", f"{out}.h5"], ["does not exist"]),
        (["evaluate", files.fixed_labels, files.moving], ["whole numbers"]),
    ]:
        fails_in_one_line(capfd, arguments, *words)
    assert everything(tmp_path) == before


def test_info_is_json_and_text(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"torch", "numba", "mamba_ssm"} <= set(facts["scan_backends"])
    assert facts["devices"][0]["device"] == "cpu"
    assert facts["versions"]["SimpleITK"]
    assert main(["info"]) == 0
    assert "SimpleITK" in capsys.readouterr().out


def test_help_names_every_setting_with_its_default(capsys):
    assert main(["register", "--help"]) == 0
    text = capsys.readouterr().out
    for name in Settings().to_dict():
        assert name in text


@pytest.mark.parametrize("command", ["register", "apply", "invert", "compose", "jacobian", "evaluate", "convert"])
def test_a_command_without_arguments_shows_its_help(command, capsys):
    assert main([command]) in (0, 2)  # by the version of click
    said = capsys.readouterr()
    assert "Usage" in said.out and said.err == ""


def run(*arguments):
    command = [sys.executable, "-m", "RegMambaLib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_exits_with_the_code_and_one_line(tmp_path):
    done = run("register", "no.nii.gz", "nor.nii.gz", "-o", str(tmp_path / "out"), "--quiet")
    assert done.returncode == 2
    assert done.stderr == "Error: no.nii.gz does not exist; check the path.\n"
    assert done.stdout == "" and everything(tmp_path) == []


def test_help_loads_nothing_heavy():
    code = (
        "import sys; import RegMambaLib; from RegMambaLib.cli.main import main; main(['register', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'SimpleITK', 'scipy', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_warmup_leaves_the_kernels_on_disk(capsys):
    from RegMambaLib.registration.warmup import is_compiled

    assert main(["warmup"]) == 0
    assert "The kernels are ready" in capsys.readouterr().out
    assert is_compiled()
