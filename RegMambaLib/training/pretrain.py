"""Train a network on synthetic brain pairs: ``python -m RegMambaLib.training.pretrain --help``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from RegMambaLib.errors import InputError, RegMambaError
from RegMambaLib.io.atomic import staged_file
from RegMambaLib.networks import build_network, load_network, save_network
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.training.anatomy import load_anatomies
from RegMambaLib.training.synthetic import GENERAL, SyntheticSettings
from RegMambaLib.training.trainer import TrainingSettings, train
from RegMambaLib.training.validation import load_validation_pairs

_DEFAULTS = TrainingSettings()
_CONTRASTS = {"t1": SyntheticSettings(), "any": GENERAL}


def _overrides(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--network-options is not JSON ({error}); write for example '{{\"width\": 16}}'.") from None
    if not isinstance(values, dict):
        raise InputError("--network-options must be a JSON object, for example '{\"width\": 16}'.")
    return values


def _save(network: RegistrationNetwork, out: Path, card: dict[str, object]) -> None:
    with staged_file(out, overwrite=True) as part:
        save_network(network, part, card, half=True)


def pretrain(
    labels: Annotated[Path, typer.Option(help="Folder of head label maps (FreeSurfer numbers, NIfTI).")],
    out: Annotated[Path, typer.Option(help="Weights to write (.safetensors).")],
    work: Annotated[Path, typer.Option(help="Folder of checkpoint and log; an old run there is continued.")],
    steps: Annotated[int, typer.Option(min=1)] = _DEFAULTS.steps,
    seed: Annotated[int, typer.Option(min=0)] = _DEFAULTS.seed,
    learning_rate: Annotated[float, typer.Option()] = _DEFAULTS.learning_rate,
    smoothness: Annotated[float, typer.Option(help="Weight of the diffusion loss.")] = _DEFAULTS.smoothness,
    dice: Annotated[float, typer.Option(help="Weight of Dice on the known labels; 0: none.")] = _DEFAULTS.dice,
    window: Annotated[int, typer.Option(help="LNCC window, voxels.")] = _DEFAULTS.window,
    average: Annotated[float, typer.Option(help="Decay of the moving average of the weights.")] = _DEFAULTS.average,
    validation: Annotated[
        Path | None, typer.Option(help="CSV of real pairs: fixed,moving,fixed_labels,moving_labels.")
    ] = None,
    contrast: Annotated[str, typer.Option(help="t1: both images T1-like; any: each its own, and shapes too.")] = "t1",
    start: Annotated[Path | None, typer.Option(help="Weights to begin from (.safetensors).")] = None,
    note: Annotated[str, typer.Option(help="One line about these weights, kept in the file.")] = "",
    network: Annotated[str, typer.Option(help="Name of the network.")] = "regmamba",
    network_options: Annotated[str, typer.Option(help="Settings of the network, as JSON.")] = "{}",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.", min=0)] = 0,
) -> None:
    """Learn registration from synthetic pairs of brains; needs no images."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    settings = replace(
        _DEFAULTS,
        steps=steps,
        seed=seed,
        learning_rate=learning_rate,
        smoothness=smoothness,
        dice=dice,
        window=window,
        average=average,
    )
    if contrast not in _CONTRASTS:
        raise InputError(f"There is no contrast {contrast!r}; give one of {', '.join(_CONTRASTS)}.")
    model = load_network(start) if start else build_network(network, **_overrides(network_options))
    model = model.float().to(device)
    pairs = load_validation_pairs(validation) if validation else []
    out.parent.mkdir(parents=True, exist_ok=True)
    train(
        model,
        load_anatomies(labels),
        work,
        settings,
        synthetic=_CONTRASTS[contrast],
        validation=pairs,
        on_save=lambda _, done: _save(
            model,
            out,
            {
                "note": note,
                "contrast": "any" if contrast == "any" else "same",
                "steps": done,
                "settings": asdict(settings),
            },
        ),
    )
    typer.echo(f"Wrote {out} after {steps} steps; the log is {work / 'log.csv'}.")


def main() -> None:
    """Run the command; errors meant for the user become one line and exit code 2."""
    try:
        typer.run(pretrain)
    except RegMambaError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
