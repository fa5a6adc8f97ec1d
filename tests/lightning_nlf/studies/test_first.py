"""Commands that run once per start: once, in order, again after a failure, and never twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lightning_nlf.studies.executors import words
from lightning_nlf.studies.first import run_first
from lightning_nlf.studies.reader import read
from lightning_nlf.studies.runs import Run, load, points
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.worker import execute
from lightning_nlf.tracking.journal import JOURNAL, last_lifecycle, read_records


class Attempts:
    """Runs nothing, keeps the commands in order, and fails those that contain a word."""

    def __init__(self, fails: str = "-") -> None:
        self.fails, self.commands = fails, list[str]()

    def __call__(self, words: Sequence[str], output: Path) -> str:
        self.commands.append(" ".join(words[1:]))
        return "no data" if self.fails in words else ""


@pytest.fixture
def started(study: Study) -> Study:
    """Seeds 1 and 2 have the start 1, seeds 3 and 4 the start 3."""
    first = ("fit --config sft.yaml --run_dir {study}/first/{start}/sft", "python -m tool {start}")
    return replace(study, starts={1: 1, 2: 1, 3: 3, 4: 3}, first=first)


def fit(start: int) -> str:
    folder = f"outputs/studies/study/first/{start}/sft"
    return f"-m lightning_nlf fit --config sft.yaml --run_dir {folder} --ckpt_path last"


def test_each_start_runs_its_commands_once(started: Study) -> None:
    """Eight threads stand for eight runs, two of each seed."""
    attempts = Attempts()
    threads = [threading.Thread(target=run_first, args=(started, seed, attempts)) for seed in (1, 2, 3, 4) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempts.commands) == sorted([fit(1), fit(3), "-m tool 1", "-m tool 3"])
    for start in (1, 3):
        assert attempts.commands.index(fit(start)) < attempts.commands.index(f"-m tool {start}")


def test_a_command_that_names_no_start_runs_once_for_the_study(started: Study) -> None:
    """In its place in the order: before the commands of each start."""
    study = replace(started, first=("fit --config expert.yaml --run_dir {study}/expert", *started.first))
    attempts = Attempts()
    for seed in (1, 2, 3, 4):
        assert run_first(study, seed, attempts) == ""
    expert = "-m lightning_nlf fit --config expert.yaml --run_dir outputs/studies/study/expert --ckpt_path last"
    assert attempts.commands == [expert, fit(1), "-m tool 1", fit(3), "-m tool 3"]


def test_after_a_failure_only_what_is_missing_runs_again(started: Study) -> None:
    failing = Attempts(fails="tool")
    assert run_first(started, 1, failing) == "`python -m tool 1`: no data"
    attempts = Attempts()
    assert run_first(started, 2, attempts) == ""
    assert attempts.commands == ["-m tool 1"]


def test_a_changed_command_runs_again(started: Study) -> None:
    run_first(started, 1, Attempts())
    attempts = Attempts()
    run_first(replace(started, first=(*started.first, "fit --config x.yaml --ckpt_path best")), 1, attempts)
    assert attempts.commands == ["-m lightning_nlf fit --config x.yaml --ckpt_path best"]


def test_a_command_that_fails_fails_the_run(study: Study) -> None:
    """No fit begins, and the reason is the command's own error, not that of an earlier command."""
    program = """python -c 'import sys; print("error: {word}", file=sys.stderr); sys.exit({code})'"""
    first = tuple(program.replace("{word}", word).replace("{code}", code) for word, code in (("a", "0"), ("b", "3")))
    result = execute(replace(study, first=first), Run("tiny", "report", {}, 1))
    assert result is not None
    assert result.failure == f"`{first[1]}`: b"
    assert not result.points and not (Run("tiny", "report", {}, 1).folder(study) / "journal.jsonl").exists()


def test_commands_get_this_python_and_one_thread(study: Study) -> None:
    program = """python -c 'import os, sys; print(sys.executable, os.environ["OMP_NUM_THREADS"]); sys.exit(3)'"""
    result = execute(replace(study, first=(program,)), Run("tiny", "report", {}, 1))
    assert result is not None
    assert result.failure.endswith(f": {sys.executable} 1 (exit code 3)")


FIT = "fit --config tiny.yaml --data.horizon 20 --trainer.max_epochs 40 --run_dir {study}/first/{start}/sft"


@pytest.mark.slow
def test_a_first_fit_that_is_killed_is_taken_up_again_by_the_next_process(study: Study, until: Callable) -> None:
    """SIGKILL, after which neither worker nor fit can clean up. The fit does not begin again, and the run follows."""
    text = Path("study.yaml").read_text() + f"\nfirst: ['{FIT}']\n"
    Path("study.yaml").write_text(text.replace("iteration: 40", "iteration: 4"))
    study, run = read("study.yaml"), Run("tiny", "report", {}, 1)
    sft = study.folder / "first" / "1" / "sft"
    worker = subprocess.Popen(words(study, run, {}, 1))
    until(lambda: (sft / "checkpoints" / "last.ckpt").exists() and len(points(sft, study.metric)) >= 3)
    worker.send_signal(signal.SIGSTOP)  # so that it cannot start the fit again
    fit = psutil.Process(int(last_lifecycle(sft / JOURNAL)["pid"]))
    fit.suspend()
    before = points(sft, study.metric)
    worker.kill()
    worker.wait()
    assert len(before) >= 3 and load(run.folder(study)) is None
    until(lambda: not fit.is_running() or fit.status() == psutil.STATUS_ZOMBIE)  # it dies with its worker

    result = execute(study, run)
    assert result is not None and not result.failure and len(result.points) == 2
    lines = [record for record, _ in read_records(sft / JOURNAL)]
    starts = [i for i, record in enumerate(lines) if record["kind"] == "start"]
    assert len(starts) == 2 and len([*sft.parent.glob("*.done")]) == 1
    later = [record["step"] for record in lines[starts[1] :] if record["kind"] == "metrics"]
    assert min(later) >= before[0].counters["optimizer_steps"]  # it did not begin again
    after = points(sft, study.metric)
    assert after[: len(before)] == before and len(after) > len(before)
