"""numba's compiled kernels on disk: thrown away when the source of any kernel changed.

numba looks at a kernel's own file only, and would go on with a kernel whose helpers in another file have changed, as
after an update of a source checkout.
"""

from __future__ import annotations

import contextlib
from functools import cache
from hashlib import sha256
from pathlib import Path

HOME = Path(__file__).parent
SOURCES = (
    *("spatial/rows.py", "spatial/kernels.py", "spatial/jacobian_kernels.py"),
    *("registration/cortex.py", "registration/kernels.py", "registration/lncc_kernels.py", "registration/repair.py"),
    *("scan/numba_math.py", "scan/numba_lanes.py", "scan/numba_scan.py", "scan/numba_scan_gradient.py"),
    "scan/numba_conv.py",
)
STAMP = "kernels.sha256"


@cache
def forget_stale_kernels(home: Path = HOME) -> None:
    """Delete the compiled kernels beside the sources unless they were made of these sources; once per process.

    Where the folder cannot be written to, numba keeps kernels elsewhere, and nothing is done.
    """
    with contextlib.suppress(OSError):
        found = sha256(b"".join((home / name).read_bytes() for name in SOURCES)).hexdigest()
        stamp = home / "__pycache__" / STAMP
        if stamp.is_file() and stamp.read_text(encoding="ascii") == found:
            return
        for folder in {(home / name).parent for name in SOURCES}:
            for file in (folder / "__pycache__").glob("*.nb?"):
                file.unlink()
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(found, encoding="ascii")
