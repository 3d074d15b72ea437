"""What several test files share: grids as scanners make them, made heads, random deformations, the data folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from RegMambaLib.spatial.grid import Grid

DATA = Path(os.environ.get("REGMAMBA_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

# Centre (mm), radii (mm), turn about z (degrees), brightness added; the first is the head. Nothing is symmetric, so
# that a turned or mirrored head is not mistaken for the head.
STRUCTURES = (
    ((0.0, 0.0, 0.0), (66.0, 82.0, 60.0), 0.0, 0.5),
    ((0.0, 5.0, 4.0), (52.0, 66.0, 46.0), 5.0, 0.25),
    ((-16.0, 10.0, 8.0), (9.0, 26.0, 14.0), 12.0, -0.45),
    ((17.0, 4.0, 10.0), (7.0, 20.0, 10.0), -15.0, -0.4),
    ((22.0, -28.0, -12.0), (15.0, 18.0, 16.0), 30.0, 0.25),
    ((-26.0, -22.0, 18.0), (12.0, 17.0, 11.0), -40.0, -0.25),
    ((-6.0, 44.0, -16.0), (22.0, 12.0, 12.0), 10.0, 0.2),
    ((4.0, -4.0, -26.0), (14.0, 12.0, 10.0), 0.0, -0.3),
)
LABELS = tuple(range(1, len(STRUCTURES)))


def made_grid(size=(32, 30, 28), spacing=(4.5, 6.0, 5.5), turn=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0), flip=False):
    """A grid about `center` (LPS mm), turned by a rotation vector (degrees); `flip` makes it left-handed."""
    axes = Rotation.from_rotvec(turn, degrees=True).as_matrix() @ np.diag([-1.0 if flip else 1.0, 1.0, 1.0])
    origin = np.asarray(center) - axes @ ((np.asarray(size) - 1) / 2 * np.asarray(spacing))
    return Grid(size, spacing, tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def permuted_axes(image, order, flips):
    """The same volume stored another way: axes in another order, some reversed. World positions stay."""
    import SimpleITK as sitk

    image = sitk.PermuteAxes(image, order)
    return sitk.Flip(image, flips, False)  # the origin moves to the other end, the direction turns round


def world_of(grid):
    """(k, j, i, 3) LPS mm of every voxel."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    return grid.world(np.stack([i, j, k], -1))


def inside(points, structure):
    """About the distance (mm) of points to the border of an ellipsoid, positive within."""
    center, radii, turn, _ = structure
    local = (points - np.asarray(center)) @ Rotation.from_euler("z", turn, degrees=True).as_matrix()
    radius = np.sqrt(np.square(local / np.asarray(radii)).sum(-1))
    return (1 - radius) * min(radii)


def head_at(points):
    """Brightness, in [0, 1.1], of a made head at points (mm about its centre)."""
    value = np.zeros(points.shape[:-1])
    for structure in STRUCTURES:
        value += structure[3] / (1 + np.exp(-np.clip(inside(points, structure), -30, 30) / 1.5))
    x, y, z = np.moveaxis(points, -1, 0)
    folds = np.sin(x / 6 + np.sin(y / 17)) * np.sin(y / 7 + 1) * np.sin(z / 6.5 + np.sin(x / 15))
    return value + 0.2 * folds / (1 + np.exp(-np.clip(inside(points, STRUCTURES[1]), -30, 30) / 2))


def labels_at(points):
    """Labels 1 .. 7 of the structures within the head, 0 elsewhere."""
    found = np.zeros(points.shape[:-1], np.uint8)
    for label, structure in enumerate(STRUCTURES[1:], 1):
        found[inside(points, structure) > 0] = label
    return found


def head_points(count=200, seed=0, structure=0):
    """Random points (mm) within the head, or within one structure of it (1: where there is something to see)."""
    points = np.random.default_rng(seed).uniform(-85, 85, (40 * count, 3))
    return points[inside(points, STRUCTURES[structure]) > 0][:count]


def made_head(grid, to_head=None):
    """Image of the head on a grid; `to_head` takes world points (n, 3) to the head's own space."""
    points = world_of(grid).reshape(-1, 3)
    return grid.image((1000 * head_at(to_head(points) if to_head else points)).reshape(grid.shape).astype(np.float32))


def made_labels(grid, to_head=None):
    """The label map that belongs to `made_head`."""
    points = world_of(grid).reshape(-1, 3)
    return grid.image(labels_at(to_head(points) if to_head else points).reshape(grid.shape))


def apply(matrix, points):
    """Points (n, 3) through a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def linear(turn=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0), scale=1.0, shear=0.0):
    """A 4x4 from a rotation vector (degrees), a shift (mm), a scale and a shear."""
    matrix = np.eye(4)
    sheared = np.eye(3) + shear * np.array([[0.0, 1.0, -0.5], [0.3, 0.0, 0.6], [-0.4, 0.2, 0.0]])
    matrix[:3, :3] = scale * Rotation.from_rotvec(turn, degrees=True).as_matrix() @ sheared
    matrix[:3, 3] = shift
    return matrix


def random_displacement(shape, *, sigma=3.0, smallest=0.3, seed=0, faded=False):
    """A random smooth displacement (3, k, j, i) voxels whose smallest Jacobian determinant is about `smallest`.

    `faded`: it goes to zero towards the border of its grid.
    """
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    field = np.stack([ndimage.gaussian_filter(channel, sigma, mode="nearest") for channel in noise])
    if faded:
        middle = np.zeros(shape)
        middle[2:-2, 2:-2, 2:-2] = 1
        field *= ndimage.gaussian_filter(middle, 1.5)
    low, high = 0.0, 10.0 / np.abs(field).max()
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if determinants(middle * field).min() > smallest else (low, middle)
    return (low * field).astype(np.float32)


def determinants(u):
    """det(I + du/dx) by numpy's central differences, float64."""
    slope = np.stack([np.stack(np.gradient(channel.astype(np.float64))) for channel in u])
    return np.linalg.det(np.moveaxis(slope, (0, 1), (-2, -1)) + np.eye(3))


def smallest_determinants(u):
    """The smallest of the central and the eight one-sided determinants, where those differences exist."""
    u = u.astype(np.float64)
    smallest = determinants(u)
    for side in range(8):
        slope = np.full((3, 3, *u.shape[1:]), np.nan)
        for axis in range(3):
            step = np.diff(u, axis=axis + 1)
            at = [slice(None)] * 4
            at[axis + 1] = slice(1, None) if side >> axis & 1 else slice(None, -1)
            slope[(slice(None), axis, *at[1:])] = step
        found = np.linalg.det(np.moveaxis(np.nan_to_num(slope), (0, 1), (-2, -1)) + np.eye(3))
        smallest = np.where(np.isnan(slope).any((0, 1)), smallest, np.minimum(smallest, found))
    return smallest


def sampled(volume, u, order=1):
    """volume[x + u(x)] by scipy in float64; borders repeat."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in u.shape[1:]), indexing="ij"))
    return ndimage.map_coordinates(volume.astype(np.float64), index + u.astype(np.float64), order=order, mode="nearest")
