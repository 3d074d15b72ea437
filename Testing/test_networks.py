"""Our network: any size, identity at the start, votes, uncertainty, gradients, weight files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from RegMambaLib.errors import InputError
from RegMambaLib.networks import NetworkConfig, build_network, load_network, read_card, save_network
from RegMambaLib.networks.blocks import instance_norm, upsample_flow, warp
from RegMambaLib.networks.voting import DirectionVoting

SMALL = {"channels": (4, 6, 8), "directions": ("hwd", "dhw+")}


def small_network(seed=0, moving_heads=False):
    torch.manual_seed(seed)
    network = build_network("regmamba", **SMALL)
    if moving_heads:
        for head in network.heads:
            torch.nn.init.normal_(head.weight, std=0.05)
    return network


def images(*shape, batch=1):
    return torch.rand(2, batch, 1, *shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [(16, 16, 16), (1, 1, 1), (3, 5, 7), (20, 9, 13)])
@pytest.mark.parametrize("batch", [1, 2])
def test_any_volume_size_trains_and_predicts(shape, batch):
    network = small_network()
    flow = network(*images(*shape, batch=batch))
    assert flow.shape == (batch, 3, *shape)
    flow.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert network.predict(*images(*shape, batch=batch))[0].shape == (batch, 3, *shape)


@pytest.mark.parametrize(
    "options", [{"input": "mind"}, {"mixing": "conv"}, {"matching": "concat"}, {"voting": "mean"}, {"voting": "equal"}]
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (12, 9, 13)])
def test_every_choice_of_structure_trains_predicts_and_is_kept(options, shape, tmp_path):
    network = build_network("regmamba", **SMALL, **options)
    network(*images(*shape)).square().sum().backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in trained)
    save_network(network, tmp_path / "w.safetensors")
    again = load_network(tmp_path / "w.safetensors")
    assert again.config == network.config
    torch.testing.assert_close(again.predict(*images(*shape)), network.predict(*images(*shape)))
    flow, spread = network.predict(*images(*shape), samples=2, seed=1)
    assert flow.shape == (1, 3, *shape) and spread is not None and torch.isfinite(spread).all()


def test_mind_input_does_not_see_a_contrast_that_is_turned_over():
    network = build_network("regmamba", **SMALL, input="mind").eval()
    torch.nn.init.normal_(network.heads[0].weight, std=0.05)
    moving, fixed = images(12, 9, 13)
    as_it_is, turned = network(moving, fixed), network(1 - moving, 0.5 * fixed)
    torch.testing.assert_close(turned, as_it_is, rtol=1e-3, atol=1e-4)


def test_votes_are_drawn_in_training_only_where_the_configuration_says_so():
    for voting, changes in (("sampled", True), ("mean", False), ("equal", False)):
        network = build_network("regmamba", **SMALL, voting=voting)
        for head in network.heads:
            torch.nn.init.normal_(head.weight, std=0.5)
        first, second = network(*images(8, 8, 8)), network(*images(8, 8, 8))
        assert torch.equal(first, second) != changes
        assert all(posterior.post.requires_grad for posterior in network.voting) == (voting != "equal")


@pytest.mark.parametrize("name", ["input", "mixing", "matching", "voting"])
def test_an_unknown_structure_and_one_of_a_published_network_are_refused(name):
    with pytest.raises(InputError, match=f"no {name} of a network"):
        build_network("regmamba", **{name: "other"})
    other = {"input": "mind", "mixing": "conv", "matching": "concat", "voting": "equal"}[name]
    with pytest.raises(InputError, match=f"know no {name}"):
        build_network("v1", **{name: other})


def test_the_default_network_is_small_and_starts_at_the_identity():
    network = build_network()
    assert sum(parameter.numel() for parameter in network.parameters()) < 2e6
    flow, uncertainty = network.predict(*images(16, 16, 16))
    assert flow.abs().max() < 0.05 and uncertainty is None


def test_every_parameter_learns():
    network = small_network(moving_heads=True)
    network(*images(8, 12, 8)).square().mean().backward()
    idle = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0]
    # A convolution's bias before instance normalisation cannot matter, except on the encoder's unnormalised
    # path.
    assert all(name.endswith("conv.bias") for name in idle), idle


def test_a_pair_can_be_learnt():
    network = small_network()
    moving, fixed = torch.zeros(2, 1, 1, 16, 16, 16)
    moving[..., 4:10, 4:10, 4:10], fixed[..., 6:12, 4:10, 4:10] = 1, 1
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        flow = network(moving, fixed)
        loss = (warp(moving, flow) - fixed).square().mean() + 0.01 * flow.diff(dim=2).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.5 * losses[0]


def test_inference_repeats_and_training_draws_votes():
    network = small_network(moving_heads=True)
    pair = images(8, 8, 8)
    network.eval()
    assert torch.equal(network(*pair), network(*pair))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(*pair), network(*pair))


def test_uncertainty_repeats_with_its_seed_and_leaves_the_displacement_alone():
    network = small_network(moving_heads=True)
    pair = images(8, 10, 12)
    alone, _ = network.predict(*pair)
    first, uncertainty = network.predict(*pair, samples=3, seed=5)
    second, again = network.predict(*pair, samples=3, seed=5)
    assert torch.equal(first, alone) and torch.equal(first, second) and torch.equal(uncertainty, again)
    assert uncertainty.shape == (1, 1, 8, 10, 12) and uncertainty.max() > 0
    assert not torch.equal(uncertainty, network.predict(*pair, samples=3, seed=6)[1])
    assert network.training
    with pytest.raises(InputError, match="at least 2 samples"):
        network.predict(*pair, samples=1)


def test_uncertainty_is_the_deviation_of_the_drawn_displacements():
    network = small_network(moving_heads=True).eval()
    pair, generator = images(8, 8, 8), torch.Generator().manual_seed(1)
    _, uncertainty = network.predict(*pair, samples=4, seed=1)
    with torch.no_grad():
        features = network.encode(pair[0]), network.encode(pair[1])
        draws = torch.stack([network.decode(*features, network.votes(True, generator)) for _ in range(4)])
    expected = draws.var(0).mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(uncertainty, expected, rtol=1e-3, atol=1e-5)


def test_votes_follow_the_dirichlet_distribution():
    voting = DirectionVoting(3)
    torch.nn.init.constant_(voting.post, 0.5)
    with torch.no_grad():
        voting.post[0] = 2.0
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([voting.sample(generator) for _ in range(4000)]).detach()
    distribution = torch.distributions.Dirichlet(voting.post.detach().exp())
    torch.testing.assert_close(draws.sum(1), torch.ones(4000))
    torch.testing.assert_close(draws.mean(0), voting.mean().detach(), atol=0.01, rtol=0)
    torch.testing.assert_close(draws.var(0), distribution.variance, atol=0.003, rtol=0)
    voting.sample(generator)[0].backward()
    assert voting.post.grad.abs().min() > 0


def test_votes_stay_finite_for_extreme_posteriors():
    for value in (-50.0, 50.0):
        voting = DirectionVoting(4)
        torch.nn.init.constant_(voting.post, value)
        weights = voting.sample(torch.Generator().manual_seed(0))
        weights[1].backward()
        assert torch.isfinite(weights).all() and torch.isfinite(voting.post.grad).all()


def test_warping_by_whole_voxels_shifts_with_zeros_outside():
    image = torch.rand(2, 3, 4, 5, 6)
    flow = torch.zeros(2, 3, 4, 5, 6)
    flow[:, 1] = 2
    moved = warp(image, flow)
    torch.testing.assert_close(moved[:, :, :, :3], image[:, :, :, 2:], rtol=1e-4, atol=1e-5)
    assert moved[:, :, :, 3:].abs().max() < 1e-4
    edge = warp(image, flow, "border")
    torch.testing.assert_close(edge[:, :, :, 4], image[:, :, :, 4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_warping_does_not_depend_on_the_thread_count(threads, monkeypatch):
    image, flow = torch.rand(2, 3, 6, 5, 4), torch.randn(2, 3, 6, 5, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    expected = warp(image, flow)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(warp(image, flow), expected)
    assert torch.equal(warp(image[:1], flow[:1]), expected[:1])


def test_upsampling_keeps_a_linear_displacement_in_the_finer_grids_voxels():
    position = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(1, 3, 8, 4, 4)
    fine = upsample_flow(position, align_corners=False)
    expected = 2 * ((torch.arange(16.0) + 0.5) / 2 - 0.5)
    torch.testing.assert_close(fine[0, 0, 1:-1, 2, 2], expected[1:-1])


def test_a_single_voxel_is_not_normalised():
    assert torch.equal(instance_norm(torch.full((2, 3, 1, 1, 1), 5.0)), torch.full((2, 3, 1, 1, 1), 5.0))


def test_wrong_images_and_configurations_are_refused():
    network = small_network()
    with pytest.raises(InputError, match="must be"):
        network(torch.rand(1, 2, 8, 8, 8), torch.rand(1, 2, 8, 8, 8))
    with pytest.raises(InputError, match="share one grid"):
        network(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 9))
    for wrong, reason in (
        ({"variant": "v3"}, "not a network variant"),
        ({"channels": (8, 0)}, "positive integers"),
        ({"directions": ("diagonal",)}, "not a scan direction"),
        ({"depth": 3}, "unknown fields"),
    ):
        with pytest.raises(InputError, match=reason):
            build_network(**{"variant": "regmamba", **wrong})


@pytest.mark.parametrize("half", [False, True])
def test_a_weight_file_gives_back_the_network_and_its_card(half, tmp_path):
    network = small_network(moving_heads=True)
    path = tmp_path / "network.safetensors"
    save_network(network, path, {"data": "synthetic", "epochs": 3}, half=half)
    loaded = load_network(path)
    assert loaded.config == network.config and not loaded.training
    assert read_card(path) == {"data": "synthetic", "epochs": 3}
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    pair = images(8, 8, 8)
    tolerance = 0.05 if half else 1e-6
    assert (loaded.predict(*pair)[0] - network.predict(*pair)[0]).abs().max() <= tolerance


def test_damaged_or_foreign_weight_files_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(InputError, match="no weight file"):
        load_network(path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="safetensors"):
        load_network(path)
    save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(InputError, match="not a RegMamba weight file"):
        load_network(path)
    save_file({"a": torch.zeros(2)}, str(path), {"format": "regmamba-network-1"})
    with pytest.raises(InputError, match="no network configuration"):
        load_network(path)
    config = '{"channels": [4, 6]}'
    save_file({"a": torch.zeros(2)}, str(path), {"format": "regmamba-network-1", "config": config})
    with pytest.raises(InputError, match="do not fit"):
        load_network(path)
    with pytest.raises(InputError, match="JSON"):
        save_network(small_network(), path, {"network": small_network})


def test_a_configuration_survives_json():
    config = NetworkConfig(channels=[4, 8], directions=["axial+"])
    assert NetworkConfig.from_dict(config.to_dict()) == config
    assert config.channels == (4, 8)
