"""Our weight files: safetensors, with the network's configuration and a card in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from RegMambaLib.errors import InputError
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.networks.build import build_network
from RegMambaLib.networks.config import NetworkConfig

_FORMAT = "regmamba-network-1"


def save_network(
    network: RegistrationNetwork,
    path: str | PathLike[str],
    card: Mapping[str, Any] | None = None,
    *,
    half: bool = False,
) -> None:
    """Write the network's weights, its configuration and a card (anything JSON can hold) to a safetensors
    file.

    half: store float16, at half the size and about three digits; they are float32 again when loaded.
    Raises InputError if the card is no JSON or half precision cannot hold a weight.
    """
    try:
        header = {
            "format": _FORMAT,
            "config": json.dumps(network.config.to_dict()),
            "card": json.dumps(dict(card or {})),
        }
    except TypeError as error:
        raise InputError(f"The card of a weight file must hold plain JSON values: {error}.") from error
    save_file(stored(network, torch.float16 if half else torch.float32), str(path), header)


def stored(network: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A network's weights as a file holds them. Raises InputError where that type cannot hold one."""
    tensors = {name: value.detach().cpu().to(dtype).contiguous() for name, value in network.state_dict().items()}
    overflowing = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if overflowing:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"Weights {', '.join(overflowing[:3])} are not finite in {kind}; the network is not usable.")
    return tensors


def load_network(path: str | PathLike[str]) -> RegistrationNetwork:
    """The network of a weight file, float32, on the CPU, in evaluation mode. Raises InputError if it is not
    one.
    """
    header, tensors = read_weights(Path(path), _FORMAT)
    network = build_network(_config(header, path))
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong += [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
    if wrong:
        raise InputError(
            f"The weights in '{path}' do not fit its own configuration, starting with {wrong[0]}; the file is damaged."
        )
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.eval()


def read_card(path: str | PathLike[str]) -> dict[str, Any]:
    """The card of a weight file, without its weights. Raises InputError if it is not one."""
    header, _ = read_weights(Path(path), _FORMAT, with_tensors=False)
    return json.loads(header.get("card", "{}"))


def read_weights(path: Path, kind: str, *, with_tensors: bool = True) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a safetensors file whose header says `kind` under "format"; InputError if it is not one."""
    if not path.is_file():
        raise InputError(f"There is no weight file '{path}'; check the path.")
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"'{path}' cannot be read as a safetensors file ({error}); it is damaged or of another kind."
        ) from error
    if header.get("format") != kind:
        raise InputError(f"'{path}' is not a RegMamba weight file of the kind needed here, or of an unknown version.")
    return header, tensors


def _config(header: dict[str, str], path: str | PathLike[str]) -> NetworkConfig:
    try:
        return NetworkConfig.from_dict(json.loads(header["config"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"The header of '{path}' holds no network configuration; the file is damaged.") from error
