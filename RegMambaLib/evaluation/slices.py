"""Slices of a registration for pictures: in the fixed image's anatomical orientation, with square pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..io.transforms import flatten
from ..registration.grid import box_corners, canonical
from ..registration.preprocess import prepare
from ..spatial.grid import Grid
from ..spatial.itk import displacement_transform

if TYPE_CHECKING:
    import SimpleITK as sitk

PIXELS = 180
"""Pixels of a picture's longest side."""
MARGIN = 6.0
"""Millimetres shown around the anatomy."""
_LINES = 16
"""Lines of the deformed grid that a picture's longest side has, at least."""
_LINE_WIDTH = 1.3  # pixels


@dataclass(frozen=True)
class Orientation:
    """How slices across one axis of a canonical grid (L, P, S) are shown.

    Attributes:
        axis: of arrays (k, j, i): 0 axial, 1 coronal, 2 sagittal.
        marks: what lies on the left, the right, on top and at the bottom of the picture.
    """

    name: str
    axis: int
    marks: tuple[str, str, str, str]

    def show(self, plane: np.ndarray) -> np.ndarray:
        """A plane (rows, columns, ...) with the patient's head or front on top."""
        return plane[::-1] if self.axis else plane


# Radiological convention: the patient's right is on the left; sagittal slices look to the left.
ORIENTATIONS = (
    Orientation("axial", 0, ("R", "L", "A", "P")),
    Orientation("coronal", 1, ("R", "L", "S", "I")),
    Orientation("sagittal", 2, ("A", "P", "S", "I")),
)


@dataclass(frozen=True)
class Slices:
    """The slices of one orientation: each a grid of one voxel across, in fixed space.

    Attributes:
        places: millimetres of each along the axis, from the first voxel of the view.
    """

    orientation: Orientation
    grids: tuple[Grid, ...]
    places: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture, pixels."""
        shape = [n for axis, n in enumerate(self.grids[0].shape) if axis != self.orientation.axis]
        return shape[0], shape[1]

    def pictures(self, sample: Callable[[Grid], np.ndarray]) -> list[np.ndarray]:
        """(height, width, ...) of every slice, from what `sample` gives on its grid, (k, j, i, ...)."""
        axis = self.orientation.axis
        return [self.orientation.show(np.take(sample(grid), 0, axis)) for grid in self.grids]


def view_grid(fixed: sitk.Image, pixels: int = PIXELS) -> Grid:
    """A grid with cubic voxels around the anatomy of the fixed image, its axes those of the image, nearest to L, P, S.

    Its longest side has `pixels` voxels.
    """
    grid = Grid.of(fixed)
    own = canonical(grid)
    corners = own.index(box_corners(grid, prepare(fixed, "fixed").foreground()))
    margin = MARGIN / np.asarray(own.spacing)
    low = np.maximum(np.floor(corners.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(0) + margin), np.asarray(own.size) - 1).astype(int)
    start, size = low.tolist(), (high - low + 1).tolist()
    box = own.crop((start[0], start[1], start[2]), (size[0], size[1], size[2]))
    side = float((np.asarray(box.size) * box.spacing).max()) / pixels
    return box.with_spacing((side, side, side))


def cut(view: Grid, count: int) -> list[Slices]:
    """`count` slices in each of the three orientations, evenly spaced; one slice lies in the middle."""
    found = []
    for orientation in ORIENTATIONS:
        axis = 2 - orientation.axis  # of (i, j, k)
        n = view.size[axis]
        ends = 0.5 if count == 1 else 0.1
        where = np.unique(np.round(np.linspace(ends, 1 - ends, count) * (n - 1)).astype(int)).tolist()
        grids = []
        for place in where:
            start, size = [0, 0, 0], list(view.size)
            start[axis], size[axis] = place, 1
            grids.append(view.crop((start[0], start[1], start[2]), (size[0], size[1], size[2])))
        places = tuple(float(place * view.spacing[axis]) for place in where)
        found.append(Slices(orientation, tuple(grids), places))
    return found


def grey(image: sitk.Image, name: str) -> sitk.Image:
    """An image as uint8-like float32: 0 background, 255 its brightest tissue."""
    return prepare(image, name).image * 255.0


def sampler(
    image: sitk.Image, transform: sitk.Transform | None = None, *, labels: bool = False, default: float = 0.0
) -> Callable[[Grid], np.ndarray]:
    """What pulls an image onto a grid, (k, j, i); the transform goes from the grid's space to the image's."""
    import SimpleITK as sitk

    def sample(grid: Grid) -> np.ndarray:
        return sitk.GetArrayFromImage(grid.resample(image, transform, labels=labels, default=default))

    return sample


def line_distance(view: Grid) -> int:
    """Whole millimetres between the lines of the deformed grid: a power of two that suits the view."""
    longest = float((np.asarray(view.size) * view.spacing).max())
    return int(2 ** max(0.0, np.floor(np.log2(longest / _LINES))))


def line_cover(slices: Slices, distance: float, displacement: np.ndarray, grid: Grid) -> Iterator[np.ndarray]:
    """The deformed grid: (height, width) in 0 to 1 of every slice, 1 on a line.

    The lines are those of a regular grid in linearly aligned moving space, `line_distance` apart, pulled to fixed
    space as the moving image is.

    Args:
        distance: mm between lines.
        displacement: (3, k, j, i) voxels of `grid`, from fixed to linearly aligned moving space.
    """
    transform = displacement_transform(displacement, grid)
    across = 2 - slices.orientation.axis
    for plane in slices.grids:
        points = np.indices(plane.shape[::-1]).T + plane.index(flatten(transform, plane) + plane.origin)
        place = np.take(points, 0, slices.orientation.axis) * plane.spacing[0]  # (rows, columns, 3) mm
        cover = np.zeros(place.shape[:2])
        for axis in range(3):
            if axis == across:
                continue
            value = place[..., axis] / distance
            slope = np.hypot(*np.gradient(value))  # lines per pixel
            away = np.abs(value - np.round(value)) / np.maximum(slope, 1e-6)  # pixels
            cover = np.maximum(cover, np.clip(_LINE_WIDTH / 2 + 0.5 - away, 0, 1))
        yield slices.orientation.show(cover)


def outlines(labels: np.ndarray) -> np.ndarray:
    """Pixels of a label picture (height, width) that border on another label to the right or below."""
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[1:] != labels[:-1]
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    return edge


def without_linear_part(displacement: np.ndarray) -> np.ndarray:
    """What a displacement does beside the affine nearest to it: v with x + u(x) = affine(x + v(x)).

    The affine is by least squares at every eighth voxel. Both displacements (3, k, j, i) voxels, float32.
    """
    some = (slice(None), *(slice(None, None, 2),) * 3)
    start = np.indices(displacement.shape[1:], np.float32)
    end = start + displacement
    points = start[some].reshape(3, -1).T.astype(np.float64)
    known = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    solution = np.linalg.lstsq(known, end[some].reshape(3, -1).T, rcond=None)[0]
    back = np.linalg.inv(solution[:3].T)
    end -= solution[3].astype(np.float32)[:, None, None, None]
    return np.einsum("ab,bkji->akji", back.astype(np.float32), end) - start
