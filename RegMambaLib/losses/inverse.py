"""Inverse consistency: registering there and back again should lead to where one started."""

from __future__ import annotations

import torch

from RegMambaLib.errors import InputError
from RegMambaLib.losses.smoothness import diffusion_loss
from RegMambaLib.networks.blocks import warp


def inverse_consistency_loss(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """How far the gradient of the round trip is from the identity, mean squared Frobenius norm, a scalar.

    Method: GradICON (Tian et al., CVPR 2023): it punishes the gradient of the composition, not the composition,
    which lets the two maps be smooth without a smoothness loss. Forward differences, in units of one.

    Args:
        forward, backward: (B, 3, H, W, D) voxels, fixed to moving and moving to fixed; the round trip is
            x + forward(x) + backward(x + forward(x)). Beyond the grid the edge value of `backward` holds.

    Raises:
        InputError: the shapes differ or are no displacements.
    """
    if forward.shape != backward.shape or forward.dim() != 5 or forward.shape[1] != 3:
        raise InputError(
            f"Inverse consistency compares two displacements (B, 3, H, W, D) on one grid, not {tuple(forward.shape)} "
            f"and {tuple(backward.shape)}."
        )
    # diffusion_loss is the mean over the nine derivatives, the Frobenius norm their sum.
    return 9 * diffusion_loss(forward + warp(backward, forward, "border"))
