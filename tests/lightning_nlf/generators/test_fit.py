"""Fits whose replies come from a fake vLLM server: correction of the ratio, a dead server, and the resumed run."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.callbacks import GenerationServer
from lightning_nlf.cli.command_line import main
from lightning_nlf.maths.importance import truncated_ratio
from lightning_nlf.maths.kl import k3
from lightning_nlf.networks import GaussianPolicy, GRUPolicy
from lightning_nlf.objectives import ImitationPolicy, ReinforcePolicy

RUN = """
seed_everything: 3
trainer:
  max_epochs: 3
  enable_progress_bar: false
  logger: false
  callbacks:
    - class_path: lightning_nlf.callbacks.GenerationServer
      init_args: {{url: {url}, timeout: 20, retries: 1}}
model:
  class_path: lightning_nlf.objectives.ReinforcePolicy
  init_args:
    policy: {{weights: {folder}, lora: {{r: 2}}}}
    baseline: group_mean
    lr: 0.05
data:
  class_path: data_modules.text.TokenTaskDataModule
  init_args: {{prompts: 4, replies: 4, passes: 2, evaluation_prompts: 4}}
"""


@pytest.fixture
def run_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(fake, folder):
    Path("run.yaml").write_text(RUN.format(url=fake.url, folder=folder))
    return ["fit", "--config", "run.yaml", "--run_dir", "run"]


def test_a_fit_is_sampled_by_the_server_with_the_weights_of_each_iteration(fake, folder, run_place):
    module = main(words_of(fake, folder)).model
    assert module.generator is None  # after the fit the policy replies by itself
    pushed = [body["lora_name"] for body in fake.bodies("/load_lora_adapter")]
    assert len(pushed) == len(set(pushed)) == 4  # at the start, and after each of three iterations for a validation
    answered = fake.bodies("/completions")
    assert {body["model"] for body in answered} == set(pushed) and not fake.adapters
    metrics = module.trainer.callback_metrics
    assert abs(metrics["train/mismatch_kl"]) < 1e-6  # the fake server computes as the trainer does
    assert metrics["train/mismatch_capped"] == 0


def test_a_server_that_dies_ends_the_run_and_the_run_can_be_resumed(fake, folder, run_place, capsys, monkeypatch):
    words = words_of(fake, folder)
    second = fake.load

    def load(name, path):
        answer = second(name, path)
        if len(fake.bodies("/load_lora_adapter")) == 3:  # that of the second iteration's end
            fake.dead_after = len(fake.bodies("/completions")) + 1
        return answer

    monkeypatch.setattr(fake, "load", load)
    with pytest.raises(SystemExit) as ending:
        main(words)
    error = capsys.readouterr().err
    assert ending.value.code == 1 and "Traceback" not in error
    (line,) = [line for line in error.splitlines() if "generation server: no answer" in line]
    assert "last.ckpt" in line
    fake.dead_after = None
    module = main([*words, "--ckpt_path", "last"]).model
    assert module.trainer.current_epoch == 3


@pytest.mark.slow
def test_two_processes_have_adapters_of_their_own(fake, folder, run_place):
    words = [*words_of(fake, folder), "--trainer.max_epochs", "1"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run([sys.executable, "-m", "lightning_nlf", *words], check=True, timeout=200, capture_output=True)
    pushed = [body["lora_name"] for body in fake.bodies("/load_lora_adapter")]
    assert len(pushed) == len(set(pushed)) == 4 and len({name.rsplit("-", 1)[0] for name in pushed}) == 2
    assert {body["model"] for body in fake.bodies("/completions")} == set(pushed) and not fake.adapters


def test_a_policy_of_control_is_refused():
    with pytest.raises(ValueError, match="GenerationServer: it samples replies of a language policy"):
        GenerationServer().setup(None, ReinforcePolicy(policy=GaussianPolicy(4, 1)), "fit")
    with pytest.raises(ValueError, match="model: sync: transfer needs the model's name"):
        GenerationServer(sync="transfer")


# ---- correction


def test_mismatch_and_truncated_ratio_by_hand():
    """ρ = ½, 1 and 4: ρ − 1 − log ρ is log 2 − ½, 0 and 3 − log 4; min(ρ, 2) is ½, 1 and 2."""
    log_ratio = torch.tensor([0.5, 1.0, 4.0]).log()
    expected = [math.log(2) - 0.5, 0.0, 3 - math.log(4)]
    assert k3(-log_ratio).tolist() == pytest.approx(expected, abs=1e-6)
    assert truncated_ratio(log_ratio, 2.0).tolist() == pytest.approx([0.5, 1.0, 2.0])


class Server:
    """Stands for a generation server whose replies are already in the batch."""


def two_replies(policy):
    """Two rows of a prompt and two tokens. The server's log-probabilities of the tokens are those in `apart` lower."""
    obs = torch.tensor([[1, 2, 3], [1, 4, 2]])
    actions = torch.tensor([[2, 3, 5], [4, 2, 0]])
    mask = torch.tensor([[False, True, True]] * 2)
    log_probs = policy(obs).log_prob(actions).detach()
    apart = torch.tensor([[0.0, math.log(3), -math.log(2)], [0.0, 0.0, math.log(1.5)]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -2.0]])
    return Batch(
        obs, actions, mask, mask, (log_probs - apart) * mask, rewards, terminated=torch.ones(2, dtype=torch.bool)
    ), log_probs


@pytest.mark.parametrize(
    "decision, weights",
    [
        ("token", [[2.0, 0.5], [1.0, 1.5]]),  # ρ = 3, ½, 1 and 1.5 with a cap of 2
        ("reply", [1.5, 1.5]),  # 3 · ½ and 1 · 1.5
    ],
)
@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_loss_by_hand(decision, weights, clip):
    """Without a baseline the advantages are 1 and −2. Before the first update the clipped loss is −A · weight."""
    torch.manual_seed(0)
    module = ReinforcePolicy(
        policy=GRUPolicy(vocabulary=6, width=8), normalize_advantages=False, decision=decision, clip=clip
    )
    rows, log_probs = two_replies(module.policy)
    module.generator = Server()
    batch = module.prepare(rows)
    torch.testing.assert_close(batch.log_probs[batch.mask], log_probs[batch.mask], atol=1e-6, rtol=0)
    weight, gain = torch.tensor(weights), torch.tensor([1.0, -2.0])
    scores = torch.ones_like(weight)
    if clip is None:
        scores = log_probs[:, 1:] if decision == "token" else log_probs[:, 1:].sum(1)
    gain = gain[:, None] if decision == "token" else gain
    expected = -(weight * scores * gain).mean()
    assert float(module.losses(batch)["policy"].detach()) == pytest.approx(float(expected), abs=1e-5)
    capped = 0.25 if decision == "token" else 0.0
    assert float(module.figures(batch)["mismatch_capped"]) == pytest.approx(capped)


def test_the_mismatch_of_a_collection_by_hand(monkeypatch):
    """Mean of ρ − 1 − log ρ over ρ = 3, ½, 1 and 1.5; expert tokens keep their log-probabilities and do not count."""
    module = ReinforcePolicy(policy=GRUPolicy(vocabulary=6, width=8))
    rows, log_probs = two_replies(module.policy)
    rows = replace(rows, valid=torch.ones_like(rows.mask), log_probs=rows.log_probs + ~rows.mask * 7.0)
    module.generator = Server()
    batch = module.prepare(rows)
    (noted,) = module._unlogged["mismatch_kl"]
    expected = (2 - math.log(3) - 0.5 + math.log(2) + 0.5 - math.log(1.5)) / 4
    assert float(noted) == pytest.approx(expected, abs=1e-6)
    assert (batch.log_probs[:, 0] == 7.0).all() and (batch.extra["server_log_ratio"][:, 0] == 0).all()


def test_rows_that_nobody_sampled_are_not_compared():
    """Demonstrations have no log-probabilities; a server may still play the evaluations of such a fit."""
    module = ImitationPolicy(policy=GRUPolicy(vocabulary=6, width=8))
    rows, _ = two_replies(module.policy)
    module.generator = Server()
    rows = replace(rows, log_probs=None, rewards=None, expert_mask=rows.mask, expert_actions=rows.actions)
    assert "server_log_ratio" not in module.prepare(rows).extra


def test_without_a_server_nothing_changes():
    module = ReinforcePolicy(policy=GRUPolicy(vocabulary=6, width=8))
    batch = module.prepare(two_replies(module.policy)[0])
    assert "server_log_ratio" not in batch.extra and "mismatch_kl" not in module._unlogged
    assert "mismatch_capped" not in module.figures(batch)
