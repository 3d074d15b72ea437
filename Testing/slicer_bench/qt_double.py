"""Double of PythonQt's `qt`: PySide6's classes, with signals that connect by signature as PythonQt's do."""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

WIDGETS = [
    "QCheckBox",
    "QComboBox",
    "QDoubleSpinBox",
    "QFrame",
    "QLabel",
    "QLineEdit",
    "QProgressBar",
    "QPushButton",
    "QSpinBox",
    "QToolButton",
    "QWidget",
]
LAYOUTS = ["QFormLayout", "QGridLayout", "QHBoxLayout", "QVBoxLayout"]


def make_singletons_immortal() -> None:
    """Let None, True and False never run out of references, as in Python 3.12 and later.

    PySide 6.12 takes one away wherever a method returns one of them, and older interpreters then abort.
    """
    if sys.version_info < (3, 12):
        for one in (None, True, False):
            ctypes.c_ssize_t.from_address(id(one)).value += 1 << 40


def by_signature(self: Any, signature: str, slot: Any) -> None:
    """`connect("name(types)", slot)`: the slot gets as many arguments as the signature names.

    PySide finds it only in a class's own body, not in a base.
    """
    name, _, arguments = signature.rstrip(")").partition("(")
    count = len([a for a in arguments.split(",") if a])
    getattr(self, name).connect(lambda *values: slot(*values[:count]))


class Notifier:
    """A signal of a double's own, with plain functions as slots."""

    def __init__(self) -> None:
        self._slots: list[Any] = []

    def connect(self, slot: Any) -> None:
        self._slots.append(slot)

    def disconnect(self, slot: Any) -> None:
        self._slots.remove(slot)

    def emit(self, *values: Any) -> None:
        for slot in tuple(self._slots):
            slot(*values)


class FileDialog:
    """Answers what a test put into `answer`; PythonQt gives the path alone."""

    answer = ""

    @classmethod
    def getOpenFileName(cls, *_: Any) -> str:
        return cls.answer

    getSaveFileName = getOpenFileName


def make_qt() -> types.ModuleType:
    """The module `qt`."""
    make_singletons_immortal()
    module = types.ModuleType("qt")
    for name in WIDGETS:
        setattr(module, name, type(name, (getattr(QtWidgets, name),), {"connect": by_signature}))
    for name in LAYOUTS:
        setattr(module, name, getattr(QtWidgets, name))
    module.QTimer = type("QTimer", (QtCore.QTimer,), {"connect": by_signature})  # type: ignore[attr-defined]
    module.QFileDialog = FileDialog  # type: ignore[attr-defined]
    module.Qt = QtCore.Qt  # type: ignore[attr-defined]
    module.QIcon = QtGui.QIcon  # type: ignore[attr-defined]
    return module
