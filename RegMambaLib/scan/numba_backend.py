"""The numba kernels as differentiable torch operations: CPU, float32 (other types are converted)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numba
import numpy as np
import torch
from torch.autograd.function import once_differentiable

from RegMambaLib.scan.numba_conv import conv_backward, conv_forward
from RegMambaLib.scan.numba_lanes import WIDTH
from RegMambaLib.scan.numba_scan import CHUNK, scan_forward
from RegMambaLib.scan.numba_scan_gradient import scan_backward
from RegMambaLib.scan.traversals import Shape, Traversal

_LINE = 16  # float32 values in a cache line


def check(device: torch.device) -> None:
    """Nothing to check: importing this module has imported numba."""


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
) -> torch.Tensor:
    """See `RegMambaLib.scan.selective_scan`; returns y (b, G, L, E) in float32."""
    empty = u.new_empty(0, u.shape[-1])
    tensors = (u, delta, A, B, C, empty if D is None else D, empty if delta_bias is None else delta_bias)
    plans = _plans(shape, traversals)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _Scan.apply(*(_plain(tensor) for tensor in tensors), delta_softplus, plans, keep)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
) -> torch.Tensor:
    """See `RegMambaLib.scan.causal_conv1d`; returns y (b, G, L, E) in float32."""
    offset = x.new_empty(0, x.shape[-1]) if bias is None else bias
    return _Conv.apply(_plain(x), _plain(weight), _plain(offset), silu, _plans(shape, traversals))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
        bias: torch.Tensor,
        use_softplus: bool,
        plans: np.ndarray,
        keep_states: bool,
    ) -> torch.Tensor:
        images, directions, length, channels = delta.shape
        chunks = -(-length // CHUNK) if keep_states else 0
        blocks = -(-channels // WIDTH)
        y = _room(*delta.shape)
        states = _room(images if keep_states else 0, directions, chunks, blocks, A.shape[2], WIDTH)
        parts = _parts(images * directions, channels)
        inputs = (u, delta, A, B, C, D, bias)
        scan_forward(*map(_array, inputs), use_softplus, plans, parts, _array(y), _array(states))
        ctx.save_for_backward(*inputs, states)
        ctx.options = use_softplus, plans
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        *inputs, states = ctx.saved_tensors
        u, delta, A, B, _, D, bias = inputs
        use_softplus, plans = ctx.options
        images, directions, _, channels = delta.shape
        parts = _parts(images * directions, channels)
        gu, gdelta = _room(*delta.shape), _room(*delta.shape)
        gA = A.new_empty(images, *A.shape)
        gB, gC = _room(parts, *B.shape), _room(parts, *B.shape)
        gD, gbias = A.new_empty(images, directions, channels), A.new_empty(images, directions, channels)
        outputs = (gu, gdelta, gA, gB, gC, gD, gbias)
        arrays = (
            *map(_array, inputs),
            use_softplus,
            plans,
            parts,
            *map(_array, (states, _plain(gy), *outputs)),
        )
        scan_backward(*arrays)
        return (
            gu if u.shape[1] == directions else gu.sum(1, keepdim=True),
            gdelta,
            gA.sum(0),
            gB[0] if parts == 1 else gB.sum(0),
            gC[0] if parts == 1 else gC.sum(0),
            gD.sum(0) if D.numel() else None,
            gbias.sum(0) if bias.numel() else None,
            None,
            None,
            None,
        )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, silu: bool, plans: np.ndarray
    ) -> torch.Tensor:
        y = _room(x.shape[0], len(plans), *x.shape[2:])
        arrays = map(_array, (x, weight, bias))
        conv_forward(*arrays, silu, plans, _segments(x.shape[0] * len(plans), x.shape[2]), _array(y))
        ctx.save_for_backward(x, weight, bias)
        ctx.options = silu, plans
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        silu, plans = ctx.options
        images, directions, length, channels = gy.shape
        segments = _segments(images * directions, length)
        tasks = images * directions * segments
        gx = _room(*gy.shape)
        gweight = weight.new_empty(tasks, *weight.shape[1:])
        gbias = weight.new_empty(tasks, channels)
        arrays = map(_array, (x, weight, bias))
        conv_backward(*arrays, silu, plans, segments, *map(_array, (_plain(gy), gx, gweight, gbias)))
        return (
            gx if x.shape[1] == directions else gx.sum(1, keepdim=True),
            gweight.unflatten(0, (images, directions, segments)).sum((0, 2)),
            gbias.unflatten(0, (images, directions, segments)).sum((0, 2)) if bias.numel() else None,
            None,
            None,
        )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """As the kernels need it; a no-op for contiguous float32."""
    return tensor.float().contiguous()


def _room(*shape: int) -> torch.Tensor:
    """An empty float32 tensor at the start of a cache line.

    numpy asks Linux for huge pages for large arrays, torch does not: the first touch of a small page costs more than
    the work on what it holds.
    """
    count = prod(shape)
    whole = np.empty(count + _LINE, np.float32)
    first = -(whole.ctypes.data // 4) % _LINE
    return torch.from_numpy(whole[first : first + count].reshape(shape))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _plans(shape: Shape, traversals: Sequence[Traversal]) -> np.ndarray:
    return np.array([traversal.index_plan(shape) for traversal in traversals], np.int64)


def _parts(directions: int, channels: int) -> int:
    """Into how many tasks the channels of one direction are split: as few as keep all threads busy."""
    blocks = -(-channels // WIDTH)
    return max(1, min(blocks, -(-numba.get_num_threads() // directions)))


def _segments(directions: int, length: int) -> int:
    """Into how many tasks the tokens of one direction of a convolution are split."""
    return max(1, min(-(-length // CHUNK), 2 * numba.get_num_threads() // directions + 1))
