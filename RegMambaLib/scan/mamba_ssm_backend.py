"""The CUDA kernels of the mamba-ssm and causal-conv1d packages, one direction at a time.

Recent mamba-ssm releases may be installed without a `selective_scan_cuda` that works here, and some fail only when
called, so `check` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from RegMambaLib.scan import reference
from RegMambaLib.scan.traversals import Shape, Traversal

TAPS = (2, 3, 4)  # that the package's kernel takes


def check(device: torch.device) -> None:
    """Run both kernels on four tokens. Raises whatever keeps them from working."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    tokens = torch.zeros(1, 8, 4, device=device)
    states = torch.zeros(1, 2, 4, device=device)
    scanned = selective_scan_fn(tokens, tokens, states.new_zeros(8, 2), states, states)
    convolved = causal_conv1d_fn(tokens, states.new_zeros(8, 4))
    (scanned + convolved).cpu()  # what goes wrong on the device shows when its results are read


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
    """See `RegMambaLib.scan.selective_scan`; returns y (b, G, L, E) in the type of u."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    outputs = []
    for g, traversal in enumerate(traversals):
        inputs = (u[:, g if u.shape[1] > 1 else 0], delta[:, g], B[:, g], C[:, g])
        x, step, b, c = (_channels_first(tensor, traversal, shape, u.dtype) for tensor in inputs)
        skip = None if D is None else D[g].float()
        bias = None if delta_bias is None else delta_bias[g].float()
        y = selective_scan_fn(x, step, A[g].float(), b, c, D=skip, delta_bias=bias, delta_softplus=delta_softplus)
        outputs.append(traversal.restore(y.transpose(1, 2), shape))
    return torch.stack(outputs, 1)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
) -> torch.Tensor:
    """See `RegMambaLib.scan.causal_conv1d`; returns y (b, G, L, E) in the type of x."""
    if weight.shape[-1] not in TAPS:
        return reference.causal_conv1d(x, weight, bias, silu, shape, traversals).to(x.dtype)
    from causal_conv1d import causal_conv1d_fn

    outputs = []
    for g, traversal in enumerate(traversals):
        tokens = _channels_first(x[:, g if x.shape[1] > 1 else 0], traversal, shape, x.dtype)
        offset = None if bias is None else bias[g].to(x.dtype)
        y = causal_conv1d_fn(tokens, weight[g].to(x.dtype), offset, activation="silu" if silu else None)
        outputs.append(traversal.restore(y.transpose(1, 2), shape))
    return torch.stack(outputs, 1)


def _channels_first(tokens: torch.Tensor, traversal: Traversal, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """(b, L, E) canonical -> (b, E, L) in the order visited, contiguous."""
    return traversal.arrange(tokens, shape).transpose(1, 2).to(dtype).contiguous()
