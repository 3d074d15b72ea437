"""A pair of images whose true transform is known: a template and a deformed copy of it, as another scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..io.transforms import flatten
from ..spatial.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk

TISSUES = {"grey matter": 1, "white matter": 2}
"""Labels of the template, by name."""
# The deformed copy: how far it is moved (LPS mm), how it is turned and its slices are tilted (degrees about L, P, S).
SHIFT = (18.0, -25.0, 30.0)
TURN = (12.0, -8.0, 15.0)
TILT = (6.0, -5.0, 4.0)
SPACING = (1.2, 1.2, 3.0)
MARGIN = 20.0
# The smooth deformation: a sum of plane waves, scaled so that no point of the head moves further than PEAK mm.
PEAK = 7.0
WAVES = 8
WAVELENGTHS = (60.0, 120.0)
# T1-weighted intensity (0 to 1) to one like T2: fluid bright, grey matter between, white matter dark.
T1, T2 = (0.0, 0.1, 0.25, 0.4, 0.65, 0.85, 1.0), (0.0, 0.6, 1.0, 0.9, 0.55, 0.3, 0.25)
NOISE = 0.02


@dataclass(frozen=True)
class Template:
    """A head: arrays (k, j, i) in 0 to 1 on one grid."""

    grid: Grid
    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray


@dataclass(frozen=True)
class Truth:
    """The known transform x -> rotation (x + d(x) - fixed_center) + moving_center, LPS mm, fixed to moving.

    d is a sum of plane waves: amplitudes (n, 3) mm, vectors (n, 3) rad/mm, phases (n,).
    """

    rotation: np.ndarray
    fixed_center: np.ndarray
    moving_center: np.ndarray
    amplitudes: np.ndarray
    vectors: np.ndarray
    phases: np.ndarray

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """d, (..., 3) mm, at (..., 3) points."""
        return np.sin(points @ self.vectors.T + self.phases) @ self.amplitudes

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points of fixed space -> moving space."""
        return (points + self.displacement(points) - self.fixed_center) @ self.rotation.T + self.moving_center

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points of moving space -> fixed space, by fixed-point iteration."""
        goal = (points - self.moving_center) @ self.rotation + self.fixed_center
        found = goal
        for _ in range(100):
            found = goal - self.displacement(found)
        return found


@dataclass(frozen=True)
class KnownPair:
    """Two images, their label maps (1 grey matter, 2 white matter) and the true transform between them."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image
    moving_labels: sitk.Image
    truth: Truth


def make_pair(template: Template, seed: int = 0) -> KnownPair:
    """The template as moving, and its deformed copy as fixed image."""
    rng = np.random.default_rng(seed)
    low, high = head_corners(template)
    truth = make_truth((low + high) / 2, high - low, rng)
    grid = scan_grid(truth, high - low)
    t2, grey, white = _scan(template, truth, grid)
    noise = rng.normal(scale=NOISE, size=(2, *t2.shape))
    t2 = np.hypot(t2 + noise[0], noise[1])  # Rician, as in magnitude images
    moving = template.grid
    return KnownPair(
        fixed=grid.image(_whole(t2)),
        moving=moving.image(_whole(template.t1)),
        fixed_labels=grid.image(_labels(grey, white)),
        moving_labels=moving.image(_labels(template.grey, template.white)),
        truth=truth,
    )


def error_mm(truth: Truth, transform: sitk.Transform, grid: Grid, where: np.ndarray) -> np.ndarray:
    """(n,) mm between where a transform and the truth put those voxels of a grid that are set in `where` (k, j, i)."""
    points = grid.world(np.argwhere(where)[:, ::-1])
    return np.linalg.norm(points + flatten(transform, grid)[where] - truth(points), axis=1)


def make_truth(center: np.ndarray, extent: np.ndarray, rng: np.random.Generator) -> Truth:
    """A random deformation of a head with this centre and extent (moving space, LPS mm), turned and moved."""
    vectors = rng.normal(size=(WAVES, 3))
    lengths = rng.uniform(*WAVELENGTHS, size=(WAVES, 1))
    vectors *= 2 * np.pi / lengths / np.linalg.norm(vectors, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, WAVES)
    # Longer waves are higher, so that all bend alike.
    amplitudes = rng.normal(size=(WAVES, 3)) * lengths
    fixed_center = center + SHIFT
    rotation = _rotation(TURN)
    truth = Truth(rotation, fixed_center, center, amplitudes, vectors, phases)
    steps = np.linspace(-0.5, 0.5, 25)
    box = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) * extent
    largest = np.linalg.norm(truth.displacement(box @ rotation + fixed_center), axis=1).max()
    return Truth(rotation, fixed_center, center, amplitudes * PEAK / largest, vectors, phases)


def scan_grid(truth: Truth, extent: np.ndarray) -> Grid:
    """An oblique, left-handed grid of `SPACING` around the head in fixed space."""
    direction = truth.rotation.T @ _rotation(TILT) @ np.diag([1.0, 1.0, -1.0])  # from the top downwards
    size = np.ceil((extent + 2 * MARGIN) / SPACING).astype(int)
    origin = truth.fixed_center - direction @ ((size - 1) / 2 * SPACING)
    return Grid(tuple(size.tolist()), SPACING, tuple(origin.tolist()), tuple(direction.ravel().tolist()))


def voxel_centers(grid: Grid, k: float) -> np.ndarray:
    """(j, i, 3) LPS mm of the voxels of slice k, which may lie between two slices."""
    i, j = np.meshgrid(np.arange(grid.size[0]), np.arange(grid.size[1]))
    return grid.world(np.stack([i, j, np.full(i.shape, k)], axis=-1))


def _scan(template: Template, truth: Truth, grid: Grid) -> np.ndarray:
    """(3, k, j, i): T2-like intensity, grey and white matter; a slice is the mean of three planes in it."""
    from scipy.ndimage import map_coordinates

    out = np.zeros((3, *grid.shape), np.float32)
    for k in range(grid.size[2]):
        for part in (-1 / 3, 0.0, 1 / 3):
            index = np.moveaxis(template.grid.index(truth(voxel_centers(grid, k + part))), -1, 0)[::-1]
            t1, grey, white = (map_coordinates(v, index, order=1) for v in (template.t1, template.grey, template.white))
            out[:, k] += np.stack([np.interp(t1, T1, T2), grey, white]) / 3
    return out


def head_corners(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """LPS mm of the lower and upper corner of the box around the head."""
    inside = np.argwhere(template.t1 > 0.05)[:, ::-1]
    ends = template.grid.world(np.stack([inside.min(0), inside.max(0)]))
    return ends.min(0), ends.max(0)


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """3x3 matrix of turns about the L, P and S axis, in this order."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _labels(grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """What fills at least half of a voxel: 1 grey matter, 2 white matter, else 0."""
    return np.stack([np.full_like(grey, 0.5), grey, white]).argmax(0).astype(np.uint8)


def _whole(image: np.ndarray) -> np.ndarray:
    """0 to 1 as whole numbers, as scanners write them."""
    return np.rint(image * 1000).astype(np.int16)
