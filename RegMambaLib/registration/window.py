"""What the network of structures is shown of a volume: the part around the anatomy, in a frame as in its training."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from ..spatial import fields

T = TypeVar("T")

# Of what number the sizes are multiples that the network takes.
MULTIPLE = 16
# Voxels of the anatomy along an axis that a window may leave out: smoothing to 2 mm has made its rim so much wider.
RIM = 4


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


def anatomy_window(mask: np.ndarray, usual: tuple[int, int, int]) -> Window | None:
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
        length = max(least, -(-max(span.stop - span.start - rim, 1) // MULTIPLE) * MULTIPLE)
        first = (span.start + span.stop - length) // 2
        low, high = max(first, 0), min(first + length, whole)
        inner.append(slice(low, high))
        frame.append(slice(low - first, high - first))
        size.append(length)
    return Window(_three(inner), _three(frame), _three(size))


def _three(values: list[T]) -> tuple[T, T, T]:
    z, y, x = values
    return z, y, x
