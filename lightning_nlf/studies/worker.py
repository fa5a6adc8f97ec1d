"""Execute one run of a study: claim it, run its fit in a process, and save its result.

    python -m lightning_nlf.studies.worker FILE RUN FOLDER

RUN is a `Run` as JSON, and FOLDER its folder. The exit code is 0 if the run has a result now, or if another process has
the run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from lightning_nlf.cli.errors import ConfigurationError
from lightning_nlf.studies import processes, runs
from lightning_nlf.studies.claims import Claim, take
from lightning_nlf.studies.first import run_first
from lightning_nlf.studies.runs import Result, Run
from lightning_nlf.studies.spec import Study
from lightning_nlf.terminal import printable
from lightning_nlf.tracking.journal import JOURNAL, read_records, writer_alive
from lightning_nlf.tracking.provenance import code_folder, commit, processor

OUTPUT = "output.txt"  # what a fit prints
RETRIES = 3  # of a fit that was killed by a signal from outside
# Exit codes after a signal that a program does not cause itself. A fit exits with 130 or 143 if it could clean up.
FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 130, 143}
POLL_SECONDS = 1.0


class ClaimLost(Exception):
    """Another process has taken the run over, because this process was suspended."""


def execute(study: Study, run: Run, tags: Mapping[str, str] | None = None, threads: int = 1) -> Result | None:
    """Execute a run and save its result. A run that was started earlier is continued from its last checkpoint.

    A fit that fails gives a result with a `failure`. An exception in this process, such as KeyboardInterrupt, ends the
    fit, releases the claim and leaves no result.

    Args:
        tags: Tags of the run in MLflow.
        threads: Threads of the fit.

    Returns: The result; None if another process has the run.
    """
    folder = run.folder(study)
    if (ended := runs.load(folder)) is not None:
        return ended
    claim = take(folder)
    if claim is None:
        return None
    with claim:
        if (ended := runs.load(folder)) is not None:  # saved before the claim
            return ended
        # The worker of this fit may have died on another machine, and its fit be still alive.
        if writer_alive(folder / JOURNAL):
            return None
        try:
            attempt = partial(_attempt, claim, threads)
            failure = run_first(study, run.seed, attempt)
            words = [*runs.command(run, study, tags), "--ckpt_path=last"]  # starts the fit if there is no checkpoint
            failure = failure or attempt(words, folder / OUTPUT)
        except ClaimLost:
            return None
        result = _result(study, run, failure)
        result.save(folder)
        return result


def _result(study: Study, run: Run, failure: str) -> Result:
    folder = run.folder(study)
    metric = study.metric_of(run.arm)
    points = runs.points(folder, metric, study.also)
    if not points and not failure:
        failure = f"no validation logged {metric}"
    return Result(run, points, failure, _seconds(folder / JOURNAL), processor(), commit(code_folder()))


def _attempt(claim: Claim, threads: int, words: Sequence[str], output: Path) -> str:
    """Run a command, again if it is killed from outside. Returns why it failed; empty if it did not."""
    for _ in range(1 + RETRIES):
        begin = output.stat().st_size if output.exists() else 0
        code = _run(claim, threads, words, output)
        if code == 0:
            return ""
        if code not in FROM_OUTSIDE:
            return _reason(output, begin, code)
    return f"was killed {1 + RETRIES} times, last with exit code {code}"


def _run(claim: Claim, threads: int, words: Sequence[str], output: Path) -> int:
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with open(output, "ab") as file:
        process = processes.start(words, signal.SIGKILL, stdout=file, env=environ, **streams)
        try:
            while not claim.is_lost:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
            raise ClaimLost
        finally:
            processes.end(process)


def _reason(output: Path, begin: int, code: int) -> str:
    """The "error:" line of a command's output after byte `begin`, or its last line."""
    with open(output, "rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    text = [*lines[-1:], *errors[-1:]][-1:] or ["it printed nothing"]
    return printable(text[0]) if errors else f"{printable(text[0])} (exit code {code})"


def _seconds(journal: Path) -> float:
    """Time of the processes that wrote a journal, each from its start to its last record."""
    seconds, started, last = 0.0, None, 0.0
    for record, _ in read_records(journal):
        if record["kind"] == "start":
            seconds += 0.0 if started is None else last - started
            started = record["process_started"]
        last = record.get("time", 1000 * last) / 1000
    return seconds if started is None else seconds + last - started


def _terminate(number: int, frame: types.FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lightning_nlf.studies.worker", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="yaml of the study")
    parser.add_argument("run", metavar="RUN", help="the run, as JSON")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the run, which depends on its settings")
    parser.add_argument("--tags", default="{}", help="tags of the run in MLflow, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="threads of the fit (default: 1)")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from lightning_nlf.studies.reader import read

        study, run = read(options.file), Run(**json.loads(options.run))
        if run.arm not in study.arms or str(run.folder(study)) != options.folder:
            raise ConfigurationError(f"{options.file} was changed since this study was started; start it again")
        execute(study, run, json.loads(options.tags), options.threads)
    except ConfigurationError as error:
        print("error:", printable(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
