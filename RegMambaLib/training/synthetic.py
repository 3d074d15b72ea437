"""Pairs of made-up T1 brains from label maps: known anatomy, random contrast, any size and spacing.

Method: SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthMorph (Hoffmann et al., IEEE TMI
2022), with T1-like instead of arbitrary contrast, because this network is compared on T1 pairs by local
correlation, and with two different subjects in a pair, because cortical folding differs between people and
no smooth random deformation makes that difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numba import njit
from scipy import ndimage
from scipy.spatial.transform import Rotation

from RegMambaLib.training.anatomy import RIM_FAR, RIM_MIDDLE, RIM_NEAR, SULCAL_CSF, Anatomy

Range = tuple[float, float]

_CSF_LABELS = (4, 5, 14, 15, 24, 43, 44, 72, SULCAL_CSF, RIM_NEAR, RIM_MIDDLE, RIM_FAR)
# Brightness of a structure in T1 between grey (0) and white matter (1); what is not listed counts as grey, a
# little above cortex. Set by eye in the usual order of T1; `SyntheticSettings.structure_spread` blurs it.
_WHITENESS = {
    **dict.fromkeys((2, 41), 1.0),
    **dict.fromkeys((3, 42), 0.0),
    **dict.fromkeys((7, 46), 0.9),
    **dict.fromkeys((8, 47), 0.05),
    **dict.fromkeys((10, 49), 0.5),
    **dict.fromkeys((11, 50), 0.1),
    **dict.fromkeys((12, 51), 0.25),
    **dict.fromkeys((13, 52), 0.7),
    **dict.fromkeys((17, 53, 18, 54), 0.05),
    **dict.fromkeys((26, 58), 0.15),
    **dict.fromkeys((28, 60), 0.75),
    16: 0.8,
    85: 0.6,
    **dict.fromkeys((25, 57), 0.6),
}
_OTHER_WHITENESS = 0.3


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


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images float32 (H, W, D) in 0..1 with background 0, and their labels uint8 of the same shape."""

    fixed: np.ndarray
    moving: np.ndarray
    fixed_labels: np.ndarray
    moving_labels: np.ndarray


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


def _brightness(rng: np.random.Generator, settings: SyntheticSettings, grey: float, csf: float) -> np.ndarray:
    """Mean intensity of every label number, float32 (256,)."""
    grey += settings.contrast_spread * rng.standard_normal()
    csf = max(0.0, csf + settings.contrast_spread * rng.standard_normal())
    table = np.full(256, grey + _OTHER_WHITENESS * (1 - grey))
    for label, whiteness in _WHITENESS.items():
        table[label] = grey + whiteness * (1 - grey)
    table += settings.structure_spread * rng.standard_normal(256)
    # The two sides of the brain are told apart by the label numbers, not by the scanner.
    for left, right in ((2, 41), (3, 42), (7, 46), (8, 47)):
        table[right] = table[left] + 0.2 * (table[right] - table[left])
    table[list(_CSF_LABELS)] = csf
    table[SULCAL_CSF] = csf if rng.random() < settings.keep_csf else 0.0
    rim = np.cumprod(rng.random(3) < settings.keep_rim)
    table[[RIM_NEAR, RIM_MIDDLE, RIM_FAR]] = csf * rim
    table[0] = 0.0
    return np.maximum(table, 0).astype(np.float32)


def render_brain(
    anatomy: Anatomy,
    *,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: float,
    pose: tuple[np.ndarray, np.ndarray],
    grey: float,
    csf: float,
    settings: SyntheticSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """One deformed brain: image float32 in 0..1 and labels uint8, both `shape` voxels of `spacing` mm.

    pose: (3, 3) rotation and (3,) shift in mm, before the brain's own; `grey`, `csf` as in the settings.
    """
    affine, shift = _random_affine(rng, settings)
    matrix, shift = affine @ pose[0] * spacing, shift + affine @ pose[1]
    offset = (np.array(anatomy.labels.shape) - 1) / 2 + shift - matrix @ ((np.array(shape) - 1) / 2)
    # Smooth fields are made on a grid of every fourth voxel: 64 times fewer values to draw and filter.
    coarse, step = tuple(-(-n // 4) + 1 for n in shape), 4 * spacing
    bend = np.stack(
        [
            _stretched(
                _smooth_noise(rng, coarse, settings.coarse_knots / step, rng.uniform(0, settings.coarse_bend))
                + _smooth_noise(rng, coarse, settings.fine_knots / step, rng.uniform(0, settings.fine_bend)),
                shape,
            )
            for _ in range(3)
        ]
    )
    log_bias = _smooth_noise(rng, coarse, settings.bias_knots / step, rng.uniform(*settings.bias))
    image, labels = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    _render(anatomy.labels, _brightness(rng, settings, grey, csf), matrix, offset, bend, image, labels)
    inside = image > 0.02
    grain = rng.standard_normal(shape, dtype=np.float32)
    smooth_grain = ndimage.gaussian_filter(grain, 1.5, truncate=2)
    smooth_grain *= rng.uniform(*settings.texture) / smooth_grain.std()
    image = ndimage.gaussian_filter(image, rng.uniform(*settings.blur)) * (1 + smooth_grain)
    image *= _stretched(np.exp(log_bias), shape)
    image += rng.uniform(*settings.noise) * rng.standard_normal(shape, dtype=np.float32)
    # Skull-stripped images are exactly 0 outside, and the pipeline scales them by a high percentile of the
    # inside.
    image = np.where(inside, np.maximum(image, 0), 0)
    if inside.any():
        image = np.minimum(image / max(float(np.percentile(image[inside], 99.5)), 1e-6), 1)
    return (image ** np.exp(settings.gamma * rng.standard_normal())).astype(np.float32), labels


def random_pair(
    anatomies: list[Anatomy],
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    spacing: float,
    settings: SyntheticSettings,
) -> Pair:
    """Two different subjects with one kind of contrast, each deformed on its own.

    Args:
        anatomies: at least two.
        rng: source of all randomness; an equal state gives an equal pair.
        shape: (H, W, D) of the images in voxels, along S, P, L.
        spacing: of the voxels, mm, the same along all axes.
    """
    first, second = rng.choice(len(anatomies), 2, replace=False)
    grey, csf = rng.uniform(*settings.grey), rng.uniform(*settings.csf)
    pose = (
        _random_rotation(rng, settings.pose_rotation),
        rng.uniform(-settings.pose_shift, settings.pose_shift, 3),
    )
    how = partial(render_brain, rng=rng, shape=shape, spacing=spacing, settings=settings)
    render = partial(how, pose=pose, grey=grey, csf=csf)
    fixed, fixed_labels = render(anatomies[first])
    moving, moving_labels = render(anatomies[second])
    return Pair(fixed, moving, fixed_labels, moving_labels)
