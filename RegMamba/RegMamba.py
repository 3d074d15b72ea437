"""RegMamba: deformable registration of two volumes, in 3D Slicer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

# Installed, RegMambaLib lies beside this file; in a source checkout, beside this file's folder.
if importlib.util.find_spec("RegMambaLib") is None and (Path(__file__).resolve().parents[1] / "RegMambaLib").is_dir():
    sys.path.append(str(Path(__file__).resolve().parents[1]))


class RegMamba(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "RegMamba"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        parent.dependencies = []
        parent.contributors = ["The RegMamba contributors"]
        parent.helpText = _(
            "Brings a moving volume onto a fixed one: linearly, by a network of selective state spaces, and by "
            "refinement on the pair itself. Choose two volumes and press Register; the result is a transform, and "
            "segmentations, models and points follow it. Sample data: RegMamba in the module Sample Data."
        )
        parent.acknowledgementText = _(
            "Built on PyTorch, numba and SimpleITK. The network belongs to the published line of "
            "work on selective state spaces for registration; see the README for references."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """One entry in Sample Data that loads the tutorial's pair: Slicer's own MRBrainTumor1 and MRBrainTumor2."""
    import SampleData

    logic = SampleData.SampleDataLogic()
    pair = [logic.sourceForSampleName(name) for name in ("MRBrainTumor1", "MRBrainTumor2")]
    if None in pair:
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="RegMamba",
        sampleName="RegMambaBrainTumorPair",
        thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "RegMamba.png"),
        uris=[source.uris[0] for source in pair],
        fileNames=[source.fileNames[0] for source in pair],
        nodeNames=[source.nodeNames[0] for source in pair],
        checksums=[source.checksums[0] for source in pair],
    )


class RegMambaWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Loads the .ui, keeps the panel and the parameter node together, and follows the scene."""

    def __init__(self, parent=None):
        self.logic = None
        self.panel = None
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from RegMambaSlicer.panel import Panel

        widget = slicer.util.loadUI(self.resourcePath("UI/RegMamba.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = RegMambaLogic()
        self.panel = Panel(slicer.util.childWidgetVariables(widget), self.logic, self.resourcePath("Presets"))
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.EndCloseEvent, self._onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.EndImportEvent, self._onSceneEndClose)
        self._connectParameterNode()

    def cleanup(self):
        self.removeObservers()
        if self.panel is not None:
            self.panel.close()

    def enter(self):
        self._connectParameterNode()

    def onReload(self):
        """Slicer's Reload reads this file anew; with it goes what it imports of the module and the library."""
        for name in list(sys.modules):
            if name.partition(".")[0] in ("RegMambaSlicer", "RegMambaLib"):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def exit(self):
        """The panel keeps following a run when another module is shown."""

    def _connectParameterNode(self):
        parameters = self.logic.getParameterNode()
        shown = self.panel.parameters
        if shown is not None and shown.parameterNode is parameters.parameterNode:
            return
        self.removeObservers(self._onModified)
        self.panel.show(parameters)
        self.addObserver(parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self._onModified)

    def _onModified(self, caller=None, event=None):
        self.panel.refresh()

    def _onSceneStartClose(self, caller, event):
        self.panel.leave_scene()

    def _onSceneEndClose(self, caller, event):
        self.panel.show(None)
        self._connectParameterNode()


class RegMambaLogic(ScriptedLoadableModuleLogic):
    """Registration from a script, without the panel."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._job = None

    def getParameterNode(self):
        from RegMambaSlicer.parameters import Parameters

        return Parameters(super().getParameterNode())

    @property
    def job(self):
        """The registration job; its worker process starts with the first registration and stays."""
        if self._job is None:
            from RegMambaSlicer.logic import RegistrationJob
            from RegMambaSlicer.worker_client import WorkerClient

            self._job = RegistrationJob(WorkerClient(), slicer.mrmlScene, slicer.app.temporaryPath)
        return self._job

    @property
    def running(self):
        """Whether a registration is running."""
        return self._job is not None and self._job.running

    def close(self):
        """Stop what runs and end the worker process; the next registration starts a new one."""
        if self._job is not None:
            self._job.cancel()
            self._job.client.shutdown()

    def process(
        self,
        fixed,
        moving,
        *,
        fixedLabels=None,
        movingLabels=None,
        fixedMask=None,
        movingMask=None,
        initialTransform=None,
        settings=None,
        outputs=None,
        onProgress=None,
        onDone=None,
        onError=None,
        waitForCompletion=True,
    ):
        """Register `moving` to `fixed`, volumes in the scene.

        settings: names and values of RegMambaLib's `Settings`; its defaults for the rest.
        outputs: `RegMambaSlicer.nodes.JobOutputs`; by default a new transform and moved volume, and moved labels
            where labels are given.
        Keep the logic for further registrations: its worker process stays, and ends with `close()` or with the logic.
        Waits and returns (nodes by name, report), and raises an error with the message if it fails; or, with
        waitForCompletion=False, returns at once, and a timer that calls `job.poll()` brings
        onProgress(stage, share, total, secondsLeft), onDone(report) and onError(kind, message).
        """
        from RegMambaSlicer.nodes import NEW, JobInputs, JobOutputs

        if outputs is None:
            outputs = JobOutputs(transform=NEW, volume=NEW, labels=NEW if movingLabels else None)
        self.job.start(
            JobInputs(fixed, moving, fixedLabels, movingLabels, fixedMask, movingMask, initialTransform),
            settings or {},
            outputs,
            on_progress=onProgress,
            on_done=onDone,
            on_error=onError,
        )
        if not waitForCompletion:
            return None
        report = self.job.wait()
        return self.job.nodes, report


class RegMambaTest(ScriptedLoadableModuleTest):
    """The module's self-test; the same on the test bench and in Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        from RegMambaSlicer.panel_selftest import run_all

        run_all(self, RegMambaLogic)
