"""Doubles of the ctk and qMRML widgets in RegMamba.ui, bound to the real MRML scene, and a loader for the .ui."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import slicer
from PySide6.QtCore import Property, QBuffer, QByteArray, QIODevice, QRect, Qt
from PySide6.QtGui import QPainter, QPalette
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QHBoxLayout, QLineEdit, QSlider, QWidget

from .qt_double import Notifier, by_signature

HEADER = 24
NO_MAXIMUM = 16777215


class ctkCollapsibleButton(QWidget):
    """A header that hides what is below it."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.contentsCollapsed = Notifier()
        self._text, self._collapsed = "", False
        self._hidden: list[QWidget] = []

    def _set_text(self, text: str) -> None:
        self._text = text

    def setCollapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        children = [c for c in self.children() if isinstance(c, QWidget)]
        if collapsed:
            self._hidden = [c for c in children if c.isHidden()]
        for child in children:
            child.setVisible(not collapsed and child not in self._hidden)
        self.setMaximumHeight(HEADER if collapsed else NO_MAXIMUM)
        self.contentsCollapsed.emit(collapsed)

    text = Property(str, lambda self: self._text, _set_text)

    def settle(self) -> None:
        """After loading: margins for the header, and `collapsed` of the .ui."""
        if self.layout() is not None:
            self.layout().setContentsMargins(10, HEADER + 6, 6, 6)
        self.setCollapsed(bool(self.property("collapsed")))

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() < HEADER:
            self.setCollapsed(not self._collapsed)

    def paintEvent(self, event: Any) -> None:
        painter = QPainter(self)
        bar = QRect(0, 1, self.width(), HEADER - 2)
        painter.fillRect(bar, self.palette().color(QPalette.ColorRole.Button).darker(104))
        mark = (
            "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}" if self._collapsed else "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"
        )
        painter.drawText(bar.adjusted(8, 0, 0, 0), Qt.AlignmentFlag.AlignVCenter, f"{mark}  {self._text}")


class ctkSliderWidget(QWidget):
    """A slider and a box with its value."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.valueChanged = Notifier()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.slider, self.box = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        self.slider.setMaximum(1000)
        layout.addWidget(self.slider)
        layout.addWidget(self.box)
        self.box.valueChanged.connect(self._moved)
        self.slider.valueChanged.connect(self._dragged)

    def _moved(self, value: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(1000 * (value - self.box.minimum()) / max(1e-9, self._span())))
        self.slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _dragged(self, value: int) -> None:
        self.box.setValue(self.box.minimum() + value / 1000 * self._span())

    def _span(self) -> float:
        return self.box.maximum() - self.box.minimum()

    def setValue(self, value: float) -> None:
        self.box.setValue(value)

    value = Property(float, lambda self: self.box.value(), setValue)
    minimum = Property(float, lambda self: self.box.minimum(), lambda self, v: self.box.setMinimum(v))
    maximum = Property(float, lambda self: self.box.maximum(), lambda self, v: self.box.setMaximum(v))
    singleStep = Property(float, lambda self: self.box.singleStep(), lambda self, v: self.box.setSingleStep(v))


class ctkPathLineEdit(QLineEdit):
    """A line for a path."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.currentPathChanged = Notifier()
        self.textChanged.connect(self.currentPathChanged.emit)

    def setCurrentPath(self, path: str) -> None:
        self.setText(path)

    currentPath = Property(str, lambda self: self.text(), setCurrentPath)


class qMRMLNodeComboBox(QComboBox):
    """The nodes of the classes in the property nodeTypes, and perhaps none."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.currentNodeChanged = Notifier()
        self.scene: Any = None
        self._ids: list[str | None] = []
        self._filling = False
        self._observed: list[tuple[Any, int]] = []
        self.currentIndexChanged.connect(self._chosen)

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent)
        for event in events:
            self._observed.append((scene, scene.AddObserver(event, self._scene_changed)))
        self._fill()

    def nodes(self) -> list[Any]:
        types, children = self.property("nodeTypes") or [], bool(self.property("showChildNodeTypes"))
        found = []
        for n in range(self.scene.GetNumberOfNodes()):
            node = self.scene.GetNthNode(n)
            fits = any(node.IsA(t) for t in types) if children else node.GetClassName() in types
            if fits and not node.GetHideFromEditors():
                found.append(node)
        return found

    def currentNode(self) -> Any:
        index = self.currentIndex()
        node_id = self._ids[index] if 0 <= index < len(self._ids) else None
        return self.scene.GetNodeByID(node_id) if node_id else None

    def setCurrentNode(self, node: Any) -> None:
        node_id = node.GetID() if node is not None else None
        if node_id in self._ids:
            self.setCurrentIndex(self._ids.index(node_id))

    def release(self) -> None:
        """Follow no scene any more."""
        for scene, tag in self._observed:
            scene.RemoveObserver(tag)
        self._observed.clear()

    def _scene_changed(self, *_: Any) -> None:
        if not self.scene.IsClosing() or not self.scene.IsBatchProcessing():
            self._fill()

    def _fill(self) -> None:
        index = self.currentIndex()
        before = self._ids[index] if 0 <= index < len(self._ids) else None
        self._filling = True
        try:
            self.clear()
            nodes, none = self.nodes(), bool(self.property("noneEnabled"))
            self._ids = [None] * none + [node.GetID() for node in nodes]
            self.addItems([self.property("noneDisplay") or "None"] * none + [node.GetName() for node in nodes])
            self.setCurrentIndex(self._ids.index(before) if before in self._ids else 0)
        finally:
            self._filling = False
        if before is not None and before not in self._ids:
            self.currentNodeChanged.emit(self.currentNode())

    def _chosen(self, *_: Any) -> None:
        if not self._filling:
            self.currentNodeChanged.emit(self.currentNode())


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """The same with a tick before each node."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.checkedNodesChanged = Notifier()

    def checkedNodes(self) -> list[Any]:
        ticked = [n for n in range(self.count()) if self._ticked(n)]
        return [self.scene.GetNodeByID(self._ids[n]) for n in ticked]

    def setCheckState(self, node: Any, state: Qt.CheckState) -> None:
        self.model().item(self._ids.index(node.GetID())).setCheckState(state)
        self.checkedNodesChanged.emit()

    def _ticked(self, n: int) -> bool:
        return self.model().item(n).checkState() == Qt.CheckState.Checked

    def _fill(self) -> None:
        ticked = {self._ids[n] for n in range(self.count()) if self._ticked(n)}
        super()._fill()
        for n, node_id in enumerate(self._ids):
            item = self.model().item(n)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked if node_id in ticked else Qt.CheckState.Unchecked)
        if ticked - set(self._ids):
            self.checkedNodesChanged.emit()

    def paintEvent(self, event: Any) -> None:
        self.setPlaceholderText(", ".join(node.GetName() for node in self.checkedNodes()) or "None")
        self._filling = True
        self.setCurrentIndex(-1)
        self._filling = False
        super().paintEvent(event)


class qMRMLWidget(QWidget):
    """Hands its scene to the widgets that the .ui connects to it."""

    connect = by_signature

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.followers: list[QWidget] = []

    def setMRMLScene(self, scene: Any) -> None:
        for follower in self.followers:
            follower.setMRMLScene(scene)


CLASSES = (
    ctkCollapsibleButton,
    ctkPathLineEdit,
    ctkSliderWidget,
    qMRMLCheckableNodeComboBox,
    qMRMLNodeComboBox,
    qMRMLWidget,
)


class _Loader(QUiLoader):
    def __init__(self, classes: dict[str, type]) -> None:
        super().__init__()
        self._classes = classes
        self.made: list[QWidget] = []

    def createWidget(self, name: str, parent: QWidget | None = None, object_name: str = "") -> QWidget:
        if name not in self._classes:
            raise LookupError(f"The bench has no double of {name}.")
        widget = self._classes[name](parent)
        widget.setObjectName(object_name)
        self.made.append(widget)
        return widget


def load_ui(path: str) -> QWidget:
    """`slicer.util.loadUI`; the .ui's connections, all from the scene to node selectors, are made here."""
    qt, tree = __import__("qt"), ElementTree.parse(path)
    connections = tree.getroot().find("connections")
    pairs = [(c.findtext("signal"), c.findtext("receiver"), c.findtext("slot")) for c in connections]
    connections.clear()
    loader = _Loader(
        {name: getattr(qt, name) for name in dir(qt) if name.startswith("Q")} | {c.__name__: c for c in CLASSES}
    )
    buffer = QBuffer()
    buffer.setData(QByteArray(ElementTree.tostring(tree.getroot())))
    buffer.open(QIODevice.OpenModeFlag.ReadOnly)
    widget = loader.load(buffer)
    if widget is None:
        raise RuntimeError(f"Could not load {path}: {loader.errorString()}")
    widget.made = loader.made
    named = {child.objectName(): child for child in loader.made}
    for signal, receiver, slot in pairs:
        assert (signal, slot) == ("mrmlSceneChanged(vtkMRMLScene*)", "setMRMLScene(vtkMRMLScene*)")
        widget.followers.append(named[receiver])
    for child in loader.made:
        if isinstance(child, ctkCollapsibleButton):
            child.settle()
    return widget


def child_widgets(widget: QWidget) -> Any:
    """`slicer.util.childWidgetVariables`."""
    ui = type("", (), {})()
    for child in widget.made:
        setattr(ui, child.objectName(), child)
    return ui


def add_to_slicer() -> None:
    """Names that Slicer's own modules have."""
    for cls in CLASSES:
        if cls.__name__.startswith("qMRML"):
            setattr(slicer, cls.__name__, cls)
