"""The voting risk: an upper bound on what the vote of the directions costs on pairs that were not trained on.

Method: the stochastic majority votes of Zantedeschi et al. (NeurIPS 2021), which 3DReg-Mamba builds its voting
on: votes are drawn from a Dirichlet posterior, and with a probability of 1 - delta the expected risk is
below the b that solves kl(risk || b) = (KL(posterior || prior) + ln(2 sqrt(n) / delta)) / n for n training
examples (Seeger, JMLR 2002; Maurer 2004).
"""

from __future__ import annotations

import math

import torch

from RegMambaLib.errors import InputError

# Halvings of 0..1 down to the resolution of float64.
_HALVINGS = 55


def _binary_kl(q: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """kl of Bernoulli(q) from Bernoulli(b), nats."""
    return torch.special.xlogy(q, q / b) + torch.special.xlogy(1 - q, (1 - q) / (1 - b))


def pac_bayes_bound(
    risk: torch.Tensor, divergence: torch.Tensor, examples: int, *, delta: float = 0.05
) -> torch.Tensor:
    """The bound b, differentiable by both arguments, a scalar of the risk's dtype between `risk` and 1.

    Args:
        risk: empirical risk with drawn votes, a scalar in 0..1.
        divergence: KL of the posterior from the prior, nats, a scalar, not negative; see `dirichlet_kl_loss`.
        examples: how many training examples there are.
        delta: probability that the bound fails.

    Raises:
        InputError: `risk` is not within 0..1, there is no example, or `delta` is not between 0 and 1.
    """
    if examples < 1 or not 0 < delta < 1:
        raise InputError(
            f"A PAC-Bayes bound needs at least one example and a delta between 0 and 1, not {examples} and {delta}."
        )
    if risk.numel() != 1 or float(risk.detach()) < -1e-6 or float(risk.detach()) > 1 + 1e-6:
        raise InputError("A PAC-Bayes bound needs one risk between 0 and 1; give a loss of that range, such as LNCC.")
    # The ends have no slope; float32 would lose 1 - b.
    q = risk.double().clamp(1e-6, 1 - 1e-6)
    reach = (divergence.double() + math.log(2 * math.sqrt(examples) / delta)) / examples
    with torch.no_grad():
        low, high = q.clone(), torch.ones_like(q)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = _binary_kl(q, middle) < reach
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        b = low.clamp_max(1 - 1e-9)
        slope = (b - q) / (b * (1 - b))
    # One Newton step from the solution: its value is the solution, its derivative that of the implicit function.
    # A divergence so large that the bound is 1 has no slope left.
    step = (reach - _binary_kl(q, b)) / slope
    return (b + step - step.detach()).to(risk.dtype)
