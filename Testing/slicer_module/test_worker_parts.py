"""The parts of worker and client that need no process: messages, progress, what is written, how a tree is killed."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import bridge_help  # noqa: F401 - the path of the package
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import made_grid
from RegMambaSlicer import worker_client
from RegMambaSlicer.worker_client import WorkerClient, explain_exit, worker_environment

from RegMambaLib.worker import failures, outputs, progress

FIXED = made_grid((28, 32, 26), (6.5, 6.5, 6.5))


def test_the_environment_of_the_worker_is_utf8_and_finds_the_library():
    env = worker_environment({"PYTHONPATH": "/elsewhere", "PYTHONSTARTUP": "x.py", "KEPT": "1"})
    assert env["PYTHONUTF8"] == "1" and env["PYTHONIOENCODING"] == "utf-8" and env["KEPT"] == "1"
    first, *others = env["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "RegMambaLib" / "worker").is_dir() and others == ["/elsewhere"]
    assert "PYTHONSTARTUP" not in env


def test_the_application_itself_is_not_taken_for_an_interpreter(monkeypatch):
    monkeypatch.setattr(worker_client.shutil, "which", lambda name: None)
    assert worker_client.find_python() == sys.executable
    monkeypatch.setattr(sys, "executable", str(Path("Slicer", "bin", "SlicerApp-real.exe")))
    with pytest.raises(FileNotFoundError, match="PythonSlicer"):
        worker_client.find_python()
    monkeypatch.setattr(worker_client.shutil, "which", lambda name: str(Path("Slicer", "bin", f"{name}.exe")))
    assert Path(worker_client.find_python()).name == "PythonSlicer.exe"


def test_a_temporary_folder_goes_even_if_a_file_in_it_is_held_for_a_moment(monkeypatch):
    folder = worker_client.make_temporary()
    real, tries = shutil.rmtree, []

    def held_at_first(path, **options):
        tries.append(path)
        if len(tries) > 2:
            real(path, **options)

    monkeypatch.setattr(worker_client.shutil, "rmtree", held_at_first)
    worker_client.remove_temporary(folder)
    assert len(tries) == 3 and not folder.exists()
    worker_client.remove_temporary(Path.cwd())
    assert len(tries) == 3


def test_a_temporary_folder_lies_where_slicer_wants_it(tmp_path):
    folder = worker_client.make_temporary(str(tmp_path / "not yet there"))
    assert folder.parent == tmp_path / "not yet there"


class FakeProcess:
    """A process that lives until it is killed."""

    def __init__(self, command, **options):
        self.command, self.options, self.pid, self.returncode = command, options, 4711, None
        self.stdin, self.stdout, self.stderr = io.BytesIO(), io.BytesIO(), io.BytesIO()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        return self.returncode

    def kill(self):
        self.returncode = 1


def test_on_windows_the_whole_tree_is_killed(monkeypatch):
    made, commands = [], []
    monkeypatch.setattr(worker_client, "WINDOWS", True)
    monkeypatch.setattr(worker_client.subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(worker_client.subprocess, "CREATE_NO_WINDOW", 0x8000000, raising=False)
    monkeypatch.setattr(worker_client.subprocess, "run", lambda command, **_: commands.append(command))

    def popen(command, **options):
        made.append(FakeProcess(command, **options))
        return made[-1]

    own = WorkerClient("PythonSlicer", popen=popen)
    own.submit({"command": "info"})
    own.cancel()
    assert made[0].command == ["PythonSlicer", "-m", "RegMambaLib.worker"]
    assert made[0].options["creationflags"] == 0x8000200 and "start_new_session" not in made[0].options
    assert commands == [["taskkill", "/PID", "4711", "/T", "/F"]] and made[0].returncode == 1


@pytest.mark.parametrize(
    ("code", "lines", "kind", "words"),
    [
        (-9, [], "memory", "coarser working grid"),
        (0xC0000017, [], "memory", "coarser working grid"),
        (1, ["MemoryError"], "memory", "device cpu"),
        (1, ["ModuleNotFoundError: No module named 'numba'"], "missing", "numba"),
        (-11, ["Fatal Python error"], "crash", "Fatal Python error"),
        # What Slicer's launcher makes of a process that the system killed.
        (1, ["Refining", "error: [python-real] exit abnormally - Report the problem."], "memory", "memory ran out"),
    ],
)
def test_an_exit_is_explained(code, lines, kind, words):
    found, message = explain_exit(code, lines)
    assert found == kind and words in message


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), "memory", "coarser working grid"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), "memory", "device cpu"),
        (RuntimeError("Failed to allocate memory for image."), "memory", "coarser"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "missing", "scipy"),
        (ZeroDivisionError("division by zero"), "crash", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_becomes_a_kind_and_a_message(error, kind, words):
    found, message = failures.describe(error, {})
    assert found == kind and words in message


def test_the_estimate_counts_down_with_the_work():
    now = [0.0]
    said = []
    track = progress.Tracker(lambda **event: said.append(event), clock=lambda: now[0])
    for stage, seconds in progress.EXPECTED.items():
        for share in (0.0, 0.5, 1.0):
            track(stage, share)
            now[0] += seconds / 2 if share < 1 else 0.0
    whole = sum(progress.EXPECTED.values())
    late = [event for event in said if event["eta"] is not None]
    assert all(abs(event["eta"] - whole * (1 - event["total"])) < 0.3 for event in late) and late[-1]["eta"] == 0


def test_the_displacement_covers_both_volumes_but_not_the_whole_world():
    near, far = made_grid((30, 30, 30), (4.0,) * 3), made_grid((30, 30, 30), (4.0,) * 3, center=(5000.0, 0.0, 0.0))
    grid = made_grid((20, 20, 20), (5.0,) * 3, turn=(0.0, 10.0, 0.0))
    shift = np.eye(4)
    shift[:3, 3] = (30.0, 0.0, 0.0)
    covering = outputs.covering_grid(grid, near, near, shift)
    for points in (near.corners, near.corners - shift[:3, 3], grid.corners):
        index = covering.index(points)
        assert (index > 1).all() and (index < np.asarray(covering.size) - 2).all()
    assert np.abs(np.rint(covering.index(grid.corners)) - covering.index(grid.corners)).max() < 1e-6
    assert np.prod(outputs.covering_grid(grid, near, far, np.eye(4)).size) < 4 * np.prod(covering.size)


def test_the_moved_volume_has_the_pixel_type_it_came_with():
    image = FIXED.image(np.linspace(-300.4, 40000.6, int(np.prod(FIXED.size))).reshape(FIXED.shape).astype(np.float32))
    whole = outputs.as_pixel(image, sitk.sitkInt16)
    values = sitk.GetArrayFromImage(whole)
    assert whole.GetPixelID() == sitk.sitkInt16 and values.min() == -300 and values.max() == 32767
    assert outputs.as_pixel(image, sitk.sitkFloat64) is image
