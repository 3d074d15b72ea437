"""What Register does about missing Python packages: asks, installs the right ones, and says what is left to do."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("PySide6")
pytest.importorskip("bridge_help")

import slicer
from slicer_bench.hands import click

pytest_plugins = ["slicer_bench.fixtures"]


@pytest.fixture
def missing(monkeypatch):
    """Names in it are as if not installed."""
    from RegMambaSlicer import dependencies

    names, real = set(), dependencies.is_there
    monkeypatch.setattr(dependencies, "is_there", lambda name: name not in names and real(name))
    return names


def message_after_register(pair):
    click(pair.panel.ui.register_button)
    assert not pair.panel.busy
    return pair.panel.ui.status_label.text()


def test_nothing_is_asked_or_installed_when_the_module_opens(missing, opened, bench):
    missing |= {"numba", "torch", "safetensors"}
    assert bench.asked == bench.installed == []


def test_without_consent_nothing_is_installed_and_the_message_says_what_is_needed(missing, pair, bench):
    missing.add("numba")
    bench.consent = False
    said = message_after_register(pair)
    assert "numba" in said and "Register again" in said
    assert bench.installed == []
    assert "numba" in bench.asked[0]


def test_with_consent_only_what_is_missing_is_installed_and_slicers_own_stays(missing, pair, bench, monkeypatch):
    missing.add("numba")
    monkeypatch.setattr(
        slicer.util, "pip_install", lambda wanted: bench.installed.append(wanted) or missing.discard("numba")
    )
    monkeypatch.setattr(pair.panel, "start", lambda *_: None)
    click(pair.panel.ui.register_button)
    wanted = bench.installed[0]
    assert wanted[0].startswith("numba>=")
    assert f"numpy=={metadata.version('numpy')}" in wanted
    assert f"SimpleITK=={metadata.version('SimpleITK')}" in wanted
    assert not any(line.startswith(("torch", "safetensors")) for line in wanted)


def test_slicers_packaging_does_it_where_there_is_one(missing, pair, monkeypatch):
    from importlib.machinery import ModuleSpec

    missing.add("safetensors")
    asked = []
    double = ModuleType("slicer.packaging")
    double.__spec__ = ModuleSpec("slicer.packaging", None)
    double.load_requirements = lambda path: [path]

    def pip_ensure(wanted, constraints=None, requester=None):
        held = Path(constraints).read_text()
        assert f"numpy=={metadata.version('numpy')}\n" in held and "SimpleITK==" in held
        asked.append((wanted, requester))
        missing.clear()

    double.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", double)
    monkeypatch.setattr(pair.panel, "start", lambda *_: asked.append("started"))
    click(pair.panel.ui.register_button)
    (wanted, requester), then = asked
    assert wanted[0].endswith("requirements.txt")
    assert requester == "RegMamba"
    assert then == "started"


def test_declining_in_slicers_packaging_is_not_a_matter_of_the_network(missing, pair, monkeypatch):
    from importlib.machinery import ModuleSpec

    missing.add("numba")
    double = ModuleType("slicer.packaging")
    double.__spec__ = ModuleSpec("slicer.packaging", None)
    double.load_requirements = lambda path: [path]

    def pip_ensure(wanted, requester=None):
        raise RuntimeError("User declined package installation")

    double.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", double)
    said = message_after_register(pair)
    assert "press Register again and allow it" in said and "network" not in said


def test_packages_that_are_too_old_are_replaced_and_torch_is_named(pair, bench, monkeypatch):
    from RegMambaSlicer import dependencies

    real = metadata.version
    found = {"numba": "0.58.1"}
    monkeypatch.setattr(dependencies.metadata, "version", lambda name: found.get(name) or real(name))
    bench.consent = False
    assert "numba>=" in message_after_register(pair)
    found["torch"] = "2.1.2+cu121"
    assert "version 2.1.2+cu121 is installed" in message_after_register(pair)
    found.clear()
    assert dependencies.missing() == []


def test_an_old_slicer_is_named(pair, monkeypatch):
    from RegMambaSlicer import dependencies

    monkeypatch.setattr(dependencies, "OLDEST_PYTHON", (99, 0))
    assert "Slicer 5.10 or newer" in message_after_register(pair)


def test_without_the_pytorch_extension_the_message_names_it(missing, pair, bench):
    missing.add("torch")
    said = message_after_register(pair)
    assert "PyTorch extension" in said and "Extensions Manager" in said
    assert bench.installed == []


@pytest.mark.parametrize("agrees", [True, False])
def test_torch_comes_from_the_pytorch_extension_with_its_own_question(missing, pair, monkeypatch, agrees):
    missing.add("torch")
    calls = []

    def install(**values):
        calls.append(values)
        if agrees:
            missing.clear()
        return object() if agrees else None

    double = ModuleType("PyTorchUtils")
    double.PyTorchUtilsLogic = lambda: SimpleNamespace(installTorch=install)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", double)
    monkeypatch.setattr(pair.panel, "start", lambda *_: calls.append("started"))
    click(pair.panel.ui.register_button)
    assert calls[0] == {"askConfirmation": True, "torchVersionRequirement": ">=2.2"}
    if agrees:
        assert calls[1:] == ["started"]
    else:
        assert len(calls) == 1
        assert "needs PyTorch" in pair.panel.ui.status_label.text()


def test_a_failed_installation_says_why_and_what_to_do(missing, pair, monkeypatch):
    missing.add("numba")

    def fail(wanted):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    said = message_after_register(pair)
    assert "no route to host" in said and "network" in said


@pytest.mark.parametrize(("platform", "says"), [("linux", "pip_install"), ("win32", "Linux only")])
def test_the_settings_say_what_the_cuda_kernels_bring_and_how_to_add_them(monkeypatch, bench, platform, says):
    from RegMambaSlicer import dependencies

    monkeypatch.setattr(dependencies, "is_there", lambda name: False)
    monkeypatch.setattr(dependencies.sys, "platform", platform)
    text = dependencies.describe_kernels()
    assert says in text and "everything works" in text
    monkeypatch.setattr(dependencies, "is_there", lambda name: True)
    assert "are installed" in dependencies.describe_kernels()
