"""The report: tables worked by hand, pairs, foreign text, the JSON round trip, and the picture."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies import report
from lightning_nlf.studies.curves import curve, grid
from lightning_nlf.studies.markdown import code, escaped
from lightning_nlf.studies.page import seed_text
from lightning_nlf.studies.rows import dumps, from_row, loads, row
from lightning_nlf.studies.runs import Point, Result, Run
from lightning_nlf.studies.spec import Solved
from lightning_nlf.studies.summary import summarize

INF = math.inf
STEPS = {"solved": Solved(1.0)}
STEPS_TITLE = "environment steps, median [quartiles]"
CELL = {"model.lr": 0.1}


@pytest.fixture
def speedup(study_of, solved_at):
    """Study and runs of six seeds: base at 800 steps or never, joint at 200 steps, or never in one run."""
    study = study_of(**STEPS)
    base, joint = (800, 800, 800, 800, 800, INF), (200, 200, 200, 200, 100, INF)
    runs = [solved_at(steps, "base", seed) for steps, seed in zip(base, study.report, strict=True)]
    runs += [solved_at(steps, "joint", seed, cell=CELL) for steps, seed in zip(joint, study.report, strict=True)]
    return study, runs


def rows_of(text):
    """Cells by title of each row of the first table of a Markdown text, by the first cell."""
    table = text[text.index("| arm |") :].split("\n\n")[0]
    titles, _, *rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def test_a_table_of_steps(speedup):
    """Medians 800 and 200: four times fewer. Joint wins 5 of 6 pairs, and one is a tie: 5.5 / 6 = .92."""
    study, runs = speedup
    text = report.write(study, runs, {"base": {}, "joint": CELL}, []).read_text()
    rows = rows_of(text)
    assert rows["base"]["solved"] == rows["joint"]["solved"] == "5/6"
    assert (rows["base"]["cell"], rows["joint"]["cell"]) == ("", "lr 0.1")
    assert (rows["base"][STEPS_TITLE], rows["joint"][STEPS_TITLE]) == ("800 [800, 800]", "200 [200, 200]")
    assert rows["joint"]["× fewer than base (95 %)"].startswith("4.0 [")
    assert rows["joint"]["P(better than base) (95 %)"].startswith("0.92 [")
    assert rows["joint"]["optimizer steps"] == "20"  # when it was judged
    assert not {"failed", "pairs"} & rows["joint"].keys()  # no run failed, and every run has its pair
    assert "A run is solved at a validation with `val/return` ≥ 1." in text


def test_only_seeds_that_both_have_are_pairs(speedup, solved_at):
    study, runs = speedup
    several = [run for run in runs if (run.run.arm, run.run.seed) not in {("base", 100), ("joint", 101)}]
    several.append(solved_at(100, "joint", 0, stage="tune"))  # no seed of the report
    comparison = summarize(study, several).comparison("joint", "env_steps")
    assert (comparison.pairs, comparison.starts) == (4, 4)
    text = report.write(study, several, {}, []).read_text()
    assert rows_of(text)["joint"]["solved"] == "4/5" and rows_of(text)["joint"]["pairs"] == "4"
    assert "joint: no claim is made from 4 seeds; at least 6 are needed." in text
    assert "10 of 12 report runs" in text


def test_only_runs_of_the_chosen_cell_count(speedup, solved_at):
    """Six earlier runs of another cell, and a run of a seed that is no seed of the report."""
    study, runs = speedup
    earlier = [solved_at(900, "joint", seed, cell={"model.lr": 0.2}) for seed in study.report]
    several = [*earlier, *runs, *earlier, solved_at(100, "joint", 7, cell=CELL)]
    report.write(study, several, {"base": {}, "joint": CELL}, [])
    assert report.committed(study) == runs


def test_a_median_run_that_was_not_solved(study_of, solved_at):
    study = study_of(**STEPS)
    runs = [solved_at(100, "base", seed) for seed in study.report]
    runs += [solved_at(INF, "joint", seed) for seed in study.report]
    text = report.write(study, runs, {}, []).read_text()
    row = rows_of(text)["joint"]
    assert row[STEPS_TITLE] == "> 1,000 [> 1,000, > 1,000]" and row["× fewer than base (95 %)"] == "< 0.10 [0, 0.10]"
    assert "at least 10 times more, over 6 seeds. None of its 6 runs solved" in text
    swapped = replace(study, baselines=dict.fromkeys(study.arms, "joint"))
    text = report.write(swapped, runs, {}, []).read_text()
    assert rows_of(text)["base"]["× fewer than joint (95 %)"] == "> 10 [10, ∞]"
    assert "base needs fewer environment steps than joint: at least 10 times fewer, over 6 seeds." in text


def test_a_run_that_its_yaml_ended_is_known_only_up_to_its_end(study_of, solved_at):
    """Base is unsolved after 1,000 steps of a budget of 100,000: joint, at 100, is 10 times faster, not 1,000."""
    study = study_of(**STEPS, budgets={"env_steps": 100_000})
    runs = [solved_at(INF, "base", seed) for seed in study.report]
    runs += [solved_at(100, "joint", seed) for seed in study.report]
    text = report.write(study, runs, {}, []).read_text()
    assert rows_of(text)["base"][STEPS_TITLE] == "> 1,000 [> 1,000, > 1,000]"
    assert rows_of(text)["joint"]["× fewer than base (95 %)"] == "> 10 [10, ∞]"
    assert "joint needs fewer environment steps than base: at least 10 times fewer, over 6 seeds." in text


def test_a_table_of_a_metric(study_of, run_of):
    """Joint is 0.5 better with each seed; one run of it fails."""
    study = study_of(seeds=range(100, 110))
    runs = [run_of([0.0, i / 10], "base", seed) for i, seed in enumerate(study.report)]
    runs += [run_of([0.0, i / 10 + 0.5], "joint", seed) for i, seed in enumerate(study.report)]
    runs[-1] = run_of([0.0], "joint", 109, failure="the loss is not finite")
    text = report.write(study, runs, {}, ["joint: its grid was widened"]).read_text()
    rows = rows_of(text)
    assert [row["runs"] for row in rows.values()] == ["10", "10"]
    assert [row["failed"] for row in rows.values()] == ["0", "1"]
    medians = [row["val/return, median [quartiles]"] for row in rows.values()]
    assert medians == ["0.400 [0.200, 0.600]", "0.800 [0.600, 1.000]"]
    assert rows["joint"]["difference to base (95 %)"] == "0.50 [0.50, 0.50]"
    assert "- joint is better than base: its val/return is higher by at least 0.50, over 10 seeds. 1 of its 10" in text
    assert "- joint, seed 109: the loss is not finite" in text
    assert "- joint: its grid was widened" in text
    assert "## After 200 environment steps" in text  # where the runs ended, before their budget of 1,000


def test_further_metrics_are_shown_where_a_run_is_judged(study_of, run_of):
    """KL is 0.01 × the number of the validation: 0.02 at the last of two, and of seeds whose runs logged it."""
    study = study_of(also=("val/kl", "val/never"))
    runs = [run_of([0.0, 1.0], arm, seed) for arm in study.arms for seed in study.report]
    for i in range(len(runs) - 1):
        points = [Point({**p.counters, "val/kl": p.counters["iteration"] / 100}, p.value) for p in runs[i].points]
        runs[i] = replace(runs[i], points=tuple(points))
    text = report.write(study, runs, {}, []).read_text()
    assert "| val/kl |" in text and "val/never" not in text
    assert rows_of(text)["base"]["val/kl"] == rows_of(text)["joint"]["val/kl"] == "0.0200"


def test_an_arm_is_judged_at_each_counter(study_of, run_of):
    """After 300 environment steps the arms differ by 3, after 20 optimizer steps by 2."""
    study = study_of(budgets={"env_steps": 300, "optimizer_steps": 20})
    runs = [run_of([0] * 3, "base", seed) for seed in study.report]
    runs += [run_of([1, 2, 3, 100], "joint", seed) for seed in study.report]
    summary = summarize(study, runs)
    assert summary.comparison("joint", "env_steps").effect[0] == 3
    assert summary.comparison("joint", "optimizer_steps").effect[0] == 2
    assert summary.planned == 2


def test_settings_have_their_baselines_and_aggregates(study_of, run_of):
    study = study_of(settings=("easy", "hard"))
    runs = [
        run_of([(setting == "easy") + (method == "joint") / 2], f"{method}/{setting}", seed)
        for setting in ("easy", "hard")
        for method in ("base", "joint")
        for seed in study.report
    ]
    summary = summarize(study, runs)
    assert summary.comparison("joint/hard", "env_steps").baseline == "base/hard"
    means = {x.method: (x.mean[0], x.improvement and x.improvement[0]) for x in summary.aggregates}
    assert means == {"base": (0.5, None), "joint": (1.0, 1.0)}
    text = report.write(study, runs, {}, []).read_text()
    assert "**Setting: hard**" in text and "easy, hard" in text
    assert summarize(replace(study, solved=Solved(0.5)), runs).aggregates == []


def test_a_curve_is_the_last_validation_before_each_place(study_of, run_of):
    """Three runs with 1, 2, 3 at 100 steps; one fails after that, another rises to 5 at 200 steps."""
    study = study_of(budgets={"env_steps": 200})
    runs = [run_of([1, 5]), run_of([2], seed=101), run_of([3], seed=102, failure="killed")]
    line = curve(study, runs, "env_steps", np.array([50.0, 100.0, 150.0, 200.0, 300.0]))
    assert line["at"] == [100, 150, 200]
    assert line["median"] == [2, 1, 2]  # of 1 2 3, then of 1 2 and a failure, then of 5 2 and a failure
    assert line["low"][1] == -INF
    assert grid(study, {"joint": runs}, "env_steps")[[0, -1]].tolist() == [0, 200]


def test_the_json_gives_the_runs_back(study_of, run_of):
    study = study_of()
    odd = run_of([1.0, math.nan, -INF], "base", 100, failure="|", seconds=2.5, machine="2 cores", commit="abc")
    odd = replace(odd, run=replace(odd.run, cell={"model.lr": INF, "data.x": {"float": 0.1}, "n": [1, "a"]}))
    empty = run_of([], "joint", 101)
    report.write(study, [empty, odd], {"joint": None, "base": odd.run.cell}, ["a remark"])
    first, second = report.committed(study)
    assert second == empty
    assert repr(first) == repr(odd)  # NaN is not equal to itself
    strict = json.loads((study.folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert strict["remarks"] == ["a remark"]
    report.write(study, report.committed(study), {}, [])
    assert repr(report.committed(study)) == repr([first, second])


def test_validations_with_different_counters_survive(study_of, run_of):
    study = study_of(budgets={})
    run = replace(run_of([1.0]), points=(Point({"labels": 1.0}, 1.0), Point({"tokens": 2.0}, 2.0)))
    report.write(study, [run], {}, [])
    assert report.committed(study) == [run]


def test_columns_of_a_run(study_of):
    """Counters are exact, even steps are two numbers, seven digits are left of a value, and other counters go."""
    study = study_of(also=("val/kl",))
    rows = [(1234567890.0, 0.123456789, 2.0), (1234567899.0, 1e-9 / 3, 7.0), (1234567908.0, -950.0, 9.0)]
    points = tuple(
        Point({"env_steps": steps, "labels": labels, "val/kl": value / 3, "other": 5.0}, value)
        for steps, value, labels in rows
    )
    columns = row(Result(Run("joint", "report", {}, 100), points, seconds=100 / 3), study)
    assert columns["seconds"] == 33.33333 and columns["points"]["value"] == [0.1234568, 3.333333e-10, -950]
    counters = columns["points"]["counters"]
    assert counters["env_steps"] == {"from": 1234567890, "by": 9} and counters["labels"] == [2, 7, 9]
    assert counters["val/kl"] == [0.04115226, 1.111111e-10, -316.6667] and "other" not in counters
    assert len(dumps(columns)) < 500
    again = from_row(loads(dumps(columns)))
    assert row(again, study) == columns and again.points[1].counters["env_steps"] == 1234567899
    assert '"value":[0.1234568,3.333333e-10,-950]' in dumps([columns])


@pytest.mark.parametrize("solved", [Solved(1.23456789), Solved(0.123456749)])
@pytest.mark.parametrize("higher", [True, False])
def test_no_value_is_rounded_across_the_threshold(study_of, solved, higher):
    """Runs end when they are solved, so that a value above the threshold by 1e-9 must stay above it."""
    study = study_of(solved=solved, higher=higher)
    values = [solved.threshold + shift for shift in (-1e-6, -1e-9, 0, 1e-9, 1e-6)]
    run = Result(Run("joint", "report", {}, 100), tuple(Point({"env_steps": 1.0}, value) for value in values))
    again = [point.value for point in from_row(loads(dumps(row(run, study)))).points]
    assert [x >= solved.threshold for x in again] == [False, False, True, True, True]
    assert [x <= solved.threshold for x in again] == [True, True, True, False, False]


@pytest.mark.parametrize("solved", [None, Solved(0.7, 2)])
def test_a_report_of_committed_runs_is_the_same_to_the_last_digit(study_of, solved):
    """Random values and steps; medians lie anywhere between two rounded digits."""
    budgets = {"env_steps": 900, "labels": 40}
    study = study_of(settings=("a", "b"), budgets=budgets, solved=solved, also=("val/kl",), last=3)
    chance = np.random.default_rng(0)

    def points():
        steps, labels = chance.integers(1, 100, 20).cumsum(), chance.integers(0, 4, 20).cumsum()
        rows = zip(steps.tolist(), labels.tolist(), chance.random(20).tolist(), strict=True)
        return tuple(
            Point({"env_steps": a, "labels": b, "tokens": 3.0 * a, "iteration": i, "val/kl": x / 7}, x)
            for i, (a, b, x) in enumerate(rows)
        )

    runs = [
        Result(Run(arm, "report", {}, s), points(), "", chance.random()) for arm in study.arms for s in study.report
    ]
    file = report.write(study, runs, {}, [])
    before = file.read_text(), file.with_suffix(".json").read_text()
    report.write(study, report.committed(study), {}, [])
    assert (file.read_text(), file.with_suffix(".json").read_text()) == before
    lines = before[1].splitlines()
    assert sum(line.startswith('{"run":') for line in lines) == len(runs)  # a run made again changes one line


def test_runs_of_an_arm_that_was_changed_do_not_count(speedup):
    study, runs = speedup
    report.write(study, runs, {}, [])
    name = runs[0].run.arm
    changed = replace(study, arms={**study.arms, name: replace(study.arms[name], recipe="another yaml")})
    assert report.committed(changed) == [result for result in report.committed(study) if result.run.arm != name] != []


def test_numbers_that_json_lacks():
    content = {"a": [INF, -INF, 1.5], "b": {"float": "text"}, "c": {"float": 2.0}}
    assert loads(dumps(content)) == content
    assert math.isnan(loads(dumps({"a": math.nan}))["a"])


def test_no_report_and_a_broken_one(study_of):
    study = study_of()
    assert report.committed(study) == []
    for text in ("{", "[]", '{"runs": [{"points": 3}]}', '{"other": 1}'):
        (study.folder / "report.json").write_text(text)
        with pytest.raises(ConfigurationError, match="report.json: not a report of a study .* Restore it or delete it"):
            report.committed(study)


def test_results_have_their_place_and_no_half_file_stays(speedup, tmp_path, monkeypatch):
    study, runs = speedup
    study = replace(study, results=tmp_path / "results" / "v1.0")
    assert report.write(study, runs, {}, []) == tmp_path / "results" / "v1.0.md"
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["v1.0.json", "v1.0.md", "v1.0.png"]
    before = (tmp_path / "results" / "v1.0.json").read_text()

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        report.write(study, runs[:3], {}, [])
    assert len(list((tmp_path / "results").iterdir())) == 3
    assert (tmp_path / "results" / "v1.0.json").read_text() == before


FOREIGN = "a_b _c_ `d` |e| *f* <script>g</script> [h](http://i) $j$ \x1b[31m\n# k ~~l~~ &amp; \\"


def test_foreign_text_is_shown_as_it_is():
    html = MarkdownIt("gfm-like", {"linkify": False}).render(f"| x |\n| --- |\n| {escaped(FOREIGN)} |")
    cell = html.split("<td>")[1].split("</td>")[0]
    assert "<" not in cell.replace("&lt;", "")
    assert html.count("<td>") == 1
    plain = cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == "a_b _c_ `d` |e| *f* <script>g</script> [h](http://i) $j$ \\x1b[31m # k ~~l~~ &amp; \\"
    assert MarkdownIt().render(code("a`b\n<i>")) == "<p><code>a'b &lt;i&gt;</code></p>\n"


def test_foreign_names_and_reasons_make_no_markup(study_of, run_of):
    study = study_of(names=("base", "<img src=x>|$a$"))
    cell = {"k": FOREIGN}
    runs = [run_of([1.0], arm, seed, failure=FOREIGN, cell=cell) for arm in study.arms for seed in study.report]
    text = report.write(study, runs, {"base": cell}, [FOREIGN]).read_text()
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "<script" not in html and "<img src=x" not in html and "<a " not in html and "<s>" not in html
    assert html.count("<img") == 1 and "\x1b" not in text


@pytest.mark.parametrize(
    "sources, lines",
    [
        ([("", "")] * 2, []),
        ([("A, 2 cores", "a1")] * 2, ["- Machine of the runs: A, 2 cores", "- Commit of the runs: a1"]),
        (
            [("B, 4 cores", "a1+"), ("A, 2 cores", "a1")],
            [
                "- Machines of the runs: A, 2 cores (joint); B, 4 cores (base)",
                "- Commits of the runs: a1 (joint); a1+ (base) (+: with changes that were not committed)",
            ],
        ),
    ],
)
def test_machines_and_commits_are_listed_once(study_of, run_of, sources, lines):
    study = study_of()
    runs = [
        run_of([1.0], arm, seed, machine=machine, commit=commit)
        for arm, (machine, commit) in zip(study.arms, sources, strict=True)
        for seed in study.report
    ]
    text = report.write(study, runs, {}, []).read_text()
    assert [line for line in text.splitlines() if " of the runs: " in line] == lines


def test_no_folder_of_this_machine_is_named(speedup, tmp_path, monkeypatch):
    study, runs = speedup
    monkeypatch.chdir(tmp_path)
    for file, text in ((tmp_path / "a" / "s.yaml", "study a/s.yaml`"), (Path("/elsewhere/s.yaml"), "study s.yaml`")):
        assert text in report.write(replace(study, file=file), runs, {}, []).read_text()
    assert str(tmp_path) not in (tmp_path / "report.md").read_text() + (tmp_path / "report.json").read_text()


def test_the_picture_has_a_row_per_counter_and_setting(study_of, run_of):
    def height(budgets, settings):
        study = study_of(budgets=budgets, settings=settings)
        runs = [run_of([1, 2], arm, seed) for arm in study.arms for seed in study.report]
        image = Image.open(report.write(study, runs, {}, []).with_suffix(".png"))
        assert len(image.getcolors(1 << 24)) > 20
        return image.height

    single = height({"env_steps": 200}, ("",))
    assert height({"env_steps": 200, "optimizer_steps": 20}, ("a", "b")) > 3 * single


def test_a_report_without_runs(study_of):
    study = study_of()
    text = report.write(study, [], {}, []).read_text()
    assert "- joint has no runs yet." in text and "0 of 12 report runs" in text


def test_seeds_in_short():
    assert seed_text((3, 0, 1, 2, 7, 9, 10)) == "0–3, 7, 9–10"
    assert seed_text(()) == ""
