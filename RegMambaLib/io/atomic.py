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
    _check_free(folder, names, overwrite)
    near = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with writing(folder):
        staging = Path(tempfile.mkdtemp(prefix=".regmamba-", dir=near))
    try:
        yield staging
        with writing(folder):
            _commit(staging, folder, names, overwrite)
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


def _check_free(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    taken = [name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        raise InputError(f"{folder / taken[0]} exists already; choose another output, or add --overwrite.")


def _commit(staging: Path, folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Move what was written into `folder`, the old files out of it; if one cannot be moved, all go back."""
    written = [name for name in names if (staging / name).exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _check_free(folder, names, overwrite)  # another run may have ended meanwhile
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=staging))
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target, some in ((folder, old, names), (staging, folder, written)):
            for name in some:
                if (source / name).exists():
                    (source / name).replace(target / name)
                    moved.append((source / name, target / name))
    except BaseException:
        for source, target in reversed(moved):
            target.replace(source)
        raise
