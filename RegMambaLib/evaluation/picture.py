"""A picture of a registration: the images, the deformation found and, against a known truth, its error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.transforms import flatten
from ..registration.grid import canonical
from ..spatial.grid import Grid
from ..spatial.itk import displacement_transform, mm_to_voxels
from .known_pair import TISSUES, KnownPair, error_mm

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..registration.result import Registration

TITLES = ("Fixed", "Moving, where it lies", "Moved", "Deformation", "Error")
WIDTH = 2.6
"""Inches of a panel."""
LINES = 8.0
"""Millimetres between the lines of the deformed grid."""
LARGEST_ERROR = 3.0
"""Millimetres at the bright end of the error map."""


@dataclass(frozen=True)
class Cut:
    """A slice of a canonical grid (L, P, S), to be drawn with the patient's front or top up.

    Attributes:
        axis: of the arrays (k, j, i): 0 axial, 1 coronal.
        place: index along it.
    """

    grid: Grid
    axis: int
    place: int

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, mm."""
        width, *heights = np.asarray(self.grid.size) * self.grid.spacing
        return float(width), float(heights[self.axis])

    def of(self, volume: np.ndarray) -> np.ndarray:
        """The slice, first row on top."""
        plane = np.take(volume, self.place, self.axis)
        return plane[::-1] if self.axis else plane

    def positions(self, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a voxel displacement (3, k, j, i) puts the voxels in the slice: mm from the left and the bottom."""
        vertical = 0 if self.axis else 1
        sides = np.asarray(self.grid.spacing)[::-1]
        x = np.arange(self.grid.size[0]) + 0.5 + self.of(displacement[2])
        rows = np.arange(self.grid.shape[vertical]) + 0.5
        y = (rows[::-1] if self.axis else rows)[:, None] + self.of(displacement[vertical])
        height = self.size[1]
        return x * sides[2], y * sides[vertical] if self.axis else height - y * sides[vertical]


def draw(pair: KnownPair, registration: Registration, path: Path) -> None:
    """Write the picture: an axial and a coronal slice of the fixed image's own grid, the patient's left on the right.

    The outline of the fixed image's white matter lies on the moving and the moved image.
    """
    from matplotlib.figure import Figure

    grid = canonical(Grid.of(pair.fixed))  # the same voxels, in the order of L, P, S
    labels = _array(grid.resample(pair.fixed_labels, labels=True))
    moved = _array(grid.resample(pair.moving, registration.transform))
    volumes = (_array(grid.resample(pair.fixed)), _array(grid.resample(pair.moving)), moved, moved)
    bend = displacement_transform(registration.displacement, registration.grid)
    displacement = mm_to_voxels(flatten(bend, grid), grid)
    error = np.full(labels.shape, np.nan)
    error[labels > 0] = error_mm(pair.truth, registration.transform, grid, labels > 0)
    middle = np.argwhere(labels).mean(0).astype(int)
    cuts = [Cut(grid, axis, int(middle[axis])) for axis in (0, 1)]

    heights = [cut.size[1] for cut in cuts]
    scale = WIDTH / cuts[0].size[0]
    figure = Figure((len(TITLES) * WIDTH + 0.7, sum(heights) * scale + 0.4), dpi=100, facecolor="black")
    places = {"left": 0.004, "right": 0.95, "bottom": 0.006, "top": 0.94, "wspace": 0.02, "hspace": 0.02}
    axes = figure.subplots(2, len(TITLES), gridspec_kw={"height_ratios": heights, **places})
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title, color="white", fontsize=12)
    for row, cut in zip(axes, cuts, strict=True):
        for ax, volume in zip(row, volumes, strict=False):
            _show(ax, cut, volume, cmap="gray", vmin=0, vmax=float(np.quantile(volume, 0.999)))
        for ax in row[1:3]:
            _outline(ax, cut, labels == TISSUES["white matter"])
        _grid_lines(row[3], cut, displacement)
        shown = _show(row[4], cut, error, cmap="inferno", vmin=0, vmax=LARGEST_ERROR)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.957, 0.1, 0.009, 0.75)), extend="max")
    bar.ax.tick_params(colors="white", labelsize=10)
    bar.ax.set_title("mm", color="white", fontsize=10)
    figure.savefig(path, facecolor="black")


def _array(image: sitk.Image) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)


def _show(ax: Any, cut: Cut, volume: np.ndarray, **colours: Any) -> Any:
    width, height = cut.size
    ax.set_axis_off()
    drawn = ax.imshow(cut.of(volume), extent=(0, width, 0, height), interpolation="nearest", **colours)
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    return drawn


def _outline(ax: Any, cut: Cut, mask: np.ndarray) -> None:
    width, height = cut.size
    ax.contour(
        cut.of(mask), levels=[0.5], colors="#ffa800", linewidths=0.6, extent=(0, width, 0, height), origin="upper"
    )


def _grid_lines(ax: Any, cut: Cut, displacement: np.ndarray) -> None:
    x, y = cut.positions(displacement)
    rows, columns = (max(1, round(LINES * n / side)) for n, side in zip(x.shape, cut.size[::-1], strict=True))
    style = {"color": "#4fd1ff", "linewidth": 0.6, "alpha": 0.9}
    for row in range(rows // 2, x.shape[0], rows):
        ax.plot(x[row], y[row], **style)
    for column in range(columns // 2, x.shape[1], columns):
        ax.plot(x[:, column], y[:, column], **style)
