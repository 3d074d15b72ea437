"""Soft Dice on one-hot labels or probabilities."""

from __future__ import annotations

import torch

from RegMambaLib.errors import InputError


def dice_loss(a: torch.Tensor, b: torch.Tensor, *, smooth: float = 1.0) -> torch.Tensor:
    """One minus the mean soft Dice of all label channels, a scalar in 0..1.

    Per channel: ``2 sum(a b) / (sum(a^2) + sum(b^2))`` (Milletari et al., V-Net, 3DV 2016), computed as one
    minus it, ``sum((a - b)^2) / (...)``. A channel that is absent from both maps counts neither for nor
    against.

    Args:
        a, b: (B, K, H, W, D) one-hot labels or probabilities in 0..1; leave the background out of K.
        smooth: voxels added below, so that a label of a few voxels does not dominate the gradient.

    Raises:
        InputError: the shapes differ.
    """
    if a.shape != b.shape or a.dim() != 5:
        raise InputError(
            f"Dice compares two one-hot maps (B, K, H, W, D) of one shape, not {tuple(a.shape)} and "
            f"{tuple(b.shape)}; encode both with the same list of labels."
        )
    missed = (a - b).square().sum(dim=(2, 3, 4))
    size = a.square().sum(dim=(2, 3, 4)) + b.square().sum(dim=(2, 3, 4))
    present = (size > 0).to(a.dtype)
    share = missed / (size + smooth).clamp_min(torch.finfo(a.dtype).tiny)
    return share.sum() / present.sum().clamp_min(1)
