"""What a network is made of, as one frozen value that weight files carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from RegMambaLib.errors import InputError
from RegMambaLib.scan import resolve_traversals

VARIANTS = ("regmamba", "v1", "v2")
# What "regmamba" may be built of, beside its default, the first; the others are for ablation but for `input`.
CHOICES = {
    "input": ("intensity", "mind"),
    "mixing": ("mamba", "conv"),
    "matching": ("mamba", "concat"),
    "voting": ("sampled", "mean", "equal"),
}


@dataclass(frozen=True)
class NetworkConfig:
    """The structure of a network; everything its weights depend on.

    variant: "regmamba" (ours) or the published "v1", "v2".
    channels: features per level, finest first; each level halves the resolution of the one before.
    directions: scan directions of the matching blocks, names and groups of
    `RegMambaLib.scan.resolve_traversals`.
    encoder_directions: those of the encoder's blocks.
    d_state, d_conv: states per channel and taps of the causal convolution of every Mamba block.
    bottleneck: output channels of the coarsest match; None for as many as the level has.
    input: what the first convolution sees of an image: its "intensity", or its twelve "mind" channels (MIND-SSC),
    which a turned-over or otherwise changed contrast leaves almost as they are.
    mixing: "mamba", or "conv" for a depthwise convolution in the place of every scan.
    matching: "mamba", or "concat" for levels that see both feature maps side by side, without a matching block.
    voting: direction weights of the matching blocks in training: "sampled" from the learned posterior, its "mean", or
    "equal" ones that are not learned.
    """

    variant: str = "regmamba"
    channels: tuple[int, ...] = (8, 16, 32, 64, 96)
    directions: tuple[str, ...] = ("hwd", "whd", "dhw")
    encoder_directions: tuple[str, ...] = ("hwd",)
    d_state: int = 8
    d_conv: int = 4
    bottleneck: int | None = None
    input: str = "intensity"
    mixing: str = "mamba"
    matching: str = "mamba"
    voting: str = "sampled"

    def __post_init__(self) -> None:
        for name in ("channels", "directions", "encoder_directions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.variant not in VARIANTS:
            raise InputError(f"'{self.variant}' is not a network variant; choose from {', '.join(VARIANTS)}.")
        counts = (
            *self.channels,
            self.d_state,
            self.d_conv,
            1 if self.bottleneck is None else self.bottleneck,
        )
        if not self.channels or any(not isinstance(count, int) or count < 1 for count in counts):
            raise InputError(f"Channel, state and tap counts of a network must be positive integers, not {counts}.")
        for name, choices in CHOICES.items():
            chosen = getattr(self, name)
            if chosen not in choices:
                raise InputError(f"'{chosen}' is no {name} of a network; choose from {', '.join(choices)}.")
            if self.variant != "regmamba" and chosen != choices[0]:
                raise InputError(f"The published networks know no {name} but {choices[0]}, so not {chosen}.")
        if self.variant != "regmamba" and len(self.channels) != 5:
            raise InputError(f"The published networks have five levels, not {len(self.channels)}.")
        for names in (self.directions, self.encoder_directions):
            resolve_traversals(names)

    @property
    def levels(self) -> int:
        return len(self.channels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Inverse of `to_dict`. Raises InputError for fields this version does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"The network configuration has unknown fields ({', '.join(unknown)}); "
                f"it needs a newer RegMamba, or use only {', '.join(sorted(known))}."
            )
        return cls(**values)


def published_config(variant: str, channels: int = 16, bottleneck: int = 1200, **others: Any) -> NetworkConfig:
    """The configuration of the published "v1" or "v2": `channels` at full resolution, doubled at each
    level.
    """
    return NetworkConfig(
        variant=variant,
        channels=tuple(channels * 2**level for level in range(5)),
        directions=("forward",),
        encoder_directions=("hwd+",),
        bottleneck=bottleneck,
        **others,
    )
