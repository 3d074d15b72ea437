"""The exact definition of both operations in plain torch: any device, any float type, differentiable by
autograd.

It is also the fallback where nothing faster is installed, so it does not step through the tokens one by one.
The sequence is cut into about sqrt(L) segments that advance together, twice: once from a zero state, which
gives what each segment adds to the state that enters it; then from the true entering states, which gives the
outputs. That is the same recurrence with the same terms, in about 3 sqrt(L) steps. The states of a step are
(segments, E, N); under autograd only every sqrt(sqrt(L))-th of them is kept and the rest is recomputed, so no
(L, E, N) tensor ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from RegMambaLib.scan.traversals import Shape, Traversal

_ONE_SEGMENT = 32  # below this length splitting costs more steps than it saves


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type states are held in: float64 for float64 inputs, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check(device: torch.device) -> None:
    """Nothing to check: torch is always there."""


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
    """See `RegMambaLib.scan.selective_scan`; returns y (b, G, L, E) in float32, or float64 for float64
    input.
    """
    dtype = compute_dtype(u.dtype)
    outputs = []
    for g, traversal in enumerate(traversals):
        skip = None if D is None else D[g].to(dtype)
        bias = None if delta_bias is None else delta_bias[g].to(dtype)
        inputs = (u[:, g if u.shape[1] > 1 else 0], delta[:, g], B[:, g], C[:, g])
        x, step, b, c = (traversal.arrange(tensor, shape).to(dtype) for tensor in inputs)
        y = _scan_sequence(x, step, A[g].to(dtype), b, c, skip, bias, delta_softplus)
        outputs.append(traversal.restore(y, shape))
    return torch.stack(outputs, 1)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
) -> torch.Tensor:
    """See `RegMambaLib.scan.causal_conv1d`; returns y (b, G, L, E) in float32, or float64 for float64
    input.
    """
    dtype = compute_dtype(x.dtype)
    channels, width = weight.shape[1:]
    outputs = []
    for g, traversal in enumerate(traversals):
        tokens = traversal.arrange(x[:, g if x.shape[1] > 1 else 0], shape).to(dtype)
        padded = F.pad(tokens.transpose(1, 2), (width - 1, 0))
        offset = None if bias is None else bias[g].to(dtype)
        y = F.conv1d(padded, weight[g].to(dtype)[:, None], offset, groups=channels)
        outputs.append(traversal.restore((F.silu(y) if silu else y).transpose(1, 2), shape))
    return torch.stack(outputs, 1)


def _scan_sequence(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """One direction in the order visited: u, delta (b, L, E), A (E, N), B, C (b, L, N) -> y (b, L, E)."""
    batch, length, channels = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    segments = 1 if length <= _ONE_SEGMENT else isqrt(length)
    steps = -(-length // segments)
    # A padded token has delta = 0: it leaves the state as it is.
    padding = (0, 0, 0, segments * steps - length)

    def by_step(tensor: torch.Tensor) -> torch.Tensor:
        return F.pad(tensor, padding).unflatten(1, (segments, steps)).permute(2, 0, 1, 3)

    step_delta, step_input, step_B, step_C = (by_step(tensor) for tensor in (delta, delta * u, B, C))
    state = u.new_zeros(batch, segments, channels, A.shape[1])
    if segments > 1:
        gain, _ = _advance(state, step_delta, step_input, A, step_B, None)
        decay = torch.exp(step_delta.sum(0)[..., None] * A)
        entering = [state[:, 0]]
        for s in range(segments - 1):
            entering.append(decay[:, s] * entering[-1] + gain[:, s])
        state = torch.stack(entering, 1)
    _, y = _advance(state, step_delta, step_input, A, step_B, step_C)
    y = y.permute(1, 2, 0, 3).flatten(1, 2)[:, :length]
    return y if D is None else y + D * u


def _advance(
    state: torch.Tensor,
    delta: torch.Tensor,
    drive: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All segments through all steps: states (b, S, E, N), delta, drive (T, b, S, E), B, C (T, b, S, N).

    Returns the last states and the outputs (T, b, S, E), which are empty without C.
    """
    stride = max(1, isqrt(delta.shape[0]))
    inputs = (state, delta, drive, A, B) if C is None else (state, delta, drive, A, B, C)
    recompute = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    outputs = []
    for start in range(0, delta.shape[0], stride):
        part = slice(start, start + stride)
        arguments = (state, delta[part], drive[part], A, B[part], None if C is None else C[part])
        if recompute:
            state, y = checkpoint(_advance_few, *arguments, use_reentrant=False)
        else:
            state, y = _advance_few(*arguments)
        outputs.append(y)
    return state, torch.cat(outputs)


def _advance_few(
    state: torch.Tensor,
    delta: torch.Tensor,
    drive: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for t in range(delta.shape[0]):
        state = torch.exp(delta[t][..., None] * A) * state + drive[t][..., None] * B[t][..., None, :]
        if C is not None:
            outputs.append(torch.einsum("bsen,bsn->bse", state, C[t]))
    return state, torch.stack(outputs) if outputs else delta.new_empty(0, *delta.shape[1:])
