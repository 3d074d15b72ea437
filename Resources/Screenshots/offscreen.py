"""Slice views, a 3-D view, a chart and a table of MRML nodes as pictures, without Slicer's application."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QImage, QPainter
from PySide6.QtWidgets import QTableWidget, QTableWidgetItem
from vtk.util.numpy_support import vtk_to_numpy

VIEW = 420
IN_SLICES = (
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
IN_SPACE = ("vtkMRMLCameraDisplayableManager", "vtkMRMLTransformsDisplayableManager3D")


class Window:
    """An off-screen window with one renderer."""

    def __init__(self, width: int = VIEW, height: int = VIEW) -> None:
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(width, height)
        self.renderer = vtk.vtkRenderer()
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)

    def manage(self, factory: Any, managers: tuple[str, ...], node: Any, logic: Any) -> None:
        """Let Slicer's displayable managers draw for a view node."""
        factory.SetMRMLApplicationLogic(logic)
        for manager in managers:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self.group = factory.InstantiateDisplayableManagers(self.renderer)
        self.group.SetMRMLDisplayableNode(node)

    def grab(self) -> np.ndarray:
        """RGB of the window, the first row on top."""
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        data = grab.GetOutput()
        width, height, _ = data.GetDimensions()
        return vtk_to_numpy(data.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()


class SliceView(Window):
    """A slice view of slicer-core."""

    def __init__(self, bench: Any, name: str, orientation: str) -> None:
        super().__init__()
        index = [view.GetSliceNode().GetLayoutName() for view in bench.slices].index(name)
        self.logic = bench.slices[index]
        self.node = self.logic.GetSliceNode()
        self.node.SetOrientation(orientation)
        self.node.SetDimensions(VIEW, VIEW, 1)
        self.mapper = vtk.vtkImageMapper()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self.mapper)
        actor.SetLayerNumber(0)
        self.renderer.AddViewProp(actor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        self.manage(factory, IN_SLICES, self.node, bench.logic)

    def picture(self, offset: float) -> np.ndarray:
        """RGB of the slice at an offset (mm)."""
        self.logic.FitSliceToBackground(VIEW, VIEW)
        x, y, z = self.node.GetFieldOfView()
        self.node.SetFieldOfView(0.85 * x, 0.85 * y, z)
        self.logic.SetSliceOffset(offset)
        self.logic.UpdatePipeline()
        self.mapper.SetInputConnection(self.logic.GetImageDataConnection())
        return self.grab()


def space_picture(bench: Any) -> np.ndarray:
    """What Slicer's displayable managers show in a 3-D view, from the front and a little above."""
    node = slicer.mrmlScene.GetFirstNode(None, "vtkMRMLViewNode")
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
        node.SetLayoutName("1")
    view = Window()
    view.renderer.SetBackground(0.75, 0.76, 0.85)
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    view.manage(factory, IN_SPACE, node, bench.logic)
    camera = view.renderer.GetActiveCamera()
    camera.SetPosition(300, 500, 250)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 0, 1)
    view.renderer.ResetCamera()
    camera.Zoom(1.4)
    return view.grab()


def chart_picture(chart: Any, width: int = 560, height: int = 300) -> np.ndarray:
    """The bar series of a chart node, by VTK's chart, which Slicer's plot view uses too."""
    view = Window(width, height)
    view.renderer.SetBackground(1, 1, 1)
    plot = vtk.vtkChartXY()
    scene, actor = vtk.vtkContextScene(), vtk.vtkContextActor()
    scene.AddItem(plot)
    actor.SetScene(scene)
    scene.SetRenderer(view.renderer)
    view.renderer.AddActor(actor)
    for n in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(n)
        table = series.GetTableNode().GetTable()
        bars = plot.AddPlot(vtk.vtkChart.BAR)
        drawn = vtk.vtkTable()
        position = vtk.vtkDoubleArray()
        position.SetName("row")
        for row_number in range(table.GetNumberOfRows()):
            position.InsertNextValue(row_number)
        drawn.AddColumn(position)
        drawn.AddColumn(table.GetColumnByName(series.GetYColumnName()))
        bars.SetInputData(drawn, 0, 1)
        bars.SetLabel(series.GetYColumnName())
        bars.SetColorF(*series.GetColor())
    names = table.GetColumnByName(series.GetLabelColumnName())
    axis = plot.GetAxis(vtk.vtkAxis.BOTTOM)
    axis.SetCustomTickPositions(position, names)
    axis.GetLabelProperties().SetOrientation(50)
    axis.GetLabelProperties().SetJustificationToRight()
    axis.SetTitle("")
    plot.GetAxis(vtk.vtkAxis.LEFT).SetTitle(chart.GetYAxisTitle())
    plot.SetTitle(chart.GetTitle())
    plot.SetShowLegend(True)
    return view.grab()


def table_picture(node: Any, width: int = 860, height: int = 300) -> np.ndarray:
    """A table node in a table widget of PySide6."""
    table = node.GetTable()
    widget = QTableWidget(table.GetNumberOfRows(), table.GetNumberOfColumns())
    widget.setHorizontalHeaderLabels([table.GetColumnName(n) for n in range(table.GetNumberOfColumns())])
    for k in range(table.GetNumberOfRows()):
        for n in range(table.GetNumberOfColumns()):
            value = table.GetValue(k, n)
            text = value.ToString() if value.IsString() else f"{value.ToDouble():.3g}".replace("nan", "")
            widget.setItem(k, n, QTableWidgetItem(text))
    widget.resizeColumnsToContents()
    widget.resize(width, height)
    image = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
    lines = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return lines[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def row(pictures: list[np.ndarray], titles: list[str]) -> QImage:
    """Pictures side by side, each with its title."""
    gap, head = 8, 30
    widths = [picture.shape[1] for picture in pictures]
    height = max(picture.shape[0] for picture in pictures)
    sheet = QImage(sum(widths) + gap * (len(widths) - 1), height + head, QImage.Format.Format_RGB888)
    sheet.fill(QColor("#1d1f24"))
    painter = QPainter(sheet)
    painter.setPen(QColor("#e8e8e8"))
    painter.setFont(QFont("DejaVu Sans", 11))
    left = 0
    for picture, title, width in zip(pictures, titles, widths, strict=True):
        data = np.ascontiguousarray(picture)
        image = QImage(data.data, width, data.shape[0], 3 * width, QImage.Format.Format_RGB888)
        painter.drawImage(left, head, image)
        painter.drawText(left, 0, width, head, Qt.AlignmentFlag.AlignCenter, title)
        left += width + gap
    painter.end()
    return sheet
