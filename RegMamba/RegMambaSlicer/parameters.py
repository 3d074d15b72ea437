"""What the panel remembers: one typed parameter node, saved with the scene, and the presets that fill its settings.

The values of the library's `Settings` live in one JSON text, so that no name, range or default of theirs is
declared here again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import slicer
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTransformNode,
)
from slicer.parameterNodeWrapper import parameterNodeWrapper

if TYPE_CHECKING:
    from RegMambaLib.registration.settings import Settings

# Slicer's wrapper reads typing.Union and wants the None in it.
Labels = Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, None]  # noqa: UP007

CUSTOM_WEIGHTS = "custom weights file"


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
    composite: bool = False
    want_volume: bool = True
    want_labels: bool = True
    want_jacobian: bool = False
    want_uncertainty: bool = False
    want_table: bool = True


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


def find_problem(parameters: Any) -> str | None:
    """Why these inputs cannot be registered, in one sentence with the remedy; None if they can."""
    for name in ("fixed", "moving"):
        node = getattr(parameters, name)
        if node is None:
            return f"Choose the {name} volume."
        image = node.GetImageData()
        if image is None:
            return f"The {name} volume {node.GetName()} holds no image; load it again or choose another one."
        size, components = image.GetDimensions(), image.GetNumberOfScalarComponents()
        if components != 1:
            return f"The {name} volume {node.GetName()} has {components} components per voxel; choose a scalar volume."
        if min(size) < 4:
            shown = " x ".join(map(str, size))
            return f"The {name} volume {node.GetName()} has {shown} voxels; choose one with at least 4 along each axis."
    if parameters.fixed.GetID() == parameters.moving.GetID():
        return "Fixed and moving are the same volume; choose two different ones."
    return _find_output_problem(parameters) or _find_settings_problem(parameters)


def _find_output_problem(parameters: Any) -> str | None:
    inputs = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "initial_transform")
    given = {node.GetID() for node in (getattr(parameters, name) for name in inputs) if node is not None}
    for name in ("transform", "volume", "labels", "jacobian", "uncertainty"):
        node = getattr(parameters, name)
        if node is not None and node.GetID() in given:
            return f"The output {name} {node.GetName()} is also an input; choose another node or leave it as new."
    return None


def _find_settings_problem(parameters: Any) -> str | None:
    try:
        settings = read_settings(parameters)
    except Exception as error:  # bad JSON or values of another version; the text goes to the user
        return f"The settings in this scene cannot be used ({error}); choose a preset."
    if settings.guide and (parameters.fixed_labels is None or parameters.moving_labels is None):
        return "Label guidance needs fixed and moving labels; choose both or switch it off."
    if parameters.want_uncertainty and not settings.samples:
        return "The uncertainty map needs samples; set them above 0 under Advanced, or switch the map off."
    return None
