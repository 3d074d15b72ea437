"""Made-up anatomies: blobs of random size and place, so that a network does not learn brains alone.

Method: SynthMorph (Hoffmann et al., IEEE TMI 2022, section III-A): each voxel takes the number of the smooth
random field that is highest there.
"""

from __future__ import annotations

import numpy as np
import torch

from RegMambaLib.training.anatomy import FIRST_OTHER, FRAME_SHAPE, Anatomy
from RegMambaLib.training.separable import along_axes, put, stretching

# Voxels of the grid that the fields are compared on, in mm: shapes need no finer border.
_STEP = 2


def random_shapes(
    rng: np.random.Generator, count: int, knots: tuple[float, float], bounded: bool, device: torch.device
) -> Anatomy:
    """An anatomy of at most `count` blobs, numbered from 101, in the frame of `Anatomy`, made on a device.

    Args:
        knots: smallest and largest distance between the random values of a field, mm.
        bounded: with empty background (0) around and in gaps, as around a body; else all of the frame is filled.
    """
    shape = tuple(-(-n // _STEP) for n in FRAME_SHAPE)
    highest = torch.full(shape, -torch.inf, device=device)
    labels = torch.zeros(shape, dtype=torch.uint8, device=device)
    for label in range(FIRST_OTHER, FIRST_OTHER + count):
        values = _field(rng, shape, rng.uniform(*knots) / _STEP, device)
        # Every field has its own offset, so that large and small structures appear.
        values += 0.5 * rng.standard_normal()
        labels.masked_fill_(values > highest, label)
        torch.maximum(highest, values, out=highest)
    if bounded:
        axes = [torch.linspace(-1, 1, n, device=device) ** 2 for n in shape]
        radius = (axes[0][:, None, None] + axes[1][:, None] + axes[2]).sqrt()
        edge = radius + 0.15 * _field(rng, shape, 40 / _STEP, device)
        labels.masked_fill_(edge > rng.uniform(0.7, 1.1), 0)
    for axis in range(3):
        labels = labels.repeat_interleave(_STEP, dim=axis)
    return Anatomy("shapes", labels[tuple(slice(n) for n in FRAME_SHAPE)].contiguous(), brain=False)


def _field(rng: np.random.Generator, shape: tuple[int, ...], knots: float, device: torch.device) -> torch.Tensor:
    """Trilinear interpolation of random values `knots` voxels apart, float32 `shape`."""
    counts = [max(2, round(n / knots) + 1) for n in shape]
    values = put(rng.standard_normal(counts, dtype=np.float32), device)
    return along_axes(values, [put(stretching(count, n), device) for count, n in zip(counts, shape, strict=True)])
