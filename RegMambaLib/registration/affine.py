"""Linear alignment with SimpleITK: mutual information, several starts, coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..spatial.grid import Grid
from ..spatial.itk import affine_matrix, affine_transform

if TYPE_CHECKING:
    import SimpleITK as sitk

# Search, coarse and fine level: voxels along the anatomy, and voxels the metric samples. A brain is seen at about
# 8, 4 and 2 mm.
LEVELS = ((20, 8_000), (40, 20_000), (80, 40_000))
TILT = np.deg2rad(20.0)
BINS = 32
# Share of the similarity that a further round must gain to be followed by another.
GAIN = 1e-3
# Squared correlation of the coarsely aligned images above which correlation, which converges better, finishes what
# mutual information began.
SAME_CONTRAST = 0.4


@dataclass(frozen=True)
class Side:
    """One image for the linear stage: scaled to [0, 1], the anatomy's mask (k, j, i), optional metric mask."""

    image: sitk.Image
    foreground: np.ndarray
    mask: sitk.Image | None = None


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK adds its threads' shares up in any order, so that a descent would not repeat; one thread does."""
    import SimpleITK as sitk

    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


@_one_thread()
def align(
    fixed: Side,
    moving: Side,
    kind: str,
    *,
    initial: np.ndarray | None = None,
    principal_axes: bool = False,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """The linear map from fixed to moving world, 4x4 in LPS mm.

    Starts: geometric centres and centres of mass, the latter also tilted by 20 degrees about every axis; with
    `principal_axes` also the four proper alignments of the anatomies' principal axes. All are compared at low
    resolution, the best are optimised rigidly, and the winner is refined as `kind`.

    Args:
        kind: "rigid", "similarity" or "affine".
        initial: 4x4, fixed to moving; the only start when given. What is found is added to it.
        seed: of the metric's sampling; the result repeats with it.
        progress: called with the share done; may raise to cancel.
    """
    center, extent = _center(fixed)
    search, coarse, fine = (
        _Level(_shrink(fixed, extent / n), _shrink(moving, extent / n), samples, seed, initial) for n, samples in LEVELS
    )
    tell = progress or (lambda share: None)
    starts = [np.eye(4)] if initial is not None else _starts(fixed, moving, center, principal_axes)
    ranked = sorted((_rigid(center, start) for start in starts), key=search.evaluate)
    tell(0.1)
    best = min((search.optimise(start, 2) for start in ranked[:3]), key=search.evaluate)
    tell(0.3)
    transform = _as_kind(coarse.optimise(best, 2), kind, center)
    tell(0.4)
    transform = coarse.optimise(transform, 6)
    tell(0.7)
    fine.correlation = -fine.evaluate(transform, correlation=True) > SAME_CONTRAST
    found = affine_matrix(fine.optimise(transform, 3))
    tell(1.0)
    return found if initial is None else initial @ found


def _center(side: Side) -> tuple[np.ndarray, float]:
    """Centre of mass of the anatomy (LPS mm) and its extent: about its length along the longest axis."""
    points = _points(side)
    spread = np.linalg.eigvalsh(np.cov(points.T))
    return points.mean(0), float(max(3.6 * np.sqrt(spread.max()), 1e-3))


def _points(side: Side) -> np.ndarray:
    """(n, 3) LPS mm of some foreground voxels."""
    index = np.argwhere(side.foreground)
    if len(index) < 16:
        index = np.argwhere(np.ones(side.foreground.shape, bool))
    index = index[:: max(1, len(index) // 20000)]
    return Grid.of(side.image).world(index[:, ::-1])


def _starts(fixed: Side, moving: Side, center: np.ndarray, principal_axes: bool) -> list[np.ndarray]:
    """4x4 start matrices, fixed to moving world."""
    fixed_points, moving_points = _points(fixed), _points(moving)
    moved_center = moving_points.mean(0)
    starts = [_about(np.eye(3), Grid.of(fixed.image).center, Grid.of(moving.image).center)]
    starts.append(_about(np.eye(3), center, moved_center))
    for axis in range(3):
        for angle in (-TILT, TILT):
            starts.append(_about(_rotation(axis, angle), center, moved_center))
    if principal_axes:
        own, other = (np.linalg.eigh(np.cov(p.T))[1] for p in (fixed_points, moving_points))
        for flips in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            turn = other @ np.diag([flips[0], flips[1], 1.0]) @ own.T
            turn = turn if np.linalg.det(turn) > 0 else other @ np.diag([flips[0], flips[1], -1.0]) @ own.T
            starts.append(_about(turn, center, moved_center))
    return starts


def _about(turn: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = target - turn @ source
    return matrix


def _rotation(axis: int, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn[a, a] = turn[b, b] = c
    turn[a, b], turn[b, a] = -s, s
    return turn


def _rigid(center: np.ndarray, matrix: np.ndarray) -> sitk.VersorRigid3DTransform:
    """The rigid ITK transform about `center` of a 4x4 matrix."""
    import SimpleITK as sitk

    transform = sitk.VersorRigid3DTransform()
    transform.SetCenter(center.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((matrix[:3, 3] + matrix[:3, :3] @ center - center).tolist())
    return transform


def _as_kind(rigid: sitk.VersorRigid3DTransform, kind: str, center: np.ndarray) -> sitk.Transform:
    import SimpleITK as sitk

    if kind == "rigid":
        return rigid
    if kind not in ("similarity", "affine"):
        raise InputError(f"Unknown linear stage {kind!r}; use affine, similarity, rigid or none.")
    transform = sitk.Similarity3DTransform() if kind == "similarity" else sitk.AffineTransform(3)
    transform.SetCenter(center.tolist())
    transform.SetMatrix(rigid.GetMatrix())
    transform.SetTranslation(rigid.GetTranslation())
    return transform


def _shrink(side: Side, spacing: float) -> Side:
    """Block means of the image's anatomy, about `spacing` mm wide; never finer than the image is."""
    import SimpleITK as sitk

    grid = Grid.of(side.image)
    ends = []
    for axis, n in zip((2, 1, 0), grid.size, strict=True):
        hit = np.flatnonzero(side.foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, n)
        rim = (high - low) // 10 + 1
        ends.append((max(low - rim, 0), min(high + rim, n)))
    image = side.image[tuple(slice(low, high) for low, high in ends)]
    block = [max(1, min(round(spacing / own), n // 4)) for own, n in zip(grid.spacing, image.GetSize(), strict=True)]
    return Side(sitk.BinShrink(image, block), side.foreground, side.mask)


class _Level:
    """Mutual information (or correlation) between two images at one resolution, on about `samples` voxels."""

    def __init__(self, fixed: Side, moving: Side, samples: int, seed: int, initial: np.ndarray | None) -> None:
        self.fixed, self.moving, self.seed, self.initial = fixed, moving, seed, initial
        self.correlation = False
        self.share = samples / fixed.image.GetNumberOfPixels()

    def evaluate(self, transform: sitk.Transform, *, correlation: bool = False) -> float:
        """Minus the similarity under `transform`; 0 when the images do not overlap there."""
        method = self._method(correlation)
        method.SetInitialTransform(transform, inPlace=False)
        try:
            return float(method.MetricEvaluate(self.fixed.image, self.moving.image))
        except RuntimeError:
            return 0.0

    def optimise(self, transform: Any, rounds: int) -> Any:
        """`transform` (its class kept) after gradient descent; itself where the images do not overlap.

        One descent stops short of the optimum when its step has shrunk in a narrow valley, as those of shears and
        scales are; it starts anew with a fresh step, at most `rounds` times, until a round gains nothing.
        """
        value = np.inf
        for _ in range(rounds):
            method = self._method(self.correlation)
            method.SetOptimizerAsRegularStepGradientDescent(
                learningRate=1.0,
                minStep=1e-3,
                numberOfIterations=40,
                relaxationFactor=0.7,
                gradientMagnitudeTolerance=1e-6,
                estimateLearningRate=method.Once,
            )
            method.SetOptimizerScalesFromJacobian()
            working = type(transform)(transform)
            method.SetInitialTransform(working, inPlace=True)
            try:
                method.Execute(self.fixed.image, self.moving.image)
            except RuntimeError as error:
                if "overlap" not in str(error) and "samples" not in str(error):
                    raise
                return transform
            before, value = value, float(method.GetMetricValue())
            if value >= before:
                return transform
            transform = type(transform)(working)
            if before - value < GAIN * abs(value):
                return transform
        return transform

    def _method(self, correlation: bool) -> sitk.ImageRegistrationMethod:
        import SimpleITK as sitk

        method = sitk.ImageRegistrationMethod()
        if correlation:
            method.SetMetricAsCorrelation()
        else:
            method.SetMetricAsMattesMutualInformation(BINS)
        method.SetInterpolator(sitk.sitkLinear)
        if self.share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(self.share, self.seed + 1)
        if self.fixed.mask is not None:
            method.SetMetricFixedMask(self.fixed.mask)
        if self.moving.mask is not None:
            method.SetMetricMovingMask(self.moving.mask)
        if self.initial is not None:
            method.SetMovingInitialTransform(affine_transform(self.initial))
        return method
