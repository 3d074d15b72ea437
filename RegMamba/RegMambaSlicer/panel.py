"""The panel: inputs, settings, outputs, and one button that registers and cancels.

Widgets are read by `property` and written by Qt's setters, signals connect by their signature: what PythonQt offers.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import qt
import slicer

from . import dependencies
from .nodes import COMPOSITE, GRID, INPUTS, NEW, OPTIONAL_OUTPUTS, RESULTS, TABLES, JobOutputs, is_result_of
from .panel_after import AfterSection, BatchSection
from .panel_look import LookSection
from .panel_text import numbers_text, progress_text
from .parameters import (
    CUSTOM_WEIGHTS,
    DEFAULT_PRESET,
    at_once,
    find_presets,
    find_problem,
    inputs_of,
    read_settings,
    save_preset,
    user_presets,
    write_settings,
)
from .settings_view import SettingsView

POLL_MS = 100
PROBLEM_STYLE = "color: #c0392b;"


class Panel:
    """Connects the widgets of RegMamba.ui with the parameter node and the logic.

    Args:
        ui: the widgets by name.
        logic: RegMambaLogic; its `job` runs the registration.
        presets: folder of the presets that ship.
    """

    def __init__(self, ui: Any, logic: Any, presets: str) -> None:
        self.ui, self.logic, self.parameters = ui, logic, None
        self._presets_folder = Path(presets)
        self._presets: dict[str, Path] = {}
        self._connection: Any = None
        self._setting_up = False
        self._words, self._reason, self._is_problem = "", "", False
        self.report: dict[str, Any] | None = None
        self._pair: tuple[Any, Any] | None = None
        self.settings_view = SettingsView(
            ui.common_settings.layout(), ui.advanced_section.layout(), self._settings_changed, self.say_problem
        )
        ui.kernels_status.setText(dependencies.describe_kernels())
        ui.progress_bar.setVisible(False)
        self.look = LookSection(ui, self)
        self.after = AfterSection(ui, self)
        self.batch = BatchSection(ui, self)
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._poll)
        ui.swap_button.connect("clicked()", self.swap)
        ui.register_button.connect("clicked()", self.register_or_cancel)
        ui.preset_selector.connect("currentTextChanged(QString)", self._preset_chosen)
        ui.add_preset_button.connect("clicked()", self._add_preset)
        ui.save_preset_button.connect("clicked()", self._save_preset)
        ui.weights_path.connect("currentPathChanged(QString)", self._weights_chosen)
        self._list_presets()

    @property
    def busy(self) -> bool:
        """Whether a registration runs."""
        return self.logic.running

    # The parameter node

    def show(self, parameters: Any) -> None:
        """Show and follow another parameter node; None lets go of the present one."""
        if self.parameters is not None and self._connection is not None:
            self.parameters.disconnectGui(self._connection)
        self.parameters, self._connection = parameters, None
        if parameters is None:
            self.report, self._pair = None, None
            return
        self._connection = parameters.connectGui(self.ui)
        if not parameters.settings:
            self._take_preset(parameters.preset or DEFAULT_PRESET)
        self.refresh()

    def refresh(self) -> None:
        """Bring everything shown up to date with the parameter node."""
        if self.parameters is None or self._setting_up:
            return
        self._leave_results_of_another_pair()
        with contextlib.suppress(Exception):  # a scene of another version; `find_problem` says so below
            self.settings_view.show(read_settings(self.parameters))
        custom = self.parameters.preset == CUSTOM_WEIGHTS
        self._setting_up = True
        try:
            self.ui.preset_selector.setCurrentText(self.parameters.preset)
            if custom:
                self._show_weights_path()
        finally:
            self._setting_up = False
        self.ui.weights_label.setVisible(custom)
        self.ui.weights_path.setVisible(custom)
        self._refresh_buttons()

    def _leave_results_of_another_pair(self) -> None:
        """When another pair is chosen, the outputs are new nodes again; the results of the last pair stay."""
        if self.busy:
            return
        p = self.parameters
        before, self._pair = self._pair, (p.fixed, p.moving)
        if before not in (None, self._pair) and p.transform is not None and is_result_of(p.transform, *before):
            with at_once(p):
                for name in RESULTS:
                    setattr(p, name, None)

    def _show_weights_path(self) -> None:
        weights = self.settings_view.rows["weights"].read()
        path = weights if Path(weights).suffix else ""
        if self.ui.weights_path.property("currentPath") != path:
            self.ui.weights_path.setCurrentPath(path)

    def _refresh_buttons(self) -> None:
        problem = find_problem(self.parameters)
        button = self.ui.register_button
        button.setText("Cancel" if self.busy else "Register")
        button.setEnabled(self.busy or problem is None)
        button.setToolTip("Stop the registration." if self.busy else problem or "Bring the moving volume to the fixed.")
        self._reason = "" if self.busy else problem or ""
        self._show_words()
        self.ui.swap_button.setEnabled(not self.busy)
        self.look.refresh()
        self.after.refresh()
        self.batch.refresh()

    def swap(self) -> None:
        """Exchange fixed and moving, with their labels and masks; an initial transform, now of the wrong way, goes."""
        with at_once(self.parameters):
            for one in (name for name in INPUTS if name.startswith("fixed")):
                other = one.replace("fixed", "moving")
                first, second = getattr(self.parameters, one), getattr(self.parameters, other)
                setattr(self.parameters, one, second)
                setattr(self.parameters, other, first)
            self.parameters.initial_transform = None

    # Settings and presets

    def _list_presets(self) -> None:
        self._presets = find_presets(self._presets_folder, user_presets())
        self._setting_up = True
        try:
            self.ui.preset_selector.clear()
            self.ui.preset_selector.addItems([*self._presets, CUSTOM_WEIGHTS])
        finally:
            self._setting_up = False

    def _preset_chosen(self, name: str) -> None:
        if self._setting_up or self.parameters is None or not name:
            return
        self._take_preset(name)
        self.refresh()

    def _take_preset(self, name: str) -> None:
        from RegMambaLib.errors import InputError
        from RegMambaLib.registration.settings import Settings

        self.parameters.preset = name
        if name not in self._presets:
            return
        try:
            settings = Settings.load(self._presets[name])
        except InputError as error:
            self.say_problem(str(error))
        else:
            write_settings(self.parameters, settings)
            self.say("")

    def _weights_chosen(self, path: str) -> None:
        if self.parameters is not None and path and not self._setting_up:
            row = self.settings_view.rows["weights"]
            row.write(path)
            self._settings_changed(self.settings_view.read())

    def _settings_changed(self, settings: Any) -> None:
        self.say("")
        write_settings(self.parameters, settings)

    def _add_preset(self) -> None:
        from RegMambaLib.errors import InputError
        from RegMambaLib.registration.settings import Settings

        file = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), "Add a preset", "", "Presets (*.json)")
        if not file:
            return
        try:
            save_preset(user_presets() / Path(file).name, Settings.load(file))
        except (InputError, OSError) as error:
            self.say_problem(str(error))
            return
        self._list_presets()
        self._preset_chosen(Path(file).stem.replace("_", " "))

    def _save_preset(self) -> None:
        from RegMambaLib.errors import InputError

        folder = user_presets()
        with contextlib.suppress(OSError):  # Qt's dialog begins elsewhere where the folder is not there
            folder.mkdir(parents=True, exist_ok=True)
        start = str(folder / "my_preset.json")
        file = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), "Save as a preset", start, "Presets (*.json)")
        if not file:
            return
        target = Path(file).with_suffix(".json")
        try:
            save_preset(target, read_settings(self.parameters))
        except OSError as error:
            self.say_problem(f"The preset could not be written ({error.strerror}); choose a folder of your own.")
            return
        except (InputError, ValueError) as error:
            self.say_problem(f"The settings in this scene cannot be used ({error}); choose a preset.")
            return
        self._list_presets()
        listed = target.parent == folder
        self.say(f"Saved as {target.name}." if listed else f"Saved as {target}; Add... brings it into the list.")

    # The run

    def register_or_cancel(self) -> None:
        """The button: start, or stop what runs."""
        if self.busy:
            self.cancel()
        elif self.ready():
            self.start(self.parameters.moving, self.job_outputs(), self._done)

    def ready(self) -> bool:
        """Whether a registration can start; says why not, and asks to install what is missing."""
        problem = find_problem(self.parameters)
        if problem is None:
            try:
                dependencies.ensure(self._say_now)
            except dependencies.DependencyError as error:
                problem = str(error)
        if problem is not None:
            self.say_problem(problem)
        return problem is None

    def start(self, moving: Any, outputs: Any, on_done: Any) -> None:
        """Register one moving volume with the inputs and settings as shown."""
        self.ui.progress_bar.setValue(0)
        self.ui.progress_bar.setVisible(True)
        self.say(self.batch.prefix() + "Starting.")
        self.logic.job.start(
            inputs_of(self.parameters, moving),
            read_settings(self.parameters).to_dict(),
            outputs,
            on_progress=self._progress,
            on_done=on_done,
            on_error=self._failed,
        )
        if self.busy:
            self._timer.start()
            self._refresh_buttons()

    def cancel(self) -> None:
        """Stop what runs, a batch included."""
        self.batch.stop()
        self.logic.job.cancel()
        self.settle("Cancelled; the scene is as it was before.")

    def settle(self, text: str = "") -> None:
        """Back to rest after a run."""
        if not self.busy:
            self._timer.stop()
        self.ui.progress_bar.setVisible(False)
        self.say(text)
        self._refresh_buttons()

    def _failed(self, kind: str, message: str) -> None:
        if self.batch.going:
            self.batch.failed(kind, message)
            return
        self.settle()
        self.say_problem(message)

    def job_outputs(self) -> Any:
        """What the outputs section asks for: nodes to fill again, new ones, or None for none."""
        p = self.parameters
        wanted = {name: (getattr(p, name) or NEW) if getattr(p, f"want_{name}") else None for name in OPTIONAL_OUTPUTS}
        if p.moving_labels is None:
            wanted["labels"] = None
        for name in TABLES:
            wanted[name] = (getattr(p, name) or NEW) if p.want_table else None
        return JobOutputs(transform=p.transform or NEW, mode=self.mode(), **wanted)

    def mode(self) -> str:
        """How the transform is kept."""
        return COMPOSITE if self.parameters.composite else GRID

    def _poll(self) -> None:
        self.logic.job.poll()

    def _progress(self, stage: str, share: float, total: float, eta: float | None) -> None:
        self.ui.progress_bar.setValue(round(1000 * min(max(total, 0.0), 1.0)))
        self.say(self.batch.prefix() + progress_text(stage, eta))

    def _done(self, report: dict[str, Any]) -> None:
        self.report, nodes = report, self.logic.job.nodes
        with at_once(self.parameters):
            for name in RESULTS:
                if nodes.get(name) is not None:
                    setattr(self.parameters, name, nodes[name])
        self.ui.numbers_label.setText(numbers_text(report))
        self.settle(" ".join(["Done.", *report.get("notes", [])]))
        self.look.compare()

    # Words

    def say(self, text: str) -> None:
        """A remark under the button."""
        self._words, self._is_problem = text, False
        self._show_words()

    def say_problem(self, text: str) -> None:
        """The same, in red: what went wrong and what to do."""
        self._words, self._is_problem = text, True
        self._show_words()

    def _say_now(self, text: str) -> None:
        """A remark that is seen at once, before something that keeps Slicer busy."""
        self.say(text)
        slicer.app.processEvents()

    def _show_words(self) -> None:
        """The last remark, or else why the button is disabled."""
        self.ui.status_label.setStyleSheet(PROBLEM_STYLE if self._words and self._is_problem else "")
        self.ui.status_label.setText(self._words or self._reason)

    # The end

    def leave_scene(self) -> None:
        """The scene closes: end the run and the worker."""
        self.batch.stop()
        self._timer.stop()
        self.look.stop()
        self.logic.close()
        self.ui.progress_bar.setVisible(False)
        self.ui.numbers_label.setText("No result yet.")
        self.say("")

    def close(self) -> None:
        """The panel goes away."""
        self.leave_scene()
        self.show(None)
