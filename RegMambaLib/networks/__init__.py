"""The registration networks, and how their weights are read and written."""

from RegMambaLib.networks.build import build_network
from RegMambaLib.networks.config import NetworkConfig
from RegMambaLib.networks.published import load_published_checkpoint
from RegMambaLib.networks.weights import load_network, read_card, save_network

__all__ = [
    "NetworkConfig",
    "build_network",
    "load_network",
    "load_published_checkpoint",
    "read_card",
    "save_network",
]
