"""Everything that decides a training run, as one tree of frozen values: what a CONFIG.yaml may say.

Every field has its default and its help here and nowhere else; `docs/training.md` is checked against them.
`config_file` reads and checks YAML. A weight of 0 switches a loss off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from RegMambaLib.errors import InputError
from RegMambaLib.networks import NetworkConfig
from RegMambaLib.training.datasets.manifest import KINDS
from RegMambaLib.training.synthetic_settings import GENERAL, SyntheticSettings
from RegMambaLib.training.tree import tree_from

CONTRASTS = {"t1": SyntheticSettings(), "any": GENERAL}


def _about(
    help: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {"help": help, "low": low, "high": high, "choices": choices}


@dataclass(frozen=True)
class Stage:
    """An image size of synthetic pairs, for a share of the run."""

    until: float = field(default=1.0, metadata=_about("share of all steps after which the next stage begins", 0, 1))
    shape: tuple[int, int, int] = field(default=(80, 96, 80), metadata=_about("voxels along S, P, L", 1))
    spacing: float = field(default=2.0, metadata=_about("of the voxels, mm", 0.1))


@dataclass(frozen=True)
class Synthetic:
    """Pairs rendered from label maps or from random shapes; no image is needed."""

    share: float = field(
        default=1.0, metadata=_about("how often pairs come from here, relative to the other sources", 0)
    )
    labels: Path | None = field(default=None, metadata=_about("folder of NIfTI label maps; none: random shapes only"))
    frame: str = field(
        default="head",
        metadata=_about(
            "head: maps of heads with FreeSurfer numbers, posed, brain only; centred: any maps, moved to the centre",
            choices=("head", "centred"),
        ),
    )
    voxel: float = field(
        default=1.0,
        metadata=_about(
            "of centred maps: mm that one voxel of the 160 x 192 x 160 frame shows; lengths count in these", 0.01
        ),
    )
    contrast: str = field(
        default="t1",
        metadata=_about(
            "t1: both images T1-like; any: each its own contrast, with shapes and cut-outs among the pairs",
            choices=tuple(CONTRASTS),
        ),
    )
    settings: dict[str, Any] = field(
        default_factory=dict, metadata=_about("values of `SyntheticSettings` that differ from those of the contrast")
    )
    stages: tuple[Stage, ...] = field(
        default=(Stage(0.25, (52, 64, 52), 3.0), Stage(0.65, (64, 78, 64), 2.5), Stage(1.0, (80, 96, 80), 2.0)),
        metadata=_about("image sizes over the run; the last one goes to the end"),
    )
    size_jitter: float = field(
        default=0.08,
        metadata=_about(
            "largest relative change of each axis' length, because the share of background differs", 0, 0.5
        ),
    )

    def __post_init__(self) -> None:
        rendering = self.rendering()
        if self.labels is None and rendering.shapes < 1:
            raise InputError(
                "data.synthetic.labels is missing: give a folder of label maps, or settings: {shapes: 1} to do without."
            )
        if self.frame == "centred" and self.contrast == "t1":
            raise InputError(
                "data.synthetic.contrast t1 needs the FreeSurfer numbers of frame: head; use contrast: any."
            )
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(ends):
            raise InputError(f"data.synthetic.stages must be in the order of their `until`, not {ends}.")

    def rendering(self) -> SyntheticSettings:
        """The ranges that pairs are drawn from."""
        base = CONTRASTS[self.contrast]
        return tree_from(SyntheticSettings, self.settings, "data.synthetic.settings", base=base)


@dataclass(frozen=True)
class Prepared:
    """Pairs of a data set made by `regmamba data prepare`; its split "train" is trained on."""

    manifest: Path = field(metadata=_about("folder of the prepared data set"))
    share: float = field(
        default=1.0, metadata=_about("how often pairs come from here, relative to the other sources", 0)
    )
    pairs: str | None = field(
        default=None,
        metadata=_about(
            "kind of pairs; none: the usual one of the set",
            choices=KINDS,
        ),
    )
    shrink: int = field(default=1, metadata=_about("edge of the blocks of voxels that are averaged into one", 1, 8))


@dataclass(frozen=True)
class Data:
    """Where pairs come from; several sources make a mixture."""

    synthetic: Synthetic | None = field(default=None, metadata=_about("rendered pairs"))
    prepared: tuple[Prepared, ...] = field(default=(), metadata=_about("prepared data sets"))
    workers: int = field(default=1, metadata=_about("threads that make pairs ahead, per process", 1, 64))

    def __post_init__(self) -> None:
        shares = [source.share for source in (self.synthetic, *self.prepared) if source is not None]
        if not any(shares):
            raise InputError(
                "data names no source of pairs; give data.synthetic or data.prepared, with a share above 0."
            )


@dataclass(frozen=True)
class Network:
    """What is trained."""

    name: str = field(default="regmamba", metadata=_about("the network", choices=("regmamba", "v1", "v2")))
    options: dict[str, Any] = field(
        default_factory=dict, metadata=_about("fields of `NetworkConfig`, for example {channels: [8, 16, 32]}")
    )
    start: Path | None = field(
        default=None, metadata=_about("weights to begin from (.safetensors); they bring their own name and options")
    )

    def __post_init__(self) -> None:
        tree_from(NetworkConfig, self.options, "network.options")


@dataclass(frozen=True)
class Losses:
    """Weights of the losses, 0 for off, and what they need. Similarity compares fixed and moved."""

    lncc: float = field(
        default=1.0, metadata=_about("one minus squared local correlation, for images of one contrast", 0)
    )
    lncc_window: int = field(default=5, metadata=_about("its window, voxels, odd", 3, 21))
    lncc_coarse: float = field(
        default=0.3, metadata=_about("share of it taken at half resolution, which sees further", 0, 1)
    )
    mse: float = field(default=0.0, metadata=_about("mean squared difference, for images in one intensity unit", 0))
    nmi: float = field(
        default=0.0, metadata=_about("two minus normalised mutual information, for images of different contrast", 0)
    )
    nmi_bins: int = field(default=32, metadata=_about("its bins per image", 8, 256))
    mind: float = field(
        default=0.0, metadata=_about("mean squared difference of MIND-SSC, for images of different contrast", 0)
    )
    dice: float = field(default=0.0, metadata=_about("one minus soft Dice of the labels", 0))
    dice_labels: int = field(default=8, metadata=_about("labels drawn for it at each pair", 1, 256))
    diffusion: float = field(default=1.0, metadata=_about("mean squared first derivative of the displacement", 0))
    bending: float = field(default=0.0, metadata=_about("bending energy: squared second derivatives", 0))
    inverse: float = field(default=0.0, metadata=_about("GradICON inverse consistency; doubles the time of a step", 0))
    voting_kl: float = field(
        default=1e-3, metadata=_about("divergence of the learned direction votes from even ones, nats", 0)
    )
    voting_bound: float = field(
        default=0.0,
        metadata=_about("PAC-Bayes bound on the local correlation loss with drawn votes, the risk of the voting", 0),
    )

    def __post_init__(self) -> None:
        if self.lncc_window % 2 == 0:
            raise InputError(f"losses.lncc_window must be odd, not {self.lncc_window}.")
        if not any((self.lncc, self.mse, self.nmi, self.mind, self.dice)):
            raise InputError("losses has no similarity left; give lncc, mse, nmi, mind or dice a weight above 0.")


@dataclass(frozen=True)
class Optimiser:
    """Adam and its schedule."""

    learning_rate: float = field(default=1.5e-3, metadata=_about("the highest", 1e-9, 1))
    schedule: str = field(
        default="cosine", metadata=_about("how it goes on after the warm-up", choices=("cosine", "constant"))
    )
    last_rate: float = field(default=0.02, metadata=_about("share of the highest that the cosine ends at", 0, 1))
    warm_up: int = field(default=20, metadata=_about("steps over which it rises", 0))
    clip: float = field(default=1.0, metadata=_about("largest norm of the gradient", 1e-6))
    average: float = field(
        default=0.98,
        metadata=_about("decay of the moving average of the weights that is validated and written", 0, 0.99999),
    )


@dataclass(frozen=True)
class Validation:
    """Real pairs that are looked at and never trained on. The split "test" of a data set cannot be given here."""

    pairs: Path | None = field(
        default=None, metadata=_about("CSV with the columns fixed, moving, fixed_labels, moving_labels")
    )
    manifest: Path | None = field(default=None, metadata=_about("folder of a prepared data set"))
    split: str = field(default="val", metadata=_about("its split to take the pairs from"))
    kind: str | None = field(
        default=None,
        metadata=_about(
            "kind of its pairs; none: the usual one of the set",
            choices=KINDS,
        ),
    )
    limit: int = field(default=10, metadata=_about("pairs drawn from it; 0: all", 0))
    shrink: int = field(
        default=1, metadata=_about("edge of the blocks of voxels of its images that are averaged into one", 1, 8)
    )
    every: int = field(
        default=100, metadata=_about("steps between two looks; an example is drawn at each, with or without pairs", 1)
    )

    def __post_init__(self) -> None:
        if self.split != "val":
            raise InputError(
                f'validation.split must be "val", not {self.split!r}: what training sees is no test any more; '
                "score the split test once, at the end, with `regmamba evaluate`."
            )


@dataclass(frozen=True)
class Hardware:
    """Where the run happens; the pairs of a step are shared out over the processes, so this leaves the result alone."""

    device: str = field(
        default="auto", metadata=_about("auto: cuda where it is there", choices=("auto", "cpu", "cuda"))
    )
    devices: int = field(default=1, metadata=_about("processes on each machine, one per GPU", 1, 1024))
    nodes: int = field(default=1, metadata=_about("machines", 1, 4096))
    precision: str = field(
        default="32",
        metadata=_about("of the network; losses and the scan's state are always float32", choices=("32", "bf16-mixed")),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=_about("compute blocks again in the backward pass: less memory, more time")
    )
    threads: int = field(default=0, metadata=_about("CPU threads of each process; 0: torch's choice", 0, 1024))


@dataclass(frozen=True)
class Logging:
    """What is written while training, besides log.csv."""

    save_every: int = field(default=25, metadata=_about("steps between two checkpoints", 1))
    tensorboard: bool = field(
        default=True, metadata=_about("scalars and example pictures for TensorBoard, in the folder tensorboard")
    )
    note: str = field(default="", metadata=_about("one line about the weights, kept in their card"))


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Relative paths start at the current folder."""

    data: Data = field(metadata=_about("the pairs"))
    output: Path = field(default=Path("run"), metadata=_about("folder of the run: checkpoint, weights, logs, examples"))
    seed: int = field(
        default=0, metadata=_about("of everything random; a pair depends on it and on its number alone", 0, 2**31 - 1)
    )
    steps: int = field(default=1000, metadata=_about("steps of the optimiser", 1))
    batch: int = field(
        default=1, metadata=_about("pairs of a step over all processes; a multiple of their number", 1, 65536)
    )
    network: Network = field(default=Network(), metadata=_about("what is trained"))
    losses: Losses = field(default=Losses(), metadata=_about("what is minimised"))
    optimiser: Optimiser = field(default=Optimiser(), metadata=_about("how it is minimised"))
    validation: Validation = field(default=Validation(), metadata=_about("what it is judged on"))
    hardware: Hardware = field(default=Hardware(), metadata=_about("where it runs"))
    logging: Logging = field(default=Logging(), metadata=_about("what is written"))
