"""Intensities to a common scale, and where the anatomy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import SimpleITK as sitk

# Air inside heads and noise around them lies well below half of Otsu's threshold between air and tissue.
FOREGROUND = 0.35


# HU: below the first there is neither air nor tissue; the second is air.
CT_PADDING, CT_AIR = -1500, -1024


@dataclass(frozen=True)
class Prepared:
    """An image scaled to [0, 1] with background near 0.

    Attributes:
        image: float32, same grid as the input.
        threshold: scaled intensity above which a voxel belongs to the anatomy.
    """

    image: sitk.Image
    threshold: float

    def foreground(self) -> np.ndarray:
        """Boolean (k, j, i) mask of the anatomy (with holes)."""
        import SimpleITK as sitk

        return sitk.GetArrayViewFromImage(self.image) > self.threshold


def prepare(image: sitk.Image, name: str) -> Prepared:
    """Scale robustly: the background's median goes to 0, the foreground's 99.5 % quantile to 1.

    Raises:
        InputError: the image holds NaN or infinity, or is constant. `name` tells which image it is.
    """
    import SimpleITK as sitk

    array = _without_ct_padding(sitk.GetArrayViewFromImage(image))
    step = max(1, round((array.size / 5e5) ** (1 / 3)))
    sample = array[::step, ::step, ::step].astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"The {name} image holds NaN or infinite values; replace them, for example by 0.")
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"The {name} image is constant ({low:g} everywhere); there is nothing to align.")
    # Robust ends before Otsu: a single bright voxel must not hide the anatomy.
    clipped = np.clip(sample, *np.quantile(sample, [0.001, 0.999]))
    if clipped.min() == clipped.max():
        clipped = sample if sample.min() < sample.max() else array.astype(np.float32)
    threshold = _otsu(clipped)
    below, above = clipped[clipped <= threshold], clipped[clipped > threshold]
    background = float(np.median(below)) if below.size else low
    bright = float(np.quantile(above, 0.995)) if above.size else high
    scale = 1.0 / max(bright - background, 1e-12 * max(abs(bright), abs(background), 1e-30))
    scaled = np.clip((array.astype(np.float32) - np.float32(background)) * np.float32(scale), 0.0, 1.0)
    out = sitk.GetImageFromArray(scaled)
    out.CopyInformation(image)
    return Prepared(out, FOREGROUND * (threshold - background) * scale)


def _without_ct_padding(array: np.ndarray) -> np.ndarray:
    """A CT with the padding outside of its round field of view (one value, -1500 HU and below) set to air."""
    low = array.min()
    if not low <= CT_PADDING:
        return array
    inside = array[array != low]
    air = np.count_nonzero((inside > -1100) & (inside < -900))
    if inside.size == 0 or inside.min() < CT_PADDING or air < 0.01 * array.size:
        return array
    return np.where(array == low, np.asarray(CT_AIR, array.dtype), array)


def _otsu(values: np.ndarray, bins: int = 256) -> float:
    """Otsu's threshold (IEEE Trans SMC 1979) of a flat sample."""
    counts, edges = np.histogram(values, bins=bins)
    middle = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts).astype(float)
    moment = np.cumsum(counts * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment[-1] * weight / weight[-1] - moment
        between = gap**2 / (weight * (weight[-1] - weight))
    return float(middle[int(np.nanargmax(between[:-1]))])
