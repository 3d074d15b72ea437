"""The two published 3DReg-Mamba variants, number for number, quirks included, at any volume size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from RegMambaLib.networks.base import Features, RegistrationNetwork
from RegMambaLib.networks.blocks import ConvBlock, FlowHead, UpBlock, downsample, upsample_flow, warp
from RegMambaLib.networks.config import NetworkConfig
from RegMambaLib.networks.mixers import FeatMamba, MatchMamba
from RegMambaLib.networks.voting import DirectionVoting, draw_votes
from RegMambaLib.scan import resolve_traversals


class PublishedNetwork(RegistrationNetwork):
    """Variant "v1" (the journal's) or "v2" (a second, fine displacement head per level); see
    `RegistrationNetwork`.

    Level 0 is full resolution. One posterior of direction weights serves all levels.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels, mamba = config.channels, (config.d_state, config.d_conv)
        within, between = resolve_traversals(config.encoder_directions), resolve_traversals(config.directions)
        pairs = list(pairwise(channels))
        outputs = [*channels[:-1], config.bottleneck or channels[-1]]
        merged = [2 * channels[0], *(2 * channels[k] + outputs[k] for k in range(1, 5))]
        self.voting = DirectionVoting(len(between))
        self.stem = ConvBlock(1, channels[0])
        self.encoder = nn.ModuleList(FeatMamba(fine, coarse, within, *mamba) for fine, coarse in pairs)
        self.matchers = nn.ModuleList(MatchMamba(channels[k], outputs[k], between, *mamba) for k in range(1, 5))
        self.merge = nn.ModuleList(ConvBlock(wide, narrow) for wide, narrow in zip(merged, channels, strict=True))
        self.heads = nn.ModuleList(FlowHead(width) for width in channels)
        self.has_fine_path = config.variant == "v2"
        if self.has_fine_path:
            self.shortcuts = nn.ModuleList(ConvBlock(fine, coarse) for fine, coarse in pairs)
            self.fine_up = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in pairs)
            self.fine_merge = nn.ModuleList(ConvBlock(3 + 2 * width, width) for width in channels[:-1])
            self.fine_heads = nn.ModuleList(FlowHead(width) for width in channels[:-1])

    def encode(self, image: torch.Tensor) -> Features:
        features = [self.stem(image)]
        for k, stage in enumerate(self.encoder):
            pooled = downsample(features[-1])
            features.append(stage(pooled) + self.shortcuts[k](pooled) if self.has_fine_path else stage(pooled))
        return features

    def votes(self, sample: bool, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        return 4 * [draw_votes(self.voting, sample, generator)]

    def decode(self, moving: Features, fixed: Features, votes: list[torch.Tensor]) -> torch.Tensor:
        merged = self._merge(4, moving[4], fixed[4], votes)
        flow = self.heads[4](merged)
        fine, previous = merged, flow
        for level in (3, 2, 1, 0):
            carried = upsample_flow(flow, align_corners=True)
            warped = warp(moving[level], carried)
            if level == 1 and not self.has_fine_path:
                # v1 was trained with this slip: into half resolution goes the eighth-resolution displacement,
                # upsampled twice, although the features are warped by the quarter-resolution one.
                carried = upsample_flow(previous, align_corners=True)
            merged = self._merge(level, warped, fixed[level], votes)
            flow = carried + self.heads[level](merged)
            previous = carried
            if self.has_fine_path:
                fine = self.fine_merge[level](torch.cat([flow, merged, self.fine_up[level](fine)], 1))
                flow = flow + self.fine_heads[level](fine)
        return flow

    def _merge(self, level: int, moving: torch.Tensor, fixed: torch.Tensor, votes: list[torch.Tensor]) -> torch.Tensor:
        matched = [self.matchers[level - 1](moving, fixed, votes[level - 1])] if level > 0 else []
        return self.merge[level](torch.cat([moving, *matched, fixed], 1))
