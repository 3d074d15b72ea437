"""Checkpoints of the published 3DReg-Mamba code: their names, and how to load them.

The published modules number resolutions 1 (full) to 5 and repeat the parameters of every direction under a
suffix; ours count levels from 0 and stack the directions.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from RegMambaLib.errors import InputError
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.networks.build import build_network
from RegMambaLib.networks.config import NetworkConfig, published_config

SUFFIXES = ("", "_c", "_e", "_g", "_i", "_k")  # of the six directions, in the order of `scan.ORDERS`

# Published module -> ours; {k} is the published number, and ours is {k} plus the shift.
_MODULES = (
    ("encoder.conv_1.conv1", "stem.conv", 0),
    ("encoder.conv_{k}_skip.conv1", "shortcuts.{k}.conv", -2),
    ("encoder.conv_{k}.conv", "encoder.{k}.conv", -2),
    ("encoder.conv_{k}.block", "encoder.{k}.mixer", -2),
    ("corr_{k}.block", "matchers.{k}.mixer", -2),
    ("corr_{k}.norm0", "matchers.{k}.norm_moving", -2),
    ("corr_{k}.norm1", "matchers.{k}.norm_fixed", -2),
    ("corr_{k}.conv", "matchers.{k}.conv", -2),
    ("conv_fine_{k}.conv1", "fine_merge.{k}.conv", -1),
    ("conv_{k}.conv1", "merge.{k}.conv", -1),
    ("upsample_{k}.deconv", "fine_up.{k}.conv", -1),
    ("fine_reghead_{k}.reg_head", "fine_heads.{k}", -1),
    ("reghead_{k}.reg_head", "heads.{k}", -1),
)
# Within a Mamba block: ours -> published, {s} being the direction's suffix; several published ones are split
# or joined.
_STACKED = {
    "conv_weight": "conv1d{s}.weight",
    "conv_bias": "conv1d{s}.bias",
    "dt_weight": "dt_proj{s}.weight",
    "dt_bias": "dt_proj{s}.bias",
    "A_log": "A{s}_log",
    "D": "D{s}",
}
_SHARED = {
    "in_proj.weight": "in_proj.weight",
    "guide_proj.weight": "in_proj_b.weight",
    "out_proj.weight": "out_proj.weight",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
# Present but never used: the backward directions' convolutions; and the sampling grids of spatial
# transformers.
_IGNORED = re.compile(r"\.conv1d_[hjl]\.(weight|bias)$|(^|\.)grid$")

Weights = dict[str, torch.Tensor]


def load_published_checkpoint(path: str | PathLike[str]) -> RegistrationNetwork:
    """The network, in evaluation mode, of a published checkpoint (``.pth``, ``.pth.tar``): "v1" or "v2" by
    its content.

    Raises InputError if the file is missing, no checkpoint, or lacks or adds parameters.
    """
    weights = read_checkpoint(path)
    network = build_network(recognise(weights, str(path)))
    network.load_state_dict(translate(weights, network, str(path)))
    return network.eval()


def read_checkpoint(path: str | PathLike[str]) -> Weights:
    """The tensors of a checkpoint file by published name, without DataParallel's ``module.``. Raises
    InputError.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no checkpoint file '{file}'; check the path.")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"'{file}' is not a PyTorch checkpoint of plain tensors ({type(error).__name__}); "
            "expected the .pth or .pth.tar file that 3DReg-Mamba's training wrote."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())
    if not tensors or not content:
        raise InputError(f"'{file}' holds no state dict; expected named tensors, or a dict with the key 'state_dict'.")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def recognise(weights: Weights, source: str) -> NetworkConfig:
    """Variant and sizes from the names and shapes of the parameters. Raises InputError if it is neither
    variant.
    """
    needed = (
        "encoder.conv_1.conv1.weight",
        "corr_5.conv.weight",
        "corr_5.block.A_log",
        "corr_5.block.conv1d.weight",
    )
    missing = [name for name in needed if name not in weights]
    if missing:
        raise InputError(
            f"'{source}' is not a checkpoint of 3DReg-Mamba's published networks: it has no {_some(missing)}."
        )
    stem, bottleneck, states, taps = (weights[name].shape for name in needed)
    variant = "v2" if any(name.startswith("fine_reghead_") for name in weights) else "v1"
    return published_config(variant, channels=stem[0], bottleneck=bottleneck[0], d_state=states[-1], d_conv=taps[-1])


def translate(weights: Weights, network: RegistrationNetwork, source: str = "the checkpoint") -> Weights:
    """Published weights as the state dict of `network`. Raises InputError for missing, unexpected or
    misshapen ones.
    """
    expected = network.state_dict()
    used: set[str] = set()
    missing: list[str] = []
    translated: Weights = {}
    for name, tensor in expected.items():
        names, combine = _recipe(name)
        used.update(names)
        absent = [source_name for source_name in names if source_name not in weights]
        if absent:
            missing += absent
            continue
        try:
            value = combine([weights[source_name] for source_name in names], tensor)
        except RuntimeError:
            value = None
        if value is None or value.shape != tensor.shape:
            shapes = ", ".join(str(tuple(weights[source_name].shape)) for source_name in names[:1])
            raise InputError(f"'{source}': parameter {names[0]} has shape {shapes}, which fits no published network.")
        translated[name] = value
    if missing:
        raise InputError(f"'{source}' lacks {len(set(missing))} parameters of the network: {_some(missing)}.")
    unexpected = [name for name in weights if name not in used and not _is_unused(name)]
    if unexpected:
        raise InputError(
            f"'{source}' has {len(unexpected)} parameters that the network does not: {_some(unexpected)}; "
            "it comes from a different version of the code."
        )
    return translated


def _recipe(name: str) -> tuple[list[str], Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]]:
    """The published parameters that make up our parameter `name`, and how (given ours for its shape)."""
    if name == "voting.post":
        return ["post"], _only
    match = re.fullmatch(r"(.*\.mixer)\.(scan\.)?(.*)", name)
    if match is None:
        module, _, leaf = name.rpartition(".")
        return [f"{_published_module(module)}.{leaf}"], _only
    block, scan, leaf = _published_module(match[1]), match[2], match[3]
    if not scan:
        return [f"{block}.{_SHARED[leaf]}"], _only
    # The encoder's blocks scan in the first direction only.
    suffixes = SUFFIXES[:1] if match[1].startswith("encoder") else SUFFIXES
    if leaf in _STACKED:
        return [f"{block}.{_STACKED[leaf].format(s=s)}" for s in suffixes], _stack
    return [f"{block}.x_proj{s}.weight" for s in suffixes], _PROJECTION_PARTS[leaf]


def _only(tensors: list[torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    return tensors[0]


def _stack(tensors: list[torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensors).reshape(ours.shape)


def _leading(tensors: list[torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensors)[:, : ours.shape[1]]


def _before_last(tensors: list[torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensors)[:, -2 * ours.shape[1] : -ours.shape[1]]


def _last(tensors: list[torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensors)[:, -ours.shape[1] :]


# The published x_proj holds the rows of (delta, B, C) one below the other.
_PROJECTION_PARTS = {"dt_in": _leading, "B_in": _before_last, "C_in": _last}


def _published_module(ours: str) -> str:
    return _rename(ours, [(b, a, -shift) for a, b, shift in _MODULES])


def _rename(name: str, table: Iterable[tuple[str, str, int]]) -> str:
    for old, new, shift in table:
        match = re.fullmatch(re.escape(old).replace(r"\{k\}", r"(\d+)"), name)
        if match:
            return new.format(k=int(match[1]) + shift) if match.groups() else new
    raise KeyError(name)


def _is_unused(name: str) -> bool:
    """Parameters that published networks carry without using them."""
    other_direction = re.fullmatch(
        r"encoder\.conv_\d\.block\.(A_[cegik]_log|D_[cegik]|(conv1d|x_proj|dt_proj)_[cegik]\.\w+)", name
    )
    return bool(other_direction or _IGNORED.search(name))


def _some(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:5]) + (f" and {len(unique) - 5} more" if len(unique) > 5 else "")
