"""Structures that a network recognises: when they are believed, and how their maps pull."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from RegMambaLib.networks.structures import NAMES, StructureNet, save_structures
from RegMambaLib.registration import kernels, structures
from RegMambaLib.registration import refine as refinement
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.map_pull import MapPull, maps_at_level
from RegMambaLib.registration.network import shipped_weights
from RegMambaLib.registration.refine import Pair, refine
from RegMambaLib.registration.settings import Settings
from RegMambaLib.registration.structures import FRAME, anatomy_window, believable, structure_maps, wanted
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
    return Pair(fixed, moving, EVERYWHERE, fixed_maps=maps, moving_maps=np.roll(maps, 1, axis=2))


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


def test_a_window_holds_the_anatomy_in_the_middle_of_what_the_network_was_trained_on():
    mask = np.zeros((90, 90, 60), bool)
    mask[70:88, 5:20, 20:40] = True
    inner, frame, size = anatomy_window(mask)
    assert size == FRAME
    shown = np.zeros(size, bool)
    shown[frame] = mask[inner]
    assert shown.sum() == mask.sum()
    box = fields.box_of(shown)
    for span, length in zip(box, size, strict=True):
        assert abs(span.start - (length - span.stop)) <= 1
    mask[:] = True
    assert anatomy_window(mask).size == (96, 96, 80)
    assert anatomy_window(mask[:84]).size == FRAME
    assert anatomy_window(np.zeros((4, 4, 4), bool)) is None


def test_maps_have_the_shape_of_the_images_and_nothing_in_the_background(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_structures(StructureNet((4, 8)), tmp_path / "small.safetensors")
    network = structures.load_structure_network(tmp_path / "small.safetensors")
    monkeypatch.setattr(structures, "load_structure_network", lambda: network)
    images = [np.zeros((20, 23, 19), np.float32) for _ in range(2)]
    for seed, image in enumerate(images):
        image[3:17, 4:20, 5:15] = 0.2 + 0.8 * blobs((14, 16, 10), seed)
    assert structure_maps(*images) is None  # untrained, it finds no brain
    monkeypatch.setattr(structures, "believable", lambda values, shares: True)
    for image, maps in zip(images, structure_maps(*images), strict=True):
        assert maps.shape == (*image.shape, len(structures.CHANNELS)) and maps.dtype == np.float32
        assert (maps[image == 0] == 0).all() and (maps[image > 0] > 0).any()
    assert structure_maps(np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.float32)) is None


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


def test_maps_stay_on_their_grid_at_finer_levels_and_follow_coarser_ones(pair):
    assert maps_at_level(pair)[0].shape == (16, 18, 20, 2)
    fixed, moving, weight = maps_at_level(pair.at((8, 9, 10)))
    assert fixed.shape == moving.shape == (8, 9, 10, 2) and weight.size == 0
    np.testing.assert_allclose(fixed.mean((0, 1, 2)), pair.fixed_maps.mean((0, 1, 2)), atol=1e-4)


def test_maps_lead_where_images_tell_nothing(pair):
    settings = Settings(iterations=(10, 10, 2))
    with_them, without = (refine(p, settings) for p in (pair, Pair(pair.fixed, pair.moving, EVERYWHERE)))
    inside = (slice(6, -6),) * 3
    assert with_them[2][inside].mean() > 0.5 + without[2][inside].mean()


def test_both_engines_pull_alike(pair, monkeypatch):
    weight = np.ones(pair.fixed.shape, np.float32)
    weight[:, :10] = 0
    weighted = Pair(pair.fixed, pair.moving, weight, fixed_maps=pair.fixed_maps, moving_maps=pair.moving_maps)
    for given in (pair, weighted):
        settings = Settings(iterations=(1, 1))
        ours = refine(given, settings)
        with monkeypatch.context() as patch:
            patch.setattr(
                refinement,
                "_engine",
                lambda device, *rest, floor: TorchEngine(*rest, "cpu", floor=floor),
            )
            theirs = refine(given, settings)
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_maps_that_agree_pull_nowhere(pair):
    same = Pair(pair.fixed, pair.moving, EVERYWHERE, fixed_maps=pair.fixed_maps, moving_maps=pair.fixed_maps)
    force = np.ones((3, *pair.fixed.shape), np.float32)
    MapPull(same).add(np.zeros_like(force), fields.whole(pair.fixed.shape), force)
    assert (force == 1).all()
