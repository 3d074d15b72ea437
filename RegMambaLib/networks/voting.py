"""How the scan directions of a matching block are weighed against each other.

The weights are drawn from a Dirichlet distribution with learned concentrations exp(post) (the "stochastic
Mamba voting" of 3DReg-Mamba): in training one differentiable sample per call, at inference the mean, and
samples on request, whose spread tells how sure the network is.
"""

from __future__ import annotations

import torch
from torch import nn


class DirectionVoting(nn.Module):
    """A learned Dirichlet posterior over G directions; post (G,) holds log concentrations, all alike at the
    start.
    """

    def __init__(self, directions: int) -> None:
        super().__init__()
        self.post = nn.Parameter(torch.zeros(directions))

    def mean(self) -> torch.Tensor:
        """The mean exp(post) / sum(exp(post)), (G,)."""
        return torch.softmax(self.post, 0)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """One sample (G,), differentiable by post (implicit reparameterisation of the gamma variates).

        generator: a CPU generator; without it torch's global one. Drawn on the CPU, so that a seed means the
        same weights on every device.
        """
        # Concentrations stay in a range where neither the gamma variates nor their gradient degenerate.
        concentration = self.post.cpu().float().clamp(-7.0, 7.0).exp()
        gamma = torch._standard_gamma(concentration, generator=generator)
        gamma = gamma.clamp_min(torch.finfo(gamma.dtype).tiny)
        return (gamma / gamma.sum()).to(self.post)


def draw_votes(posterior: nn.Module, sample: bool, generator: torch.Generator | None = None) -> torch.Tensor:
    """A sample of a `DirectionVoting`, or its mean."""
    assert isinstance(posterior, DirectionVoting)
    return posterior.sample(generator) if sample else posterior.mean()
