"""Structures that a network recognises: when they are believed, and how their maps pull."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from RegMambaLib.networks.structures import NAMES, StructureNet, save_structures
from RegMambaLib.registration import kernels, structures
from RegMambaLib.registration import refine as refinement
from RegMambaLib.registration.engine_numba import NumbaEngine
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.map_pull import MapPull, weight_at
from RegMambaLib.registration.network import shipped_weights
from RegMambaLib.registration.refine import Maps, Pair, refine
from RegMambaLib.registration.settings import Settings
from RegMambaLib.registration.structures import (
    CHANNELS,
    TISSUES,
    Brain,
    believable,
    recognised,
    structure_maps,
    wanted,
)
from RegMambaLib.spatial import fields

EVERYWHERE = np.empty((0, 0, 0), np.float32)


def blobs(shape, seed, sigma=3.0):
    volume = fields.smooth(np.random.default_rng(seed).random(shape, np.float32), sigma)
    return ((volume - volume.min()) / np.ptp(volume)).astype(np.float32)


@pytest.fixture
def pair():
    """Noise without any likeness, and maps at half the resolution, of which the moving ones lie 2 voxels further."""
    fixed, moving = (np.random.default_rng(seed).random((32, 36, 40), np.float32) for seed in (1, 2))
    maps = np.stack([blobs((16, 18, 20), seed) for seed in (3, 4)], -1)
    return Pair(fixed, moving, EVERYWHERE, maps=(Maps(maps, np.roll(maps, 1, axis=2), 0.25),))


@pytest.fixture
def sharper(pair):
    """The pair with a second map, on the grid of the images."""
    fine = [blobs(pair.fixed.shape, seed)[..., None] for seed in (5, 6)]
    return replace(pair, maps=(*pair.maps, Maps(*fine, 0.3)))


def on_torch(monkeypatch, pair, settings):
    """`refine` by the other engine, on the CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(refinement, "_engine", lambda device, *rest, floor: TorchEngine(*rest, device="cpu", floor=floor))
        return refine(pair, settings)


def test_they_are_looked_for_with_the_weights_for_t1_brains_and_before_a_refinement_only():
    assert wanted(Settings(), "brain-t1", alike=True)
    assert not wanted(Settings(), "brain-t1", alike=False)
    assert not wanted(Settings(), "general", alike=True)
    assert not wanted(Settings(), "none", alike=True)
    assert not wanted(Settings(structures=False), "brain-t1", alike=True)
    assert not wanted(Settings(iterations=()), "brain-t1", alike=True)


def test_their_weights_are_no_weights_of_a_registration_network():
    assert "structures" not in shipped_weights()
    assert structures.STRUCTURE_WEIGHTS.is_file()


def shares_of(amounts, doubt=0.02):
    """Probabilities (classes, n) of a brain with these amounts of structures, and a brightness for each voxel."""
    numbers = np.repeat(np.arange(len(NAMES)), [amounts.get(name, 0) for name in NAMES])
    shares = torch.full((len(NAMES), numbers.size), doubt / (len(NAMES) - 1))
    shares[torch.from_numpy(numbers), torch.arange(numbers.size)] = 1 - doubt
    return shares, numbers


T1 = {"white matter": 4000, "cortex": 4500, "thalamus": 150, "caudate": 80, "putamen": 100, "hippocampus": 90}
T1 |= {"lateral ventricle": 100, "cerebellar cortex": 700}


@pytest.mark.parametrize(
    ("change", "white", "doubt", "expected"),
    [
        ({}, 0.8, 0.02, True),
        ({}, 0.4, 0.02, False),  # white matter darker than cortex, as in T2
        ({"putamen": 10}, 0.8, 0.02, False),
        ({"white matter": 1000}, 0.8, 0.02, False),
        ({}, 0.8, 0.3, False),  # hardly anything is certain
        ({"white matter": 0, "cortex": 0}, 0.8, 0.02, False),
    ],
)
def test_only_what_looks_like_a_t1_brain_is_believed(change, white, doubt, expected):
    shares, numbers = shares_of(T1 | change, doubt)
    values = torch.where(torch.from_numpy(numbers) == NAMES.index("white matter"), white, 0.5)
    assert believable(values, shares) is expected


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A small network instead of the shipped one."""
    torch.manual_seed(0)
    save_structures(StructureNet((4, 8)), tmp_path / "small.safetensors")
    network = structures.load_structure_network(tmp_path / "small.safetensors")
    monkeypatch.setattr(structures, "load_structure_network", lambda: network)


def cut_out(shape, seed):
    """Blobs within a box, background around it."""
    image, inside = np.zeros(shape, np.float32), tuple(slice(n // 6, n - n // 6) for n in shape)
    image[inside] = 0.2 + 0.8 * blobs(shape, seed)[inside]
    return image


def believe_all(monkeypatch):
    monkeypatch.setattr(structures, "believable", lambda values, shares: True)


def test_what_is_recognised_has_the_shape_of_the_images_and_nothing_in_the_background(untrained, monkeypatch):
    images = [cut_out((20, 23, 19), seed) for seed in range(2)]
    assert recognised(*images) is None  # untrained, it finds no brain
    believe_all(monkeypatch)
    for image, found in zip(images, recognised(*images), strict=True):
        for part, names in zip(found, (CHANNELS, TISSUES), strict=True):
            assert part.shape == (*image.shape, len(names)) and part.dtype == np.float32
            assert (part[image == 0] == 0).all() and (part[image > 0] > 0).any()
        assert (found.tissues[image > 0] > 0).all() and found.tissues.sum(-1).max() < 1
    assert recognised(np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.float32)) is None


def test_maps_of_structures_are_as_coarse_as_the_network_sees_them_and_that_of_the_cortex_as_sharp_as_the_images(
    untrained, monkeypatch
):
    pair = Pair(*(cut_out((40, 45, 37), seed) for seed in range(2)), EVERYWHERE)
    level = pair.at((20, 23, 19))
    assert structure_maps(pair, level) == ()  # untrained, it finds no brain
    believe_all(monkeypatch)
    found = recognised(level.fixed, level.moving)
    coarse, cortex = structure_maps(pair, level)
    assert (coarse.weight, cortex.weight) == (structures.STRUCTURE_WEIGHT, structures.CORTEX_WEIGHT)
    for side, brain in zip(("fixed", "moving"), found, strict=True):
        own, sharp, image = (getattr(given, side) for given in (coarse, cortex, pair))
        np.testing.assert_array_equal(own, brain.channels)
        assert sharp.shape == (*image.shape, 1) and sharp.dtype == np.float32
        assert (sharp[image == 0] == 0).all()
    nothing = np.zeros((8, 8, 8), np.float32)
    assert structure_maps(*(Pair(nothing, nothing, EVERYWHERE),) * 2) == ()


def test_the_map_of_the_cortex_is_made_of_the_shares_of_white_matter_cortex_and_fluid_of_each_image(monkeypatch):
    pair = Pair(*(cut_out((12, 10, 14), seed) for seed in range(2)), EVERYWHERE)
    level = pair.at((6, 5, 7))
    channels, tissues = (np.zeros((6, 5, 7, len(names)), np.float32) for names in (CHANNELS, TISSUES))
    found = Brain(channels, tissues), Brain(channels + 1, tissues + 1)
    monkeypatch.setattr(structures, "recognised", lambda fixed, moving, device: found)
    calls = []
    monkeypatch.setattr(
        structures, "cortex_map", lambda *given: calls.append(given) or np.float32(len(calls)) + given[0]
    )
    cortex = structure_maps(pair, level)[1]
    for side, (given, own) in enumerate(zip(calls, ("fixed", "moving"), strict=True)):
        assert given[0] is getattr(pair, own) and given[1] is getattr(level, own)
        assert given[2] is found[side].tissues
        np.testing.assert_array_equal(getattr(cortex, own)[..., 0], side + 1 + getattr(pair, own))
    assert TISSUES == ("white matter", "cortex", "background")


def test_a_field_is_added_at_another_resolution_within_spans_only():
    field = np.stack([blobs((7, 8, 9), seed) for seed in range(3)])
    spans = fields.whole((13, 16, 20))
    spans[4] = 0
    out = np.ones((3, 13, 16, 20), np.float32)
    kernels.add_resized(field, np.float32(2), spans, out)
    expected = 1 + 2 * np.stack([fields.resize(channel, (13, 16, 20)) for channel in field])
    expected[:, 4] = 1
    np.testing.assert_allclose(out, expected, atol=1e-5)
    everywhere = fields.whole((13, 16, 20))
    assert kernels.mean_square(out, everywhere) == pytest.approx(np.square(out).sum(0, dtype=float).mean(), rel=1e-4)


@pytest.mark.parametrize("shape", [(16, 18, 20), (11, 36, 7)])
def test_a_displacement_is_sampled_on_a_coarser_grid_alike_on_every_device(pair, shape):
    u = np.stack([5 * blobs(pair.fixed.shape, seed, 4.0) for seed in range(3)])
    out = np.zeros((3, *shape), np.float32)
    kernels.sample_displacement(u, fields.whole(shape), out)
    smooth = fields.resize_displacement(u, shape)
    assert np.abs(out - smooth).max() < 0.6
    from RegMambaLib.registration import torch_steps

    np.testing.assert_allclose(torch_steps.sampled_displacement(torch.from_numpy(u), shape).numpy(), out, atol=1e-5)
    np.testing.assert_allclose(
        torch_steps.resized(torch.from_numpy(out), u.shape[1:]).numpy(),
        np.stack([fields.resize(channel, u.shape[1:]) for channel in out]),
        atol=1e-4,
    )


def test_maps_stay_on_their_grid_at_finer_levels_and_follow_coarser_ones(sharper):
    coarse, fine = sharper.maps
    assert coarse.at((32, 36, 40)) is coarse and fine.at((32, 36, 40)) is fine
    half = sharper.at((16, 18, 20))
    assert half.maps[0] is coarse
    # Sharp maps are smoothed before they become coarser, as images are.
    smoothed = refinement.shrink(np.ascontiguousarray(fine.moving[..., 0]), (16, 18, 20))
    np.testing.assert_array_equal(half.maps[1].moving[..., 0], smoothed)
    quarter = sharper.at((8, 9, 10))
    for maps, own in zip(sharper.maps, quarter.maps, strict=True):
        assert own.weight == maps.weight
        for side in (own.fixed, own.moving):
            assert side.shape == (8, 9, 10, maps.fixed.shape[3])
            assert side.dtype == np.float32 and side.flags.c_contiguous
    np.testing.assert_allclose(quarter.maps[0].fixed.mean((0, 1, 2)), coarse.fixed.mean((0, 1, 2)), atol=1e-3)
    assert coarse.at((8, 36, 40)).fixed.shape[:3] == (8, 18, 20)  # as coarse as either along each axis


def test_where_maps_are_compared_is_known_on_their_grid():
    assert weight_at(EVERYWHERE, (4, 5, 6)).size == 0
    half = np.zeros((8, 8, 8), np.float32)
    half[:4] = 1
    np.testing.assert_array_equal(weight_at(half, (4, 4, 4))[:, 0, 0], [1, 1, 0, 0])


def test_maps_lead_where_images_tell_nothing(pair):
    settings = Settings(iterations=(10, 10, 2))
    with_them, without = (refine(p, settings) for p in (pair, replace(pair, maps=())))
    inside = (slice(6, -6),) * 3
    assert with_them[2][inside].mean() > 0.5 + without[2][inside].mean()


@pytest.mark.parametrize("which", [slice(1), slice(1, 2), slice(2)], ids=["coarse", "as fine as the images", "both"])
def test_both_engines_pull_alike(sharper, monkeypatch, which):
    pair = replace(sharper, maps=sharper.maps[which])
    weight = np.ones(pair.fixed.shape, np.float32)
    weight[:, :10] = 0
    active = np.zeros(pair.fixed.shape, bool)
    active[4:28, 5:30, 6:36] = True
    inside = fields.within(fields.spans_of(active, 1), active.shape[2])
    cut = replace(pair, fixed=pair.fixed * inside, moving=pair.moving * inside, active=active)
    for given in (pair, replace(pair, weight=weight), cut):
        # One step on either level. The second of two begins within noise, where rounding takes voxels to other cells.
        for iterations, share in (((1,), 1.0), ((1, 0), 1.0), ((1, 1), 0.999)):
            settings = Settings(iterations=iterations)
            ours = refine(given, settings)
            assert np.abs(ours - refine(replace(given, maps=()), settings)).max() > 0.05
            gap = np.abs(ours - on_torch(monkeypatch, given, settings))
            assert np.quantile(gap, share) < 1e-3 and gap.mean() < 1e-4


def test_each_of_several_maps_pulls_what_it_counts_of_what_the_images_pull(sharper):
    """However many there are, and on whatever grids."""
    start, spans = np.zeros((3, *sharper.fixed.shape), np.float32), fields.whole(sharper.fixed.shape)
    ours, theirs = (kind(sharper, start, Settings(), "lncc") for kind in (NumbaEngine, TorchEngine))
    ours._image_force()
    image = kernels.mean_square(ours.force, spans)
    alone = []
    for maps, pull in zip(sharper.maps, ours.pulls, strict=True):
        alone.append(np.zeros_like(start))
        pull.add(start, alone[-1], image, ours.buffer)
        shape = maps.fixed.shape[:3]
        own = np.stack([fields.resize(axis, shape) for axis in alone[-1]]) if shape != spans.shape[:2] else alone[-1]
        assert 0.7 * maps.weight < np.sqrt(kernels.mean_square(own, fields.whole(shape)) / image) < 1.001 * maps.weight
    assert np.sqrt(kernels.mean_square(alone[1], spans) / image) == pytest.approx(sharper.maps[1].weight, rel=1e-4)
    together = theirs._with_maps(theirs._image_force()[0]).numpy()
    np.testing.assert_allclose(together, ours.force + sum(alone), atol=1e-3 * np.abs(together).max())


def test_the_order_of_the_maps_does_not_matter(sharper, monkeypatch):
    settings, other_way = Settings(iterations=(1,)), replace(sharper, maps=sharper.maps[::-1])
    np.testing.assert_allclose(refine(sharper, settings), refine(other_way, settings), atol=1e-4)
    ours, theirs = (on_torch(monkeypatch, given, settings) for given in (sharper, other_way))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_maps_that_count_nothing_change_nothing(sharper, monkeypatch):
    settings = Settings(iterations=(2, 1))
    idle = replace(sharper, maps=tuple(maps._replace(weight=0.0) for maps in sharper.maps))
    one = replace(sharper, maps=(sharper.maps[0], idle.maps[1]))
    for refined in (refine, lambda *given: on_torch(monkeypatch, *given)):
        np.testing.assert_array_equal(refined(idle, settings), refined(replace(sharper, maps=()), settings))
        np.testing.assert_array_equal(refined(one, settings), refined(replace(one, maps=one.maps[:1]), settings))


def test_maps_that_agree_pull_nowhere(sharper):
    for maps in sharper.maps:
        same = maps._replace(moving=maps.fixed)
        force = np.ones((3, *sharper.fixed.shape), np.float32)
        pull = MapPull(same, EVERYWHERE, fields.whole(sharper.fixed.shape), sharper.fixed.shape)
        pull.add(np.zeros_like(force), force, 3.0, np.empty_like(force))
        assert (force == 1).all()
        engine = TorchEngine(replace(sharper, maps=(same,)), np.zeros_like(force), Settings(), "lncc")
        assert (engine._with_maps(torch.ones(force.shape)) == 1).all()
