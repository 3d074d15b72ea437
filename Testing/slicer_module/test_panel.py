"""The panel as a user meets it: inputs, reasons, settings, presets; on the bench's doubles, with real MRML."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("PySide6")
pytest.importorskip("bridge_help")  # finds slicer-core past this folder's own name

import slicer
from slicer_bench.hands import choose, choose_pair, click, make_pair, node, write

from RegMambaLib.registration.settings import CHOICES, Settings

pytest_plugins = ["slicer_bench.fixtures"]

ROOT = Path(__file__).resolve().parents[2]


def settings_of(opened):
    return Settings.from_dict(json.loads(opened.panel.parameters.settings))


def test_register_is_disabled_and_says_why_until_two_volumes_are_chosen(opened):
    ui = opened.panel.ui
    assert not ui.register_button.isEnabled()
    assert "fixed volume" in ui.register_button.toolTip()
    make_pair()
    choose(ui.fixed_selector, "fixed")
    assert not ui.register_button.isEnabled()
    assert ui.status_label.text() == ui.register_button.toolTip() == "Choose the moving volume."
    choose(ui.moving_selector, "moving")
    assert ui.register_button.isEnabled()
    assert ui.status_label.text() == ""


def test_the_same_volume_twice_is_refused(opened):
    make_pair()
    choose_pair(opened)
    choose(opened.panel.ui.moving_selector, "fixed")
    assert not opened.panel.ui.register_button.isEnabled()
    assert "same volume" in opened.panel.ui.register_button.toolTip()


def test_a_volume_without_an_image_or_with_a_single_slice_is_refused(opened):
    import numpy as np

    make_pair()
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    flat = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "flat")
    slicer.util.updateVolumeFromArray(flat, np.zeros((1, 30, 30), np.int16))
    choose_pair(opened)
    for name, said in (("empty", "holds no image"), ("flat", "30 x 30 x 1 voxels")):
        choose(opened.panel.ui.moving_selector, name)
        assert not opened.panel.ui.register_button.isEnabled()
        assert said in opened.panel.ui.register_button.toolTip()


def test_the_parameter_node_keeps_every_input_and_output_of_a_job(opened):
    from RegMambaSlicer.nodes import INPUTS, OPTIONAL_OUTPUTS, TABLES

    kept = opened.panel.parameters.allParameters
    wanted = {f"want_{name}" for name in OPTIONAL_OUTPUTS}
    others = {"transform", "composite", "preset", "settings", "want_table"}
    assert set(kept) == {*INPUTS, *OPTIONAL_OUTPUTS, *TABLES, *wanted, *others}


def test_an_input_cannot_be_an_output(pair):
    choose(pair.panel.ui.volume_selector, "moving")
    assert not pair.panel.ui.register_button.isEnabled()
    assert "also an input" in pair.panel.ui.register_button.toolTip()


def test_swap_exchanges_volumes_labels_and_masks(pair):
    choose(pair.panel.ui.fixed_mask_selector, "fixed labels")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "start")
    choose(pair.panel.ui.initial_transform_selector, "start")
    p = pair.panel.parameters
    assert p.initial_transform is node("start")
    click(pair.panel.ui.swap_button)
    assert p.initial_transform is None
    assert (p.fixed.GetName(), p.moving.GetName()) == ("moving", "fixed")
    assert (p.fixed_labels.GetName(), p.moving_labels.GetName()) == ("moving labels", "fixed labels")
    assert p.fixed_mask is None
    assert p.moving_mask.GetName() == "fixed labels"
    assert pair.panel.ui.fixed_selector.currentText() == "moving"


def test_every_setting_of_the_library_has_its_widget_help_range_and_default(opened):
    rows = opened.panel.settings_view.rows
    assert set(rows) | {"uncertainty"} == {f.name for f in fields(Settings)}  # which is among the outputs
    for field in (f for f in fields(Settings) if f.name in rows):
        widget = rows[field.name].widget
        assert widget.toolTip() == field.metadata["help"]
        if field.name in CHOICES:
            assert [widget.itemText(n) for n in range(widget.count())] == list(CHOICES[field.name])
        if hasattr(widget, "maximum") and field.metadata["high"] is not None:
            assert (widget.minimum(), widget.maximum()) == (field.metadata["low"], field.metadata["high"])
    assert opened.panel.settings_view.read() == Settings()


@pytest.mark.parametrize(
    ("name", "change", "value"),
    [
        ("affine", lambda w: w.setCurrentText("rigid"), "rigid"),
        ("guide_weight", lambda w: w.setValue(2.5), 2.5),
        ("window", lambda w: w.setValue(7), 7),
        ("repair", lambda w: w.setChecked(False), False),
        ("device", lambda w: w.setEditText("cuda:2"), "cuda:2"),
        ("iterations", lambda w: write(w, "30, 20"), (30, 20)),
        ("iterations", lambda w: write(w, ""), ()),
    ],
    ids=lambda v: str(v) if not callable(v) else "",
)
def test_a_changed_setting_is_kept_in_the_parameter_node(opened, name, change, value):
    change(opened.panel.settings_view.rows[name].widget)
    assert settings_of(opened) == Settings(**{name: value})


@pytest.mark.parametrize(("name", "text"), [("spacing", "2.75"), ("spacing", "0.5"), ("seed", "123")])
def test_a_number_can_be_typed_digit_by_digit(opened, name, text):
    widget = opened.panel.settings_view.rows[name].widget
    write(widget, text)
    assert getattr(settings_of(opened), name) == float(text)
    assert widget.value() == float(text)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("iterations", lambda w: write(w, "many")),
        ("iterations", lambda w: write(w, "10, -3")),
        ("window", lambda w: w.setValue(6)),
    ],
)
def test_a_bad_setting_gives_a_message_and_is_not_kept(opened, name, change):
    change(opened.panel.settings_view.rows[name].widget)
    assert opened.panel.ui.status_label.text() != ""
    assert "c0392b" in opened.panel.ui.status_label.styleSheet()
    assert settings_of(opened) == Settings()


def test_label_guidance_without_labels_says_what_is_missing(opened):
    make_pair()
    choose_pair(opened, labels=False)
    opened.panel.settings_view.rows["guide"].widget.setChecked(True)
    assert "needs fixed and moving labels" in opened.panel.ui.register_button.toolTip()
    choose_pair(opened)
    assert opened.panel.ui.register_button.isEnabled()


def test_presets_that_ship_fill_the_settings(opened):
    selector = opened.panel.ui.preset_selector
    names = [selector.itemText(n) for n in range(selector.count())]
    assert names == ["brain", "general", "refine only", "custom weights file"]
    assert selector.currentText() == "brain"
    assert settings_of(opened) == Settings()
    choose(selector, "refine only")
    assert settings_of(opened) == Settings(affine="none", weights="none")
    assert opened.panel.settings_view.read() == settings_of(opened)


def test_a_weights_file_of_ones_own_can_be_chosen(opened):
    ui = opened.panel.ui
    assert ui.weights_path.isHidden()
    choose(ui.preset_selector, "custom weights file")
    assert not ui.weights_path.isHidden()
    ui.weights_path.setCurrentPath("my.safetensors")
    assert settings_of(opened).weights == "my.safetensors"
    opened.panel.settings_view.rows["weights"].widget.setText("other.pth")  # as a scene with other settings does
    opened.panel._settings_changed(opened.panel.settings_view.read())
    assert ui.weights_path.text() == "other.pth"


def test_a_preset_of_ones_own_can_be_saved_and_added(opened, bench, tmp_path):
    import qt

    ui = opened.panel.ui
    opened.panel.settings_view.rows["window"].widget.setValue(9)
    qt.QFileDialog.answer = str(bench.user_folder / "RegMamba" / "Presets" / "wide_window.json")
    click(ui.save_preset_button)
    choose(ui.preset_selector, "general")
    assert settings_of(opened).window == Settings().window
    choose(ui.preset_selector, "wide window")
    assert settings_of(opened).window == 9
    foreign = tmp_path / "from_a_colleague.json"
    foreign.write_text('{"metric": "mind"}')
    qt.QFileDialog.answer = str(foreign)
    click(ui.add_preset_button)
    assert ui.preset_selector.currentText() == "from a colleague"
    assert settings_of(opened) == Settings(metric="mind")
    foreign.write_text('{"metric": "best"}')
    click(ui.add_preset_button)
    assert "metric must be one of" in ui.status_label.text()
    qt.QFileDialog.answer = str(tmp_path / "elsewhere.json")
    click(ui.save_preset_button)
    assert "Add..." in ui.status_label.text()
    assert ui.preset_selector.findText("elsewhere") < 0


def test_inputs_and_settings_are_saved_with_the_scene_and_come_back(pair, bench, tmp_path):
    pair.panel.settings_view.rows["window"].widget.setValue(7)
    pair.panel.ui.want_jacobian_check.setChecked(True)
    kept = settings_of(pair)
    file = tmp_path / "scene.mrml"
    bench.scene.SetURL(str(file))
    assert bench.scene.Commit()
    bench.scene.Clear(0)
    assert pair.panel.parameters.fixed is None
    assert settings_of(pair) == Settings()
    bench.scene.SetURL(str(file))
    assert bench.scene.Connect()
    assert pair.panel.parameters.fixed.GetName() == "fixed"
    assert pair.panel.ui.moving_selector.currentText() == "moving"
    assert settings_of(pair) == kept
    assert pair.panel.settings_view.read() == kept
    assert pair.panel.ui.want_jacobian_check.isChecked()


def test_settings_of_another_version_in_a_scene_give_a_message(pair):
    pair.panel.parameters.settings = '{"smoothness": 3}'
    assert not pair.panel.ui.register_button.isEnabled()
    assert "choose a preset" in pair.panel.ui.register_button.toolTip()
    choose(pair.panel.ui.preset_selector, "general")
    assert pair.panel.ui.register_button.isEnabled()


def test_removing_an_input_from_the_scene_disables_register(pair):
    slicer.mrmlScene.RemoveNode(node("moving"))
    assert not pair.panel.ui.register_button.isEnabled()


def test_opening_the_module_loads_nothing_heavy_and_starts_no_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], sys.argv[2]]; import slicer_bench;"
        "slicer_bench.install(Path(sys.argv[3])); import RegMamba; w = RegMamba.RegMambaWidget();"
        "assert w.logic._job is None;"
        "print(sorted({'torch', 'numba', 'SimpleITK', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "Testing"), str(ROOT), str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_sample_data_offers_slicers_own_tumor_pair(bench, monkeypatch):
    from types import ModuleType, SimpleNamespace

    import RegMamba

    registered = []

    class SampleDataLogic:
        """A double of Slicer's, with its two data sets."""

        def sourceForSampleName(self, name):
            return SimpleNamespace(uris=[f"u/{name}"], fileNames=[f"{name}.nrrd"], nodeNames=[name], checksums=["c"])

        @staticmethod
        def registerCustomSampleDataSource(**values):
            registered.append(values)

    double = ModuleType("SampleData")
    double.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", double)
    module = RegMamba.RegMamba(SimpleNamespace())
    assert module.parent.title == "RegMamba"
    assert module.parent.categories == ["Registration"]
    assert registered == []
    bench.started[0]()
    assert registered[0]["nodeNames"] == ["MRBrainTumor1", "MRBrainTumor2"]
    assert Path(registered[0]["thumbnailFileName"]).is_file()
    assert len({len(registered[0][key]) for key in ("uris", "fileNames", "nodeNames", "checksums")}) == 1
