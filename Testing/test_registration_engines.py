"""The torch engine computes what the numba engine computes: forces, single steps, and a whole refinement.

With the steps of torch; test_registration_triton.py has those of Triton.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import made_grid, made_head, made_labels, random_displacement, sampled
from scipy import ndimage
from test_registration_kernels import fractional, label_map, texture

from RegMambaLib.losses.mind import mind_ssc
from RegMambaLib.registration import refine as refinement
from RegMambaLib.registration import torch_steps
from RegMambaLib.registration.engine_numba import NumbaEngine
from RegMambaLib.registration.engine_torch import TorchEngine
from RegMambaLib.registration.network import mean_lncc
from RegMambaLib.registration.refine import (
    Maps,
    Pair,
    level_shapes,
    pick,
    refine,
    shrink,
    to_shape,
    with_extra_iterations,
)
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial import fields

SHAPE = (16, 15, 14)
NO_WEIGHT = np.empty((0, 0, 0), np.float32)
CASES = {
    "lncc": ("lncc", False, Settings()),
    "lncc, weighted": ("lncc", True, Settings(window=3)),
    "lncc, wide window": ("lncc", False, Settings(window=9)),
    "lncc, guided": ("lncc", False, Settings(guide=True, guide_weight=2.0)),
    "mind": ("mind", False, Settings()),
    "mind, weighted": ("mind", True, Settings()),
    "mind, guided": ("mind", True, Settings(guide=True)),
    "no smoothing": ("lncc", False, Settings(smooth_update=0.0, smooth_total=0.0)),
}
each = pytest.mark.parametrize(("metric", "weighted", "settings"), CASES.values(), ids=CASES.keys())


def volume(shape, seed=0):
    """Texture, cut from a volume of at least 9 voxels on every side."""
    return np.ascontiguousarray(texture(tuple(max(n, 9) for n in shape), seed)[tuple(slice(n) for n in shape)])


def pair(shape=SHAPE, weighted=False, guided=True, active=False):
    images, weight = [volume(shape), volume(shape, 1)], volume(shape, 5) if weighted else NO_WEIGHT
    labels = (label_map(shape, 4, 0), label_map(shape, 4, 1), 4) if guided else (None, None, 0)
    if not active:
        return Pair(*images, weight, *labels)
    active = np.zeros(shape, bool)
    active[tuple(slice(n // 2) for n in shape)] = True
    inside = fields.within(fields.spans_of(active, 1), shape[2])
    return Pair(*(image * inside for image in images), weight, *labels, active)


def engines(*chosen, **options):
    metric, weighted, settings = chosen
    both = pair(weighted=weighted, **options)
    return (
        engine(both, fractional(both.fixed.shape, reach=1), settings, metric) for engine in (NumbaEngine, TorchEngine)
    )


def tolerance(settings):
    """Voxels after a few steps; where little smooths the force, Adam divides rounding errors by the floor."""
    return 2e-3 if settings.smooth_update and settings.window > 3 else 1e-2


@each
def test_both_engines_feel_the_same_force(metric, weighted, settings):
    numba_engine, torch_engine = engines(metric, weighted, settings)
    similarity = numba_engine._image_force()
    force, their_similarity = torch_engine._image_force()
    assert similarity == pytest.approx(float(their_similarity), rel=1e-5)
    if settings.guide:
        numba_engine._add_label_force()
        force = torch_engine._with_labels(force)
    np.testing.assert_allclose(numba_engine.force, force.numpy(), atol=2e-4 * np.abs(numba_engine.force).max())


@each
@pytest.mark.parametrize("active", [False, True])
def test_both_engines_take_the_same_steps(metric, weighted, settings, active):
    ours, theirs = engines(metric, weighted, settings, active=active)
    start = ours.displacement().copy()
    for _ in range(2):
        assert ours.step() == pytest.approx(float(theirs.step()), rel=1e-4)
    moved = np.abs(ours.displacement() - start).max(0) > 0
    assert np.abs(ours.displacement() - start).max() > 0.3 and moved.all() != active
    np.testing.assert_allclose(theirs.displacement(), ours.displacement(), atol=tolerance(settings))
    np.testing.assert_array_equal(theirs.displacement()[:, ~moved], start[:, ~moved])


@pytest.mark.parametrize("shape", [(1, 9, 8), (7, 1, 9), (8, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_volumes_one_voxel_thin_move_alike(metric, shape):
    ours, theirs = engines(metric, False, Settings(), shape=shape, guided=False)
    for _ in range(2):
        assert ours.step() == pytest.approx(float(theirs.step()), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(theirs.displacement(), ours.displacement(), atol=2e-3)


@pytest.mark.parametrize("metric", ["lncc", "mind"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nothing_moves_across_a_few_slices(metric, axis):
    weight = np.zeros(SHAPE, np.float32)
    np.moveaxis(weight, axis, 0)[5:8] = 1
    both, start = replace(pair(guided=False), weight=weight), np.zeros((3, *SHAPE), np.float32)
    for engine in (kind(both, start, Settings(), metric) for kind in (NumbaEngine, TorchEngine)):
        engine.step()
        moved = np.abs(engine.displacement()).reshape(3, -1).max(axis=1)
        assert moved[axis] == 0 and np.delete(moved, axis).min() > 0.05


@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_constant_images_leave_the_start_alone_to_the_last_bit(metric):
    flat, start = np.ones(SHAPE, np.float32), fractional(SHAPE, reach=1)
    engine = TorchEngine(Pair(flat, flat, NO_WEIGHT), start, Settings(), metric)
    for _ in range(2):
        assert np.isfinite(float(engine.step()))
    np.testing.assert_array_equal(engine.displacement(), start)


def test_an_iteration_never_reads_a_number_back_from_the_device(monkeypatch):
    """Which would make the processor wait; `meta` tensors have no numbers to read."""
    for metric in ("lncc", "mind"):
        maps = tuple(Maps(*(volume(shape, seed)[..., None] for seed in (2, 3)), 0.2) for shape in (SHAPE, (8, 7, 7)))
        both = replace(pair(weighted=True), maps=maps)
        engine = TorchEngine(both, fractional(SHAPE), Settings(guide=True), metric)
        engine.maps = [(*(part.to("meta") for part in parts), strength) for *parts, strength in engine.maps]
        for name, value in vars(engine).items():
            if isinstance(value, torch.Tensor):
                setattr(engine, name, value.to("meta"))
            elif isinstance(value, torch_steps.Moments):
                setattr(engine, name, torch_steps.Moments(*(part.to("meta") for part in value)))
        for _ in range(2):
            assert engine.step().shape == ()


def test_a_step_of_the_engine_is_the_scheme_written_plainly():
    """The gradient smoothed, divided by its size (Adam's first step), scaled, composed and smoothed."""
    settings = Settings(smooth_update=1.0, smooth_total=0.5, step=0.4)
    start = 0.3 + np.zeros((3, *SHAPE), np.float32)
    engine = NumbaEngine(pair(guided=False), start, settings, "lncc")
    engine._image_force()
    force = fields.smooth(engine.force.copy(), 1.0).astype(np.float64)
    length = np.sqrt(np.square(force).sum(0))
    step = force / (length + refinement.ADAM_FLOOR * length.max())
    step *= settings.step / np.sqrt(np.square(step).sum(0)).max()
    expected = fields.smooth(step + np.stack([sampled(channel, step) for channel in start]), 0.5)
    engine = NumbaEngine(pair(guided=False), start, settings, "lncc")
    engine.step()
    np.testing.assert_allclose(engine.displacement(), expected, atol=2e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.73])
def test_torch_smoothing_is_the_numba_smoothing(sigma):
    field = np.random.default_rng(0).normal(size=(3, 8, 9, 10)).astype(np.float32)
    taps, everywhere = torch.from_numpy(fields.gaussian_taps(sigma)), torch.ones(8, 9, 10, dtype=torch.bool)
    theirs = torch_steps.smooth(torch.from_numpy(field), taps, everywhere).numpy()
    np.testing.assert_allclose(theirs, fields.smooth(field, sigma), atol=1e-5)


def test_the_mind_force_uses_the_descriptors_of_the_losses():
    engine = NumbaEngine(pair(), np.zeros((3, *SHAPE), np.float32), Settings(), "mind")
    expected = mind_ssc(torch.from_numpy(texture(SHAPE))[None, None])[0].permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(engine.fixed_features, expected)


def heads(shift=(4.0, -3.0, 5.0)):
    """Two heads on one grid, one bent by a smooth wave of a few mm."""
    grid = made_grid((36, 38, 34), (4.8, 5.0, 4.6))

    def bent(points):
        return points + np.asarray(shift) * np.sin(points[:, [1, 2, 0]] / 30)

    def array(image):
        import SimpleITK as sitk

        return sitk.GetArrayFromImage(image)

    fixed, moving = (array(made_head(grid, m)).astype(np.float32) / 1100 for m in (bent, None))
    labels = [array(made_labels(grid, m)).astype(np.int32) for m in (bent, None)]
    return Pair(fixed, moving, NO_WEIGHT, *labels, int(max(x.max() for x in labels)) + 1)


@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_a_whole_refinement_is_as_good_on_either_engine(metric, monkeypatch):
    both, settings = heads(), Settings(iterations=(10, 4))
    ours = refine(both, settings, metric=metric, device="cpu")
    monkeypatch.setattr(refinement, "_engine", lambda device, *rest, floor: TorchEngine(*rest, device, floor=floor))
    theirs = refine(both, settings, metric=metric, device="cpu")
    before = mean_lncc(both.fixed, both.moving)
    reached = [mean_lncc(both.fixed, fields.warp(both.moving, u)) for u in (ours, theirs)]
    assert min(reached) > before + 0.05
    assert abs(reached[0] - reached[1]) < 0.01
    assert np.median(np.abs(ours - theirs)[:, both.fixed > 0.3]) < 0.1


def test_guided_refinement_pulls_the_labels_together():
    both = heads((7.0, -6.0, 8.0))

    def dice(u):
        moved = fields.warp(both.moving_labels, u, nearest=True)
        common = [(both.fixed_labels == n, moved == n) for n in range(1, both.labels)]
        return np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in common])

    plain, guided = (refine(both, Settings(iterations=(10, 4), guide=g, guide_weight=2.0)) for g in (False, True))
    assert dice(guided) > dice(plain) > dice(np.zeros_like(plain))


def test_weights_of_zero_leave_the_start_alone():
    both = heads()
    silent = Pair(both.fixed, both.moving, np.zeros_like(both.fixed))
    for metric in ("lncc", "mind"):
        assert not refine(silent, Settings(iterations=(2, 2)), metric=metric).any()


def test_no_iterations_return_the_start_on_the_pairs_grid():
    both = heads()
    assert not refine(both, Settings(iterations=())).any()
    coarse = random_displacement((17, 19, 18), smallest=0.6)
    for iterations in ((), (0, 0)):
        u = refine(both, Settings(iterations=iterations), start=coarse)
        np.testing.assert_array_equal(u, fields.resize_displacement(coarse, both.fixed.shape))


def test_refinement_tells_its_progress_and_can_be_stopped_by_it():
    shares = []
    refine(heads(), Settings(iterations=(3, 2)), progress=shares.append)
    assert len(shares) == 5 and shares == sorted(shares) and shares[-1] == pytest.approx(1)

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine(heads(), Settings(iterations=(3, 2)), progress=stop)


def test_levels_halve_and_no_axis_shrinks_below_the_coarsest():
    assert level_shapes((160, 192, 20), 3) == [(40, 48, 20), (80, 96, 20), (160, 192, 20)]
    assert level_shapes((5, 64, 64), 3) == [(5, 24, 24), (5, 32, 32), (5, 64, 64)]
    assert level_shapes((9, 9, 9), 0) == []


@pytest.mark.parametrize(
    ("voxels", "given", "expected"),
    [
        (2_500_000, (30, 20, 6), (30, 20, 6)),
        (375_000, (30, 20, 6), (30, 20, 16)),
        (1, (30, 20, 6), (30, 20, 30)),
        (1, (30, 20, 50), (30, 20, 50)),
        (1, (30, 20, 0), (30, 20, 0)),
        (0, (4,), (30,)),
        (1, (), ()),
    ],
)
def test_little_anatomy_gets_more_iterations_at_the_finest_level(voxels, given, expected):
    settings = Settings(iterations=given)
    assert with_extra_iterations(settings, voxels).iterations == expected
    as_given = replace(settings, extra_iterations=False)
    assert with_extra_iterations(as_given, voxels) is as_given


def test_a_coarser_pair_covers_the_same_extent():
    both = heads()
    half = both.at((17, 19, 18))
    assert half.fixed.shape == half.moving.shape == half.fixed_labels.shape == (17, 19, 18)
    assert set(np.unique(half.fixed_labels)) <= set(np.unique(both.fixed_labels))
    assert half.fixed.mean() == pytest.approx(both.fixed.mean(), rel=0.03)
    mass = [ndimage.center_of_mass(v) for v in (half.fixed, both.fixed)]
    np.testing.assert_allclose(
        (np.array(mass[0]) + 0.5) / (17, 19, 18), (np.array(mass[1]) + 0.5) / (34, 38, 36), atol=0.01
    )
    assert both.at(both.fixed.shape) is both


def test_shrinking_a_constant_volume_keeps_it_and_picking_keeps_labels():
    np.testing.assert_allclose(shrink(np.full((9, 8, 7), 3, np.float32), (4, 4, 3)), 3, rtol=1e-6)
    labels = np.arange(4, dtype=np.int32).repeat(2)[:, None, None] * np.ones((1, 4, 6), np.int32)
    np.testing.assert_array_equal(pick(labels, (4, 2, 3))[:, 0, 0], np.arange(4))
    assert pick(None, (2, 2, 2)) is None
    u = random_displacement((8, 8, 8))
    assert to_shape(u, (8, 8, 8)) is u and to_shape(u, (16, 8, 8)).shape == (3, 16, 8, 8)
