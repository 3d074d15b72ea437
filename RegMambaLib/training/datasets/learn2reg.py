"""The layout of the Learn2Reg challenge: `<Task>_dataset.json` beside imagesTr, labelsTr and imagesTs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from .source import RawCase, need, stem_of

Pairs = tuple[tuple[str, str], ...]


def dataset_json(folder: Path, task: str) -> Path | None:
    """The `<task>_dataset.json` in a folder or in its folder `<task>`."""
    places = (folder / f"{task}_dataset.json", folder / task / f"{task}_dataset.json")
    return next((place for place in places if place.is_file()), None)


def read_dataset(file: Path, modality: str) -> tuple[tuple[RawCase, ...], Pairs]:
    """The cases and the validation pairs (fixed id, moving id) of a `<Task>_dataset.json`.

    Cases of `registration_val` are the split "val", the other ones of `training` "train", those of `test` "test"
    (their labels are not public). Labels lie in labelsTr under the name of the image.

    Raises:
        InputError: the JSON is damaged, or a file it names is missing.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        training = [_image(entry) for entry in raw["training"]]
        test = [_image(entry) for entry in raw.get("test", [])]
        pairs = tuple((_id(entry["fixed"]), _id(entry["moving"])) for entry in raw.get("registration_val", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged or no Learn2Reg table ({error}); download the data set again.") from error
    held_out = {case_id for pair in pairs for case_id in pair}
    cases = []
    for name in training:
        image = need(file.parent / name, f"{file.name} lists it")
        labels = need(file.parent / "labelsTr" / image.name, f"it belongs to {name}")
        split = "val" if _id(name) in held_out else "train"
        cases.append(RawCase(_id(name), _id(name), split, modality, image, labels))
    for name in test:
        image = file.parent / name
        if image.exists():  # the test images are a separate download
            cases.append(RawCase(_id(name), _id(name), "test", modality, image))
    unknown = held_out - {case.id for case in cases}
    if unknown:
        raise InputError(f"{file} pairs {sorted(unknown)[0]}, which it does not list; download the data set again.")
    return tuple(cases), pairs


def read_pairs_csv(file: Path, name: str) -> Pairs:
    """Pairs (fixed id, moving id) of a Learn2Reg `pairs_val.csv`; `name` makes an id of a number, as "img{:04d}".

    Raises:
        InputError: the table has no columns fixed and moving, or they hold no numbers.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, skipinitialspace=True))
        return tuple((name.format(int(row["fixed"])), name.format(int(row["moving"]))) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} needs the columns fixed and moving with case numbers; download it again.") from error


def _image(entry: Any) -> str:
    return str(entry["image"] if isinstance(entry, dict) else entry).removeprefix("./")


def _id(image: str) -> str:
    return stem_of(Path(image))
