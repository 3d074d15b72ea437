"""`regmamba train-structures`: weights of the network that recognises brain structures, from label maps alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..registration.device import find_device
from .options import Quiet
from .train import LINES, resumable


def train_structures(
    label_maps: Annotated[
        Path | None,
        typer.Argument(metavar="LABEL_MAPS", help="Folder of whole-head label maps (NIfTI) with FreeSurfer numbers."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the run; needed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser; 8000, or 150 with --smoke.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images of a step; 8, or 2 with --smoke.")] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="What computes.")] = "auto",
    held_out: Annotated[int, typer.Option(help="So many maps are validated on instead of trained on.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny run of less than a minute, on random shapes without LABEL_MAPS.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the recognition of brain structures; FOLDER then holds structures.safetensors, a checkpoint and a log.

    No scan is needed: images are made from the label maps. A run that was stopped, in whatever way, goes on with the
    same command.
    """
    if label_maps is None and not smoke:
        raise InputError("Give a folder of label maps, or --smoke without one; see `regmamba train-structures --help`.")
    if output is None:
        raise InputError("Give a folder for the run with --output.")
    given: dict[str, Any] = {"held_out": held_out, "seed": seed, "device": find_device(device)}
    given |= {name: value for name, value in (("steps", steps), ("batch", batch)) if value is not None}
    from ..training import structures

    settings = (structures.smoke if smoke else structures.StructureTraining)(output, label_maps, **given)
    losses: list[float] = []
    printed = 0

    def report(row: structures.Row) -> None:
        nonlocal printed
        losses.append(row["loss"])
        part = row["step"] * LINES // settings.steps
        if not quiet and (part > printed or "dice" in row):
            printed = part
            text = f"step {row['step']}/{settings.steps}  {row['seconds']:.0f} s  loss {row['loss']:.4f}"
            text += f"  validation Dice {row['dice']:.4f}" if "dice" in row else ""
            print(text, file=sys.stderr, flush=True)

    with resumable(settings.output):
        dice = structures.run(
            settings, report=report, note=lambda text: None if quiet else print(text, file=sys.stderr)
        )
    if quiet:
        return
    print(*(f"{name:<28}{value:.3f}" for name, value in dice.items()), sep="\n")
    fall = f"Loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last; " if losses else ""
    print(f"{fall}{settings.output / structures.WEIGHTS}.")
