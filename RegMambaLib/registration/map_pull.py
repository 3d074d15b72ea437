"""How maps of structures pull in refinement on the CPU; `engine_torch` has the same for other devices."""

from __future__ import annotations

import numpy as np

from ..spatial import fields
from . import kernels
from .refine import Maps, Pair, shrink

# Of a channel, below which a voxel is far from all structures; and how far from them the maps still pull, voxels.
FAR, REACH = 0.02, 2


class MapPull:
    """The downhill direction of the squared difference of both maps, on the coarser of their grid and the level's."""

    def __init__(self, maps: Maps, pair: Pair, spans: np.ndarray) -> None:
        """spans: the rows of the level that are worked on."""
        self.strength, self.level_spans = maps.weight, spans
        self.fixed, self.moving, self.weight = maps_at_level(maps, pair)
        self.shape = self.fixed.shape[:3]
        channels = (*np.moveaxis(self.fixed, -1, 0), *np.moveaxis(self.moving, -1, 0))
        self.spans = fields.spans_of(np.maximum.reduce(channels) > FAR, REACH)
        self.coarser = self.shape != pair.fixed.shape
        if self.coarser:
            self.pull, self.own = (np.zeros((3, *self.shape), np.float32) for _ in range(2))
        else:
            np.maximum(self.spans[..., 0], spans[..., 0], out=self.spans[..., 0])
            np.minimum(self.spans[..., 1], spans[..., 1], out=self.spans[..., 1])

    def add(self, u: np.ndarray, force: np.ndarray, image: float, room: np.ndarray) -> None:
        """Add the pull at displacement u to the force, both (3, k, j, i) of the level.

        Args:
            image: `mean_square` of the force of the images alone.
            room: of the same shape, to be overwritten within the level's spans: memory that is new costs time.
        """
        own, pull = u, room
        if self.coarser:
            own, pull = self.own, self.pull
            kernels.sample_displacement(u, self.spans, own)
        kernels.channel_force(self.fixed, self.moving, own, self.weight, self.spans, pull)
        size = kernels.mean_square(pull, self.spans)  # there is none elsewhere
        if size > 0:
            spans = self.level_spans if self.coarser else self.spans
            kernels.add_resized(pull, np.float32(self.strength * np.sqrt(image / size)), spans, force)


def maps_at_level(maps: Maps, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both maps at a level, given its pair, (k, j, i, c), and its weight, on the coarser of their grid and the level's.

    Maps are made coarser as images are. The weight stays of size 0 where everything counts.
    """
    z, y, x = (min(sizes) for sizes in zip(pair.fixed.shape, maps.fixed.shape[:3], strict=True))

    def at_shape(own: np.ndarray) -> np.ndarray:
        if own.shape[:3] == (z, y, x):
            return np.ascontiguousarray(own, np.float32)
        channels = [shrink(np.ascontiguousarray(channel), (z, y, x)) for channel in np.moveaxis(own, -1, 0)]
        return np.ascontiguousarray(np.stack(channels, -1))

    weight = fields.resize(pair.weight, (z, y, x)) if pair.weight.size else pair.weight
    return at_shape(maps.fixed), at_shape(maps.moving), weight
