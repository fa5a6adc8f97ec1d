"""Real processes and real signals: a run of one or two ranks ends soon, is marked, and can be resumed."""

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

SOON = 60.0  # seconds; under 10 on a machine of its own, and for ever with what Lightning does


class Run:
    """`fit` in a process group of its own, resumed where there is something to resume."""

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
        """Until two more iterations stand in the journal."""
        self.wait_for(lambda: iterations(self.folder) >= self.began + 2)

    @property
    def other_ranks(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if child.is_running() and "lightning_nlf" in " ".join(child.cmdline())]
        return []

    def end(self):
        """Exit code, output and seconds that it took; nothing of the group is left."""
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
    """SIGTERM to the first process; then, resumed, Ctrl-C to all of them, twice."""
    run = start(ranks)
    run.train()

    def terminate():
        run.process.terminate()
        run.process.terminate()

    ended_by(run, terminate, 143)
    run = start(ranks)
    run.train()  # so it was resumable

    def interrupt():
        os.killpg(run.process.pid, signal.SIGINT)

    ended_by(run, interrupt, 130)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_as_failed(start):
    """The line names it; the others do not wait for ever, whichever dies and whenever."""
    run = start(2)
    run.train()
    (other,) = run.other_ranks
    other.kill()
    code, output, seconds = run.end()
    assert code == 1 and seconds < 60 and run.status == "FAILED"
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"rank 1 (process {other.pid}) was ended by SIGKILL" in line and "last.ckpt" in line
    assert "Traceback" not in output, output
    # The first process, before training: the other has nobody to wait for.
    run = start(2)
    run.wait_for(lambda: run.other_ranks)
    (other,) = run.other_ranks
    run.process.kill()
    psutil.wait_procs([other], timeout=60)
    assert not other.is_running()
