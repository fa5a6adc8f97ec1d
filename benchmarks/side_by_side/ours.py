"""Our side of `throughput.py`. Each function is called repeatedly in a pinned process."""

from __future__ import annotations

import atexit
import io
import logging
import shutil
import tempfile
import time
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import numpy as np
import torch
import yaml
from torch import nn

from benchmarks.side_by_side.closed_loop import Clock, law, steps_per_second
from benchmarks.side_by_side.shares import Shares
from benchmarks.study.learner import CONF, read
from data_modules.offline import OfflineDataModule, save_batch
from data_modules.pendulum.simulator import InvertedPendulum
from lightning_nlf.batch import Batch
from lightning_nlf.cli import noise
from lightning_nlf.cli.command_line import main as command_line
from lightning_nlf.tracking.logger import MLflowJournalLogger

noise.silence()
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

Figures = dict[str, Any]


def trainer_of(clip: float | None, epochs: int, *callbacks: L.Callback, **overrides: Any) -> L.Trainer:
    """Trainer without validation, checkpoints and display; `overrides` may add a logger."""
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings: dict[str, Any] = {"logger": False, "limit_val_batches": 0, "num_sanity_val_steps": 0} | quiet
    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, gradient_clip_val=clip, callbacks=list(callbacks), **settings | overrides
    )


# ---- environment steps/s of training


@cache
def standing() -> dict[str, torch.Tensor]:
    """Weights of a policy that keeps the pole up, trained by cloning the expert."""
    module, data, clip = read("pendulum/bc", {}, seed=0)
    trainer_of(clip, 12).fit(module, data)
    return module.policy.state_dict()


@cache
def learner(name: str, changes: tuple[tuple[str, Any], ...], stands: bool, seed: int) -> tuple[Any, Any, Any]:
    """Module, data and clip, after one iteration, which triggers lazy imports."""
    module, data, clip = read(name, dict(changes), seed)
    if stands:
        module.policy.load_state_dict(standing())
    small, small_data, _ = read(name, {}, seed)
    trainer_of(clip, 1).fit(small, small_data)
    return module, data, clip


def training(
    repeat: int, name: str, changes: dict[str, Any], epochs: int, stands: bool = False, again: bool = False
) -> Figures:
    """Steps/s of `epochs` iterations of `conf/{name}.yaml` by the Trainer, including start and end of the fit.

    Args: stands: start from a policy that keeps the pole up; again: start from scratch in every repeat.
    """
    fixed = tuple((key, tuple(x) if isinstance(x, list) else x) for key, x in changes.items())
    module, data, clip = learner(name, fixed, stands, seed=repeat if again else 0)
    trainer, before = trainer_of(clip, epochs), data.counters["env_steps"]
    started = time.perf_counter()
    trainer.fit(module, data)
    spent = time.perf_counter() - started
    steps = data.counters["env_steps"] - before
    return {"value": steps / spent, "steps": steps, "last length": data.statistics.get("length")}


# ---- stepping


def stepping(repeat: int, envs: int, policy: str = "linear") -> Figures:
    """Steps/s of `InvertedPendulum` in a closed loop; all rows are reset after 1000 steps."""
    simulator, rng, act = InvertedPendulum(), np.random.default_rng(repeat), law(policy)
    states, steps = simulator.reset(envs, rng), 0

    def step() -> None:
        nonlocal states, steps
        states, _, fallen = simulator.step(states, act(simulator.observe(states)))
        steps += 1
        if fallen.any():
            states[fallen] = simulator.reset(int(fallen.sum()), rng)
        if steps % simulator.time_limit == 0:
            states = simulator.reset(envs, rng)

    return steps_per_second(step, envs)


# ---- time to solve


class StopsTheClock(L.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        def act(obs: np.ndarray) -> np.ndarray:
            return pl_module.act(torch.from_numpy(obs).float(), deterministic=True)[0].numpy()

        trainer.should_stop = self.clock.over(trainer.datamodule.counters["env_steps"], act)  # type: ignore[attr-defined]


def solving(repeat: int, name: str, changes: dict[str, Any]) -> Figures:
    """Time to solve of `conf/{name}.yaml` on a seed that was not used for tuning; the clock starts with `fit`."""
    learner(name, (), False, seed=0)
    module, data, clip = read(name, changes, seed=1000 + repeat)
    clock = Clock(repeat)
    trainer = trainer_of(clip, 100_000, StopsTheClock(clock))
    clock.started = time.perf_counter()
    trainer.fit(module, data)
    return clock.result()


# ---- overhead of Lightning in an optimizer step

WARM, STEPS = 3000, 2000  # MLflow is imported in the first seconds of a fit
SLOW = {"model.lr": 1e-6}  # avoids divergence over thousands of steps on one batch


class Steps(L.Callback):
    """Callback that measures the seconds of `STEPS` optimizer steps after the first `WARM`."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM:
            self.started = time.perf_counter()
        elif batch_idx == WARM + STEPS:
            self.spent = time.perf_counter() - self.started


@cache
def folder() -> Path:
    """Temporary folder of this process with a batch of 4 rows of 32 steps."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    everywhere, noise_of = torch.ones(4, 32, dtype=torch.bool), torch.Generator().manual_seed(0)
    obs, actions = (torch.randn(4, 32, n, generator=noise_of) for n in (4, 1))
    batch = Batch(obs=obs, actions=actions, valid=everywhere, mask=everywhere, rewards=torch.ones(4, 32))
    save_batch(batch, path / "batch.pt")
    return path


def step(repeat: int, kind: str) -> Figures:
    """Microseconds per optimizer step of REINFORCE on a fixed batch.

    Args: kind: "plain": a loop in pure torch; "trainer": a Trainer without a logger; "logger": with our logger every 10
        steps; "command": the command line with all its callbacks.
    """
    measure = {"plain": plain, "command": command}.get(kind, lambda r: by_trainer(r, kind == "logger"))
    return {"value": measure(repeat) / STEPS * 1e6}


def plain(repeat: int) -> float:
    module, _, clip = read("pendulum/reinforce", SLOW, seed=0)
    batch = module.prepare(Batch(**torch.load(folder() / "batch.pt")))
    policy, optimizer = module.policy, module.configure_optimizers()
    for i in range(WARM // 10 + STEPS):
        if i == WARM // 10:
            started = time.perf_counter()
        loss = -(policy(batch.obs).log_prob(batch.actions) * batch.advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), clip)
        optimizer.step()
    return time.perf_counter() - started


def by_trainer(repeat: int, logged: bool) -> float:
    module, _, clip = read("pendulum/reinforce", SLOW, seed=0)
    watch = Steps()
    logger = MLflowJournalLogger(str(folder() / f"run{repeat}")) if logged else False
    data = OfflineDataModule(str(folder() / "batch.pt"), passes=WARM + STEPS + 1)
    trainer_of(clip, 1, watch, logger=logger, log_every_n_steps=10).fit(module, data)
    return watch.spent


def command(repeat: int) -> float:
    config = yaml.safe_load((CONF / "pendulum" / "reinforce.yaml").read_text())
    data = {"path": str(folder() / "batch.pt"), "passes": WARM + STEPS + 1}
    config["model"]["init_args"]["lr"] = 1e-6
    config["data"] = {"class_path": "data_modules.offline.OfflineDataModule", "init_args": data}
    config["trainer"] = {
        "max_epochs": 1,
        "gradient_clip_val": 1.0,
        "callbacks": [{"class_path": "benchmarks.side_by_side.ours.Steps"}],
    }
    path = folder() / "steps.yaml"
    path.write_text(yaml.safe_dump(config))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        line = command_line(["fit", "--config", str(path), "--run_dir", str(folder() / f"command{repeat}")])
    (watch,) = [x for x in line.trainer.callbacks if isinstance(x, Steps)]
    return watch.spent


# ---- parts of the wall time of a training


def shares(repeat: int, name: str, changes: dict[str, Any], epochs: int, stands: bool = False) -> Figures:
    """Shares of the wall time of a training like in `training`, by activity; the timers add a few percent."""
    learner(name, (), False, seed=0)
    module, data, clip = read(name, changes, seed=0)
    if stands:
        module.policy.load_state_dict(standing())
    timers, trainer = Shares(), trainer_of(clip, epochs)
    parts = {
        "simulator": [(data.simulator, "step")],
        "policy forward, sampling": [(module, "act")],
        "recording": [(data, "collect")],
        "returns, whitening": [(module, "prepare")],
        "minibatches": [(data, "iteration")],
        "loss, its logging": [(module, "training_step")],
        "backward": [(module, "backward")],
        "checks, clipping": [(module, "on_before_optimizer_step"), (module, "configure_gradient_clipping")],
        "Adam": [(import_module("torch.optim.adam"), "adam")],
    }
    with ExitStack() as patches:
        for label, places in parts.items():
            for owner, method in places:
                timed = timers.timed(getattr(owner, method), label)
                patches.enter_context(mock.patch.object(owner, method, timed))
        started = time.perf_counter()
        trainer.fit(module, data)
        wall = time.perf_counter() - started
    parts_of_wall = {label: timers.seconds[label] / wall for label in parts}
    rate = data.counters["env_steps"] / wall
    return {"value": rate, "shares": parts_of_wall | {"Lightning, its start and end": 1 - sum(parts_of_wall.values())}}
