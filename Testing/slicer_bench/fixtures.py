"""Fixtures for tests of the panel, as a pytest plugin: a bench, the module's widget on it, a made pair chosen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import slicer

from . import application
from .hands import choose_pair, make_pair, set_quick


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """A bench with an empty scene."""
    return application.install(tmp_path)


@pytest.fixture
def opened(bench: Any, monkeypatch: Any) -> Any:
    """The module's widget, as after opening the module; closed afterwards. Nothing may fail in a slot unseen."""
    import RegMamba

    failures: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: failures.append(error))

    widget = RegMamba.RegMambaWidget()
    widget.parent.resize(440, 1000)
    bench.wait(lambda: True)
    yield widget
    widget.cleanup()
    for child in vars(widget.panel.ui).values():
        if hasattr(child, "release"):
            child.release()
    assert failures == []
    widget.parent.close()


@pytest.fixture(scope="session")
def kept_client() -> Any:
    """A client whose worker serves many tests; the end of a scene does not end it."""
    from RegMambaSlicer.worker_client import WorkerClient

    class KeptClient(WorkerClient):
        def shutdown(self) -> None:
            """At the end of the session instead."""

    client = KeptClient()
    yield client
    client.cancel()


@pytest.fixture
def pair(opened: Any, kept_client: Any) -> Any:
    """The widget with a made pair chosen by its selectors, quick settings, and a worker that may be warm."""
    from RegMambaSlicer.logic import RegistrationJob

    opened.logic._job = RegistrationJob(kept_client, slicer.mrmlScene)
    make_pair()
    choose_pair(opened)
    set_quick(opened)
    return opened
