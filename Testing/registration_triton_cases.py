"""The Triton steps of refinement against those of torch and against the numba engine. test_registration_triton.py runs
this file in a process of its own, since Triton decides at its first import whether it interprets: in the interpreter
(TRITON_INTERPRET=1), which is slow, hence the sizes; and on the GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_displacement
from test_registration_engines import each, pair, tolerance
from test_registration_kernels import fractional, texture
from test_registration_repair import folded_field, still_at_the_border

from RegMambaLib.registration import engine_torch, torch_steps, triton_steps
from RegMambaLib.registration.engine_numba import NumbaEngine
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.refine import Pair
from RegMambaLib.registration.repair import repair_and_invert
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial import fields
from RegMambaLib.spatial.fields import gaussian_taps
from RegMambaLib.spatial.jacobian import jacobian_determinant

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
    monkeypatch.setattr(triton_steps, "INVERT_BLOCK", 256)


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
        inputs = other, flat, field(SHAPE), torch_steps.fixed_moments(other, 2), *everywhere
        assert_same("lncc_force", *inputs, tolerance=1e-4)
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
    numba, plain = NumbaEngine(both, start.copy(), settings, metric), TorchEngine(both, start, settings, metric)
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


def noise(shape, size=3.0):
    """Folded nearly everywhere, but for the border, where it is 0."""
    return still_at_the_border((size * np.random.default_rng(0).normal(size=(3, *shape))).astype(np.float32))


TO_REPAIR = {
    "smooth": still_at_the_border(random_displacement((10, 13, 11), sigma=2, smallest=0.3)),
    "squeezed": still_at_the_border(random_displacement((11, 12, 10), sigma=1.5, smallest=0.15)),
    "folded": still_at_the_border(folded_field((12, 11, 13), (6, 5, 6), width=1.5)[0]),
    "noise": noise((7, 8, 9)),
    "still": np.zeros((3, 4, 3, 5), np.float32),
}


@pytest.mark.parametrize("u", TO_REPAIR.values(), ids=TO_REPAIR)
def test_the_smallest_determinants_equal_those_of_numba(u):
    ours, theirs = (
        triton_steps.smallest_determinants(torch.from_numpy(u).to(DEVICE)),
        jacobian_determinant(u, strict=True),
    )
    np.testing.assert_allclose(ours.cpu(), theirs, atol=1e-6 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("name", TO_REPAIR)
@pytest.mark.parametrize("begun", [False, True])
def test_the_inverse_equals_that_of_numba(name, begun):
    """To rounding: it begins at the same place. Where there are folds it is no inverse, and rounding decides."""
    u = TO_REPAIR[name]
    start = -0.9 * u if begun else None
    theirs, left = fields.invert(u, start=start)
    ours, error = triton_steps.invert(*(None if a is None else torch.from_numpy(a).to(DEVICE) for a in (u, start)))
    same = np.abs(ours.cpu().numpy() - theirs).max(0) < 1e-4
    assert same.mean() > (0.95 if name == "noise" else 0.999)
    np.testing.assert_allclose(error.cpu().numpy()[same], left[same], rtol=1e-3, atol=1e-4)
    if left.max() < 0.005:
        assert error.max() < 0.0051


@shapes
def test_an_inverse_that_leads_out_of_the_grid_is_as_good_as_that_of_numba(shape):
    u = np.full((3, *shape), 0.2, np.float32) * np.arange(shape[2], dtype=np.float32) + np.float32(3.7)
    ours, error = triton_steps.invert(torch.from_numpy(u).to(DEVICE))
    theirs, left = fields.invert(u)
    assert error.max() < 0.0051 and left.max() < 0.0051
    np.testing.assert_allclose(ours.cpu(), theirs, atol=0.02)


@pytest.mark.parametrize("name", ["squeezed", "folded", "noise"])
@pytest.mark.parametrize("repair", [True, False])
def test_repair_on_the_card_equals_that_on_the_cpu(name, repair, monkeypatch):
    monkeypatch.setattr(engine_torch, "triton_for", lambda device: triton_steps)
    asked, invert = [], triton_steps.invert

    def counted(*given, **named):
        asked.append(given)
        return invert(*given, **named)

    monkeypatch.setattr(triton_steps, "invert", counted)
    device = "cpu:0" if INTERPRETED else "cuda"  # "cpu" is numba's
    there, here = (repair_and_invert(TO_REPAIR[name].copy(), 1.0, repair=repair, device=d) for d in (device, "cpu"))
    assert asked and (there.repaired, there.folded) == (here.repaired, here.folded)
    np.testing.assert_allclose(there.displacement, here.displacement, atol=1e-5)
    if repair:
        np.testing.assert_allclose(there.inverse, here.inverse, atol=0.01)
        assert there.error == pytest.approx(here.error, abs=1e-3)


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (torch_steps, "compose", lambda u, *rest: u),
        (triton_steps, "invert", lambda u, **more: (-0.99 * u, 0 * u[0])),
        (triton_steps, "smallest_determinants", lambda u: u[0]),
    ],
    ids=["compose", "invert", "determinants"],
)
def test_the_check_passes_and_notices_wrong_numbers(module, name, wrong, monkeypatch):
    triton_steps.check(torch.device(DEVICE))
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(RuntimeError, match="by Triton"):
        triton_steps.check(torch.device(DEVICE))


@pytest.mark.skipif(not INTERPRETED, reason="the GPU takes the Triton kernels of its own accord")
def test_interpreted_kernels_are_never_chosen_unasked():
    assert engine_torch.steps_for(torch.device("cpu")) is torch_steps


@pytest.mark.skipif(INTERPRETED, reason="needs the GPU")
def test_the_gpu_takes_the_triton_kernels():
    assert engine_torch.steps_for(torch.device("cuda")) is triton_steps
