"""Double of `slicer.parameterNodeWrapper`: typed members kept in a real vtkMRMLScriptedModuleNode, bound to widgets.

It knows the types that RegMamba uses: bool, str, MRML nodes and unions of them; others are refused.
"""

from __future__ import annotations

import types
import typing
from typing import Any

import slicer
import vtk


def parameter_node_wrapper(cls: type) -> type:
    """The class decorator."""
    members = {name: _Member(name, hint, getattr(cls, name, None)) for name, hint in typing.get_type_hints(cls).items()}
    for name, member in members.items():
        setattr(cls, name, property(member.read, member.write))
    for name, function in _METHODS.items():
        setattr(cls, name, function)
    cls.allParameters = members  # type: ignore[attr-defined]
    return cls


class _Member:
    def __init__(self, name: str, hint: Any, default: Any) -> None:
        kinds = typing.get_args(hint) or (hint,)
        self.is_node = all(k is type(None) or issubclass(k, slicer.vtkMRMLNode) for k in kinds)
        if not self.is_node and hint not in (bool, str):
            raise TypeError(f"The bench's parameter node has no type {hint} ({name}).")
        if self.is_node and len(kinds) > 1 and type(None) not in kinds:
            raise TypeError(f"A union of nodes needs None among its members ({name}).")
        self.name, self.hint, self.kinds = name, hint, kinds
        self.default = default if default is not None or self.is_node else hint()

    def read(self, wrapper: Any) -> Any:
        node = wrapper.parameterNode
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        return text == "True" if self.hint is bool else text

    def write(self, wrapper: Any, value: Any) -> None:
        node = wrapper.parameterNode
        if self.is_node:
            if not isinstance(value, self.kinds) and value is not None:
                raise ValueError(f"{self.name} cannot be a {value.GetClassName()}.")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if not isinstance(value, self.hint):
            raise ValueError(f"{self.name} must be {self.hint.__name__}, not {value!r}.")
        node.SetParameter(self.name, str(value))


def _init(self: Any, node: Any) -> None:
    self.parameterNode, self._bound, self._updating = node, {}, False
    for name, member in self.allParameters.items():
        if not member.is_node and name not in node.GetParameterNames():
            member.write(self, member.default)


def _connect_gui(self: Any, ui: Any) -> int:
    bound = []
    for widget in vars(ui).values():
        name = widget.property("SlicerParameterName")
        if not name:
            continue
        member = self.allParameters[name]
        if member.is_node:
            assert hasattr(widget, "setCurrentNode"), f"{name} needs a node selector"
            widget.setCurrentNode(member.read(self))
            signal, read, write = widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
        else:
            assert member.hint is bool and hasattr(widget, "setChecked"), f"{name} needs a check box"
            widget.setChecked(member.read(self))
            signal, read, write = widget.toggled, widget.isChecked, widget.setChecked
        slot = self._to_parameter(member, read)
        signal.connect(slot)
        bound.append((member, signal, slot, write))
    observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._to_widgets())
    self._bound[observer] = bound
    return observer


def _to_parameter(self: Any, member: _Member, read: Any) -> Any:
    def slot(*_: Any) -> None:
        if not self._updating:
            member.write(self, read())

    return slot


def _to_widgets(self: Any) -> None:
    if self._updating:
        return
    self._updating = True
    try:
        for bound in self._bound.values():
            for member, _, _, write in bound:
                write(member.read(self))
    finally:
        self._updating = False


def _disconnect_gui(self: Any, tag: int) -> None:
    self.parameterNode.RemoveObserver(tag)
    for _, signal, slot, _ in self._bound.pop(tag, []):
        signal.disconnect(slot)


_METHODS = {
    "__init__": _init,
    "connectGui": _connect_gui,
    "disconnectGui": _disconnect_gui,
    "_to_parameter": _to_parameter,
    "_to_widgets": _to_widgets,
    "AddObserver": lambda self, event, callback: self.parameterNode.AddObserver(event, callback),
    "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
    "StartModify": lambda self: self.parameterNode.StartModify(),
    "EndModify": lambda self, was: self.parameterNode.EndModify(was),
}


def make_module() -> types.ModuleType:
    """The module `slicer.parameterNodeWrapper`."""
    module = types.ModuleType("slicer.parameterNodeWrapper")
    module.parameterNodeWrapper = parameter_node_wrapper  # type: ignore[attr-defined]
    return module
