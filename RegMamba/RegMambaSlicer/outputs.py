"""The files of a result as nodes: volumes, labels, table and chart; nodes that are given are filled again."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk

from RegMambaLib.spatial.grid import Grid

from .segments import Label, fill_segmentation
from .space import flip_axes, to_vtk

COLUMNS = ("Moving", "Label", "Name", "Dice before", "Dice after", "HD95 before (mm)", "HD95 after (mm)")
RUN_COLUMNS = ("Folding (%)", "Seconds")


def output_node(scene: Any, wanted: Any, class_name: str, name: str) -> Any:
    """The node given, or a new one: `wanted` is a node, or a name for a new node ("" takes `name`)."""
    if not isinstance(wanted, str):
        return wanted
    return scene.AddNewNodeByClass(class_name, scene.GenerateUniqueName(wanted or name))


def put_beside(node: Any, source: Any) -> None:
    """Place a new node where another one is in the subject hierarchy, such as below the same patient."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    if tree is None:
        return
    item, parent = tree.GetItemByDataNode(node), tree.GetItemParent(tree.GetItemByDataNode(source))
    if item and parent:
        tree.SetItemParent(item, parent)


def set_volume(node: Any, image: sitk.Image) -> None:
    """Let a volume node hold an image given in LPS mm, in the world: under no transform."""
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayViewFromImage(image))
    node.SetIJKToRASMatrix(to_vtk(flip_axes(Grid.of(image).index_to_world)))
    node.SetAndObserveTransformNodeID(None)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()


def copy_display(node: Any, source: Any) -> None:
    """The window, level and colours of another volume."""
    display, other = node.GetDisplayNode(), source.GetDisplayNode()
    if display is None or other is None:
        return
    display.SetAndObserveColorNodeID(other.GetColorNodeID())
    if display.IsA("vtkMRMLScalarVolumeDisplayNode") and other.IsA("vtkMRMLScalarVolumeDisplayNode"):
        display.SetAutoWindowLevel(other.GetAutoWindowLevel())
        if not other.GetAutoWindowLevel():
            display.SetWindowLevel(other.GetWindow(), other.GetLevel())


def set_labels(node: Any, image: sitk.Image, labels: list[Label], source: Any, reference: Any) -> None:
    """Carried-over labels into a segmentation or a label map volume node.

    Args:
        source: the moving labels node, which a label map takes its colour table from.
        reference: the fixed volume node, or None if it is under a transform.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        node.SetAndObserveTransformNodeID(None)
        fill_segmentation(node, image, labels, reference, source if source.IsA(node.GetClassName()) else None)
        return
    array = sitk.GetArrayViewFromImage(image)
    small = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)
    narrow = sitk.GetImageFromArray(small)
    narrow.CopyInformation(image)
    set_volume(node, narrow)
    if source.IsA("vtkMRMLLabelMapVolumeNode"):
        copy_display(node, source)
    elif labels:
        _color_by(node, labels)


def fill_table(node: Any, report: dict[str, Any], labels: list[Label], moving: str, *, append: bool = False) -> None:
    """One row per label and one for the whole (their mean, folding, seconds).

    Args:
        report: of the worker; without "before" and "after" there is only the row for the whole.
        moving: name of the moving volume, the first column.
        append: keep the rows of the runs before (batch).
    """
    table = node.GetTable()
    if not append or table.GetNumberOfColumns() != len(COLUMNS) + len(RUN_COLUMNS):
        node.RemoveAllColumns()
        for name in (*COLUMNS, *RUN_COLUMNS):
            column = vtk.vtkStringArray() if name in COLUMNS[:3] else vtk.vtkDoubleArray()
            column.SetName(name)
            table.AddColumn(column)
    names = {str(label.value): label.name for label in labels}
    before, after = report.get("before") or {}, report.get("after") or {}
    for label, values in after.get("per_label", {}).items():
        earlier = before.get("per_label", {}).get(label, {})
        _add_row(table, [moving, label, names.get(label, label), *_pairs(earlier, values), None, None])
    whole = "mean" if after else "whole"
    seconds = report.get("seconds", {}).get("total")
    _add_row(table, [moving, whole, whole, *_pairs(before, after), report.get("folding_percent"), seconds])
    node.SetUseColumnTitleAsColumnHeader(True)  # without titles, the names
    node.SetUseFirstColumnAsRowHeader(False)
    table.Modified()
    node.Modified()


def fill_chart(node: Any, table: Any) -> None:
    """A bar chart of Dice before and after from a table node; its two series nodes are made once."""
    scene = node.GetScene()
    series = [node.GetNthPlotSeriesNode(n) for n in range(node.GetNumberOfPlotSeriesNodes())]
    for name, color in (("Dice before", (0.62, 0.65, 0.70)), ("Dice after", (0.13, 0.47, 0.71))):
        one = next((s for s in series if s is not None and s.GetYColumnName() == name), None)
        if one is None:
            one = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", scene.GenerateUniqueName(name))
            node.AddAndObservePlotSeriesNodeID(one.GetID())
        one.SetAndObserveTableNodeID(table.GetID())
        one.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
        one.SetLabelColumnName("Name")
        one.SetYColumnName(name)
        one.SetColor(*color)
    node.SetTitle("Overlap of labels")
    node.SetYAxisTitle("Dice")
    node.SetXAxisTitle("")


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> list[Any]:
    return [before.get("dice"), after.get("dice"), before.get("hd95_mm"), after.get("hd95_mm")]


def _add_row(table: Any, values: list[Any]) -> None:
    for n, value in enumerate(values):
        column = table.GetColumn(n)
        if column.IsA("vtkStringArray"):
            column.InsertNextValue(str(value))
        else:
            column.InsertNextValue(float("nan") if value is None else float(value))


def _color_by(node: Any, labels: list[Label]) -> None:
    """A colour table of the labels' own names and colours for a label map volume."""
    scene = node.GetScene()
    current = node.GetDisplayNode().GetColorNode()
    if current is not None and current.GetAttribute("RegMamba.labels") == node.GetID():
        table = current
    else:
        table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", scene.GenerateUniqueName(f"{node.GetName()} colors"))
        table.SetAttribute("RegMamba.labels", node.GetID())
    table.SetTypeToUser()
    table.SetNumberOfColors(max(label.value for label in labels) + 1)
    table.SetColor(0, "background", 0.0, 0.0, 0.0, 0.0)
    for label in labels:
        table.SetColor(label.value, label.name, *label.color, 1.0)
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
