"""Tuning: the same cell is chosen wherever it is stopped, nothing runs twice, and the choice stays blind."""

import json
import random
import shutil
import sys
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies.runs import Point, Result, Run
from lightning_nlf.studies.spec import Arm, Range, Search, Solved, Study
from lightning_nlf.studies.tuning import Tuning

GRID = {"lr": (1, 2, 3), "hidden": ([8], [8, 8])}


def study_in(folder):
    arms = {"plain": Arm("plain", ()), "joint": Arm("joint", (), {}, GRID, {"env_steps": 1000})}
    seeds = {seed: seed for seed in (0, 1, 2, 9)}
    baselines = dict.fromkeys(arms, "plain")
    return Study("speed", Path("speed.yaml"), folder, arms, baselines, "val/return", (0, 1, 2), (9,), seeds)


@pytest.fixture
def study(tmp_path):
    return study_in(tmp_path / "speed")


@pytest.fixture(scope="module")
def tuned_folder(tmp_path_factory):
    """The folder of the study after tuning; tests copy it."""
    folder = tmp_path_factory.mktemp("tuned")
    work(study_in(folder), [])
    return folder


@pytest.fixture
def tuned(tuned_folder, tmp_path):
    shutil.copytree(tuned_folder, tmp_path / "tuned")
    return study_in(tmp_path / "tuned")


def with_arm(study, **values):
    return replace(study, arms={**study.arms, "joint": replace(study.arms["joint"], **values)})


def with_search(study, *values):
    return replace(study, search=Search(*values))


def result_of(run, value):
    return Result(run, (Point({"env_steps": 10}, float(value)),))


def value_of(run):
    """A metric that depends on the cell and the seed; the best cell is lr 2 with [8, 8]."""
    lr, hidden = run.cell["lr"], run.cell.get("hidden", [])
    return 10 - (lr - 2) ** 2 + len(hidden) + random.Random(f"{lr}{hidden}{run.seed}").random() / 10


def end(study, run, value):
    result = result_of(run, value)
    run.folder(study).mkdir(parents=True, exist_ok=True)
    result.save(run.folder(study))
    return result


def work(study, runs, limit=10**6, value=value_of, ahead=1):
    """Run until the cell is chosen, or `limit` runs have ended, in a process of its own as it were."""
    tuning = Tuning(study)
    while tuning.chosen("joint") is None and limit:
        left = tuning.next_runs("joint", ahead)
        if not left:  # all results of the last cells were on the disk
            assert tuning.chosen("joint") is not None
            break
        run = left[0]
        runs.append(run.name)
        tuning.finish(end(study, run, value(run)))
        limit -= 1
    return tuning.chosen("joint")


def test_a_grid_runs_each_cell_on_each_seed(study):
    runs = []
    assert work(study, runs) == {"lr": 2, "hidden": [8, 8]}
    assert len(runs) == len({*runs}) == 18
    record = json.loads((study.folder / "cells.json").read_text())["arms"]["joint"]
    assert len(record["cells"]) == 6 and record["cells"][0]["cell"] == record["cell"]
    assert [row["score"] for row in record["cells"]] == sorted((row["score"] for row in record["cells"]), reverse=True)
    assert record["plan"]["tuning seeds"] == [0, 1, 2]
    tuning = Tuning(study)
    assert tuning.next_runs("joint", 8) == [] and len(tuning.results("joint")) == 18
    assert tuning.best("joint") == pytest.approx(record["cells"][0]["score"])


def test_report_runs_exist_only_for_the_chosen_cell(study, tuned):
    tuning = Tuning(study)
    assert tuning.report_runs("joint") == [] and tuning.chosen("joint") is None
    assert tuning.report_runs("plain") == [Run("plain", "report", {}, 9)]
    assert Tuning(tuned).report_runs("joint") == [Run("joint", "report", {"lr": 2, "hidden": [8, 8]}, 9)]


def test_an_arm_without_a_grid_writes_nothing(study):
    tuning = Tuning(study)
    assert tuning.chosen("plain") == {} and tuning.next_runs("plain", 4) == [] and tuning.best("plain") is None
    assert tuning.remarks() == [] and not study.folder.exists()


SEARCHES = [
    ("grid",),
    ("random", 4),
    ("tpe", 4),
    ("grid", None, "median"),
    ("grid", None, "halving"),
    ("tpe", 5, "hyperband"),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_stopped_anywhere_it_chooses_the_same_and_runs_nothing_twice(study, tmp_path, search):
    study = with_search(study, *search)
    runs, sequel = [], []
    chosen = work(study, runs)
    again = replace(study, folder=tmp_path / "again")
    stops = random.Random(str(search))
    while work(again, sequel, stops.randint(1, 4)) is None:
        if stops.random() < 0.5:  # killed between the result and the book-keeping
            for run in Tuning(again).next_runs("joint", 1)[:1]:
                sequel.append(run.name)
                end(again, run, value_of(run))
    assert sequel == runs and len({*runs}) == len(runs)
    assert Tuning(again).chosen("joint") == chosen


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_the_order_of_results_does_not_matter_without_a_pruner(study, ahead):
    tuning, runs = Tuning(study), []
    while tuning.chosen("joint") is None:
        left = tuning.next_runs("joint", ahead)
        assert len(left) >= min(ahead, 18 - len(runs))
        assert len(left) < ahead + 3
        run = random.Random(len(runs)).choice(left)
        runs.append(run.name)
        tuning.finish(end(study, run, value_of(run)))
    assert tuning.chosen("joint") == {"lr": 2, "hidden": [8, 8]} and len({*runs}) == len(runs) == 18


@pytest.mark.parametrize("search", [("random", 6), ("tpe", 6)], ids=str)
def test_a_search_of_a_finite_grid_repeats_no_cell(study, search):
    """Six cells of six: the last ones are hard to draw."""
    runs = []
    assert work(with_search(study, *search), runs) == {"lr": 2, "hidden": [8, 8]}
    assert len({*runs}) == len(runs) == 18


def test_a_range(study):
    study = with_arm(with_search(study, "random", 5), grid={"lr": Range(0.5, 8, True)})
    runs = []
    cell = work(study, runs)
    assert 0.5 <= cell["lr"] <= 8 and len(runs) == 15
    cells = json.loads((study.folder / "cells.json").read_text())["arms"]["joint"]["cells"]
    assert len({row["cell"]["lr"] for row in cells}) == 5
    assert abs(cell["lr"] - 2) == pytest.approx(min(abs(row["cell"]["lr"] - 2) for row in cells), abs=0.05)


def test_a_process_that_died_while_it_asked(study):
    """A trial without a cell is given one, and no cell is lost."""
    runs, tuning = [], Tuning(study)
    assert tuning.best("joint") is None
    trials = tuning._trials("joint")
    trials._study(trials._sampler(0)).ask()
    assert work(study, runs) == {"lr": 2, "hidden": [8, 8]} and len({*runs}) == 18


def test_a_line_that_a_process_left_incomplete(study):
    runs = []
    work(study, runs, 4)
    with (study.folder / "optuna.log").open("a") as log:
        log.write('{"op_code": 4, "wor')
    work(study, runs)
    assert len({*runs}) == len(runs) == 18


def in_order(values, tuning_seeds=3):
    """A metric by the order in which cells are asked for: `values[i][k]` of cell i on its k-th seed."""
    cells = []

    def value(run):
        if run.cell not in cells:
            cells.append(run.cell)
        row = values[cells.index(run.cell)]
        return row[min(run.seed, len(row) - 1)]

    return value, cells


def test_the_median_pruner_by_hand(study):
    """It starts after five complete cells. Their median after one seed is 3.

    The sixth has 2 < 3 and is dropped after one seed. The seventh has means of 4, 2 and 4/3: it goes on, because the
    pruner looks at its best mean so far.
    """
    study = with_search(with_arm(study, grid={"lr": (1, 2, 3, 4, 5, 6, 7)}), "grid", None, "median")
    value, cells = in_order([[1], [2], [3], [4], [5], [2], [4, 0, 0]])
    runs = []
    assert work(study, runs, value=value) == cells[4]
    assert len(runs) == 5 * 3 + 1 + 3
    rows = {
        str(row["cell"]): row for row in json.loads((study.folder / "cells.json").read_text())["arms"]["joint"]["cells"]
    }
    assert [rows[str(cell)]["seeds"] for cell in cells] == [3, 3, 3, 3, 3, 1, 3]
    assert rows[str(cells[5])]["pruned"] and rows[str(cells[6])]["score"] == pytest.approx(4 / 3)


def test_successive_halving_by_hand(study):
    """After the first seed, a cell goes on if it is in the best quarter of those before it, or the best of few."""
    study = with_search(with_arm(study, grid={"lr": (1, 2, 3, 4, 5, 6)}), "grid", None, "halving")
    value, cells = in_order([[3], [1], [2], [5], [4], [6]])
    runs = []
    assert work(study, runs, value=value) == cells[5]
    assert len(runs) == 3 * 3 + 3


def test_a_pruned_cell_is_never_chosen(study):
    """The pruned cell had the best first seed of all but one, and a better mean than the one that is complete."""
    study = with_search(with_arm(study, grid={"lr": (1, 2)}), "grid", None, "halving")
    value, cells = in_order([[5, -9, -9], [4]])
    runs = []
    assert work(study, runs, value=value) == cells[0] and len(runs) == 4


def test_a_pruner_first_sees_one_seed_of_each_cell(study):
    tuning = Tuning(with_search(study, "grid", None, "median"))
    assert [run.seed for run in tuning.next_runs("joint", 4)] == [0] * 4
    assert len(tuning.next_runs("joint", 18)) == 18  # all cells are open: the workers need not be idle


def test_unsolved_cells(study):
    """Steps to solve: lr 1 is solved on no seed, lr 2 on one of three in 10 steps, lr 3 on one in 5."""
    study = replace(with_arm(study, grid={"lr": (1, 2, 3)}), solved=Solved(100))
    tuning = Tuning(study)
    for run in tuning.next_runs("joint", 9):
        solved = run.seed == 1 and run.cell["lr"] > 1
        point = Point({"env_steps": 10 if run.cell["lr"] == 2 else 5}, 100.0 if solved else 0.0)
        run.folder(study).mkdir(parents=True)
        Result(run, (point,)).save(run.folder(study))
    assert tuning.next_runs("joint", 1) == [] and tuning.chosen("joint") == {"lr": 3}
    assert tuning.best("joint") is None
    assert tuning.remarks() == ["joint: the best cell is at the edge of its grid: lr 3 is the largest"]


CHANGES = [
    (lambda s: with_arm(s, grid={**GRID, "lr": (1, 2, 3, 4)}), "grid"),
    (lambda s: with_arm(s, grid={}), "grid"),
    (lambda s: with_arm(s, changes={"model.x": 1}, recipe="new"), "changes"),
    (lambda s: with_arm(s, words=("--config", "b.yaml"), recipe="new"), "yaml"),
    (lambda s: with_arm(s, recipe="new"), "yaml"),
    (lambda s: with_arm(s, tune_budgets={"env_steps": 9}), "budgets of tuning"),
    (lambda s: with_search(s, "random", 4), "search"),
    (lambda s: replace(s, tune=(0, 1)), "tuning seeds"),
    (lambda s: replace(s, last=2), "metric"),
]


@pytest.mark.parametrize("change, name", CHANGES)
def test_a_change_after_report_runs_is_refused(tuned, change, name):
    for run in Tuning(tuned).report_runs("joint"):
        end(tuned, run, 0)
    with pytest.raises(ConfigurationError) as error:
        Tuning(change(tuned))
    assert all(part in str(error.value) for part in ("arms.joint", f"its {name}", "1 report run", "--widen"))
    Tuning(tuned)  # the change undone


@pytest.mark.parametrize("change, name", CHANGES[:1] + CHANGES[2:])
def test_a_change_before_report_runs_just_tunes_again(tuned, change, name):
    tuning = Tuning(change(tuned))
    assert tuning.chosen("joint") is None and tuning.report_runs("joint") == [] and tuning.remarks() == []
    if change(tuned).arms["joint"].recipe:
        assert tuning.next_runs("joint", 1)[0].seed == 0  # no result of the earlier recipe counts
    assert work(change(tuned), []) is not None


def test_a_wider_grid_is_tuned_again_with_the_flag_and_remembered_for_ever(tuned):
    end(tuned, Tuning(tuned).report_runs("joint")[0], 0)
    wider = with_arm(tuned, grid={**GRID, "lr": (1, 2, 3, 4)})
    tuning = Tuning(wider, widen=True)
    sentence = "joint: its grid was widened after 1 report run existed, and it was tuned again (--widen)"
    assert tuning.chosen("joint") is None and tuning.remarks() == [sentence]
    Tuning(wider)  # another process, without the flag
    runs = []
    assert work(wider, runs) == {"lr": 2, "hidden": [8, 8]} and len(runs) == 6  # only the new cells
    end(wider, Tuning(wider).report_runs("joint")[0], 0)
    for widen in (True, False):
        assert Tuning(wider, widen).remarks() == [sentence]
    with pytest.raises(ConfigurationError, match="--widen"):
        Tuning(tuned)


def test_a_grid_that_comes_after_report_runs_is_refused(study):
    plain = Run("plain", "report", {}, 9)
    end(study, plain, 0)
    late = replace(study, arms={**study.arms, "plain": replace(study.arms["plain"], grid={"lr": (1, 2)})})
    with pytest.raises(ConfigurationError, match="arms.plain: its grid changed after 1 report run "):
        Tuning(late)
    plain.folder(study).rename(study.folder / "moved")
    (study.folder / "old").mkdir()
    (study.folder / "moved").rename(study.folder / "old" / "17-plain-report-x")  # made again on request
    with pytest.raises(ConfigurationError, match="arms.plain"):
        Tuning(late)


def test_without_optuna_a_grid_is_refused(study, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("sys.path_importer_cache", {})
    monkeypatch.setattr("sys.meta_path", [finder for finder in sys.meta_path if finder is PathFinder])
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    Tuning(with_arm(study, grid={}))
    with pytest.raises(ConfigurationError, match=r"a grid needs Optuna: pip install 'lightning_nlf\[study\]'"):
        Tuning(study)


def test_damaged_cells(study):
    study.folder.mkdir()
    (study.folder / "cells.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cells.json: not valid JSON"):
        Tuning(study)


def test_no_line_on_the_terminal(study, capfd):
    work(with_search(study, "tpe", 3, "hyperband"), [])
    assert capfd.readouterr() == ("", "")
