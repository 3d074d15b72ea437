"""The steps of refinement, and those of repair, as fused Triton kernels, on an NVIDIA or AMD GPU.

They have the functions of `torch_steps`; repair is numba's otherwise.

What an iteration moves through memory, counted in volumes of 4 bytes per voxel, each array once (neighbours along an
axis and in a cell are read again from the caches): LNCC 45 (warp 5; three passes over the products 5, 6 and 9; three
over the coefficients 6, 6 and 8), smoothing the force 18, Adam 14, composition 9, smoothing the displacement 18, and
1 for `inside`. Together 105 volumes or 420 bytes per voxel: 2.1 GB for 160 x 192 x 160 voxels, less where voxels are
not inside. MIND-SSC has 31 in place of 45; labels add 13. The most that is held at once is 28 volumes (0.6 GB there),
24 more with MIND-SSC; repair holds 11 at most. An iteration is about 20 launches, of which none waits for another's
result on the host.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, Triton interprets the kernels on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from . import torch_steps, triton_fields, triton_forces, triton_invert, triton_labels
from .refine import ADAM_BETAS, LNCC_EPSILON
from .torch_steps import Moments, label_gains

BLOCK = 512  # voxels of a program: four per thread
INVERT_BLOCK = 128  # one per thread: they hold much, and wait for the slowest among them


def interpreted() -> bool:
    """Whether Triton interprets its kernels, so that they run on CPU tensors."""
    return not isinstance(triton_fields.adam, triton.JITFunction)


def check(device: torch.device) -> None:
    """Run every kernel on a few voxels. Raises whatever keeps them from working, and RuntimeError for wrong results."""
    if not interpreted() and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    values = torch.rand(15, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    volumes = values.to(device)
    fixed, moving, weight = volumes[:3]
    inside = weight > 0.1
    weight *= inside
    labels, count = [(3 * volume).int() for volume in (fixed, moving)], weight.new_tensor([9.0, 40.0, 50.0])
    u, first, second, direction = (0.2 + 0.6 * part for part in volumes[3:].split(3))
    scalar = fixed[0, 0, 0]
    examples: dict[str, tuple[Any, ...]] = {
        "lncc_force": (fixed, moving, u, torch_steps.fixed_moments(fixed, 1), weight, inside, 1),
        "channel_force": (first, second, u, weight),
        "label_force": (*labels, count, u, inside),
        "smooth": (u, scalar.new_tensor([0.25, 0.5, 0.25]), inside),
        "adam": (direction, first, weight.clone(), 2, scalar),
        "compose": (u, direction, scalar, 0.7),
    }
    for name, inputs in examples.items():
        theirs = getattr(torch_steps, name)(*(_copied(value) for value in inputs))
        ours = globals()[name](*inputs)
        for one, other in zip(_pair(ours), _pair(theirs), strict=True):
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())):
                raise RuntimeError(f"{name} by Triton differs from that by torch")
    _check_repair(u)


def _check_repair(u: torch.Tensor) -> None:
    """Run the kernels of repair, and raise as `check` does. Without numba's, which a GPU has no other use for."""
    slopes = torch.tensor([[0.1, 0.2, 0.0], [-0.1, 0.2, 0.1], [0.0, 0.3, -0.2]])
    places = torch.stack(torch.meshgrid(*map(torch.arange, u.shape[1:]), indexing="ij")).float()
    linear = torch.tensordot(slopes, places, 1).contiguous().to(u)
    determinants = smallest_determinants(linear)
    if not torch.allclose(determinants, torch.linalg.det(torch.eye(3) + slopes).to(u), atol=1e-3):
        raise RuntimeError("the determinants by Triton are wrong")
    u = 0.2 * u - 1.5  # without folds
    v, error = invert(u)
    left = torch_steps.compose(u, v, u.new_ones(()), 1.0)
    if not max(float(error.max()), float(left.abs().max())) < 0.01:
        raise RuntimeError("the inverse by Triton is none")


def lncc_force(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    u: torch.Tensor,
    moments: Moments,
    weight: torch.Tensor,
    inside: torch.Tensor,
    radius: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `torch_steps.lncc_force`."""
    run = _Run(fixed)
    warped, similarity = torch.empty_like(fixed), run.per_block()
    here, there, force = torch.empty_like(u), torch.empty_like(u), torch.empty_like(u)
    run(triton_forces.warp, 1, moving, u, inside, warped, run.n, *run.shape)
    run(triton_forces.sum_products, 1, warped, fixed, here, *run.along(2), radius)
    run(triton_forces.sum_along, 3, here, there, *run.along(1), radius)
    scalars = 1 / (2 * radius + 1) ** 3, LNCC_EPSILON
    run(triton_forces.coefficients, 1, there, *moments, weight, here, similarity, *scalars, *run.along(0), radius)
    run(triton_forces.sum_along, 3, here, there, *run.along(2), radius)
    run(triton_forces.sum_along, 3, there, here, *run.along(1), radius)
    run(triton_forces.lncc_force, 1, here, fixed, warped, inside, force, *run.along(0), radius, *run.shape)
    return force, similarity.sum()


def channel_force(
    fixed: torch.Tensor, moving: torch.Tensor, u: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `torch_steps.channel_force`."""
    run = _Run(u[0])
    force, similarity = torch.empty_like(u), run.per_block()
    sizes = len(fixed), run.n, *run.shape
    run(triton_forces.channel_force, 1, fixed, moving, u, weight, force, similarity, *sizes)
    return force, similarity.sum()


def label_force(
    fixed: torch.Tensor, moving: torch.Tensor, count: torch.Tensor, u: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """See `torch_steps.label_force`."""
    run, labels = _Run(u[0]), len(count)
    sums, force = u.new_zeros(2, labels, run.blocks), torch.empty_like(u)
    run(triton_labels.sum_labels, 1, fixed, moving, u, inside, sums, labels, run.n, *run.shape)
    overlap, moved = sums.sum(-1)
    gains = label_gains(overlap, count + moved)
    run(triton_labels.label_force, 1, fixed, moving, u, inside, *gains, force, run.n, *run.shape)
    return force


def smooth(field: torch.Tensor, taps: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """See `torch_steps.smooth`."""
    radius, whole = taps.numel() // 2, field
    if radius == 0:
        return field
    run = _Run(field[0])
    for axis, kept in ((2, (None, None)), (1, (None, None)), (0, (whole, inside))):
        out = torch.empty_like(field)
        run(triton_fields.smooth_along, len(field), field, taps, *kept, out, *run.along(axis), radius)
        field = out
    return field


def adam(
    gradient: torch.Tensor, first: torch.Tensor, second: torch.Tensor, iteration: int, floor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `torch_steps.adam`."""
    run = _Run(gradient[0])
    direction, squares = torch.empty_like(gradient), run.per_block()
    corrections = [1 / (1 - beta**iteration) for beta in ADAM_BETAS]
    run(triton_fields.adam, 1, gradient, first, second, floor, direction, squares, run.n, *ADAM_BETAS, *corrections)
    return direction, squares.amax().sqrt()


def compose(u: torch.Tensor, direction: torch.Tensor, largest: torch.Tensor, size: float) -> torch.Tensor:
    """See `torch_steps.compose`."""
    run = _Run(u[0])
    out = torch.empty_like(u)
    run(triton_fields.compose, 1, u, direction, largest, out, size, run.n, *run.shape)
    return out


def smallest_determinants(u: torch.Tensor) -> torch.Tensor:
    """See `spatial.jacobian.jacobian_determinant`, strict; every axis has at least 2 voxels."""
    run, out = _Run(u[0]), torch.empty_like(u[0])
    run(triton_invert.smallest_determinants, 1, u, out, run.n, *run.shape)
    return out


def invert(
    u: torch.Tensor, start: torch.Tensor | None = None, *, tolerance: float = 0.005, iterations: int = 60
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `spatial.fields.invert`."""
    run, error = _Run(u[0], INVERT_BLOCK), torch.empty_like(u[0])
    if start is None:
        out, landed = torch.empty_like(u), torch.full_like(u[0], -1, dtype=torch.int32)
        run(triton_invert.land, 1, u, landed, run.n, *run.shape)
        run(triton_invert.seed, 1, u, landed, out, run.n, run.shape[2])
    else:
        out = start.clone()
    run(triton_invert.invert, 1, u, out, error, tolerance, iterations, run.n, *run.shape)
    return out, error


class _Run:
    """Launches kernels over the voxels of a volume (k, j, i)."""

    def __init__(self, volume: torch.Tensor, block: int | None = None) -> None:
        self.volume, self.shape, self.n = volume, volume.shape, volume.numel()
        self.block = block or BLOCK
        self.blocks = triton.cdiv(self.n, self.block)

    def __call__(self, kernel: Any, stack: int, *arguments: Any) -> None:
        """Launch on a stack of volumes, each (`stack` of them) in programs of its own."""
        with torch.cuda.device_of(self.volume):
            kernel[(self.blocks, stack)](*arguments, BLOCK=self.block, enable_fp_fusion=True)

    def along(self, axis: int) -> tuple[int, int, int]:
        """n, size and stride of a pass along an axis."""
        return self.n, self.shape[axis], self.shape[axis + 1 :].numel()

    def per_block(self) -> torch.Tensor:
        """Room for one number of every block."""
        return self.volume.new_empty(self.blocks)


def _pair(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
