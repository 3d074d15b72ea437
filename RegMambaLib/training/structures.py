"""Trains the network that recognises brain structures, on images made from label maps alone; torch only, one device.

Loss: cross-entropy and soft Dice, against the share of each structure in each voxel. The images of a step depend on the
seed and its number alone, so that a run that was stopped goes on as if it had not been. Validation is on images of
label maps that are held out, with the moving average of the weights, which is what is written.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from RegMambaLib.errors import InputError
from RegMambaLib.io.atomic import staged_file, writing
from RegMambaLib.networks.structures import CLASSES, NAMES, WIDTHS, StructureNet, save_structures
from RegMambaLib.training.anatomy import FIRST_OTHER, Anatomy, load_anatomies
from RegMambaLib.training.checkpoint import CHECKPOINT, Average, read_state
from RegMambaLib.training.config import Optimiser
from RegMambaLib.training.logs import LOG, trim_log
from RegMambaLib.training.shapes import random_shapes
from RegMambaLib.training.structure_images import StructureImages
from RegMambaLib.training.trainer import TrainingDivergedError, learning_rate

WEIGHTS = "structures.safetensors"
# Too large and too easy to say how well structures are found; their Dice is logged all the same.
NOT_AVERAGED = ("white matter", "cortex")
# One row a report: losses and norms of the gradient are means since the row before.
COLUMNS = ("step", "seconds", "loss", "gradient", "learning_rate", "dice", *NAMES[1:])
_FORMAT = "regmamba structures 1"
_WEIGHT_DECAY, _BETAS, _WARM_UP = 0.01, (0.9, 0.99), 0.03
# Images are validated on that are the same whatever the seed of a run is.
_VALIDATION_SEED = 12345
Row = dict[str, Any]


@dataclass(frozen=True)
class StructureTraining:
    """What a run is; the defaults are those of the weights that ship, to 40 steps.

    Attributes:
        output: folder of the run.
        labels: folder of head label maps (NIfTI, FreeSurfer numbers); None: made-up shapes, to try things out.
        steps, batch: steps of the optimiser, and images of each.
        held_out: the last so many maps, by name, are validated on and not trained on.
        device: cpu or cuda, or cuda:N.
        widths: of `StructureNet`.
        shrink: only every so-manieth voxel of the maps is used: images of 2 mm times this.
        looks: held-out images that are looked at.
        look_every: steps between two validations.
        report_every: steps between two rows of the log; 0: 100 on a GPU, which is waited for there, else 1.
        save_seconds: least time between two checkpoints.
    """

    output: Path
    labels: Path | None = None
    steps: int = 8000
    batch: int = 8
    held_out: int = 1
    seed: int = 0
    device: str = "cpu"
    widths: tuple[int, ...] = WIDTHS
    shrink: int = 1
    looks: int = 8
    look_every: int = 1000
    report_every: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch", 1), ("held_out", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}, and must be at least {low}.")
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise InputError(f"Structures cannot be trained on the device {self.device!r}; use cpu or cuda.")


def smoke(output: Path, labels: Path | None = None, **given: Any) -> StructureTraining:
    """A run of less than a minute on two cores: a narrow network, images of 8 mm."""
    tiny = {"steps": 150, "batch": 2, "widths": (8, 12, 16), "shrink": 4, "looks": 2}
    return StructureTraining(output=output, labels=labels, **{**tiny, **given})


def run(
    settings: StructureTraining,
    *,
    report: Callable[[Row], None] | None = None,
    note: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train; `settings.output` then holds `structures.safetensors`. A run that is there is continued.

    Args:
        report: called with each row of the log.
        note: called with sentences for the user.

    Returns:
        The last validation: Dice of each structure on the held-out images; empty without any.

    Raises:
        InputError: something cannot be used as given; nothing was trained.
        TrainingDivergedError: the loss or the gradient became NaN or infinite; the last checkpoint is good.
    """
    anatomies = load_anatomies(settings.labels) if settings.labels else made_up_anatomies(3, settings.seed)
    if settings.held_out >= len(anatomies):
        raise InputError(
            f"There are {len(anatomies)} label maps, and {settings.held_out} are to be held out; leave at least one to "
            "train on."
        )
    with writing(settings.output):
        settings.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(settings.device)
    # All images have one size: cuDNN may try which of its convolutions are the fastest.
    fast = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
    with fast if device.type == "cuda" else nullcontext():
        training = _Run(settings, anatomies, device)
        training.resume(note)
        training.steps(report)
    return training.progress["dice"]


def made_up_anatomies(count: int, seed: int) -> list[Anatomy]:
    """Anatomies of random shapes with the numbers of structures: no brains, but the like to compute with."""
    numbers = torch.zeros(256, dtype=torch.uint8)
    for place, labels in enumerate(list(CLASSES.values())[1:]):
        numbers[FIRST_OTHER + place] = labels[0]
    rng = np.random.default_rng(seed)
    shapes = [random_shapes(rng, len(NAMES) - 1, (30, 60), True, torch.device("cpu")) for _ in range(count)]
    return [Anatomy(f"shapes_{n}", numbers[shape.labels.long()]) for n, shape in enumerate(shapes)]


def structure_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus one minus Dice, both soft, of logits and shares (B, 18, H, W, D); Dice over the whole batch.

    Soft Dice with squares: Milletari et al., "V-Net", 3DV 2016. Background counts in the cross-entropy alone.
    """
    shares = shares.float()
    logarithms = logits.float().log_softmax(1)
    found = logarithms.exp()
    volumes = (0, 2, 3, 4)
    both = (found * shares).sum(volumes)
    dice = (2 * both + 1) / (found.square().sum(volumes) + shares.square().sum(volumes) + 1)
    return 1 - dice[1:].mean() - (shares * logarithms).sum(1).mean()


@torch.no_grad()
def structure_dice(network: StructureNet, examples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Dice of each structure, mean over the examples: images (1, 1, H, W, D) and the true classes (1, H, W, D).

    What is neither there nor found in any of them is left out.
    """
    scores = []
    for image, truth in examples:
        with _cast(image.device):
            guess = network(image).argmax(1)
        right = torch.where(guess == truth, guess, 0)
        sizes = (torch.bincount(x.flatten(), minlength=len(NAMES)) for x in (guess, truth, right))
        guessed, true, common = (size[1:].double().cpu() for size in sizes)
        scores.append(2 * common / (guessed + true))
    if not scores:
        return {}
    means = torch.stack(scores).nanmean(0).tolist()
    return {name: value for name, value in zip(NAMES[1:], means, strict=True) if not math.isnan(value)}


def mean_dice(dice: dict[str, float]) -> float:
    """Of the structures that are neither white matter nor cortex; NaN if there are none."""
    counted = [value for name, value in dice.items() if name not in NOT_AVERAGED]
    return sum(counted) / len(counted) if counted else math.nan


def _cast(device: torch.device) -> torch.autocast:
    """Convolutions in bfloat16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class _Run:
    """`progress` is what a checkpoint keeps besides weights: steps, seconds, and the last validation."""

    def __init__(self, settings: StructureTraining, anatomies: list[Anatomy], device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.names = [anatomy.name for anatomy in anatomies]
        self.images = StructureImages(anatomies, device, shrink=settings.shrink)
        self.trained = len(anatomies) - settings.held_out
        self.examples = []
        for look in range(settings.looks if settings.held_out else 0):
            image, shares = self.images.batch([self.trained + look % settings.held_out], _VALIDATION_SEED + look)
            self.examples.append((image, shares.argmax(1)))
        torch.manual_seed(settings.seed)
        self.network = StructureNet(settings.widths).to(device)
        self.schedule = Optimiser(
            learning_rate=2e-3, last_rate=0.01, warm_up=round(_WARM_UP * settings.steps), clip=2.0, average=0.998
        )
        weights = list(self.network.parameters())
        self.adam = torch.optim.AdamW(
            [
                {"params": [w for w in weights if w.ndim > 1], "weight_decay": _WEIGHT_DECAY},
                {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.schedule.learning_rate,
            betas=_BETAS,
            fused=device.type == "cuda",
        )
        self.average = Average(self.network, self.schedule.average)
        self.progress: dict[str, Any] = {"steps": 0, "seconds": 0.0, "dice": {}}

    def resume(self, note: Callable[[str], None]) -> None:
        """Take up the checkpoint of the folder, if there is one. Raises InputError if it is not of this run."""
        file = self.settings.output / CHECKPOINT
        state = read_state(self.settings.output, _FORMAT)
        if state is None:
            return
        for name, now in self._identity().items():
            if (before := state["run"].get(name)) != now:
                what = f"{name} {before}, not {now}" if isinstance(now, int) else f"other {name}"
                raise InputError(f"{file} comes from a run with {what}; give the same or another output.")
        self.network.load_state_dict(state["network"])
        self.adam.load_state_dict(state["optimiser"])
        self.average.weights = {name: value.to(self.device) for name, value in state["average"].items()}
        self.progress = state["progress"]
        note(f"Going on after step {self.progress['steps']} of {self.settings.steps}.")

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        own = self.settings
        numbers = {name: getattr(own, name) for name in ("seed", "batch", "steps", "held_out", "shrink")}
        return {**numbers, "widths": list(own.widths), "label maps": self.names}

    def steps(self, report: Callable[[Row], None] | None) -> None:
        """All steps that are left."""
        own, done = self.settings, self.progress["steps"]
        if done == own.steps:
            self._save()  # all is done, but the weights may have been moved away
        trim_log(own.output / LOG, done, COLUMNS)
        every = own.report_every or (100 if self.device.type == "cuda" else 1)
        began, saved = time.monotonic() - self.progress["seconds"], time.monotonic()
        total, since = torch.zeros(2, device=self.device), done
        while done < own.steps:
            total += self._step(done)
            done += 1
            last, look = done == own.steps, done % own.look_every == 0
            if not (last or look or done % every == 0):
                continue
            # Only here a GPU is waited for.
            loss, gradient = (total / (done - since)).tolist()
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                raise TrainingDivergedError(
                    f"The loss is not finite within steps {since + 1} to {done}; begin anew with another seed and "
                    "another output."
                )
            total.zero_()
            since = done
            self.progress |= {"steps": done, "seconds": time.monotonic() - began}
            row: Row = {"step": done, "seconds": round(self.progress["seconds"], 1), "loss": loss, "gradient": gradient}
            row["learning_rate"] = learning_rate(self.schedule, done - 1, own.steps)
            if (last or look) and self.examples:
                with self.average.held_by(self.network):
                    dice = structure_dice(self.network, self.examples)
                self.progress["dice"] = dice
                row |= {"dice": mean_dice(dice), **dice}
            with (own.output / LOG).open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, COLUMNS).writerow(row)
            if report is not None:
                report(row)
            if last or time.monotonic() - saved >= own.save_seconds:
                self._save()
                saved = time.monotonic()

    def _step(self, step: int) -> torch.Tensor:
        """One step, counted from 0: loss and norm of the gradient, on the device."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.schedule, step, self.settings.steps)
        seed = 1_000_003 * self.settings.seed + step
        chosen = torch.randint(self.trained, (self.settings.batch,), generator=torch.Generator().manual_seed(seed))
        image, shares = self.images.batch(chosen.tolist(), seed)
        with _cast(self.device):
            logits = self.network(image)
        loss = structure_loss(logits, shares)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip)
        self.adam.step()
        self.average.update(self.network, step + 1)
        return torch.stack([loss.detach(), norm.detach()])

    def _save(self) -> None:
        """Weights first: a checkpoint of the last step says that they are there."""
        folder = self.settings.output
        with self.average.held_by(self.network), staged_file(folder / WEIGHTS, overwrite=True) as part:
            save_structures(self.network, part, self._card())
        state = {
            "format": _FORMAT,
            "run": self._identity(),
            "network": self.network.state_dict(),
            "average": self.average.weights,
            "optimiser": self.adam.state_dict(),
            "progress": self.progress,
        }
        with staged_file(folder / CHECKPOINT, overwrite=True) as part:
            torch.save(state, part)

    def _card(self) -> dict[str, Any]:
        """What the header of the weights says about their training; of paths only the last name."""
        own, dice = self.settings, self.progress["dice"]
        return {
            "steps": self.progress["steps"],
            "of": own.steps,
            "batch": own.batch,
            "seed": own.seed,
            "data": {
                "labels": own.labels.name if own.labels else "made-up shapes",
                "trained on": self.trained,
                "held out": self.names[self.trained :],
                "voxel, mm": 2 * own.shrink,
            },
            "validation Dice": {name: round(value, 4) for name, value in dice.items()},
            "mean validation Dice": round(mean_dice(dice), 4) if dice else None,
        }
