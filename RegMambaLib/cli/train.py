"""`regmamba train`: weights from label maps, random shapes or prepared data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import Quiet

if TYPE_CHECKING:
    from ..training.config import TrainingConfig

STOPPED = 130
# About as many lines are printed over a run.
LINES = 20


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Ctrl-C within the block says how to go on with the run of that folder, and ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"Stopped; the same command goes on from the last checkpoint in {output}.", file=sys.stderr)
        raise typer.Exit(STOPPED) from None


def train(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="YAML file, or a shipped one: brain-t1, general, smoke."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run, instead of the file's.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value: --set losses.dice=0.5; repeatable."),
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny run on random shapes, 2 minutes on a CPU.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network; the folder of the run then holds weights.safetensors, a checkpoint, logs and pictures.

    A run that was stopped, in whatever way, goes on with the same command. On several GPUs: --set
    hardware.devices=4 --set batch=4; on several machines the same through torchrun or SLURM. docs/training.md
    lists all that a configuration may say.

    Needs lightning-fabric, pyyaml, tensorboard and matplotlib: pip install "regmamba[train]".
    """
    if smoke == (config is not None):
        raise InputError("Give a configuration, or --smoke without one; see `regmamba train --help`.")
    from ..training.config_file import load_config

    given = list(assignments or [])
    if output is not None:
        given.append(f"output={json.dumps(str(output))}")  # as YAML text, whatever it looks like
    settings = load_config("smoke" if smoke else str(config), given)
    from ..training.trainer import WEIGHTS, run

    losses: list[float] = []

    def report(row: dict[str, Any]) -> None:
        losses.append(row["loss"])
        if not quiet and (row["step"] % max(1, settings.steps // LINES) == 0 or "val_dice" in row):
            _print_row(row, settings)

    with resumable(settings.output):
        run(settings, report=report, note=lambda text: None if quiet else print(text, file=sys.stderr))
    if quiet or not losses:
        return
    part = max(1, len(losses) // 10)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    print(f"Loss {first:.4f} in the first {part} steps, {last:.4f} in the last {part}; {settings.output / WEIGHTS}.")


def _print_row(row: dict[str, Any], settings: TrainingConfig) -> None:
    text = f"step {row['step']}/{settings.steps}  {row['seconds']:.0f} s  loss {row['loss']:.4f}"
    if "val_dice" in row:
        text += f"  validation Dice {row['val_dice']:.4f}, folds {row['val_folds']:.3f} %"
    print(text, file=sys.stderr, flush=True)
