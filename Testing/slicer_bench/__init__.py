"""A test bench for the RegMamba module without the Slicer application.

Real here: MRML (scene, nodes, references, storage), slice logics and `slicer.util`, from the package slicer-core; the
module's own files, its .ui and the worker. Doubles, written for these tests and labelled as such: PythonQt's `qt` and
`ctk` (on PySide6), the qMRML and ctk widgets, `slicer.app`, `slicer.modules`, `slicer.i18n`,
`slicer.ScriptedLoadableModule` and `slicer.parameterNodeWrapper`. Nothing of the module imports anything from here.
"""

import sys
from pathlib import Path

# slicer-core extends its package by every folder "slicer" on the path, and Testing has one.
_path, sys.path[:] = sys.path[:], [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parents[1]]
import slicer  # noqa: E402, F401

sys.path[:] = _path

from .application import Bench, install  # noqa: E402

__all__ = ["Bench", "install"]
