"""What the parts of the network bring: networks that differ in one thing, trained alike and tried on the same pairs.

    python -m benchmarks.ablation                               all variants, into docs/benchmarks/ablation.json
    python -m benchmarks.ablation --variants default conv --steps 2000 --seeds 0 1

Every variant sees the same synthetic pairs from label maps (T1-like, no scan, no label in the loss) on a grid of 4 mm,
for as many steps and with the same settings of the optimiser. It is then asked once about each real pair, shrunk to
4 mm; its displacement, resized, moves the labels at 2 mm. No network is chosen by these figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from RegMambaLib.evaluation.folding import folding_percent
from RegMambaLib.evaluation.overlap import dice
from RegMambaLib.io.images import read_image, read_labels
from RegMambaLib.networks import load_network
from RegMambaLib.networks.base import RegistrationNetwork
from RegMambaLib.registration.preprocess import prepare
from RegMambaLib.spatial.fields import resize_displacement, warp
from RegMambaLib.spatial.jacobian import jacobian_determinant
from RegMambaLib.training.config import TrainingConfig
from RegMambaLib.training.data import shrunk
from RegMambaLib.training.trainer import run
from RegMambaLib.training.tree import tree_from
from RegMambaLib.training.validation import ValidationPair

from .cases import CASES, DATA, jobs
from .measure import RESULTS, Row, Store

FILE = RESULTS / "ablation.json"
KEYS = ("variant", "seed", "case", "pair")
PACKAGES = ("regmamba", "torch", "numba")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default: 6 directions, votes learned and drawn", {}),
    "1 direction": ("1 direction", {"directions": ["hwd+"]}),
    "3 directions": ("3 directions", {"directions": ["hwd+", "whd+", "dhw+"]}),
    "12 directions": ("12 directions", {"directions": ["all"]}),
    "mean votes": ("votes learned, their mean in training", {"voting": "mean"}),
    "equal votes": ("equal votes", {"voting": "equal"}),
    "concat": ("concatenation instead of MatchMamba", {"matching": "concat"}),
    "conv": ("depthwise convolutions instead of scans", {"mixing": "conv"}),
}
TEST_CASES = ("mindboggle_2mm", "ixi_2mm")
SHRINK = 2
STAGE = {"shape": [40, 48, 40], "spacing": 4.0}


def test_pairs(data: Path) -> Iterator[tuple[str, ValidationPair]]:
    """(case, pair at 2 mm) of `TEST_CASES`, axes along S, P, L as in training."""
    import SimpleITK as sitk

    def array(image: sitk.Image) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))

    for case in TEST_CASES:
        for name, job in jobs(data, CASES[case], None, Path(), 1):
            images = [array(prepare(read_image(path), "given").image) for path in (job.fixed, job.moving)]
            labels = [array(read_labels(path)) for path in (job.fixed_labels, job.moving_labels)]
            yield case, ValidationPair(name, images[0], images[1], labels[0], labels[1])


def configuration(options: dict[str, Any], seed: int, arguments: argparse.Namespace, output: Path) -> TrainingConfig:
    """How every variant is trained."""
    return tree_from(
        TrainingConfig,
        {
            "output": str(output),
            "seed": seed,
            "steps": arguments.steps,
            "data": {"synthetic": {"labels": str(arguments.data / "label_maps"), "stages": [STAGE]}},
            "network": {"options": options},
            "validation": {"every": arguments.steps},
            "hardware": {"device": arguments.device, "threads": arguments.threads},
            "logging": {"save_every": 100, "tensorboard": False},
        },
    )


def judged(network: RegistrationNetwork, pair: ValidationPair) -> Row:
    """Dice of the labels at 2 mm, folded voxels and seconds of one prediction at 4 mm."""
    small = [torch.from_numpy(shrunk(image, SHRINK))[None, None] for image in (pair.moving, pair.fixed)]
    network.predict(*small)  # what is compiled, compiles now
    began = time.process_time()
    displacement = network.predict(*small)[0][0].numpy()
    seconds = time.process_time() - began
    u = resize_displacement(displacement, pair.fixed.shape)
    overlap = dice(pair.fixed_labels, warp(pair.moving_labels, u, nearest=True))
    start = dice(pair.fixed_labels, pair.moving_labels)
    return {
        "dice": float(np.mean(list(overlap.values()))),
        "dice_start": float(np.mean(list(start.values()))),
        "folding_percent": folding_percent(jacobian_determinant(u)),
        "predict_cpu_seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="where the numbers are kept")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    store = Store(arguments.json, KEYS, PACKAGES)
    pairs = list(test_pairs(arguments.data))
    for seed in arguments.seeds:
        for variant in arguments.variants:
            with tempfile.TemporaryDirectory() as made:
                began = time.process_time()
                run(configuration(VARIANTS[variant][1], seed, arguments, Path(made)), note=lambda _: None)
                seconds = time.process_time() - began
                network = load_network(Path(made) / "weights.safetensors")
            scores = []
            for case, pair in pairs:
                row = {"variant": variant, "seed": seed, "case": case, "pair": pair.name, "steps": arguments.steps}
                found = judged(network, pair)
                store.put(row | found | {"train_cpu_seconds": seconds})
                scores.append(found["dice"])
            print(f"{variant:<16} seed {seed}  Dice {np.mean(scores):.4f}  training {seconds:.0f} CPU s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
