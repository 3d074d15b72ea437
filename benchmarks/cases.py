"""The pairs that are registered, and what is asked about them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("REGMAMBA_TEST_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """Pairs of one folder; subjects are put into the file names.

    Attributes:
        title: as the tables call it.
        pairs: (fixed, moving) subjects.
        aligned: the images are aligned linearly already, and every tool is told so.
        groups: structure groups by the label, beside "all".
        air: intensity outside the image.
    """

    folder: str
    title: str
    image: str
    labels: str
    pairs: tuple[tuple[str, str], ...]
    aligned: bool = True
    groups: dict[str, Callable[[int], bool]] = field(default_factory=dict)
    air: float = 0.0

    def names(self, subject: str) -> tuple[str, str]:
        """Image and label map of a subject, relative to the data folder."""
        return f"{self.folder}/{self.image.format(subject)}", f"{self.folder}/{self.labels.format(subject)}"


@dataclass(frozen=True)
class Job:
    """One registration: the files, whether they are aligned, where the results go."""

    fixed: Path
    moving: Path
    fixed_labels: Path
    moving_labels: Path
    folder: Path
    aligned: bool
    threads: int
    air: float = 0.0

    @property
    def inputs(self) -> tuple[Path, ...]:
        return self.fixed, self.moving, self.fixed_labels, self.moving_labels

    def write(self, path: Path) -> None:
        """For the process that runs it."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        path.write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: Path(value) if isinstance(value, str) else value for name, value in values.items()})


# Klein's and FreeSurfer's numbers: cortical regions of the DKT protocol are 1002 to 2035.
DKT = {"cortical": lambda label: label >= 1000, "subcortical": lambda label: label < 1000}
# MUSE numbers its gyri from 100 on.
MUSE = {"cortical": lambda label: label >= 100, "subcortical": lambda label: label < 100}
# FreeSurfer's aseg: the cortex of a side is one label.
ASEG = {"cortical": lambda label: label in (3, 42), "subcortical": lambda label: label not in (3, 42)}

CASES = {
    "mindboggle_1mm": Case(
        "mindboggle_1mm",
        "Mindboggle-101, T1, 160 x 192 x 160 at 1 mm, aligned",
        "sub{}_t1.nii.gz",
        "sub{}_dkt31cma.nii.gz",
        (("01", "02"), ("03", "04"), ("05", "06")),
        groups=DKT,
    ),
    "mindboggle_2mm": Case(
        "mindboggle_2mm",
        "Mindboggle-101, T1, 80 x 96 x 80 at 2 mm, aligned",
        "sub{}_t1.nii.gz",
        "sub{}_dkt31cma.nii.gz",
        (("01", "02"), ("03", "04"), ("05", "06")),
        groups=DKT,
    ),
    "mindboggle_native": Case(
        "mindboggle_native",
        "Mindboggle-101, T1, 256 x 256 x 160 at 1 mm as scanned, not aligned",
        "sub{}_t1.nii.gz",
        "sub{}_dkt31cma.nii.gz",
        (("01", "02"),),
        aligned=False,
        groups=DKT,
    ),
    "oasis_pair": Case(
        "oasis_pair",
        "OASIS-1, T1, 160 x 192 x 224 at 1 mm, aligned",
        "scan{}_t1.nii.gz",
        "scan{}_fs46.nii.gz",
        (("A", "B"),),
        groups=ASEG,
    ),
    "ixi_2mm": Case(
        "ixi_2mm",
        "IXI, T1, 80 x 96 x 80 at 2 mm, aligned",
        "IXI{}_t1.nii.gz",
        "IXI{}_dlmuse.nii.gz",
        (("013", "014"), ("015", "033"), ("034", "014")),
        groups=MUSE,
    ),
    "hippocampus_64": Case(
        "hippocampus_64",
        "Hippocampus (MSD task 4), T1 crops, 64 x 64 x 64 at 1 mm, taken as aligned",
        "hippocampus_{}_img.nii.gz",
        "hippocampus_{}_seg.nii.gz",
        (("001", "003"), ("004", "006"), ("007", "008"), ("011", "014")),
    ),
    "openkbp_ct": Case(
        "openkbp_ct",
        "OpenKBP, head and neck CT, 128 x 128 x 128 at about 4 x 4 x 2.5 mm, not aligned",
        "pt_{}_ct.nii.gz",
        "pt_{}_oar7.nii.gz",
        # Two pairs, and every patient once as fixed image with the next one as moving image.
        (
            ("004", "034"),
            ("013", "031"),
            ("004", "013"),
            ("013", "017"),
            ("017", "022"),
            ("022", "031"),
            ("031", "034"),
            ("034", "004"),
        ),
        aligned=False,
        air=-1024.0,
    ),
}


def jobs(data: Path, case: Case, wanted: list[str] | None, folder: Path, threads: int) -> Iterator[tuple[str, Job]]:
    """(name such as "1<-2", job) of the pairs of a case; `wanted` are such names."""
    for fixed, moving in case.pairs:
        name = f"{fixed.lstrip('0')}<-{moving.lstrip('0')}"
        if wanted and name not in wanted:
            continue
        files = [data / path for path in (*case.names(fixed), *case.names(moving))]
        yield name, Job(files[0], files[2], files[1], files[3], folder, case.aligned, threads, case.air)
