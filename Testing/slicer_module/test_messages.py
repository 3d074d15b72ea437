"""The tutorial's list of messages is whole and true: every message of panel and worker is in it, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PANEL = [*(ROOT / "RegMamba" / "RegMambaSlicer").glob("*.py"), *(ROOT / "RegMambaLib" / "worker").glob("*.py")]
PAGE = (ROOT / "docs" / "slicer.md").read_text(encoding="utf-8")
GAP = "\N{HORIZONTAL ELLIPSIS}"
SAYS = {
    "DependencyError",
    "FileNotFoundError",
    "InputError",
    "RegistrationError",
    "RuntimeError",
    "ValueError",
    "_fail",
    "append",
    "say_problem",
}
# Said within the worker; numbers; what is there and how to add it.
NO_COMPLAINTS = ("not an object", "unknown command", "mean of", "not installed.", "Not installed.", "are installed:")


def documented():
    """The messages of the table: its first column, without the head."""
    table = PAGE.split("## When it says")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


def text_of(node):
    """A string in code, with a gap for each value that is put in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


def strings(tree):
    """All strings in a piece of code; parts of a string are not strings of their own."""
    text = text_of(tree)
    if text is not None:
        return {text}
    return set().union(*map(strings, ast.iter_child_nodes(tree)))


def is_sentence(text):
    """Whether a string reads as a message."""
    return len(text) > 24 and " " in text and text[-1] in f".?{GAP}"


def said_by(file):
    """The messages that a file passes to what shows them, or returns."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and (getattr(node.func, "id", None) or getattr(node.func, "attr", "")) in SAYS:
            found = set().union(*map(strings, node.args))
        elif isinstance(node, ast.Return) and node.value is not None:
            found = strings(node.value)
        else:
            continue
        yield from filter(is_sentence, found)


def matches(fragment, text):
    """Whether a fragment of the page, whose gaps stand for anything, is in a message."""
    return re.search(".*".join(map(re.escape, fragment.split(GAP))), text) is not None


@pytest.mark.parametrize("fragment", documented())
def test_a_message_of_the_page_is_one_of_the_code(fragment):
    files = [*PANEL, *(ROOT / "RegMambaLib").rglob("*.py")]
    assert any(matches(fragment, text) for file in files for text in strings(ast.parse(file.read_text("utf-8"))))


@pytest.mark.parametrize("file", PANEL, ids=lambda file: file.stem)
def test_every_message_of_panel_and_worker_is_on_the_page(file):
    told = [*documented(), *NO_COMPLAINTS]
    assert {text for text in said_by(file) if not any(matches(fragment, text) for fragment in told)} == set()


def test_the_page_names_every_place_that_holds_the_placeholder_of_the_address():
    section = PAGE.split("## For the maintainers")[1]
    folders = [ROOT, *(ROOT / name for name in ("RegMamba", "RegMambaLib", "docs"))]
    files = [p for folder in folders for p in folder.glob("*") if p.suffix in (".txt", ".json", ".md", ".py", ".toml")]
    holders = {p.name for p in files if "OWNER/" in p.read_text(encoding="utf-8")}
    assert holders == {"CMakeLists.txt", "RegMamba.json"}
    assert "OWNER" in section and all(name in section for name in holders)


def test_the_pictures_and_pages_that_the_tutorial_points_to_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(targets) >= 7
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target
