"""Losses: plain functions on tensors (B, C, H, W, D) that return one scalar to be minimised."""

from __future__ import annotations

from RegMambaLib.losses.boxes import box_mean, box_sum
from RegMambaLib.losses.dice import dice_loss
from RegMambaLib.losses.dirichlet import dirichlet_kl_loss
from RegMambaLib.losses.inverse import inverse_consistency_loss
from RegMambaLib.losses.lncc import lncc_loss, lncc_map
from RegMambaLib.losses.mind import mind_ssc
from RegMambaLib.losses.mse import mse_loss
from RegMambaLib.losses.nmi import nmi_loss
from RegMambaLib.losses.pac_bayes import pac_bayes_bound
from RegMambaLib.losses.smoothness import bending_loss, diffusion_loss

__all__ = [
    "bending_loss",
    "box_mean",
    "box_sum",
    "dice_loss",
    "diffusion_loss",
    "dirichlet_kl_loss",
    "inverse_consistency_loss",
    "lncc_loss",
    "lncc_map",
    "mind_ssc",
    "mse_loss",
    "nmi_loss",
    "pac_bayes_bound",
]
