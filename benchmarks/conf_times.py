"""Run time of each yaml in `conf/`: CPU time of the first iterations, extrapolated to the whole run.

    nice -n 19 python benchmarks/conf_times.py [--seconds 20] [--only reviews/dpo]

Each fit runs on the command line, in a process with one thread, until it ends or has used `--seconds` of CPU time; the
rest is extrapolated by iterations. CPU time hardly depends on other work on the machine, and is about the wall time of
an idle machine. A yaml that starts from another run uses that run's files: supervised starts are trained to their end;
other runs stop after `--seconds`, and their weights are used as they are. Yamls that need people, a judge or your own
model are left out. Finished cells are kept in `results/conf_times.json` and not repeated. Writes
`results/conf_times.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.conf_headers import CONF, Header, headers  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
FOLDER = Path("outputs/benchmarks/conf_times")  # where the runs are
TO_THE_END = ("answers/sft", "mazes/sft", "reviews/sft", "sums/sft")  # the others need a good start
NEEDS_OTHERS = ("my/", "endpoint:", "outputs/reviews.jsonl", "outputs/episode_reviews.jsonl", "pairs_sample-seed")


class IterationClock(L.Callback):
    """Stops a fit after `seconds` of CPU time, at the end of an iteration, and writes its progress.

    Args:
        path: JSON file to write.
        seconds: CPU time from the first iteration on.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = Path(path), seconds
        self.start = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.process_time() - self.start
        assert trainer.max_epochs is not None
        row = {"iterations": trainer.current_epoch + 1, "of": trainer.max_epochs, "seconds": seconds}
        row |= {"start_seconds": self.start, "ended": trainer.should_stop or row["iterations"] == row["of"]}
        self.path.write_text(json.dumps(row))
        trainer.should_stop = trainer.should_stop or seconds >= self.seconds


def is_alone(header: Header) -> bool:
    """Whether a yaml runs without people, a judge, or your own model or file."""
    text = (CONF / f"{header.yaml}.yaml").read_text()
    settings = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return header.command.startswith("python -m lightning_nlf") and not any(
        word in f"{settings} {' '.join(header.flags)}" for word in NEEDS_OTHERS
    )


def estimate(header: Header, seconds: float) -> dict[str, Any]:
    """Measured CPU time of one yaml, and the estimate for its whole run in minutes."""
    if " predict " in header.command:
        used = sum(processor_seconds(line) for line in header.commands if " predict " in line or " rank " in line)
        return {"minutes": used / 60, "ended": True}
    clock = FOLDER / "clock.json"
    limit = 1e9 if header.name in TO_THE_END else seconds
    processor_seconds(
        f"{header.command} --run_dir {run_folder(header.name)} --trainer.logger false "
        f"--trainer.callbacks+ benchmarks.conf_times.IterationClock --trainer.callbacks.path clock.json "
        f"--trainer.callbacks.seconds {limit} --trainer.enable_progress_bar false"
    )
    best = FOLDER / run_folder(header.name) / "checkpoints" / "best.ckpt"
    if not best.is_file():
        shutil.copy(best.with_name("last.ckpt"), best)
    row = json.loads(clock.read_text())
    return {"minutes": whole_minutes(row), **row}


def whole_minutes(row: dict[str, Any]) -> float:
    """Estimated minutes of a complete fit: the start once, plus all iterations."""
    seconds = row["seconds"] if row["ended"] else row["seconds"] * row["of"] / row["iterations"]
    return (row["start_seconds"] + seconds) / 60


def run_folder(name: str) -> str:
    return f"outputs/{name}-seed0"


def processor_seconds(command: str) -> float:
    """Run a command in `FOLDER` on one thread; the processor time that it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, *shlex.split(command)[1:]]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(words, cwd=FOLDER, env=environ, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{command}\n{process.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| yaml | minutes | iterations measured |", "| --- | --- | --- |"]
    for name, row in sorted(rows.items()):
        measured = f"{row['iterations']} of at most {row['of']}" if "of" in row else ""
        lines.append(f"| {name} | {row['minutes']:.1f} | {measured}{', ended' if measured and row['ended'] else ''} |")
    return "\n".join(lines)


def write(rows: dict[str, dict[str, Any]]) -> None:
    machine = f"one thread of a machine with {os.cpu_count()} cores of {platform.machine()}, which had other work to do"
    note = f"Processor time of the whole run, estimated from the first iterations, one seed; {machine}"
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "rows": dict(sorted(rows.items()))}
    (RESULTS / "conf_times.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "conf_times.md").write_text(f"{table(rows)}\n\n{note}; `python benchmarks/conf_times.py`.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="processor time of one fit")
    parser.add_argument("--only", nargs="*", help="measure these again; the others stay as they are")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copytree(CONF, FOLDER / "conf", dirs_exist_ok=True)
    cells = RESULTS / "conf_times.json"
    rows = json.loads(cells.read_text())["rows"] if cells.is_file() else {}
    todo = {header.name: header for header in headers() if is_alone(header)}
    rows = {name: row for name, row in rows.items() if name in todo and name not in (options.only or ())}
    chosen = [todo[name] for name in options.only or todo]

    def measure(header: Header) -> None:
        """Measure a yaml after the runs that it needs; existing runs are not repeated."""
        for path in header.run_first:
            needed(path)
        for command in header.commands[: header.commands.index(header.command)]:
            if command.startswith("python -m lightning_nlf"):
                folder = re.search(r"--run_dir outputs/(\S+)-seed0", command)
                needed(folder[1] if folder else command.split("--config ")[1].split()[0])
            else:
                processor_seconds(command)
        shutil.rmtree(FOLDER / run_folder(header.name), ignore_errors=True)
        rows[header.name] = estimate(header, options.seconds)
        print(header.name, rows[header.name], flush=True)
        write(rows)

    def needed(path: str) -> None:
        name = path.removeprefix("conf/").removesuffix(".yaml")
        if not (FOLDER / run_folder(name)).is_dir():
            measure(todo[name])

    for header in chosen:
        if header.name not in rows:
            measure(header)
    print(table(rows))


if __name__ == "__main__":
    main()
