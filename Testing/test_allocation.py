"""Freed memory stays with a program until it gives it back, and memory is fetched before it is needed."""

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


_FETCHED = """
import sys
import numpy as np
from RegMambaLib.allocation import keep_freed_memory, memory_fetched

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "kept":
    keep_freed_memory()
before = resident()
with memory_fetched(128 * 2**20):
    pass
fetched = resident() - before
array = np.ones(2**23)
with memory_fetched(0):
    pass
print(fetched, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_was_fetched_is_used_by_what_comes_where_freed_memory_is_kept(kept):
    command = [sys.executable, "-c", _FETCHED, "kept" if kept else "given back"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    fetched, after = map(float, found.stdout.split())
    if kept:
        assert 120 < fetched < 140 and after < fetched + 10
    else:
        assert fetched < 10 and 60 < after < 80
