"""Doubles of `slicer.app`, `slicer.modules`, `slicer.i18n` and the parts of `slicer.util` that need the application."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
import vtk
from PySide6.QtWidgets import QApplication

from . import module_classes, parameter_node, widgets
from .qt_double import make_qt

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "RegMamba"
VIEWS = ("Red", "Yellow", "Green")


class Bench:
    """A scene with three slice views, and what the application was asked for.

    Attributes:
        asked: texts of the questions to the user; `consent` answers them.
        shown: texts of message boxes.
        installed: what pip was asked to install.
        layout: the layout last chosen.
        started: slots for the end of Slicer's start-up.
    """

    def __init__(self, user_folder: Path) -> None:
        self.asked: list[str] = []
        self.shown: list[str] = []
        self.installed: list[str] = []
        self.started: list[Callable[[], None]] = []
        self.consent = True
        self.layout = 0
        self.user_folder = user_folder
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkMRMLApplicationLogic()
        self.logic.SetMRMLScene(self.scene)
        self.colors = slicer.vtkSlicerColorLogic()
        self.colors.SetMRMLApplicationLogic(self.logic)
        self.colors.SetMRMLScene(self.scene)
        self.slices = [self._add_view(name) for name in VIEWS]
        self.logic.SetSliceLogics(self._views())

    def _add_view(self, name: str) -> Any:
        view = slicer.vtkMRMLSliceLogic()
        view.SetMRMLScene(self.scene)
        view.AddSliceNode(name)
        return view

    def composites(self) -> list[Any]:
        """The composite nodes of the slice views."""
        return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")

    def application(self) -> Any:
        """`slicer.app`."""
        manager = SimpleNamespace(setLayout=lambda layout: setattr(self, "layout", layout), mrmlSliceLogics=self._views)
        return SimpleNamespace(
            connect=lambda signal, slot: self.started.append(slot),
            temporaryPath=tempfile.gettempdir(),
            slicerUserSettingsFilePath=str(self.user_folder / "Slicer.ini"),
            layoutManager=lambda: manager,
            applicationLogic=lambda: self.logic,
            processEvents=QApplication.processEvents,
            testingEnabled=lambda: True,
        )

    def _views(self) -> Any:
        found = vtk.vtkCollection()
        for view in self.slices:
            found.AddItem(view)
        return found

    def ask(self, text: str, **_: Any) -> bool:
        self.asked.append(text)
        return self.consent

    def wait(self, until: Callable[[], Any], seconds: float = 300) -> bool:
        """Let Qt work until something is so, or too long has passed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            QApplication.processEvents()
            if until():
                return True
            time.sleep(0.01)
        return False


def install(user_folder: Path) -> Bench:
    """Put the doubles where the module looks for them, with a new scene; returns the bench."""
    QApplication.instance() or QApplication(["bench"])
    if "qt" not in sys.modules:
        sys.modules["qt"] = make_qt()
        sys.modules["ctk"] = types.ModuleType("ctk")
        sys.modules["ctk"].ctkCollapsibleButton = widgets.ctkCollapsibleButton  # type: ignore[attr-defined]
    bench = Bench(user_folder)
    slicer.mrmlScene = bench.scene
    slicer.app = bench.application()
    slicer.modules = SimpleNamespace(colors=SimpleNamespace(logic=lambda: bench.colors))
    widgets.add_to_slicer()
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text  # type: ignore[attr-defined]
    i18n.translate = lambda context, text: text  # type: ignore[attr-defined]
    for module in (i18n, parameter_node.make_module(), module_classes.make_module()):
        sys.modules.setdefault(module.__name__, module)
        setattr(slicer, module.__name__.split(".")[1], sys.modules[module.__name__])
    slicer.util.loadUI = widgets.load_ui
    slicer.util.childWidgetVariables = widgets.child_widgets
    slicer.util.modulePath = lambda name: str(MODULE_FOLDER / f"{name}.py")
    slicer.util.mainWindow = lambda: None
    slicer.util.confirmOkCancelDisplay = bench.ask
    slicer.util.errorDisplay = lambda text, **_: bench.shown.append(text)
    slicer.util.pip_install = lambda wanted, **_: bench.installed.append(str(wanted))
    if str(MODULE_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODULE_FOLDER))
    return bench
