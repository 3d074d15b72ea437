"""`regmamba warmup`: compile the numerical kernels now instead of during the first registration."""

from __future__ import annotations

import time

import typer


def warmup() -> None:
    """Compile the numerical kernels, so that the first registration does not wait for it.

    Once after installing or updating; they are kept on disk.
    """
    from ..registration.warmup import compile_kernels, is_compiled

    began = time.perf_counter()
    typer.echo("Already compiled; checking." if is_compiled() else "Compiling, about a minute ...", err=True)
    compile_kernels()
    typer.echo(f"The kernels are ready ({time.perf_counter() - began:.0f} s).")
