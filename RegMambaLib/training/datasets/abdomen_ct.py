"""AbdomenCT-CT: abdominal CT of 50 patients with 13 organs (Learn2Reg 2020 task 3; from Beyond the Cranial Vault).

Layouts, recognised by themselves; all volumes are 192 x 160 x 256 at 2 mm, roughly aligned, and are kept on their
grid; -200 to 500 HU become 0 to 1 (the window of GradICON):

- Learn2Reg now: `AbdomenCTCT_dataset.json`, `imagesTr/AbdomenCTCT_0001_0000.nii.gz`, `labelsTr/`, and `imagesTs/`
  without labels. The cases of `registration_val` (45 pairs of 10 patients) are the validation split.
- Learn2Reg 2020: `Training/img/img0001.nii.gz`, `Training/label/label0001.nii.gz`, `pairs_val.csv`, and `Test/img/`.

The test labels are not public; figures are figures on the validation pairs. Whether 12 is the right and 13 the left
adrenal gland, as in the original data, or the other way round, as the challenge page lists them, was not checked on
the images.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .learn2reg import dataset_json, read_dataset, read_pairs_csv
from .source import Preparation, RawCase, Source, by_key, images_in, matching, need

WINDOW = (-200.0, 500.0)


def find(folder: Path) -> Source:
    """The set in a folder.

    Raises:
        InputError: this is no AbdomenCT-CT, or a file is missing.
    """
    file = dataset_json(folder, "AbdomenCTCT")
    if file is not None:
        cases, pairs = read_dataset(file, "CT")
        return Source("Learn2Reg", cases, "listed", Preparation(window=WINDOW), pairs={"val": pairs})
    training = folder / "Training"
    if not training.is_dir():
        raise InputError(
            f"{folder} is no AbdomenCT-CT: it has neither AbdomenCTCT_dataset.json nor Training/img; "
            "see docs/datasets.md for its layouts."
        )
    pairs = read_pairs_csv(need(folder / "pairs_val.csv", "it pairs the validation cases"), "img{:04d}")
    held_out = {name for pair in pairs for name in pair}
    images = by_key(images_in(training / "img"), matching(r"(img\d+)\.nii(?:\.gz)?"), "the image")
    for name in sorted(held_out - images.keys()):
        need(training / "img" / f"{name}.nii.gz", "pairs_val.csv lists it")
    tests = by_key(images_in(folder / "Test"), matching(r"(img\d+)\.nii(?:\.gz)?"), "the image")
    found = [
        RawCase(
            name,
            name,
            "val" if name in held_out else "train",
            "CT",
            image,
            need(training / "label" / image.name.replace("img", "label", 1), f"it belongs to {image.name}"),
        )
        for name, image in sorted(images.items())
    ]
    found += [RawCase(name, name, "test", "CT", image) for name, image in sorted(tests.items())]
    return Source("Learn2Reg 2020", tuple(found), "listed", Preparation(window=WINDOW), pairs={"val": pairs})
