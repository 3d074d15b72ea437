"""Pairwise refinement: coarse to fine, similarity gradient, Adam, diffeomorphic composition.

The scheme of greedy (Yushkevich et al. 2016) and FireANTs (Jena et al. 2024), written from their papers: at every
level the gradient of the similarity is smoothed, turned into a bounded step, composed with the displacement so
far, and the whole is smoothed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, SupportsFloat

import numpy as np

from ..spatial import fields
from .settings import LARGEST_SIGMA, Settings
from .view import whole_windows

Progress = Callable[[float], None]

# Sums over a window of images scaled to [0, 1]: well below tissue contrast, above interpolation noise.
LNCC_EPSILON = 1e-2
ADAM_BETAS = (0.6, 0.99)
# Share of the largest force below which Adam no longer amplifies it: forces that weak are mostly noise. The coarsest
# level, which finds the way, listens to weaker ones.
ADAM_FLOOR, COARSE_FLOOR = 0.05, 0.01
# Mean squared LNCC above which steps become shorter, down to none at 1: what is left are rounding and noise, which Adam
# would make as much of as of anything else. Two people's brains reach .97 at the coarsest level and .9 at the finest.
SAME_LNCC = 0.98
# How much more the coarsest level smooths its updates.
COARSE_UPDATE = 1.4
# Voxels along an axis below which no level goes: a window of five would see too much of the anatomy at once, and on
# cut-outs of 40 mm such a level led away from the answer as often as to it.
COARSEST = 24
# Voxels along an axis below which what is compared tells nothing of a movement along it. Forces across three slices
# took the Dice of slabs of four and six slices (cut out of brains at 2 mm) from .36 to .31 and from .45 to .41.
THIN = 4
# Iterations after which to wait for a device, so that what is told is done and a cancel is heard in time.
WAIT = 4
# Work at the finest level (voxels with anatomy times iterations) up to which more iterations are as good as free, and
# the most iterations that they bring. A brain at 1 mm is beyond it; one at 2 mm gets about 16 iterations, a crop 30.
FREE_WORK, MOST_FINE = 6e6, 30


class Maps(NamedTuple):
    """Channels of two images that refinement brings together besides the images.

    fixed, moving: float32 (k, j, i, c) contiguous, on a grid of their own over the extent of the images.
    weight: what they pull, of what the images pull, as root mean squares.
    """

    fixed: np.ndarray
    moving: np.ndarray
    weight: float

    def at(self, shape: tuple[int, int, int]) -> Maps:
        """On a grid of `shape`, made coarser as images are; where they are as coarse along an axis, that stays."""
        z, y, x = map(min, shape, self.fixed.shape[:3])
        if (z, y, x) == self.fixed.shape[:3]:
            return self
        fixed, moving = (
            np.stack([shrink(channel, (z, y, x)) for channel in np.moveaxis(volume, -1, 0)], -1)
            for volume in (self.fixed, self.moving)
        )
        return Maps(fixed, moving, self.weight)


@dataclass(frozen=True)
class Pair:
    """What one level of refinement sees: everything (k, j, i) on the same grid.

    Attributes:
        fixed, moving: float32, scaled to about [0, 1]; moving is aligned linearly.
        weight: float32, where both images may be compared (1); size 0 means everywhere.
        fixed_labels, moving_labels: int32 classes 0 .. labels - 1 for guidance, or None.
        labels: number of classes.
        active: boolean, outside of which both images are 0 and nothing needs to move; size 0 means everywhere.
        maps: what else is to be brought together.
    """

    fixed: np.ndarray
    moving: np.ndarray
    weight: np.ndarray
    fixed_labels: np.ndarray | None = None
    moving_labels: np.ndarray | None = None
    labels: int = 0
    active: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), bool))
    maps: tuple[Maps, ...] = ()

    def at(self, shape: tuple[int, int, int]) -> Pair:
        """The pair at a coarser resolution (smoothed by half the factor, as in greedy)."""
        if shape == self.fixed.shape:
            return self
        return Pair(
            shrink(self.fixed, shape),
            shrink(self.moving, shape),
            fields.resize(self.weight, shape) if self.weight.size else self.weight,
            pick(self.fixed_labels, shape),
            pick(self.moving_labels, shape),
            self.labels,
            fields.resize(self.active, shape) > 0 if self.active.size else self.active,
            tuple(maps.at(shape) for maps in self.maps),
        )


class Engine(Protocol):
    """The heavy steps of a level; `engine_numba` and `engine_torch` implement it."""

    def step(self) -> SupportsFloat:
        """One iteration; returns the similarity (higher is better), which may still be on its way from a device."""

    def displacement(self) -> np.ndarray:
        """The displacement so far, (3, k, j, i) float32 voxels."""


def refine(
    pair: Pair,
    settings: Settings,
    *,
    start: np.ndarray | None = None,
    metric: str = "lncc",
    smoothing: float = 1.0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> np.ndarray:
    """The displacement of `pair` on its grid, (3, k, j, i) float32 voxels.

    Args:
        start: displacement to begin with, on any resolution over the same extent.
        metric: "lncc" (same contrast) or "mind" (any contrast).
        smoothing: factor on `smooth_total`, for images that are less alike.
        device: "cpu" (numba) or a torch device.
        progress: called with the share done, in [0, 1]; may raise to cancel.
    """
    shapes = level_shapes(pair.fixed.shape, len(settings.iterations))
    work = [n * int(np.prod(shape)) for n, shape in zip(settings.iterations, shapes, strict=True)]
    total, done = max(sum(work), 1), 0
    u = None if start is None else start.copy()  # engines work on what they are given
    for shape, iterations in zip(shapes, settings.iterations, strict=True):
        if iterations == 0:
            continue
        level = pair.at(shape)
        # Coarser levels are smoothed, so that what lies beyond an edge reaches a voxel further.
        reach = 0 if shape == pair.fixed.shape else 2
        level = replace(level, weight=whole_windows(level.weight, settings.window + reach))
        coarsest = done == 0
        floor = COARSE_FLOOR if coarsest else ADAM_FLOOR
        u = np.zeros((3, *shape), np.float32) if u is None else to_shape(u, shape)
        engine = _engine(device, level, u, level_settings(settings, coarsest, smoothing), metric, floor=floor)
        for iteration in range(iterations):
            similarity = engine.step()
            done += int(np.prod(shape))
            if progress is not None:
                if iteration % WAIT == 0:
                    float(similarity)
                progress(done / total)
        u = engine.displacement()
        del engine, level  # the next one needs the memory
    return np.zeros((3, *pair.fixed.shape), np.float32) if u is None else to_shape(u, pair.fixed.shape)


def with_extra_iterations(settings: Settings, voxels: int) -> Settings:
    """The settings with the iterations of the finest level that so many voxels with anatomy can afford, never fewer."""
    *coarser, finest = settings.iterations or (0,)
    if not settings.extra_iterations or finest == 0:
        return settings
    return replace(settings, iterations=(*coarser, max(finest, min(MOST_FINE, round(FREE_WORK / max(voxels, 1))))))


def level_shapes(shape: tuple[int, ...], levels: int) -> list[tuple[int, int, int]]:
    """Array shapes from coarsest to finest: halved per level, no axis below `COARSEST` voxels (or its own size)."""
    shapes = []
    for level in reversed(range(levels)):
        z, y, x = (max(min(n, COARSEST), round(n / 2**level)) for n in shape)
        shapes.append((z, y, x))
    return shapes


def level_settings(settings: Settings, coarsest: bool, smoothing: float) -> Settings:
    """The settings of one level; `smoothing` is a factor on `smooth_total`."""
    return replace(
        settings,
        smooth_update=min(settings.smooth_update * (COARSE_UPDATE if coarsest else 1.0), LARGEST_SIGMA),
        smooth_total=min(settings.smooth_total * smoothing, LARGEST_SIGMA),
    )


def shrink(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth by half the reduction factor and resample to `shape`."""
    factor = float(np.mean(np.asarray(volume.shape) / np.asarray(shape)))
    return fields.shrink(volume, shape, 0.5 * factor)


def pick(labels: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Nearest-neighbour resampling of a label map over the same extent."""
    if labels is None:
        return None
    index = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(shape, labels.shape, strict=True)
    ]
    return np.ascontiguousarray(labels[np.ix_(*index)])


def to_shape(u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`u` at another resolution over the same extent (itself when it fits)."""
    z, y, x = shape
    return u if u.shape[1:] == shape else fields.resize_displacement(u, (z, y, x))


def _engine(device: str, level: Pair, u: np.ndarray, settings: Settings, metric: str, *, floor: float) -> Engine:
    if device == "cpu":
        from .engine_numba import NumbaEngine

        return NumbaEngine(level, u, settings, metric, floor=floor)
    from .engine_torch import TorchEngine

    return TorchEngine(level, u, settings, metric, device, floor=floor)
