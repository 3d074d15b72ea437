"""A registration of nodes: out to the worker, and back into nodes when it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer

from RegMambaLib.errors import InputError, RegMambaError

from .bridge import export_labels, export_mask, export_volume, set_displacement, transform_to_sitk
from .nodes import COMPOSITE, NEW, JobInputs, JobOutputs, check, nodes_of
from .outputs import copy_display, fill_chart, fill_table, output_node, put_beside, set_labels, set_volume
from .segments import Label, LabelImage
from .worker_client import Event, WorkerClient, make_temporary, remove_temporary

Progress = Callable[[str, float, float, "float | None"], None]


class RegistrationError(RegMambaError):
    """A registration that failed; `kind` is input, memory, missing or crash."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class RegistrationJob:
    """One registration at a time through a client; nodes appear when it is done, all of them or none.

    Attributes:
        client: the worker's client, shared by all jobs of a module.
        scene: the MRML scene.
        temporary: folder for what goes to the worker and back; None is the system's.
        report: of the last run that was done: seconds, folding, "before" and "after" of the labels, notes.
        nodes: the nodes of that run by the names of `JobOutputs`.
    """

    client: WorkerClient
    scene: Any
    temporary: str | None = None
    report: dict[str, Any] | None = None
    nodes: dict[str, Any] = field(default_factory=dict)
    error: RegistrationError | None = None
    running: bool = False

    def __post_init__(self) -> None:
        self._request = -1
        self._folder: Path | None = None
        self._notes: list[str] = []
        self._labels: list[Label] = []

    def start(
        self,
        inputs: JobInputs,
        settings: dict[str, Any],
        outputs: JobOutputs | None = None,
        on_progress: Progress | None = None,
        on_done: Callable[[dict[str, Any]], None] | None = None,
        on_error: Callable[[str, str], None] | None = None,
    ) -> None:
        """Export the inputs and send them; the callbacks come from `poll`, or at once if an input cannot be used.

        Args:
            settings: of the library's `Settings`, as plain dict; `outputs` decides on its `uncertainty`.
            on_progress: stage, share of the stage, share of everything, seconds left or None.
            on_done: the report.
            on_error: kind and message.

        Raises:
            RuntimeError: a run is going on.
        """
        if self.running:
            raise RuntimeError("A registration is running; cancel it or wait for it.")
        self._inputs, self._outputs = inputs, outputs or JobOutputs()
        self._on_progress, self._on_done, self._on_error = on_progress, on_done, on_error
        self.report, self.error, self.nodes = None, None, {}
        self._notes, self._labels = [], []
        try:
            check(inputs, self._outputs)
            self._folder = make_temporary(self.temporary)
            request = self._export(self._folder)
            wanted = {**settings, "uncertainty": self._outputs.uncertainty is not None}
            request |= {"command": "register", "settings": wanted, "mode": self._outputs.mode}
            request |= {"output": "result", "temporary": str(self._folder)}
        except RegMambaError as error:
            self._fail("input", str(error))
            return
        except MemoryError:
            self._fail(
                "memory", "There is not enough memory to pass the volumes on; crop them, or close other programs."
            )
            return
        except (OSError, RuntimeError) as error:  # SimpleITK's errors are RuntimeError
            self._fail(
                "crash", f"The volumes cannot be passed on ({error}); make room on the disk for temporary files."
            )
            return
        except Exception as error:
            self._fail_unexpectedly(error)
            return
        self.running = True
        try:
            self._request = self.client.submit(request)
        except OSError as error:
            self._fail("missing", f"The registration process cannot be started ({error}); install 3D Slicer again.")

    def poll(self) -> bool:
        """Handle what the worker said since; whether the run goes on."""
        for event in self.client.poll():
            if self.running and event.get("id") == self._request:
                self._handle(event)
        return self.running

    def cancel(self) -> None:
        """Stop at once: no process, no temporary file and no node is left."""
        if not self.running:
            return
        self.running = False
        self.client.cancel()
        self._clean()

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Poll until the run is over; for scripts and tests, not for a panel.

        Returns:
            The report.

        Raises:
            RegistrationError: it failed, was cancelled, or took longer than `timeout` seconds (it is cancelled then).
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll():
            if end is not None and time.monotonic() > end:
                self.cancel()
                raise RegistrationError("crash", f"The registration took longer than {timeout:g} s and was cancelled.")
            time.sleep(0.02)
        if self.error is not None:
            raise self.error
        if self.report is None:
            raise RegistrationError("crash", "The registration was cancelled; nothing was changed.")
        return self.report

    def _handle(self, event: Event) -> None:
        if event["event"] == "progress":
            if self._on_progress is not None:
                self._on_progress(event["stage"], event["share"], event["total"], event["eta"])
        elif event["event"] == "error":
            self._fail(event["kind"], event["message"])
        elif event["event"] == "done":
            self._finish(event)

    def _finish(self, event: Event) -> None:
        report = event["report"]
        report["notes"] = [*self._notes, *report.get("notes", [])]
        folder = self._folder
        nodes: dict[str, Any] = {}
        try:
            if self._gone():
                raise InputError("The scene was closed or an input was removed meanwhile; register again.")
            # Everything is read before the first node is touched.
            files = {name: str(folder / path) for name, path in event["files"].items() if self._wants(name)}
            images = {name: sitk.ReadImage(path) for name, path in files.items()}
            self._deliver(report, images, nodes)
        except RegMambaError as error:
            self._fail("input", str(error))
            return
        except Exception as error:
            self._take_back(nodes)
            if isinstance(error, (RuntimeError, OSError, MemoryError)):
                self._fail("crash", f"The result cannot be read ({error}); check the disk space for temporary files.")
            else:
                self._fail_unexpectedly(error)
            return
        self.running = False
        self.report, self.nodes = report, nodes
        self._clean()
        if self._on_done is not None:
            self._on_done(report)

    def _fail(self, kind: str, message: str) -> None:
        self.running = False
        self.error = RegistrationError(kind, message)
        self._clean()
        if self._on_error is not None:
            self._on_error(kind, message)

    def _fail_unexpectedly(self, error: Exception) -> None:
        """A defect of ours: the whole of it goes to Slicer's log, and the panel comes to rest."""
        logging.exception("RegMamba")
        self._fail(
            "crash", f"RegMamba stopped with an internal error ({error}); report it with the text of Slicer's log."
        )

    def _take_back(self, nodes: dict[str, Any]) -> None:
        """Remove the nodes that were made for a result which could not be delivered."""
        given = nodes_of(self._outputs).values()
        for node in nodes.values():
            if any(node is one for one in given):
                continue
            shows = node.IsA("vtkMRMLDisplayableNode")
            for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())] if shows else []:
                self.scene.RemoveNode(display)
            self.scene.RemoveNode(node)

    def _clean(self) -> None:
        remove_temporary(self._folder)
        self._folder = None

    def _wants(self, file: str) -> bool:
        return getattr(self._outputs, "transform" if file == "displacement" else file) is not None

    def _gone(self) -> bool:
        return any(
            self.scene.GetNodeByID(node.GetID() or "") is not node
            for job in (self._inputs, self._outputs)
            for node in nodes_of(job).values()
        )

    def _export(self, folder: Path) -> dict[str, Any]:
        """Write the inputs into a folder; the request's paths, relative to it."""
        nodes = self._inputs
        # Moving data may still be under the result of the run before, which this run replaces.
        old = None if isinstance(self._outputs.transform, str) else self._outputs.transform
        images: dict[str, sitk.Image] = {
            name: export_volume(getattr(nodes, name), ignore=old) for name in ("fixed", "moving")
        }
        numbering: dict[str, int] = {}
        found: dict[str, LabelImage] = {}
        # A label map's numbers are given, so it comes first; segmentations follow it by name.
        order = sorted(("fixed", "moving"), key=lambda side: _is_segmentation(getattr(nodes, f"{side}_labels")))
        for side in order:
            node = getattr(nodes, f"{side}_labels")
            if node is not None:
                found[side] = export_labels(node, images[side], numbering, ignore=old)
                images[f"{side}_labels"] = found[side].image
                numbering |= {name: value for name, value in found[side].numbering.items() if name not in numbering}
                if found[side].overlap:
                    self._notes.append(f"Segments of {node.GetName()} overlap; where they do, the later one is used.")
            mask = getattr(nodes, f"{side}_mask")
            if mask is not None:
                images[f"{side}_mask"] = export_mask(mask, images[side], ignore=old)
        self._labels = found["moving"].labels if "moving" in found else []
        request = {name: f"{name}.nrrd" for name in images}
        for name, image in images.items():
            sitk.WriteImage(image, str(folder / request[name]), useCompression=False)
        initial = self._initial()
        if initial is not None:
            request["initial"] = "initial.tfm"
            sitk.WriteTransform(initial, str(folder / request["initial"]))
        return request

    def _initial(self) -> sitk.Transform | None:
        node, moving = self._inputs.initial_transform, self._inputs.moving
        if node is None:
            return None
        parent = moving.GetParentTransformNode()
        if parent is not None and (parent is node or parent.IsTransformNodeMyParent(node)):
            self._notes.append(f"{moving.GetName()} is under the initial transform already; it is counted once.")
            return None
        transform = transform_to_sitk(node)
        if not transform.IsLinear():
            raise InputError(f"The initial transform {node.GetName()} is not linear; choose a linear one, or none.")
        return transform

    def _deliver(self, report: dict[str, Any], images: dict[str, sitk.Image], nodes: dict[str, Any]) -> None:
        """Put the result into nodes, which are entered in `nodes` as they are made."""
        inputs, wanted = self._inputs, self._outputs
        fixed, moving = inputs.fixed.GetName(), inputs.moving.GetName()

        def node(name: str, class_name: str, default: str) -> Any:
            given = getattr(wanted, name)
            nodes[name] = output_node(self.scene, NEW if given is None else given, class_name, default)
            if isinstance(given, str):
                put_beside(nodes[name], inputs.moving if name == "transform" else inputs.fixed)
            return nodes[name]

        if "displacement" in images:
            transform = node("transform", "vtkMRMLTransformNode", f"{moving} to {fixed}")
            transform.SetAndObserveTransformNodeID(None)
            composite = report["mode"] == COMPOSITE
            set_displacement(transform, images["displacement"], report["affine_lps"] if composite else None)
            roles = slicer.vtkMRMLTransformNode
            transform.SetNodeReferenceID(roles.GetFixedNodeReferenceRole(), inputs.fixed.GetID())
            transform.SetNodeReferenceID(roles.GetMovingNodeReferenceRole(), inputs.moving.GetID())
        for name, default in (
            ("volume", f"{moving} registered"),
            ("jacobian", f"{moving} Jacobian"),
            ("uncertainty", f"{moving} uncertainty"),
        ):
            if name in images:
                set_volume(node(name, "vtkMRMLScalarVolumeNode", default), images[name])
        if "volume" in nodes:
            copy_display(nodes["volume"], inputs.moving)
        if "labels" in images:
            source = inputs.moving_labels
            kind = source.GetClassName() if isinstance(wanted.labels, str) else ""
            reference = inputs.fixed if inputs.fixed.GetParentTransformNode() is None else None
            target = node("labels", kind, f"{source.GetName()} registered")
            set_labels(target, images["labels"], self._labels, source, reference)
        if wanted.table is not None or (wanted.chart is not None and "after" in report):
            table = node("table", "vtkMRMLTableNode", f"{moving} to {fixed} numbers")
            fill_table(table, report, self._labels, moving, append=wanted.append)
            if wanted.chart is not None and "after" in report:
                fill_chart(node("chart", "vtkMRMLPlotChartNode", f"{moving} to {fixed} Dice"), table)


def _is_segmentation(node: Any) -> bool:
    return node is not None and bool(node.IsA("vtkMRMLSegmentationNode"))
