"""Fixtures: a study of the pendulum whose fits take seconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_nlf.studies.reader import read
from lightning_nlf.studies.spec import Study

ROOT = Path(__file__).parents[3]
STUDY = """
baseline: tiny
metric: val/return
budgets: {iteration: 40}
seeds: {report: 1-4}
arms:
  tiny:
    yaml: tiny.yaml
    changes: {data.horizon: 20}
"""
FIT = """
trainer: {max_epochs: 100, check_val_every_n_epoch: 2}
model:
  class_path: lightning_nlf.objectives.InjectionPolicy
  init_args:
    policy: {class_path: lightning_nlf.networks.GaussianPolicy}
    imitation_weight: {over: 20000}
    lr: 0.02
data:
  class_path: data_modules.pendulum.PendulumDataModule
  init_args:
    episodes: 2
    evaluation_episodes: 2
    expert: data_modules.pendulum.experts.LQRExpert
    takeover: {class_path: data_modules.takeover.Window, init_args: {probability: 0.5}}
    label_buffer: {updates: 2}
"""


@pytest.fixture(autouse=True)
def same_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which the commands replace."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study in an empty working folder. No server answers its MLflow, so that no fit waits for a new database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    Path("study.yaml").write_text(STUDY)
    Path("tiny.yaml").write_text(FIT)
    return read("study.yaml")


@pytest.fixture
def until() -> Callable[..., None]:
    """Function that waits until a condition holds, for at most two minutes."""

    def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not hold in time"
            time.sleep(0.02)

    return wait
