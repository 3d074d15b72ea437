"""What a run minimises: the weighted sum of the losses that are switched on, for one pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from RegMambaLib.losses import (
    bending_loss,
    dice_loss,
    diffusion_loss,
    dirichlet_kl_loss,
    inverse_consistency_loss,
    lncc_loss,
    mind_ssc,
    mse_loss,
    nmi_loss,
    pac_bayes_bound,
)
from RegMambaLib.networks.blocks import warp
from RegMambaLib.networks.voting import DirectionVoting
from RegMambaLib.training.config import Losses
from RegMambaLib.training.data import Sample

# Names of the losses, as in `Losses` and in the log.
TERMS = ("lncc", "mse", "nmi", "mind", "dice", "diffusion", "bending", "inverse", "voting_kl", "voting_bound")

Tensors = dict[str, torch.Tensor]


def tensors_of(sample: Sample, device: torch.device) -> Tensors:
    """A sample as the objective takes it: images (1, 1, H, W, D) float32, one-hot labels (1, K, H, W, D)."""
    images = ("fixed", "moving", "fixed_clean", "moving_clean")
    tensors = {name: getattr(sample.pair, name)[None, None] for name in images}
    if sample.labels:
        for name in ("fixed_labels", "moving_labels"):
            labels = getattr(sample.pair, name)
            tensors[name] = torch.stack([labels == value for value in sample.labels])[None].float()
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class Objective(nn.Module):
    """A network and its losses as one module, so that whatever wraps it sees one call per pair.

    Args:
        network: `network(moving, fixed) -> displacement`, (B, 1, H, W, D) -> (B, 3, H, W, D) voxels.
        examples: how many training pairs there are, for the bound on the voting risk.
        mixed: run the network in bfloat16 mixed precision. The images stay float32, and so do sums over windows and
            histograms.
    """

    def __init__(self, network: nn.Module, losses: Losses, examples: int, *, mixed: bool = False) -> None:
        super().__init__()
        self.network, self.losses, self.examples, self.mixed = network, losses, examples, mixed
        self.terms = tuple(name for name in TERMS if getattr(losses, name) > 0)

    def forward(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and its parts (unweighted, detached) in the order of `terms`."""
        fixed, moving = tensors["fixed"], tensors["moving"]
        with torch.autocast(fixed.device.type, torch.bfloat16, enabled=self.mixed):
            displacement = self.network(moving, fixed)
            back = self.network(fixed, moving) if self.losses.inverse else None
        parts = self._parts(tensors, displacement.float(), None if back is None else back.float())
        loss = torch.stack([getattr(self.losses, name) * parts[name] for name in self.terms]).sum()
        return loss, torch.stack([parts[name].detach() for name in self.terms])

    def _parts(self, tensors: Tensors, displacement: torch.Tensor, back: torch.Tensor | None) -> Tensors:
        on = set(self.terms)
        fixed, carried = tensors["fixed_clean"], tensors["moving_clean"]
        has_labels = "dice" in on and "fixed_labels" in tensors
        if has_labels:
            carried = torch.cat([carried, tensors["moving_labels"]], dim=1)
        warped = warp(carried, displacement)
        moved = warped[:, :1]
        parts: Tensors = {}
        if on & {"lncc", "voting_bound"}:
            local = lncc_loss(fixed, moved, window=self.losses.lncc_window)
            parts["lncc"] = self._with_coarse(local, fixed, moved)
        if "mse" in on:
            parts["mse"] = mse_loss(fixed, moved)
        if "nmi" in on:
            parts["nmi"] = nmi_loss(fixed, moved, bins=self.losses.nmi_bins)
        if "mind" in on:
            parts["mind"] = mse_loss(mind_ssc(fixed), mind_ssc(moved))
        if "dice" in on:
            # A pair without a common label leaves the loss where it is, and every parameter with a gradient.
            parts["dice"] = dice_loss(tensors["fixed_labels"], warped[:, 1:]) if has_labels else displacement.sum() * 0
        if "diffusion" in on:
            parts["diffusion"] = diffusion_loss(displacement)
        if "bending" in on:
            parts["bending"] = bending_loss(displacement)
        if back is not None:
            parts["inverse"] = inverse_consistency_loss(displacement, back)
        if on & {"voting_kl", "voting_bound"}:
            parts["voting_kl"] = voting_divergence(self.network, displacement)
        if "voting_bound" in on:
            parts["voting_bound"] = pac_bayes_bound(local, parts["voting_kl"], self.examples)
        return parts

    def _with_coarse(self, local: torch.Tensor, fixed: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        share = self.losses.lncc_coarse
        if share == 0:
            return local
        halves = [F.avg_pool3d(x, 2) for x in (fixed, moved)]
        return (1 - share) * local + share * lncc_loss(*halves, window=self.losses.lncc_window)


def voting_divergence(network: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """Divergence of all direction votes of a network from even ones, nats: independent posteriors add up."""
    posts = [m.post for m in network.modules() if isinstance(m, DirectionVoting) and m.post.numel() > 1]
    return torch.stack([dirichlet_kl_loss(post[None]) for post in posts]).sum() if posts else like.new_zeros(())
