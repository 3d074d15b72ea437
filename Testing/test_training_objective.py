"""What training minimises: each loss by its weight, on the images it should see."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import torch

from RegMambaLib.losses import dirichlet_kl_loss, mse_loss, pac_bayes_bound
from RegMambaLib.networks import build_network
from RegMambaLib.networks.blocks import warp
from RegMambaLib.training import config, objective


def pair(shape: tuple[int, int, int] = (10, 12, 14), seed: int = 0) -> objective.Tensors:
    """A smooth image, the same one moved by a voxel in another contrast, and labels of both."""
    noise = torch.rand(1, 1, *(n + 5 for n in shape), generator=torch.Generator().manual_seed(seed))
    fixed = torch.nn.functional.avg_pool3d(noise, 5, 1)[..., :-1, :, :]
    fixed = (fixed - fixed.min()) / (fixed.max() - fixed.min())
    moving = fixed.roll(1, dims=3)
    tensors = {"fixed": fixed, "moving": 1 - moving, "fixed_clean": fixed, "moving_clean": moving}
    bins = torch.tensor([0.4, 0.7])[None, :, None, None, None]
    return tensors | {"fixed_labels": (fixed > bins).float(), "moving_labels": (moving > bins).float()}


OFF = dict.fromkeys(objective.TERMS, 0.0)


@pytest.mark.parametrize("term", objective.TERMS)
def test_every_loss_is_switched_by_its_weight_and_reaches_the_network(term):
    torch.manual_seed(0)
    network = build_network(channels=(4, 6), directions=("hwd", "dhw")).train()
    with torch.no_grad():
        for head_ in network.heads:
            head_.weight.normal_(std=0.02)
        network.voting[0].post[0] = 0.5
    similarity = {} if term in ("lncc", "mse", "nmi", "mind", "dice") else {"mse": 1e-12}
    both = objective.Objective(network, config.Losses(**{**OFF, **similarity, term: 0.25}), 50)
    assert set(both.terms) == {term, *similarity}
    torch.manual_seed(1)
    loss, parts = both(pair())
    values = dict(zip(both.terms, parts.tolist(), strict=True))
    assert float(loss.detach()) == pytest.approx(0.25 * values[term], rel=1e-4)
    loss.backward()
    reached = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    if term == "voting_kl":
        assert values[term] == pytest.approx(float(dirichlet_kl_loss(network.voting[0].post[None]).detach()))
        assert "voting.0.post" in reached
    else:
        assert {"stem.conv.weight", "heads.0.weight", "voting.0.post"} <= set(reached)


def test_the_loss_compares_the_clean_images_and_the_risk_is_bounded():
    network = build_network(channels=(4, 6), directions=("hwd", "dhw")).eval()
    tensors = pair()
    wanted = config.Losses(**{**OFF, "mse": 1.0, "lncc": 1.0, "voting_bound": 1.0}, lncc_coarse=0.0)
    asked = objective.Objective(network, wanted, 50)
    _, parts = asked(tensors)
    values = dict(zip(asked.terms, parts, strict=True))
    moved = warp(tensors["moving_clean"], network(tensors["moving"], tensors["fixed"]))
    assert torch.equal(values["mse"], mse_loss(tensors["fixed"], moved).detach())
    torch.testing.assert_close(values["voting_bound"], pac_bayes_bound(values["lncc"], torch.zeros(()), 50))


def test_loss_falls_on_one_pair():
    torch.manual_seed(0)
    network = build_network(channels=(4, 6)).train()
    both = objective.Objective(network, config.Losses(diffusion=0.1, dice=0.5), 10)
    adam = torch.optim.Adam(network.parameters(), lr=2e-2)
    losses = []
    for _ in range(25):
        loss, _ = both(pair())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
