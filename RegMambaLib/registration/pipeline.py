"""`register`: the one function everything else calls."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, is_out_of_memory
from ..spatial import fields
from ..spatial.grid import Grid
from ..spatial.itk import affine_matrix, affine_transform
from ..threads import limited_threads
from .affine import Side, align
from .confidence import expected_error
from .contrast import SAME_CONTRAST, SIDES, carried, correlation, side_to_carry
from .device import find_device
from .grid import faded, padded, working_grid
from .inputs import check_inputs
from .network import chosen_weights, helps, load_weights, network_shape, predict, weights_contrast
from .preprocess import Prepared, prepare
from .refine import Maps, Pair, refine, with_extra_iterations
from .repair import repair_and_invert
from .result import Registration
from .settings import Settings
from .structures import structure_maps, wanted
from .view import is_cutout, similarity_weight

if TYPE_CHECKING:
    import SimpleITK as sitk

Progress = Callable[[str, float], None]

# Factors on the smoothing of the displacement where images differ in contrast. MIND-SSC forces are rougher than those
# of LNCC, most of all where noise is what differs; and however well one image is brought to the contrast of the other,
# what they do not share pulls too.
MIND_SMOOTHING, CARRIED_SMOOTHING = 2.25, 1.5
# Voxels around the anatomy that refinement still looks at.
RIM = 3


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    *,
    fixed_labels: sitk.Image | None = None,
    moving_labels: sitk.Image | None = None,
    fixed_mask: sitk.Image | None = None,
    moving_mask: sitk.Image | None = None,
    initial: sitk.Transform | None = None,
    settings: Settings = Settings(),  # noqa: B008 - immutable
    progress: Progress | None = None,
) -> Registration:
    """Align `moving` to `fixed`, wherever they lie in the world: linearly, by the network, then on the pair itself.

    Args:
        fixed, moving: 3-D scalar images; any size, spacing, direction.
        fixed_labels, moving_labels: label maps on the grids of their images; they pull only with `settings.guide`.
        fixed_mask, moving_mask: where the similarity counts (non-zero), on the grids of their images.
        initial: linear transform from fixed to moving space to start from.
        settings: see `Settings`.
        progress: called with (stage, share done of the stage); may raise `Cancelled`.

    Returns:
        The `Registration`; it maps points of fixed space to moving space.

    Raises:
        InputError: an input cannot be used; the message says which and why.
    """
    check_inputs(fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask, settings)
    if settings.device != "auto":
        find_device(settings.device)
    labels = (fixed_labels, moving_labels) if settings.guide else (None, None)
    given = (fixed, moving), labels, (fixed_mask, moving_mask), initial
    with limited_threads(settings.threads):
        try:
            return _register(*given, settings, _Run(progress))
        except Exception as error:
            if settings.device != "auto" or not is_out_of_memory(error) or find_device("auto") == "cpu":
                raise
            reason = "The graphics card has not enough memory; the registration begins again on the CPU."
        warnings.warn(reason, stacklevel=2)
        return _register(*given, replace(settings, device="cpu"), _Run(progress))


def _register(
    images: tuple[sitk.Image, sitk.Image],
    labels: tuple[sitk.Image | None, sitk.Image | None],
    masks: tuple[sitk.Image | None, sitk.Image | None],
    initial: sitk.Transform | None,
    settings: Settings,
    run: _Run,
) -> Registration:
    """The stages one after another; arguments are those of `register`, in pairs of fixed and moving."""
    fixed, moving = images
    with run.stage("preprocess"):
        sides = prepare(fixed, "fixed"), prepare(moving, "moving")
        foregrounds = sides[0].foreground(), sides[1].foreground()

    with run.stage("linear"):
        affine = _linear(sides, foregrounds, masks, initial, settings, run.report)

    with run.stage("preprocess"):
        grid = working_grid(Grid.of(fixed), foregrounds[0], Grid.of(moving), foregrounds[1], affine, settings.spacing)
        pair = _pair(grid, sides, affine, labels, masks, settings)
        cutout = any(map(is_cutout, sides))
        del sides, foregrounds  # refinement needs the memory
        alike = correlation(pair, grid.spacing[0]) > SAME_CONTRAST
        side = None if alike else side_to_carry(pair, grid.spacing[0])
        metric = settings.metric
        if metric == "auto":
            metric = "lncc" if alike or side else "mind"

    with run.stage("network"):
        device = find_device(settings.device)
        weights = chosen_weights(settings.weights, one_contrast=alike or side is not None, cutout=cutout)
        run.details.update(weights=weights, network_used=False)
        start: np.ndarray | None = None
        maps: tuple[Maps, ...] = ()
        if weights != "none":
            level = pair.at(network_shape(pair.fixed.shape, grid.spacing[0]))
            start = _network(weights, level, side, alike, settings, device, run.details)
            if wanted(settings, weights, alike):
                maps = structure_maps(pair, level, device=device)
        run.details["structures_used"] = bool(maps)
        pair = replace(pair, maps=maps)
        run.details.update(
            metric=metric,
            device=device,
            contrast_carried=side,
        )

    with run.stage("refine"):
        refining = with_extra_iterations(settings, int(pair.active.sum()))
        run.details["iterations"] = list(refining.iterations)
        if side and metric == "lncc":
            if start is not None:  # once the pair is aligned, it shows better which side that is
                side = side_to_carry(pair, grid.spacing[0], start) or side
                run.details["contrast_carried"] = side
            pair = carried(pair, side, start)
        smoothing = MIND_SMOOTHING if metric == "mind" else CARRIED_SMOOTHING if side else 1.0
        u = refine(pair, refining, start=start, metric=metric, smoothing=smoothing, device=device, progress=run.report)

    with run.stage("repair"):
        doubt = _doubt(pair, u, grid.spacing[0]) if settings.uncertainty else None
        u, grid = faded(u, grid)
        result = repair_and_invert(u, grid.spacing[0], repair=settings.repair, device=device)
        run.details.update(
            grid_size=list(grid.size),
            grid_spacing=grid.spacing[0],
            repaired_voxels=result.repaired,
            folded_voxels=result.folded,
            inverse_error_mm=result.error * grid.spacing[0],
        )

    return Registration(
        grid=grid,
        displacement=result.displacement,
        inverse_displacement=result.inverse,
        affine=affine,
        fixed_grid=Grid.of(fixed),
        moving_grid=Grid.of(moving),
        uncertainty=None if doubt is None else padded(doubt, grid.shape),
        seconds=run.seconds,
        settings=settings,
        details=run.details,
    )


@dataclass
class _Run:
    """Times the stages and passes their progress on."""

    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    current: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.current = name
        self.report(0.0)
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        self.report(1.0)

    def report(self, share: float) -> None:
        if self.progress is not None:
            self.progress(self.current, share)


def _linear(
    sides: tuple[Prepared, Prepared],
    foregrounds: tuple[np.ndarray, np.ndarray],
    masks: tuple[sitk.Image | None, sitk.Image | None],
    initial: sitk.Transform | None,
    settings: Settings,
    report: Callable[[float], None],
) -> np.ndarray:
    start = None if initial is None else affine_matrix(initial)
    if start is not None and np.linalg.cond(start[:3, :3]) > 1e6:
        raise InputError("The initial transform flattens space and cannot be inverted; give another one, or none.")
    if settings.affine == "none":
        return np.eye(4) if start is None else start
    fixed, moving = (
        Side(side.image, foreground, None if mask is None else mask != 0)
        for side, foreground, mask in zip(sides, foregrounds, masks, strict=True)
    )
    try:
        return align(
            fixed,
            moving,
            settings.affine,
            initial=start,
            principal_axes=settings.principal_axes,
            seed=settings.seed,
            progress=report,
        )
    except RuntimeError as error:  # ITK's, where a mask leaves it nothing to compare
        if masks == (None, None) or is_out_of_memory(error):
            raise
        raise InputError(
            "The masks hold too little of what the images show for the linear stage; give larger ones, or skip it "
            "(--affine none)."
        ) from error


def _pair(
    grid: Grid,
    sides: tuple[Prepared, Prepared],
    affine: np.ndarray,
    labels: tuple[sitk.Image | None, sitk.Image | None],
    masks: tuple[sitk.Image | None, sitk.Image | None],
    settings: Settings,
) -> Pair:
    """Everything refinement needs, on the working grid."""
    import SimpleITK as sitk

    identity = affine_transform(np.eye(4))
    through = identity, affine_transform(affine)

    def array(image: sitk.Image, transform: sitk.Transform, labels: bool = False) -> np.ndarray:
        return sitk.GetArrayFromImage(grid.resample(image, transform, labels=labels))

    images = [array(side.image, t) for side, t in zip(sides, through, strict=True)]
    # Whole rows from the anatomy's first to its last voxel: nothing inside is lost, and air outside costs nothing.
    anatomy = [image > side.threshold for image, side in zip(images, sides, strict=True)]
    if not (anatomy[0] & anatomy[1]).any():
        raise InputError(
            "What the two images show does not overlap where they lie; let the linear stage bring them together "
            "(--affine affine), or give an initial transform."
        )
    active = fields.within(fields.spans_of(anatomy[0] | anatomy[1], RIM), grid.size[0])
    images = [image * active for image in images]
    fixed_classes, moving_classes, count = _label_classes(labels, through, array)
    return Pair(
        images[0],
        images[1],
        similarity_weight(grid, sides, through, masks),
        fixed_classes,
        moving_classes,
        count,
        active,
    )


def _label_classes(
    labels: tuple[sitk.Image | None, sitk.Image | None],
    through: tuple[sitk.Transform, sitk.Transform],
    array: Callable[..., np.ndarray],
) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Label maps on the grid as int32 classes: 0 background and what only one map has, then the common labels."""
    if labels[0] is None or labels[1] is None:
        return None, None, 0
    fixed, moving = array(labels[0], through[0], labels=True), array(labels[1], through[1], labels=True)
    common = np.setdiff1d(np.intersect1d(fixed, moving), [0])
    if common.size == 0:
        raise InputError("The two label maps have no label in common; label guidance needs at least one.")

    def classes(values: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(common, values), common.size - 1)
        return np.where(common[place] == values, place + 1, 0).astype(np.int32)

    return classes(fixed), classes(moving), common.size + 1


def _network(
    weights: str,
    level: Pair,
    side: str | None,
    alike: bool,
    settings: Settings,
    device: str,
    details: dict[str, Any],
) -> np.ndarray | None:
    """The network's displacement of a pair on its own grid, or None: not made for this pair, or no help for it.

    Weights see pairs of the contrast they were trained on. Where the images differ, one is brought to the contrast of
    the other, in both ways, because which of them looks like the training images is not known; the better answer
    counts. Refinement keeps to the side whose tones fit best. Weights whose card says `contrast: any` are asked about
    the images as they are.
    """
    as_they_are = alike or weights_contrast(weights) == "any"
    if not as_they_are and side is None:
        details["network_skipped"] = "the images differ in contrast"
        return None
    from ..scan import use_backend

    network = load_weights(weights)
    tried = []
    for choice in [None] if as_they_are else SIDES:
        shown = level if choice is None else carried(level, choice)
        with use_backend(settings.scan):
            found = predict(network, shown.fixed, shown.moving, device=device)
        tried.append((helps(shown.fixed, shown.moving, found), found, choice))
    (better, before, after), found, choice = max(tried, key=lambda trial: trial[0][2])
    details.update(network_similarity=[before, after], network_carried=choice, network_used=better)
    if not better:
        details["network_skipped"] = "its displacement made the images less alike"
        return None
    return found


def _doubt(pair: Pair, u: np.ndarray, spacing: float) -> np.ndarray:
    """The error to expect where there is anatomy, 0 elsewhere, (k, j, i) float32 mm."""
    return expected_error(pair.fixed, fields.warp(pair.moving, u), u, spacing) * pair.active
