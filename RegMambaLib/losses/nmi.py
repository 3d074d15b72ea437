"""Normalised mutual information, a similarity for images whose contrasts need not be functions of each other.

Method: Studholme et al., "An overlap invariant entropy measure of 3D medical image alignment", Pattern
Recognition 1999, on a joint histogram with cubic B-spline Parzen windows as in Mattes et al., IEEE TMI 2003,
so that it has a derivative.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from RegMambaLib.errors import InputError

# Voxels whose windows are held at a time: with 32 bins of float32, 32 MB a piece, whatever the image's size.
_CHUNK = 1 << 18


def _positions(image: torch.Tensor, bins: int) -> torch.Tensor:
    """Intensities (B, N) as places on the axis of bins, one bin from either end so that no window is cut off."""
    low, high = image.detach().amin(dim=1, keepdim=True), image.detach().amax(dim=1, keepdim=True)
    spread = torch.where(high > low, high - low, 1.0)
    return 1 + (bins - 3) * (image - low) / spread


def _windows(position: torch.Tensor, bins: int) -> torch.Tensor:
    """Cubic B-spline of the distance to every bin: (B, N) -> (B, N, bins), each voxel's windows sum to 1."""
    x = (position[..., None] - torch.arange(bins, device=position.device, dtype=position.dtype)).abs()
    near = 2 / 3 - x**2 + x**3 / 2
    return torch.where(x < 1, near, (2 - x).clamp_min(0) ** 3 / 6)


def _joint(fixed: torch.Tensor, moving: torch.Tensor, bins: int) -> torch.Tensor:
    return _windows(fixed, bins).transpose(1, 2) @ _windows(moving, bins)


def _entropy(p: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return torch.special.entr(p.clamp_min(torch.finfo(p.dtype).tiny)).sum(dim=dims)


def nmi_loss(fixed: torch.Tensor, moving: torch.Tensor, *, bins: int = 32) -> torch.Tensor:
    """Two minus the normalised mutual information (H(F) + H(M)) / H(F, M), a scalar in 0..1, mean over the batch.

    1 is independence. The windows blur the histogram, so an image with itself gives more than 0. The range of
    each image, from its least to its largest value, is divided into the bins.

    Args:
        fixed, moving: (B, 1, H, W, D) float32 or float64, any intensity unit.
        bins: per image, at least 8.

    Raises:
        InputError: the shapes differ or there are too few bins.
    """
    if bins < 8:
        raise InputError(f"Mutual information got {bins} bins; choose at least 8.")
    if fixed.shape != moving.shape or fixed.dim() != 5 or fixed.shape[1] != 1:
        raise InputError(
            f"Mutual information compares two images (B, 1, H, W, D) of one shape, not {tuple(fixed.shape)} and "
            f"{tuple(moving.shape)}; resample one onto the other first."
        )
    f, m = _positions(fixed.flatten(1), bins), _positions(moving.flatten(1), bins)
    chunks = zip(f.split(_CHUNK, dim=1), m.split(_CHUNK, dim=1), strict=True)
    joint = sum(
        (checkpoint(_joint, a, b, bins, use_reentrant=False) for a, b in chunks),
        f.new_zeros(f.shape[0], bins, bins),
    )
    joint = joint / f.shape[1]
    separate = _entropy(joint.sum(dim=2), (1,)) + _entropy(joint.sum(dim=1), (1,))
    return 2 - (separate / _entropy(joint, (1, 2))).mean()
