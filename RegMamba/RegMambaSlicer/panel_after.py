"""The sections "Afterwards" and "Batch" of the panel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import qt
import slicer

from .nodes import LABEL_WORDS, NEW, OPTIONAL_OUTPUTS, JobOutputs, find_companion
from .parameters import find_problem, inputs_of

FILES = "Transforms (*.h5 *.tfm *.nrrd *.mha *.nii.gz)"


class AfterSection:
    """The result on other nodes, its inverse, and files of it."""

    def __init__(self, ui: Any, panel: Any) -> None:
        self.ui, self.panel = ui, panel
        ui.after_nodes.connect("checkedNodesChanged()", self.refresh)
        ui.apply_button.connect("clicked()", lambda: self._carry_over(harden=False))
        ui.harden_button.connect("clicked()", lambda: self._carry_over(harden=True))
        ui.invert_button.connect("clicked()", self._invert)
        ui.save_button.connect("clicked()", self._save)

    def refresh(self) -> None:
        """Enable what there is a transform for."""
        p = self.panel.parameters
        there = p is not None and p.transform is not None and not self.panel.busy
        some = there and len(self.ui.after_nodes.checkedNodes()) > 0
        self.ui.apply_button.setEnabled(some)
        self.ui.harden_button.setEnabled(some)
        self.ui.invert_button.setEnabled(there)
        self.ui.save_button.setEnabled(there)

    def _carry_over(self, harden: bool) -> None:
        from .apply import apply_transform

        nodes = list(self.ui.after_nodes.checkedNodes())
        names = ", ".join(node.GetName() for node in nodes)
        self._try(
            lambda: apply_transform(self.panel.parameters.transform, nodes, harden=harden),
            f"{'Hardened' if harden else 'Applied to'} {names}.",
        )

    def _invert(self) -> None:
        from .apply import inverted

        p = self.panel.parameters
        self._try(
            lambda: inverted(p.transform),
            f"Made {p.transform.GetName()} inverse, which takes nodes of the fixed volume to the moving one.",
        )

    def _save(self) -> None:
        from .apply import save_transform

        transform = self.panel.parameters.transform
        name = re.sub(r'[\\/:*?"<>|]+', "_", transform.GetName())  # a name of a node may hold what no file's may
        file = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), "Save the transform", f"{name}.h5", FILES)
        if file:
            self._try(lambda: save_transform(transform, file), f"Saved {transform.GetName()}.")

    def _try(self, action: Callable[[], Any], done: str) -> None:
        from RegMambaLib.errors import RegMambaError

        try:
            action()
        except (RegMambaError, OSError) as error:
            self.panel.say_problem(str(error))
        else:
            self.panel.say(done)


class BatchSection:
    """The chosen moving volumes one after the other, into one table."""

    def __init__(self, ui: Any, panel: Any) -> None:
        self.ui, self.panel = ui, panel
        self._waiting: list[Any] = []
        self._total = 0
        self._done = 0
        self._failures: list[str] = []
        self._moving: Any = None
        self._table: Any = None
        ui.batch_volumes.connect("checkedNodesChanged()", self.refresh)
        ui.batch_button.connect("clicked()", self.start)

    @property
    def going(self) -> bool:
        """Whether a batch runs."""
        return self._total > 0

    def refresh(self) -> None:
        """Enable the button, or say why not."""
        volumes = self.ui.batch_volumes.checkedNodes()
        p = self.panel.parameters
        if p is None:
            return
        reason = "Choose the moving volumes of the batch." if not volumes else None
        reason = reason or ("Choose the fixed volume." if p.fixed is None else None)
        self.ui.batch_button.setEnabled(reason is None and not self.panel.busy)
        self.ui.batch_button.setToolTip(reason or "Register the chosen volumes one after the other.")

    def prefix(self) -> str:
        """Where the batch is, before the progress of its present run."""
        return f"Volume {self._done + len(self._failures) + 1} of {self._total}. " if self.going else ""

    def start(self) -> None:
        """Begin with the first volume."""
        p = self.panel.parameters
        volumes = [node for node in self.ui.batch_volumes.checkedNodes() if node.GetID() != p.fixed.GetID()]
        if not volumes:
            self.panel.say_problem("The fixed volume cannot be registered to itself; choose other volumes.")
            return
        p.moving = p.moving or volumes[0]
        if p.moving.GetID() == p.fixed.GetID():
            p.moving = volumes[0]
        p.moving_labels = p.moving_labels or find_companion(p.moving, LABEL_WORDS)
        problem = next(filter(None, (find_problem(p, volume) for volume in volumes)), None)
        if problem is not None:
            self.panel.say_problem(problem)
            return
        if not self.panel.ready():
            return
        self._waiting, self._total = volumes, len(volumes)
        self._done, self._failures, self._table = 0, [], None
        self._next()

    def stop(self) -> None:
        """No further volume."""
        self._waiting, self._total = [], 0

    def _next(self) -> None:
        moving = self._moving = self._waiting.pop(0)
        p = self.panel.parameters
        wanted = {name: NEW if getattr(p, f"want_{name}") else None for name in OPTIONAL_OUTPUTS}
        if inputs_of(p, moving).moving_labels is None:
            wanted["labels"] = None
        table, more = self._table or NEW, self._table is not None
        self.panel.start(moving, JobOutputs(table=table, mode=self.panel.mode(), append=more, **wanted), self._one_done)

    def failed(self, kind: str, message: str) -> None:
        """The present volume cannot be registered: note it and go on, unless the next would fail of the same."""
        self._failures.append(f"{self._moving.GetName()}: {message}")
        if kind == "missing":
            self._waiting = []
        self._go_on()

    def _one_done(self, _report: dict[str, Any]) -> None:
        self._done += 1
        self._table = self.panel.logic.job.nodes["table"]
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting:
            self._next()
            return
        total = self._total
        self.stop()
        if self._table is not None:
            self.panel.parameters.table = self._table
        numbers = "; their numbers are in the table" if self._done else ""
        if not self._failures:
            self.panel.settle(f"Done: {total} volumes registered{numbers}.")
            return
        self.panel.settle()
        self.panel.say_problem(
            f"{self._done} of {total} volumes registered{numbers}. Not registered: {' '.join(self._failures)}"
        )
