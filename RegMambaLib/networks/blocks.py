"""The convolutional parts of the networks and the moves between resolutions.

Feature maps are (B, C, H, W, D), displacements (B, 3, H, W, D) in voxels of their own grid, channels in the
order (h, w, d): warped(x) = image(x + displacement(x)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def instance_norm(x: torch.Tensor) -> torch.Tensor:
    """Every channel of every image to mean 0 and variance 1 over its voxels.

    A map of a single voxel is returned as it is: normalised, it would be zero whatever it held.
    """
    return x if x[0, 0].numel() == 1 else F.instance_norm(x)


class ConvBlock(nn.Module):
    """3x3x3 convolution, instance normalisation, ReLU: (B, C_in, H, W, D) -> (B, C_out, H, W, D)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(instance_norm(self.conv(x)))


class UpBlock(nn.Module):
    """Transposed convolution to twice the size, instance normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(instance_norm(self.conv(x)))


class FlowHead(nn.Conv3d):
    """3x3x3 convolution to the three displacement components; starts at (almost) no displacement."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 3, 3, padding=1)
        nn.init.normal_(self.weight, std=1e-5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # bfloat16 would round displacements to some hundredths of a voxel.
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def downsample(x: torch.Tensor) -> torch.Tensor:
    """Mean over 2x2x2 voxels; the sizes are even."""
    return F.avg_pool3d(x, 2)


def upsample_flow(flow: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """A displacement on twice the grid, trilinear, in the finer grid's voxels.

    align_corners False puts coarse voxel centres where `downsample` took them from; the published networks
    use True.
    """
    return 2 * F.interpolate(flow, scale_factor=2, mode="trilinear", align_corners=align_corners)


def warp(image: torch.Tensor, displacement: torch.Tensor, padding_mode: str = "zeros") -> torch.Tensor:
    """image (B, C, H, W, D) at x + displacement(x), linear; outside it zeros, or the nearest edge value
    ("border").

    Along an axis of a single voxel nothing moves. Positions are computed in the displacement's type, float32 at
    least: half types hold three digits.
    """
    coordinates = []
    sizes, dtype = image.shape[2:], image.dtype
    displacement = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    image = image.to(displacement.dtype)
    for axis, size in enumerate(sizes):
        index = torch.arange(size, device=image.device, dtype=displacement.dtype)
        position = displacement[:, axis] + index.view([-1 if k == axis else 1 for k in range(3)])
        coordinates.append(2 * (position / max(size - 1, 1) - 0.5))
    grid = torch.stack(coordinates[::-1], -1)  # grid_sample wants the last axis first
    slabs = _slab_count(image, sizes[0])
    if slabs > 1:
        grid = grid.unflatten(1, (slabs, -1)).flatten(0, 1)
        image = image.repeat_interleave(slabs, 0) if image.shape[0] > 1 else image.expand(slabs, *image.shape[1:])
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)
    out = out if slabs == 1 else out.unflatten(0, (-1, slabs)).transpose(1, 2).flatten(2, 3)
    return out.to(dtype)


def _slab_count(image: torch.Tensor, size: int) -> int:
    """torch's 3-D grid_sample uses one thread per image on the CPU, so the output is cut into slabs of a
    batch.
    """
    if image.device.type != "cpu" or image.shape[0] >= torch.get_num_threads():
        return 1
    return next(n for n in range(min(torch.get_num_threads(), size), 0, -1) if size % n == 0)
