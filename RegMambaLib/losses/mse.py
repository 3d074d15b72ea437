"""Mean squared difference, the similarity for images in the same intensity unit (CT to CT)."""

from __future__ import annotations

import torch

from RegMambaLib.errors import InputError


def mse_loss(fixed: torch.Tensor, moving: torch.Tensor, *, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of ``(fixed - moving)^2`` in squared intensity units, a scalar.

    Args:
        fixed, moving: (B, C, H, W, D), one shape; MIND-SSC channels are allowed.
        weights: (B, 1, H, W, D), not negative; the mean is weighted by it.

    Raises:
        InputError: the shapes differ.
    """
    if fixed.shape != moving.shape:
        raise InputError(
            f"The mean squared difference needs two images of one shape, not {tuple(fixed.shape)} and "
            f"{tuple(moving.shape)}; resample one onto the other first."
        )
    squared = (fixed - moving) ** 2
    if weights is None:
        return squared.mean()
    w = weights.expand_as(squared)
    return (w * squared).sum() / w.sum().clamp_min(1e-6)
