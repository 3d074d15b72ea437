"""What goes on inside the network: feature maps of its Mamba blocks and how its scan directions vote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..networks.mixers import FeatMamba, MambaMixer, MatchMamba
from .figures import check_matplotlib, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Insight:
    """What the Mamba blocks of a network gave for one pair; the lists are filled as the network runs.

    Attributes:
        encoded: of every FeatMamba, from the finest: the features of moving and fixed, (C, h, w, d) each.
        matched: of every MatchMamba, from the coarsest: its output, (C, h, w, d).
        votes: of every MatchMamba, from the coarsest: the weight of each of its directions, by name.
    """

    encoded: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    matched: list[np.ndarray] = field(default_factory=list)
    votes: list[dict[str, float]] = field(default_factory=list)

    @property
    def levels(self) -> dict[int, int]:
        """Voxels along the longest axis of each level, 1 the finest with a block."""
        return {level: max(moving.shape[1:]) for level, (moving, _) in enumerate(self.encoded, 1)}

    def of_level(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of moving, of fixed, and their match at a level, (C, h, w, d) each."""
        moving, fixed = self.encoded[level - 1]
        return moving, fixed, self.matched[-level]

    def votes_of_level(self, level: int) -> dict[str, float]:
        """The weight of every direction at a level; they sum to 1."""
        return self.votes[-level]


@contextmanager
def watched() -> Iterator[list[Insight]]:
    """Watch the network that runs within the block, wherever it is made and called: one insight for every pair."""
    insights: list[Insight] = []

    def look(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, FeatMamba):  # both images in one batch, moving first
            if not insights or insights[-1].matched:
                insights.append(Insight())
            moving, fixed = (part.detach().float().cpu().numpy() for part in output)
            insights[-1].encoded.append((moving, fixed))
        elif isinstance(module, MatchMamba) and len(insights[-1].matched) < len(insights[-1].encoded):
            insight = insights[-1]  # matched once: draws of the votes that follow do not count
            insight.matched.append(output[0].detach().float().cpu().numpy())
            if isinstance(module.mixer, MambaMixer):
                names = [traversal.name for traversal in module.mixer.scan.traversals]
                insight.votes.append(dict(zip(names, inputs[2].tolist(), strict=True)))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        yield insights
    finally:
        handle.remove()


def feature_figure(insight: Insight) -> bytes:
    """A PNG: rows FeatMamba of moving, of fixed and MatchMamba; a column for each level, finest first.

    Shown is the root mean square over channels in the middle axial slice, each picture scaled by its own 1 and 99 %.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    titles = ("FeatMamba, moving", "FeatMamba, fixed", "MatchMamba")
    figure = Figure((2.1 * len(insight.levels) + 0.3, 7.2), dpi=110, layout="constrained")
    axes = figure.subplots(len(titles), len(insight.levels), squeeze=False)
    for column, level in enumerate(insight.levels):
        for row, features in enumerate(insight.of_level(level)):
            strength = np.sqrt(np.square(features[:, features.shape[1] // 2]).mean(0))
            low, high = np.percentile(strength, (1, 99))
            ax: Axes = axes[row, column]
            ax.imshow(strength, cmap="magma", vmin=low, vmax=max(high, low + 1e-6))
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                size = " × ".join(str(n) for n in features.shape[1:])
                ax.set_title(f"level {level}\n{size}, {features.shape[0]} channels", fontsize=8)
            if column == 0:
                ax.set_ylabel(titles[row], fontsize=9)
    return png(figure)


def vote_figure(insight: Insight) -> bytes:
    """A PNG: the weight of each direction at each level, beside the weight that equal votes would have."""
    check_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    levels = list(insight.levels)
    names = list(insight.votes_of_level(levels[0]))
    figure = Figure((1.2 + 0.32 * len(names) * len(levels), 3.2), dpi=110, layout="constrained")
    ax = figure.subplots()
    width = 0.85 / len(names)
    for n, name in enumerate(names):
        weights = [insight.votes_of_level(level)[name] for level in levels]
        places = [column + (n - (len(names) - 1) / 2) * width for column in range(len(levels))]
        # tab20 comes in pairs of hues, as directions do: one axis order, forward and backward.
        ax.bar(places, weights, width * 0.9, color=colormaps["tab20"](n), label=name)
    ax.axhline(1 / len(names), color="black", linewidth=0.8, linestyle="--", label="equal")
    ax.set_xticks(range(len(levels)), [f"level {level}" for level in levels])
    ax.set_ylabel("weight of the direction")
    ax.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return png(figure)
