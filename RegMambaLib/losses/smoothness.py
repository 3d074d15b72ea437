"""Smoothness of a displacement in voxels: first (diffusion) and second (bending) derivatives."""

from __future__ import annotations

import torch

from RegMambaLib.errors import InputError

_AXES = (2, 3, 4)


def _checked(flow: torch.Tensor) -> None:
    if flow.dim() != 5 or flow.shape[1] != 3:
        raise InputError(f"Smoothness needs a displacement (B, 3, H, W, D), not {tuple(flow.shape)}.")


def diffusion_loss(flow: torch.Tensor) -> torch.Tensor:
    """Mean over voxels, components and axes of the squared forward difference, a scalar without unit.

    Args:
        flow: (B, 3, H, W, D) displacement in voxels. Axes of one voxel have no derivative and are left out.

    Raises:
        InputError: `flow` does not have three components.
    """
    _checked(flow)
    terms = [flow.diff(dim=axis).square().mean() for axis in _AXES if flow.shape[axis] > 1]
    return torch.stack(terms).mean() if terms else flow.sum() * 0


def bending_loss(flow: torch.Tensor) -> torch.Tensor:
    """Bending energy: mean squared second differences, mixed ones counted twice.

    Method: Rueckert et al., IEEE TMI 1999.

    Args:
        flow: (B, 3, H, W, D) displacement in voxels. Derivatives that the shape is too small for are left
            out; an affine displacement costs nothing.

    Returns: scalar, 1 / voxel^2; the mean over voxels and components of the sum of all nine terms.

    Raises:
        InputError: `flow` does not have three components.
    """
    _checked(flow)
    total = flow.sum() * 0
    for i, axis in enumerate(_AXES):
        if flow.shape[axis] > 2:
            total = total + flow.diff(n=2, dim=axis).square().mean()
        for other in _AXES[i + 1 :]:
            if flow.shape[axis] > 1 and flow.shape[other] > 1:
                total = total + 2 * flow.diff(dim=axis).diff(dim=other).square().mean()
    return total
