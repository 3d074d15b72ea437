"""Images of different contrast: how well intensities go together, and bringing those of one image to the other's.

Two T1 images of linearly aligned heads correlate; a T1 and a T2 image do not, although the intensity of one mostly
tells that of the other. The mean intensity of one image where the other has a given value (the best least-squares
prediction, on which the correlation ratio of Roche et al., MICCAI 1998, rests) makes them comparable, so that
weights trained on one contrast, and local correlation, can be used on both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..spatial import fields
from .refine import Pair, shrink

# mm at which contrasts are compared: small misalignments do not count, inner structure still does.
CONTRAST_SPACING = 4.0
# Correlation of the linearly aligned intensities below which the images are taken to differ in contrast.
SAME_CONTRAST = 0.4
# The same after one image was brought to the contrast of the other, below which that says too little to be used.
CARRIED_CONTRAST = 0.6
# Whose contrast can be brought to that of the other image.
SIDES = ("moving", "fixed")
# Intensities below this, of 1, are background.
BACKGROUND = 0.02
# Intensities of a tone curve, evenly over [0, 1], and the Gaussian over them that fills rare ones in (standard
# deviation, in steps).
TONES, TONE_BLUR = 64, 2.0


def correlation(pair: Pair, spacing: float) -> float:
    """Correlation of the intensities of an aligned pair, at about 4 mm; 1 where there is too little to tell.

    The rim of the anatomy does not count: there both images rise from the background, whatever they show.

    Args:
        spacing: mm per voxel of the pair.
    """
    from scipy.ndimage import binary_erosion

    factor = max(1.0, CONTRAST_SPACING / spacing)
    z, y, x = (max(8, round(n / factor)) for n in pair.fixed.shape)
    f, m = (shrink(a, (z, y, x)) for a in (pair.fixed, pair.moving))
    both = binary_erosion((f > 0.1) & (m > 0.1), np.ones((3, 3, 3)), border_value=1)
    if both.sum() < 100 or f[both].std() < 1e-6 or m[both].std() < 1e-6:
        return 1.0
    return float(np.corrcoef(f[both], m[both])[0, 1])


def tone_curve(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What `target` has on average where `source` has each intensity, stretched to the target's spread, (TONES,).

    Args:
        source, target: (k, j, i) float32 in [0, 1] on one grid, aligned.
    """
    from scipy.ndimage import gaussian_filter1d

    both = (source > BACKGROUND) & (target > BACKGROUND)
    if not both.any():
        return (np.arange(TONES) + 0.5) / TONES
    tones, wanted = _tones(source[both]), target[both].astype(np.float64)
    count, total = (np.bincount(tones, weights, TONES).astype(float) for weights in (None, wanted))
    # A little of the mean everywhere: intensities that nothing has around them are no division by zero.
    rare = 1e-6 * tones.size
    blurred = [gaussian_filter1d(values, TONE_BLUR, mode="nearest") for values in (count, total)]
    curve = (blurred[1] + rare * wanted.mean()) / (blurred[0] + rare)
    carried = curve[tones]
    # Misalignment and noise draw the averages together; the network was trained on images of full contrast.
    gain = wanted.std() / max(float(carried.std()), 1e-3)
    return np.clip((curve - carried.mean()) * gain + wanted.mean(), 0.01, 1.0)


def with_tones(volume: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The volume with the intensities of `tone_curve`, float32; background becomes 0."""
    places = (np.arange(curve.size) + 0.5) / curve.size
    return np.where(volume > BACKGROUND, np.interp(volume, places, curve), 0).astype(np.float32)


def carried(pair: Pair, side: str, displacement: np.ndarray | None = None) -> Pair:
    """The pair with the contrast of one image brought to that of the other.

    Args:
        side: of `SIDES`, whose contrast changes.
        displacement: aligns the moving image for the tone curve, (3, k, j, i) voxels over the same extent.
    """
    known = aligned(pair, displacement)
    if side == "moving":
        return replace(pair, moving=with_tones(pair.moving, tone_curve(known.moving, known.fixed)))
    return replace(pair, fixed=with_tones(pair.fixed, tone_curve(known.fixed, known.moving)))


def aligned(pair: Pair, displacement: np.ndarray | None) -> Pair:
    """The pair with its moving image warped, on the grid of the displacement (3, k, j, i); itself without one."""
    if displacement is None:
        return pair
    z, y, x = displacement.shape[1:]
    level = pair.at((z, y, x))
    return replace(level, moving=fields.warp(level.moving, displacement))


def side_to_carry(pair: Pair, spacing: float, displacement: np.ndarray | None = None) -> str | None:
    """Of images that differ in contrast, the one better brought to the other's; None where that says too little.

    Where two tissues look alike in one image only, it is the other that can be carried; the closer the alignment, the
    better that shows.

    Args:
        spacing: mm per voxel of the pair.
        displacement: aligns the moving image, see `carried`.
    """
    size, pair = pair.fixed.shape[0], aligned(pair, displacement)
    spacing *= size / pair.fixed.shape[0]
    fits = {side: correlation(carried(pair, side), spacing) for side in SIDES}
    side = max(SIDES, key=fits.__getitem__)
    return side if fits[side] > CARRIED_CONTRAST else None


def _tones(values: np.ndarray) -> np.ndarray:
    return np.clip((values * TONES).astype(np.int64), 0, TONES - 1)
