"""Whether the map of the uncertainty tells the error: pairs whose true displacement is known, and real labels.

    python -m benchmarks.confidence
    python -m benchmarks.confidence --fit       the exponents of `registration/confidence.py`, from other pairs

A known pair is a moving image and itself warped, by what greedy found between two subjects: a displacement as between
people, from another tool than the one that is judged. Both images get noise of their own, and a grey scale of their
own or a T2-like contrast. The map of a registration is compared with its error, voxel by voxel inside the anatomy.
Beside it stands the spread of the network's displacement over draws of its direction votes, where a network was asked.

On the real pair of the same images nothing is known but labels: how often a voxel whose warped label is wrong has more
uncertainty than one whose label is right (area under the ROC curve; .5 is chance).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import binary_erosion
from scipy.stats import mannwhitneyu, spearmanr

from RegMambaLib import Registration, Settings, register
from RegMambaLib.evaluation.known_pair import T1, T2
from RegMambaLib.io.images import read_image, read_labels
from RegMambaLib.io.transforms import flatten
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.registration import pipeline
from RegMambaLib.registration.confidence import signs
from RegMambaLib.registration.contrast import SIDES
from RegMambaLib.registration.grid import padded
from RegMambaLib.registration.network import load_weights
from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.spatial.fields import resize, warp
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform

from .cases import CASES, DATA, Job, jobs
from .measure import RESULTS, Row, Store

FILE = RESULTS / "confidence.json"
KEYS = ("case", "pair", "kind")
PACKAGES = ("regmamba", "torch", "numba", "SimpleITK", "picsl-greedy")
# Name, noise (share of the brightest tissue), and grey scale of the warped image.
KINDS = {"little noise": (0.02, "own"), "much noise": (0.06, "own"), "T2-like": (0.03, "t2")}
TEST = ("mindboggle_2mm", "ixi_2mm", "oasis_pair", "hippocampus_64", "openkbp_ct")
# The pairs that the exponents were fitted to: other pairs of the same data sets.
FIT = {
    "mindboggle_2mm": (("01", "04"), ("02", "06"), ("05", "03")),
    "ixi_2mm": (("033", "034"), ("014", "015")),
    "hippocampus_64": (("015", "017"), ("019", "020"), ("003", "015"), ("006", "019")),
    "openkbp_ct": (("031", "013"), ("034", "013"), ("013", "034")),
}
DRAWS = 8
FITTED_VOXELS = 20_000


@dataclass(frozen=True)
class KnownPair:
    """Two images on one grid, and the transform from fixed to moving that is true."""

    fixed: sitk.Image
    moving: sitk.Image
    truth: sitk.Transform


def known_pairs(job: Job, kinds: Sequence[str], seed: int) -> Iterator[tuple[str, KnownPair]]:
    """(kind, pair): the moving image, and itself warped by what greedy finds; both on the grid of the fixed image."""
    from picsl_greedy import Greedy3D

    fixed = read_image(job.fixed)
    moving = moving_of(fixed, read_image(job.moving), job.aligned)
    scaled = [prepare(image, "given").image for image in (fixed, moving)]
    tool = Greedy3D()
    tool.execute(
        "-i fixed moving -m NCC 2x2x2 -threads 2 -V 0 -n 100x50x20 -o warp",
        fixed=scaled[0],
        moving=scaled[1],
        warp=None,
    )
    transform = sitk.DisplacementFieldTransform(sitk.Cast(tool["warp"], sitk.sitkVectorFloat64))
    warped = sitk.Resample(scaled[1], scaled[0], transform, sitk.sitkBSpline)
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng([seed, number])
        noise, scale = KINDS[kind]
        images = [_scanned(warped, noise, scale, rng), _scanned(scaled[1], noise, "own", rng)]
        yield kind, KnownPair(images[0], images[1], transform)


def _scanned(image: sitk.Image, noise: float, scale: str, rng: np.random.Generator) -> sitk.Image:
    array = np.clip(sitk.GetArrayFromImage(image), 0, 1)
    air = array < 0.02
    bright = np.interp(array, T1, T2) if scale == "t2" else array ** np.exp(0.2 * rng.standard_normal())
    first, second = noise * rng.standard_normal((2, *array.shape))
    # Rician, as in magnitude images; air that is exactly 0, as after skull-stripping, stays so.
    out = np.where(air & (air.mean() > 0.3), 0, np.hypot(bright + first, second))
    return Grid.of(image).image(out.astype(np.float32))


def moving_of(fixed: sitk.Image, moving: sitk.Image, aligned: bool) -> sitk.Image:
    """The moving image on the grid of the fixed one, aligned linearly."""
    affine = np.eye(4)
    if not aligned:
        affine = register(fixed, moving, settings=Settings(weights="none", iterations=())).affine
    air = float(sitk.GetArrayViewFromImage(moving).min())
    return sitk.Resample(moving, fixed, affine_transform(affine), sitk.sitkLinear, air)


@dataclass(frozen=True)
class Outcome:
    """A registration of a known pair; arrays (k, j, i) on its grid: true error mm, and where there is anatomy."""

    result: Registration
    error: np.ndarray
    inside: np.ndarray
    asked: Asked


def outcome(pair: KnownPair) -> Outcome:
    settings = Settings(affine="none", uncertainty=True)
    with asked() as seen:
        result = register(pair.fixed, pair.moving, settings=settings)
    grid = result.grid
    error = np.linalg.norm(flatten(result.transform, grid) - flatten(pair.truth, grid), axis=-1)
    side = prepare(pair.fixed, "fixed")
    anatomy = sitk.GetArrayFromImage(grid.resample(side.image, sitk.Transform())) > side.threshold
    assert result.uncertainty is not None
    # Beyond the fixed image's edge nothing is known.
    return Outcome(result, error, binary_erosion(anatomy) & (result.uncertainty > 0), seen)


def on_grid(pair: KnownPair, result: Registration) -> tuple[np.ndarray, np.ndarray]:
    """Both images, scaled, on the registration's grid, the moving one as it came."""
    fixed, moving = (prepare(image, "given").image for image in (pair.fixed, pair.moving))
    shown = (result.grid.resample(image, sitk.Transform()) for image in (fixed, moving))
    return tuple(map(sitk.GetArrayFromImage, shown))  # type: ignore[return-value]


@dataclass
class Asked:
    """What a registration showed to the network: pairs (fixed, moving), and the shape of the grid they come from."""

    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    shape: tuple[int, ...] = ()


@contextmanager
def asked() -> Iterator[Asked]:
    """Look on as the registration within the block asks its network."""
    seen = Asked()
    predict, network_shape = pipeline.predict, pipeline.network_shape

    def show(network: RegistrationNetwork, fixed: np.ndarray, moving: np.ndarray, **more: Any) -> np.ndarray:
        seen.pairs.append((fixed, moving))
        return predict(network, fixed, moving, **more)

    def size(shape: tuple[int, ...], spacing: float) -> tuple[int, int, int]:
        seen.shape = shape
        return network_shape(shape, spacing)

    pipeline.predict, pipeline.network_shape = show, size
    try:
        yield seen
    finally:
        pipeline.predict, pipeline.network_shape = predict, network_shape


def vote_spread(result: Registration, seen: Asked) -> np.ndarray:
    """Standard deviation of the network's displacement over draws of its votes, on the registration's grid.

    The network is shown what it saw in the registration: on its own grid, in one contrast.
    """
    carried = result.details["network_carried"]
    fixed, moving = (torch.from_numpy(a)[None, None] for a in seen.pairs[SIDES.index(carried) if carried else 0])
    spread = load_weights(result.details["weights"]).predict(moving, fixed, DRAWS, seed=0)[1]
    assert spread is not None
    return padded(resize(spread[0, 0].numpy(), seen.shape), result.grid.shape)


def judged(pair: KnownPair) -> Row:
    """Rank correlation of the map with the error, and errors where the map is lowest and highest."""
    found = outcome(pair)
    assert found.result.uncertainty is not None
    doubt, error = found.result.uncertainty[found.inside], found.error[found.inside]
    low, high = np.quantile(doubt, [0.2, 0.8])
    row: Row = {
        "spearman": float(spearmanr(doubt, error).statistic),
        "expected_mm": float(doubt.mean()),
        "error_mm": float(error.mean()),
        "error_low_mm": float(error[doubt <= low].mean()),
        "error_high_mm": float(error[doubt >= high].mean()),
    }
    if found.result.details["network_used"]:
        votes = vote_spread(found.result, found.asked)[found.inside]
        row["votes_spearman"] = float(spearmanr(votes, error).statistic)
    return row


def label_auc(job: Job) -> float:
    """On the real pair: how often a voxel with a wrong label has more uncertainty than one with the right label."""
    fixed, moving = read_image(job.fixed), read_image(job.moving)
    fixed_labels, moving_labels = read_labels(job.fixed_labels), read_labels(job.moving_labels)
    settings = Settings(affine="none" if job.aligned else "affine", uncertainty=True)
    result = register(fixed, moving, settings=settings)
    assert result.uncertainty is not None
    doubt = sitk.GetArrayFromImage(
        sitk.Resample(result.grid.image(result.uncertainty), fixed, sitk.Transform(), sitk.sitkLinear, 0.0)
    )
    known = sitk.GetArrayFromImage(fixed_labels)
    labelled = known > 0
    wrong = sitk.GetArrayFromImage(result.warp(moving_labels, labels=True)) != known
    groups = doubt[labelled & wrong], doubt[labelled & ~wrong]
    return float(mannwhitneyu(*groups).statistic / (groups[0].size * groups[1].size))


def equations(pair: KnownPair) -> tuple[np.ndarray, np.ndarray]:
    """Of some voxels of a known pair: logs of the signs and 1, (n, 4), and the error in voxels, (n,)."""
    found = outcome(pair)
    fixed, moving = on_grid(pair, found.result)
    u = found.result.displacement
    logs = [np.log(sign[found.inside]) for sign in signs(fixed, warp(moving, u), u)]
    chosen = np.random.default_rng(0).choice(logs[0].size, FITTED_VOXELS)
    error = found.error[found.inside] / found.result.grid.spacing[0]
    return np.stack([*logs, np.ones_like(logs[0])], 1)[chosen], error[chosen]


def fit(data: Path) -> None:
    """Least squares of the log error on the logs of the signs, in voxels, on the pairs of `FIT`; printed."""
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, subjects in FIT.items():
        case = replace(CASES[name], pairs=subjects)
        for pair, job in jobs(data, case, None, Path(), 2):
            for kind, known in known_pairs(job, ["little noise", "much noise"], seed=1):
                design, error = equations(known)
                rows.setdefault(name, []).append((design, error))
                print(f"{name} {pair} {kind}: error {error.mean():.2f} voxels", flush=True)

    def solved(names: list[str]) -> np.ndarray:
        chosen = [row for name in names for row in rows[name]]
        design, error = (np.concatenate([row[n] for row in chosen]) for n in (0, 1))
        weights = np.linalg.lstsq(design, np.log(error + 0.02), rcond=None)[0]
        # The fit is of the log: lifted until the mean error is met.
        weights[-1] += np.log(error.mean() / np.exp(design @ weights).mean())
        return weights

    for left_out in rows:
        weights = solved([name for name in rows if name != left_out])
        scores = [spearmanr(design @ weights, error).statistic for design, error in rows[left_out]]
        ratios = [np.exp(design @ weights).mean() / error.mean() for design, error in rows[left_out]]
        print(f"without {left_out}: rank correlation there {np.mean(scores):.2f}, expected/true {np.mean(ratios):.2f}")
    weights = solved(list(rows))
    print("EXPONENTS =", tuple(np.round(weights[:-1], 3).tolist()), "FACTOR =", round(float(np.exp(weights[-1])), 3))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.confidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--fit", action="store_true", help="fit the exponents instead")
    parser.add_argument("--cases", nargs="+", choices=TEST, default=list(TEST))
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="where the numbers are kept")
    arguments = parser.parse_args()
    if arguments.fit:
        fit(arguments.data)
        return 0
    store = Store(arguments.json, KEYS, PACKAGES)
    for name in arguments.cases:
        # A CT has one contrast.
        kinds = [kind for kind in KINDS if name != "openkbp_ct" or KINDS[kind][1] == "own"]
        for pair, job in jobs(arguments.data, CASES[name], None, Path(), 2):
            auc = label_auc(job)
            for kind, known in known_pairs(job, kinds, seed=0):
                row = {"case": name, "pair": pair, "kind": kind, "label_auc": auc} | judged(known)
                store.put(row)
                print(" ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
