"""How a result is looked at: overlay, fade, checkerboard, transform display, Jacobian colours, table and chart."""

from __future__ import annotations

from typing import Any

import slicer
from slicer import vtkMRMLTransformDisplayNode

TRANSFORM_MODES = {
    "grid": vtkMRMLTransformDisplayNode.VIS_MODE_GRID,
    "glyphs": vtkMRMLTransformDisplayNode.VIS_MODE_GLYPH,
    "contours": vtkMRMLTransformDisplayNode.VIS_MODE_CONTOUR,
}
CHECKERBOARD = "RegMamba checkerboard"
JACOBIAN_COLORS = "RegMamba Jacobian"
JACOBIAN_RANGE = (0.0, 2.0)
# mm between the lines of a grid, or between glyphs; what fills a slice would hide itself in space.
SPACING_IN_SLICES, SPACING_IN_3D = 10.0, 25.0


def show_overlay(fixed: Any, moved: Any, opacity: float = 0.5) -> None:
    """Fixed volume behind, moved volume in front, in every slice view; fitted where another volume was looked at."""
    here = {fixed.GetID()}
    checkerboard = _checkerboard()
    if checkerboard is not None:  # lies on the fixed volume
        here.add(checkerboard.GetID())
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    elsewhere = any(view.GetBackgroundVolumeID() not in here for view in views)
    slicer.util.setSliceViewerLayers(background=fixed, foreground=moved, foregroundOpacity=opacity, fit=elsewhere)


def fade(opacity: float) -> None:
    """Opacity of what is in front, in every slice view."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        node.SetForegroundOpacity(opacity)


def show_checkerboard(fixed: Any, moved: Any, squares: int = 8) -> Any:
    """A volume whose squares come from fixed and moved in turn (moved lies in the fixed grid), in the slice views.

    Both are brought to the same range of grey first; the node is used again next time.
    """
    import numpy as np

    arrays = [_to_unit(slicer.util.arrayFromVolume(node)) for node in (fixed, moved)]
    if arrays[0].shape != arrays[1].shape:
        raise ValueError("The moved volume does not lie in the fixed grid; register again to compare in squares.")
    side = max(1, max(arrays[0].shape) // squares)
    k, j, i = (np.arange(n) // side for n in arrays[0].shape)
    odd = (k[:, None, None] + j[None, :, None] + i[None, None, :]) % 2 == 1
    node = _checkerboard()
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", CHECKERBOARD)
        node.SetSaveWithScene(False)
    slicer.util.updateVolumeFromArray(node, np.where(odd, arrays[1], arrays[0]))
    node.SetIJKToRASMatrix(_ijk_to_ras(fixed))
    node.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    slicer.util.setSliceViewerLayers(background=node, foreground=None)
    return node


def remove_checkerboard() -> None:
    """Take the node of `show_checkerboard` out of the scene, where it could be taken for an input."""
    node = _checkerboard()
    if node is not None:
        slicer.mrmlScene.RemoveNode(node)


def _checkerboard() -> Any:
    return slicer.mrmlScene.GetFirstNode(CHECKERBOARD, "vtkMRMLScalarVolumeNode")


def _to_unit(array: Any) -> Any:
    import numpy as np

    low, high = np.percentile(array, (1, 99.5))
    return np.clip((array - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)


def _ijk_to_ras(volume: Any) -> Any:
    from vtk import vtkMatrix4x4

    matrix = vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def show_transform(transform: Any, mode: str, in_slices: bool, in_3d: bool) -> None:
    """Show a transform as "grid", "glyphs" or "contours"; any other mode hides it."""
    transform.CreateDefaultDisplayNodes()
    display = transform.GetDisplayNode()
    shown = mode in TRANSFORM_MODES
    if shown:
        display.SetVisualizationMode(TRANSFORM_MODES[mode])
        spacing = SPACING_IN_3D if in_3d else SPACING_IN_SLICES
        display.SetGridSpacingMm(spacing)
        display.SetGlyphSpacingMm(spacing)
        region = transform.GetNodeReference("spatialRegistrationFixed")
        if region is not None:
            display.SetAndObserveRegionNode(region)
    display.SetVisibility(shown)
    display.SetVisibility2D(shown and in_slices)
    display.SetVisibility3D(shown and in_3d)


def show_jacobian(jacobian: Any, background: Any, shown: bool) -> None:
    """Colour the slices by volume change: blue shrinks, white stays, red grows, black folds; with a legend."""
    jacobian.CreateDefaultDisplayNodes()
    display = jacobian.GetDisplayNode()
    display.SetAndObserveColorNodeID(_jacobian_colors().GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(*JACOBIAN_RANGE)
    display.SetInterpolate(True)
    if shown:
        slicer.util.setSliceViewerLayers(background=background, foreground=jacobian, foregroundOpacity=0.5)
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(jacobian)
    if legend is not None:
        legend.SetTitleText("Jacobian")
        legend.SetVisibility(shown)


def _jacobian_colors() -> Any:
    node = slicer.mrmlScene.GetFirstNode(JACOBIAN_COLORS, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", JACOBIAN_COLORS)
    node.SetTypeToUser()
    node.SetNumberOfColors(256)
    for index in range(256):
        amount = (index - 127.5) / 127.5
        fade_out = 1 - abs(amount)
        color = (1.0, fade_out, fade_out) if amount > 0 else (fade_out, fade_out, 1.0)
        node.SetColor(index, *((0.0, 0.0, 0.0) if index == 0 else color), 1.0)
    node.SetNamesFromColors()
    return node


def show_table(table: Any) -> None:
    """The table under the slice views."""
    _select("SetActiveTableID", table)
    _set_layout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)


def show_chart(chart: Any) -> None:
    """The chart beside the slice views."""
    _select("SetActivePlotChartID", chart)
    _set_layout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)


def _select(setter: str, node: Any) -> None:
    logic = slicer.app.applicationLogic()
    getattr(logic.GetSelectionNode(), setter)(node.GetID())
    if setter == "SetActiveTableID":
        logic.PropagateTableSelection()
    else:
        logic.PropagatePlotChartSelection()


def _set_layout(layout: int) -> None:
    manager = slicer.app.layoutManager()
    if manager is not None:
        manager.setLayout(layout)
