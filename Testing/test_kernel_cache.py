"""Compiled kernels do not outlive their sources."""

from __future__ import annotations

from pathlib import Path

from RegMambaLib import kernel_cache


def made_home(folder: Path) -> Path:
    for name in kernel_cache.SOURCES:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"# {name}")
    return folder


def compiled(home: Path) -> Path:
    file = home / "scan" / "__pycache__" / "numba_scan.scan-1.py311.nbi"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"code")
    return file


def look(home: Path) -> None:
    kernel_cache.forget_stale_kernels.cache_clear()
    kernel_cache.forget_stale_kernels(home)


def test_kernels_stay_until_a_source_changes(tmp_path):
    home = made_home(tmp_path)
    old = compiled(home)
    look(home)
    assert not old.exists()  # nobody knows what they were made of
    kept = compiled(home)
    look(home)
    assert kept.exists()
    (home / "scan" / "numba_math.py").write_text("# another helper")
    look(home)
    assert not kept.exists()


def test_every_file_with_kernels_is_watched():
    sources = Path(kernel_cache.__file__).parent.rglob("*.py")
    found = {
        file.relative_to(kernel_cache.HOME).as_posix()
        for file in sources
        if any(mark in file.read_text(encoding="utf-8") for mark in ("@njit", "@numba.njit", "= njit("))
    }
    assert found == set(kernel_cache.SOURCES)
