"""The module's self-test: a pair made here is registered through the logic, and the panel's checks answer."""

from __future__ import annotations

from typing import Any

import slicer

from . import dependencies
from .parameters import find_problem, read_settings, write_settings

SIZE, SPACING = 40, 4.0
SHIFT = (6.0, -5.0, 4.0)
QUICK = {"weights": "none", "affine": "rigid", "iterations": [20, 10], "spacing": 4.0, "device": "cpu"}


def run_all(test: Any, make_logic: Any) -> None:
    """All checks, for a `ScriptedLoadableModuleTest` with a cleared scene."""
    fixed, fixed_labels = make_head("fixed", (0.0, 0.0, 0.0))
    moving, moving_labels = make_head("moving", SHIFT)
    logic = make_logic()
    _check_parameters(test, logic, fixed, moving)
    missing = dependencies.missing()
    if missing:
        test.delayDisplay(f"Not registered: {', '.join(missing)} not installed; press Register in the panel once.")
        return
    try:
        _check_registration(test, logic, fixed, moving, fixed_labels, moving_labels)
    finally:
        logic.close()
    test.delayDisplay("RegMamba: all passed.")


def _check_parameters(test: Any, logic: Any, fixed: Any, moving: Any) -> None:
    parameters = logic.getParameterNode()
    test.assertIn("fixed volume", find_problem(parameters))
    parameters.fixed = fixed
    parameters.moving = fixed
    test.assertIn("same volume", find_problem(parameters))
    parameters.moving = moving
    test.assertIsNone(find_problem(parameters))
    settings = read_settings(parameters)
    write_settings(parameters, settings)
    test.assertEqual(read_settings(logic.getParameterNode()), settings)


def _check_registration(test: Any, logic: Any, fixed: Any, moving: Any, fixed_labels: Any, moving_labels: Any) -> None:
    import numpy as np

    test.delayDisplay("Registering a pair of made heads.")
    nodes, report = logic.process(
        fixed, moving, fixedLabels=fixed_labels, movingLabels=moving_labels, settings=QUICK, waitForCompletion=True
    )
    test.assertGreater(report["after"]["dice"], 0.9)
    test.assertGreater(report["after"]["dice"], report["before"]["dice"])
    there = slicer.util.arrayFromVolume(fixed_labels) > 0
    moved = slicer.util.arrayFromVolume(nodes["labels"]) > 0
    test.assertEqual(there.shape, moved.shape)
    test.assertGreater(2 * np.sum(there & moved) / (there.sum() + moved.sum()), 0.9)
    point = np.zeros(3)
    # Moving data move by the shift's opposite, in RAS mm, when they are put under the transform.
    moving.TransformPointToWorld([0.0, 0.0, 0.0], point)
    test.assertLess(np.abs(point).max(), 1e-6)
    moving.SetAndObserveTransformNodeID(nodes["transform"].GetID())
    moving.TransformPointToWorld(list(SHIFT), point)
    test.assertLess(np.abs(point).max(), 2.0)
    moving.SetAndObserveTransformNodeID(None)


def make_head(name: str, center: tuple[float, float, float]) -> tuple[Any, Any]:
    """A volume node with a made head at `center` (RAS mm), and a label map node of a structure within."""
    import numpy as np

    first = -(SIZE - 1) / 2 * SPACING
    axis = first + SPACING * np.arange(SIZE)
    k, j, i = np.meshgrid(axis, axis, axis, indexing="ij")
    x, y, z = i - center[0], j - center[1], k - center[2]
    radius = np.sqrt((x / 55) ** 2 + (y / 66) ** 2 + (z / 50) ** 2)
    core = np.sqrt(((x - 12) / 18) ** 2 + ((y - 15) / 26) ** 2 + ((z + 5) / 20) ** 2)
    texture = 0.15 * np.sin(x / 7) * np.sin(y / 8 + 1) * np.cos(z / 7.5)
    head = 1 / (1 + np.exp(25 * (radius - 1))) * (0.7 + texture) - 0.4 / (1 + np.exp(12 * (core - 1)))
    noise = np.random.default_rng(len(name)).normal(0, 0.01, head.shape)
    volume = _volume("vtkMRMLScalarVolumeNode", name, (1000 * np.clip(head + noise, 0, 2)).astype(np.int16))
    return volume, _volume("vtkMRMLLabelMapVolumeNode", f"{name} labels", (core < 1).astype(np.uint8))


def _volume(class_name: str, name: str, array: Any) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetSpacing(SPACING, SPACING, SPACING)
    node.SetOrigin(*[-(SIZE - 1) / 2 * SPACING] * 3)
    node.CreateDefaultDisplayNodes()
    return node
