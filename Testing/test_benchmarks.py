"""The benchmarks' tables, pictures and bookkeeping, from made-up results; nothing is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, linear, made_grid

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import ablation, judge, measure, peers, pictures, registration, report, scan, stages, tables
from benchmarks.cases import CASES, Job
from RegMambaLib.scan import TRAVERSALS, selective_scan

METHODS = ("start", "RegMamba", "greedy", "gone", "slow")


def row(method, pair, repeat=0, **figures):
    return {"case": "mindboggle_1mm", "method": method, "pair": pair, "repeat": repeat, **figures}


def made_rows():
    """Two pairs, two repetitions of RegMamba, one tool absent, one that failed on one pair."""
    labels = {"10": 0.8, "1002": 0.5, "2005": 0.6}
    return [
        row("start", "1<-2", dice=0.4, per_label=labels),
        row("start", "3<-4", dice=0.5, per_label=labels),
        row("RegMamba", "1<-2", 0, dice=0.66, process_seconds=10.0, memory_gb=1.5, per_label=labels),
        row("RegMamba", "1<-2", 1, dice=0.66, process_seconds=12.0, memory_gb=1.5, per_label=labels),
        row("RegMamba", "3<-4", 0, dice=0.64, process_seconds=11.0, memory_gb=1.5, per_label=labels),
        row("greedy", "1<-2", dice=0.6, process_seconds=22.0, memory_gb=1.0, per_label=labels),
        row("greedy", "3<-4", failed="ended after 900 s"),
        row("gone", "1<-2", absent="gone is not installed"),
        row("gone", "3<-4", absent="gone is not installed"),
    ]


def table_cells(text):
    """{first cell: the other cells} of a Markdown table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_quality_is_the_mean_over_pairs_and_cost_the_median_of_all_runs():
    cells = table_cells(tables.case_table(made_rows(), METHODS))
    heads = cells[""]
    mine = dict(zip(heads, cells["RegMamba"], strict=True))
    assert mine["Dice"] == "0.650"
    assert mine["process, s"] == "11.0 (10.0 to 12.0)"
    assert mine["memory, GiB"] == "1.50"


def test_a_tool_that_did_not_run_is_shown_with_its_reason():
    cells = table_cells(tables.case_table(made_rows(), METHODS))
    assert cells["gone"][0] == "absent: gone is not installed"
    assert "greedy (1 of 2 pairs)" in cells
    listed = tables.problems(made_rows(), METHODS)
    assert "- mindboggle_1mm, 3<-4, greedy: failed: ended after 900 s" in listed
    assert listed.count("gone is not installed") == 2
    assert "- mindboggle_1mm: not run: slow" in listed


def test_dice_pair_by_pair():
    cells = table_cells(tables.pair_table(made_rows(), METHODS))
    assert cells["Dice"] == ["1<-2", "3<-4"]
    assert cells["RegMamba"] == ["0.6600", "0.6400"]
    assert cells["greedy"] == ["0.6000", "-"]


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (float("nan"), "-"), (0.0, "0"), (0.0123, "0.012")])
def test_numbers_that_do_not_exist_are_dashes(value, shown):
    assert tables.number(value, ".2g") == shown


def scan_rows():
    common = {"device": "cpu", "threads": 2, "directions": 6, "step": scan.FORWARD}
    made = [
        {"method": "numba", "length": 1000, "seconds": 0.001, "floor_seconds": 0.0001},
        {"method": "numba", "length": 10_000, "seconds": 0.01, "floor_seconds": 0.001},
        {"method": "triton", "length": 1000, "absent": "no CUDA", "floor_seconds": 0.0001},
        {"method": "triton", "length": 10_000, "absent": "no CUDA", "floor_seconds": 0.001},
        {"method": "mambapy", "length": 1000, "seconds": 0.02, "floor_seconds": 0.0001},
        {"method": "mambapy", "length": 10_000, "failed": "would need about 99 GiB", "floor_seconds": 0.001},
    ]
    return [common | one for one in made]


def test_scan_table_has_lengths_as_columns_and_the_floor():
    cells = table_cells(tables.scan_table(scan_rows(), 6, scan.FORWARD))
    assert cells["ms for tokens"] == ["1,000", "10,000"]
    assert cells["numba"] == ["1", "10"]
    assert cells["triton"][0] == "absent: no CUDA"
    assert cells["mambapy"] == ["20", "failed: would need about 99 GiB"]
    assert cells["floor set by memory"] == ["0.1", "1"]


def stage_rows():
    size = {"part": "sizes", "repeat": 0, "process_seconds": 3.0, "memory_gb": 0.5}
    return [
        {"part": "imports", "run": "Python alone", "repeat": 0, "process_seconds": 0.02, "memory_gb": 0.01},
        {"part": "register", "run": "kernels on disk", "repeat": 0, "stages": {"read": 0.2, "refine": 5.0}},
        {"part": "register", "run": "kernels on disk", "repeat": 1, "stages": {"read": 0.4, "refine": 5.2}},
        {"part": "register", "run": "no kernels on disk", "repeat": 0, "failed": "ended after 9 s"},
        {**size, "run": "128^3", "voxels": 128**3, "failed": "ended after 9 s"},
        {
            **size,
            "run": "64^3",
            "voxels": 64**3,
            "grid_size": [60, 70, 62],
            "grid_voxels": 260_400,
            "registration_seconds": 1.302,
        },
    ]


def test_stage_tables():
    rows = stage_rows()
    cells = table_cells(tables.stage_table([r for r in rows if r["part"] == "register"]))
    assert cells["seconds"] == ["kernels on disk", "no kernels on disk"]
    assert cells["read"] == ["0.30", "-"]
    cells = table_cells(tables.size_table([r for r in rows if r["part"] == "sizes"]))
    assert list(cells)[2:] == ["64^3", "128^3"]
    assert cells["64^3"][:4] == ["60 x 70 x 62", "0.26", "1.3", "5.00"]
    assert cells["128^3"][0] == "failed: ended after 9 s"


def head(rows, **more):
    machine = {"cpu": "made", "cores": 2, "memory_gb": 24, "system": "Linux", "python": "3.11", "gpu": None}
    dated = [one | {"date": "2026-01-02 03:04", "commit": "abc"} for one in rows]
    return {"machine": machine, "versions": {"torch": "2", "gone": None}, "commands": ["run"], "rows": dated, **more}


def ablation_rows():
    """Two variants on two cases; one of them with two seeds."""
    figures = {"dice_start": 0.3, "folding_percent": 0.02, "predict_cpu_seconds": 0.5, "parameters": 1_590_000}
    rows = [("equal votes", 0, 0.3, 0.55), ("equal votes", 1, 0.5, 0.65), ("conv", 0, 0.4, 0.5)]
    return [
        {"variant": variant, "seed": seed, "case": case, "pair": "1<-2", "steps": 400, "dice": dice, **figures}
        for variant, seed, *both in rows
        for case, dice in zip(ablation.TEST_CASES, both, strict=True)
    ]


def confidence_rows():
    """Two pairs of one kind; for one of them no network was asked."""
    common = {"case": "ixi_2mm", "kind": "much noise", "error_mm": 1.0, "expected_mm": 0.9, "error_low_mm": 0.5}
    one = {"pair": "1<-2", "error_high_mm": 2.0, "spearman": 0.4, "label_auc": 0.6, "votes_spearman": 0.05}
    return [common | one, common | {"pair": "3<-4", "error_high_mm": 3.0, "spearman": 0.2, "label_auc": 0.7}]


def test_every_variant_of_the_network_is_one_that_can_be_built_and_no_two_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "DATA", tmp_path)
    (tmp_path / "label_maps").mkdir()
    arguments = ablation.parse(["--data", str(tmp_path)])
    made = [ablation.configuration(options, 0, arguments, tmp_path) for _, options in ablation.VARIANTS.values()]
    options = [json.dumps(config.network.options, sort_keys=True) for config in made]
    assert len(set(options)) == len(options) and {config.steps for config in made} == {400}


def test_report_fills_its_parts_of_the_page_and_draws(tmp_path, monkeypatch):
    files = {
        "registration.json": head([r for r in made_rows() if r["method"] != "gone"]),
        "scan.json": head(scan_rows(), bandwidth_gb_s={"cpu": 14.0}),
        "stages.json": head(stage_rows()),
        "ablation.json": head(ablation_rows()),
        "confidence.json": head(confidence_rows()),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text(report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(tmp_path), "--page", str(page)])
    assert report.main() == 0
    once = page.read_text(encoding="utf-8")
    assert "| equal votes | 1.59 | 0.400 | 0.600 | 0.02 | 0.50 |" in once and "400 steps each, 2 seeds." in once
    sure = "| much noise, 2 pairs | 1.00 | 0.90 | 0.50 | 2.50 | 0.30 (0.20 to 0.40) | 0.05 | 0.65 "
    assert sure in once
    assert "0.650" in once and "Not installed: gone" in once and "| numba | 1 | 10 |" in once
    assert report.main() == 0
    assert page.read_text(encoding="utf-8") == once
    drawn = {path.name for path in tmp_path.glob("*.png")}
    wanted = {"time_against_accuracy.png", "structures_mindboggle_1mm.png", "scan_cpu.png", "growth.png"}
    assert drawn == wanted
    assert all(f"benchmarks/{name}" in once for name in wanted)


def test_a_page_without_the_part_is_refused():
    with pytest.raises(ValueError, match="add the lines <!-- scan -->"):
        report.fill("nothing", "scan", "text")


def test_results_are_kept_replaced_and_resumed(tmp_path):
    pytest.importorskip("psutil")
    path = tmp_path / "results.json"
    store = measure.Store(path, registration.KEYS, ("torch",))
    store.put(row("RegMamba", "1<-2", dice=0.5))
    store.put(row("greedy", "1<-2", failed="why"))
    again = measure.Store(path, registration.KEYS, ("torch",))
    assert again.has(row("RegMamba", "1<-2")) and not again.has(row("greedy", "1<-2"))
    again.put(row("RegMamba", "1<-2", dice=0.6))
    kept = json.loads(path.read_text())["rows"]
    assert [r.get("dice") for r in kept] == [None, 0.6]
    other = json.loads(path.read_text())
    other["machine"]["cpu"] = "another"
    path.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="another machine"):
        measure.Store(path, registration.KEYS, ("torch",))


def test_a_process_that_fails_or_takes_too_long_says_so(tmp_path):
    pytest.importorskip("psutil")
    given, log = measure.environment(1), tmp_path / "log.txt"
    assert set(measure.run([sys.executable, "-c", "pass"], log, 60, given)) == {
        "process_seconds",
        "cpu_seconds",
        "memory_gb",
    }
    with pytest.raises(measure.Failed, match=r"exit code 1: ValueError: why"):
        measure.run([sys.executable, "-c", "raise ValueError('why')"], log, 60, given)
    with pytest.raises(measure.Failed, match=r"ended after 0.2 s"):
        measure.run([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.2, given)


def test_methods_take_turns_and_each_turn_begins_with_another(tmp_path):
    asked = registration.parse(["--cases", "mindboggle_1mm", "--methods", "RegMamba", "elastix", "--repeat", "2"])
    order = [(cell.repeat, cell.pair, cell.method) for cell in registration.cells(asked, tmp_path)]
    assert order[:4] == [
        (0, "1<-2", "RegMamba"),
        (0, "1<-2", "elastix"),
        (0, "3<-4", "elastix"),
        (0, "3<-4", "RegMamba"),
    ]
    assert len(set(order)) == len(order) == 12


def test_every_case_names_files_and_pairs_are_not_those_settings_were_tried_on():
    for case in CASES.values():
        assert all(fixed != moving for fixed, moving in case.pairs)
        if case.folder.startswith("mindboggle"):
            assert not {("01", "04"), ("02", "06"), ("05", "03")} & set(case.pairs)
        if DATA.exists():
            assert all((DATA / name).exists() for pair in case.pairs for s in pair for name in case.names(s))


def test_a_job_survives_the_way_to_its_process(tmp_path):
    job = Job(*(tmp_path / name for name in "abcd"), tmp_path, False, 2, -1024.0)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_the_linear_part_is_taken_out_of_a_displacement():
    grid = made_grid((5, 6, 7), turn=(10, 20, 30))
    matrix = linear((5, -4, 3), (7, 8, 9), 1.1, 0.05)
    rest = np.random.default_rng(0).normal(size=(*grid.shape, 3))
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    here = grid.world(np.stack([i, j, k], -1))
    total = (here + rest) @ matrix[:3, :3].T + matrix[:3, 3] - here
    image = grid.image(np.zeros(grid.shape, np.float32))
    np.testing.assert_allclose(peers.without_linear(total, matrix, image), rest, atol=1e-9)


def test_a_displacement_without_folds_is_judged_so(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    grid = made_grid((12, 10, 8))
    labels = np.ones(grid.shape, np.uint8)
    sitk.WriteImage(grid.image(labels), str(tmp_path / "labels.nii.gz"))
    job = Job(*[tmp_path / "labels.nii.gz"] * 4, tmp_path, True, 1)
    found = judge.regularity(job, np.zeros((*grid.shape, 3)))
    assert set(found.values()) == {0.0}
    folded = np.zeros((*grid.shape, 3))
    folded[4, 5, 6] = (30.0, 0.0, 0.0)
    found = judge.regularity(job, folded)
    assert 0 < found["folding_percent"] < found["folding_strict_percent"]
    assert found["nondiffeomorphic_percent"] > 0


@pytest.mark.parametrize("name", ["mambapy", "token by token"])
@pytest.mark.parametrize("directions", [1, 6])
def test_other_scans_give_what_ours_give(name, directions):
    method = scan.methods()[name]
    if method.why_absent:
        pytest.skip(method.why_absent)
    shape, visits = (3, 4, 5), tuple(TRAVERSALS.values())[:directions]
    u, delta, A, B, C, D, bias = scan.inputs(60, directions, "cpu")
    ours = selective_scan(u, delta, A, B, C, D, None, bias, True, shape=shape, traversals=visits, backend="torch")
    torch.testing.assert_close(method.run(u, delta, A, B, C, D, bias, shape, visits), ours, rtol=1e-4, atol=1e-4)


def test_the_floor_counts_every_byte_once():
    tokens, channels, states = 100, scan.CHANNELS, scan.STATES
    u, delta, _, b, c, _, _ = scan.inputs(tokens, 2, "cpu")
    read = sum(tensor.nbytes for tensor in (u, delta, b, c))
    assert scan.moved_bytes(tokens, 2, scan.FORWARD) == read + u.nbytes
    assert scan.moved_bytes(tokens, 2, scan.BOTH) == 3 * read + 2 * u.nbytes
    assert read == 4 * 2 * tokens * 2 * (channels + states)


def test_sizes_reach_the_working_grid_that_is_asked_for(tmp_path):
    case = CASES["mindboggle_2mm"]
    if not DATA.exists():
        pytest.skip("no data folder")
    files = [DATA / name for subject in case.pairs[0] for name in case.names(subject)]
    job = Job(files[0], files[2], files[1], files[3], tmp_path, True, 1)
    spacing = stages.spacing_for(job, 64**3)
    assert 2 < spacing < 4
    cube = stages.resampled(job, 192 / 48, 48, tmp_path)
    import SimpleITK as sitk

    assert sitk.ReadImage(str(cube.fixed)).GetSize() == (48, 48, 48)
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(cube.moving_labels))))) > {0}


def test_structure_boxes_hold_the_groups_of_the_case(tmp_path):
    path = tmp_path / "boxes.png"
    pictures.structures(made_rows(), "mindboggle_1mm", METHODS, path)
    assert path.stat().st_size > 5000
