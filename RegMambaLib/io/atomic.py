"""Outputs that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


@contextmanager
def staged(folder: str | Path, names: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden temporary folder whose files move into `folder` when the block ends without an error.

    Enter it before the long work: that a name is taken or the folder not writable shows at once. On any
    error, and on Ctrl-C, everything is removed and `folder` is as before. A folder that holds other files
    keeps them; with `overwrite`, files of ours that were not written again go, so that no result of an
    earlier run stays among the new.

    Args:
        folder: where the outputs belong; it and its parents are made.
        names: every file name that may be written.
        overwrite: replace existing files of these names.

    Raises:
        InputError: a name exists already and `overwrite` is off, or the folder cannot be written to.
    """
    folder = Path(folder)
    taken = [name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        raise InputError(f"{folder / taken[0]} exists already; choose another output, or add --overwrite.")
    near = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with writing(folder):
        staging = Path(tempfile.mkdtemp(prefix=".regmamba-", dir=near))
    try:
        yield staging
        with writing(folder):
            _commit(staging, folder, names)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """As `staged`, for one file: the path to write to instead."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    with staged(path.parent, [path.name], overwrite=overwrite) as staging:
        yield staging / path.name


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turn Python's or ITK's error while a file or folder is written into an `InputError`."""
    try:
        yield
    except MemoryError:
        raise
    except (OSError, RuntimeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise InputError(
            f"Cannot write {target}{reason}; choose a writable folder on a disk with enough free space."
        ) from error


def _commit(staging: Path, folder: Path, names: Sequence[str]) -> None:
    written = {file.name for file in staging.iterdir()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in written:
            (staging / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
