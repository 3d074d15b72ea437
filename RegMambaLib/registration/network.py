"""The network's part in a registration: which weights, on what grid, and whether its answer helps."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..errors import InputError
from ..spatial import fields
from .window import anatomy_window, nearness, usual_frame

if TYPE_CHECKING:
    import torch

    from ..networks.base import RegistrationNetwork

N = TypeVar("N", bound="torch.nn.Module")

# mm per voxel that shipped weights were trained on; the network then sees a brain on about 80 x 96 x 80 voxels.
NETWORK_SPACING = 2.0
# What `weights: auto` stands for where the images show one contrast, or can be brought to one, and where they do not.
SAME_CONTRAST_WEIGHTS, ANY_CONTRAST_WEIGHTS = "brain-t1", "general"
WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"
STRUCTURE_WEIGHTS = WEIGHTS_FOLDER / "structures.safetensors"


def shipped_weights() -> dict[str, Path]:
    """Names and files of the registration networks' weights in this installation."""
    files = sorted(WEIGHTS_FOLDER.glob("*.safetensors"))
    return {path.stem: path for path in files if path != STRUCTURE_WEIGHTS}


def chosen_weights(name: str, *, one_contrast: bool = True, cutout: bool = False) -> str:
    """The weights that a name stands for: itself, but for `auto`.

    Args:
        one_contrast: whether the images show one contrast, or can be brought to it.
        cutout: whether an image is a piece of something larger. Shipped weights saw whole brains only; on crops
            around the hippocampus they took .06 of Dice away, on necks .01.
    """
    if name != "auto":
        return name
    if cutout:
        return "none"
    return SAME_CONTRAST_WEIGHTS if one_contrast else ANY_CONTRAST_WEIGHTS


def find_weights(name: str) -> Path:
    """The file of shipped weights, or the given file.

    Raises:
        InputError: neither exists.
    """
    shipped = shipped_weights()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_file():
        return path
    names = ", ".join(["auto", *shipped, "none"])
    raise InputError(f"There are no weights {name!r}; give one of {names}, or a .safetensors or .pth file.")


def weights_files(name: str) -> list[Path]:
    """The files that a registration with these weights may read; none for `none` and for names without a file."""
    if name == "auto":
        return list(shipped_weights().values())
    try:
        return [] if name == "none" else [find_weights(name)]
    except InputError:
        return []


def load_weights(name: str) -> RegistrationNetwork:
    """The network of `find_weights`, ready for inference. The last two stay in memory, on the device they ran on."""
    path = find_weights(name).resolve()
    facts = path.stat()
    return _read_network(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=2)
def _read_network(path: Path, changed: int, size: int) -> RegistrationNetwork:
    """The network of a file; read again if the file changed."""
    from ..networks import load_network, load_published_checkpoint

    loader = load_network if path.suffix == ".safetensors" else load_published_checkpoint
    return loader(path).eval()


def weights_contrast(name: str) -> str:
    """What the weights' card says under `contrast`: "any", or "same" (also where there is no card)."""
    from ..networks import read_card

    path = find_weights(name)
    return str(read_card(path).get("contrast", "same")) if path.suffix == ".safetensors" else "same"


def predict(
    network: RegistrationNetwork,
    fixed: np.ndarray,
    moving: np.ndarray,
    *,
    device: str = "cpu",
) -> np.ndarray:
    """Run the network on a pair that is on its own grid (see `network_shape`).

    It sees the part around the anatomy. Further out, where its answer means nothing, the displacement fades.

    Args:
        fixed, moving: (k, j, i) float32 in [0, 1], linearly aligned.

    Returns:
        The displacement (3, k, j, i), float32 voxels of that grid.
    """
    import torch

    anatomy = (fixed > 0) | (moving > 0)
    # No smaller than in training, where the images are not: of small frames the network knows nothing.
    window = anatomy_window(anatomy, usual_frame(fixed.shape))
    if window is None:
        return np.zeros((3, *fixed.shape), np.float32)
    network = placed(network, device)
    small, other = (torch.from_numpy(window.shown(volume))[None, None].to(device) for volume in (moving, fixed))
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 as said, with all its digits
            displacement, _ = network.predict(small, other)
    except NotImplementedError:  # older torch has no 3-D interpolation and pooling on Apple's GPUs
        if device != "mps":
            raise
        return predict(network, fixed, moving)
    return window.whole(displacement[0].float().cpu().numpy(), fixed.shape) * nearness(anatomy)


def placed(network: N, device: str) -> N:
    """The network on a device, its weights laid out in memory as they are fastest there."""
    import torch

    # Convolutions are a fifth faster so on the CPU.
    layout = torch.channels_last_3d if device == "cpu" else torch.contiguous_format
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def network_shape(shape: tuple[int, ...], spacing: float) -> tuple[int, int, int]:
    """Array shape of the network's grid over the extent of a working grid of `shape` voxels of `spacing` mm."""
    ratio = min(spacing / NETWORK_SPACING, 1.0)
    z, y, x = (max(8, round(n * ratio)) for n in shape)
    return z, y, x


def helps(fixed: np.ndarray, moving: np.ndarray, displacement: np.ndarray) -> tuple[bool, float, float]:
    """Whether the displacement makes the pair more alike, and the similarity before and after.

    Args:
        fixed, moving: (k, j, i) on the displacement's grid.

    The similarity is that of `mean_lncc`.
    """
    moved = fields.warp(moving, displacement)
    before, after = mean_lncc(fixed, moving), mean_lncc(fixed, moved)
    return after > before, before, after


def mean_lncc(a: np.ndarray, b: np.ndarray, sigma: float = 2.0) -> float:
    """Mean squared local correlation of two volumes in [0, 1] with Gaussian windows, over where either is not flat."""
    va, vb, cross = fields.local_moments(a, b, sigma, truncate=3.0)
    inside = np.maximum(va, vb) > 1e-4
    if not inside.any():
        return 0.0
    return float(np.mean(cross[inside] ** 2 / (np.maximum(va, 0) * np.maximum(vb, 0) + 1e-8)[inside]))
