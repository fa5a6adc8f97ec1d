"""Checkpoints that commit 1c5b0d2 wrote load today, and say what they said then.

Each is the end of one epoch of a tiny `fit` of the command line, so its hyperparameters are those of a real run.
`outputs.json` has what that commit's own code made of a few states or tokens, by the checkpoint's name.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_nlf.batch import Batch
from lightning_nlf.experts import policy_of
from lightning_nlf.modules import ObjectiveModule
from lightning_nlf.scorers import CheckpointReward
from lightning_nlf.tracking.journal import Journal
from lightning_nlf.tracking.registry import register

CHECKPOINTS = Path(__file__).parent / "checkpoints"
OUTPUTS = json.loads((CHECKPOINTS / "outputs.json").read_text())


def outputs_of(module, obs, actions):
    """Log-probabilities and values, or what is paid behind each token; each (B, T)."""
    if "reward" in dict(module.named_children()):
        return {"rewards": module.paid(module.reward(obs))}
    features = module.policy.features(obs)
    outputs = {"log_probs": module.policy.distribution(features).log_prob(actions)}
    for name, network in module.named_children():
        if name == "value":
            outputs["values"] = network(features if network.on_policy else obs)
        if name == "q":
            outputs["q"] = network(obs, actions)
    return outputs


def compare(outputs, expected):
    assert outputs.keys() == expected.keys() - {"obs", "actions"}
    for name, x in outputs.items():
        torch.testing.assert_close(x.detach(), torch.tensor(expected[name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_says_what_it_said(name):
    module = ObjectiveModule.load_from_checkpoint(CHECKPOINTS / f"{name}.ckpt").eval()
    obs, actions = (torch.tensor(OUTPUTS[name][field]) for field in ("obs", "actions"))
    compare(outputs_of(module, obs, actions), OUTPUTS[name])


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_moves_is_where_it_was(name):
    """Tie parameters, an adapted β, the average return, a teacher's average, the scale of a reward."""
    path = CHECKPOINTS / f"{name}.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    loaded = ObjectiveModule.load_from_checkpoint(path).state_dict()
    assert loaded.keys() == saved.keys()
    for key, x in saved.items():
        assert torch.equal(loaded[key], x), key


def test_every_checkpoint_has_its_outputs():
    names = {path.stem for path in CHECKPOINTS.glob("*.ckpt")} - {"injection"}  # that one has a test of its own
    assert names == OUTPUTS.keys()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The URI of a store in which two of them are registered, each as its run's best."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for name in ("actor_critic", "reward_rao_kupper"):
            folder = root / "outputs" / name
            journal = Journal(folder)
            journal.start(experiment="earlier", run_name=name)
            journal.append("end", status="FINISHED")
            (folder / "checkpoints").mkdir()
            shutil.copy(CHECKPOINTS / f"{name}.ckpt", folder / "checkpoints" / "best.ckpt")
            (folder / "config.yaml").write_text("seed: 1\n")
            register(folder, name)
        yield f"sqlite:///{root}/outputs/mlflow.db"


@pytest.mark.slow
def test_registered_policy_comes_back(registry):
    expected = OUTPUTS["actor_critic"]
    policy = policy_of("models:/actor_critic@champion", registry)
    log_probs = policy(torch.tensor(expected["obs"])).log_prob(torch.tensor(expected["actions"]))
    compare({"log_probs": log_probs}, {"log_probs": expected["log_probs"]})


@pytest.mark.slow
def test_registered_reward_pays_what_it_paid(registry):
    """Behind the last token of a reply of five, in rows whose tokens are those of `outputs.json`."""
    expected = OUTPUTS["reward_rao_kupper"]
    ids = torch.tensor(expected["obs"])
    valid = torch.ones(len(ids), 5, dtype=torch.bool)
    rows = Batch(obs=ids[:, :5], actions=ids[:, 1:], valid=valid, mask=valid, final_obs=ids[:, 5])
    paid = CheckpointReward("models:/reward_rao_kupper@champion", tracking_uri=registry).score(rows)
    compare({"rewards": paid[:, -1]}, {"rewards": [row[5] for row in expected["rewards"]]})
    assert not paid[:, :-1].any()
