"""The training loop: synthetic pairs in, weights out. Deterministic, resumable, stops at the first NaN."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from RegMambaLib.errors import InputError, RegMambaError
from RegMambaLib.io.atomic import staged_file
from RegMambaLib.losses import dice_loss, diffusion_loss, dirichlet_kl_loss, lncc_loss
from RegMambaLib.networks.blocks import warp
from RegMambaLib.networks.voting import DirectionVoting
from RegMambaLib.training.anatomy import Anatomy
from RegMambaLib.training.synthetic import Pair, SyntheticSettings, random_pair
from RegMambaLib.training.validation import ValidationPair, validate

# One row of the log, in this order.
LOG_COLUMNS = (
    *("step", "seconds", "spacing", "loss", "similarity", "smoothness", "dice", "gradient"),
    *("val_dice", "val_folds"),
)


class TrainingDivergedError(RegMambaError):
    """Loss or gradient is not finite any more; the last checkpoint is good."""


@dataclass(frozen=True)
class Stage:
    """Until this share of all steps, images have this shape (voxels along S, P, L) and spacing (mm)."""

    until: float
    shape: tuple[int, int, int]
    spacing: float


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the outcome of a training run, apart from the data and the network.

    Attributes:
        steps: number of optimiser steps, each on one new pair.
        seed: of the pairs; each step draws from (seed, step), so a resumed run sees the same pairs.
        learning_rate: of Adam at its highest; it rises over `warm_up` steps, then falls as a cosine to
            `last_rate` of it.
        clip: largest norm of the gradient.
        average: decay of the moving average of the weights that is validated and shipped; 0 switches it off.
        window: edge of the LNCC window in voxels.
        coarse_share: share of the similarity that is LNCC at half resolution, which sees further.
        smoothness: weight of the diffusion loss.
        voting: weight of the voting risk, the divergence of the learned direction votes from even ones.
        dice: weight of the Dice loss on the known labels (0: intensities only).
        labels_per_step: labels drawn for the Dice loss of a step.
        stages: image sizes over the run; the last one goes to the end.
        size_jitter: largest relative change of each axis' length, because the share of background differs.
        validate_every, save_every: in steps.
    """

    steps: int = 1000
    seed: int = 0
    learning_rate: float = 1.5e-3
    last_rate: float = 0.02
    warm_up: int = 20
    clip: float = 1.0
    average: float = 0.98
    window: int = 5
    coarse_share: float = 0.3
    smoothness: float = 1.0
    voting: float = 1e-3
    dice: float = 0.0
    labels_per_step: int = 8
    stages: tuple[Stage, ...] = (
        Stage(0.25, (52, 64, 52), 3.0),
        Stage(0.65, (64, 78, 64), 2.5),
        Stage(1.0, (80, 96, 80), 2.0),
    )
    size_jitter: float = 0.08
    validate_every: int = 100
    save_every: int = 25


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Linear rise, then cosine; `step` counts from 0."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    progress = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    low = settings.last_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def stage_at(settings: TrainingSettings, step: int) -> Stage:
    """The stage that step (from 0) belongs to."""
    share = step / settings.steps
    return next((s for s in settings.stages if share < s.until), settings.stages[-1])


def pair_at(anatomies: list[Anatomy], step: int, settings: TrainingSettings, synthetic: SyntheticSettings) -> Pair:
    """The synthetic pair of a step: a function of seed and step alone."""
    stage = stage_at(settings, step)
    rng = np.random.default_rng([settings.seed, step])
    factors = rng.uniform(1 - settings.size_jitter, 1 + settings.size_jitter, 3)
    h, w, d = (max(1, round(n * float(factor))) for n, factor in zip(stage.shape, factors, strict=True))
    return random_pair(anatomies, rng, shape=(h, w, d), spacing=stage.spacing, settings=synthetic)


def _pairs(make: Callable[[int], Pair], first: int, steps: int) -> Iterator[tuple[int, Pair]]:
    """Pairs of steps first .. steps - 1; the next one is made while the current one is learned from."""
    with ThreadPoolExecutor(1) as maker:
        waiting = maker.submit(make, first)
        for step in range(first, steps):
            pair = waiting.result()
            if step + 1 < steps:
                waiting = maker.submit(make, step + 1)
            yield step, pair


def _one_hot(labels: np.ndarray, chosen: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == value for value in chosen])[None].astype(np.float32))


def _common_labels(pair: Pair, seed: Sequence[int], number: int) -> list[int]:
    common = np.intersect1d(pair.fixed_labels, pair.moving_labels)
    # 250 and above are parts of the CSF outside, whose border is an accident of the label maps.
    common = common[(common > 0) & (common < 250)]
    rng = np.random.default_rng([*seed, 1])
    return [int(v) for v in rng.permutation(common)[:number]]


def pair_loss(
    network: torch.nn.Module, pair: Pair, settings: TrainingSettings, step: int, device: torch.device
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one pair and its parts for the log."""
    fixed, moving = (torch.from_numpy(x)[None, None].to(device) for x in (pair.fixed, pair.moving))
    displacement = network(moving, fixed)
    chosen = _common_labels(pair, (settings.seed, step), settings.labels_per_step) if settings.dice else []
    compared, carried = (torch.from_numpy(x)[None, None].to(device) for x in (pair.fixed_clean, pair.moving_clean))
    if chosen:
        carried = torch.cat([carried, _one_hot(pair.moving_labels, chosen).to(device)], dim=1)
    moved = warp(carried, displacement)
    halves = [torch.nn.functional.avg_pool3d(x, 2) for x in (compared, moved[:, :1])]
    similarity = (1 - settings.coarse_share) * lncc_loss(compared, moved[:, :1], window=settings.window)
    similarity = similarity + settings.coarse_share * lncc_loss(*halves, window=settings.window)
    smoothness = diffusion_loss(displacement)
    loss = similarity + settings.smoothness * smoothness
    for module in network.modules():
        if isinstance(module, DirectionVoting):
            loss = loss + settings.voting * dirichlet_kl_loss(module.post[None])
    parts = {
        "similarity": float(similarity.detach()),
        "smoothness": float(smoothness.detach()),
        "dice": math.nan,
    }
    if chosen:
        overlap = dice_loss(_one_hot(pair.fixed_labels, chosen).to(device), moved[:, 1:])
        loss = loss + settings.dice * overlap
        parts["dice"] = float(overlap.detach())
    return loss, parts


class _Average:
    """Exponential moving average of the weights; young averages forget faster."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value.detach(), 1 - decay)
            else:
                self.weights[name].copy_(value)


def _load(path: Path, settings: TrainingSettings) -> dict[str, Any]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["seed"] != settings.seed:
        raise InputError(
            f"{path} comes from seed {state['seed']}, not {settings.seed}; give that seed or another folder."
        )
    return state


def _trim_log(log: Path, steps: int) -> None:
    """Drop rows that a crashed run wrote after its last checkpoint."""
    rows: list[list[str]] = []
    if log.exists() and steps:
        with log.open(newline="") as stream:
            rows = [row for row in csv.reader(stream) if row and row[0].isdigit() and int(row[0]) <= steps]
    with log.open("w", newline="") as stream:
        csv.writer(stream).writerows([list(LOG_COLUMNS), *rows])


def train(
    network: torch.nn.Module,
    anatomies: list[Anatomy],
    folder: Path,
    settings: TrainingSettings,
    *,
    synthetic: SyntheticSettings | None = None,
    validation: Sequence[ValidationPair] = (),
    on_save: Callable[[torch.nn.Module, int], None] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place; at the end it holds the averaged weights.

    Args:
        network: `network(moving, fixed) -> displacement`, (B, 1, H, W, D) -> (B, 3, H, W, D) voxels.
        anatomies: at least two brains.
        folder: takes `checkpoint.pt` and `log.csv`; where a checkpoint is there already, the run goes on
            from it and, with the same settings, ends exactly as if it had never stopped.
        synthetic: how the pairs are made.
        validation: real pairs, looked at every `validate_every` steps, never trained on.
        on_save: called with the network, holding the averaged weights, and the number of steps done,
            after every checkpoint.

    Returns: the rows logged by this call.

    Raises:
        TrainingDivergedError: the loss or the gradient became NaN or infinite.
        InputError: the checkpoint belongs to another seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.csv"
    synthetic = synthetic or SyntheticSettings()
    device = next(network.parameters()).device
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    average = _Average(network, settings.average)
    first, seconds = 0, 0.0
    if checkpoint.exists():
        state = _load(checkpoint, settings)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average.weights = {k: v.to(device) for k, v in state["average"].items()}
        first, seconds = state["steps"], state["seconds"]
    _trim_log(log, first)

    def with_average(action: Callable[[], Any]) -> Any:
        own = {k: v.detach().clone() for k, v in network.state_dict().items()}
        network.load_state_dict(average.weights)
        try:
            return action()
        finally:
            network.load_state_dict(own)

    rows = []
    network.train()
    began = time.monotonic() - seconds
    for step, pair in _pairs(lambda s: pair_at(anatomies, s, settings, synthetic), first, settings.steps):
        torch.manual_seed(1_000_003 * settings.seed + step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, step)
        optimiser.zero_grad(set_to_none=True)
        loss, parts = pair_loss(network, pair, settings, step, device)
        loss.backward()
        gradient = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        if not (torch.isfinite(loss) and torch.isfinite(gradient)):
            raise TrainingDivergedError(
                f"The loss is not finite at step {step}; go on from {checkpoint} with a lower learning rate."
            )
        optimiser.step()
        done = step + 1
        average.update(network, done)
        row = {
            "step": done,
            "seconds": round(time.monotonic() - began, 1),
            "spacing": stage_at(settings, step).spacing,
            "loss": float(loss.detach()),
            **parts,
            "gradient": float(gradient),
        }
        if validation and (done % settings.validate_every == 0 or done == settings.steps):
            scores = with_average(lambda: validate(network, validation))
            row["val_dice"], row["val_folds"] = (float(x) for x in np.mean(scores, axis=0))
        rows.append(row)
        with log.open("a", newline="") as stream:
            csv.DictWriter(stream, LOG_COLUMNS).writerow(row)
        if done % settings.save_every == 0 or done == settings.steps:
            state = {
                "steps": done,
                "seconds": time.monotonic() - began,
                "seed": settings.seed,
                "settings": repr(asdict(settings)),
                "network": network.state_dict(),
                "average": average.weights,
                "optimiser": optimiser.state_dict(),
            }
            with staged_file(checkpoint, overwrite=True) as part:
                torch.save(state, part)
            if on_save is not None:
                with_average(partial(on_save, network, done))
    network.load_state_dict(average.weights)
    return rows
