"""What a run writes for people: log.csv, TensorBoard scalars, and pictures of an example."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from RegMambaLib.errors import MissingDependencyError
from RegMambaLib.io.atomic import staged_file
from RegMambaLib.training.config_file import INSTALL
from RegMambaLib.training.objective import TERMS

LOG, EXAMPLES, TENSORBOARD = "log.csv", "examples", "tensorboard"
# One row a step, in this order; a loss that is off and a step without validation leave their places empty.
COLUMNS = ("step", "seconds", "size", "loss", *TERMS, "gradient", "learning_rate", "val_dice", "val_folds")
# Voxels between the lines of the deformed grid.
_LINES = 4


class Logs:
    """The logs of one run, open within a context. Rows that a killed run wrote after its checkpoint are dropped."""

    def __init__(self, folder: Path, *, steps: int, tensorboard: bool) -> None:
        """steps: how many the checkpoint has done. Raises MissingDependencyError without matplotlib or TensorBoard."""
        _figure()
        self._folder = folder
        trim_log(folder / LOG, steps)
        self._writer = _writer(folder / TENSORBOARD, steps) if tensorboard else None

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def row(self, row: dict[str, Any]) -> None:
        """Append a row; `step` is the number of steps done."""
        with (self._folder / LOG).open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(row)
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, row["step"])

    def example(self, step: int, fixed: np.ndarray, moving: np.ndarray, displacement: np.ndarray) -> None:
        """A picture of a pair (h, w, d) and its displacement (3, h, w, d) voxels."""
        (self._folder / EXAMPLES).mkdir(exist_ok=True)
        picture = draw_example(fixed, moving, displacement)
        from matplotlib.image import imsave

        with staged_file(self._folder / EXAMPLES / f"step_{step:07d}.png", overwrite=True) as part:
            imsave(part, picture)
        if self._writer is not None:
            self._writer.add_image("example", picture, step, dataformats="HWC")


def trim_log(log: Path, steps: int, columns: Sequence[str] = COLUMNS) -> None:
    """Drop rows after `steps`, which a killed run wrote after its last checkpoint."""
    rows: list[dict[str, str]] = []
    if log.exists() and steps:
        with log.open(newline="", encoding="utf-8") as stream:
            rows = [
                row for row in csv.DictReader(stream) if (row["step"] or "").isdigit() and int(row["step"]) <= steps
            ]
    with staged_file(log, overwrite=True) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _writer(folder: Path, steps: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            f"logging.tensorboard needs tensorboard; {INSTALL}, or set logging.tensorboard=false."
        ) from error
    return SummaryWriter(folder, purge_step=steps + 1)


def _figure() -> Any:
    """matplotlib's class of figures, which needs no screen. Better to miss it before the work than after."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"Pictures of examples need matplotlib; {INSTALL}.") from error
    return Figure


def draw_example(fixed: np.ndarray, moving: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Fixed, moving, moved, their differences before and after, and the deformed grid, uint8 (rows, columns, 3).

    The middle slice of each axis, one row each, with the patient's front or top up and the left on the right.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_class = _figure()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from RegMambaLib.spatial.fields import warp

    moved = warp(moving, displacement)
    titles = ("Fixed", "Moving", "Moved", "Moving - fixed", "Moved - fixed", "Deformation")
    figure = figure_class((2 * len(titles), 6.3), dpi=80, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(titles), gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    figure.subplots_adjust(0.004, 0.004, 0.996, 0.95)
    for axis, row in enumerate(axes):
        middle = fixed.shape[axis] // 2
        f, before, after = (np.take(volume, middle, axis) for volume in (fixed, moving, moved))
        for ax, image in zip(row, (f, before, after), strict=False):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        for ax, image in zip(row[3:], (before - f, after - f), strict=False):
            ax.imshow(image, cmap="RdBu_r", vmin=-1, vmax=1)
        _draw_grid(row[-1], np.take(displacement, middle, axis + 1), [a for a in range(3) if a != axis])
        if axis:  # the rows run upwards, to S
            for ax in row:
                ax.invert_yaxis()
        for ax, title in zip(row, titles, strict=True):
            ax.set_axis_off()
            if axis == 0:
                ax.set_title(title, color="white", fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_grid(ax: Any, displacement: np.ndarray, axes: list[int]) -> None:
    """Lines of a slice of a displacement (3, rows, columns) whose rows and columns are the `axes` of the volume."""
    rows, columns = displacement.shape[1:]
    y = np.arange(rows)[:, None] + displacement[axes[0]]
    x = np.arange(columns)[None] + displacement[axes[1]]
    style = {"color": "#4fd1ff", "linewidth": 0.5}
    for r in range(_LINES // 2, rows, _LINES):
        ax.plot(x[r], y[r], **style)
    for c in range(_LINES // 2, columns, _LINES):
        ax.plot(x[:, c], y[:, c], **style)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
