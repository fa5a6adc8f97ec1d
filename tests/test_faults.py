"""Faults in real processes: kill -9, non-finite numbers, unreachable servers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# All state that a resumed run must restore: expert, take-over, label budget, label buffer, an episode that continues in
# the next collection, momentum, and schedules of the learning rate and of the imitation weight.
RUN = """
seed_everything: 3
trainer: {{max_epochs: {epochs}, check_val_every_n_epoch: 4, gradient_clip_val: 1.0}}
model:
  class_path: lightning_nlf.objectives.JointAgent
  init_args:
    policy: {{class_path: lightning_nlf.networks.GaussianPolicy, init_args: {{obs_dim: 4, action_dim: 1}}}}
    value: {{class_path: lightning_nlf.networks.MLPValue, init_args: {{obs_dim: 4}}}}
    imitation_weight: {{class_path: lightning_nlf.maths.Linear, init_args: {{start: 1.0, end: 0.0, over: 3000}}}}
    optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.003}}}}
    lr_scheduler: {{class_path: torch.optim.lr_scheduler.LinearLR, init_args: {{total_iters: 60}}}}
data:
  class_path: data_modules.pendulum.PendulumDataModule
  init_args:
    seed: ${{seed_everything}}
    episodes: 4
    horizon: 25
    min_steps: 100
    passes: 2
    minibatches: 2
    evaluation_episodes: 2
    expert: {{class_path: data_modules.pendulum.experts.LQRExpert}}
    takeover: {{class_path: data_modules.takeover.Window, init_args: {{length: 5, probability: 0.5}}}}
    label_share: 0.5
    label_budget: 900
    label_buffer: {{updates: 2, rows: 64, capacity: 300}}
"""

# For language: a reference that is not saved, an adaptive β, and replies that are sampled again.
TEXT = """
seed_everything: 3
trainer: {{max_epochs: {epochs}, check_val_every_n_epoch: 4, gradient_clip_val: 1.0}}
model:
  class_path: lightning_nlf.objectives.RLHFAgent
  init_args:
    policy:
      class_path: lightning_nlf.networks.TransformerPolicy
      init_args: {{shape: {{vocabulary: 288, layers: 1, heads: 2, width: 16, context: 32, family: llama}}}}
    value: {{class_path: lightning_nlf.networks.ValueHead, init_args: {{width: 16}}}}
    kl_target: 1.0
    whiten_rewards: true
    clip: 0.2
    value_clip: 0.2
    gamma: 1.0
    optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.003}}}}
    lr_scheduler: {{class_path: torch.optim.lr_scheduler.LinearLR, init_args: {{end_factor: 0.0, total_iters: 16}}}}
data:
  class_path: data_modules.text.TextDataModule
  init_args:
    seed: ${{seed_everything}}
    task: {{class_path: data_modules.text.PositiveReviews}}
    tokenizer: {{class_path: data_modules.text.WordTokenizer}}
    prompts: 6
    replies: 2
    max_new: 12
    unfinished: reject
    minibatches: 2
    passes: 2
    evaluation_prompts: 4
"""


def start(folder, *flags, tracking_uri=None):
    command = [sys.executable, "-m", "lightning_nlf", "fit", "--config", "run.yaml", *flags]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "MUJOCO_GL": "disable"}
    environ.pop("MLFLOW_TRACKING_URI", None)
    if tracking_uri:
        environ["MLFLOW_TRACKING_URI"] = tracking_uri
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out + error


def iterations(run):
    """Last iteration in the journal; 0 if there is none yet."""
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines()[:-1] if journal.is_file() else []
    numbers = [json.loads(line).get("values", {}).get("iteration", 0) for line in lines if '"metrics"' in line]
    return max(numbers, default=0)


def kill_at(process, run, iteration):
    deadline = time.monotonic() + 200
    while iterations(run) < iteration:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(random.random() / 50)  # a random moment within the iteration
    process.send_signal(signal.SIGKILL)
    process.communicate()


def assert_same(actual, expected, name="checkpoint"):
    assert type(actual) is type(expected), name
    if isinstance(actual, torch.Tensor):
        assert torch.equal(actual, expected), name
    elif isinstance(actual, dict):
        assert actual.keys() == expected.keys(), name
        for key in actual:
            assert_same(actual[key], expected[key], f"{name}.{key}")
    elif isinstance(actual, list | tuple):
        assert len(actual) == len(expected), name
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{name}[{index}]")
    else:
        assert actual == expected, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "yaml, epochs, kills, data, spent",
    [(RUN, 40, 2, "PendulumDataModule", {"labels": 900}), (TEXT, 16, 1, "TextDataModule", {"env_steps": 16 * 6 * 2})],
    ids=["control", "language"],
)
def test_a_run_that_was_killed_ends_like_one_that_never_was(yaml, epochs, kills, data, spent, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.format(epochs=epochs))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = finish(start(tmp_path, "--run_dir", "whole"))
    assert code == 0, output
    for iteration in sorted(random.sample(range(3, epochs - 5), kills)):
        kill_at(start(tmp_path, "--run_dir", "killed", "--ckpt_path", "last"), killed, iteration)
    code, output = finish(start(tmp_path, "--run_dir", "killed", "--ckpt_path", "last"))
    assert code == 0, output
    resumed, expected = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (killed, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", data):
        assert_same(resumed[part], expected[part], part)
    assert expected["epoch"] == epochs - 1
    assert all(expected[data]["counters"][name] >= amount for name, amount in spent.items())
    # MLflow has a single run, that of the first process, with every iteration.
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_nlf"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"whole", "killed"} and runs["killed"].info.status == "FINISHED"
    history = client.get_metric_history(runs["killed"].info.run_id, "iteration")
    assert {int(metric.value) for metric in history} == set(range(1, epochs + 1))


BROKEN = """
from data_modules.pendulum import PendulumDataModule

class Broken(PendulumDataModule):
    def collect(self, actor, rng):
        batch = super().collect(actor, rng)
        if self.counters["iteration"] == 4:
            batch.rewards[0, 0] = float("nan")
        return batch
"""


@pytest.mark.slow
def test_a_bad_reward_ends_the_run_as_failed_with_its_last_good_checkpoint(tmp_path):
    """The fifth collection has a NaN: the checkpoint is from the fourth, and the run in MLflow is FAILED."""
    (tmp_path / "broken.py").write_text(BROKEN)
    yaml = RUN.format(epochs=60).replace("data_modules.pendulum.PendulumDataModule", "broken.Broken")
    (tmp_path / "run.yaml").write_text(yaml)
    code, output = finish(start(tmp_path, "--run_dir", "run"))
    assert code == 1 and "Traceback" not in output
    assert "non-finite reward" in output and "row 0, step 0" in output and "last.ckpt" in output
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["Broken"]["counters"]["iteration"] == 4
    assert all(torch.isfinite(x).all() for x in checkpoint["state_dict"].values())
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_nlf"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_training_does_not_wait_for_a_server_that_is_not_there(tmp_path):
    """No server listens on port 9: the run succeeds, and its output says how to upload it later."""
    (tmp_path / "run.yaml").write_text(RUN.format(epochs=10))
    code, output = finish(start(tmp_path, "--run_dir", "run", tracking_uri="http://127.0.0.1:9"))
    assert code == 0, output
    assert "lightning_nlf.tracking sync" in output
    assert iterations(tmp_path / "run") == 10
