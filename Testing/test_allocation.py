"""Freed memory stays with a program until it gives it back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_HELD = """
import numpy as np
from RegMambaLib.allocation import keep_freed_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def work():
    for _ in range(3):
        array = np.ones(2**23)
        del array
    return resident()

keep_freed_memory()
before = resident()
kept = work() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_kept_and_then_given_back():
    found = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, check=True)
    kept, left = map(float, found.stdout.split())
    assert 60 < kept < 100 and left < 10
