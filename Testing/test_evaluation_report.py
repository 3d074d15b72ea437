"""Reports as HTML: what the slices show, that the page stands alone, what it tells, and the network's inside."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import linear, made_grid, made_head, made_labels, permuted_axes, random_displacement, world_of

from RegMambaLib.cli.main import main
from RegMambaLib.evaluation.encode import data_uri, jpeg, palette_png
from RegMambaLib.evaluation.page import element, page, table
from RegMambaLib.evaluation.registration_page import registration_page, warnings
from RegMambaLib.evaluation.slices import cut, line_cover, sampler, view_grid, without_linear_part
from RegMambaLib.evaluation.viewer import Shown, overlay, viewer, volume_colours
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.spatial.itk import affine_transform, mm_to_voxels

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Reader(HTMLParser):
    """Checks that elements close in order; collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pictures_of(text):
    """The pictures in a page, decoded."""
    pil = pytest.importorskip("PIL.Image")
    found = re.findall(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", text)
    return [np.asarray(pil.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")) for _, data in found]


def stands_alone(text):
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|<link|src=\"(?!data:)|url\((?!data:)", text)


def shown(fixed_grid=None, **others):
    """A head, another one turned by a linear transform, and a made deformation between them."""
    fixed_grid = fixed_grid or made_grid()
    matrix = linear(turn=(5, -4, 8), shift=(6, -9, 4))
    displacement = random_displacement(fixed_grid.shape, faded=True)
    moving_grid = made_grid((30, 34, 26), turn=(10, 20, -5), flip=True)
    return Shown(
        made_head(fixed_grid),
        made_head(moving_grid),
        affine_transform(matrix),
        displacement,
        fixed_grid,
        **others,
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_slices_stand_the_anatomical_way_however_the_file_is_stored(order, flips):
    grid = made_grid((40, 36, 30), (4.0, 5.0, 6.0), turn=(4, -6, 8), center=(30, -50, 90))
    left, back, up = np.moveaxis(world_of(grid) - (30, -50, 90), -1, 0)
    body = (np.abs(left) < 60) & (np.abs(back) < 70) & (np.abs(up) < 65)
    # Which half of the body is bright, and on which side of the three pictures it must be.
    halves = {
        "L": (left > 0, {"axial": "right", "coronal": "right"}),
        "A": (back < 0, {"axial": "top", "sagittal": "left"}),
        "S": (up > 0, {"coronal": "top", "sagittal": "top"}),
    }
    for mark, (half, expected) in halves.items():
        image = permuted_axes(grid.image((100.0 * body + 900 * (body & half)).astype(np.float32)), order, flips)
        for slices in cut(view_grid(image, 120), 3):
            picture = slices.pictures(sampler(image))[1]
            rows, columns = picture.mean(1), picture.mean(0)
            sides = {"left": columns[:40], "right": columns[-40:], "top": rows[:40], "bottom": rows[-40:]}
            side = expected.get(slices.orientation.name)
            assert side is None or max(sides, key=lambda name: sides[name].mean()) == side
            assert side is None or dict(zip(sides, slices.orientation.marks, strict=True))[side] == mark


def test_voxels_of_any_shape_give_pictures_of_the_right_proportions():
    grid = Grid((60, 50, 12), (2.0, 3.0, 9.0))
    values = np.zeros(grid.shape, np.float32)
    values[2:-2, 10:-10, 10:-10] = 100  # 40 x 30 x 8 voxels: 80 x 90 x 72 mm
    view = view_grid(grid.image(values))
    assert np.ptp(view.spacing) == 0 and max(view.size) in (180, 181)
    extent = np.asarray(view.size) * view.spacing
    np.testing.assert_allclose(extent, np.array([80, 90, 72]) + 12, atol=10)
    sizes = {s.orientation.name: s.size for s in cut(view, 5)}
    assert sizes["axial"] == view.shape[1:] and sizes["sagittal"] == view.shape[:2]
    for slices in cut(view, 5):
        assert len(slices.grids) == 5 and all(
            p.shape == slices.size for p in slices.pictures(sampler(grid.image(values)))
        )


def test_lines_of_the_grid_are_straight_without_deformation_and_move_with_it():
    grid = Grid((40, 40, 40), (2.0, 2.0, 2.0))
    axial = cut(grid, 1)[0]
    still = next(line_cover(axial, 8, np.zeros((3, *grid.shape), np.float32), grid))
    assert (still[:, ::4] == 1).all() and (still[::4] == 1).all()
    assert still[2::4, 2::4].max() == 0
    shifted = np.zeros((3, *grid.shape), np.float32)
    shifted[2] = 1  # every point looks one voxel further to the left: its line comes from there
    moved = next(line_cover(axial, 8, shifted, grid))
    np.testing.assert_allclose(moved[:, 3:-1:4], 1)
    assert moved[2::4, 1:-1:4].max() == 0


def test_the_linear_part_of_a_transform_is_taken_off():
    grid = made_grid((20, 24, 22), (3.0, 4.0, 5.0), turn=(10, 0, 20), flip=True)
    matrix = linear(turn=(8, -5, 12), shift=(20, 5, -9), scale=1.1, shear=0.1)
    points = world_of(grid)
    displacement = mm_to_voxels(points @ matrix[:3, :3].T + matrix[:3, 3] - points, grid)
    np.testing.assert_allclose(without_linear_part(displacement), 0, atol=1e-3)
    bend = random_displacement(grid.shape, sigma=2.0)
    bend -= without_linear_part(np.zeros_like(bend)) + (bend - without_linear_part(bend))  # without its own linear part
    moved = np.indices(grid.shape) + bend
    affine = np.array([[1.1, 0.1, 0], [-0.1, 0.9, 0.05], [0, 0.1, 1]])
    both = np.einsum("ab,bkji->akji", affine, moved) - np.indices(grid.shape) + 5
    np.testing.assert_allclose(without_linear_part(both.astype(np.float32)), bend, atol=0.02)


def test_colours_of_volume_are_white_at_one_and_yellow_where_it_folds():
    colours = volume_colours(np.array([1.0, 0.5, 0.2, 2.0, 9.0, 0.0, -3.0])).astype(int)
    assert np.ptp(colours[0]) == 0 and colours[0, 0] > 200
    assert (colours[1] == colours[2]).all() and colours[1, 2] > colours[1, 0]
    assert (colours[3] == colours[4]).all() and colours[3, 0] > colours[3, 2]
    assert (colours[5] == colours[6]).all() and colours[5, 0] > 200 > 100 > colours[5, 2]


def test_pictures_are_what_they_were():
    pil = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 3, (17, 31)).astype(np.uint8)
    palette = [(0, 0, 0, 0), (255, 10, 20, 128), (1, 2, 3, 255)]
    read = np.asarray(pil.open(io.BytesIO(palette_png(picture, palette))).convert("RGBA"))
    np.testing.assert_array_equal(read, np.array(palette)[picture])
    smooth = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    for given in (smooth, np.stack([smooth, smooth[::-1], 255 - smooth], -1)):
        read = np.asarray(pil.open(io.BytesIO(jpeg(given, 90))))
        assert read.shape == given.shape and np.abs(read.astype(int) - given).mean() < 4
    assert data_uri(jpeg(smooth)).startswith("data:image/jpeg;base64,")
    assert data_uri(palette_png(picture, palette)).startswith("data:image/png;base64,")


def test_text_from_files_stays_text():
    text = page(
        "<script>", element("p", "fine", cls="a", data_x='"<', hidden=True) + table(["<b>", "x"], [["</td>", None]])
    )
    reader = Reader(text)
    assert "<script>" in reader.text and "</td>" in reader.text and "<b>" in reader.text
    assert reader.all("p") == [{"class": "a", "data-x": '"<', "hidden": None}]


def test_the_viewer_has_a_strip_for_every_layer_and_orientation():
    grid = made_grid()
    labels = {"fixed_labels": made_labels(grid), "moving_labels": made_labels(made_grid((30, 34, 26), flip=True))}
    spread = np.full(grid.shape, 0.5, np.float32)
    text = viewer(shown(grid, uncertainty=spread, **labels), 5)
    reader = Reader(text)
    layers = [attributes["value"] for attributes in reader.all("input") if attributes.get("type") == "radio"]
    assert layers == ["moved", "before", "grid", "volume", "uncertainty", "labels"]
    strips = pictures_of(text)
    assert len(strips) == 3 * (1 + len(layers))
    for n in range(3):
        own = strips[n * 7 : n * 7 + 7]
        assert len({strip.shape for strip in own}) == 1 and own[0].shape[1] % 5 == 0
        assert own[0][..., :3].max() > 200  # something is to be seen
    pages = [attributes for attributes in reader.all("input") if attributes.get("class") == "page"]
    assert [attributes["max"] for attributes in pages] == ["4", "4", "4"]
    assert all(attributes["aria-label"] for attributes in pages)
    plain = viewer(shown(grid), 2)
    assert "uncertainty" not in plain and "label outlines" not in plain


def test_an_overlay_shows_three_orientations_of_four_pictures():
    pil = pytest.importorskip("PIL.Image")
    picture = np.asarray(pil.open(io.BytesIO(overlay(shown()))))
    views = cut(view_grid(shown().fixed), 1)
    assert picture.shape[0] == sum(view.size[0] for view in views)
    assert picture.shape[1] == 4 * max(view.size[1] for view in views)


def test_the_page_tells_what_to_beware_of():
    report = {"details": {"network_skipped": "the images differ in contrast"}, "folding_percent": 0.25}
    report |= {"before": {"dice": 0.5, "per_label": {"1": {"dice": 0.5}}}}
    report |= {"after": {"dice": 0.4, "labels": 1, "per_label": {"1": {"dice": 0.4}}}}
    told = " ".join(warnings(report))
    assert "differ in contrast" in told and "0.25 %" in told and "agree less" in told
    assert warnings({"folding_percent": 0.0, "details": {}}) == []
    reader = Reader(registration_page(report, shown(), {1: "thalamus"}))
    assert "thalamus (1)" in reader.text and "differ in contrast" in reader.text


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two heads and their labels on disk, the moving one turned and in oblique left-handed voxels."""
    folder = tmp_path_factory.mktemp("heads")
    grids = made_grid(), made_grid((34, 30, 30), turn=(6, -5, 10), center=(8, -6, 4), flip=True)
    images = {
        "fixed": made_head(grids[0]),
        "moving": made_head(grids[1], lambda p: p * (1.0, 1.06, 0.95) - (8, -6, 4)),
        "fixed_labels": made_labels(grids[0]),
        "moving_labels": made_labels(grids[1], lambda p: p * (1.0, 1.06, 0.95) - (8, -6, 4)),
    }
    for name, image in images.items():
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    (folder / "names.json").write_text(json.dumps({"1": "ventricle <left>", "4": "cerebellum"}))
    return SimpleNamespace(folder=folder, **{name: str(folder / f"{name}.nii.gz") for name in images})


def test_register_writes_a_report_that_stands_alone(heads, tmp_path, capsys):
    labels = ["--fixed-labels", heads.fixed_labels, "--moving-labels", heads.moving_labels]
    options = ["--weights", "none", "--set", "iterations=10,5", "--label-names", str(heads.folder / "names.json")]
    out = tmp_path / "out"
    assert main(["register", heads.fixed, heads.moving, "-o", str(out), *labels, *options, "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"][-2:] == ["report.html", "report.json"]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    stands_alone(text)
    reader = Reader(text)
    assert len(pictures_of(text)) == 3 * 6
    for word in ("ventricle <left> (1)", "cerebellum (4)", "iterations", "refine", "numpy", "Dice before", "HD95"):
        assert word in reader.text
    assert f"{report['before']['dice']:.3f} → {report['after']['dice']:.3f}" in reader.text
    assert main(["register", heads.fixed, heads.moving, "-o", str(out), *options, "--quiet", "--overwrite"]) == 0
    assert not (out / "report.html").exists()


def test_inspect_shows_features_and_votes_of_every_level(heads, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["inspect", heads.fixed, heads.moving, "-o", str(out), "--json", "--quiet"]) == 0
    votes = json.loads(capsys.readouterr().out)["votes"]
    assert list(votes) == [f"level {n}" for n in (1, 2, 3, 4)]
    for weights in votes.values():
        assert len(weights) == 6 and sum(weights.values()) == pytest.approx(1)
    assert sorted(path.name for path in out.iterdir()) == ["features.png", "votes.json", "votes.png"]
    assert main(["inspect", heads.fixed, heads.moving, "-o", str(tmp_path / "b"), "--weights", "none", "--quiet"]) == 2
    assert "not asked" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_watching_gives_the_features_of_both_images_and_the_votes_used():
    import torch

    from RegMambaLib.evaluation.features import watched
    from RegMambaLib.networks import build_network

    torch.manual_seed(0)
    network = build_network("regmamba", channels=(4, 6, 8)).eval()
    moving, fixed = torch.rand(2, 1, 1, 12, 16, 8).unbind(0)
    with watched() as insights, torch.no_grad():
        network.predict(moving, fixed, samples=2, seed=0)  # the draws that follow the first pass do not count
        network(fixed, moving)
    insight, other = insights
    np.testing.assert_allclose(other.of_level(1)[0], insight.of_level(1)[1], atol=1e-5)
    assert insight.levels == {1: 8, 2: 4}
    with torch.no_grad():
        expected = network.encode(torch.cat([moving, fixed]))
    for level in (1, 2):
        ours = insight.of_level(level)
        np.testing.assert_allclose(ours[0], expected[level][0], atol=1e-5)
        np.testing.assert_allclose(ours[1], expected[level][1], atol=1e-5)
        assert ours[2].shape == ours[1].shape
        votes = insight.votes_of_level(level)
        np.testing.assert_allclose(list(votes.values()), network.votes(False)[level - 1].detach())
    with torch.no_grad():
        network(moving, fixed)
    assert len(insights) == 2 and len(insight.matched) == 2  # nothing is watched after the block
