"""Pairs of made-up images from label maps: known anatomy, random contrast, any size and spacing.

Method: SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthMorph (Hoffmann et al., IEEE TMI
2022), with two different subjects in a pair, because cortical folding differs between people and no smooth
random deformation makes that difference. `SyntheticSettings()` makes T1-like pairs of brains; `GENERAL` makes
pairs whose two images differ in contrast, and shapes that are no brains. There each pair also has two clean
images of one contrast, which no network sees: the loss compares those, so that contrast-free training can use
local correlation, which says more about a pair than the overlap of labels does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numba import njit
from scipy import ndimage
from scipy.spatial.transform import Rotation

from RegMambaLib.training.anatomy import SULCAL_CSF, Anatomy
from RegMambaLib.training.contrast import CSF_LABELS, RIMS, other_contrast, t1_table
from RegMambaLib.training.shapes import random_shapes

Range = tuple[float, float]


@dataclass(frozen=True)
class SyntheticSettings:
    """Ranges the pairs are drawn from, uniformly unless stated. Lengths in mm of the common frame.

    Intensities are relative to white matter 1 before normalisation. The kinds of randomness are those of
    SynthSeg and SynthMorph; the ranges are narrower, set by eye until slices and histograms looked like
    linearly aligned, skull-stripped T1 brains.

    Attributes:
        pose_rotation, pose_shift: of both brains together, largest, degrees and mm; the head in the scanner.
        rotation: of each brain about each axis, largest, degrees. What a linear pre-alignment leaves.
        scaling: largest relative change of size along each axis.
        shear: largest shear.
        shift: largest translation along each axis.
        coarse_bend, fine_bend: largest standard deviation of the two smooth random displacements.
        coarse_knots, fine_knots: distance between the random values of these, before smoothing.
        grey: of cortex.
        csf: of cerebrospinal fluid.
        structure_spread: standard deviation of the brightness of each structure.
        contrast_spread: standard deviation of grey and CSF between the two images of a pair.
        blur: sigma of the point spread beyond the voxel, in voxels.
        texture: standard deviation of smooth (1.5 voxels) grain in tissue.
        noise: standard deviation of the white noise.
        bias: standard deviation of the logarithm of the bias field.
        bias_knots: distance between the random values of the bias field.
        gamma: standard deviation of the logarithm of the exponent, normal.
        keep_csf: probability that sulcal CSF stays in the image after skull-stripping.
        keep_rim: probability that the next shell outside the brain stays, given that the last one did.
        other_contrast: probability that an image has any contrast, its own, instead of a T1-like one.
        thick: sigma of the blur along one axis, as thick slices have it, in voxels.
        shapes: probability that a pair shows random shapes instead of given anatomies.
        shape_bend: `coarse_bend` of shapes; both images are deformed from one map.
        shape_count, shape_knots: how many shapes there are, and the distance between the random values
            that they come from.
        crops: probability that a pair of given anatomies is a cut-out of them, as a small field of view gives.
        crop_size: its edge in voxels.
        crop_spacing: its spacing.
        crop_shift: largest distance of its centre from that of the frame, along each axis.
    """

    pose_rotation: float = 10.0
    pose_shift: float = 6.0
    rotation: float = 5.0
    scaling: float = 0.06
    shear: float = 0.03
    shift: float = 4.0
    coarse_bend: float = 3.0
    coarse_knots: float = 40.0
    fine_bend: float = 1.2
    fine_knots: float = 16.0
    grey: Range = (0.5, 0.8)
    csf: Range = (0.02, 0.35)
    structure_spread: float = 0.05
    contrast_spread: float = 0.03
    blur: Range = (0.3, 1.0)
    texture: Range = (0.0, 0.05)
    noise: Range = (0.0, 0.03)
    bias: Range = (0.0, 0.15)
    bias_knots: float = 60.0
    gamma: float = 0.12
    keep_csf: float = 0.9
    keep_rim: float = 0.6
    other_contrast: float = 0.0
    thick: Range = (0.0, 0.0)
    shapes: float = 0.0
    shape_bend: float = 5.0
    shape_count: tuple[int, int] = (8, 20)
    shape_knots: Range = (14.0, 40.0)
    crops: float = 0.0
    crop_size: tuple[int, int] = (56, 72)
    crop_spacing: Range = (1.0, 1.6)
    crop_shift: float = 40.0


# Any contrast, noisier and less even images, shapes and cut-outs.
GENERAL = SyntheticSettings(
    other_contrast=1.0,
    structure_spread=0.08,
    texture=(0.0, 0.08),
    noise=(0.0, 0.06),
    bias=(0.0, 0.3),
    gamma=0.2,
    thick=(0.0, 1.5),
    shapes=0.2,
    crops=0.2,
)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images float32 (H, W, D) in 0..1 with background 0, and their labels uint8 of the same shape.

    The clean images show the same two anatomies, without noise and in one contrast, where the contrasts of
    the images differ; else they are the images themselves.
    """

    fixed: np.ndarray
    moving: np.ndarray
    fixed_labels: np.ndarray
    moving_labels: np.ndarray
    fixed_clean: np.ndarray
    moving_clean: np.ndarray


@njit(nogil=True, cache=True)
def _render(labels, brightness, matrix, offset, bend, image, out_labels):
    """Trilinear `brightness[labels]` and nearest `labels` at `matrix x + offset + bend(x)`."""
    size_h, size_w, size_d = labels.shape
    for h in range(image.shape[0]):
        for w in range(image.shape[1]):
            for d in range(image.shape[2]):
                p = matrix[0, 0] * h + matrix[0, 1] * w + matrix[0, 2] * d + offset[0] + bend[0, h, w, d]
                q = matrix[1, 0] * h + matrix[1, 1] * w + matrix[1, 2] * d + offset[1] + bend[1, h, w, d]
                r = matrix[2, 0] * h + matrix[2, 1] * w + matrix[2, 2] * d + offset[2] + bend[2, h, w, d]
                i, j, k = int(np.floor(p)), int(np.floor(q)), int(np.floor(r))
                if i < 0 or j < 0 or k < 0 or i >= size_h - 1 or j >= size_w - 1 or k >= size_d - 1:
                    image[h, w, d] = 0
                    out_labels[h, w, d] = 0
                    continue
                a, b, c = p - i, q - j, r - k
                total = 0.0
                for di in range(2):
                    for dj in range(2):
                        for dk in range(2):
                            share = (a if di else 1 - a) * (b if dj else 1 - b) * (c if dk else 1 - c)
                            total += share * brightness[labels[i + di, j + dj, k + dk]]
                image[h, w, d] = total
                out_labels[h, w, d] = labels[i + (a >= 0.5), j + (b >= 0.5), k + (c >= 0.5)]


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knots: float, spread: float) -> np.ndarray:
    """Smooth random field on a coarse grid, float32 `shape`; `knots` in its voxels."""
    values = rng.standard_normal([max(2, round(n / knots) + 1) for n in shape]).astype(np.float32)
    # Linear interpolation has creases at the knots; they would show as folds in the Jacobian.
    smooth = ndimage.gaussian_filter(_stretched(values, shape), 0.35 * knots, truncate=2.5, mode="nearest")
    return smooth * np.float32(spread / max(float(smooth.std()), 1e-6))


def _stretched(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Trilinear interpolation of (h, w, d) to `shape`, corner on corner."""
    tensor = torch.from_numpy(values)[None, None]
    return torch.nn.functional.interpolate(tensor, shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def _random_rotation(rng: np.random.Generator, largest: float) -> np.ndarray:
    """Rotation matrix of up to `largest` degrees about each axis."""
    return Rotation.from_euler("xyz", rng.uniform(-largest, largest, 3), degrees=True).as_matrix()


def _random_affine(rng: np.random.Generator, settings: SyntheticSettings) -> tuple[np.ndarray, np.ndarray]:
    turn = _random_rotation(rng, settings.rotation)
    shear = np.eye(3) + np.triu(rng.uniform(-settings.shear, settings.shear, (3, 3)), 1)
    size = np.diag(1 + rng.uniform(-settings.scaling, settings.scaling, 3))
    return turn @ shear @ size, rng.uniform(-settings.shift, settings.shift, 3)


@dataclass(frozen=True, eq=False)
class _Look:
    """What the two images of a pair share: brightness of structures, pose, frame, strength of deformation."""

    shape: tuple[int, int, int]
    spacing: float
    pose: tuple[np.ndarray, np.ndarray]
    table: np.ndarray
    coarse_bend: float


def _brightness(rng: np.random.Generator, settings: SyntheticSettings, table: np.ndarray) -> np.ndarray:
    """The table of one image (256,): the pair's T1-like one with its own small differences and shells outside."""
    csf = max(0.0, table[CSF_LABELS[0]] + settings.contrast_spread * rng.standard_normal())
    grey = settings.contrast_spread * rng.standard_normal()
    out = table + grey * (1 - table) + settings.structure_spread * rng.standard_normal(256)
    # The two sides of the brain are told apart by the label numbers, not by the scanner.
    for left, right in ((2, 41), (3, 42), (7, 46), (8, 47)):
        out[right] = out[left] + 0.2 * (out[right] - out[left])
    out[list(CSF_LABELS)] = csf
    out[SULCAL_CSF] = csf if rng.random() < settings.keep_csf else 0.0
    out[list(RIMS)] = csf * np.cumprod(rng.random(3) < settings.keep_rim)
    out[0] = 0.0
    return np.maximum(out, 0)


def _render_image(
    anatomy: Anatomy, look: _Look, rng: np.random.Generator, settings: SyntheticSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One deformed anatomy: image float32 in 0..1, labels uint8, clean image float32, all of the look's shape."""
    shape, spacing = look.shape, look.spacing
    affine, shift = _random_affine(rng, settings)
    matrix, shift = affine @ look.pose[0] * spacing, shift + affine @ look.pose[1]
    offset = (np.array(anatomy.labels.shape) - 1) / 2 + shift - matrix @ ((np.array(shape) - 1) / 2)
    # Smooth fields are made on a grid of every fourth voxel: 64 times fewer values to draw and filter.
    coarse, step = tuple(-(-n // 4) + 1 for n in shape), 4 * spacing
    bend = np.stack(
        [
            _stretched(
                _smooth_noise(rng, coarse, settings.coarse_knots / step, rng.uniform(0, look.coarse_bend))
                + _smooth_noise(rng, coarse, settings.fine_knots / step, rng.uniform(0, settings.fine_bend)),
                shape,
            )
            for _ in range(3)
        ]
    )
    log_bias = _stretched(_smooth_noise(rng, coarse, settings.bias_knots / step, rng.uniform(*settings.bias)), shape)
    table = _brightness(rng, settings, look.table) if anatomy.brain else look.table
    render = partial(_rendered, anatomy.labels, matrix=matrix, offset=offset, bend=bend)
    image, labels = render(table)
    inside = image > 0.02
    if settings.other_contrast == 0:
        image = _scanned(image, inside, log_bias, rng, settings)
        return image, labels, image
    clean = ndimage.gaussian_filter(render(look.table)[0], 0.5)
    if rng.random() < settings.other_contrast:
        image, _ = render(other_contrast(rng, table))
    return _scanned(image, inside, log_bias, rng, settings), labels, clean


def _rendered(
    labels: np.ndarray, table: np.ndarray, *, matrix: np.ndarray, offset: np.ndarray, bend: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness float32 and labels uint8 on the grid of `bend`."""
    image, out_labels = np.empty(bend.shape[1:], np.float32), np.empty(bend.shape[1:], np.uint8)
    _render(labels, table.astype(np.float32), matrix, offset, bend, image, out_labels)
    return image, out_labels


def _scanned(
    image: np.ndarray, inside: np.ndarray, log_bias: np.ndarray, rng: np.random.Generator, settings: SyntheticSettings
) -> np.ndarray:
    """What a scanner makes of true brightness: blur, grain, bias field, noise, grey scale; 0 where not `inside`."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    smooth_grain = ndimage.gaussian_filter(grain, 1.5, truncate=2)
    smooth_grain *= rng.uniform(*settings.texture) / smooth_grain.std()
    blur = np.full(3, rng.uniform(*settings.blur))
    blur[rng.integers(3)] += rng.uniform(*settings.thick)
    image = ndimage.gaussian_filter(image, blur) * (1 + smooth_grain)
    image *= np.exp(log_bias)
    image += rng.uniform(*settings.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    # Skull-stripped images are exactly 0 outside, and the pipeline scales them by a high percentile of the
    # inside.
    image = np.where(inside, np.maximum(image, 0), 0)
    if inside.any():
        image = np.minimum(image / max(float(np.percentile(image[inside], 99.5)), 1e-6), 1)
    return (image ** np.exp(settings.gamma * rng.standard_normal())).astype(np.float32)


def random_pair(
    anatomies: list[Anatomy],
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    spacing: float,
    settings: SyntheticSettings,
) -> Pair:
    """Two different subjects, or one set of shapes twice, each deformed on its own.

    Args:
        anatomies: at least two; none are needed where `settings.shapes` is 1.
        rng: source of all randomness; an equal state gives an equal pair.
        shape: (H, W, D) of the images in voxels, along S, P, L.
        spacing: of the voxels, mm, the same along all axes. Cut-outs have a shape and spacing of their own.
    """
    given = rng.random() >= settings.shapes
    if given:
        first, second = (anatomies[i] for i in rng.choice(len(anatomies), 2, replace=False))
    else:
        first = second = random_shapes(
            rng, int(rng.integers(*settings.shape_count)), settings.shape_knots, bool(rng.random() < 0.5)
        )
    if first.brain:
        table = t1_table(rng.uniform(*settings.grey), rng.uniform(*settings.csf))
    else:
        table = rng.uniform(0.1, 1.0, 256)
        table[0] = 0.0
    reach = settings.pose_shift
    if given and rng.random() < settings.crops:
        edges = rng.integers(*settings.crop_size, size=3)
        shape = int(edges[0]), int(edges[1]), int(edges[2])
        spacing, reach = rng.uniform(*settings.crop_spacing), settings.crop_shift
    pose = _random_rotation(rng, settings.pose_rotation), rng.uniform(-reach, reach, 3)
    bend = settings.coarse_bend if given else settings.shape_bend
    look = _Look(shape, spacing, pose, table, bend)
    render = partial(_render_image, look=look, rng=rng, settings=settings)
    fixed, fixed_labels, fixed_clean = render(first)
    moving, moving_labels, moving_clean = render(second)
    return Pair(fixed, moving, fixed_labels, moving_labels, fixed_clean, moving_clean)
