"""Sums and means over cubic windows, the shared inner loop of LNCC and MIND-SSC.

A window sum is separable, so it costs ``3 * 2 * radius`` shifted additions however it is used; for the radii
of registration (1 to 4) this is several times faster on a CPU than pooling or than running sums, and unlike
running sums it never subtracts two large numbers.
"""

from __future__ import annotations

from typing import Any

import torch


def _window_sum(x: torch.Tensor, radius: int) -> torch.Tensor:
    for axis in (-3, -2, -1):
        size = x.shape[axis]
        total = x.clone()
        for shift in range(1, min(radius, size - 1) + 1):
            total.narrow(axis, shift, size - shift).add_(x.narrow(axis, 0, size - shift))
            total.narrow(axis, 0, size - shift).add_(x.narrow(axis, shift, size - shift))
        x = total
    return x


class _WindowSum(torch.autograd.Function):
    """A symmetric window with zeros outside the image is self-adjoint: its gradient is the same sum again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, radius: int) -> torch.Tensor:
        ctx.radius = radius
        return _window_sum(x, radius)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return box_sum(grads[0], ctx.radius), None


def box_sum(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum of ``x`` (..., H, W, D) over the ``(2 radius + 1)^3`` voxels around each voxel; zeros outside."""
    return _WindowSum.apply(x, radius)


def box_mean(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean of ``x`` (..., H, W, D) over the part of the window that lies inside the image."""
    count = _window_sum(torch.ones(x.shape[-3:], dtype=x.dtype, device=x.device), radius)
    return box_sum(x, radius) / count
