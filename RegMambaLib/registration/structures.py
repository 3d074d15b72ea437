"""Maps of a brain's structures, which pull in refinement beside the images, and when they are to be believed.

Where an image shows little (the edge of the amygdala, folds of the cortex blurred by noise) local correlation goes
astray; what a network trained on labelled anatomies makes of the whole image does not. Matching such maps is how
registration learns from labels in VoxelMorph (Balakrishnan et al., IEEE TMI 2019) and SynthMorph (Hoffmann et al., IEEE
TMI 2022), there in training, here on the pair itself.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .cortex import cortex_map
from .network import SAME_CONTRAST_WEIGHTS, STRUCTURE_WEIGHTS, placed
from .refine import Maps, Pair
from .settings import Settings
from .window import Window, anatomy_window

if TYPE_CHECKING:
    import torch

    from ..networks.structures import StructureNet

# The channels of the maps: classes that lie far enough apart to share one, and what the channel counts. Chosen on the
# pairs that settings were chosen on (docs/benchmarks.md). Leaving out the pallidum, the brainstem and others loses
# nothing: LNCC finds them by itself, and each definition of them is another.
CHANNELS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("thalamus", "amygdala", "accumbens"), 2.0),
    (("lateral ventricle", "inferior lateral ventricle"), 2.0),
    (("caudate", "hippocampus"), 2.0),
)
# What `cortex_map` is made of; the background is fluid where it lies within the image.
TISSUES = ("white matter", "cortex", "background")
# What the channels pull, and what the map of the cortex pulls, of what the images pull.
STRUCTURE_WEIGHT, CORTEX_WEIGHT = 0.2, 0.4
# Of white matter and cortex together: what T1 brains have at least (12 brains of three data sets: .0147, .0078, .0104
# and .0083; turned over, T2-like, caudate and putamen .0045 and .0027), and the share of white matter. How much
# brighter than cortex it is at least, and how undecided the network is at most, nats (.26 to .36; turned over .52).
LEAST = {"thalamus": 0.01, "caudate": 0.0035, "putamen": 0.006, "hippocampus": 0.004}
WHITE_SHARE, CONTRAST, DOUBT = (0.25, 0.7), 1.15, 0.45


def wanted(settings: Settings, weights: str, alike: bool) -> bool:
    """Whether to look for structures: for refinement, with the weights for T1 brains, in images of one contrast."""
    return settings.structures and any(settings.iterations) and weights == SAME_CONTRAST_WEIGHTS and alike


def structure_maps(pair: Pair, level: Pair, *, device: str = "cpu") -> tuple[Maps, ...]:
    """Structures as the network sees them and the cortex as sharp as the images; none where one is no T1 brain.

    Args:
        pair: linearly aligned.
        level: the pair on the network's grid (`network_shape`).
    """
    found = recognised(level.fixed, level.moving, device=device)
    if found is None:
        return ()
    fixed, moving = (
        cortex_map(image, coarse, brain.tissues)[..., None]
        for image, coarse, brain in zip((pair.fixed, pair.moving), (level.fixed, level.moving), found, strict=True)
    )
    structures = Maps(found[0].channels, found[1].channels, STRUCTURE_WEIGHT)
    return structures, Maps(fixed, moving, CORTEX_WEIGHT)


class Brain(NamedTuple):
    """What the network finds in an image, float32 (k, j, i, c): CHANNELS, and the shares of TISSUES."""

    channels: np.ndarray
    tissues: np.ndarray


def recognised(fixed: np.ndarray, moving: np.ndarray, *, device: str = "cpu") -> tuple[Brain, Brain] | None:
    """What the network finds in both images; None where an image does not look like a T1 brain.

    Args:
        fixed, moving: (k, j, i) float32 in [0, 1] on the network's grid (`network_shape`), linearly aligned.
    """
    window = anatomy_window((fixed > 0) | (moving > 0))
    if window is None:
        return None
    try:
        return _recognised_within(window, fixed, moving, device)
    except NotImplementedError:  # older torch lacks some 3-D operations on Apple's GPUs
        if device != "mps":
            raise
        return _recognised_within(window, fixed, moving, "cpu")


def _recognised_within(
    window: Window, fixed: np.ndarray, moving: np.ndarray, device: str
) -> tuple[Brain, Brain] | None:
    import torch

    network = placed(load_structure_network(), device)
    images = torch.from_numpy(np.stack([window.shown(fixed), window.shown(moving)])).to(device)
    parts = *CHANNELS, *(((name,), 1.0) for name in TISSUES)
    found = []
    fast = torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu" and _has_bfloat16())
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), fast:
        for image, logits in zip(images, network(images[:, None]), strict=True):
            inside = image.flatten().nonzero()[:, 0]
            shares = logits.flatten(1).index_select(1, inside).float().softmax(0)
            if not believable(image.flatten()[inside], shares):
                return None
            maps = torch.zeros((image.numel(), len(parts)), device=image.device)
            maps[inside] = torch.stack([scale * shares[_numbers(names)].sum(0) for names, scale in parts], -1)
            parted = maps.unflatten(0, image.shape).split([len(CHANNELS), len(TISSUES)], -1)
            whole = [np.zeros((*fixed.shape, part.shape[-1]), np.float32) for part in parted]
            for volume, part in zip(whole, parted, strict=True):
                volume[window.inner] = part.cpu().numpy()[window.frame]
            found.append(Brain(*whole))
    return found[0], found[1]


def believable(values: torch.Tensor, shares: torch.Tensor) -> bool:
    """Whether what was recognised is a T1 brain: structures of the usual amounts, white matter brightest, no doubt.

    Args:
        values: (n,), of the voxels of an image that are not background.
        shares: their probabilities (classes, n).
    """
    from ..networks.structures import NAMES

    amounts = shares.sum(1)
    brightness = shares @ values / amounts.clamp_min(1e-6)
    some = shares[:, ::8]  # logarithms are slow
    doubt = -(some * some.clamp_min(1e-9).log()).sum(0).mean().item()
    amount, bright = (dict(zip(NAMES, numbers.tolist(), strict=True)) for numbers in (amounts, brightness))
    cerebrum = amount["white matter"] + amount["cortex"]
    return (
        doubt < DOUBT
        and WHITE_SHARE[0] * cerebrum < amount["white matter"] < WHITE_SHARE[1] * cerebrum
        and bright["white matter"] > CONTRAST * bright["cortex"]
        and all(amount[name] > least * cerebrum for name, least in LEAST.items())
    )


@lru_cache(maxsize=1)
def load_structure_network(path: Path = STRUCTURE_WEIGHTS) -> StructureNet:
    """The shipped network; it stays in memory, on the device it ran on."""
    from ..networks.structures import load_structures

    return load_structures(path)


def _has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, as the network did in training: three times as fast as in float32."""
    import torch

    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _numbers(names: tuple[str, ...]) -> list[int]:
    from ..networks.structures import NAMES

    return [NAMES.index(name) for name in names]
