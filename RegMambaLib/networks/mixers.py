"""The Mamba blocks: token mixing within one feature map (FeatMamba) and between two (MatchMamba).

All parameters of the directional part are stacked over the G directions, (G, ...). The structure is that of
3DReg-Mamba; the recurrence that of Mamba (Gu and Dao 2023) with expansion 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log

import torch
import torch.nn.functional as F
from torch import nn

from RegMambaLib.networks.blocks import instance_norm
from RegMambaLib.scan import Shape, Traversal, causal_conv1d, selective_scan


class DirectionalScan(nn.Module):
    """The directional part of a Mamba block: causal convolution and selective scan along each of G
    traversals.

    Parameters, E channels, N states, K taps, R = ceil(E / 16): conv_weight (G, E, K), conv_bias (G, E), dt_in
    (G, R, E), B_in, C_in (G, N, E), dt_weight (G, E, R), dt_bias (G, E), A_log (G, E, N), D (G, E).
    """

    def __init__(self, channels: int, traversals: Sequence[Traversal], d_state: int, d_conv: int) -> None:
        super().__init__()
        groups, rank = len(traversals), ceil(channels / 16)
        self.traversals = tuple(traversals)
        self.conv_weight = _uniform(groups, channels, d_conv, bound=d_conv**-0.5)
        self.conv_bias = _uniform(groups, channels, bound=d_conv**-0.5)
        self.dt_in = _uniform(groups, rank, channels, bound=channels**-0.5)
        self.B_in = _uniform(groups, d_state, channels, bound=channels**-0.5)
        self.C_in = _uniform(groups, d_state, channels, bound=channels**-0.5)
        self.dt_weight = _uniform(groups, channels, rank, bound=rank**-0.5)
        # Mamba's start: time steps log-uniform in [0.001, 0.1], given through the inverse of softplus.
        step = torch.exp(torch.rand(groups, channels) * (log(0.1) - log(0.001)) + log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().expand(groups, channels, -1).clone())
        self.D = nn.Parameter(torch.ones(groups, channels))

    def forward(self, x: torch.Tensor, guide: torch.Tensor | None, shape: Shape) -> torch.Tensor:
        """Tokens x (b, L, E) -> (b, G, L, E), one result per direction, all in canonical order.

        guide (b, L, E) decides time steps, B and C; without it each direction's convolved x does.
        """
        visits = self.traversals
        u = causal_conv1d(x[:, None], self.conv_weight, self.conv_bias, shape=shape, traversals=visits)
        source = list(u.unbind(1)) if guide is None else [guide] * len(visits)
        low_rank, B, C = (
            torch.stack([F.linear(tokens, w) for tokens, w in zip(source, weight, strict=True)], 1)
            for weight in (self.dt_in, self.B_in, self.C_in)
        )
        delta = low_rank @ self.dt_weight.transpose(1, 2)
        A = -torch.exp(self.A_log.float())
        return selective_scan(
            u,
            delta,
            A,
            B,
            C,
            self.D,
            delta_bias=self.dt_bias,
            delta_softplus=True,
            shape=shape,
            traversals=visits,
        )


class MambaMixer(nn.Module):
    """One Mamba block over the tokens of a feature map: tokens (b, L, E) -> (b, L, E).

    Several directions are averaged. `guided` makes room for a second map that steers the recurrence.
    """

    def __init__(
        self, channels: int, traversals: Sequence[Traversal], d_state: int, d_conv: int, guided: bool = False
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.guide_proj = nn.Linear(channels, channels, bias=False) if guided else None
        self.scan = DirectionalScan(channels, traversals, d_state, d_conv)
        self.norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def forward(
        self,
        tokens: torch.Tensor,
        shape: Shape,
        guide: torch.Tensor | None = None,
        votes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """votes (G,) weigh the directions; without them they count alike."""
        x, z = self.in_proj(tokens).chunk(2, -1)
        steer = None if guide is None or self.guide_proj is None else self.guide_proj(guide)
        y = self.scan(x, steer, shape)
        y = y.mean(1) if votes is None else torch.einsum("g,bgle->ble", votes.to(y.dtype), y)
        # The gate is the same in every direction, so it is applied once, after the vote.
        return self.out_proj(self.norm(y * F.silu(z)))


class ConvMixer(nn.Module):
    """`MambaMixer` with a depthwise 3x3x3 convolution in the place of the scan: the same block with a local view.

    It has about as many weights, and is there to tell what the scan brings. Votes have nothing to weigh in it.
    """

    def __init__(self, channels: int, guided: bool = False) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.guide_proj = nn.Linear(channels, channels, bias=False) if guided else None
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, channels, bias=False)

    def forward(
        self,
        tokens: torch.Tensor,
        shape: Shape,
        guide: torch.Tensor | None = None,
        votes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x, z = self.in_proj(tokens).chunk(2, -1)
        if guide is not None and self.guide_proj is not None:
            x = x + self.guide_proj(guide)
        y = to_tokens(self.conv(x.transpose(1, 2).unflatten(2, shape)))
        return self.out_proj(self.norm(F.silu(y) * F.silu(z)))


def mixer_of(
    mixing: str, channels: int, traversals: Sequence[Traversal], d_state: int, d_conv: int, guided: bool = False
) -> nn.Module:
    """The block that mixes tokens: of `NetworkConfig.mixing`."""
    if mixing == "conv":
        return ConvMixer(channels, guided)
    return MambaMixer(channels, traversals, d_state, d_conv, guided)


class FeatMamba(nn.Module):
    """Features (B, C_in, H, W, D) -> (B, C_out, H, W, D): conv(mamba(x)) + ReLU(IN(conv(x))), one shared
    convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        traversals: Sequence[Traversal],
        d_state: int,
        d_conv: int,
        mixing: str = "mamba",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.mixer = mixer_of(mixing, in_channels, traversals, d_state, d_conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = to_map(self.mixer(to_tokens(x), volume_shape(x)), x)
        return self.conv(mixed) + F.relu(instance_norm(self.conv(x)))


class MatchMamba(nn.Module):
    """Matches a moving with a fixed feature map (B, C, H, W, D) -> (B, C_out, H, W, D).

    The moving tokens run through the recurrence that the fixed tokens steer, along every direction; the
    results are voted on, and added to the moving features before a 1x1x1 convolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        traversals: Sequence[Traversal],
        d_state: int,
        d_conv: int,
        mixing: str = "mamba",
    ) -> None:
        super().__init__()
        self.norm_moving = nn.LayerNorm(channels)
        self.norm_fixed = nn.LayerNorm(channels)
        self.mixer = mixer_of(mixing, channels, traversals, d_state, d_conv, guided=True)
        self.conv = nn.Conv3d(channels, out_channels, 1)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
        tokens, guide = self.norm_moving(to_tokens(moving)), self.norm_fixed(to_tokens(fixed))
        matched = self.mixer(tokens, volume_shape(moving), guide, votes)
        return self.conv(to_map(matched, moving) + moving)


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W, D) -> (B, H W D, C) in canonical order."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, L, C) -> (B, C, H, W, D) with the sizes of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def volume_shape(x: torch.Tensor) -> Shape:
    """(H, W, D) of a feature map."""
    return (x.shape[2], x.shape[3], x.shape[4])


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
