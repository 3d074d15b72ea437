"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from RegMambaLib.errors import InputError
from RegMambaLib.io.atomic import staged, staged_file, writing

NAMES = ("one.txt", "two.txt")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_move_into_a_new_folder_at_the_end(tmp_path):
    target = tmp_path / "a" / "b"
    with staged(target, NAMES) as folder:
        (folder / "one.txt").write_text("1")
        assert not target.exists()
    assert everything(target) == ["one.txt"]
    assert everything(tmp_path) == ["a", "a/b", "a/b/one.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_everything_as_it_was(tmp_path, error, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        (target / "one.txt").write_text("old")
    before = everything(tmp_path)
    with pytest.raises(error), staged(target, NAMES, overwrite=True) as folder:
        (folder / "one.txt").write_text("new")
        raise error
    assert everything(tmp_path) == before
    if exists:
        assert (target / "one.txt").read_text() == "old"


def test_an_existing_output_is_kept_without_overwrite(tmp_path):
    (tmp_path / "two.txt").write_text("old")
    with pytest.raises(InputError, match=r"two\.txt exists already.*--overwrite"), staged(tmp_path, NAMES):
        pytest.fail("the block must not run")
    assert everything(tmp_path) == ["two.txt"]


def test_overwriting_replaces_ours_removes_stale_ones_and_keeps_the_rest(tmp_path):
    for name in (*NAMES, "notes.txt"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path, NAMES, overwrite=True) as folder:
        (folder / "one.txt").write_text("new")
    assert everything(tmp_path) == ["notes.txt", "one.txt"]
    assert (tmp_path / "one.txt").read_text() == "new"


def test_a_target_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"), staged(tmp_path / "file" / "out", NAMES):
        pytest.fail("the block must not run")


def test_a_read_only_folder_is_refused_before_the_work(tmp_path, monkeypatch):
    if os.name == "posix" and os.geteuid() != 0:
        tmp_path.chmod(0o500)
    else:  # no folder is read-only for root

        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*writable"), staged(tmp_path / "out", NAMES):
        pytest.fail("the block must not run")
    tmp_path.chmod(0o700)
    assert everything(tmp_path) == []


def test_one_file_is_staged_too(tmp_path):
    with staged_file(tmp_path / "new" / "image.nii.gz") as path:
        assert path.name == "image.nii.gz"
        path.write_text("x")
    assert everything(tmp_path) == ["new", "new/image.nii.gz"]
    with pytest.raises(InputError, match="is a folder"), staged_file(tmp_path / "new"):
        pytest.fail("the block must not run")


def test_a_failed_write_says_what_and_why_but_lack_of_memory_stays_itself():
    with pytest.raises(InputError, match=r"Cannot write moved \(No space left\)"), writing("moved"):
        raise OSError(28, "No space left")
    with pytest.raises(MemoryError), writing("moved.nii.gz"):
        raise MemoryError


def test_if_one_file_cannot_be_replaced_all_old_ones_stay(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).write_text("old")
    real, last = Path.replace, NAMES[-1]

    def held(self, target):
        if self.parent == tmp_path and self.name == last:  # as on Windows, while another program has it open
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(InputError, match="Permission denied"), staged(tmp_path, NAMES, overwrite=True) as folder:
        for name in NAMES:
            (folder / name).write_text("new")
    assert everything(tmp_path) == sorted(NAMES)
    assert {(tmp_path / name).read_text() for name in NAMES} == {"old"}


def test_what_another_run_wrote_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="exists already"), staged(tmp_path, NAMES) as folder:
        (folder / NAMES[0]).write_text("mine")
        (tmp_path / NAMES[0]).write_text("theirs")
    assert (tmp_path / NAMES[0]).read_text() == "theirs"
