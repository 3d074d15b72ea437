"""Many volumes by one click, with a real worker process: one table, labels by name, failures and cancel."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PySide6")
pytest.importorskip("bridge_help")

import slicer
from PySide6.QtCore import Qt
from slicer_bench.hands import click, names, node, refine_for_long, set_quick

pytest_plugins = ["slicer_bench.fixtures"]


def test_a_batch_registers_the_chosen_volumes_into_one_table(pair, bench):
    from RegMambaSlicer.panel_selftest import make_head

    make_head("second", (-5.0, 4.0, 3.0))
    ui = pair.panel.ui
    assert not ui.batch_button.isEnabled()
    assert "Choose the moving volumes" in ui.batch_button.toolTip()
    for name in ("fixed", "moving", "second"):
        ui.batch_volumes.setCheckState(node(name), Qt.CheckState.Checked)
    click(ui.batch_button)
    words = []
    assert bench.wait(lambda: words.append(ui.status_label.text()) or not pair.panel.batch.going)
    assert any("Volume 2 of 2" in w for w in words)
    assert "2 volumes registered" in ui.status_label.text()
    assert names("vtkMRMLTransformNode") == {"moving to fixed", "second to fixed"}
    assert len(names("vtkMRMLTableNode")) == 1
    column = pair.panel.parameters.table.GetTable().GetColumnByName("Moving")
    assert {column.GetValue(n) for n in range(column.GetNumberOfValues())} == {"moving", "second"}


def test_in_a_batch_labels_called_after_a_volume_guide_and_are_carried_over(pair, bench):
    from RegMambaSlicer.panel_selftest import make_head

    make_head("second", (-5.0, 4.0, 3.0))
    make_head("third", (4.0, 4.0, -3.0))[1].SetName("of nobody")
    set_quick(pair, guide=True)
    ui = pair.panel.ui
    for name in ("second", "third"):
        ui.batch_volumes.setCheckState(node(name), Qt.CheckState.Checked)
    click(ui.batch_button)
    assert "such as third labels" in ui.status_label.text()
    node("of nobody").SetName("Third-Segmentation")
    pair.panel.ui.want_jacobian_check.setChecked(True)
    click(ui.batch_button)
    assert bench.wait(lambda: not pair.panel.batch.going)
    assert "2 volumes registered" in ui.status_label.text()
    found = {f"{name} registered" for name in ("second labels", "Third-Segmentation")}
    assert {n for n in names("vtkMRMLLabelMapVolumeNode") if n.endswith("registered")} == found
    table = pair.panel.parameters.table.GetTable()
    after = [table.GetColumnByName("Dice after").GetValue(row) for row in range(table.GetNumberOfRows())]
    assert len(after) == 4 and min(after) > 0.9


def test_a_volume_that_fails_is_named_at_the_end_and_the_others_are_registered(pair, bench):
    from RegMambaSlicer.panel_selftest import make_head

    flat, _ = make_head("flat", (0.0, 0.0, 0.0))
    slicer.util.updateVolumeFromArray(flat, np.zeros((40, 40, 40), np.int16))
    make_head("last", (-5.0, 4.0, 3.0))
    for name in ("flat", "last", "moving"):
        pair.panel.ui.batch_volumes.setCheckState(node(name), Qt.CheckState.Checked)
    click(pair.panel.ui.batch_button)
    assert bench.wait(lambda: not pair.panel.batch.going)
    said = pair.panel.ui.status_label.text()
    assert said.startswith(
        "2 of 3 volumes registered; their numbers are in the table. Not registered: flat: The moving "
    )
    assert names("vtkMRMLTransformNode") == {"moving to fixed", "last to fixed"}
    click(pair.panel.ui.table_button)


def test_a_batch_of_failures_leaves_no_table(pair, bench):
    slicer.util.updateVolumeFromArray(node("moving"), np.zeros((40, 40, 40), np.int16))
    pair.panel.ui.batch_volumes.setCheckState(node("moving"), Qt.CheckState.Checked)
    click(pair.panel.ui.batch_button)
    assert bench.wait(lambda: not pair.panel.batch.going)
    assert pair.panel.ui.status_label.text().startswith("0 of 1 volumes registered. Not registered: moving:")
    assert not pair.panel.ui.table_button.isEnabled()


def test_cancel_ends_the_whole_batch(pair, bench):
    from RegMambaSlicer.panel_selftest import make_head

    make_head("second", (-5.0, 4.0, 3.0))
    for name in ("moving", "second"):
        pair.panel.ui.batch_volumes.setCheckState(node(name), Qt.CheckState.Checked)
    refine_for_long(pair, bench, pair.panel.ui.batch_button)
    click(pair.panel.ui.register_button)
    bench.wait(lambda: pair.panel.busy, 0.5)
    assert not pair.panel.busy
    assert not pair.panel.batch.going
    assert names("vtkMRMLTransformNode") == set()
