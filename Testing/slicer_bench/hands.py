"""Hands for tests of the panel: they choose, type, click, and wait."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest

QUICK = {"weights": "none", "affine": "rigid", "iterations": [12, 6], "spacing": 4.0, "device": "cpu"}


def make_pair() -> None:
    """Nodes "fixed" and "moving" with their label maps in the scene."""
    from RegMambaSlicer.panel_selftest import SHIFT, make_head

    make_head("fixed", (0.0, 0.0, 0.0))
    make_head("moving", SHIFT)


def choose_pair(opened: Any, labels: bool = True) -> None:
    """Choose the made nodes in the panel."""
    ui = opened.panel.ui
    choose(ui.fixed_selector, "fixed")
    choose(ui.moving_selector, "moving")
    if labels:
        choose(ui.fixed_labels_selector, "fixed labels")
        choose(ui.moving_labels_selector, "moving labels")


def set_quick(opened: Any, **more: Any) -> None:
    """Settings with which a made pair takes a moment."""
    from RegMambaSlicer.parameters import write_settings

    from RegMambaLib.registration.settings import Settings

    write_settings(opened.panel.parameters, Settings.from_dict(QUICK | more))


def click(button: Any) -> None:
    """A real click; fails on a button that is disabled, as a user's would."""
    assert button.isEnabled(), f"{button.text()} is disabled: {button.toolTip()}"
    button.window().show()
    for section in enclosing(button):
        section.setCollapsed(False)
    position = QPoint(8, button.height() // 2)
    QTest.mouseClick(button, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, position)


def enclosing(widget: Any) -> list[Any]:
    """The collapsible sections a widget is in."""
    found = []
    while widget is not None:
        if hasattr(widget, "setCollapsed"):
            found.append(widget)
        widget = widget.parentWidget()
    return found


def choose(selector: Any, text: str) -> None:
    """Choose an entry of a combo box by its text."""
    index = selector.findText(text)
    assert index >= 0, f"{text} is not among {[selector.itemText(n) for n in range(selector.count())]}"
    selector.setCurrentIndex(index)


def write(line: Any, text: str) -> None:
    """Type a text into a line and press Return."""
    line.selectAll()
    QTest.keyClick(line, Qt.Key.Key_Delete)
    QTest.keyClicks(line, text)
    QTest.keyClick(line, Qt.Key.Key_Return)


def node(name: str) -> Any:
    """A node of the scene by its name, or None."""
    return slicer.mrmlScene.GetFirstNodeByName(name)


def register(opened: Any, bench: Any, seconds: float = 300) -> str:
    """Click Register and wait until it is over; what the panel says then."""
    click(opened.panel.ui.register_button)
    assert bench.wait(lambda: not opened.panel.busy, seconds)
    return opened.panel.ui.status_label.text()


def names(kind: str) -> set[str]:
    """Names of the nodes of a class that a user sees."""
    return {n.GetName() for n in slicer.util.getNodesByClass(kind) if not n.GetHideFromEditors()}


def refine_for_long(pair: Any, bench: Any, button: Any) -> None:
    """Click a button that starts a run that would take minutes, and wait for its refinement."""
    set_quick(pair, iterations=[2000, 2000, 2000], spacing=1.0)
    click(button)
    bench.wait(lambda: "Refinement" in pair.panel.ui.status_label.text())
