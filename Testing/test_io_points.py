"""Points move, and everything else in their files stays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from RegMambaLib.errors import InputError
from RegMambaLib.io.points import is_points, read_points, write_points

LPS = np.array([[1.5, -2.25, 3.0], [10.0, 20.0, -30.125]])
RAS = LPS * (-1, -1, 1)

CSV = 'name,x,Y,z,label\n"left, upper",{0},{1},{2},7\nright,{3},{4},{5},9\n'
FCSV = (
    "# Markups fiducial file version = 4.11\n"
    "# CoordinateSystem = {space}\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    "1,{0},{1},{2},0,0,0,1,1,1,0,F-1,tip of the pole,vtkMRMLScalarVolumeNode1\n"
    "2,{3},{4},{5},0,0,0,1,1,0,1,F-2,,\n"
)


def markups(space, positions):
    points = [
        {
            "id": str(n),
            "label": f"F-{n}",
            "description": "",
            "position": list(position),
            "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
            "selected": True,
            "positionStatus": "defined",
        }
        for n, position in enumerate(positions)
    ]
    points.append({"id": "9", "label": "to place", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"})
    return {
        "@schema": "https://raw.githubusercontent.com/slicer/slicer/main/markups-schema-v1.0.3.json#",
        "markups": [
            {
                "type": "Fiducial",
                "coordinateSystem": space,
                "coordinateUnits": "mm",
                "controlPoints": points,
                "display": {"color": [0.4, 1.0, 0.0]},
            }
        ],
    }


def text_of(template, space, positions):
    if template == "markups":
        return json.dumps(markups(space, positions))
    return template.format(*positions.ravel(), space=space)


@pytest.mark.parametrize(
    ("name", "template", "space", "stored"),
    [
        ("p.csv", CSV, "lps", LPS),
        ("p.csv", CSV, "ras", RAS),
        ("p.fcsv", FCSV, "LPS", LPS),
        ("p.fcsv", FCSV, "RAS", RAS),
        ("p.fcsv", FCSV, "1", LPS),
        ("p.fcsv", FCSV, "0", RAS),
        ("p.mrk.json", "markups", "LPS", LPS),
        ("p.mrk.json", "markups", "RAS", RAS),
    ],
)
def test_points_are_read_in_lps_and_written_in_their_own_space_with_all_else_kept(
    tmp_path, name, template, space, stored
):
    path = tmp_path / name
    path.write_text(text_of(template, space, stored))
    points = read_points(path, csv_space=space if space in ("lps", "ras") else "lps")
    np.testing.assert_allclose(points.positions, LPS)
    moved = LPS + np.array([1.0, 2.0, 3.0])
    write_points(points.moved_to(moved), tmp_path / f"moved-{name}")
    expected = text_of(template, space, stored + (moved - LPS) * (stored[0] / LPS[0]))
    written = (tmp_path / f"moved-{name}").read_text()
    if template == "markups":
        assert json.loads(written) == json.loads(expected)
    else:
        assert _without_numbers(written) == _without_numbers(expected)
    again = read_points(tmp_path / f"moved-{name}", csv_space=points.space)
    np.testing.assert_allclose(again.positions, moved, atol=1e-6)


def _without_numbers(text):
    return [[cell for cell in line.split(",") if "." not in cell] for line in text.splitlines()]


def test_a_fcsv_without_a_coordinate_system_is_ras(tmp_path):
    (tmp_path / "p.fcsv").write_text("F-1,1.5,-2.25,3,0,0,0,1\n")
    np.testing.assert_allclose(read_points(tmp_path / "p.fcsv").positions, [[-1.5, 2.25, 3.0]])


def test_an_empty_list_stays_empty(tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z\n")
    points = read_points(tmp_path / "p.csv")
    assert points.positions.shape == (0, 3)
    write_points(points, tmp_path / "q.csv")
    assert (tmp_path / "q.csv").read_text() == "x,y,z\n"


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("p.csv", "a,b,c\n1,2,3\n", "x, y and z"),
        ("p.csv", "", "x, y and z"),
        ("p.csv", "x,y,z\n1,2,three\n", "three"),
        ("p.csv", "x,y,z\n1,2\n", "index"),
        ("p.csv", "x,y,z\n1,2,nan\n", "NaN"),
        ("p.fcsv", "# CoordinateSystem = IJK\nF-1,1,2,3\n", "ijk"),
        ("p.fcsv", "# columns = label,x,y,z\nF-1,1,2,3\n", "columns"),
        ("p.mrk.json", "{", "Expecting"),
        ("p.mrk.json", "[]", "p.mrk.json"),
        ("p.mrk.json", '{"markups": []}', "coordinateSystem"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "type": "ROI"}]}', "ROI"),
        (
            "p.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"position": [1, 2]}]}]}',
            "three numbers",
        ),
        ("p.txt", "1 2 3", "by its name"),
    ],
)
def test_a_bad_point_list_is_named_with_its_fault(tmp_path, name, text, word):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_points(path)
    assert name in str(caught.value)
    assert word in str(caught.value)


def test_a_missing_list_another_format_and_another_space_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_points(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    with pytest.raises(InputError, match="lps or ras"):
        read_points(tmp_path / "p.csv", csv_space="ijk")
    with pytest.raises(InputError, match=r"in \.csv"):
        write_points(read_points(tmp_path / "p.csv"), tmp_path / "p.fcsv")
    assert is_points("a/B.MRK.JSON") and not is_points("a/b.json")


@pytest.mark.parametrize("content", ['{"markups": ["x"]}', '{"markups": [{"controlPoints": "x"}]}'])
def test_markups_of_another_shape_are_refused(tmp_path, content):
    path = tmp_path / "points.mrk.json"
    path.write_text(content)
    with pytest.raises(InputError, match="no valid"):
        read_points(path)
