"""Commands that run once per start: once, in order, again after a failure, and never twice."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_nlf.studies.first import run_first
from lightning_nlf.studies.runs import Run
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.worker import execute


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
