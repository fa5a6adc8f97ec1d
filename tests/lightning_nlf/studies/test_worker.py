"""Workers: a run that is killed again and again gives the figures of an undisturbed run, to the last digit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightning_nlf.studies.claims import holder
from lightning_nlf.studies.executors import words
from lightning_nlf.studies.runs import Result, Run, load, points
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.worker import RETRIES, execute, main
from lightning_nlf.tracking.journal import JOURNAL, last_lifecycle, read_records

RUN = Run("tiny", "report", {}, 1)


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record, _ in read_records(folder / JOURNAL) if record["kind"] == kind]


def fit_pid(folder: Path) -> int:
    return int(last_lifecycle(folder / JOURNAL)["pid"])


@pytest.fixture
def start(study: Study) -> Iterator[Callable[[Run], subprocess.Popen[bytes]]]:
    processes = []

    def run(run: Run) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(words(study, run, {}, 1)))
        return processes[-1]

    yield run
    for process in processes:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_run_that_is_killed_gives_the_points_of_one_that_is_not(
    study: Study, start: Callable, until: Callable, tmp_path: Path
) -> None:
    calm = execute(replace(study, folder=tmp_path / "calm"), RUN, {"mlflow.parentRunId": "7", "arm": "tiny"})
    assert calm is not None and not calm.failure
    assert [point.counters["iteration"] for point in calm.points] == list(range(2, 42, 2))
    tags = records(RUN.folder(replace(study, folder=tmp_path / "calm")), "tags")[0]["values"]
    assert tags == {"mlflow.parentRunId": "7", "arm": "tiny"}

    folder = RUN.folder(study)
    first = start(RUN)
    until(lambda: len(points(folder, study.metric)) >= 3)
    os.kill(first.pid, signal.SIGSTOP)  # so that the fit cannot end before the next lines
    fit = psutil.Process(fit_pid(folder))
    fit.suspend()
    assert start(RUN).wait() == 0 and load(folder) is None  # the first worker has it
    first.kill()
    until(lambda: not fit.is_running() or fit.status() == psutil.STATUS_ZOMBIE)  # the fit dies with its worker
    assert holder(folder) is None

    second = start(RUN)
    until(lambda: len(points(folder, study.metric)) >= 8)
    fit = psutil.Process(fit_pid(folder))
    second.send_signal(signal.SIGTERM)
    assert second.wait() == 143
    assert holder(folder) is None and load(folder) is None
    assert not fit.is_running()

    def kill_fit() -> None:
        until(lambda: len(points(folder, study.metric)) >= 14)
        os.kill(fit_pid(folder), signal.SIGKILL)

    killer = threading.Thread(target=kill_fit)
    killer.start()
    result = execute(study, RUN)
    killer.join()
    assert result is not None and len(records(folder, "start")) == 4
    assert (result.points, result.failure) == (calm.points, "")
    assert result == load(folder)
    assert 0 < result.seconds < 1000 and "cores" in result.machine


def test_a_fit_that_fails_by_itself_is_a_failed_result(study: Study) -> None:
    arm = replace(study.arms["tiny"], changes={"model.lr_": 1})
    result = execute(replace(study, arms={"tiny": arm}), RUN)
    assert result is not None and result.points == ()
    assert result.failure == "--model.lr_: InjectionPolicy has no such key. Did you mean 'lr_end'?"
    assert result == load(RUN.folder(study)) == execute(study, RUN)  # it is not tried again
    assert holder(RUN.folder(study)) is None


def test_a_command_that_is_killed_is_tried_a_few_times(study: Study) -> None:
    program = """python -c 'import os; print(1, file=open("tries", "a")); os.kill(os.getpid(), {signal})'"""
    first = program.replace("{signal}", "9")
    result = execute(replace(study, first=(first,)), RUN)
    assert result is not None and result.failure == f"`{first}`: was killed 4 times, last with exit code -9"
    assert len(Path("tries").read_text().split()) == 1 + RETRIES == 4


def test_a_command_that_crashes_is_not_tried_again(study: Study) -> None:
    """SIGSEGV comes from the program itself."""
    program = """python -c 'import os; print(1, file=open("tries", "a")); os.kill(os.getpid(), 11)'"""
    result = execute(replace(study, first=(program,)), RUN)
    assert result is not None and result.failure.endswith("it printed nothing (exit code -11)")
    assert len(Path("tries").read_text().split()) == 1


def test_further_metrics_of_a_validation_are_read(tmp_path: Path) -> None:
    """Counters stand in another record of the step; a validation without the further metric goes without it."""
    rows = [({"val/return": 2.0, "val/kl": 0.5}, 3), ({"iteration": 1.0, "labels": 7.0, "train/loss": 1.0}, 3)]
    rows += [({"val/return": 4.0}, 5), ({"iteration": 2.0, "labels": 9.0}, 5)]
    lines = [json.dumps({"kind": "metrics", "time": 1, "step": step, "values": values}) for values, step in rows]
    (tmp_path / JOURNAL).write_text("\n".join(lines) + "\n")
    counters = [point.counters for point in points(tmp_path, "val/return", ["val/kl"])]
    assert counters == [
        {"iteration": 1.0, "labels": 7.0, "optimizer_steps": 4, "val/kl": 0.5},
        {"iteration": 2.0, "labels": 9.0, "optimizer_steps": 6},
    ]


def test_a_run_whose_fit_lives_on_elsewhere_is_left_alone(study: Study) -> None:
    """Its worker on another machine died, and its journal was written a moment ago."""
    folder = RUN.folder(study)
    folder.mkdir(parents=True)
    start = {"kind": "start", "time": 1, "journal": "a", "pid": 1, "host": "elsewhere", "process_started": 1.0}
    (folder / JOURNAL).write_text(json.dumps(start) + "\n")
    assert execute(study, RUN) is None
    assert holder(folder) is None


def test_a_finished_run_is_not_repeated(study: Study) -> None:
    result = Result(RUN, (), "broken")
    RUN.folder(study).mkdir(parents=True)
    result.save(RUN.folder(study))
    assert execute(study, RUN) == result
    assert sorted(path.name for path in RUN.folder(study).iterdir()) == ["result.json"]


@pytest.mark.parametrize("name, folder", [("gone", "f"), ("tiny", "outputs/of/other/settings")])
def test_a_run_of_an_earlier_yaml_is_refused(
    study: Study, name: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = json.dumps({"arm": name, "stage": "report", "cell": {}, "seed": 1})
    with pytest.raises(SystemExit) as ending:
        main([str(study.file), run, folder])
    assert ending.value.code == 2
    assert capsys.readouterr().err == ("error: study.yaml was changed since this study was started; start it again\n")
