"""Fixtures for tests of the panel: a bench, the module's widget on it, and hands that click."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import slicer
from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest

from . import application

QUICK = {"weights": "none", "affine": "rigid", "iterations": [12, 6], "spacing": 4.0, "device": "cpu"}


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """A bench with an empty scene."""
    return application.install(tmp_path)


@pytest.fixture
def opened(bench: Any, monkeypatch: Any) -> Any:
    """The module's widget, as after opening the module; closed afterwards. Nothing may fail in a slot unseen."""
    import RegMamba

    failures: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: failures.append(error))

    widget = RegMamba.RegMambaWidget()
    widget.parent.resize(440, 1000)
    bench.wait(lambda: True)
    yield widget
    widget.cleanup()
    for child in vars(widget.panel.ui).values():
        if hasattr(child, "release"):
            child.release()
    assert failures == []
    widget.parent.close()


@pytest.fixture(scope="session")
def kept_client() -> Any:
    """A client whose worker serves many tests; the end of a scene does not end it."""
    from RegMambaSlicer.worker_client import WorkerClient

    class KeptClient(WorkerClient):
        def shutdown(self) -> None:
            """At the end of the session instead."""

    client = KeptClient()
    yield client
    client.cancel()


@pytest.fixture
def pair(opened: Any, kept_client: Any) -> Any:
    """The widget with a made pair chosen by its selectors, quick settings, and a worker that may be warm."""
    from RegMambaSlicer.logic import RegistrationJob

    opened.logic._job = RegistrationJob(kept_client, slicer.mrmlScene)
    make_pair()
    choose_pair(opened)
    set_quick(opened)
    return opened


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
