"""Squared local normalised cross-correlation, the similarity for images of the same contrast.

Method: Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image
Analysis 2008.
"""

from __future__ import annotations

import torch

from RegMambaLib.errors import InputError
from RegMambaLib.losses.boxes import box_sum


def _standardised(image: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    # The correlation does not change with brightness or gain; unit spread keeps float32 windows exact and
    # gives `flat` the same meaning for Hounsfield units and for images in 0..1. A constant image becomes
    # zero.
    detached = image.detach()
    share = torch.ones_like(detached) if weights is None else weights.expand_as(detached)
    total = share.sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(torch.finfo(image.dtype).tiny)
    centre = (share * detached).sum(dim=(1, 2, 3, 4), keepdim=True) / total
    largest = (detached - centre).abs().amax(dim=(1, 2, 3, 4), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled = (detached - centre) / largest
    spread = ((share * scaled**2).sum(dim=(1, 2, 3, 4), keepdim=True) / total).sqrt()
    # Rounding noise on a constant of huge value must not be blown up into structure.
    noise = 8 * torch.finfo(image.dtype).eps * centre.abs() / largest
    spread = torch.where(spread > noise, spread, torch.inf)
    return (image - centre) / largest / spread


def lncc_map(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    *,
    window: int = 5,
    flat: float = 1e-3,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared correlation of two images in a cube around each voxel, 0 (unrelated) to 1 (linearly related).

    Args:
        fixed, moving: (B, 1, H, W, D) float32 or float64, any intensity unit.
        window: edge of the cube in voxels, odd. At the border the cube is cut off by the image.
        flat: variance, as a share of the variance of the whole image, below which a cube counts as
            constant; constant cubes give 0 and a zero gradient instead of amplified noise.
        weights: (B, 1, H, W, D), not negative; voxels of weight 0 take no part in any cube.

    Returns: (B, 1, H, W, D).

    Raises:
        InputError: `window` is even or smaller than 3, or the shapes differ.
    """
    if window < 3 or window % 2 == 0:
        raise InputError(f"The LNCC window is {window} voxels; choose an odd number of at least 3.")
    if fixed.shape != moving.shape or fixed.dim() != 5 or fixed.shape[1] != 1:
        raise InputError(
            f"LNCC compares two images (B, 1, H, W, D) of one shape, not {tuple(fixed.shape)} and "
            f"{tuple(moving.shape)}; resample one onto the other first."
        )
    radius = window // 2
    f, m = _standardised(fixed, weights), _standardised(moving, weights)
    w = torch.ones_like(fixed) if weights is None else weights.expand_as(fixed).to(fixed.dtype)
    sums = box_sum(torch.cat([w, w * f, w * m, w * f * f, w * m * m, w * f * m], dim=1), radius)
    count, f1, m1, f2, m2, fm = sums.split(1, dim=1)
    inverse = 1 / count.clamp_min(1e-6)
    f1, m1 = f1 * inverse, m1 * inverse
    variance_f = (f2 * inverse - f1 * f1).clamp_min(0)
    variance_m = (m2 * inverse - m1 * m1).clamp_min(0)
    covariance = fm * inverse - f1 * m1
    return covariance**2 / ((variance_f + flat) * (variance_m + flat))


def lncc_loss(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    *,
    window: int = 5,
    flat: float = 1e-3,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """One minus the mean of `lncc_map`, weighted by `weights`: 0 (equal textured images) to 1."""
    similarity = lncc_map(fixed, moving, window=window, flat=flat, weights=weights)
    if weights is None:
        return 1 - similarity.mean()
    w = weights.expand_as(similarity)
    return 1 - (w * similarity).sum() / w.sum().clamp_min(1e-6)
