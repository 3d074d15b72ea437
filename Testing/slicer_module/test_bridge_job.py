"""A registration from nodes to nodes with a real worker, and what is left when it is cancelled or fails."""

from __future__ import annotations

from bridge_help import (
    FIXED,
    MOVING,
    add_volume,
    client,
    from_world,
    inner_points,
    scene,
    shifted,
    through,
)

# isort: split
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import slicer.util
from conftest import linear, made_head, made_labels
from RegMambaSlicer import apply
from RegMambaSlicer.bridge import export_labels, export_volume, transform_to_sitk
from RegMambaSlicer.logic import RegistrationError, RegistrationJob
from RegMambaSlicer.nodes import NEW, JobInputs, JobOutputs
from RegMambaSlicer.segments import Label, fill_segmentation
from RegMambaSlicer.worker_client import TEMPORARY_PREFIX, WorkerClient

from RegMambaLib.spatial.grid import Grid

__all__ = ["client", "scene"]
QUICK = {"weights": "none", "iterations": [15, 8, 2], "affine": "rigid", "threads": 1}
SLOW = {**QUICK, "iterations": [5000, 5000, 5000]}
# RAS mm: moves a volume's node without its picture of the world being another.
PARENT = linear((5.0, 10.0, -20.0), (30.0, -15.0, 8.0))
EVERYTHING = {"transform": NEW, "volume": NEW, "labels": NEW, "jacobian": NEW, "table": NEW, "chart": NEW}


@pytest.fixture
def job(client, scene):
    return RegistrationJob(client, scene)


def pair(scene, parent=None):
    fixed = add_volume(scene, made_head(FIXED), "Fixed")
    moving = add_volume(scene, made_head(MOVING, shifted), "Moving", parent=parent)
    return JobInputs(fixed, moving)


def with_segmentations(scene, inputs):
    """Fixed and moving segmentations, whose segments are in another order and have other label values."""
    for name, grid, to_head in (("fixed_labels", FIXED, None), ("moving_labels", MOVING, shifted)):
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        order = range(1, 8) if name == "fixed_labels" else range(7, 0, -1)
        values = sitk.GetArrayFromImage(made_labels(grid, to_head))
        shown = [Label(n if name == "fixed_labels" else 10 * n, f"Part {n}", (n / 10, 0.2, 0.4)) for n in order]
        fill_segmentation(node, grid.image(values if name == "fixed_labels" else 10 * values), shown)
        setattr(inputs, name, node)
        volume = inputs.fixed if name == "fixed_labels" else inputs.moving
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    return inputs


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
    """Temporary files of a test lie where no other program makes any."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def leftovers():
    return {path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith(TEMPORARY_PREFIX)}


@pytest.mark.parametrize("mode", ["grid", "composite"])
@pytest.mark.parametrize("parent", [None, PARENT], ids=["no parent", "moving under a parent"])
def test_a_registration_fills_every_node_and_they_agree(scene, job, mode, parent, tmp_path):
    before = leftovers()
    inputs = with_segmentations(scene, pair(scene, parent))
    said = []
    job.start(inputs, QUICK, JobOutputs(**EVERYTHING, mode=mode), lambda *progress: said.append(progress))
    report = job.wait(120)
    nodes = job.nodes
    assert set(nodes) == set(EVERYTHING) and not job.running and leftovers() == before
    assert report["after"]["dice"] > report["before"]["dice"] and len(report["after"]["per_label"]) == 7
    assert said and {stage for stage, *_ in said} >= {"linear", "refine"}

    transform = nodes["transform"]
    assert transform.GetNodeReference("spatialRegistrationFixed") is inputs.fixed
    assert transform.GetNodeReference("spatialRegistrationMoving") is inputs.moving
    assert transform.GetName() == "Moving to Fixed"
    kind = "vtkOrientedGridTransform" if mode == "grid" else "vtkGeneralTransform"
    assert transform.GetTransformFromParent().GetClassName() == kind

    # The node, the saved file and the resampled volume are one and the same transform.
    apply.save_transform(transform, tmp_path / "result.h5")
    saved = sitk.ReadTransform(str(tmp_path / "result.h5"))
    points = inner_points(FIXED, border=5)
    # Slicer interpolates a grid by cubics, ITK linearly: a rough displacement differs by some 0.05 voxel in between.
    difference = from_world(transform, points) - through(transform_to_sitk(transform), points)
    assert np.abs(difference).max() < 0.1 * FIXED.spacing[0]
    assert np.median(np.abs(difference)) < 0.02 * FIXED.spacing[0]
    assert np.abs(through(saved, points) - through(transform_to_sitk(transform), points)).max() < 1e-3
    fixed_grid = Grid.of(export_volume(inputs.fixed))
    moved = export_volume(nodes["volume"])
    own = fixed_grid.resample(export_volume(inputs.moving), saved)
    inside = sitk.GetArrayFromImage(own) > 100
    assert Grid.of(moved).same_as(fixed_grid)
    assert np.abs(sitk.GetArrayFromImage(moved) - sitk.GetArrayFromImage(own))[inside].mean() < 1.0

    carried = export_labels(nodes["labels"], inputs.fixed)
    assert {label.name: label.color for label in carried.labels}["Part 3"] == pytest.approx((0.3, 0.2, 0.4))
    numbering = {f"Part {n}": n for n in range(1, 8)}
    labels = sitk.GetArrayFromImage(export_labels(nodes["labels"], inputs.fixed, numbering).image)
    source = export_labels(inputs.moving_labels, inputs.moving, numbering).image
    pulled = sitk.GetArrayFromImage(fixed_grid.resample(source, saved, labels=True))
    assert (labels == pulled).mean() > 0.999
    assert nodes["table"].GetNumberOfRows() == 8 and nodes["chart"].GetNumberOfPlotSeriesNodes() == 2
    assert nodes["jacobian"].GetName() == "Moving Jacobian"


def test_the_worker_is_the_same_process_in_the_next_run_and_given_nodes_are_filled_again(scene, client, job):
    inputs = pair(scene)
    job.start(inputs, QUICK, JobOutputs(volume=NEW))
    job.wait(120)
    pid, first = client.pid, dict(job.nodes)
    count = scene.GetNumberOfNodes()
    mtime = first["volume"].GetImageData().GetMTime()
    job.start(inputs, {**QUICK, "iterations": [2]}, JobOutputs(transform=first["transform"], volume=first["volume"]))
    job.wait(120)
    assert client.pid == pid and scene.GetNumberOfNodes() == count
    assert job.nodes["volume"] is first["volume"] and first["volume"].GetImageData().GetMTime() > mtime


@pytest.mark.parametrize("parent", [None, PARENT], ids=["no parent", "moving under a parent"])
def test_moving_data_that_follow_the_old_result_are_registered_again_from_where_they_came(scene, job, parent):
    inputs = with_segmentations(scene, pair(scene, parent))
    job.start(inputs, QUICK, JobOutputs())
    job.wait(120)
    transform, points = job.nodes["transform"], inner_points(FIXED, 30, border=5)
    before = from_world(transform, points)
    apply.apply_transform(transform, [inputs.moving, inputs.moving_labels])
    job.start(inputs, QUICK, JobOutputs(transform=transform))
    again = job.wait(120)
    assert np.abs(from_world(transform, points) - before).max() < 1e-3
    assert again["after"]["dice"] > again["before"]["dice"]
    job.start(inputs, QUICK, JobOutputs())
    with pytest.raises(RegistrationError, match=r"Moving is under the non-linear transform .* harden"):
        job.wait(120)


def test_inputs_are_left_as_they_were(scene, job):
    inputs = with_segmentations(scene, pair(scene, PARENT))
    nodes = [inputs.fixed, inputs.moving, inputs.fixed_labels, inputs.moving_labels]
    before = [(node.GetName(), node.GetTransformNodeID(), node.GetStorageNodeID()) for node in nodes]
    arrays = [slicer.util.arrayFromVolume(node).copy() for node in nodes[:2]]
    job.start(inputs, QUICK, JobOutputs(**EVERYTHING))
    job.wait(120)
    assert [(node.GetName(), node.GetTransformNodeID(), node.GetStorageNodeID()) for node in nodes] == before
    for node, array in zip(nodes, arrays, strict=False):
        assert np.array_equal(slicer.util.arrayFromVolume(node), array)


def test_label_maps_guide_and_are_carried_over_as_a_label_map(scene, job):
    inputs = pair(scene)
    inputs.fixed_labels = add_volume(scene, made_labels(FIXED), "FL", labels=True)
    inputs.moving_labels = add_volume(scene, made_labels(MOVING, shifted), "ML", labels=True)
    inputs.fixed_mask = inputs.fixed_labels
    job.start(inputs, {**QUICK, "guide": True}, JobOutputs(transform=None, labels="Carried", table=NEW))
    report = job.wait(120)
    assert job.nodes["labels"].IsA("vtkMRMLLabelMapVolumeNode") and job.nodes["labels"].GetName() == "Carried"
    assert set(job.nodes) == {"labels", "table"} and report["after"]["dice"] > report["before"]["dice"]


def test_an_initial_transform_is_where_the_linear_stage_starts(scene, job):
    inputs = pair(scene)
    far = linear((0.0, 0.0, 60.0), (80.0, 40.0, -60.0))
    inputs.moving.ApplyTransformMatrix(matrix_of(far))
    initial = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Initial")
    initial.SetMatrixTransformToParent(matrix_of(np.linalg.inv(far)))
    inputs.initial_transform = initial
    job.start(inputs, {**QUICK, "affine": "none"}, JobOutputs(mode="composite"))
    report = job.wait(120)
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ far @ np.diag([-1, -1, 1, 1]), report["affine_lps"], atol=1e-6)
    inputs.moving.SetAndObserveTransformNodeID(initial.GetID())
    job.start(inputs, {**QUICK, "affine": "none"}, JobOutputs(mode="composite"))
    again = job.wait(120)
    assert np.allclose(again["affine_lps"], np.eye(4)) and "counted once" in again["notes"][0]


def matrix_of(array):
    from RegMambaSlicer.space import to_vtk

    return to_vtk(array)


def test_cancel_leaves_no_process_no_temporary_file_and_no_node(scene, client, job):
    inputs = pair(scene)
    before, count = leftovers(), scene.GetNumberOfNodes()
    stages = []
    job.start(inputs, SLOW, JobOutputs(**EVERYTHING), lambda stage, *_: stages.append(stage))
    until(job, lambda: "refine" in stages)
    process = client._process
    assert leftovers() != before
    job.cancel()
    assert process.poll() is not None and not job.running and client.pid is None
    assert leftovers() == before and scene.GetNumberOfNodes() == count
    with pytest.raises(RegistrationError, match="cancelled"):
        job.wait()


def test_a_worker_that_is_killed_gives_its_message_and_the_next_run_works(scene, client, job):
    inputs = pair(scene)
    before, count = leftovers(), scene.GetNumberOfNodes()
    stages, errors = [], []
    job.start(inputs, SLOW, JobOutputs(), lambda stage, *_: stages.append(stage), None, lambda *e: errors.append(e))
    until(job, lambda: "refine" in stages)
    client._process.kill()
    until(job, lambda: not job.running)
    assert "exit code" in errors[0][1] and "coarser working grid" in errors[0][1]
    assert leftovers() == before and scene.GetNumberOfNodes() == count
    job.start(inputs, QUICK, JobOutputs())
    assert job.wait(120)["seconds"]["total"] > 0


def colours(scene):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Colours")
    slicer.util.updateVolumeFromArray(node, np.random.default_rng(0).integers(0, 255, (8, 9, 10, 3)).astype(np.uint8))
    return node


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scene, i: setattr(i, "fixed", None), "Choose the fixed volume"),
        (lambda scene, i: setattr(i, "moving", i.fixed), "are the same volume"),
        (
            lambda scene, i: slicer.util.arrayFromVolume(i.moving).fill(3),
            "The moving volume has the value 3 everywhere",
        ),
        (lambda scene, i: slicer.util.arrayFromVolume(i.fixed).fill(np.nan), "The fixed volume has"),
        (
            lambda scene, i: setattr(i, "fixed", scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "E")),
            "The fixed volume E holds no image",
        ),
        (lambda scene, i: setattr(i, "moving", colours(scene)), "The moving volume Colours has 3 components per voxel"),
        (lambda scene, i: setattr(i, "outputs", JobOutputs(volume=i.moving)), "output volume Moving is also an input"),
        (
            lambda scene, i: setattr(i, "fixed_labels", scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")),
            "S has no segments",
        ),
    ],
)
def test_bad_inputs_give_a_message_and_no_nodes(scene, job, change, words):
    inputs = pair(scene)
    change(scene, inputs)
    count, before, errors = scene.GetNumberOfNodes(), leftovers(), []
    outputs = getattr(inputs, "outputs", JobOutputs(**EVERYTHING))
    job.start(inputs, QUICK, outputs, on_error=lambda kind, message: errors.append((kind, message)))
    with pytest.raises(RegistrationError, match=words):
        job.wait(60)
    assert errors[0][0] == "input" and words in errors[0][1]
    assert scene.GetNumberOfNodes() == count and leftovers() == before


def test_the_worker_gets_no_letters_beyond_ascii_in_the_paths_it_opens(scene, job, tmp_path, monkeypatch):
    folder = tmp_path / "J\u00fcrgen \u5c71"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    inputs = with_segmentations(scene, pair(scene))
    inputs.initial_transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Initial")
    sent, submit = [], job.client.submit
    monkeypatch.setattr(job.client, "submit", lambda request: sent.append(request) or submit(request))
    job.start(inputs, QUICK, JobOutputs(**EVERYTHING))
    job.wait(120)
    paths = [value for name, value in sent[0].items() if isinstance(value, str) and name != "temporary"]
    assert {"fixed.nrrd", "moving_labels.nrrd", "initial.tfm", "result"} <= set(paths)
    assert all(path.isascii() for path in paths) and not list(folder.iterdir())


def test_a_scene_that_was_closed_meanwhile_gets_no_nodes(scene, job):
    inputs = pair(scene)
    job.start(inputs, QUICK, JobOutputs(**EVERYTHING))
    scene.Clear(True)
    with pytest.raises(RegistrationError, match="scene was closed"):
        job.wait(120)
    assert scene.GetNumberOfNodesByClass("vtkMRMLTransformNode") == 0


def test_a_process_that_cannot_be_started_gives_a_message_and_no_temporary_files(scene):
    job = RegistrationJob(WorkerClient("no-such-python"), scene)
    job.start(pair(scene), QUICK)
    with pytest.raises(RegistrationError, match=r"cannot be started .*no-such-python"):
        job.wait()
    assert not leftovers() and not job.running


def test_a_full_or_missing_temporary_folder_gives_a_message(scene, job, monkeypatch):
    inputs = pair(scene)
    monkeypatch.setattr(sitk, "WriteImage", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("No space left")))
    job.start(inputs, QUICK)
    with pytest.raises(RegistrationError, match="make room on the disk"):
        job.wait()
    assert not leftovers()
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    job.start(inputs, QUICK)
    with pytest.raises(RegistrationError, match="make room on the disk"):
        job.wait()


def until(job, done, limit=120):
    end = time.monotonic() + limit
    while not done():
        job.poll()
        assert time.monotonic() < end, job.client.log
        time.sleep(0.02)
