"""The sampling grid of a volume: where its voxels are in the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import SimpleITK as sitk

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """A regular, possibly oblique or left-handed 3-D grid in LPS mm.

    Attributes:
        size: voxels along (i, j, k).
        spacing: mm along (i, j, k), positive.
        origin: LPS mm of the centre of voxel (0, 0, 0).
        direction: row-major 3x3 matrix; its columns are the unit vectors of i, j, k in LPS.
    """

    size: tuple[int, int, int]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid of a 3-D SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (k, j, i)."""
        i, j, k = self.size
        return k, j, i

    @property
    def axes(self) -> np.ndarray:
        """3x3 matrix that turns an index difference (i, j, k) into LPS mm: direction times spacing."""
        return np.asarray(self.direction, float).reshape(3, 3) * np.asarray(self.spacing, float)

    @property
    def index_to_world(self) -> np.ndarray:
        """4x4 matrix from index (i, j, k, 1) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def center(self) -> np.ndarray:
        """LPS mm of the middle of the volume."""
        return self.world(np.asarray([(n - 1) / 2 for n in self.size]))

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) LPS mm of the corner voxels' centres."""
        ends = [(0, n - 1) for n in self.size]
        return self.world(np.array([[i, j, k] for i in ends[0] for j in ends[1] for k in ends[2]], float))

    def world(self, index: np.ndarray) -> np.ndarray:
        """LPS mm of (..., 3) continuous indices (i, j, k)."""
        return np.asarray(index, float) @ self.axes.T + np.asarray(self.origin, float)

    def index(self, points: np.ndarray) -> np.ndarray:
        """Continuous indices (i, j, k) of (..., 3) points in LPS mm."""
        return (np.asarray(points, float) - np.asarray(self.origin, float)) @ np.linalg.inv(self.axes).T

    def with_spacing(self, spacing: Triple) -> Grid:
        """The grid with other spacing over the same extent (outer voxel borders kept, size rounded up)."""
        extent = np.asarray(self.size) * np.asarray(self.spacing)
        size = np.maximum(np.ceil(extent / np.asarray(spacing) - 1e-3).astype(int), 1)
        # Centre the new voxels in the old extent.
        middle = (size - 1) / 2 * np.asarray(spacing)
        direction = np.asarray(self.direction).reshape(3, 3)
        return Grid(
            (int(size[0]), int(size[1]), int(size[2])),
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            _triple(self.center - direction @ middle),
            self.direction,
        )

    def crop(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Grid:
        """The grid of `size` voxels from index `start`, both (i, j, k); may reach outside (padding)."""
        return Grid(size, self.spacing, _triple(self.world(np.asarray(start))), self.direction)

    def same_as(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Whether both have the same size and no corner differs by more than `tolerance` voxels."""
        if self.size != other.size:
            return False
        return bool(np.abs(self.index(other.corners) - self.index(self.corners)).max() <= tolerance)

    def image(self, array: np.ndarray) -> sitk.Image:
        """A SimpleITK image on this grid: (k, j, i) scalar, or (k, j, i, 3) vectors."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def resample(
        self,
        image: sitk.Image,
        transform: sitk.Transform | None = None,
        *,
        labels: bool = False,
        default: float = 0.0,
    ) -> sitk.Image:
        """`image` pulled onto this grid through `transform` (this space -> the image's space).

        Linear interpolation, or nearest neighbour for `labels` (pixel type kept). Outside: `default`.
        """
        import SimpleITK as sitk

        return sitk.Resample(
            image,
            self.size,
            transform if transform is not None else sitk.Transform(3, sitk.sitkIdentity),
            sitk.sitkNearestNeighbor if labels else sitk.sitkLinear,
            self.origin,
            self.spacing,
            self.direction,
            default,
            image.GetPixelID() if labels else sitk.sitkFloat32,
        )


def _triple(values: np.ndarray) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
