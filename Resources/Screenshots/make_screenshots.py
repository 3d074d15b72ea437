"""Make the README's pictures without Slicer: `python Resources/Screenshots/make_screenshots.py LABELS_FOLDER`.

LABELS_FOLDER holds SynthSeg's label maps (training_seg_NN.nii.gz, Apache-2.0); two of them are painted as T1-weighted
heads and registered by clicks in the panel. The panel is the real .ui on PySide6's widgets with the test bench's
doubles of the ctk and qMRML ones; the slice views are Slicer's own slice logic and displayable managers (slicer-core),
rendered off screen.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path(__file__).resolve().parent
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]

import slicer_bench  # noqa: E402

BENCH = slicer_bench.install(Path(tempfile.mkdtemp(prefix="RegMambaBench-")))

import SimpleITK as sitk  # noqa: E402
import slicer  # noqa: E402
from offscreen import SliceView, chart_picture, row, space_picture, table_picture  # noqa: E402
from RegMambaSlicer.outputs import set_volume  # noqa: E402
from slicer_bench.hands import choose, click  # noqa: E402

# Brightness of FreeSurfer's labels in a T1-weighted image; what is not named is soft tissue.
T1 = {0: 0.0, 2: 0.9, 3: 0.55, 4: 0.15, 5: 0.15, 7: 0.85, 8: 0.55, 10: 0.68, 11: 0.6, 12: 0.66, 13: 0.74, 14: 0.15}
T1 |= {15: 0.15, 16: 0.82, 17: 0.56, 18: 0.55, 24: 0.12, 26: 0.6, 28: 0.75, 30: 0.5, 31: 0.4, 85: 0.7}
RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58, 28: 60}
T1 |= {right: T1[left] for left, right in RIGHT.items()}
STRUCTURES = {4: "ventricle", 10: "thalamus", 12: "putamen", 17: "hippocampus"}
COLORS = ((0.3, 0.7, 1.0), (0.95, 0.6, 0.2), (0.4, 0.85, 0.45), (0.9, 0.35, 0.6))


def load_subject(file: Path, name: str, seed: int) -> Any:
    """Nodes of a painted head and of its structures as a segmentation, 1.5 mm."""
    labels = sitk.ReadImage(str(file))
    size = [int(n / 1.5) for n in labels.GetSize()]
    labels = sitk.Resample(
        labels, size, sitk.Transform(), sitk.sitkNearestNeighbor, labels.GetOrigin(), (1.5,) * 3, labels.GetDirection()
    )
    array = sitk.GetArrayFromImage(labels).astype(int)
    rng = np.random.default_rng(seed)
    painted = np.vectorize(lambda label: T1.get(label, 0.32), otypes=[np.float32])(np.arange(array.max() + 1))[array]
    head = sitk.GetImageFromArray(painted + rng.normal(0, 0.03, painted.shape).astype(np.float32))
    head.CopyInformation(labels)
    head = sitk.Cast(sitk.Clamp(1000 * sitk.DiscreteGaussian(head, 0.7), sitk.sitkFloat32, 0, 2000), sitk.sitkInt16)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    set_volume(volume, head)
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 1000)
    return volume, segment(
        np.where(np.isin(array, [*STRUCTURES, *(RIGHT[value] for value in STRUCTURES)]), array, 0),
        labels,
        f"{name} structures",
    )


def segment(array: np.ndarray, grid: sitk.Image, name: str) -> Any:
    """A segmentation of STRUCTURES on both sides."""
    from RegMambaSlicer.segments import Label, fill_segmentation

    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.CopyInformation(grid)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    made = [
        Label(value=value, name=f"{side} {text}", color=color)
        for (left, text), color in zip(STRUCTURES.items(), COLORS, strict=True)
        for side, value in (("Left", left), ("Right", RIGHT[left]))
    ]
    fill_segmentation(node, image, made)
    return node


def save_row(name: str, pictures: list[np.ndarray], titles: list[str]) -> None:
    """Pictures side by side, each with its title."""
    row(pictures, titles).save(str(OUTPUT / name))


def save_panel(widget: Any, name: str, height: int, opened: tuple[str, ...]) -> None:
    """The panel with these sections open and the others closed."""
    ui = widget.panel.ui
    for key, child in vars(ui).items():
        if key.endswith("_section"):
            child.setCollapsed(key not in opened)
    widget.parent.resize(460, height)
    widget.parent.show()
    BENCH.wait(lambda: False, 0.3)
    widget.parent.grab().save(str(OUTPUT / name))


def main(folder: Path) -> None:
    """Register by clicks, and take the pictures on the way."""
    import RegMamba

    fixed, fixed_labels = load_subject(folder / "training_seg_01.nii.gz", "Patient A", 1)
    moving, moving_labels = load_subject(folder / "training_seg_03.nii.gz", "Patient B", 2)
    for node in (fixed_labels, moving_labels):
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetVisibility(False)
    views = {"axial": SliceView(BENCH, "Red", "Axial"), "coronal": SliceView(BENCH, "Green", "Coronal")}
    bounds = np.zeros(6)
    fixed.GetRASBounds(bounds)
    middle = {"axial": bounds[4:].mean() + 12, "coronal": bounds[2:4].mean() + 4}

    def take() -> list[np.ndarray]:
        return [view.picture(middle[name]) for name, view in views.items()]

    widget = RegMamba.RegMambaWidget()
    ui = widget.panel.ui
    for selector, name in (
        (ui.fixed_selector, "Patient A"),
        (ui.moving_selector, "Patient B"),
        (ui.fixed_labels_selector, "Patient A structures"),
        (ui.moving_labels_selector, "Patient B structures"),
    ):
        choose(selector, name)
    ui.want_jacobian_check.setChecked(True)
    slicer.util.setSliceViewerLayers(background=fixed, foreground=moving, foregroundOpacity=0.5)
    before = take()
    click(ui.register_button)
    BENCH.wait(lambda: "Refinement" in ui.status_label.text() and "left" in ui.status_label.text(), 300)
    save_panel(widget, "panel.png", 640, ("inputs_section", "optional_section", "settings_section"))
    BENCH.wait(lambda: not widget.panel.busy, 900)
    print(ui.status_label.text(), "\n" + ui.numbers_label.text())
    save_panel(widget, "panel_result.png", 800, ("outputs_section", "look_section", "numbers_section", "after_section"))
    moved_labels = widget.panel.parameters.labels
    moved_labels.GetDisplayNode().SetVisibility(False)
    after = take()
    save_row("overlay.png", [before[0], after[0], before[1], after[1]], ["before", "after", "before", "after"])

    choose(ui.transform_mode, "grid")
    slicer.util.setSliceViewerLayers(foregroundOpacity=0.0)
    grid = take()
    click(ui.jacobian_button)
    choose(ui.transform_mode, "off")
    change = take()
    click(ui.jacobian_button)
    save_row("deformation.png", [grid[0], change[0], grid[1], change[1]], ["grid", "volume change"] * 2)
    click(ui.in_slices_check)
    click(ui.in_3d_check)
    pictures = []
    for mode in ("grid", "glyphs", "contours"):
        choose(ui.transform_mode, mode)
        pictures.append(space_picture(BENCH))
    save_row("deformation_3d.png", pictures, ["grid", "glyphs", "contours"])
    choose(ui.transform_mode, "off")
    nodes = widget.panel.nodes
    save_row("numbers.png", [table_picture(nodes["table"]), chart_picture(nodes["chart"])], ["table", "chart"])

    slicer.util.setSliceViewerLayers(foreground=None)
    pictures = []
    for node in (moving_labels, moved_labels):
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetVisibility(True)
        pictures.append(take())
        node.GetDisplayNode().SetVisibility(False)
    (a, b), (c, d) = pictures
    save_row("segmentation.png", [a, c, b, d], ["moving segmentation", "carried over"] * 2)
    click(ui.checkerboard_button)
    save_row("checkerboard.png", take(), ["checkerboard, fixed and moved"] * 2)
    widget.cleanup()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
