"""The steps of refinement as whole-volume torch operations, for any device; `triton_steps` fuses them.

Everything is float32 on one device: volumes (k, j, i), displacements, forces and steps (3, k, j, i) in voxels. Only
where `inside`, a boolean volume, anything is to move: outside the images count as 0 and forces are 0.
Nothing waits for the device: a sum or a maximum that a later step needs stays there, as a 0-d tensor. Only indexing and
arithmetic are used: torch for Metal has no gradient of 3-D `grid_sample`, and CUDA may convolve with 10 bits (TF32).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..losses.boxes import box_sum
from .refine import ADAM_BETAS, LNCC_EPSILON


class Moments(NamedTuple):
    """Window sums of the fixed image, and of its squared deviation from the window's mean plus epsilon, (k, j, i)."""

    total: torch.Tensor
    variance: torch.Tensor


class Cell(NamedTuple):
    """The eight voxels around the position x + u(x) of every voxel x, (k, j, i) each.

    Attributes:
        rows: flat indices at which the rows (z0, y0), (z0, y1), (z1, y0), (z1, y1) begin.
        columns: x0, x1.
        fraction: where the position lies between them along z, y and x, 0 to 1.
    """

    rows: list[torch.Tensor]
    columns: list[torch.Tensor]
    fraction: list[torch.Tensor]


def fixed_moments(fixed: torch.Tensor, radius: int) -> Moments:
    """For windows of side 2 radius + 1, zeros outside."""
    total, squares = box_sum(torch.stack([fixed, fixed**2]), radius)
    return Moments(total, (squares - total**2 / (2 * radius + 1) ** 3).clamp_min(0) + LNCC_EPSILON)


def lncc_force(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    u: torch.Tensor,
    moments: Moments,
    weight: torch.Tensor,
    inside: torch.Tensor,
    radius: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the summed squared LNCC with respect to u, and that sum; the mathematics are in `lncc_kernels`.

    Args:
        moments: of the fixed image, for the same radius.
        weight: (k, j, i), what each window counts; 0 outside.
    """
    cell = locate(u)
    warped = _interpolated(_corners(moving, cell), cell) * inside
    per_voxel = 1 / (2 * radius + 1) ** 3
    total, squares, products = box_sum(torch.stack([warped, warped**2, warped * fixed]), radius)
    cross = products - moments.total * total * per_voxel + LNCC_EPSILON
    scale = 1 / (moments.variance * ((squares - total**2 * per_voxel).clamp_min(0) + LNCC_EPSILON))
    ratio = weight * cross * scale
    a = 2 * ratio
    b = a * cross * scale * moments.variance
    c = (b * total - a * moments.total) * per_voxel
    a, b, c = box_sum(torch.stack([a, b, c]), radius)
    pull = (fixed * a - warped * b + c) * inside
    return central_differences(warped).mul_(pull), (ratio * cross).sum()


def central_differences(volume: torch.Tensor) -> torch.Tensor:
    """Slopes of (k, j, i) along its axes, (3, k, j, i); one-sided at the border, 0 along an axis of one voxel."""
    slopes = [
        torch.gradient(volume, dim=axis)[0] if size > 1 else torch.zeros_like(volume)
        for axis, size in enumerate(volume.shape)
    ]
    return torch.stack(slopes)


def channel_force(
    fixed: torch.Tensor, moving: torch.Tensor, u: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Downhill direction of the squared difference of (c, k, j, i) features, and minus the sum of it.

    Both count as much as the weight (k, j, i), which is 0 outside.
    """
    cell = locate(u)
    force, loss = torch.zeros_like(u), torch.zeros_like(weight)
    for own, other in zip(fixed, moving, strict=True):
        corners = _corners(other, cell)
        gap = own - _interpolated(corners, cell)
        loss.addcmul_(gap, gap)
        force.addcmul_(_slopes(corners, cell), gap)
    return force.mul_(weight), -(weight * loss).sum()


def label_force(
    fixed: torch.Tensor, moving: torch.Tensor, count: torch.Tensor, u: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Gradient of the mean soft Dice of all labels but 0 with respect to u; see `kernels.label_force`.

    Args:
        fixed, moving: int32 classes, (k, j, i).
        count: voxels of every class of the fixed map inside, float32.
    """
    cell = locate(u)
    z, y, x = cell.fraction
    labels = _corners(moving, cell)
    moved, overlap = torch.zeros_like(count), torch.zeros_like(count)
    for corner, label in enumerate(labels):
        sides = (z, 1 - z)[corner < 4], (y, 1 - y)[corner & 2 == 0], (x, 1 - x)[corner & 1 == 0]
        share = sides[0] * sides[1] * sides[2] * inside
        moved.index_add_(0, label.flatten(), share.flatten())
        overlap.index_add_(0, label.flatten(), (share * (label == fixed)).flatten())
    gain, loss = label_gains(overlap, count + moved)
    pulls = [loss[label] + gain[label] * (label == fixed) for label in labels]
    return _slopes(pulls, cell).mul_(inside)


def label_gains(overlap: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a moving voxel adds to a label's Dice where the fixed label is the same, and what it costs anywhere.

    Args:
        overlap, size: the Dice of label l is 2 overlap[l] / size[l].
    """
    gain = torch.where(size > 0, 2 / size, 0.0)
    loss = torch.where(size > 0, -2 * overlap / size**2, 0.0)
    gain[0] = loss[0] = 0
    return gain, loss


def smooth(field: torch.Tensor, taps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Separable smoothing of (c, k, j, i) inside with an odd number of symmetric taps; borders of the volume repeat."""
    radius, whole = taps.numel() // 2, field
    if radius == 0:
        return field
    for axis in (1, 2, 3):
        size = field.shape[axis]
        edges = [field.narrow(axis, at, 1).expand(*(radius if n == axis else -1 for n in range(4))) for at in (0, -1)]
        padded = torch.cat([edges[0], field, edges[1]], axis)
        field = field * taps[radius]
        for t in (t for t in range(2 * radius + 1) if t != radius):
            field.addcmul_(padded.narrow(axis, t, size), taps[t])
    return torch.where(inside, field, whole)


def adam(
    gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, iteration: int, floor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adam's direction with one second moment per voxel, and its largest length; see `kernels.adam`.

    Args:
        first, second: moments, (3, k, j, i) and (k, j, i), updated in place.
        iteration: from 1, for the correction of the moments' bias.
        floor: 0-d, added to the root of the second moment.
    """
    beta1, beta2 = ADAM_BETAS
    first.lerp_(gradient, 1 - beta1)
    second.lerp_(gradient.square().sum(0), 1 - beta2)
    direction = first / (1 - beta1**iteration) / ((second / (1 - beta2**iteration)).sqrt_() + floor)
    return direction, direction.square().sum(0).amax().sqrt()


def compose(u: torch.Tensor, direction: torch.Tensor, largest: torch.Tensor, size: float) -> torch.Tensor:
    """u o (id + v) + v, where v is the direction scaled so that its largest length is `size` voxels.

    With a largest length of 0 this is u itself.
    """
    v = direction * torch.where(largest > 0, size / largest, 0.0)
    cell = locate(v)
    return torch.stack([_interpolated(_corners(channel, cell), cell) for channel in u]).add_(v)


def locate(u: torch.Tensor) -> Cell:
    """The cells of the positions x + u(x), clamped to the volume; outside, both voxels of an axis are the border's."""
    low, high, fraction = [], [], []
    for axis, size in enumerate(u.shape[1:]):
        index = torch.arange(size, device=u.device, dtype=u.dtype).view([-1 if n == axis else 1 for n in range(3)])
        position = u[axis] + index
        inside = position.clamp(0, size - 1)
        below = inside.long()
        low.append(below)
        high.append(torch.where(position < 0, below, (below + 1).clamp_max(size - 1)))
        fraction.append(inside - below)
    _, height, width = u.shape[1:]
    rows = [(z * height + y) * width for z in (low[0], high[0]) for y in (low[1], high[1])]
    return Cell(rows, [low[2], high[2]], fraction)


def resized(stack: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(c, k, j, i) at another resolution over the same extent, trilinear; as `fields.resize`."""
    for axis, (new, old) in enumerate(zip(shape, stack.shape[1:], strict=True), 1):
        if new == old:
            continue
        position = ((torch.arange(new, device=stack.device, dtype=stack.dtype) + 0.5) * (old / new) - 0.5).clamp(
            0, old - 1
        )
        low = position.long()
        fraction = (position - low).view([-1 if n == axis else 1 for n in range(4)])
        stack = torch.lerp(
            stack.index_select(axis, low), stack.index_select(axis, (low + 1).clamp_max(old - 1)), fraction
        )
    return stack


def sampled_displacement(u: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A voxel displacement on a coarser grid over the same extent; see `kernels.sample_displacement`."""
    for axis, (new, old) in enumerate(zip(shape, u.shape[1:], strict=True), 1):
        if new == old:
            continue
        place = ((torch.arange(new, device=u.device, dtype=torch.float64) + 0.5) * (old / new)).long()
        u = u.index_select(axis, place)
        u[axis - 1] *= new / old
    return u


def _corners(volume: torch.Tensor, cell: Cell) -> list[torch.Tensor]:
    """The volume at the eight voxels, x fastest."""
    flat = volume.flatten()
    return [flat[row + column] for row in cell.rows for column in cell.columns]


def _interpolated(corners: list[torch.Tensor], cell: Cell) -> torch.Tensor:
    """What is at the corners, trilinear, (k, j, i)."""
    z, y, x = cell.fraction
    a, b, c, d = (torch.lerp(low, high, x) for low, high in zip(corners[::2], corners[1::2], strict=True))
    return torch.lerp(torch.lerp(a, b, y), torch.lerp(c, d, y), z)


def _slopes(corners: list[torch.Tensor], cell: Cell) -> torch.Tensor:
    """Slopes of `_interpolated` along z, y and x, (3, k, j, i)."""
    z, y, x = cell.fraction
    lows, highs = corners[::2], corners[1::2]
    a, b, c, d = (torch.lerp(low, high, x) for low, high in zip(lows, highs, strict=True))
    da, db, dc, dd = (high - low for low, high in zip(lows, highs, strict=True))
    along_z = torch.lerp(c, d, y) - torch.lerp(a, b, y)
    along_x = torch.lerp(torch.lerp(da, db, y), torch.lerp(dc, dd, y), z)
    return torch.stack([along_z, torch.lerp(b - a, d - c, z), along_x])
