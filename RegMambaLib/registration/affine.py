"""Linear alignment with SimpleITK: mutual information, several starts, coarse to fine.

Where a field of view ends within the anatomy, nothing is known beyond: what pads it there is cut off, no voxel beyond
counts, and further starts slide one anatomy along the other, because centres of cut anatomies do not correspond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..spatial.grid import Grid
from ..spatial.itk import affine_matrix, affine_transform

if TYPE_CHECKING:
    import SimpleITK as sitk

# Search, coarse and fine level: voxels along the anatomy, and voxels the metric samples. A brain is seen at about
# 8, 4 and 2 mm.
LEVELS = ((20, 4_000), (40, 10_000), (80, 20_000))
TILT = np.deg2rad(20.0)
BINS = 32
# Share of the similarity that a further round must gain to be followed by another.
GAIN = 1e-3
# Starts that are optimised at the search level.
CANDIDATES = 3
# Slices whose anatomy has at most this share of the largest slice's area are padding, if the next one has at least
# the share of a cut. Heads and brains begin gradually: even 5 mm slices of a brain begin with less than 0.2.
PADDING, CUT = 0.05, 0.35
# The same at the last slice of an image, beyond which nothing is known in any case.
CUT_AT_FACE = 0.1
# Steps of the slides, as a share of the shorter anatomy; at the ends of a slide half of it overlaps.
SLIDE = 0.125
# Fewest voxels of anatomy that say how an image lies.
LEAST = 27
_alone = Lock()
# Two directions are the same below this angle.
SAME_WAY = np.cos(np.deg2rad(45.0))


@dataclass(frozen=True)
class Side:
    """One image for the linear stage: scaled to [0, 1], the anatomy's mask (k, j, i), optional metric mask."""

    image: sitk.Image
    foreground: np.ndarray
    mask: sitk.Image | None = None


@dataclass(frozen=True)
class _View:
    """What a side knows.

    Attributes:
        image: what lies around the anatomy, without padding.
        center: (3,) LPS mm, of the whole image.
        points: (n, 3) LPS mm of some voxels of the anatomy.
        ways: (n, 3) LPS unit vectors along which the field of view ends within the anatomy.
        mask: where the metric counts, or None.
    """

    image: sitk.Image
    center: np.ndarray
    points: np.ndarray
    ways: np.ndarray
    mask: sitk.Image | None


@contextmanager
def _one_thread() -> Iterator[int]:
    """ITK adds its threads' shares up in any order, so that a descent would not repeat; one thread does.

    Gives the number of threads that ITK had: independent descents may share them. The number is that of the process, so
    that one registration at a time is in here.
    """
    import SimpleITK as sitk

    with _alone:
        threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield threads
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


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
    `principal_axes` also the four proper alignments of the anatomies' principal axes; where a field of view cuts an
    anatomy, also slides along the cut direction. All are compared at low resolution, the best are optimised rigidly,
    and the winner is refined as `kind`.

    Args:
        kind: "rigid", "similarity" or "affine".
        initial: 4x4, fixed to moving; the only start when given. What is found is added to it.
        seed: of the metric's sampling; the result repeats with it, on any number of threads.
        progress: called with the share done; may raise to cancel.

    Raises:
        InputError: an image shows next to nothing.
    """
    for name, side in (("fixed", fixed), ("moving", moving)):
        seen = int(np.count_nonzero(side.foreground))
        if 0 < seen < LEAST:
            raise InputError(
                f"The {name} image shows next to nothing: {seen} voxels stand out from its background; check that it "
                "is the right one, or skip the linear stage (--affine none)."
            )
    tell = progress or (lambda share: None)
    with _one_thread() as threads, ThreadPoolExecutor(max(1, min(threads, CANDIDATES))) as pool:
        one, other = pool.map(_view, (fixed, moving))
        center = one.points.mean(0)
        search, coarse, fine = _levels(one, other, seed, initial)
        starts = [np.eye(4)] if initial is not None else _starts(one, other, principal_axes)
        ranked = sorted((_rigid(center, start) for start in starts), key=search.score)
        tell(0.1)
        best = min(pool.map(lambda start: search.optimise(start, 2), ranked[:CANDIDATES]), key=search.score)
        tell(0.3)
        transform = _as_kind(coarse.optimise(best, 2), kind, center)
        tell(0.4)
        transform = coarse.optimise(transform, 6)
        tell(0.6)
        found = affine_matrix(fine.optimise(transform, 3))
    tell(1.0)
    return found if initial is None else initial @ found


def _view(side: Side) -> _View:
    import SimpleITK as sitk

    foreground = side.foreground if side.foreground.any() else np.ones_like(side.foreground)
    grid = Grid.of(side.image)
    inner, outer, ways = [], [], []
    for axis, area in enumerate(_areas(foreground)):
        ends = _begin(area), _begin(area[::-1])
        low, high = ends[0][0], len(area) - ends[1][0]
        rim = (high - low) // 10 + 1
        inner.append((low, high))
        outer.append((low if ends[0][1] else max(low - rim, 0), high if ends[1][1] else min(high + rim, len(area))))
        if ends[0][1] or ends[1][1]:
            ways.append(grid.axes[:, axis] / grid.spacing[axis])
    image = sitk.RegionOfInterest(side.image, [high - low for low, high in outer], [low for low, _ in outer])
    box = tuple(slice(low, high) for low, high in reversed(inner))
    points = _points(grid, foreground[box], np.array([low for low, _ in inner]))
    return _View(image, grid.center, points, np.array(ways).reshape(-1, 3), side.mask)


def _areas(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of the anatomy in every slice along i, j and k."""
    along_k = foreground.view(np.uint8).sum(0, dtype=np.uint32)
    return along_k.sum(0), along_k.sum(1), np.array([np.count_nonzero(slab) for slab in foreground])


def _begin(area: np.ndarray) -> tuple[int, bool]:
    """First slice that holds anatomy and no padding, and whether the field of view begins there, within anatomy.

    A stack that is filled up to a wanted size begins with empty slices that are no air: next to them the anatomy
    begins at once.
    """
    share = area / area.max()
    if share[0] > CUT_AT_FACE:
        return 0, True
    step = int(np.argmax(share > PADDING))
    if share[step] >= CUT:
        return step, True
    return int(np.argmax(area > 0)), False


def _points(grid: Grid, foreground: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(n, 3) LPS mm of some foreground voxels of a box that begins at the index `first` (i, j, k)."""
    flat = np.flatnonzero(foreground)
    flat = flat[:: max(1, len(flat) // 20000)]
    index = np.stack(np.unravel_index(flat, foreground.shape)[::-1], -1)
    return grid.world(index + first)


def _starts(fixed: _View, moving: _View, principal_axes: bool) -> list[np.ndarray]:
    """4x4 start matrices, fixed to moving world."""
    center, moved_center = fixed.points.mean(0), moving.points.mean(0)
    starts = [_about(np.eye(3), fixed.center, moving.center)]
    starts.append(_about(np.eye(3), center, moved_center))
    for axis in range(3):
        for angle in (-TILT, TILT):
            starts.append(_about(_rotation(axis, angle), center, moved_center))
    if principal_axes:
        own, others = (np.linalg.eigh(np.cov(view.points.T))[1] for view in (fixed, moving))
        for flips in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            turn = others @ np.diag([flips[0], flips[1], 1.0]) @ own.T
            turn = turn if np.linalg.det(turn) > 0 else others @ np.diag([flips[0], flips[1], -1.0]) @ own.T
            starts.append(_about(turn, center, moved_center))
    ways: list[np.ndarray] = []
    for way in (*fixed.ways, *moving.ways):
        if all(abs(way @ known) < SAME_WAY for known in ways):
            ways.append(way)
            starts += _slides(fixed.points, moving.points, way)
    return starts


def _slides(points: np.ndarray, moved: np.ndarray, way: np.ndarray) -> list[np.ndarray]:
    """Starts that slide one anatomy (n, 3 points, LPS mm) along another; across the way, centres of mass meet.

    Only what overlaps along the way has a say in where the centres are.
    """
    at, there = points @ way, moved @ way
    shorter = min(np.ptp(at), np.ptp(there))
    first, last = there.min() - at.max() + shorter / 2, there.max() - at.min() - shorter / 2
    starts = []
    for offset in np.linspace(first, last, int(np.ceil((last - first) / max(SLIDE * shorter, 1e-3))) + 1):
        low, high = max(at.min(), there.min() - offset), min(at.max(), there.max() - offset)
        here, target = points[(at >= low) & (at <= high)], moved[(there >= low + offset) & (there <= high + offset)]
        if len(here) and len(target):
            source, shift = here.mean(0), target.mean(0) - here.mean(0)
            starts.append(_about(np.eye(3), source, source + shift + way * (offset - way @ shift)))
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


def _levels(fixed: _View, moving: _View, seed: int, initial: np.ndarray | None) -> list[_Level]:
    """The search, coarse and fine level; each is made from the next finer one."""
    spread = np.linalg.eigvalsh(np.cov(fixed.points.T)).max()
    extent = max(3.6 * float(np.sqrt(max(spread, 0.0))), 1e-3)  # about the anatomy's length along its longest axis
    levels: list[_Level] = []
    for n, samples in reversed(LEVELS):
        fixed, moving = (replace(view, image=_shrink(view.image, extent / n)) for view in (fixed, moving))
        levels.insert(0, _Level(fixed, moving, samples, seed, initial))
    return levels


def _shrink(image: sitk.Image, spacing: float) -> sitk.Image:
    """Block means about `spacing` mm wide; never finer than the image is."""
    import SimpleITK as sitk

    sizes = zip(image.GetSpacing(), image.GetSize(), strict=True)
    return sitk.BinShrink(image, [max(1, min(round(spacing / own), n // 4)) for own, n in sizes])


class _Level:
    """Mutual information between two images at one resolution, on about `samples` voxels."""

    def __init__(self, fixed: _View, moving: _View, samples: int, seed: int, initial: np.ndarray | None) -> None:
        self.fixed, self.moving, self.seed, self.initial = fixed, moving, seed, initial
        self.share = samples / fixed.image.GetNumberOfPixels()

    def score(self, transform: sitk.Transform) -> float:
        """Minus the mutual information times the overlap; 0 when the images do not overlap.

        Mutual information of few voxels is high by chance; what overlaps is the share of the one anatomy or the other
        that lies in the field of view of the other image, so that a part finds its place in the whole.
        """
        method = self._method()
        method.SetInitialTransform(transform, inPlace=False)
        try:
            value = float(method.MetricEvaluate(self.fixed.image, self.moving.image))
        except RuntimeError:
            return 0.0
        matrix = affine_matrix(transform) if self.initial is None else self.initial @ affine_matrix(transform)
        back = np.linalg.inv(matrix)
        return value * max(_inside(self.moving, self.fixed, matrix), _inside(self.fixed, self.moving, back))

    def optimise(self, transform: Any, rounds: int) -> Any:
        """`transform` (its class kept) after gradient descent; itself where the images do not overlap.

        One descent stops short of the optimum when its step has shrunk in a narrow valley, as those of shears and
        scales are; it starts anew with a fresh step, at most `rounds` times, until a round gains nothing.
        """
        value = np.inf
        for _ in range(rounds):
            method = self._method()
            method.SetOptimizerAsRegularStepGradientDescent(
                learningRate=1.0,
                minStep=1e-2,
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

    def _method(self) -> sitk.ImageRegistrationMethod:
        import SimpleITK as sitk

        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetInterpolator(sitk.sitkLinear)
        # The gradient filter is a Gaussian over all of the image: it takes longer than the samples' differences, and
        # its smoothed slopes, which are not those of the metric, lead the descent astray.
        method.SetMetricUseFixedImageGradientFilter(False)
        method.SetMetricUseMovingImageGradientFilter(False)
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


def _inside(view: _View, points_of: _View, matrix: np.ndarray) -> float:
    """Share of the points of one view that `matrix` (4x4) brings into the field of view of the other."""
    grid = Grid.of(view.image)
    index = grid.index(points_of.points[::10] @ matrix[:3, :3].T + matrix[:3, 3])
    return float(((index > -0.5) & (index < np.array(grid.size) - 0.5)).all(-1).mean())
