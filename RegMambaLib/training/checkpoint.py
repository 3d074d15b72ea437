"""The state of a run on disk, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from RegMambaLib.errors import InputError
from RegMambaLib.io.atomic import staged_file
from RegMambaLib.networks.blocks import ConvBlock
from RegMambaLib.networks.mixers import FeatMamba, MatchMamba
from RegMambaLib.training.config import TrainingConfig
from RegMambaLib.training.tree import plain

CHECKPOINT = "checkpoint.pt"
_FORMAT = "regmamba training 2"


class Average:
    """Exponential moving average of the weights; young averages forget faster."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value.detach(), 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def held_by(self, network: nn.Module) -> Iterator[None]:
        """The network holds the average within the block, its own weights again after it."""
        own = {k: v.detach().clone() for k, v in network.state_dict().items()}
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(own)


def save_checkpoint(
    config: TrainingConfig,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Average,
    progress: dict[str, Any],
) -> None:
    """Write all that is needed to go on to the run's folder; the old file stays until the new one is whole."""
    state = {
        "format": _FORMAT,
        "config": plain(config),
        "network": network.state_dict(),
        "average": average.weights,
        "optimiser": optimiser.state_dict(),
        "progress": progress,
    }
    with staged_file(config.output / CHECKPOINT, overwrite=True) as part:
        torch.save(state, part)


def read_state(folder: Path, kind: str) -> dict[str, Any] | None:
    """What the checkpoint of a run's folder holds; None where there is none.

    Raises InputError if it is damaged, or not of this kind, which it says under "format".
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{file} cannot be read; remove it to start anew, or give another output.") from error
    if not isinstance(state, dict) or state.get("format") != kind:
        raise InputError(
            f"{file} is no checkpoint of this kind and version; remove it to start anew, or give another output."
        )
    return state


def load_checkpoint(
    config: TrainingConfig,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Average,
) -> tuple[dict[str, Any], list[str]] | None:
    """Take up the state in the run's folder: its progress, and what of the configuration has changed since.

    Returns: None where there is no checkpoint.

    Raises:
        InputError: it is damaged, of another version, or of a run with another seed, batch or network.
    """
    file = config.output / CHECKPOINT
    state = read_state(config.output, _FORMAT)
    if state is None:
        return None
    changes = differences(state["config"], plain(config))
    for name, before, now in changes:
        if name in ("seed", "batch"):
            raise InputError(f"{file} comes from a run with {name} {before}, not {now}; give that or another output.")
    try:
        network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise InputError(
            f"{file} comes from another network; give that network's options or another output."
        ) from error
    device = next(network.parameters()).device
    optimiser.load_state_dict(state["optimiser"])
    average.weights = {name: value.to(device) for name, value in state["average"].items()}
    return state["progress"], [f"{name}: {before} -> {now}" for name, before, now in changes]


def differences(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of the values that differ between two plain trees, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*now, *(name for name in before if name not in now)]
        branches = ((f"{where}.{name}" if where else name, name) for name in names)
        return [d for path, name in branches for d in differences(before.get(name), now.get(name), path)]
    return [] if before == now else [(where, before, now)]


def checkpoint_blocks(network: nn.Module) -> None:
    """Let the blocks of a network be computed again in the backward pass instead of keeping what they computed.

    Chen et al., "Training deep nets with sublinear memory cost", 2016. The results are the same to the last bit.
    """
    for module in network.modules():
        if isinstance(module, (ConvBlock, FeatMamba, MatchMamba)):
            # Nothing random happens in a block, so no generator needs to be wound back.
            forward: Callable[..., Any] = partial(
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )
            module.forward = forward  # type: ignore[method-assign]
