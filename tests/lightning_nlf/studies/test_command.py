"""`python -m lightning_nlf study`: runs what is missing and nothing twice, whoever kills it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from lightning_nlf.studies import cost
from lightning_nlf.studies.command import Session, main, options
from lightning_nlf.studies.cost import Pace
from lightning_nlf.studies.reader import read
from lightning_nlf.studies.report import committed
from lightning_nlf.studies.runs import Point, Result
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.tuning import Tuning

TWO_ARMS = """
baseline: slow
metric: val/return
budgets: {iteration: 4}
seeds: {tune: 1, report: 11-12}
arms:
  slow:
    yaml: tiny.yaml
    changes: {data.horizon: 20, model.lr: 0.001}
  quick:
    yaml: tiny.yaml
    changes: {data.horizon: 20}
    grid: {model.lr: [0.005, 0.02]}
"""
FOLDER = Path("outputs/studies/two")


def study_process(*flags: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "lightning_nlf", "study", "two.yaml", *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def timed(folder: Path) -> None:
    """Write paces, so that no arm is timed."""
    arms = read("two.yaml").arms
    folder.mkdir(parents=True)
    rows = {f"{name} {arm.recipe}": {"start": 5.0, "per": {"iteration": 0.5}} for name, arm in arms.items()}
    (folder / cost.FILE).write_text(json.dumps(rows))


def rows(folder: Path) -> list[tuple]:
    """What the report has of each run, without times."""
    results = committed(replace(read("two.yaml"), folder=folder))
    return sorted((result.run.arm, result.run.seed, result.points) for result in results)


@pytest.mark.slow
def test_a_study_that_is_killed_ends_with_the_table_of_one_that_is_not(study: Study, until: Callable) -> None:
    """SIGKILL to the whole study while runs are going on, SIGTERM to the next one; then it is done, once and again."""
    os.environ.pop("MLFLOW_TRACKING_URI")
    Path("two.yaml").write_text(f"{TWO_ARMS}results: committed/two\n")
    timed(FOLDER)
    calm = study_process()
    assert calm.wait(300) == 0, calm.stderr.read()
    table, before = calm.stdout.read(), rows(FOLDER)
    assert "| quick |" in table and len(before) == 4
    client = mlflow.MlflowClient(f"sqlite:///{Path.cwd()}/outputs/mlflow.db")
    every = client.search_runs([client.get_experiment_by_name("lightning_nlf").experiment_id])
    (parent,) = [run for run in every if run.info.run_name == "studies/two"]
    children = [run for run in every if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 6 and {run.data.tags["arm"] for run in children} == {"slow", "quick"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        f"two.{x}" for x in ("md", "json", "png")
    }
    assert parent.info.status == "FINISHED" and parent.data.metrics["runs_finished"] == 6

    FOLDER.rename("outputs/studies/calm")
    Path("two.yaml").write_text(TWO_ARMS)
    timed(FOLDER)
    killed = study_process()
    until(lambda: any(FOLDER.glob("runs/*/*/checkpoints/last.ckpt")))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stopped = study_process()
    until(lambda: any(FOLDER.glob("runs/*/*/result.json")))
    stopped.terminate()
    assert stopped.wait(60) == 143 and "the same command goes on" in stopped.stderr.read()
    last = study_process()
    assert last.wait(300) == 0, last.stderr.read()
    assert rows(FOLDER) == before
    assert table_of(last.stdout.read()) == table_of(table)
    times = {file: file.stat().st_mtime_ns for file in FOLDER.glob("runs/*/*/result.json")}
    again = study_process()
    assert again.wait(120) == 0 and "0 runs to make" in again.stderr.read()
    assert times == {file: file.stat().st_mtime_ns for file in FOLDER.glob("runs/*/*/result.json")}

    only = study_process("--only", "slow", "--again")
    assert only.wait(300) == 0, only.stderr.read()
    changed = {file for file in FOLDER.glob("runs/*/*/result.json") if times.get(file) != file.stat().st_mtime_ns}
    assert {file.parts[4] for file in changed} == {"slow"} and len(changed) == 2
    assert rows(FOLDER) == before


def tuned_clone(folder: Path) -> str:
    """Commit results of `two.yaml`, made up, and remove the study's folder; the Markdown of the report."""
    Path("two.yaml").write_text(TWO_ARMS + "results: results/two\n")
    study = read("two.yaml")
    tuning = Tuning(study)
    while runs := [*tuning.next_runs("quick", 9)] or [run for arm in study.arms for run in tuning.report_runs(arm)]:
        for run in runs:
            value = run.cell.get("model.lr", 0.0) + run.seed / 1000
            result = Result(run, (Point({"iteration": 4.0, "env_steps": 80.0}, value),))
            run.folder(study).mkdir(parents=True, exist_ok=True)
            result.save(run.folder(study))
            tuning.finish(result)
        if runs[0].stage == "report":
            break
    with pytest.raises(SystemExit):
        main(["two.yaml", "--report"])
    shutil.rmtree(folder)
    timed(folder)
    return Path("results/two.md").read_text()


@pytest.mark.slow
def test_a_fresh_clone_makes_one_row_again_without_tuning_it(study: Study, capsys: pytest.CaptureFixture) -> None:
    page, file = tuned_clone(FOLDER), Path("results/two.md")
    assert "- quick: the best cell is at the edge of its grid: model.lr 0.02 is the largest" in page
    capsys.readouterr()
    for flags, text in (
        (["--cost"], "two: 0 runs to make"),
        (
            ["--only", "quick", "--again", "--cost"],
            "two: 2 runs to make, at most 7 s with 2 at a time\n  quick: 2 report",
        ),
    ):
        with pytest.raises(SystemExit) as ending:
            main(["two.yaml", *flags, "--jobs", "2"])
        assert ending.value.code == 0 and text in (output := capsys.readouterr()).err
        assert "tuning" not in output.err
    for flags in (["--report"], []):
        file.unlink()
        with pytest.raises(SystemExit) as ending:
            main(["two.yaml", *flags])
        assert (
            ending.value.code == 0
            and capsys.readouterr().out == page + "\n" == Path("results/two.md").read_text() + "\n"
        )


def test_a_fresh_clone_refuses_another_grid_and_a_damaged_file(study: Study, capsys: pytest.CaptureFixture) -> None:
    tuned_clone(FOLDER)
    file, text = Path("results/two.json"), Path("two.yaml").read_text()
    content, place = file.read_text(), "results/two.json: not a report of a study"
    wider, damaged = text.replace("0.02]", "0.02, 0.1]"), content.replace('"cell":{"model.lr":0.02}', '"cell":{"x":1}')
    for record, yaml, message in (
        (content, wider, "quick: its grid changed after 2 report runs had started"),
        (damaged, text, f"{place} (tuning.arms.quick.cell is not a cell of its grid)"),
        ("{", text, f"{place} (JSONDecodeError"),
    ):
        Path("two.yaml").write_text(yaml)
        file.write_text(record)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main(["two.yaml", "--only", "quick", "--again"])
        error = capsys.readouterr().err
        assert ending.value.code == 2 and message in error and error.count("\n") == 1


def table_of(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def test_the_cost_of_a_study_is_counted(study: Study, capsys: pytest.CaptureFixture) -> None:
    """Two tuning runs and two report runs of `quick`, two of `slow`: each 5 s and 4 iterations of half a second."""
    Path("two.yaml").write_text(TWO_ARMS)
    timed(FOLDER)
    with pytest.raises(SystemExit) as ending:
        main(["two.yaml", "--cost", "--jobs", "2"])
    text = capsys.readouterr().err
    assert ending.value.code == 0 and "6 runs to make, at most 21 s with 2 at a time" in text
    assert re.findall(r"  (\w+): (\d) (\w+) runs of up to 7 s", text) == [
        ("slow", "2", "report"),
        ("quick", "2", "tuning"),
        ("quick", "2", "report"),
    ]


def test_an_executor_decides_how_many_runs_go_on(study: Study) -> None:
    """A number of jobs wins; else it is the executor's own, such as 100 of Slurm, and not the cores of this machine."""
    Path("two.yaml").write_text(TWO_ARMS)
    flags = ["two.yaml", "--executor", "slurm", "--options", "minutes=90", "slurm_partition=gpu", "threads=2"]
    session = Session(read("two.yaml"), options(flags))
    assert session.jobs == 100 and session.executor.threads == 2
    assert session.executor.parameters == {"timeout_min": 90, "cpus_per_task": 2, "slurm_partition": "gpu"}
    assert Session(read("two.yaml"), options([*flags, "--jobs", "7"])).jobs == 7


def test_a_run_lasts_until_all_budgets_are_spent_or_its_yaml_ends_it() -> None:
    pace = Pace(5.0, {"iteration": 0.5, "env_steps": 0.01}, iterations=100)
    assert pace.seconds({"env_steps": 1000, "iteration": 10}) == pytest.approx(5 + 10)
    assert pace.seconds({"env_steps": 100_000}) == pytest.approx(5 + 50)
    assert pace.seconds({}) == pytest.approx(5 + 50)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--only", "quik"], "two.yaml has no arm 'quik'. Did you mean 'quick'?"),
        (["--again"], "--again: name the arms with --only"),
        (["--jobs", "0"], "--jobs: got 0, must be at least 1"),
        (["--options", "threads"], "--options: got 'threads', expected KEY=VALUE"),
        (["--options", "treads=2"], "executor: local: "),
        (["--executor", "slrm", "--only", "slow"], "executor: got 'slrm'"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_a_wrong_flag_is_one_line(study: Study, capsys: pytest.CaptureFixture, flags: list[str], message: str) -> None:
    Path("two.yaml").write_text(TWO_ARMS)
    timed(FOLDER)
    with pytest.raises(SystemExit) as ending:
        main(["two.yaml", *flags])
    assert ending.value.code == 2 and message in capsys.readouterr().err
