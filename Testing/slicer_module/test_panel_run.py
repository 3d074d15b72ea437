"""The click path with a real worker process: register, look, numbers, afterwards, cancel, mishaps."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("bridge_help")

import slicer
from conftest import DATA, made_grid, made_head
from PySide6.QtCore import Qt
from slicer_bench.hands import (
    choose,
    choose_pair,
    click,
    make_pair,
    names,
    node,
    refine_for_long,
    register,
    set_quick,
)

from RegMambaLib.spatial.grid import Grid

pytest_plugins = ["slicer_bench.fixtures"]

BRAINS = DATA / "mindboggle_2mm"


def temporary_folders():
    return set(Path(tempfile.gettempdir()).glob("RegMamba-*"))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.fixture
def registered(pair, bench):
    """The made pair after Register, with every output."""
    pair.panel.ui.want_jacobian_check.setChecked(True)
    assert register(pair, bench).startswith("Done.")
    return pair


def test_register_fills_transform_volume_labels_table_and_views(registered, bench):
    panel = registered.panel
    p = panel.parameters
    assert p.transform.GetTransformFromParent().IsA("vtkOrientedGridTransform")
    assert p.volume.GetImageData().GetDimensions() == p.fixed.GetImageData().GetDimensions()
    assert p.labels.GetClassName() == "vtkMRMLLabelMapVolumeNode"
    assert p.jacobian.GetImageData() is not None
    assert p.transform.GetNodeReference("spatialRegistrationFixed") is p.fixed
    assert p.transform.GetNodeReference("spatialRegistrationMoving") is p.moving
    assert panel.report["after"]["dice"] > 0.9 > panel.report["before"]["dice"]
    assert "Dice" in panel.ui.numbers_label.text()
    for composite in bench.composites():
        assert composite.GetBackgroundVolumeID() == p.fixed.GetID()
        assert composite.GetForegroundVolumeID() == p.volume.GetID()
        assert composite.GetForegroundOpacity() == 0.5
    assert panel.ui.register_button.text() == "Register"
    assert panel.ui.progress_bar.isHidden()
    assert panel.ui.transform_selector.currentNode() is p.transform


def test_inputs_keep_their_transform_and_file_names(pair, bench):
    moving = node("moving")
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName("patients_own.nrrd")
    moving.SetAndObserveStorageNodeID(storage.GetID())
    assert register(pair, bench).startswith("Done.")
    assert moving.GetTransformNodeID() is None
    assert moving.GetStorageNode().GetFileName() == "patients_own.nrrd"


def test_registering_again_fills_the_same_nodes(registered, bench):
    before = slicer.mrmlScene.GetNumberOfNodes()
    kept = registered.panel.parameters.transform.GetID(), registered.panel.parameters.volume.GetID()
    assert register(registered, bench).startswith("Done.")
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    p = registered.panel.parameters
    assert (p.transform.GetID(), p.volume.GetID()) == kept


def test_a_table_and_chart_that_were_deleted_are_made_anew(registered, bench):
    p, ui = registered.panel.parameters, registered.panel.ui
    for name in ("table", "chart"):
        slicer.mrmlScene.RemoveNode(getattr(p, name))
    registered.panel.refresh()
    assert not ui.table_button.isEnabled() and not ui.chart_button.isEnabled()
    assert register(registered, bench).startswith("Done.")
    click(ui.table_button)
    click(ui.chart_button)


def test_the_results_of_one_pair_stay_when_another_is_registered(registered, bench):
    p, ui = registered.panel.parameters, registered.panel.ui
    first = {name: getattr(p, name) for name in ("transform", "volume", "labels", "jacobian", "table", "chart")}
    before = slicer.util.arrayFromVolume(first["volume"]).copy()
    click(ui.swap_button)
    assert p.transform is None and p.volume is None and not ui.table_button.isEnabled()
    assert register(registered, bench).startswith("Done.")
    assert not {node.GetID() for node in first.values()} & {getattr(p, name).GetID() for name in first}
    assert np.array_equal(slicer.util.arrayFromVolume(first["volume"]), before)
    assert {"moving to fixed", "fixed to moving"} <= names("vtkMRMLTransformNode")


def test_a_defect_of_ours_is_logged_and_leaves_neither_nodes_nor_a_running_panel(pair, bench, monkeypatch, caplog):
    from RegMambaSlicer import logic

    def fail(*_, **__):
        raise KeyError("per_label")

    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)  # Slicer's scenes have one
    monkeypatch.setattr(logic, "fill_table", fail)
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    said = register(pair, bench)
    assert "internal error" in said and "per_label" in said
    assert "fill_table" in caplog.text or "KeyError" in caplog.text
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert pair.panel.ui.register_button.text() == "Register"


def test_progress_names_stages_and_only_grows(pair, bench):
    words, amounts = [], []
    ui = pair.panel.ui
    click(ui.register_button)
    assert ui.register_button.text() == "Cancel"
    assert not ui.progress_bar.isHidden()

    def over():
        words.append(ui.status_label.text())
        amounts.append(ui.progress_bar.value())
        return not pair.panel.busy

    assert bench.wait(over)
    assert any("Linear alignment" in w or "Refinement" in w for w in words)
    assert amounts == sorted(amounts)


def test_the_worker_stays_for_the_next_run_and_ends_with_the_scene(opened, bench):
    make_pair()
    choose_pair(opened)
    set_quick(opened)
    registered = opened
    assert register(opened, bench).startswith("Done.")
    pid = registered.logic.job.client.pid
    assert register(registered, bench).startswith("Done.")
    assert registered.logic.job.client.pid == pid
    assert is_alive(pid)
    slicer.mrmlScene.Clear(0)
    assert bench.wait(lambda: not is_alive(pid), 5)
    assert not registered.panel.ui.register_button.isEnabled()
    assert registered.panel.ui.numbers_label.text() == "No result yet."
    make_pair()
    choose(registered.panel.ui.fixed_selector, "fixed")
    choose(registered.panel.ui.moving_selector, "moving")
    set_quick(registered)
    assert register(registered, bench).startswith("Done.")


def test_cancel_answers_at_once_and_leaves_nothing(pair, bench):
    folders, nodes = temporary_folders(), slicer.mrmlScene.GetNumberOfNodes()
    refine_for_long(pair, bench, pair.panel.ui.register_button)
    pid = pair.logic.job.client.pid
    click(pair.panel.ui.register_button)
    assert not pair.panel.busy
    assert "Cancelled" in pair.panel.ui.status_label.text()
    assert pair.panel.ui.register_button.text() == "Register"
    assert bench.wait(lambda: not is_alive(pid), 5)
    assert temporary_folders() == folders
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    set_quick(pair)
    assert register(pair, bench).startswith("Done.")


def test_a_worker_that_dies_gives_advice_and_leaves_the_scene_alone(pair, bench):
    folders, nodes = temporary_folders(), slicer.mrmlScene.GetNumberOfNodes()
    refine_for_long(pair, bench, pair.panel.ui.register_button)
    os.kill(pair.logic.job.client.pid, signal.SIGKILL)
    assert bench.wait(lambda: not pair.panel.busy, 20)
    said = pair.panel.ui.status_label.text()
    assert "cpu" in said
    assert "c0392b" in pair.panel.ui.status_label.styleSheet()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert temporary_folders() == folders
    set_quick(pair)
    assert register(pair, bench).startswith("Done.")


def test_what_the_library_refuses_is_said_in_its_words(pair, bench):
    set_quick(pair, device="cuda:7")
    said = register(pair, bench)
    assert "cuda:7" in said
    set_quick(pair, weights="nowhere.safetensors")
    said = register(pair, bench)
    assert "nowhere.safetensors" in said
    assert names("vtkMRMLTransformNode") == set()


def test_fade_flicker_checkerboard_and_volume_change_set_the_views(registered, bench):
    ui, p = registered.panel.ui, registered.panel.parameters
    first = bench.composites()[0]
    ui.fade_slider.setValue(0.8)
    assert first.GetForegroundOpacity() == pytest.approx(0.8)
    click(ui.flicker_button)
    seen = set()
    bench.wait(lambda: seen.add(first.GetForegroundOpacity()) or {0.0, 1.0} <= seen, 10)
    assert {0.0, 1.0} <= seen
    click(ui.checkerboard_button)
    assert not ui.flicker_button.isChecked()
    board = slicer.mrmlScene.GetNodeByID(first.GetBackgroundVolumeID())
    assert board.GetImageData().GetDimensions() == p.fixed.GetImageData().GetDimensions()
    assert first.GetForegroundVolumeID() is None
    click(ui.jacobian_button)
    assert not ui.checkerboard_button.isChecked()
    assert slicer.mrmlScene.GetNodeByID(board.GetID() or "") is not board  # it could be taken for an input
    assert first.GetForegroundVolumeID() == p.jacobian.GetID()
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(p.jacobian)
    assert legend.GetVisibility()
    click(ui.jacobian_button)
    assert not legend.GetVisibility()
    click(ui.compare_button)
    assert first.GetForegroundVolumeID() == p.volume.GetID()


def test_the_deformation_is_drawn_as_grid_glyphs_or_contours(registered):
    ui, transform = registered.panel.ui, registered.panel.parameters.transform
    kind = slicer.vtkMRMLTransformDisplayNode
    for entry, mode in (
        ("grid", kind.VIS_MODE_GRID),
        ("glyphs", kind.VIS_MODE_GLYPH),
        ("contours", kind.VIS_MODE_CONTOUR),
    ):
        choose(ui.transform_mode, entry)
        display = transform.GetDisplayNode()
        assert display.GetVisualizationMode() == mode
        assert (display.GetVisibility(), display.GetVisibility2D(), display.GetVisibility3D()) == (1, True, False)
    click(ui.in_3d_check)
    assert transform.GetDisplayNode().GetVisibility3D()
    choose(ui.transform_mode, "off")
    assert not transform.GetDisplayNode().GetVisibility()


def test_table_and_chart_are_shown_in_the_layout(registered, bench):
    ui, p = registered.panel.ui, registered.panel.parameters
    click(ui.table_button)
    assert bench.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView
    assert bench.logic.GetSelectionNode().GetActiveTableID() == p.table.GetID()
    assert p.table.GetTable().GetNumberOfRows() >= 2
    click(ui.chart_button)
    assert bench.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView
    assert bench.logic.GetSelectionNode().GetActivePlotChartID() == p.chart.GetID()


def test_afterwards_nodes_follow_are_hardened_inverted_and_saved(registered, tmp_path):
    import qt

    ui, transform = registered.panel.ui, registered.panel.parameters.transform
    assert not ui.apply_button.isEnabled()
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    points.AddControlPoint(6.0, -5.0, 4.0)
    ui.after_nodes.setCheckState(points, Qt.CheckState.Checked)
    click(ui.apply_button)
    assert points.GetTransformNodeID() == transform.GetID()
    click(ui.harden_button)
    assert points.GetTransformNodeID() is None
    assert max(abs(v) for v in points.GetNthControlPointPosition(0)) < 2
    click(ui.invert_button)
    assert f"{transform.GetName()} inverse" in names("vtkMRMLTransformNode")
    for file in ("result.h5", "result.nii.gz"):
        qt.QFileDialog.answer = str(tmp_path / file)
        click(ui.save_button)
        assert (tmp_path / file).stat().st_size > 1000
    qt.QFileDialog.answer = str(tmp_path / "result.docx")
    click(ui.save_button)
    assert ".h5" in ui.status_label.text()


def test_a_map_of_the_uncertainty_comes_in_the_fixed_space_when_it_is_ticked(pair, bench):
    from RegMambaSlicer.bridge import export_volume
    from RegMambaSlicer.outputs import set_volume

    grid = made_grid((40, 44, 36), (4.0, 4.0, 4.0))
    set_volume(node("fixed"), made_head(grid))
    set_volume(node("moving"), made_head(grid, bent))
    set_quick(pair)
    assert register(pair, bench) == "Done."
    assert pair.panel.parameters.uncertainty is None
    pair.panel.ui.want_uncertainty_check.setChecked(True)
    assert register(pair, bench) == "Done."
    uncertainty = pair.panel.parameters.uncertainty
    assert uncertainty.GetName() == "moving uncertainty" and uncertainty.GetDisplayNode() is not None
    values = slicer.util.arrayFromVolume(uncertainty)
    assert values.max() > 0.01 and values.min() >= 0
    index = Grid.of(export_volume(uncertainty)).index(grid.corners)
    assert index.min() > -1 and (index < np.asarray(values.shape[::-1])).all()


def bent(points):
    """Points (n, 3) mm moved by up to 5 mm along each axis."""
    return points + 5 * np.sin(np.roll(points, 1, axis=1) / 25)


def test_an_initial_transform_and_masks_chosen_in_the_panel_are_used(pair, bench):
    from RegMambaSlicer.panel_selftest import SHIFT

    start = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "start")
    matrix = np.eye(4)
    matrix[:3, 3] = np.negative(SHIFT)  # takes the moving head to the fixed one
    slicer.util.updateTransformMatrixFromArray(start, matrix)
    set_quick(pair, affine="none", iterations=[])
    assert register(pair, bench) == "Done."
    assert pair.panel.report["after"]["dice"] < 0.8
    choose(pair.panel.ui.initial_transform_selector, "start")
    for side in ("fixed", "moving"):
        choose(getattr(pair.panel.ui, f"{side}_mask_selector"), f"{side} labels")
    assert register(pair, bench) == "Done."
    assert pair.panel.report["after"]["dice"] > 0.9  # labels of 4 mm, half a voxel apart
    slicer.util.arrayFromVolume(node("fixed labels")).fill(0)
    assert "fixed" in register(pair, bench) and "zeros" in pair.panel.ui.status_label.text()


def test_segmentations_are_carried_over_as_segmentations(pair, bench):
    for side in ("fixed", "moving"):
        made = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{side} segments")
        done = slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(node(f"{side} labels"), made)
        assert done
        choose(getattr(pair.panel.ui, f"{side}_labels_selector"), f"{side} segments")
    assert register(pair, bench).startswith("Done.")
    assert pair.panel.parameters.labels.GetClassName() == "vtkMRMLSegmentationNode"
    assert pair.panel.report["after"]["dice"] > 0.9


def test_the_modules_own_test_runs_on_the_bench(bench):
    import RegMamba

    test = RegMamba.RegMambaTest()
    test.runTest()
    assert test.messages[-1] == "RegMamba: all passed."


def test_the_logic_registers_without_a_panel(bench):
    from slicer_bench.hands import QUICK

    import RegMamba

    make_pair()
    logic = RegMamba.RegMambaLogic()
    done = []
    logic.process(node("fixed"), node("moving"), settings=QUICK, onDone=done.append, waitForCompletion=False)
    assert bench.wait(lambda: not logic.job.poll())
    assert done[0]["folding_percent"] == 0
    with pytest.raises(Exception, match="same"):
        logic.process(node("fixed"), node("fixed"), settings=QUICK)
    logic.close()


@pytest.mark.skipif(not BRAINS.is_dir(), reason="the real brains are not here")
def test_real_brains_registered_by_clicks_overlap_better(opened, bench):
    for side, subject in (("fixed", "sub01"), ("moving", "sub02")):
        load(BRAINS / f"{subject}_t1.nii.gz", "vtkMRMLScalarVolumeNode", side)
        load(BRAINS / f"{subject}_dkt31cma.nii.gz", "vtkMRMLLabelMapVolumeNode", f"{side} labels")
        choose(getattr(opened.panel.ui, f"{side}_selector"), side)
        choose(getattr(opened.panel.ui, f"{side}_labels_selector"), f"{side} labels")
    assert register(opened, bench, 900).startswith("Done.")
    report = opened.panel.report
    print(report["before"]["dice"], report["after"]["dice"], report["seconds"])
    assert report["after"]["dice"] >= 0.58
    assert report["folding_percent"] == 0
    click(opened.panel.ui.table_button)
    assert opened.panel.parameters.table.GetTable().GetNumberOfRows() > 50


def load(path, kind, name):
    """A file of real data as a node, in Slicer's RAS."""
    import SimpleITK as sitk
    from RegMambaSlicer.outputs import set_volume

    made = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    set_volume(made, sitk.ReadImage(str(path)))
    return made
