"""`python -m lightning_nlf study FILE`: tune arms, run them on fresh seeds, and write a report with intervals."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_nlf.cli.errors import ConfigurationError, RunFailure, nearest, traceback_wanted
from lightning_nlf.studies import cost, reader, report, runs
from lightning_nlf.studies.display import Display, duration
from lightning_nlf.studies.executors import Handle, executor
from lightning_nlf.studies.executors.local import cores
from lightning_nlf.studies.parent import Parent
from lightning_nlf.studies.runs import Result, Run
from lightning_nlf.studies.spec import Study
from lightning_nlf.studies.tuning import Tuning
from lightning_nlf.terminal import printable

POLL = 0.2  # seconds between two looks at the running processes
ELSEWHERE = 5.0  # seconds until a run that another process has claimed is looked at again
ATTEMPTS = 3  # of a run whose worker died

EPILOG = """\
Stop it at any time: the same command goes on where it was. On a second machine with the same disk, the same command
takes its share of the runs. Seeds of the report stay unread until an arm's tuning has ended.
"""


class Options(argparse.ArgumentParser):
    """Argument parser that raises ConfigurationError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def options(words: Sequence[str]) -> argparse.Namespace:
    parser = Options("python -m lightning_nlf study", description=__doc__, epilog=EPILOG)
    parser.add_argument("file", metavar="FILE", help="yaml of the study")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="run these arms, even those with committed results")
    parser.add_argument("--again", action="store_true", help="with --only: also repeat runs that have finished here")
    parser.add_argument("--cost", action="store_true", help="print the number of runs and the hours, and stop")
    parser.add_argument("--report", action="store_true", help="write the report of the runs so far, and stop")
    parser.add_argument("--widen", action="store_true", help="tune again after a changed grid; the report says so")
    parser.add_argument("--executor", default="local", metavar="NAME", help="local, slurm or ray (default: local)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core; Slurm: 100)")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the executor: threads=2, slurm_partition=gpu"
    )
    return parser.parse_args(words)


def values(options: Sequence[str]) -> dict[str, Any]:
    """Arguments of an executor from `KEY=VALUE`.

    Raises:
        ConfigurationError: One has no "=".
    """
    for option in options:
        if not option.partition("=")[1]:
            raise ConfigurationError(f"--options: got {option!r}, expected KEY=VALUE, such as threads=2")
    return {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in options)}


def main(words: Sequence[str]) -> None:
    """Run the command.

    Raises:
        SystemExit: Code 2 after a mistake of the user, 1 if runs failed, 130 after Ctrl-C.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGTERM, _terminate)
    try:
        flags = options(words)
        study = reader.read(flags.file)
        unknown = [name for name in flags.only or () if name not in study.arms]
        if unknown:
            hint = nearest(unknown[0], study.arms) or f"The arms are {', '.join(study.arms)}."
            raise ConfigurationError(f"--only: {flags.file} has no arm {unknown[0]!r}. {hint}")
        if flags.again and not flags.only:
            raise ConfigurationError("--again: name the arms with --only")
        if flags.jobs is not None and flags.jobs < 1:
            raise ConfigurationError(f"--jobs: got {flags.jobs}, must be at least 1")
        failures = Session(study, flags).work()
    except (ConfigurationError, RunFailure) as error:
        if traceback_wanted():
            raise
        print("error:", printable(" ".join(str(error).split())), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if failures else 0)


def _terminate(number: int, frame: Any) -> NoReturn:
    print("stopped; the same command goes on", file=sys.stderr)
    sys.exit(128 + number)


class Session:
    """One process that works on a study, alone or beside others."""

    def __init__(self, study: Study, flags: argparse.Namespace) -> None:
        self.study, self.flags = study, flags
        self.arms = list(flags.only or study.arms)
        self.executor = executor(flags.executor, flags.jobs, values(flags.options))
        self.jobs = self.executor.slots
        self.tuning = Tuning(study, widen=flags.widen)
        self.committed = {r.run.name: r for r in report.committed(study) if r.run.arm not in (flags.only or ())}
        self.results: dict[str, Result] = dict(self.committed)
        self.running: dict[str, tuple[Run, Handle]] = {}
        self.later: dict[str, float] = {}  # when to look again at a run that another process has
        self.deaths: dict[str, int] = {}
        self.tuned: set[str] = set()  # arms whose tuning results have all been read
        self.scores: dict[str, float | None] = {}  # best score of each arm on the tuning seeds
        self.counted = -1  # finished runs that MLflow has been told of

    def work(self) -> int:
        """Do what the flags ask for. Returns the number of failed runs."""
        if self.flags.report:
            self.collect()
            self._report()
            return 0
        reader.check(self.study)
        if self.flags.again:
            for name in self.arms:
                self._set_aside(name)
        self.collect()
        print(self.cost_text(), file=sys.stderr, flush=True)
        if not self.flags.cost:
            self._run_all()
        failed = [r for r in self.results.values() if r.failure and r.run.stage == "report"]
        for result in failed:
            print(printable(f"failed: {result.run.name}: {result.failure}"), file=sys.stderr)
        if failed:
            names = " ".join(dict.fromkeys(result.run.arm for result in failed))
            print(f"they count as the worst; once their cause is mended: --only {names} --again", file=sys.stderr)
        return len(failed)

    # ---- what there is to do

    def collect(self) -> None:
        """Read the results that have been written since the last look, whichever process wrote them."""
        for name in self.arms:
            for run in self.tuning.report_runs(name):
                if run.name not in self.results and (result := runs.load(run.folder(self.study))) is not None:
                    self.results[run.name] = result
            if self.tuning.chosen(name) is None or name not in self.tuned:
                self.results |= {result.run.name: result for result in self.tuning.results(name)}
                self.scores[name] = self.tuning.best(name)
                self.tuned |= {name} if self.tuning.chosen(name) is not None else set()

    def missing(self) -> list[Run]:
        """Runs that can be made now: cells of arms that are being tuned, and report seeds of the others."""
        tuning = [run for name in self.arms for run in self.tuning.next_runs(name, self.jobs)]
        report = [run for name in self.arms for run in self.tuning.report_runs(name)]
        return [*tuning, *(run for run in report if run.name not in self.results)]

    def _set_aside(self, arm: str) -> None:
        """Move the report runs of an arm to `old/`, so that they are made again."""
        folder = self.study.folder / "runs" / arm.replace("/", "-")
        for run in folder.glob("report-*"):
            old = self.study.folder / "old" / f"{int(time.time())}-{folder.name}-{run.name}"
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(run, old)

    # ---- cost

    def cost_text(self) -> str:
        """`64 runs, at most 1.2 h with 2 at a time` and a line per arm."""
        cells = {name: cell for name in self.arms if (cell := self.tuning.chosen(name)) is not None}
        parts = [part for part in cost.counted(self.study, cells) if part[0] in self.arms]
        finished = [r for r in self.results.values() if r.run.arm in self.arms]
        left = {part: part[2] - sum((r.run.arm, r.run.stage) == part[:2] for r in finished) for part in parts}
        timed = [name for name in self.arms if any(part[0] == name and count for part, count in left.items())]
        if new := cost.untimed(self.study, timed):
            print(
                f"timing {len(new)} arms, about {duration(40 * -(-len(new) // cores()))}", file=sys.stderr, flush=True
            )
        self.paces = cost.paces(self.study, timed, cores())
        lines, longest = [], 0.0
        for (name, stage, _), count in left.items():
            if count > 0:
                seconds = self._seconds(name, stage)
                longest += 0.0 if math.isnan(seconds) else seconds * count
                lines.append(f"  {name}: {count} {'tuning' if stage == 'tune' else 'report'} runs of ")
                lines[-1] += f"up to {duration(seconds)}" if seconds == seconds else self._untimed(name)
        self.total = sum(max(0, count) for count in left.values()) + len(finished)
        many = sum(max(0, count) for count in left.values())
        time_text = f", at most {duration(longest / self.jobs)} with {self.jobs} at a time" if many else ""
        unknown = " (an arm has no end: give it a budget or trainer.max_epochs)" if math.isinf(longest) else ""
        return "\n".join([f"{self.study.name}: {many} runs to make{time_text}{unknown}", *lines])

    def _untimed(self, arm: str) -> str:
        return f"unknown length, because the timed run ended early: {cost.probe_folder(self.study, arm) / cost.OUTPUT}"

    def _seconds(self, arm: str, stage: str) -> float:
        return cost.seconds(self.study, arm, stage, self.paces, list(self.results.values()))

    # ---- running

    def _run_all(self) -> None:
        missing = self.missing()
        if not missing:
            self._report()
            return
        self.parent = Parent(self.study)
        display = Display(self.total, len(self.results))
        status, next_look = "KILLED", 0.0
        try:
            while missing or self.running:
                self._start(missing)
                self._show(display, missing)
                time.sleep(POLL)
                if self._poll() or time.monotonic() >= next_look:
                    self.collect()
                    missing = self.missing()
                    next_look = time.monotonic() + ELSEWHERE
            self._show(display, missing)
            status = "FINISHED"
        finally:
            for _, handle in self.running.values():
                handle.kill()
            display.close()
            self.parent.close(self._report() if status == "FINISHED" else (), status)

    def _start(self, missing: list[Run]) -> None:
        now = time.monotonic()
        for run in missing:
            if len(self.running) >= self.executor.slots:
                return
            if run.name not in self.running and self.later.get(run.name, 0.0) <= now:
                tags = self.parent.tags(run, self.study)
                self.running[run.name] = run, self.executor.submit(self.study, run, tags)

    def _poll(self) -> bool:
        """Take the runs that have ended from the running ones; whether there were any."""
        ended = [(name, run, code) for name, (run, h) in self.running.items() if (code := h.poll()) is not None]
        for name, run, code in ended:
            del self.running[name]
            if runs.load(run.folder(self.study)) is not None:
                continue
            if code == 0:  # another process has it
                self.later[name] = time.monotonic() + ELSEWHERE
                continue
            self.deaths[name] = self.deaths.get(name, 0) + 1
            if self.deaths[name] >= ATTEMPTS:
                reason = f"its worker ended {ATTEMPTS} times without a result, with code {code}"
                run.folder(self.study).mkdir(parents=True, exist_ok=True)
                Result(run, (), reason).save(run.folder(self.study))
        return bool(ended)

    def _show(self, display: Display, missing: list[Run]) -> None:
        results = list(self.results.values())
        failures = sum(bool(result.failure) for result in results)
        left = sum(self._seconds(run.arm, run.stage) for run in missing) / self.jobs
        best = {name: score for name in self.arms if (score := self.scores.get(name)) is not None}
        display.show(len(results), len(self.running), failures, best, left)
        if len(results) != self.counted:
            self.counted = len(results)
            self.parent.count({"runs_finished": len(results), "runs_failed": failures}, len(results))

    # ---- report

    def _report(self) -> tuple[Path, ...]:
        """Write and print the report. Returns its files; none if no run on a report seed has ended."""
        cells = {name: cell for name in self.study.arms if (cell := self.tuning.chosen(name)) is not None}
        results = [r for r in self.results.values() if r.run.stage == "report" and r.run.arm in cells]
        if not results:
            print("no run on a report seed has ended yet, so there is no report", file=sys.stderr)
            return ()
        file = report.write(self.study, results, cells, self.tuning.remarks(), self.tuning.record())
        print(file.read_text(encoding="utf-8"))
        print(f"report: {file}", file=sys.stderr)
        return tuple(file.with_suffix(suffix) for suffix in (".md", ".json", ".png"))
