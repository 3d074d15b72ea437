"""Our network: a small pyramid of Mamba blocks that registers from coarse to fine.

It keeps the blocks of 3DReg-Mamba and differs from the published networks where those lose accuracy or
memory: each level's displacement really is handed on; it is composed with what the level adds, not summed,
because a level matches features that are already warped; grids are related by voxel centres, as average
pooling relates them; every level votes for itself; the wide bottleneck is gone; scans run in both senses.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from RegMambaLib.losses.mind import MIND_CHANNELS, mind_ssc
from RegMambaLib.networks.base import Features, RegistrationNetwork
from RegMambaLib.networks.blocks import ConvBlock, FlowHead, downsample, upsample_flow, warp
from RegMambaLib.networks.config import NetworkConfig
from RegMambaLib.networks.mixers import FeatMamba, MatchMamba
from RegMambaLib.networks.voting import DirectionVoting, draw_votes
from RegMambaLib.scan import resolve_traversals


class RegMambaNetwork(RegistrationNetwork):
    """The default network; see the module and `RegistrationNetwork`. Untrained it returns almost no
    displacement.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels, mamba = config.channels, (config.d_state, config.d_conv, config.mixing)
        within, between = resolve_traversals(config.encoder_directions), resolve_traversals(config.directions)
        outputs = list(channels)
        outputs[-1] = config.bottleneck or channels[-1]
        self.stem = ConvBlock(MIND_CHANNELS if config.input == "mind" else 1, channels[0])
        self.encoder = nn.ModuleList(FeatMamba(fine, coarse, within, *mamba) for fine, coarse in pairwise(channels))
        # Full resolution has no match: eight times the tokens for the finest sixteenth of a displacement.
        matched = range(1, config.levels) if config.matching == "mamba" else range(0)
        self.matchers = nn.ModuleList(MatchMamba(channels[k], outputs[k], between, *mamba) for k in matched)
        self.voting = nn.ModuleList(DirectionVoting(len(between)) for _ in matched)
        if config.voting == "equal" or config.mixing == "conv":  # a convolution has no directions to weigh
            self.voting.requires_grad_(False)
        merged = [2 * width + (outputs[k] if k in matched else 0) for k, width in enumerate(channels)]
        self.merge = nn.ModuleList(ConvBlock(wide, narrow) for wide, narrow in zip(merged, channels, strict=True))
        self.heads = nn.ModuleList(FlowHead(width) for width in channels)

    def encode(self, image: torch.Tensor) -> Features:
        with torch.autocast(image.device.type, enabled=False):  # an image may hold what half types cannot
            features = [self.stem(mind_ssc(image) if self.config.input == "mind" else image)]
        for stage in self.encoder:
            features.append(stage(downsample(features[-1])))
        return features

    def votes(self, sample: bool, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        return [draw_votes(posterior, sample, generator) for posterior in self.voting]

    def decode(self, moving: Features, fixed: Features, votes: list[torch.Tensor]) -> torch.Tensor:
        flow: torch.Tensor | None = None
        for level in reversed(range(self.config.levels)):
            m, f = moving[level], fixed[level]
            if flow is not None:
                flow = upsample_flow(flow, align_corners=False)
                m = warp(m, flow)
            matched = [self.matchers[level - 1](m, f, votes[level - 1])] if level > 0 and votes else []
            residual = self.heads[level](self._merge(level, torch.cat([m, *matched, f], 1)))
            flow = residual if flow is None else residual + warp(flow, residual, "border")
        assert flow is not None
        return flow

    def _merge(self, level: int, features: torch.Tensor) -> torch.Tensor:
        """What the level's displacement is read from, in float32 under autocast too.

        Rounding it in bfloat16 cost twice the error of all the rest together. Only the finest level goes without: it is
        most of the work, and no finer level doubles its error.
        """
        if level == 0:
            return self.merge[0](features)
        with torch.autocast(features.device.type, enabled=False):
            return self.merge[level](features.to(self.stem.conv.weight.dtype))
