"""The sections "Look" and "Numbers" of the panel."""

from __future__ import annotations

from typing import Any

import qt

from . import views

FLICKER_MS = 500
NO_DISPLAY = "off"


class LookSection:
    """Overlay, fade, flicker, checkerboard, volume change, drawing of the transform, table and chart."""

    def __init__(self, ui: Any, panel: Any) -> None:
        self.ui, self.panel = ui, panel
        self._front = False
        self._timer = qt.QTimer()
        self._timer.setInterval(FLICKER_MS)
        self._timer.connect("timeout()", self._flick)
        ui.transform_mode.addItems([NO_DISPLAY, *views.TRANSFORM_MODES])
        ui.compare_button.connect("clicked()", self.compare)
        ui.fade_slider.connect("valueChanged(double)", self._fade)
        ui.flicker_button.connect("toggled(bool)", self._flicker)
        ui.checkerboard_button.connect("toggled(bool)", self._checkerboard)
        ui.jacobian_button.connect("toggled(bool)", self._jacobian)
        ui.transform_mode.connect("currentTextChanged(QString)", self._draw_transform)
        ui.in_slices_check.connect("toggled(bool)", self._draw_transform)
        ui.in_3d_check.connect("toggled(bool)", self._draw_transform)
        ui.table_button.connect("clicked()", self._show_table)
        ui.chart_button.connect("clicked()", self._show_chart)

    def refresh(self) -> None:
        """Enable what there is something to look at for."""
        p, ui = self.panel.parameters, self.ui
        pair = p.fixed is not None and p.volume is not None
        for widget in (ui.compare_button, ui.fade_slider, ui.flicker_button, ui.checkerboard_button):
            widget.setEnabled(pair)
        ui.jacobian_button.setEnabled(p.jacobian is not None)
        for widget in (ui.transform_mode, ui.in_slices_check, ui.in_3d_check):
            widget.setEnabled(p.transform is not None)
        ui.table_button.setEnabled(p.table is not None)
        ui.chart_button.setEnabled(p.chart is not None)

    def compare(self) -> None:
        """Fixed behind, moved in front."""
        self._switch_off()
        self._overlay()

    def stop(self) -> None:
        """Leave the views alone from now on."""
        self._timer.stop()
        self._switch_off()

    def _overlay(self) -> None:
        p = self.panel.parameters
        if p is not None and p.fixed is not None and p.volume is not None:
            views.show_overlay(p.fixed, p.volume, float(self.ui.fade_slider.property("value")))

    def _fade(self, value: float) -> None:
        if self.panel.parameters is not None:
            views.fade(float(value))

    def _flicker(self, on: bool) -> None:
        if on:
            self._switch_off(but=self.ui.flicker_button)
            self._overlay()
            self._timer.start()
        else:
            self._timer.stop()
            self._fade(self.ui.fade_slider.property("value"))

    def _flick(self) -> None:
        self._front = not self._front
        views.fade(1.0 if self._front else 0.0)

    def _checkerboard(self, on: bool) -> None:
        p = self.panel.parameters
        if not on:
            self._overlay()
            views.remove_checkerboard()
            return
        self._switch_off(but=self.ui.checkerboard_button)
        try:
            views.show_checkerboard(p.fixed, p.volume)
        except ValueError as error:
            self.panel.say_problem(str(error))

    def _jacobian(self, on: bool) -> None:
        p = self.panel.parameters
        if p is None or p.jacobian is None:
            return
        if on:
            self._switch_off(but=self.ui.jacobian_button)
        views.show_jacobian(p.jacobian, p.fixed, on)
        if not on:
            self._overlay()

    def _switch_off(self, but: Any = None) -> None:
        """At most one of the three ways of looking is on."""
        for button in (self.ui.flicker_button, self.ui.checkerboard_button, self.ui.jacobian_button):
            if button is not but and button.property("checked"):
                button.setChecked(False)

    def _draw_transform(self, *_: Any) -> None:
        transform = self.panel.parameters.transform
        if transform is not None:
            mode = self.ui.transform_mode.property("currentText")
            in_slices, in_3d = (bool(w.property("checked")) for w in (self.ui.in_slices_check, self.ui.in_3d_check))
            views.show_transform(transform, mode, in_slices, in_3d)

    def _show_table(self) -> None:
        views.show_table(self.panel.parameters.table)

    def _show_chart(self) -> None:
        views.show_chart(self.panel.parameters.chart)
