"""The orders in which the tokens of a volume can be visited.

A volume of shape ``(H, W, D)`` is stored as ``L = H * W * D`` tokens in canonical order: h slowest, d
fastest. A traversal names its axes from slowest to fastest ("whd" is einops' ``(w h d)``) and a sign: "+"
visits the tokens in that order, "-" in exactly the reverse one. Six axis orders times two signs make twelve
traversals.

Groups select several at once. The anatomical ones name the planes that are swept one after another, and hold
for volumes whose axes run superior (h), posterior (w) and left (d), the library's axis order:

- ``axial`` (h slowest), ``coronal`` (w slowest), ``sagittal`` (d slowest);
- ``forward``, ``backward``, ``all``;
- a bare axis order such as ``hwd`` is both of its signs, and a group takes a sign too: ``axial+``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from RegMambaLib.errors import InputError

Shape = tuple[int, int, int]

ORDERS = ("hwd", "whd", "dwh", "hdw", "wdh", "dhw")
_GROUPS = {
    "all": ORDERS,
    "axial": ("hwd", "hdw"),
    "coronal": ("whd", "wdh"),
    "sagittal": ("dwh", "dhw"),
    **{order: (order,) for order in ORDERS},
}


@dataclass(frozen=True)
class Traversal:
    """One way through a volume.

    order: the axes from slowest to fastest, one of `ORDERS`; backward: whether it starts at the last token.
    """

    order: str
    backward: bool = False

    @property
    def name(self) -> str:
        return self.order + ("-" if self.backward else "+")

    def arrange(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Tokens (b, L, E) in canonical order -> (b, L, E) in the order visited."""
        axes = ["hwd".index(axis) + 1 for axis in self.order]
        visited = tokens.unflatten(1, shape).permute(0, *axes, 4).flatten(1, 3)
        return visited.flip(1) if self.backward else visited

    def restore(self, tokens: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Inverse of `arrange`."""
        forward = tokens.flip(1) if self.backward else tokens
        sizes = [shape["hwd".index(axis)] for axis in self.order]
        axes = [self.order.index(axis) + 1 for axis in "hwd"]
        return forward.unflatten(1, sizes).permute(0, *axes, 4).flatten(1, 3)

    def index_plan(self, shape: Shape) -> tuple[int, ...]:
        """(first token, 3 sizes, 3 strides), slowest axis first: all that index arithmetic needs to follow
        it.
        """
        stride = {"h": shape[1] * shape[2], "w": shape[2], "d": 1}
        size = dict(zip("hwd", shape, strict=True))
        sign = -1 if self.backward else 1
        first = prod(shape) - 1 if self.backward else 0
        return (first, *(size[axis] for axis in self.order), *(sign * stride[axis] for axis in self.order))


TRAVERSALS = {
    traversal.name: traversal
    for traversal in [Traversal(order, backward) for backward in (False, True) for order in ORDERS]
}


def resolve_traversals(names: str | Iterable[str]) -> tuple[Traversal, ...]:
    """The traversals that names (or one comma-separated string) select, each once, in the order first named.

    Raises InputError for an unknown name, with the list of the valid ones.
    """
    parts = names.split(",") if isinstance(names, str) else list(names)
    chosen: dict[str, Traversal] = {}
    for part in parts:
        for name in _expand(part.strip()):
            chosen[name] = TRAVERSALS[name]
    if not chosen:
        raise InputError(f"No scan direction was named; choose from {_valid_names()}.")
    return tuple(chosen.values())


def one_traversal(item: str | Traversal) -> Traversal:
    """A traversal from itself or from its full name ("hwd+"). Raises InputError otherwise."""
    if isinstance(item, Traversal):
        return item
    if item not in TRAVERSALS:
        raise InputError(f"'{item}' is not a scan direction; choose from {', '.join(TRAVERSALS)}.")
    return TRAVERSALS[item]


def _expand(name: str) -> Sequence[str]:
    if name in ("forward", "backward"):
        base, signs = "all", "+" if name == "forward" else "-"
    elif name.endswith(("+", "-")):
        base, signs = name[:-1], name[-1]
    else:
        base, signs = name, "+-"
    if base not in _GROUPS:
        raise InputError(f"'{name}' is not a scan direction or group; choose from {_valid_names()}.")
    return [order + sign for sign in signs for order in _GROUPS[base]]


def _valid_names() -> str:
    groups = ["all", "forward", "backward", "axial", "coronal", "sagittal"]
    return ", ".join([*TRAVERSALS, *groups]) + " (a group or a bare order may take a sign, as in 'axial+')"
