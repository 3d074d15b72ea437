"""Training configurations: what is accepted, what each wrong one is told, and that the documentation keeps step."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

pytest.importorskip("torch")
pytest.importorskip("yaml")

from RegMambaLib.errors import InputError
from RegMambaLib.training import config as config_module
from RegMambaLib.training.config import TrainingConfig
from RegMambaLib.training.config_file import load_config, shipped_configs
from RegMambaLib.training.synthetic import SyntheticSettings
from RegMambaLib.training.tree import plain, tree_from

DOCS = Path(__file__).parents[1] / "docs" / "training.md"
SHAPES = {"data": {"synthetic": {"contrast": "any", "settings": {"shapes": 1}}}}


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path):
    file = written(
        tmp_path,
        """
        seed: 3
        data:
          prepared: [{manifest: lpba40, pairs: atlas}, {manifest: ixi, share: 2, shrink: 2}]
        network: {options: {channels: [4, 8]}}
        optimiser: {learning_rate: 1e-3}
        hardware: {precision: 32}
        """,
    )
    config = load_config(file, ["losses.mse=0.5", "steps=7", "data.workers=2", "output=~/here"])
    assert config.seed == 3 and config.steps == 7 and config.data.workers == 2 and config.losses.mse == 0.5
    assert [str(p.manifest) for p in config.data.prepared] == ["lpba40", "ixi"] and config.data.synthetic is None
    assert config.data.prepared[1].share == 2.0 and config.data.prepared[0].pairs == "atlas"
    assert config.optimiser.learning_rate == 1e-3 and config.hardware.precision == "32"
    assert config.output == Path("~/here").expanduser()
    assert tree_from(TrainingConfig, plain(config)) == config


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_are_complete_but_for_the_data(name):
    assignments = [] if name == "smoke" else ["data.synthetic.labels=maps"]
    assert load_config(name, assignments).steps > 100
    if assignments:
        with pytest.raises(InputError, match=r"data\.synthetic\.labels is missing"):
            load_config(name)


def test_the_shipped_weights_configurations_ship():
    assert shipped_configs() == ["brain-t1", "general", "smoke"]


WRONG = {
    "stepz: 3": "There is no stepz; did you mean steps?",
    "losses: {lnc: 1}": "There is no losses.lnc; did you mean lncc?",
    "zzzz: 3": "There is no zzzz; known are data, output",
    "steps: many": "steps must be a whole number, not 'many'",
    "steps: 0": "steps must be a number of at least 1, not 0",
    "steps: true": "steps must be a whole number, not True",
    "losses: {lncc: -1}": "losses.lncc must be a number of at least 0, not -1",
    "losses: {lncc: .nan}": "losses.lncc must be a number",
    "losses: {lncc: 0}": "losses has no similarity left",
    "losses: {lncc_window: 4}": "losses.lncc_window must be odd",
    "losses: 3": "losses must be a mapping",
    "hardware: {precision: 16}": "hardware.precision must be one of 32, bf16-mixed, not '16'",
    "optimiser: {schedule: linear}": "optimiser.schedule must be one of cosine, constant",
    "network: {name: unet}": "network.name must be one of regmamba, v1, v2",
    "validation: {split: test}": 'validation.split must be "val"',
    "data: {}": "data names no source of pairs",
    "data: {prepared: [{share: 1}]}": r"data.prepared\[0\].manifest is missing",
    "data: {prepared: [{manifest: a, pairs: atlass}]}": r"data.prepared\[0\].pairs must be one of inter-subject, atlas",
    "data: {prepared: x}": "data.prepared must be a list",
    "data: {synthetic: {contrast: any}}": "data.synthetic.labels is missing",
    "data: {synthetic: {labels: a, frame: centred}}": "data.synthetic.contrast t1 needs",
    "data: {synthetic: {labels: a, settings: {gray: [0, 1]}}}": "no data.synthetic.settings.gray; did you mean grey?",
    "data: {synthetic: {labels: a, settings: {grey: [0]}}}": "data.synthetic.settings.grey must have 2 values, not 1",
    "data: {synthetic: {labels: a, stages: []}}": "data.synthetic.stages must be in the order",
    "data: {synthetic: {labels: a, stages: [{shape: [8, 8]}]}}": r"stages\[0\].shape must have 3 values",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_entry_is_named_in_one_sentence(tmp_path, text):
    data = "" if text.startswith("data") else "data: {prepared: [{manifest: a}]}\n"
    with pytest.raises(InputError, match=WRONG[text]) as caught:
        load_config(written(tmp_path, data + text))
    assert "\n" not in str(caught.value)


def test_unreadable_files_and_assignments_are_named(tmp_path):
    with pytest.raises(InputError, match="one of brain-t1, general, smoke"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="is no YAML"):
        load_config(written(tmp_path, "a: [1"))
    with pytest.raises(InputError, match="must be a mapping"):
        load_config(written(tmp_path, "- 1"))
    with pytest.raises(InputError, match="name=value"):
        load_config("smoke", ["steps"])
    with pytest.raises(InputError, match="seed is no branch"):
        load_config("smoke", ["seed.x=1"])


def branches(kind: type, where: str = "") -> dict[str, object]:
    """Dotted names of all entries of a configuration and their fields."""
    found: dict[str, object] = {}
    hints = get_type_hints(kind)
    for f in fields(kind):
        path = f"{where}{f.name}"
        inner = [k for k in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(k)]
        found |= branches(inner[0], f"{path}.") if inner else {path: f}
    return found


def test_the_documentation_lists_every_entry_with_its_default_and_help():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    expected = {name: reference_row(f) for name, f in branches(TrainingConfig).items()}
    assert {k: rows.get(k) for k in expected} == expected


def reference_row(f) -> str:
    shown = plain(f.default)
    default = "{}" if callable(f.default_factory) else "" if repr(f.default).startswith("<") else shown
    choices = " (" + ", ".join(f.metadata["choices"]) + ")" if f.metadata["choices"] else ""
    return f"{'none' if default is None else default} | {f.metadata['help']}{choices}"


def test_the_generator_documents_every_range():
    text = SyntheticSettings.__doc__ or ""
    assert all(re.search(rf"\b{f.name}\b", text) for f in fields(SyntheticSettings))


def test_every_entry_has_a_help():
    for name, f in branches(TrainingConfig).items():
        assert f.metadata["help"], name
    assert config_module.TrainingConfig.__doc__
