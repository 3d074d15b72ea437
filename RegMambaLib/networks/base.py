"""What all registration networks share: any volume size, one encoder for both images, votes, and
prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from RegMambaLib.errors import InputError
from RegMambaLib.networks.config import NetworkConfig

Features = list[torch.Tensor]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RegistrationNetwork(nn.Module, ABC):
    """network(moving, fixed) -> displacement.

    Images are (B, 1, H, W, D) of any size, intensities roughly in [0, 1]; the displacement is (B, 3, H, W, D)
    in voxels, channels in the order (h, w, d), with moved(x) = moving(x + displacement(x)).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, image: torch.Tensor) -> Features:
        """Feature maps of images (B, 1, H, W, D), one per level, finest first; sizes are multiples of
        `multiple`.
        """

    @abstractmethod
    def decode(self, moving: Features, fixed: Features, votes: list[torch.Tensor]) -> torch.Tensor:
        """The displacement from both images' features and the direction weights of every level with a
        match.
        """

    @abstractmethod
    def votes(self, sample: bool, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Direction weights for `decode`: the posterior's mean, or one sample."""

    @property
    def multiple(self) -> int:
        """Volumes are padded to a multiple of this many voxels per axis."""
        return 2 ** (self.config.levels - 1)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """See the class. Training mode draws the direction weights (see `NetworkConfig.voting`), inference takes their
        mean."""
        votes = self.votes(self.training and self.config.voting == "sampled")  # first: drawing waits for the device
        return _crop(self.decode(*self._encode_pair(moving, fixed), votes), fixed)

    @torch.no_grad()
    def predict(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        samples: int = 0,
        *,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The displacement with mean direction weights and, from `samples` >= 2 draws of them, its uncertainty.

        The uncertainty (B, 1, H, W, D) is the standard deviation of the displacement over the draws, in voxels, root
        mean square over its three components; None for samples = 0. seed makes it repeatable. dtype: "float32", or
        "bfloat16" or "float16" for mixed precision (autocast), in which the scan's state, positions and displacements
        stay float32.
        """
        if dtype not in _DTYPES:
            raise InputError(f"'{dtype}' is not a type to predict in; choose from {', '.join(_DTYPES)}.")
        if samples == 1 or samples < 0:
            raise InputError(f"Uncertainty needs at least 2 samples (or 0 for none), not {samples}.")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            with torch.autocast(fixed.device.type, _DTYPES[dtype], enabled=dtype != "float32"):
                return self._predict(moving, fixed, samples, generator)
        finally:
            self.train(was_training)

    def _predict(
        self, moving: torch.Tensor, fixed: torch.Tensor, samples: int, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = self._encode_pair(moving, fixed)
        displacement = _crop(self.decode(*features, self.votes(sample=False)), fixed)
        if samples == 0:
            return displacement, None
        # Welford's running variance: draws are not kept.
        mean, squares = torch.zeros_like(displacement), torch.zeros_like(displacement)
        for count in range(1, samples + 1):
            draw = _crop(self.decode(*features, self.votes(True, generator)), fixed)
            change = draw - mean
            mean += change / count
            squares += change * (draw - mean)
        return displacement, (squares / (samples - 1)).mean(1, keepdim=True).sqrt()

    def _encode_pair(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[Features, Features]:
        for name, image in (("moving", moving), ("fixed", fixed)):
            if image.dim() != 5 or image.shape[1] != 1 or image.numel() == 0:
                raise InputError(f"The {name} image must be (B, 1, H, W, D) and is {tuple(image.shape)}.")
        if moving.shape != fixed.shape:
            raise InputError(
                f"Both images must share one grid, but moving is {tuple(moving.shape)} and fixed "
                f"{tuple(fixed.shape)}; resample moving onto the fixed grid first."
            )
        batch = fixed.shape[0]
        both = self.encode(_pad(torch.cat([moving, fixed]), self.multiple))
        return [level[:batch] for level in both], [level[batch:] for level in both]


def _pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = [-size % multiple for size in image.shape[2:]]
    if not any(missing):
        return image
    return F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")


def _crop(flow: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    height, width, depth = like.shape[2:]
    return flow[:, :, :height, :width, :depth]
