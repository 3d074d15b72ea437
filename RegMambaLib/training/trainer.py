"""The training loop: pairs in, weights out. Deterministic, resumable, on any number of devices."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from RegMambaLib.errors import InputError, MissingDependencyError, RegMambaError
from RegMambaLib.io.atomic import staged_file, writing
from RegMambaLib.networks import build_network, load_network, save_network
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.threads import limited_threads
from RegMambaLib.training.checkpoint import Average, checkpoint_blocks, load_checkpoint, save_checkpoint
from RegMambaLib.training.config import Hardware, Network, Optimiser, TrainingConfig
from RegMambaLib.training.config_file import INSTALL
from RegMambaLib.training.data import Pairs, Sample, ahead, load_pairs
from RegMambaLib.training.logs import Logs
from RegMambaLib.training.objective import Objective, tensors_of
from RegMambaLib.training.tree import plain
from RegMambaLib.training.validation import ValidationPair, displacement_of, load_validation, validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WEIGHTS = "weights.safetensors"
Row = dict[str, Any]


class TrainingDivergedError(RegMambaError):
    """Loss or gradient is not finite any more; the last checkpoint is good."""


def learning_rate(settings: Optimiser, step: int, steps: int) -> float:
    """Linear rise, then cosine or constant; `step` counts from 0."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warm_up) / max(1, steps - settings.warm_up)
    low = settings.last_rate
    return settings.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_fabric(hardware: Hardware) -> Fabric:
    """The processes of a run, launched.

    Raises:
        MissingDependencyError: Lightning Fabric is not installed.
        InputError: the device is not there, or `torchrun` started another number of processes.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingDependencyError(f"Training needs lightning-fabric; {INSTALL}.") from error
    device = hardware.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() < hardware.devices:
        raise InputError(
            f"hardware asks for {hardware.devices} CUDA devices and {torch.cuda.device_count()} are there; change "
            "hardware.devices or hardware.device."
        )
    processes = hardware.devices * hardware.nodes
    started = int(os.environ.get("WORLD_SIZE", processes))
    if started != processes:
        raise InputError(
            f"{started} processes were started, but hardware has {hardware.devices} devices x {hardware.nodes} nodes; "
            "make them agree."
        )
    fabric = Fabric(
        accelerator=device,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy="ddp" if processes > 1 else "auto",
    )
    fabric.launch()
    return fabric


def make_network(settings: Network) -> RegistrationNetwork:
    """The network to train, float32, on the CPU. Raises InputError for unknown options or unusable weights."""
    if settings.start is None:
        return build_network(settings.name, **settings.options)
    if settings.options:
        raise InputError("network.start brings its own options; leave network.options out.")
    return load_network(settings.start).float()


def run(
    config: TrainingConfig, *, report: Callable[[Row], None] | None = None, note: Callable[[str], None] = print
) -> None:
    """Train as a configuration says; `config.output` then holds the weights. A run that is there is continued.

    Args:
        report: called with each row of the log, in the first process.
        note: called with sentences for the user, in the first process.

    Raises:
        InputError, MissingDependencyError: something cannot be used as given; nothing was trained.
        TrainingDivergedError: the loss or the gradient became NaN or infinite.
    """
    with limited_threads(config.hardware.threads):
        torch.manual_seed(config.seed)
        network = make_network(config.network)
        pairs = load_pairs(config)
        validation = load_validation(config.validation, config.data, config.seed)
        fabric = make_fabric(config.hardware)
        train(network, pairs, config, fabric=fabric, validation=validation, report=report, note=note)


def train(
    network: torch.nn.Module,
    pairs: Pairs,
    config: TrainingConfig,
    *,
    fabric: Fabric,
    validation: Sequence[ValidationPair] = (),
    report: Callable[[Row], None] | None = None,
    note: Callable[[str], None] = print,
) -> None:
    """Train `network` in place; at the end it holds the averaged weights. See `run`.

    Args:
        network: `network(moving, fixed) -> displacement`, (B, 1, H, W, D) -> (B, 3, H, W, D) voxels. The weights
            of a `RegistrationNetwork` are written with their card.
    """
    if config.batch % fabric.world_size:
        raise InputError(
            f"A batch of {config.batch} cannot be shared out evenly over {fabric.world_size} processes; make it a "
            "multiple."
        )
    with writing(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
    process = _Process(network, pairs, config, fabric, validation)
    process.resume(note if fabric.is_global_zero else lambda _: None)
    # All have read the checkpoint before the first one writes.
    fabric.barrier()
    if fabric.is_global_zero:
        with Logs(config.output, steps=process.progress["steps"], tensorboard=config.logging.tensorboard) as logs:
            process.steps(logs, report)
    else:
        process.steps(None, None)
    network.load_state_dict(process.average.weights)


class _Process:
    """One process of a run; `progress` is what a checkpoint keeps of it besides weights."""

    def __init__(
        self,
        network: torch.nn.Module,
        pairs: Pairs,
        config: TrainingConfig,
        fabric: Fabric,
        validation: Sequence[ValidationPair],
    ) -> None:
        self.network, self.pairs, self.config, self.fabric, self.validation = network, pairs, config, fabric, validation
        pairs.to(fabric.device)
        if config.hardware.gradient_checkpointing:
            checkpoint_blocks(network)
        self.adam = torch.optim.Adam(network.parameters(), lr=config.optimiser.learning_rate)
        objective = Objective(
            network,
            config.losses,
            pairs.examples(config.steps * config.batch),
            mixed=config.hardware.precision == "bf16-mixed",
        )
        self.terms = objective.terms
        self.forward, self.optimiser = fabric.setup(objective, self.adam)
        self.average = Average(network, config.optimiser.average)
        self.progress: dict[str, Any] = {"steps": 0, "seconds": 0.0, "changes": []}

    def resume(self, note: Callable[[str], None]) -> None:
        """Take up a checkpoint, if there is one."""
        found = load_checkpoint(self.config, self.network, self.adam, self.average)
        if found is None:
            return
        self.progress, changes = found
        done = self.progress["steps"]
        note(f"Going on after step {done} of {self.config.steps}.")
        for change in changes:
            note(f"Changed: {change}.")
        self.progress["changes"] += [f"after step {done}: {change}" for change in changes]

    def steps(self, logs: Logs | None, report: Callable[[Row], None] | None) -> None:
        """All steps that are left; `logs` is None in all processes but the first."""
        config, first = self.config, self.progress["steps"]
        began = time.monotonic() - self.progress["seconds"]
        self.network.train()
        for step, samples in self._batches(first):
            row = self._step(step, samples)
            done = step + 1
            self.average.update(self.network, done)
            row = {"step": done, "seconds": round(time.monotonic() - began, 1), **row}
            is_last = done == config.steps
            if done % config.validation.every == 0 or is_last:
                row |= self._look(done, samples[0], logs)
            if logs is not None:
                logs.row(row)
                if report is not None:
                    report(row)
            if done % config.logging.save_every == 0 or is_last:
                self.progress |= {"steps": done, "seconds": time.monotonic() - began}
                if logs is not None:
                    save_checkpoint(config, self.network, self.adam, self.average, self.progress)
                    self._write_weights()
                self.fabric.barrier()

    def _batches(self, first: int) -> Iterator[tuple[int, list[Sample]]]:
        batch, rank, processes = self.config.batch, self.fabric.global_rank, self.fabric.world_size
        numbers = range(first * batch + rank, self.config.steps * batch, processes)
        samples = ahead(self.pairs.sample, numbers, self.config.data.workers, self.fabric.device)
        for step in range(first, self.config.steps):
            yield step, list(islice(samples, batch // processes))

    def _step(self, step: int, samples: list[Sample]) -> Row:
        config, fabric = self.config, self.fabric
        rate = learning_rate(config.optimiser, step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        total: torch.Tensor | None = None
        for n, sample in enumerate(samples, 1):
            # The direction votes are drawn from a seed of the pair's own.
            torch.manual_seed(1_000_003 * config.seed + sample.number)
            with fabric.no_backward_sync(self.forward, enabled=n < len(samples)):
                loss, parts = self.forward(tensors_of(sample, fabric.device))
                fabric.backward(loss / len(samples))
            values = torch.cat([loss.detach()[None], parts]) / len(samples)
            total = values if total is None else total + values
        gradient = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.optimiser.clip)
        assert total is not None
        loss_and_parts = self._reduced(total, "mean")
        if not all(map(math.isfinite, (*loss_and_parts, float(gradient)))):
            file = self._save_batch(step, samples)
            raise TrainingDivergedError(
                f"The loss is not finite at step {step + 1}; its pairs are in {file}; go on from the checkpoint with a "
                "lower optimiser.learning_rate."
            )
        self.optimiser.step()
        return {
            "size": "x".join(map(str, samples[0].pair.fixed.shape)),
            "loss": loss_and_parts[0],
            **dict(zip(self.terms, loss_and_parts[1:], strict=True)),
            "gradient": float(gradient),
            "learning_rate": rate,
        }

    def _save_batch(self, step: int, samples: list[Sample]) -> Path:
        file = self.config.output / f"diverged_step{step + 1}_process{self.fabric.global_rank}.npz"
        arrays = {f"{name}_{s.number}": array for s in samples for name, array in s.pair.arrays().items()}
        with staged_file(file, overwrite=True) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        return file

    def _look(self, done: int, sample: Sample, logs: Logs | None) -> Row:
        """Scores of the averaged weights on the validation pairs, shared out over the processes; one picture."""
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        with self.average.held_by(self.network):
            scores = validate(self.network, self.validation[rank::processes])
            if logs is not None:
                shown = vars(self.validation[0]) if self.validation else sample.pair.arrays()
                fixed, moving = shown["fixed"], shown["moving"]
                logs.example(done, fixed, moving, displacement_of(self.network, fixed, moving))
        if not self.validation:
            return {}
        sums = np.sum([*scores, (0.0, 0.0)], axis=0) / len(self.validation)
        dice, folds = self._reduced(torch.tensor(sums, dtype=torch.float32, device=self.fabric.device), "sum")
        return {"val_dice": dice, "val_folds": folds}

    def _reduced(self, values: torch.Tensor, how: str) -> list[float]:
        """Mean or sum over all processes."""
        reduced = self.fabric.all_reduce(values, reduce_op=how)
        assert isinstance(reduced, torch.Tensor)
        return reduced.tolist()

    def _write_weights(self) -> None:
        network = self.network
        if isinstance(network, RegistrationNetwork):
            with self.average.held_by(network), staged_file(self.config.output / WEIGHTS, overwrite=True) as part:
                save_network(network, part, weights_card(self.config, self.progress), half=True)


def weights_card(config: TrainingConfig, progress: dict[str, Any]) -> dict[str, Any]:
    """What the header of a weight file says about its training; of paths only the last name."""
    synthetic = config.data.synthetic
    sees_contrasts = (synthetic is not None and synthetic.contrast == "any") or config.losses.nmi or config.losses.mind
    return {
        "note": config.logging.note,
        "contrast": "any" if sees_contrasts else "same",
        "steps": progress["steps"],
        "seed": config.seed,
        "settings": plain(asdict(config), paths=lambda path: path.name),
        "changes": progress["changes"],
    }
