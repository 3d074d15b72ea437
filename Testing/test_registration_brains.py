"""Real brains, where the data folder is there: the linear stage from any start, and Dice that must not be lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from conftest import DATA, apply, linear, made_grid, smallest_determinants, world_of

from RegMambaLib.registration.affine import Side, align
from RegMambaLib.registration.pipeline import register
from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.registration.settings import Settings
from RegMambaLib.spatial.grid import Grid

BRAINS = DATA / "mindboggle_2mm"


def brain(subject, what="t1"):
    return sitk.ReadImage(str(BRAINS / f"sub{subject:02d}_{what}.nii.gz"))


def side(image, name):
    prepared = prepare(image, name)
    return Side(prepared.image, prepared.foreground())


def moved_by(image, matrix, seed):
    """The image carried through the world by a 4x4, on a grid of its own."""
    center = apply(matrix, Grid.of(image).center[None])[0]
    turn = np.random.default_rng(seed).uniform(-40, 40, 3)
    grid = made_grid((108, 112, 108), (2.0, 2.0, 2.0), turn, tuple(center), flip=bool(seed % 2))
    back = sitk.AffineTransform(3)
    inverse = np.linalg.inv(matrix)
    back.SetMatrix(inverse[:3, :3].ravel().tolist())
    back.SetTranslation(inverse[:3, 3].tolist())
    return grid.resample(image, back)


def random_start(seed, center):
    """A turn of up to 30 degrees about the centre and a shift of up to 40 mm."""
    rng = np.random.default_rng(seed)
    axis, way = rng.normal(size=(2, 3))
    turn = axis / np.linalg.norm(axis) * rng.uniform(10, 30)
    shift = way / np.linalg.norm(way) * rng.uniform(10, 40)
    about = linear(shift=center)
    return about @ linear(turn, shift) @ np.linalg.inv(about)


def turned_over(image):
    """The brain with its contrast the other way round, as in T2; background stays."""
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    top = np.percentile(values[values > 0], 99.5)
    other = sitk.GetImageFromArray(np.where(values > 0, 1.05 * top - np.minimum(values, top), 0))
    other.CopyInformation(image)
    return other


def mean_dice(fixed, moved):
    fixed, moved = sitk.GetArrayFromImage(fixed).ravel(), sitk.GetArrayFromImage(moved).ravel()
    common = np.setdiff1d(np.intersect1d(fixed, moved), [0])
    return np.mean(
        [2 * ((fixed == n) & (moved == n)).sum() / ((fixed == n).sum() + (moved == n).sum()) for n in common]
    )


if BRAINS.is_dir():

    def test_random_starts_of_two_brains_end_within_two_millimetres_of_each_other():
        fixed, moving = brain(1), brain(2)
        there = side(fixed, "fixed")
        points = world_of(Grid.of(fixed))[there.foreground][::997]
        ends = []
        for seed in range(4):
            start = random_start(seed, Grid.of(moving).center)
            found = align(there, side(moved_by(moving, start, seed), "moving"), "affine")
            ends.append(apply(np.linalg.inv(start) @ found, points))
        gaps = [np.linalg.norm(a - b, axis=1) for n, a in enumerate(ends) for b in ends[:n]]
        assert max(float(gap.mean()) for gap in gaps) < 2.0
        assert max(float(np.quantile(gap, 0.95)) for gap in gaps) < 3.0

    def test_two_brains_gain_in_overlap_without_any_fold():
        fixed, moving = brain(1), brain(2)
        labels = brain(1, "dkt31cma"), brain(2, "dkt31cma")
        result = register(fixed, moving, settings=Settings(affine="none", weights="none", device="cpu"))
        before = mean_dice(labels[0], result.fixed_grid.resample(labels[1], labels=True))
        after = mean_dice(labels[0], result.warp(labels[1], labels=True))
        assert before < 0.45 and after > 0.55
        assert smallest_determinants(result.displacement).min() > 0
        assert result.details["metric"] == "lncc" and result.details["inverse_error_mm"] < 0.1

    def test_the_network_alone_helps_two_brains():
        fixed, moving = brain(3), brain(4)
        labels = brain(3, "dkt31cma"), brain(4, "dkt31cma")
        result = register(fixed, moving, settings=Settings(affine="none", iterations=(), device="cpu"))
        before = mean_dice(labels[0], result.fixed_grid.resample(labels[1], labels=True))
        assert result.details["network_used"]
        assert mean_dice(labels[0], result.warp(labels[1], labels=True)) > before + 0.02
        assert smallest_determinants(result.displacement).min() > 0

    def test_a_turned_over_contrast_costs_little_overlap():
        fixed, moving = brain(1), brain(4)
        labels = brain(1, "dkt31cma"), brain(4, "dkt31cma")
        settings = Settings(affine="none", iterations=(), device="cpu")
        same, turned = (
            register(fixed, moving, settings=settings),
            register(fixed, turned_over(moving), settings=settings),
        )
        assert turned.details["network_used"] and turned.details["contrast_carried"] == "moving"
        scores = [mean_dice(labels[0], result.warp(labels[1], labels=True)) for result in (same, turned)]
        assert scores[1] > scores[0] - 0.03

    def test_structures_help_two_brains_and_are_not_believed_in_another_contrast():
        fixed, moving = brain(1), brain(4)
        labels = brain(1, "dkt31cma"), brain(4, "dkt31cma")
        settings = Settings(affine="none", device="cpu")
        with_them = register(fixed, moving, settings=settings)
        without = register(fixed, moving, settings=replace(settings, structures=False))
        assert with_them.details["structures_used"] and not without.details["structures_used"]
        scores = [mean_dice(labels[0], result.warp(labels[1], labels=True)) for result in (with_them, without)]
        assert scores[0] > scores[1]
        quick = replace(settings, iterations=(1,), repair=False)
        assert not register(turned_over(fixed), turned_over(moving), settings=quick).details["structures_used"]

else:

    def test_a_made_pair_stands_in_for_the_brains():
        from conftest import made_head, made_labels

        grid = made_grid((44, 52, 40), (4.0, 4.0, 4.0))
        fixed, moving = (made_head(grid, way) for way in (lambda p: p + 5 * np.sin(p[:, [1, 2, 0]] / 25), None))
        labels = made_labels(grid, lambda p: p + 5 * np.sin(p[:, [1, 2, 0]] / 25)), made_labels(grid)
        result = register(fixed, moving, settings=Settings(affine="none", weights="none", device="cpu"))
        assert mean_dice(labels[0], result.warp(labels[1], labels=True)) > 0.85
        assert smallest_determinants(result.displacement).min() > 0
