"""Settings say no to what they cannot mean, and survive JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from RegMambaLib.errors import InputError
from RegMambaLib.registration.settings import CHOICES, Settings

OTHER = {
    "affine": "rigid",
    "principal_axes": True,
    "weights": "none",
    "metric": "mind",
    "window": 7,
    "spacing": 1.5,
    "iterations": (3, 2),
    "step": 0.3,
    "guide": True,
    "repair": False,
    "uncertainty": True,
    "device": "cpu",
    "threads": 2,
    "seed": 11,
}

BAD = [
    ("affine", "elastic"),
    ("affine", None),
    ("metric", "ssd"),
    ("scan", "jax"),
    ("window", 4),
    ("window", 1),
    ("window", 5.0),
    ("spacing", -1.0),
    ("spacing", math.nan),
    ("spacing", math.inf),
    ("spacing", "2"),
    ("step", 0.0),
    ("step", math.nan),
    ("step", True),
    ("smooth_update", -0.1),
    ("smooth_total", 11),
    ("iterations", (10, -1)),
    ("iterations", (10, 2.5)),
    ("iterations", (True,)),
    ("iterations", "10,5"),
    ("iterations", 10),
    ("iterations", None),
    ("guide", 1),
    ("guide_weight", math.nan),
    ("repair", "yes"),
    ("uncertainty", 4),
    ("threads", -2),
    ("seed", 2**31),
    ("seed", 1.5),
    ("weights", 3),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: repr(v))
def test_a_bad_value_is_refused_with_the_settings_name(name, value):
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})


def test_an_unknown_setting_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError, match=r"wndow.*window"):
        Settings.from_dict({"wndow": 5})


def test_settings_survive_json(tmp_path):
    settings = Settings(**OTHER)
    file = tmp_path / "preset.json"
    file.write_text(json.dumps(settings.to_dict()))
    assert Settings.load(file) == settings
    assert Settings.from_dict(Settings().to_dict()) == Settings()


def test_a_preset_may_hold_a_few_settings_only(tmp_path):
    file = tmp_path / "preset.json"
    file.write_text('{"window": 7, "spacing": 2}')
    assert Settings.load(file) == Settings(window=7, spacing=2)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"mind"', '{"window": 4}', '{"nothing": 4}'])
def test_a_bad_preset_is_refused(tmp_path, text):
    file = tmp_path / "preset.json"
    file.write_text(text)
    with pytest.raises(InputError):
        Settings.load(file)


def test_a_missing_preset_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        Settings.load(tmp_path / "nothing.json")


def test_settings_are_immutable_and_hashable():
    with pytest.raises(FrozenInstanceError):
        Settings().window = 7
    assert len({Settings(), Settings(), Settings(window=7)}) == 2


def test_a_list_of_iterations_becomes_a_tuple():
    assert Settings(iterations=[3, 2]).iterations == (3, 2)
    assert Settings(iterations=()).iterations == ()


def test_every_setting_has_help_and_a_default_within_its_range():
    for field in fields(Settings):
        assert len(field.metadata["help"]) > 10
        low, high = field.metadata["low"], field.metadata["high"]
        assert low is None or low <= field.default <= high
    for name, choices in CHOICES.items():
        assert getattr(Settings(), name) in choices
