"""What the panel remembers: one typed parameter node, saved with the scene, and the presets that fill its settings.

The values of the library's `Settings` live in one JSON text, so that no name, range or default of theirs is
declared here again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import slicer
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
    vtkMRMLTransformNode,
)
from slicer.parameterNodeWrapper import parameterNodeWrapper

from RegMambaLib.errors import InputError

from .nodes import (
    INPUTS,
    LABEL_WORDS,
    MASK_WORDS,
    OPTIONAL_OUTPUTS,
    JobInputs,
    JobOutputs,
    check,
    find_companion,
)

if TYPE_CHECKING:
    from RegMambaLib.registration.settings import Settings

# Slicer's wrapper reads typing.Union and wants the None in it.
Labels = Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, None]  # noqa: UP007

CUSTOM_WEIGHTS = "custom weights file"
DEFAULT_PRESET = "brain"


@parameterNodeWrapper
class Parameters:
    """Nodes, choices of outputs, and the settings as JSON ("" until they are first shown)."""

    fixed: vtkMRMLScalarVolumeNode
    moving: vtkMRMLScalarVolumeNode
    fixed_labels: Labels
    moving_labels: Labels
    fixed_mask: Labels
    moving_mask: Labels
    initial_transform: vtkMRMLTransformNode

    preset: str
    settings: str

    transform: vtkMRMLTransformNode
    volume: vtkMRMLScalarVolumeNode
    labels: Labels
    jacobian: vtkMRMLScalarVolumeNode
    uncertainty: vtkMRMLScalarVolumeNode
    table: vtkMRMLTableNode
    chart: vtkMRMLPlotChartNode
    composite: bool = False
    want_volume: bool = True
    want_labels: bool = True
    want_jacobian: bool = False
    want_uncertainty: bool = False
    want_table: bool = True


@contextmanager
def at_once(parameters: Parameters) -> Iterator[None]:
    """Change several parameters within the block; who follows them is told once, after it."""
    was_modifying = parameters.StartModify()
    try:
        yield
    finally:
        parameters.EndModify(was_modifying)


def read_settings(parameters: Parameters) -> Settings:
    """The settings of a parameter node.

    Raises:
        InputError: the scene holds a setting that this version does not know or allow.
    """
    from RegMambaLib.registration.settings import Settings

    return Settings.from_dict(json.loads(parameters.settings)) if parameters.settings else Settings()


def write_settings(parameters: Parameters, settings: Settings) -> None:
    """Keep the settings in the parameter node, all of them, so that the scene means the same in a later version."""
    text = json.dumps(settings.to_dict())
    if text != parameters.settings:
        parameters.settings = text


def find_presets(*folders: Path) -> dict[str, Path]:
    """Preset files by name, as shown ("refine_only.json" is "refine only"); a later folder wins."""
    return {file.stem.replace("_", " "): file for folder in folders for file in sorted(folder.glob("*.json"))}


def user_presets() -> Path:
    """Folder of the user's own presets, beside Slicer's user settings."""
    return Path(slicer.app.slicerUserSettingsFilePath).parent / "RegMamba" / "Presets"


def save_preset(file: Path, settings: Settings) -> None:
    """Write a preset that `Settings.load`, the command line and this panel read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings.to_dict(), indent=2) + "\n", encoding="utf-8")


def inputs_of(parameters: Any, moving: Any = None) -> JobInputs:
    """The inputs chosen; for another moving volume (of a batch) the labels and mask that are called after it."""
    inputs = JobInputs(*(getattr(parameters, name) for name in INPUTS))
    if moving is not None and moving is not inputs.moving:
        inputs.moving, inputs.initial_transform = moving, None
        inputs.moving_labels = find_companion(moving, LABEL_WORDS)
        inputs.moving_mask = find_companion(moving, MASK_WORDS)
    return inputs


def find_problem(parameters: Any, moving: Any = None) -> str | None:
    """Why these inputs cannot be registered, in one sentence with the remedy; None if they can.

    Args:
        moving: the moving volume, if another than the one chosen.
    """
    inputs = inputs_of(parameters, moving)
    nodes = {} if moving is not None else {name: getattr(parameters, name) for name in ("transform", *OPTIONAL_OUTPUTS)}
    try:
        check(inputs, JobOutputs(**nodes))
    except InputError as error:
        return str(error)
    return _find_settings_problem(parameters, inputs)


def _find_settings_problem(parameters: Any, inputs: JobInputs) -> str | None:
    try:
        settings = read_settings(parameters)
    except Exception as error:  # bad JSON or values of another version; the text goes to the user
        return f"The settings in this scene cannot be used ({error}); choose a preset."
    if settings.guide and (inputs.fixed_labels is None or inputs.moving_labels is None):
        return (
            f"Label guidance needs fixed and moving labels; choose both (in a batch: name the labels of a volume after "
            f"it, such as {inputs.moving.GetName()} labels), or switch it off."
        )
    return None
