"""Draw the module's icon: a grid that a smooth displacement bends. `python Resources/Icons/draw_icon.py FILE.png`."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

LOW, HIGH, LINES = -1.0, 1.0, 7
NIGHT, WARM, COLD = "#10233f", np.array([255, 171, 64]) / 255, np.array([94, 214, 232]) / 255


def bend(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A swirl and a push that fade towards the border, so that the grid keeps its frame."""
    fade = np.cos(np.pi * x / 2) * np.cos(np.pi * y / 2)
    turn = 0.85 * fade**1.3
    c, s = np.cos(turn), np.sin(turn)
    return c * x - s * y + 0.16 * fade, s * x + c * y - 0.1 * fade


def draw(path: str) -> None:
    """The icon, 128 x 128 pixels, transparent corners."""
    figure = plt.figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    axes.axis("off")
    axes.add_patch(FancyBboxPatch((-1.02, -1.02), 2.04, 2.04, "round,pad=0.22,rounding_size=0.42", fc=NIGHT, ec="none"))
    along = np.linspace(LOW, HIGH, 120)
    for at in np.linspace(LOW, HIGH, LINES):
        for x, y in ((along, np.full_like(along, at)), (np.full_like(along, at), along)):
            u, v = bend(x, y)
            far = np.hypot(u - x, v - y) / 0.55
            for i in range(len(along) - 1):
                color = COLD + (WARM - COLD) * min(1.0, far[i])
                axes.plot(u[i : i + 2], v[i : i + 2], color=color, lw=1.5, solid_capstyle="round")
    figure.savefig(path, transparent=True)


if __name__ == "__main__":
    draw(sys.argv[1])
