"""What networks are shown of a volume: the part around the anatomy, in a frame as in their training."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from ..spatial import fields

T = TypeVar("T")

# Voxels that images had in training, with the brain in the middle; the background counts in the normalisation.
FRAME = (80, 96, 80)
# Of what number the sizes are multiples that the networks take.
MULTIPLE = 16
# Voxels of the anatomy along an axis that a window may leave out: smoothing to 2 mm has made its rim so much wider.
RIM = 4
# Voxels of air over which `nearness` falls from 1 to 0.
FADE = 20


class Window(NamedTuple):
    """A part of a volume (k, j, i), its place in a frame, and the size of the frame.

    What the frame has beyond the volume is background.
    """

    inner: tuple[slice, slice, slice]
    frame: tuple[slice, slice, slice]
    size: tuple[int, int, int]

    def shown(self, volume: np.ndarray) -> np.ndarray:
        """The frame with the volume in it, float32."""
        out = np.zeros(self.size, np.float32)
        out[self.frame] = volume[self.inner]
        return out

    def whole(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Values (c, k, j, i) of the frame on the volume of a shape (k, j, i); those at its edge go on beyond."""
        sides = [(span.start, n - span.stop) for span, n in zip(self.inner, shape, strict=True)]
        z, y, x = self.frame
        return np.pad(values[:, z, y, x], [(0, 0), *sides], mode="edge")


def anatomy_window(mask: np.ndarray, usual: tuple[int, int, int] = FRAME) -> Window | None:
    """The window around what is set in a mask (k, j, i), None where nothing is.

    usual: least size of the frame; it is the next multiple that fits, and the anatomy in its middle.
    """
    box = fields.box_of(mask)
    if box is None:
        return None
    inner, frame, size = [], [], []
    for span, whole, least in zip(box, mask.shape, usual, strict=True):
        # Where the image ends within the anatomy, no rim is to spare.
        rim = RIM if span.start > 0 and span.stop < whole else 0
        length = max(least, _rounded_up(max(span.stop - span.start - rim, 1)))
        first = (span.start + span.stop - length) // 2
        low, high = max(first, 0), min(first + length, whole)
        inner.append(slice(low, high))
        frame.append(slice(low - first, high - first))
        size.append(length)
    return Window(_three(inner), _three(frame), _three(size))


def usual_frame(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The frame of training, or what of it a volume of a shape (k, j, i) fills."""
    return _three([min(usual, _rounded_up(n)) for usual, n in zip(FRAME, shape, strict=True)])


def _rounded_up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def nearness(mask: np.ndarray) -> np.ndarray:
    """1 where a mask (k, j, i) is set, falling to 0 within `FADE` voxels around it (raised cosine), float32.

    Distances are measured in steps of about two voxels.
    """
    from scipy.ndimage import distance_transform_edt

    if mask.all() or not mask.any():
        return mask.astype(np.float32)
    k, j, i = mask.shape
    z, y, x = ((n + 1) // 2 for n in mask.shape)
    air = fields.resize(mask, (z, y, x)) == 0
    distance = distance_transform_edt(air, np.divide(mask.shape, air.shape))
    near = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance / FADE, 1))
    return fields.resize(near, (k, j, i))


def _three(values: list[T]) -> tuple[T, T, T]:
    z, y, x = values
    return z, y, x
