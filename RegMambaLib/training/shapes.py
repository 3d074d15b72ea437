"""Made-up anatomies: blobs of random size and place, so that a network does not learn brains alone.

Method: SynthMorph (Hoffmann et al., IEEE TMI 2022, section III-A): each voxel takes the number of the smooth
random field that is highest there.
"""

from __future__ import annotations

import numpy as np
import torch

from RegMambaLib.training.anatomy import FIRST_OTHER, FRAME_SHAPE, Anatomy

# Voxels of the grid that the fields are compared on, in mm: shapes need no finer border.
_STEP = 2


def random_shapes(rng: np.random.Generator, count: int, knots: tuple[float, float], bounded: bool) -> Anatomy:
    """An anatomy of at most `count` blobs, numbered from 101, in the frame of `Anatomy`, uint8.

    Args:
        knots: smallest and largest distance between the random values of a field, mm.
        bounded: with empty background (0) around and in gaps, as around a body; else all of the frame is filled.
    """
    shape = tuple(-(-n // _STEP) for n in FRAME_SHAPE)
    highest = np.full(shape, -np.inf, np.float32)
    labels = np.zeros(shape, np.uint8)
    for label in range(FIRST_OTHER, FIRST_OTHER + count):
        values = _field(rng, shape, rng.uniform(*knots) / _STEP)
        # Every field has its own offset, so that large and small structures appear.
        values += np.float32(0.5 * rng.standard_normal())
        np.copyto(labels, label, where=values > highest)
        np.maximum(highest, values, out=highest)
    if bounded:
        axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
        radius = sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) ** 0.5
        labels[radius + 0.15 * _field(rng, shape, 40 / _STEP) > rng.uniform(0.7, 1.1)] = 0
    for axis in range(3):
        labels = np.repeat(labels, _STEP, axis=axis)
    return Anatomy("shapes", np.ascontiguousarray(labels[tuple(slice(n) for n in FRAME_SHAPE)]), brain=False)


def _field(rng: np.random.Generator, shape: tuple[int, ...], knots: float) -> np.ndarray:
    """Trilinear interpolation of random values `knots` voxels apart, float32 `shape`."""
    coarse = [max(2, round(n / knots) + 1) for n in shape]
    values = torch.from_numpy(rng.standard_normal(coarse, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(values, shape, mode="trilinear", align_corners=True)[0, 0].numpy()
