"""The selective scan and the causal convolution along traversals of a volume: one interface, several
backends.
"""

from RegMambaLib.scan.interface import causal_conv1d, selective_scan
from RegMambaLib.scan.selection import BACKENDS, available_backends, set_backend, use_backend
from RegMambaLib.scan.traversals import ORDERS, TRAVERSALS, Shape, Traversal, resolve_traversals

__all__ = [
    "BACKENDS",
    "ORDERS",
    "TRAVERSALS",
    "Shape",
    "Traversal",
    "available_backends",
    "causal_conv1d",
    "resolve_traversals",
    "selective_scan",
    "set_backend",
    "use_backend",
]
