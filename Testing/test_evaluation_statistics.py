"""Spread and paired tests against scipy and known answers; rows, summaries and comparisons of results."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.figures import box_plot
from RegMambaLib.evaluation.results import ALL, compare_methods, read_results, rows_of, summarise, to_csv
from RegMambaLib.evaluation.statistics import holm, spread, wilcoxon
from RegMambaLib.evaluation.text import results_text


def samples(seed, count=12, shift=0.02):
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.5, 0.8, count)
    return first.tolist(), (first - shift + rng.normal(scale=0.02, size=count)).tolist()


def test_spread_counts_what_exists():
    found = spread([1.0, None, 4.0, math.nan, 7.0])
    assert (found.count, found.mean, found.sd, found.median) == (3, 4, 3, 4)
    one = spread([2.0])
    assert one.count == 1 and one.mean == one.median == 2 and math.isnan(one.sd)
    assert spread([]).count == 0 and math.isnan(spread([None]).mean)


@pytest.mark.parametrize("count", [5, 12, 60])
def test_the_signed_rank_test_is_scipys(count):
    first, second = samples(count, count)
    found = wilcoxon(first, second)
    expected = stats.wilcoxon(first, second)
    assert found.p == expected.pvalue and found.count == count
    difference = np.subtract(first, second)
    assert found.difference == np.median(difference)
    ranks = stats.rankdata(np.abs(difference))
    favour, against = ranks[difference > 0].sum(), ranks[difference < 0].sum()
    assert found.effect == pytest.approx((favour - against) / (favour + against))
    assert min(favour, against) == expected.statistic


def test_missing_values_and_equal_methods():
    first, second = samples(1)
    holes = [None, *first[1:-1], math.nan]
    assert wilcoxon(holes, second).p == stats.wilcoxon(first[1:-1], second[1:-1]).pvalue
    same = wilcoxon(first, first)
    assert (same.p, same.effect, same.difference) == (1, 0, 0)
    assert wilcoxon([1.0, 2, 3], [0.0, 0, 0]).effect == 1
    assert wilcoxon([None], [1.0]).count == 0


def test_holm_corrects_step_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[::2] == pytest.approx([1, 1])
    assert math.isnan(holm([0.5, math.nan])[1]) and holm([]) == []


def result(method, pair, dice, seconds=2.0):
    """What result.json holds, in short: two structures, one of them missing in the moving map."""
    structures = {
        "3": {"dice": dice, "hd95_mm": 4 * (1 - dice), "surface_mm": 1 - dice, "volume_similarity": 0.9},
        "11": {"dice": dice / 2, "hd95_mm": None, "surface_mm": None, "volume_similarity": 0.5},
    }
    before = {"dice": 0.3, "per_label": {"3": {"dice": 0.4}, "11": {"dice": 0.2}}}
    means = {"dice": 0.75 * dice, "hd95_mm": 4 * (1 - dice), "surface_mm": 1 - dice, "volume_similarity": 0.7}
    return {
        "method": method,
        "pair": pair,
        "before": before,
        "after": {"labels": 2, **means, "per_label": structures},
        "folding_percent": 0.0,
        "sd_log_jacobian": 0.3,
        "seconds": {"refine": 1.0, "total": seconds},
    }


def rows(method, values):
    found = [result(method, f"pair{n}", dice) for n, dice in enumerate(values)]
    return [row for one in found for row in rows_of(one, {3: "left putamen"})]


def test_rows_survive_their_file(tmp_path):
    made = rows("ours", [0.6, 0.7])
    (tmp_path / "results.csv").write_text(to_csv(made))
    read = read_results(tmp_path / "results.csv")
    assert [row["label"] for row in read] == [ALL, "3", "11"] * 2
    for a, b in zip(made, read, strict=True):
        for name, value in b.items():
            assert value == (pytest.approx(a[name]) if isinstance(a.get(name), float) else a.get(name))
    assert read[0]["seconds"] == 2 and read[1]["name"] == "left putamen" and read[2]["hd95_mm"] is None


def test_the_summary_is_the_spread_over_pairs():
    values = [0.6, 0.7, 0.95]
    summary = summarise(rows("ours", values) + rows("theirs", values[:1]))
    ours = summary["ours"]
    assert ours["pairs"] == 3 and summary["theirs"]["pairs"] == 1
    assert list(ours["structures"]) == ["3", "11"]
    assert ours["structures"]["3"]["dice"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert ours["structures"]["3"]["dice"]["median"] == 0.7
    assert "hd95_mm" not in ours["structures"]["11"]
    assert ours["overall"]["dice"]["mean"] == pytest.approx(0.75 * np.mean(values))
    assert ours["overall"]["dice_before"]["mean"] == pytest.approx(0.3) and "tre_mm" not in ours["overall"]


def test_methods_are_compared_pair_by_pair_whatever_their_order():
    first, second = samples(3, 9)
    a, b = rows("ours", first), rows("theirs", second)
    shuffled = [b[3 * n + k] for n in (4, 0, 8, 2, 1, 3, 5, 7, 6) for k in range(3)]
    found = {(row["measure"], row["label"]): row for row in compare_methods(a, shuffled)}
    expected = stats.wilcoxon(first, second).pvalue
    row = found["dice", "3"]
    assert row["p"] == pytest.approx(expected) and row["name"] == "left putamen" and row["count"] == 9
    assert row["p_holm"] == pytest.approx(min(1, 2 * expected))  # two structures, equal p
    assert found["dice", ALL]["p_holm"] == found["dice", ALL]["p"]
    assert row["first_mean"] == pytest.approx(np.mean(first)) and row["effect"] > 0
    assert ("hd95_mm", "11") not in found and ("dice_before", ALL) not in found
    with pytest.raises(InputError, match="share no pair"):
        compare_methods(a, [{**row, "pair": "other"} for row in b])


def test_other_labels_do_not_pass_for_another_method():
    """The same method, measured on two structures and on one of them: no difference."""
    values = samples(4)[0]
    every = rows("ours", values)
    some = [row for row in rows("same", values) if row["label"] != "11"]
    for row in some:
        row.update({"dice": 2 * row["dice"]} if row["label"] == ALL else {})
    found = {(row["measure"], row["label"]): row for row in compare_methods(every, some)}
    dice = found["dice", ALL]
    assert dice["p"] == 1 and dice["first_mean"] == dice["second_mean"] == pytest.approx(np.mean(values))


def test_the_text_tells_figures_failures_and_too_few_pairs():
    ours, theirs = rows("ours", [0.6, 0.7]), rows("theirs", [0.5, 0.6])
    comparisons = {("ours", "theirs"): compare_methods(ours, theirs)}
    text = results_text(summarise(ours + theirs), {"pair9 (ours)": "no such file"}, comparisons)
    assert "left putamen (3)" in text and "0.650 ± 0.071 (0.650)" in text
    assert "fewer than 6 pairs" in text and "pair9 (ours): no such file" in text


def test_box_plots_are_drawn_for_what_was_measured():
    pytest.importorskip("matplotlib")
    made = rows("ours", samples(0)[0]) + rows("theirs", samples(0)[1])
    assert box_plot(made, "dice").startswith(b"\x89PNG")
    assert box_plot([row for row in made if row["label"] == ALL], "dice") is None


def test_compare_prints_and_writes(tmp_path, capsys):
    first, second = samples(5)
    for name, values in (("a", first), ("b", second)):
        (tmp_path / f"{name}.csv").write_text(to_csv(rows("same", values)))
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert main(["evaluate", "--compare", *files, "-o", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == files[0]  # one name for both methods: the files tell them apart
    dice = next(row for row in found["comparison"] if row["measure"] == "dice" and row["label"] == "3")
    assert dice["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue, rel=1e-3)
    names = ["comparison.csv", "comparison.json", "comparison.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert main(["evaluate", "--compare", *files]) == 0
    assert "left putamen (3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "word"),
    [("a,b\n1,2\n", "holds no results"), ("", "holds no results"), ("several", "several methods"), (None, "not exist")],
)
def test_what_is_no_result_is_refused_in_one_sentence(tmp_path, capsys, text, word):
    (tmp_path / "good.csv").write_text(to_csv(rows("ours", [0.5])))
    if text == "several":
        text = to_csv(rows("ours", [0.5]) + rows("theirs", [0.5]))
    if text is not None:
        (tmp_path / "bad.csv").write_text(text)
    assert main(["evaluate", "--compare", str(tmp_path / "good.csv"), str(tmp_path / "bad.csv")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and word in said.err
