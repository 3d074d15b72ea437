"""Networks by name."""

from __future__ import annotations

from typing import Any

from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.networks.config import NetworkConfig, published_config
from RegMambaLib.networks.published_networks import PublishedNetwork
from RegMambaLib.networks.regmamba import RegMambaNetwork


def build_network(variant: str | NetworkConfig = "regmamba", **overrides: Any) -> RegistrationNetwork:
    """An untrained network: "regmamba", the published "v1" or "v2", or a whole `NetworkConfig`.

    overrides: fields of `NetworkConfig`, as in build_network("regmamba", channels=(8, 16, 32)).
    Raises InputError for an unknown variant or field.
    """
    if isinstance(variant, NetworkConfig):
        base = variant
    elif variant in ("v1", "v2"):
        base = published_config(variant)
    else:
        base = NetworkConfig(variant=variant)
    config = NetworkConfig.from_dict({**base.to_dict(), **overrides})
    return RegMambaNetwork(config) if config.variant == "regmamba" else PublishedNetwork(config)
