"""The table of data sets: how each is found, what its labels mean, whose it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from . import abdomen_ct, bids, folder, ixi, lpba40, oasis, sr_reg
from .source import Options, Source


@dataclass(frozen=True)
class DataSet:
    """One line of the table.

    Attributes:
        title: what it is, in a few words.
        find: makes a `Source` of what the owners distribute.
        labels: name of its label table, see `tables`; None: the labels have no names.
        licence, citation: as its owners ask for.
        own: the user's own images, to which `Options` apply.
    """

    title: str
    find: Callable[[Path, Options], Source]
    labels: str | None
    licence: str
    citation: str
    own: bool = False


def _fixed(find: Callable[[Path], Source]) -> Callable[[Path, Options], Source]:
    return lambda source, options: find(source)


DATA_SETS = {
    "lpba40": DataSet(
        "40 T1 brains, 56 hand-drawn regions (LONI)",
        _fixed(lpba40.find),
        "lpba40",
        "LONI research licence: academic, non-commercial use; no redistribution",
        "Shattuck DW et al. Construction of a 3D probabilistic atlas of human cortical structures. NeuroImage 39 "
        "(2008) 1064-1080.",
    ),
    "ixi": DataSet(
        "576 T1 brains, FreeSurfer labels (TransMorph's), or IXI-T1 as it is",
        _fixed(ixi.find),
        "ixi",
        "CC BY-SA 3.0",
        "IXI, brain-development.org. Preprocessing: Chen J et al. TransMorph. Med. Image Anal. 82 (2022) 102615.",
    ),
    "oasis": DataSet(
        "414 T1 brains, 35 structures (neurite, Learn2Reg 2021)",
        _fixed(oasis.find),
        "oasis",
        "OASIS data use agreement",
        "Marcus DS et al. J. Cogn. Neurosci. 19 (2007) 1498-1507. Hoopes A et al. HyperMorph. IPMI 2021.",
    ),
    "abdomen-ct": DataSet(
        "50 abdominal CT, 13 organs (Learn2Reg 2020)",
        _fixed(abdomen_ct.find),
        "abdomen-ct",
        "the terms of Learn2Reg and of Beyond the Cranial Vault (Synapse syn3193805)",
        "Xu Z et al. IEEE Trans. Biomed. Eng. 63 (2016) 1563-1572. Hering A et al. Learn2Reg. IEEE Trans. Med. Imaging "
        "42 (2023) 697-712.",
    ),
    "sr-reg": DataSet(
        "180 brains in MR and CT, 18 structures (MambaMorph)",
        _fixed(sr_reg.find),
        "sr-reg",
        "CC BY-NC 4.0",
        "Guo T et al. MambaMorph. arXiv 2401.13934. Thummerer A et al. SynthRAD2023. Med. Phys. 50 (2023) 4664-4674.",
    ),
    "folder": DataSet("images of your own in a folder", folder.find, None, "not stated", "not stated", own=True),
    "bids": DataSet("images of your own in BIDS", bids.find, None, "not stated", "not stated", own=True),
}


def data_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        InputError: there is none.
    """
    if name not in DATA_SETS:
        raise InputError(f"There is no data set {name!r}; use {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]


def find_source(name: str, source: Path, options: Options | None = None) -> Source:
    """The cases of a data set in a folder, as it was distributed; nothing is read but names, lists and tables.

    Raises:
        InputError: no such data set or folder, a file is missing, or `options` are given to a published set.
    """
    known = data_set(name)
    if source.is_file():
        raise InputError(f"{source} is a file; unpack it (tar -xf, unzip) and give the folder.")
    if not source.is_dir():
        raise InputError(f"The folder {source} does not exist; check the path.")
    if options is not None and options != Options() and not known.own:
        raise InputError(f"{name} has its own names, splits and modality; such options are for folder and bids.")
    return known.find(source, options or Options())
