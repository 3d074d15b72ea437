"""The Triton steps of refinement against those of torch and against the numba engine. test_registration_triton.py runs
this file in a process of its own, since Triton decides at its first import whether it interprets: in the interpreter
(TRITON_INTERPRET=1), which is slow, hence the sizes; and on the GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_registration_engines import each, pair, tolerance
from test_registration_kernels import fractional, texture

from RegMambaLib.registration import engine_torch, torch_steps, triton_steps
from RegMambaLib.registration.engine_numba import NumbaEngine
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.refine import Pair
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial.fields import gaussian_taps

INTERPRETED = triton_steps.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPE = (7, 9, 6)
SHAPES = [SHAPE, (1, 8, 5), (6, 1, 7), (9, 4, 1), (1, 1, 1)]
CLOSE = 1e-5  # of the largest element; 1e-4 for LNCC, which divides by variances

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Few voxels must do for several programs, the last of them partly empty."""
    monkeypatch.setattr(triton_steps, "BLOCK", 128)


def volume(shape, seed=0):
    """Smooth texture, cut from a volume that is at least 9 voxels wide."""
    cut = texture(tuple(max(n, 9) for n in shape), seed)[tuple(slice(n) for n in shape)]
    return torch.from_numpy(np.ascontiguousarray(cut)).to(DEVICE)


def field(shape, seed=0, reach=2):
    return torch.from_numpy(fractional(shape, seed, reach)).to(DEVICE)


def inside_of(shape):
    """Most of the voxels, and always some."""
    inside = volume(shape, 7) > 0.4
    return inside if inside.any() else ~inside


def assert_same(name, *inputs, tolerance=CLOSE):
    """The step's results and what it does to its inputs, by Triton and by torch."""
    copies = [value.clone() if isinstance(value, torch.Tensor) else value for value in inputs]
    ours, theirs = getattr(triton_steps, name)(*inputs), getattr(torch_steps, name)(*copies)
    ours, theirs = (result if isinstance(result, tuple) else (result,) for result in (ours, theirs))
    changed = [
        (a, b) for a, b in zip(inputs, copies, strict=True) if isinstance(a, torch.Tensor) and a.is_floating_point()
    ]
    for one, other in [*zip(ours, theirs, strict=True), *changed]:
        assert one.shape == other.shape and torch.isfinite(one).all()
        assert (one - other).abs().max() <= tolerance * other.abs().max(), name


@shapes
@pytest.mark.parametrize(("window", "weighted"), [(3, False), (5, True), (7, False)])
def test_the_lncc_force_equals_that_of_torch(shape, window, weighted):
    fixed, moving, inside = volume(shape), volume(shape, 1), inside_of(shape)
    weight = inside * (volume(shape, 2) if weighted else 1.0)
    moments = torch_steps.fixed_moments(fixed, window // 2)
    assert_same("lncc_force", fixed, moving, field(shape), moments, weight, inside, window // 2, tolerance=1e-4)


@shapes
def test_the_force_of_features_equals_that_of_torch(shape):
    fixed, moving = (torch.stack([volume(shape, seed + n) for n in range(3)]) for seed in (0, 5))
    assert_same("channel_force", fixed, moving, field(shape), volume(shape, 9) * inside_of(shape))


@shapes
@pytest.mark.parametrize("classes", [2, 5])
def test_the_force_of_labels_equals_that_of_torch(shape, classes):
    fixed, moving = ((classes * volume(shape, seed)).int().clamp_max(classes - 1) for seed in (0, 1))
    inside = inside_of(shape)
    count = torch.bincount(fixed[inside], minlength=classes).float()
    assert_same("label_force", fixed, moving, count, field(shape), inside)


@shapes
@pytest.mark.parametrize("sigma", [0.0, 0.8, 2.1])
def test_smoothing_equals_that_of_torch(shape, sigma):
    assert_same("smooth", field(shape), torch.from_numpy(gaussian_taps(sigma)).to(DEVICE), inside_of(shape))


@shapes
def test_adam_equals_that_of_torch(shape):
    floor = torch.tensor(1e-4, device=DEVICE)
    for iteration in (1, 7):
        assert_same("adam", field(shape), field(shape, 1), volume(shape, 2), iteration, floor)


@shapes
def test_composition_equals_that_of_torch(shape):
    for largest in (2.5, 0.0):
        assert_same("compose", field(shape), field(shape, 1), torch.tensor(largest, device=DEVICE), 0.7)


def test_positions_on_voxels_and_beyond_the_borders_take_the_same_slopes():
    u = torch.from_numpy(np.random.default_rng(0).integers(-8, 9, (3, *SHAPE)).astype(np.float32)).to(DEVICE)
    features = volume(SHAPE)[None], volume(SHAPE, 1)[None]
    assert_same("channel_force", *features, u, torch.ones(SHAPE, device=DEVICE))
    assert_same("compose", field(SHAPE), u, torch.tensor(1.0, device=DEVICE), 1.0)


def test_constant_images_pull_nowhere():
    flat = torch.ones(SHAPE, device=DEVICE)
    everywhere = flat, flat > 0, 2  # weight, inside, radius
    for other in (flat, volume(SHAPE)):
        assert_same("lncc_force", other, flat, field(SHAPE), torch_steps.fixed_moments(other, 2), *everywhere)
    moments = torch_steps.fixed_moments(flat, 2)
    force, similarity = triton_steps.lncc_force(flat, flat, field(SHAPE), moments, *everywhere)
    assert not force.any() and similarity.isfinite()
    still, largest = triton_steps.adam(force, force.clone(), force[0].clone(), 1, torch.tensor(1e-20, device=DEVICE))
    u = field(SHAPE, 3)
    assert not largest.any() and torch.equal(triton_steps.compose(u, still, largest, 0.7), u)


@each
def test_whole_steps_equal_those_of_both_other_engines(metric, weighted, settings, monkeypatch):
    """To 0.002 voxels; without smoothing, where Adam divides rounding errors by the floor, to 0.01."""
    both, start = pair(SHAPE, weighted, active=weighted), fractional(SHAPE, reach=1)
    numba, plain = NumbaEngine(both, start, settings, metric), TorchEngine(both, start, settings, metric)
    monkeypatch.setattr(engine_torch, "steps_for", lambda device: triton_steps)
    fused = TorchEngine(both, start, settings, metric, DEVICE)
    for _ in range(2):
        ours, *others = (float(engine.step()) for engine in (fused, plain, numba))
        assert others == pytest.approx([ours] * 2, rel=1e-4)
    for other in (plain, numba):
        np.testing.assert_allclose(fused.displacement(), other.displacement(), atol=tolerance(settings))
    assert np.abs(fused.displacement() - start).max() > 0.1


def test_a_start_that_lies_otherwise_in_memory_is_the_same_start(monkeypatch):
    monkeypatch.setattr(engine_torch, "steps_for", lambda device: triton_steps)
    rng = np.random.default_rng(0)
    fixed, moving = rng.random((2, 7, 6, 9), np.float32)
    start = rng.normal(size=(3, 7, 6, 9)).astype(np.float32)
    pair = Pair(fixed, moving, np.empty((0, 0, 0), np.float32))
    found = []
    for given in (start, np.moveaxis(np.ascontiguousarray(np.moveaxis(start, 0, -1)), -1, 0)):
        engine = TorchEngine(pair, given, Settings(), "lncc", DEVICE)
        engine.step()
        found.append(engine.displacement())
    np.testing.assert_array_equal(*found)


def test_the_check_passes_and_notices_wrong_numbers(monkeypatch):
    triton_steps.check(torch.device(DEVICE))
    monkeypatch.setattr(torch_steps, "compose", lambda u, *rest: u)
    with pytest.raises(RuntimeError, match="compose"):
        triton_steps.check(torch.device(DEVICE))


@pytest.mark.skipif(not INTERPRETED, reason="the GPU takes the Triton kernels of its own accord")
def test_interpreted_kernels_are_never_chosen_unasked():
    assert engine_torch.steps_for(torch.device("cpu")) is torch_steps


@pytest.mark.skipif(INTERPRETED, reason="needs the GPU")
def test_the_gpu_takes_the_triton_kernels():
    assert engine_torch.steps_for(torch.device("cuda")) is triton_steps
