"""The extension packs every file, its names agree, and its files import nothing foreign at file scope."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE, LIBRARY = ROOT / "RegMamba", ROOT / "RegMambaLib"
SLICERS_OWN = {"slicer", "vtk", "qt", "ctk", "numpy", "scipy", "SimpleITK", "RegMambaLib", "RegMambaSlicer"}


def listed(folder, variable):
    """The files a set(...) of a CMakeLists.txt names."""
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"set\({variable}\s(.*?)\)", text, re.DOTALL)
    return found.group(1).split()


def lying_in(folder):
    """All files of a folder but CMake's and what Python leaves behind."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__")
    return {str(p.relative_to(folder).as_posix()) for p in files if p.name != "CMakeLists.txt"}


def extension(name):
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(rf"set\(EXTENSION_{name} \"(.*?)\"\)", text).group(1)


@pytest.mark.parametrize(
    ("folder", "scripts", "resources"),
    [
        (MODULE, "MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"),
        (LIBRARY, "LIBRARY_PYTHON_SCRIPTS", "LIBRARY_RESOURCES"),
    ],
    ids=["module", "library"],
)
def test_every_file_is_listed_once_and_every_listed_file_is_there(folder, scripts, resources):
    names = listed(folder, scripts) + listed(folder, resources)
    assert len(names) == len(set(names))
    there = lying_in(folder)
    assert set(names) - there == set(), "listed in CMakeLists.txt but not there"
    assert there - set(names) == set(), f"add to {folder.name}/CMakeLists.txt"
    assert all(name.endswith(".py") for name in listed(folder, scripts))


def test_only_the_module_itself_lies_where_slicer_looks_for_modules():
    assert [p.name for p in MODULE.glob("*.py")] == ["RegMamba.py"]
    assert "WITH_SUBDIR" in (LIBRARY / "CMakeLists.txt").read_text(encoding="utf-8")


def test_the_names_of_project_module_and_index_entry_agree():
    top = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"^project\(RegMamba\)$", top, re.MULTILINE)
    assert (ROOT / "RegMamba.json").is_file()
    assert "add_subdirectory(RegMamba)" in top
    assert "add_subdirectory(RegMambaLib)" in top
    tree = ast.parse((MODULE / "RegMamba.py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert classes == {"RegMamba", "RegMambaWidget", "RegMambaLogic", "RegMambaTest"}
    assert (MODULE / "Resources" / "UI" / "RegMamba.ui").is_file()


def test_the_index_entry_agrees_with_the_extension():
    entry = json.loads((ROOT / "RegMamba.json").read_text(encoding="utf-8"))
    assert set(entry) == {
        "$schema",
        "build_dependencies",
        "build_subdirectory",
        "category",
        "scm_revision",
        "scm_url",
        "tier",
    }
    assert entry["category"] == extension("CATEGORY") == "Registration"
    assert entry["build_dependencies"] == extension("DEPENDS").split() == ["PyTorch"]
    assert entry["scm_revision"] == "main"
    assert entry["scm_url"] == extension("HOMEPAGE") + ".git"
    assert Path(entry["scm_url"]).name == "SlicerRegMamba.git"
    assert extension("DESCRIPTION").endswith(".")
    assert (ROOT / "LICENSE").is_file()


def test_the_pictures_of_the_extension_are_in_the_repository():
    home = extension("HOMEPAGE").removeprefix("https://github.com/")
    for address in [extension("ICONURL"), *extension("SCREENSHOTURLS").split()]:
        start = f"https://raw.githubusercontent.com/{home}/main/"
        assert address.startswith(start)
        assert (ROOT / address.removeprefix(start)).read_bytes().startswith(b"\x89PNG")


def test_the_icon_is_a_small_square():
    header = (MODULE / "Resources" / "Icons" / "RegMamba.png").read_bytes()[:24]
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (128, 128)


def test_the_module_imports_only_slicer_vtk_and_the_standard_library_at_file_scope():
    assert outside(MODULE / "RegMamba.py") <= {"slicer", "vtk"}
    for file in (MODULE / "RegMambaSlicer").glob("*.py"):
        assert outside(file) <= SLICERS_OWN, file.name


def outside(file):
    """Packages beyond the standard library that a file imports at its own scope, `if TYPE_CHECKING` apart."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_nothing_of_the_test_bench_is_imported_by_the_module_or_the_library():
    for folder in (MODULE, LIBRARY):
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "slicer_bench" not in text, file.name
            assert "PySide" not in text, file.name


def test_presets_are_settings():
    from RegMambaLib.registration.settings import Settings

    files = sorted((MODULE / "Resources" / "Presets").glob("*.json"))
    assert {f.stem for f in files} == {"brain", "general", "refine_only"}
    for file in files:
        Settings.load(file)


def test_the_requirements_are_the_librarys_own_and_leave_slicers_packages_alone():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)\]", text, re.DOTALL | re.MULTILINE).group(1)
    wanted = set(re.findall(r"\"(.*?)\"", block))
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    given = {line for line in lines if line and not line.startswith("#")}
    assert given <= wanted
    names = {re.split(r"[<>=]", line)[0] for line in wanted - given}
    assert names == {"numpy", "SimpleITK", "scipy", "torch", "typer", "rich"}


def test_the_library_works_without_the_packages_of_its_command_line():
    code = (
        "import sys; sys.modules['typer'] = sys.modules['rich'] = None;"
        "import RegMambaLib.registration.pipeline, RegMambaLib.worker.serve, RegMambaLib.worker.tasks as t;"
        "import RegMambaLib.cli.system, RegMambaLib.io.images, RegMambaLib.io.transforms, RegMambaLib.evaluation.report"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_extension_build_puts_every_file_where_slicer_finds_it(tmp_path):
    """CMake runs for real; find_package(Slicer) and Slicer's macros are doubles that copy the lists."""
    from shutil import which

    if which("cmake") is None:
        pytest.skip("cmake is not installed")
    (tmp_path / "SlicerConfig.cmake").write_text(DOUBLE_OF_SLICER)
    for name in ("use", "config", "cpack"):
        (tmp_path / f"{name}.cmake").write_text("")
    (tmp_path / "use.cmake").write_text(DOUBLE_OF_THE_MACROS)
    build = tmp_path / "build"
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={tmp_path}", "-DBUILD_TESTING=ON"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = build / "lib" / "qt-scripted-modules"
    assert {p.name for p in there.glob("*.py")} == {"RegMamba.py"}
    code = "import RegMambaLib, RegMambaLib.registration.settings, RegMambaLib.worker; print(RegMambaLib.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=there, capture_output=True, text=True, env={"PYTHONPATH": str(there)}
    )
    assert str(there) in done.stdout, done.stderr


DOUBLE_OF_SLICER = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/config.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/cpack.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/qt-scripted-modules)
"""

DOUBLE_OF_THE_MACROS = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  set(target ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  if(MY_WITH_SUBDIR)
    get_filename_component(name ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    set(target ${target}/${name})
  endif()
  foreach(file ${MY_SCRIPTS} ${MY_RESOURCES})
    configure_file(${CMAKE_CURRENT_SOURCE_DIR}/${file} ${target}/${file} COPYONLY)
  endforeach()
endmacro()
function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${MY_SCRIPT})
    message(FATAL_ERROR "no test ${MY_SCRIPT}")
  endif()
endfunction()
"""
