"""The two operations of a Mamba block on the tokens of a volume, along several traversals at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F

from RegMambaLib.errors import InputError
from RegMambaLib.scan.selection import backend_module
from RegMambaLib.scan.traversals import Shape, Traversal, one_traversal


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    *,
    shape: Shape | None = None,
    traversals: Sequence[str | Traversal] | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """The selective state-space recurrence of Mamba (Gu and Dao 2023) along G traversals of one volume.

    Along each traversal, per channel e, with state h of size N, t' the token visited before t::

        step = delta + delta_bias;  step = softplus(step) if delta_softplus
        h_t = exp(step_t A) h_t' + step_t B_t u_t;   y_t = <C_t, h_t> + D u_t;   y_t *= silu(z_t)

    which is mamba_ssm's `selective_scan_fn` per direction. Tokens stay in canonical (h w d) order in every
    argument and in the result; a traversal is index arithmetic.

    u: (b, G, L, E), or (b, 1, L, E) shared by all directions; delta: (b, G, L, E); A: (G, E, N); B, C: (b, G,
    L, N);
    D, delta_bias: (G, E); z: (b, G or 1, L, E).
    shape: (H, W, D) with H W D = L, by default a plain sequence; traversals: G names ("whd-") or `Traversal`
    objects, by default "hwd+" for all; backend: one of `BACKENDS`, see `selection`.

    Returns y (b, G, L, E) in the type of u; the state is float32 for half types and float32, float64 for
    float64.
    Raises InputError for sizes that do not match, MissingDependencyError for a backend that cannot run.
    """
    sizes = _named_sizes("delta", delta, 4)
    batch, groups, length, channels = sizes
    state = A.shape[-1]
    for name, tensor, expected in (
        ("A", A, (groups, channels, state)),
        ("B", B, (batch, groups, length, state)),
        ("C", C, (batch, groups, length, state)),
        ("D", D, (groups, channels)),
        ("delta_bias", delta_bias, (groups, channels)),
    ):
        _check(name, tensor, expected)
    for name, tensor in (("u", u), ("z", z)):
        _check_shared(name, tensor, sizes)
    volume, visits = _volume(shape, traversals, length, groups)
    module = backend_module(backend, u.device, u.dtype)
    arguments = (u, delta, A, B, C, D, delta_bias, delta_softplus, volume, visits)
    gated = getattr(module, "GATED", False)  # such a backend has the gate in its kernel
    y = module.selective_scan(*arguments, z) if gated else module.selective_scan(*arguments)
    if z is not None and not gated:
        gate = F.silu(z.to(y.dtype))
        y = y * gate if y.requires_grad or gate.requires_grad else y.mul_(gate)
    return y.to(u.dtype)


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    shape: Shape | None = None,
    traversals: Sequence[str | Traversal] | None = None,
    activation: str | None = "silu",
    backend: str = "auto",
) -> torch.Tensor:
    """Depthwise convolution over the current and the K - 1 tokens visited before it, along G traversals of
    one volume.

    x: (b, G, L, E), or (b, 1, L, E) shared by all directions, canonical order; weight: (G, E, K), the last
    tap on the current token; bias: (G, E); activation: "silu" or None; shape, traversals, backend: as in
    `selective_scan`.

    Returns (b, G, L, E) in the type of x, computed in float32 (float64 for float64). Raises as
    `selective_scan`.
    """
    batch, _, length, channels = _named_sizes("x", x, 4)
    groups, _, _ = _named_sizes("weight", weight, 3)
    _check("weight", weight, (groups, channels, weight.shape[2]))
    _check("bias", bias, (groups, channels))
    _check_shared("x", x, (batch, groups, length, channels))
    if activation not in ("silu", None):
        raise InputError(f"'{activation}' is not an activation of the causal convolution; use 'silu' or None.")
    volume, visits = _volume(shape, traversals, length, groups)
    module = backend_module(backend, x.device, x.dtype)
    return module.causal_conv1d(x, weight, bias, activation == "silu", volume, visits).to(x.dtype)


def _named_sizes(name: str, tensor: torch.Tensor, axes: int) -> tuple[int, ...]:
    if tensor.dim() != axes or tensor.numel() == 0:
        raise InputError(f"{name} must have {axes} non-empty axes and has shape {tuple(tensor.shape)}.")
    return tuple(tensor.shape)


def _check(name: str, tensor: torch.Tensor | None, expected: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != expected:
        raise InputError(f"{name} has shape {tuple(tensor.shape)} where the other inputs ask for {expected}.")


def _check_shared(name: str, tensor: torch.Tensor | None, sizes: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != (sizes[0], 1, *sizes[2:]):
        _check(name, tensor, sizes)


def _volume(
    shape: Shape | None, traversals: Sequence[str | Traversal] | None, length: int, groups: int
) -> tuple[Shape, tuple[Traversal, ...]]:
    volume = (1, 1, length) if shape is None else shape
    if prod(volume) != length:
        raise InputError(f"A volume of shape {tuple(volume)} has {prod(volume)} tokens, but {length} were given.")
    visits = tuple(one_traversal(item) for item in traversals or ("hwd+",) * groups)
    if len(visits) != groups:
        raise InputError(f"{len(visits)} traversals were named for {groups} directions; name one for each.")
    return volume, visits
