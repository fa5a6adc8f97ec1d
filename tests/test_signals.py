"""Signals in real processes: a run of one or two ranks ends quickly, is marked, and can be resumed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lightning_nlf.tracking.journal import last_lifecycle
from tests.test_faults import ROOT, RUN, iterations

SOON = 60.0  # seconds; under 10 on an idle machine, but never with Lightning's default behaviour


class Run:
    """`fit` in a process group of its own, resumed if there is a checkpoint."""

    def __init__(self, folder: Path, ranks: int) -> None:
        (folder / "run.yaml").write_text(RUN.format(epochs=100_000))
        self.folder = folder / "run"
        flags = ["--run_dir", "run", "--ckpt_path", "last", "--trainer.accelerator", "cpu"]
        flags += ["--trainer.devices", str(ranks)] + (["--trainer.strategy", "ddp"] if ranks > 1 else [])
        environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "MUJOCO_GL": "disable"}
        environ |= {"OMP_NUM_THREADS": "1"}
        environ.pop("MLFLOW_TRACKING_URI", None)
        self.began = iterations(self.folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightning_nlf", "fit", "--config", "run.yaml", *flags],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, condition, seconds=150.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)

    def train(self):
        """Wait until the journal has two more iterations."""
        self.wait_for(lambda: iterations(self.folder) >= self.began + 2)

    @property
    def other_ranks(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if child.is_running() and "lightning_nlf" in " ".join(child.cmdline())]
        return []

    def end(self):
        """Wait for the end; returns exit code, output and seconds. No process of the group may be left."""
        began = time.monotonic()
        output, _ = self.process.communicate(timeout=90)
        seconds = time.monotonic() - began
        return self.process.returncode, output, seconds

    @property
    def status(self):
        return last_lifecycle(self.folder / "journal.jsonl").get("status")

    def clear(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    runs = []

    def begin(ranks):
        runs.append(Run(tmp_path, ranks))
        return runs[-1]

    yield begin
    for run in runs:
        run.clear()


def ended_by(run, send, code):
    send()
    returned, output, seconds = run.end()
    assert returned == code, output
    assert seconds < SOON and run.status == "KILLED" and "Traceback" not in output, output
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_ends_all_ranks_and_the_run_goes_on_later(ranks, start):
    """SIGTERM to the first process; after resuming, Ctrl-C to all processes, twice."""
    run = start(ranks)
    run.train()

    def terminate():
        run.process.terminate()
        run.process.terminate()

    ended_by(run, terminate, 143)
    run = start(ranks)
    run.train()  # shows that the run could be resumed

    def interrupt():
        os.killpg(run.process.pid, signal.SIGINT)

    ended_by(run, interrupt, 130)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_as_failed(start):
    """The message names the rank, and the others do not hang, whichever rank dies at whatever time."""
    run = start(2)
    run.train()
    (other_rank,) = run.other_ranks
    other_rank.kill()
    code, output, seconds = run.end()
    assert code == 1 and seconds < 60 and run.status == "FAILED"
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"rank 1 (process {other_rank.pid}) was killed by SIGKILL" in line and "last.ckpt" in line
    assert "Traceback" not in output, output
    # The first process dies before training, so the other one waits for nobody.
    run = start(2)
    run.wait_for(lambda: run.other_ranks)
    (other_rank,) = run.other_ranks
    run.process.kill()
    psutil.wait_procs([other_rank], timeout=60)
    assert not other_rank.is_running()
