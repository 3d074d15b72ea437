"""A real worker process: it registers a small made pair, keeps to its protocol, and dies with those who started it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bridge_help import FIXED, MOVING, client, made_pair, shifted

# isort: split
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import made_head, made_labels
from RegMambaSlicer.worker_client import WorkerClient, make_temporary, worker_environment

from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform

__all__ = ["client"]
QUICK = {"weights": "none", "iterations": [10, 5, 2], "affine": "rigid", "threads": 1}


@pytest.fixture
def temporary():
    folder = make_temporary()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def written(folder, **images):
    paths = {}
    for name, image in images.items():
        paths[name] = str(folder / f"{name}.nrrd")
        sitk.WriteImage(image, paths[name])
    return paths


def request(folder, settings=QUICK, **more):
    (fixed, moving), (fixed_labels, moving_labels) = made_pair()
    paths = written(folder, fixed=fixed, moving=moving, fixed_labels=fixed_labels, moving_labels=moving_labels)
    return {"command": "register", **paths, "settings": settings, "output": str(folder / "out"), **more}


def answered(client, number, limit=120):
    """All events of a request, the last being done or error."""
    events = []
    end = time.monotonic() + limit
    while time.monotonic() < end:
        events += [event for event in client.poll() if event["id"] == number]
        if events and events[-1]["event"] in ("done", "error"):
            return events
        time.sleep(0.02)
    raise AssertionError(f"no answer; the worker said: {client.log}")


def test_a_pair_is_registered_and_the_files_and_the_report_are_there(client, temporary):
    events = answered(client, client.submit(request(temporary)))
    assert events[-1]["event"] == "done", events[-1]
    report, files = events[-1]["report"], events[-1]["files"]
    assert report["after"]["dice"] > report["before"]["dice"] + 0.05
    assert report["after"]["per_label"]["1"]["hd95_mm"] > 0
    assert {"folding_percent", "seconds", "affine_lps", "details", "settings"} <= set(report)
    assert set(files) == {"displacement", "volume", "labels", "jacobian"}
    assert Grid.of(sitk.ReadImage(files["volume"])).same_as(FIXED)
    field = sitk.ReadImage(files["displacement"])
    assert Grid.of(field).index(FIXED.corners).min() > 1
    moved = FIXED.resample(
        made_labels(MOVING, shifted),
        sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)),
        labels=True,
    )
    labels = sitk.GetArrayFromImage(sitk.ReadImage(files["labels"]))
    assert (sitk.GetArrayFromImage(moved) == labels).mean() > 0.999


def test_progress_never_falls_and_names_the_stages(client, temporary):
    events = answered(client, client.submit(request(temporary)))[:-1]
    assert {event["event"] for event in events} == {"progress"}
    totals = [event["total"] for event in events]
    assert totals == sorted(totals) and totals[-1] == 1.0
    assert {"linear", "refine", "write"} <= {event["stage"] for event in events}
    assert any(event["eta"] is not None for event in events)


def test_the_composite_mode_writes_the_displacement_without_the_linear_part(client, temporary):
    done = answered(client, client.submit(request(temporary, mode="composite")))[-1]
    field = sitk.DisplacementFieldTransform(
        sitk.Cast(sitk.ReadImage(done["files"]["displacement"]), sitk.sitkVectorFloat64)
    )
    affine = affine_transform(np.asarray(done["report"]["affine_lps"]))
    moved = FIXED.resample(made_labels(MOVING, shifted), sitk.CompositeTransform([affine, field]), labels=True)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(done["files"]["labels"]))
    assert (sitk.GetArrayFromImage(moved) == labels).mean() > 0.999
    assert np.abs(np.asarray(done["report"]["affine_lps"])[:3, 3]).max() > 1


def test_bad_inputs_give_the_librarys_message_without_temporary_paths(client, temporary):
    flat = FIXED.image(np.zeros(FIXED.shape, np.float32))
    paths = written(temporary, fixed=flat, moving=made_head(MOVING))
    ask = {"command": "register", **paths, "settings": QUICK, "output": str(temporary / "out")}
    error = answered(client, client.submit(ask))[-1]
    assert error["kind"] == "input"
    assert error["message"].startswith("The fixed volume has the value 0 everywhere")
    assert str(temporary) not in error["message"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"affin": "rigid"}, "Unknown setting affin"),
        ({"window": 4}, "must be odd"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"weights": "nothing-like-it"}, "There are no weights"),
    ],
)
def test_bad_settings_give_the_librarys_message(client, temporary, settings, words):
    error = answered(client, client.submit(request(temporary, {**QUICK, **settings})))[-1]
    assert (error["event"], error["kind"]) == ("error", "input")
    assert words in error["message"]


def test_info_tells_versions_devices_and_weights(client):
    facts = answered(client, client.submit({"command": "info"}))[-1]["report"]
    assert facts["versions"]["regmamba"] and facts["devices"][0]["device"] == "cpu"
    assert "brain-t1" in facts["weights"] and "mamba_ssm" in facts["scan_backends"]


def test_warmup_loads_the_network_and_the_same_process_answers_on(client):
    pid = client.pid
    done = answered(client, client.submit({"command": "warmup", "settings": {"weights": "brain-t1"}}))[-1]
    assert done["event"] == "done" and client.pid == pid


def test_an_unknown_command_is_an_error_and_not_the_end(client):
    error = answered(client, client.submit({"command": "dance"}))[-1]
    assert error["kind"] == "crash" and "dance" in error["message"]
    assert answered(client, client.submit({"command": "info"}))[-1]["event"] == "done"


def start_alone(**options):
    return subprocess.Popen(
        [sys.executable, "-m", "RegMambaLib.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_environment(),
        **options,
    )


def test_the_end_of_stdin_ends_a_running_worker_and_removes_its_temporary_folder(temporary):
    slow = {**QUICK, "iterations": [5000, 5000, 5000]}
    process = start_alone()
    ask = {**request(temporary, slow), "id": 1, "temporary": str(temporary)}
    process.stdin.write(json.dumps(ask).encode() + b"\n")
    process.stdin.flush()
    for line in process.stdout:
        if json.loads(line).get("stage") in ("linear", "refine"):
            break
    process.stdin.close()
    assert process.wait(10) == 0
    assert not temporary.exists()


def test_quit_ends_the_worker_and_a_broken_line_does_not():
    process = start_alone()
    said, _ = process.communicate(b'not json\n[1]\n{"command": "quit"}\n', timeout=60)
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events.count("error") == 2 and process.returncode == 0


def test_prints_and_c_libraries_cannot_reach_the_answers(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import os, sys\nfrom RegMambaLib.worker import serve, tasks\n"
        "def info(request, emit):\n    print('noise'); os.write(1, b'noise\\n'); os.system('echo noise')\n"
        "    return {'nan': float('nan')}, {}\ntasks.info = info\nserve.main()\n",
        encoding="utf-8",
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "noisy.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_environment(),
    )
    process.stdin.write(b'{"id": 7, "command": "info"}\n')
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "ready"
    assert json.loads(process.stdout.readline()) == {"id": 7, "event": "done", "report": {"nan": None}, "files": {}}
    rest, noise = process.communicate(timeout=30)
    assert rest == b"" and noise.count(b"noise") == 3


def test_cancel_leaves_no_process_and_no_temporary_file(temporary):
    own = WorkerClient(sys.executable)
    own.submit(request(temporary, {**QUICK, "iterations": [5000, 5000]}, temporary=str(temporary)))
    wait_for_stage(own, "refine")
    process = own._process
    own.cancel()
    assert process.poll() is not None and own.pid is None and not own.busy
    assert not temporary.exists() and own.poll() == []
    again = own.submit({"command": "info"})
    assert answered(own, again)[-1]["event"] == "done"
    own.shutdown()


def test_a_client_that_is_no_longer_used_takes_its_process_along(temporary):
    own = WorkerClient(sys.executable)
    own.submit({"command": "info", "temporary": str(temporary)})
    process = own._process
    del own
    gc.collect()
    assert process.poll() is not None
    assert not temporary.exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups; Windows has taskkill /T")
def test_cancel_ends_what_a_launcher_started_too(tmp_path, temporary):
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    own = WorkerClient(str(launcher))
    number = own.submit({"command": "info"})
    ready = []
    while not ready:
        ready = [event for event in own.poll() if event["event"] == "ready"]
        time.sleep(0.02)
    assert ready[0]["pid"] != own.pid
    assert number and own.busy
    own.cancel()
    assert is_gone(ready[0]["pid"])


def test_a_killed_worker_answers_with_its_exit_code_and_advice(temporary):
    own = WorkerClient(sys.executable)
    slow = {**QUICK, "iterations": [5000, 5000]}
    number = own.submit(request(temporary, slow, temporary=str(temporary)))
    wait_for_stage(own, "refine")
    own._process.kill()
    error = answered(own, number)[-1]
    assert error["event"] == "error" and error["kind"] in ("memory", "crash")
    assert "exit code" in error["message"] and "coarser working grid" in error["message"]
    assert not temporary.exists() and not own.busy and own.pid is None


def test_a_worker_that_cannot_start_tells_the_missing_package():
    def popen(command, **options):
        return subprocess.Popen([command[0], "-c", "import no_such_package"], **options)

    own = WorkerClient(sys.executable, popen=popen)
    error = answered(own, own.submit({"command": "info"}))[-1]
    assert error["kind"] == "missing" and "no_such_package" in error["message"]


def wait_for_stage(client, stage, limit=120):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for event in client.poll():
            assert event["event"] != "error", event
            if event.get("stage") == stage:
                return
        time.sleep(0.02)
    raise AssertionError(f"never reached {stage}: {client.log}")


def is_gone(pid, limit=5):
    """Whether a process is gone (or a zombie of somebody else)."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
