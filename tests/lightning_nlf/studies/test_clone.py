"""A fresh clone has the committed JSON of a study and no folder: it does not tune again, and forgets no remark."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies import report
from lightning_nlf.studies.record import file_of
from lightning_nlf.studies.runs import Point, Result, Run
from lightning_nlf.studies.spec import Arm, Range, Search, Study
from lightning_nlf.studies.tuning import Tuning

GRID = {"model.lr": (0.1, 0.2, 0.3), "model.hidden": ([8], [8, 8])}
CELL = {"model.lr": 0.3, "model.hidden": [8, 8]}
SEEDS = tuple(range(9, 15))


def study_in(place):
    """A study with committed results outside of its folder."""
    limits = {"env_steps": 1000}
    arms = {"plain": Arm("plain", ("--config", "plain.yaml"), budgets=limits, recipe="p")}
    arms["joint"] = Arm("joint", ("--config", "joint.yaml"), {}, GRID, limits, recipe="j")
    baselines, starts = dict.fromkeys(arms, "plain"), {seed: seed for seed in (0, 1, *SEEDS)}
    values = {"metric": "val/return", "tune": (0, 1), "report": SEEDS, "starts": starts}
    folder, results = place / "original", place / "results" / "speed"
    return Study("speed", Path("speed.yaml"), folder, arms, baselines, results=results, **values)


def end(study, run):
    """A result with four validations. The best cell has the largest rate and two layers."""
    chance = random.Random(f"{run}")
    height = 10 * run.cell.get("model.lr", 0) + len(run.cell.get("model.hidden", []))
    counts = ({"env_steps": float(chance.randint(200, 240) * i), "iteration": 2.0 * i} for i in range(1, 5))
    points = tuple(Point(counters, height + chance.random() / 7) for counters in counts)
    result = Result(run, points, "", chance.random(), "a processor, 2 cores", "abc")
    run.folder(study).mkdir(parents=True, exist_ok=True)
    result.save(run.folder(study))
    return result


def tune(study):
    tuning = Tuning(study)
    while tuning.chosen("joint") is None:
        for run in tuning.next_runs("joint", 4):
            tuning.finish(end(study, run))
    return tuning


def write(study, tuning, results=()):
    """The report of all arms, of these results and new ones for the other report runs; its Markdown."""
    old = {result.run.name: result for result in results}
    runs = [run for name in study.arms for run in tuning.report_runs(name)]
    cells = {name: tuning.chosen(name) for name in study.arms}
    results = [old.get(run.name) or end(study, run) for run in runs]
    return report.write(study, results, cells, tuning.remarks(), tuning.record()).read_text()


@pytest.fixture(scope="module")
def tuned_place(tmp_path_factory):
    """Where the study was tuned and run; tests copy it."""
    study = study_in(tmp_path_factory.mktemp("tuned"))
    write(study, tune(study))
    return study.folder.parent


@pytest.fixture
def study(tuned_place, tmp_path):
    """The original."""
    shutil.copytree(tuned_place, tmp_path, dirs_exist_ok=True)
    return study_in(tmp_path)


@pytest.fixture
def clone(study, tmp_path):
    return replace(study, folder=tmp_path / "clone")


def with_arm(study, **values):
    return replace(study, arms={**study.arms, "joint": replace(study.arms["joint"], **values)})


WIDER = {**GRID, "model.lr": (0.1, 0.2, 0.3, 0.4)}


def test_the_cell_comes_from_the_committed_results(clone):
    tuning = Tuning(clone)
    assert tuning.chosen("joint") == CELL and tuning.next_runs("joint", 8) == []
    assert tuning.report_runs("joint") == [Run("joint", "report", CELL, seed) for seed in SEEDS]
    assert tuning.remarks() == ["joint: the best cell is at the edge of its grid: model.lr 0.3 is the largest"]


def test_the_report_of_a_clone_is_the_same_to_the_last_digit(study, clone):
    """Written from the committed runs, and again from that. Only the place of the study is not in it."""
    files = [file_of(study, suffix) for suffix in ("md", "json")]
    before = [file.read_text() for file in files]
    for _ in range(2):
        write(clone, Tuning(clone), report.committed(clone))
        assert [file.read_text() for file in files] == before


def test_one_row_made_again_keeps_the_cell(clone):
    """The other rows are the committed ones, and the next clone still has the choice."""
    earlier = [result for result in report.committed(clone) if result.run.arm == "plain"]
    text = write(clone, Tuning(clone), earlier)
    assert "`model.lr=0.3`" in text and "- joint: the best cell is at the edge" in text
    assert not (clone.folder / "cells.json").exists()
    assert Tuning(replace(clone, folder=clone.folder / "next")).chosen("joint") == CELL


CHANGES = [
    (lambda s: with_arm(s, grid=WIDER), "grid"),
    (lambda s: with_arm(s, recipe="new"), "yaml"),
    (lambda s: replace(s, search=Search("random", 4)), "search"),
    (lambda s: replace(s, tune=(0,)), "tuning seeds"),
]


@pytest.mark.parametrize("change, name", CHANGES)
def test_a_change_after_committed_report_runs_is_refused(clone, change, name):
    with pytest.raises(ConfigurationError) as error:
        Tuning(change(clone))
    assert all(
        part in str(error.value) for part in ("arms.joint", f"its {name}", "changed after 6 report runs", "--widen")
    )


@pytest.mark.parametrize("change, name", CHANGES)
def test_a_change_before_report_runs_tunes_again(study, tmp_path, change, name):
    """The JSON has the choice, and runs of the other arm only."""
    tuning = Tuning(study)
    plain = [end(study, run) for run in tuning.report_runs("plain")]
    report.write(study, plain, {"plain": {}}, [], tuning.record())
    clone = replace(study, folder=tmp_path / "clone")
    assert Tuning(clone).chosen("joint") == CELL
    assert Tuning(change(clone)).chosen("joint") is None and Tuning(change(clone)).next_runs("joint", 1)


def test_what_was_widened_is_said_in_every_clone(clone):
    wider = with_arm(clone, grid=WIDER)
    sentence = "joint: its grid was widened after 6 report runs existed, and it was tuned again (--widen)"
    tuning = Tuning(wider, widen=True)
    assert tuning.chosen("joint") is None and tuning.remarks() == [sentence]
    assert f"- {sentence.replace('_', chr(92) + '_')}" in write(wider, tune(wider))
    again = Tuning(replace(wider, folder=clone.folder / "next"))
    assert again.chosen("joint") == {**CELL, "model.lr": 0.4} and again.remarks()[0] == sentence
    assert len(again.remarks()) == 2
    with pytest.raises(ConfigurationError, match="--widen"):
        Tuning(replace(clone, folder=clone.folder / "next"))


def test_runs_of_the_clone_and_committed_runs_count_once(clone):
    """Seed 9 is made again in the clone, and once more with the first one moved away."""
    for place in (clone.folder / "old" / f"17-joint-{Tuning(clone).report_runs('joint')[0].folder(clone).name}", None):
        folder = Tuning(clone).report_runs("joint")[0].folder(clone)
        end(clone, Tuning(clone).report_runs("joint")[0])
        if place:
            place.parent.mkdir()
            folder.rename(place)
    with pytest.raises(ConfigurationError, match="changed after 6 report runs"):
        Tuning(with_arm(clone, grid=WIDER))


def test_a_grid_that_comes_after_committed_runs_is_refused(clone):
    plain = replace(clone.arms["plain"], grid={"model.lr": (1, 2)})
    with pytest.raises(ConfigurationError, match="arms.plain: its grid changed after 6 report runs"):
        Tuning(replace(clone, arms={**clone.arms, "plain": plain}))


def test_a_choice_of_the_present_plan_counts_wherever_it_is(clone, study):
    """The clone's choice counts if both are of the present plan; the committed one if that of the clone is not."""
    file, content = clone.folder / "cells.json", json.loads((study.folder / "cells.json").read_text())
    content["arms"]["joint"]["cell"] = {**CELL, "model.lr": 0.1}
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    assert Tuning(clone).chosen("joint") == {**CELL, "model.lr": 0.1}
    content["arms"]["joint"]["plan"]["tuning seeds"] = [5]
    file.write_text(json.dumps(content))
    assert Tuning(clone).chosen("joint") == CELL


def test_a_report_of_an_earlier_version_has_no_choice(clone):
    """Its runs count, and the arm cannot be tuned as if they did not exist."""
    file = file_of(clone, "json")
    content = json.loads(file.read_text())
    del content["tuning"]
    file.write_text(json.dumps(content))
    assert len(report.committed(clone)) == 12
    with pytest.raises(ConfigurationError, match="arms.joint: its grid changed after 6 report runs"):
        Tuning(clone)


CHOICE = ("tuning", "arms", "joint")
RUN = ("runs", 0)
FOREIGN = {"trainer.callbacks+": {"class_path": "os.system"}}
DAMAGES = [
    ((*CHOICE, "cell"), {**CELL, "model.lr": 7}, "not a cell of its grid"),
    ((*CHOICE, "cell"), {**CELL, **FOREIGN}, "not a cell of its grid"),
    ((*CHOICE, "cell"), FOREIGN, "not a cell of its grid"),
    ((*CHOICE, "cell"), [3], "cell is not a mapping"),
    ((*CHOICE, "plan"), {"grid": {}, "yaml": []}, "plan is damaged"),
    ((*CHOICE, "plan"), {}, "grid"),
    ((*CHOICE, "plan"), None, "TypeError"),
    (CHOICE, 3, "TypeError"),
    (("tuning", "arms"), [], "AttributeError"),
    (("tuning", "widened"), [{}], "arm"),
    (("tuning", "widened"), [dict.fromkeys(("arm", "digest", "changed", "wider", "report_runs"), "x")], "widened"),
    (("tuning",), None, "TypeError"),
    (("plans",), 3, "plans is not a mapping"),
    ((*RUN, "run", "seed"), [9], "seed"),
    ((*RUN, "run", "arm"), 3, "name of its arm"),
    ((*RUN, "run", "cell"), "x", "cell"),
    ((*RUN, "extra_key"), 3, "extra_key"),
    ((*RUN, "seconds"), "1", "seconds"),
    ((*RUN, "failure"), 3, "not a text"),
    ((*RUN, "points", "value"), ["1", 2, 3, 4], "value that is not a number"),
    ((*RUN, "points", "value"), [1], "too few or too many"),
    ((*RUN, "points", "counters", "iteration"), {"from": 1}, "by"),
    ((*RUN, "points", "counters", "iteration"), {"from": 1, "by": "x"}, "not a list of numbers"),
    ((*RUN, "points", "counters", "env_steps"), [1, 2, "3", 4], "not a number"),
]


@pytest.mark.parametrize("keys, value, reason", DAMAGES)
def test_a_damaged_file_is_one_clear_error(clone, keys, value, reason):
    file = file_of(clone, "json")
    content = json.loads(file.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="not a report of a study .*Restore it or delete it.$") as error:
        Tuning(clone)
    assert str(error.value).startswith(f"{file}: ") and reason in str(error.value)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b'{"plans": {}, "runs": [], "x": 1' + b"0" * 5000 + b"}"])
def test_a_file_that_json_cannot_read_is_one_clear_error(clone, text):
    file_of(clone, "json").write_bytes(text)
    with pytest.raises(ConfigurationError, match="not a report of a study"):
        Tuning(clone)


def test_a_folder_in_the_place_of_the_file(clone):
    file_of(clone, "json").unlink()
    file_of(clone, "json").mkdir()
    with pytest.raises(ConfigurationError, match="not a report of a study"):
        report.committed(clone)


@pytest.mark.parametrize("rate, is_inside", [(0.05, True), (0.1, True), (0.11, False), (True, False), ("0.05", False)])
def test_a_committed_value_of_a_range(tmp_path, rate, is_inside):
    study = with_arm(
        replace(study_in(tmp_path), search=Search("random", 2)), grid={"model.lr": Range(0.001, 0.1, True)}
    )
    write(study, tune(study))
    clone, file = replace(study, folder=tmp_path / "clone"), file_of(study, "json")
    content = json.loads(file.read_text())
    content["tuning"]["arms"]["joint"]["cell"] = {"model.lr": rate}
    file.write_text(json.dumps(content))
    if is_inside:
        assert Tuning(clone).chosen("joint") == {"model.lr": rate}
    else:
        with pytest.raises(ConfigurationError, match="not a cell of its grid"):
            Tuning(clone)
