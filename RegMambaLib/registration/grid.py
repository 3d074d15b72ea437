"""The working grid: one canonical grid around both anatomies, in fixed world space."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError
from ..spatial import fields
from ..spatial.grid import Grid
from ..spatial.itk import grown

# About the size of 240 x 280 x 240: larger volumes are worked on coarser, so that memory does not grow.
MOST_VOXELS = 16_000_000
# More voxels than a spacing that was asked for may bring: they would take 100 GB.
TOO_MANY_VOXELS = 500_000_000
# Voxels beyond the anatomy, over which the displacement fades out.
MARGIN = 8
FADE = 6
WIDEST_FADE = 40
# How far (mm) outside the fixed image moving anatomy still counts.
REACH = 20.0
SMALLEST = 16


def canonical(grid: Grid) -> Grid:
    """The same voxels with axes reordered and flipped to lie closest to L, P, S (right-handed up to obliqueness).

    Networks and presets then see every patient the same way round, whatever the order of the file.
    """
    axes = grid.axes
    unit = axes / np.linalg.norm(axes, axis=0)
    order = _assign(np.abs(unit))
    corner, size, spacing, columns = np.zeros(3), [], [], []
    for world, axis in enumerate(order):
        sign = 1.0 if unit[world, axis] >= 0 else -1.0
        if sign < 0:
            corner[axis] = grid.size[axis] - 1
        size.append(grid.size[axis])
        spacing.append(grid.spacing[axis])
        columns.append(sign * unit[:, axis])
    origin = grid.world(corner)
    return Grid(
        (size[0], size[1], size[2]),
        (spacing[0], spacing[1], spacing[2]),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(np.stack(columns, axis=1).ravel().tolist()),
    )


def working_grid(
    fixed: Grid,
    fixed_foreground: np.ndarray,
    moving: Grid,
    moving_foreground: np.ndarray,
    affine: np.ndarray,
    spacing: float = 0.0,
) -> Grid:
    """A canonical isotropic grid around both anatomies with a margin.

    Args:
        fixed, moving: grids of the images; the masks are (k, j, i) on them.
        affine: 4x4 from fixed to moving world.
        spacing: mm; 0 takes the fixed image's own (the geometric mean of an anisotropic one), coarser where the
            grid would exceed `MOST_VOXELS`.

    Raises:
        InputError: a grid of the wanted spacing would have more than `TOO_MANY_VOXELS`.
    """
    own = np.asarray(fixed.spacing)
    side = spacing or float(own[0] if np.ptp(own) < 0.01 * own.min() else np.cbrt(own.prod()))
    points = box_corners(fixed, fixed_foreground)
    back = np.linalg.inv(affine)
    others = box_corners(moving, moving_foreground) @ back[:3, :3].T + back[:3, 3]
    grid = _around(canonical(fixed), side, points, others)
    while spacing == 0 and (voxels := float(np.prod(np.asarray(grid.size, float)))) > MOST_VOXELS:
        # A little more than the ratio asks for: the margin counts in voxels and does not shrink along.
        side *= 1.02 * float(np.cbrt(voxels / MOST_VOXELS))
        grid = _around(canonical(fixed), side, points, others)
    if math.prod(grid.size) > TOO_MANY_VOXELS:
        raise InputError(
            f"A working grid of {spacing:g} mm would have {' x '.join(map(str, grid.size))} voxels, too many for any "
            "memory; set a larger spacing, or 0 for a fitting one."
        )
    return grid


def _around(fixed: Grid, side: float, points: np.ndarray, others: np.ndarray) -> Grid:
    """A grid of `side` mm along the axes of `fixed` around fixed points and those moving points that are near."""
    base = fixed.with_spacing((side, side, side))
    reach = REACH / side
    near = np.clip(base.index(others), -reach, np.asarray(base.size) - 1 + reach)
    both = np.concatenate([base.index(points), near])
    low = np.floor(both.min(0)).astype(int) - MARGIN
    high = np.ceil(both.max(0)).astype(int) + MARGIN
    return base.crop(_ints(low), _ints(np.maximum(high - low + 1, SMALLEST)))


def fade_widths(displacement: np.ndarray) -> tuple[int, int, int]:
    """Voxels (k, j, i) over which (3, k, j, i) voxels can fade out at the faces without folding.

    A raised cosine over w voxels squeezes space by up to pi d / 2 w, where d is the displacement across the face; with
    w = 3 d, by half. At most `WIDEST_FADE`.
    """
    widths = []
    for axis, across in enumerate(displacement):
        layers = np.moveaxis(across, axis, 0)
        largest = max(float(np.abs(end).max()) for end in (layers[:FADE], layers[-FADE:]))
        widths.append(min(max(FADE, math.ceil(3 * largest)), WIDEST_FADE))
    return widths[0], widths[1], widths[2]


def faded(displacement: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A new displacement (3, k, j, i) voxels that ends in 0 at the border, and its grid, grown where it takes room."""
    widths = fade_widths(displacement)
    more = [(width - FADE, width - FADE) for width in widths]
    sizes = [n + before + behind for n, (before, behind) in zip(displacement.shape[1:], more, strict=True)]
    return grown(displacement, grid, more, list(map(fade, sizes, widths)))


def padded(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A volume (k, j, i) in the middle of a larger one, 0 around it; the larger is as much larger at both ends."""
    return np.pad(volume, [((n - own) // 2,) * 2 for n, own in zip(shape, volume.shape, strict=True)])


def fade(size: int, width: int) -> np.ndarray:
    """Factors along an axis: 0 on the outermost voxels, 1 from `width` voxels inwards (raised cosine)."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / width, 0, 1))


def _assign(strength: np.ndarray) -> list[int]:
    """For each world axis the image axis that points most along it (each used once)."""
    from itertools import permutations

    return list(max(permutations(range(3)), key=lambda p: sum(strength[w, a] for w, a in enumerate(p))))


def box_corners(grid: Grid, mask: np.ndarray) -> np.ndarray:
    """(8, 3) LPS mm corners of the mask's bounding box; of the whole volume when the mask is empty."""
    box = fields.box_of(mask) or tuple(slice(0, n) for n in mask.shape)
    ends = [(span.start, span.stop - 1) for span in box[::-1]]
    return grid.world(np.array([[i, j, k] for i in ends[0] for j in ends[1] for k in ends[2]], float))


def _ints(values: np.ndarray) -> tuple[int, int, int]:
    i, j, k = (int(v) for v in values)
    return i, j, k
