"""Risk of the voting: how far the Dirichlet belief over the voters strays from an even one."""

from __future__ import annotations

import math

import torch

from RegMambaLib.errors import InputError

# exp(+-15) spans 3e-7 .. 3e6 votes: beyond any belief worth learning, and float32's lgamma stays finite and
# useful.
_LARGEST_LOG = 15.0


def dirichlet_kl_loss(log_concentration: torch.Tensor, *, prior: float = 1.0) -> torch.Tensor:
    """KL divergence of Dirichlet(exp(x)) from the symmetric Dirichlet(prior, ..., prior), mean over places.

    ``lgamma(S) - sum lgamma(a_k) - lgamma(K p) + K lgamma(p) + sum (a_k - p) (digamma(a_k) - digamma(S))``
    with ``S = sum a_k``; `prior` 1 is the uniform distribution on the simplex.

    Args:
        log_concentration: (B, K, ...) natural logarithm of the concentrations of K voters, float32 or float64;
            limited to -15 .. 15.
        prior: concentration of the prior, above 0.

    Returns: scalar in nats, not negative, 0 where all concentrations equal the prior.

    Raises:
        InputError: `prior` is not positive or there are fewer than two voters.
    """
    if not prior > 0:
        raise InputError(f"The prior concentration is {prior}; choose a number above 0.")
    if log_concentration.dim() < 2 or log_concentration.shape[1] < 2:
        raise InputError(f"Voting needs (B, K, ...) with at least two voters, not {tuple(log_concentration.shape)}.")
    voters = log_concentration.shape[1]
    # Under half precision the differences of large lgamma values would be noise.
    wide = log_concentration.to(torch.promote_types(log_concentration.dtype, torch.float32))
    a = wide.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
    total = a.sum(dim=1, keepdim=True)
    divergence = (
        torch.lgamma(total.squeeze(1))
        - torch.lgamma(a).sum(dim=1)
        - math.lgamma(voters * prior)
        + voters * math.lgamma(prior)
        + ((a - prior) * (torch.digamma(a) - torch.digamma(total))).sum(dim=1)
    )
    return divergence.mean()
