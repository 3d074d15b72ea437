"""Widgets for the library's `Settings`, made from its own types, ranges, choices, help and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import qt

if TYPE_CHECKING:
    from RegMambaLib.registration.settings import Settings

# Settings that the panel asks for among the outputs.
_ELSEWHERE = ("uncertainty",)
# Which settings stand in the open, in this order, and what they are called there. The others follow under "Advanced".
COMMON = {"affine": "Linear stage", "iterations": "Refinement", "guide": "Label guidance", "device": "Device"}
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps")
NO_LIMIT = 2**31 - 1


class SettingsView:
    """One row per setting in two form layouts; `on_change(settings)` after every valid change by the user.

    What cannot be used is said by `on_problem(message)` and not passed on.
    """

    def __init__(
        self,
        common: qt.QFormLayout,
        advanced: qt.QFormLayout,
        on_change: Callable[[Settings], None],
        on_problem: Callable[[str], None],
    ) -> None:
        from RegMambaLib.registration.settings import CHOICES, Settings

        self._settings, self._on_change, self._on_problem = Settings, on_change, on_problem
        self._showing = False
        hints = get_type_hints(Settings)
        declared = {f.name: f for f in fields(Settings) if f.name not in _ELSEWHERE}
        self.rows: dict[str, _Row] = {}
        for name in [*COMMON, *(name for name in declared if name not in COMMON)]:
            row = _make_row(name, hints[name], declared[name].metadata, CHOICES.get(name))
            row.widget.setObjectName(f"setting_{name}")
            row.widget.setToolTip(declared[name].metadata["help"])
            row.widget.connect(row.signal, self._changed)
            label = qt.QLabel(COMMON.get(name, name.replace("_", " ").capitalize()) + ":")
            label.setToolTip(declared[name].metadata["help"])
            (common if name in COMMON else advanced).addRow(label, row.widget)
            self.rows[name] = row
        self.show(Settings())

    def show(self, settings: Settings) -> None:
        """Show these settings; nobody is told. A row that shows its value already is left alone: a user may type."""
        self._showing = True
        try:
            for name, row in self.rows.items():
                value = getattr(settings, name)
                if not row.shows(value):
                    row.write(value)
        finally:
            self._showing = False

    def read(self) -> Settings:
        """The settings as shown.

        Raises:
            InputError: a value that `Settings` refuses.
        """
        return self._settings(**{name: row.read() for name, row in self.rows.items()})

    def _changed(self, *_: Any) -> None:
        if self._showing:
            return
        from RegMambaLib.errors import InputError

        try:
            settings = self.read()
        except InputError as error:
            self._on_problem(str(error))
        else:
            self._on_change(settings)


class _Row:
    """A widget, its signal, and how its value is read and written."""

    def __init__(self, widget: Any, signal: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.widget, self.signal, self.read, self.write = widget, signal, read, write

    def shows(self, value: Any) -> bool:
        """Whether the widget reads as this value."""
        from RegMambaLib.errors import InputError

        try:
            return bool(self.read() == value)
        except InputError:
            return False


def _make_row(name: str, hint: Any, metadata: Any, choices: tuple[str, ...] | None) -> _Row:
    low, high = metadata["low"], metadata["high"]
    if choices or name == "device":
        combo = qt.QComboBox()
        combo.addItems(list(choices or DEVICES))
        combo.setEditable(choices is None)
        return _Row(
            combo, "currentTextChanged(QString)", lambda: combo.property("currentText").strip(), combo.setCurrentText
        )
    if hint is bool:
        check = qt.QCheckBox()
        return _Row(check, "toggled(bool)", lambda: bool(check.property("checked")), check.setChecked)
    if hint is int:
        spin = qt.QSpinBox()
        spin.setRange(int(low or 0), int(NO_LIMIT if high is None else high))
        spin.setKeyboardTracking(False)  # a number counts when it is whole, not at each of its digits
        if name == "window":
            spin.setSingleStep(2)
        return _Row(spin, "valueChanged(int)", lambda: int(spin.property("value")), spin.setValue)
    if hint is float:
        real = qt.QDoubleSpinBox()
        real.setDecimals(2)
        real.setSingleStep(0.1)
        real.setKeyboardTracking(False)
        real.setRange(float(low or 0), float(NO_LIMIT if high is None else high))
        return _Row(real, "valueChanged(double)", lambda: float(real.property("value")), real.setValue)
    line = qt.QLineEdit()
    if get_origin(hint) is tuple:
        return _Row(
            line,
            "editingFinished()",
            lambda: _numbers(line.property("text")),
            lambda value: line.setText(", ".join(map(str, value))),
        )
    return _Row(line, "editingFinished()", lambda: line.property("text").strip(), line.setText)


def _numbers(text: str) -> tuple[int, ...]:
    from RegMambaLib.errors import InputError

    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise InputError(f"Write whole numbers such as 100, 60, 12 instead of {text!r}.") from None
