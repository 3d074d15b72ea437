"""How maps of structures pull in refinement on the CPU; `engine_torch` has the same for other devices."""

from __future__ import annotations

import numpy as np

from ..spatial import fields
from . import kernels
from .refine import Maps

# Of a channel, below which a voxel is far from all structures; and how far from them the maps still pull, voxels.
FAR, REACH = 0.02, 2


class MapPull:
    """The downhill direction of the squared difference of both maps, on their grid, the level's or a coarser one."""

    def __init__(self, maps: Maps, weight: np.ndarray, spans: np.ndarray, shape: tuple[int, ...]) -> None:
        """
        Args:
            weight: (k, j, i), where they are to be compared; size 0 where it is everywhere.
            spans: the rows of the level that are worked on.
            shape: of the level.
        """
        self.fixed, self.moving, self.strength = maps
        self.shape, self.level_spans = self.fixed.shape[:3], spans
        self.weight = weight_at(weight, self.shape)
        near = [channel > FAR for side in (self.fixed, self.moving) for channel in np.moveaxis(side, -1, 0)]
        self.spans = fields.spans_of(np.logical_or.reduce(near), REACH)
        self.coarser = self.shape != shape
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


def weight_at(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A weight (k, j, i) on another grid over the same extent; of size 0 it stays."""
    z, y, x = shape
    return fields.resize(weight, (z, y, x)) if weight.size else weight
